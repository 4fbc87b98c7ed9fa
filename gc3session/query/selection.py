"""The tasks of a session that fit what is asked for, as an iterator that reads some at a time."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from ..errors import CorruptRecord, InvalidArgument, LoadError
from ..format.frame import schema_number_or_0
from ..format.schema import Schema
from ..store.pages import Pages
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from ..tasks import Persistable, T_co, class_tag, get_stamp
from .conditions import Condition, pattern
from .field_path import field_of, last_event
from .times import aware

if TYPE_CHECKING:
    from ..index.entries import Entry
    from ..store.index import Index
    from ..tables.interface import Reader

Names = str | Collection[str]
Kinds = str | type[Persistable] | Collection[str | type[Persistable]]
Time = datetime | timedelta | str
Where = str | Condition | Iterable[str | Condition]

Page = TypeVar("Page")

_TOGETHER: Final = 32
"""Objects that are made at a time: they stay in the processor's cache until they are looked at."""

_FIRST_PAGE: Final = 16  # entries: a few tasks of a selection are often enough


def _several(value: Any) -> list[Any]:
    """Return a list of what an argument holds, which may also be one thing alone."""
    alone = isinstance(value, (str, type, Condition)) or not isinstance(value, Iterable)
    return [value] if alone else list(value)


def _states(state: Names) -> frozenset[str]:
    states = frozenset(_several(state))
    if not all(isinstance(one, str) for one in states):
        raise InvalidArgument(f"state must be a str or several, such as 'RUNNING', not {state!r}")
    return states


def _kinds(kind: Kinds) -> frozenset[str]:
    several = _several(kind)
    for one in several:
        if not isinstance(one, str) and not (isinstance(one, type) and issubclass(one, Persistable)):
            raise InvalidArgument(f"kind must be the name, the tag or a class of tasks, or several, not {one!r}")
    return frozenset(one if isinstance(one, str) else class_tag(one) for one in several)


def _conditions(where: Where) -> tuple[Condition, ...]:
    conditions = _several(where)
    for condition in conditions:
        if not isinstance(condition, (str, Condition)):
            raise InvalidArgument(f"where takes conditions, such as 'returncode != 0', not {condition!r}")
    return tuple(Condition.parse(one) if isinstance(one, str) else one for one in conditions)


def _seconds(time: Time) -> float:
    return aware(time).timestamp()


@attrs.frozen
class Filters:
    """What is asked of tasks, by the arguments of `Session.select`; a task fits if all of it holds.

    Raise InvalidArgument for an argument that can't be understood.

    Attributes:
        states: the task is in one of these; None for any.
        name, id: regular expressions that are found in its jobname and its ID; None for any.
        kinds: one of these is the tag or the name of its class; None for any.
        where: conditions that it fulfils.
        since, before: its last event was at or after the one and before the other, in seconds since
            1970; None for any time.
        fields: its fields of these names have these values.
    """

    states: frozenset[str] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_states), alias="state"
    )
    name: re.Pattern[str] | None = attrs.field(default=None, converter=attrs.converters.optional(pattern))
    id: re.Pattern[str] | None = attrs.field(default=None, converter=attrs.converters.optional(pattern))
    kinds: frozenset[str] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_kinds), alias="kind"
    )
    where: tuple[Condition, ...] = attrs.field(default=(), converter=_conditions)
    since: float | None = attrs.field(default=None, converter=attrs.converters.optional(_seconds))
    before: float | None = attrs.field(default=None, converter=attrs.converters.optional(_seconds))
    fields: dict[str, Any] = attrs.field(factory=dict)

    @property
    def need_records(self) -> bool:
        """Whether records must be read to know which tasks fit; the index knows only IDs and states."""
        return self.kinds is not None or self.need_fields

    @property
    def need_fields(self) -> bool:
        """Whether the values of a record must be read, not only its class."""
        asked = (self.name, self.since, self.before)
        return bool(self.where or self.fields) or any(one is not None for one in asked)

    @property
    def read_states(self) -> frozenset[str] | None:
        """The states in which the index has all tasks that can fit; None for all states."""
        by_condition = [states for condition in self.where if (states := condition.states()) is not None]
        if not by_condition:
            return self.states
        # A persistable that is no task may have a field `state`; in the index its state is ''.
        wanted = frozenset.intersection(*by_condition) | {""}
        return wanted if self.states is None else self.states & wanted

    def fit_schema(self, schema: Schema) -> bool:
        """Return whether a schema is that of one of the wanted classes."""
        if self.kinds is None:
            return True
        qualified = schema.tag.partition(":")[2]
        names = (schema.tag, schema.name, qualified, qualified.rpartition(".")[2])
        return not self.kinds.isdisjoint(names)

    def fit_fields(self, task: Persistable | StoredTask) -> bool:
        """Return whether what the fields of a task hold fits."""
        if self.name is not None:
            jobname = field_of(task, "jobname")
            if not isinstance(jobname, str) or not self.name.search(jobname):
                return False
        if self.since is not None or self.before is not None:
            seconds = last_event(task)
            if seconds is None or (self.since is not None and not seconds >= self.since):
                return False
            if self.before is not None and not seconds < self.before:
                return False
        if not all(condition.fits(task) for condition in self.where):
            return False
        return all(_same(field_of(task, field), value) for field, value in self.fields.items())

    def fit(self, task: StoredTask) -> bool:
        """Return whether a task fits by its ID, state, class and fields, as they are in its record."""
        if self.id is not None and not self.id.search(task.persistent_id):
            return False
        if self.states is not None and field_of(task, "state") not in self.states:
            return False
        return self.fit_schema(task.schema) and self.fit_fields(task)


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError, MemoryError):  # such as for arrays, which `==` compares item by item
        return False


class Selected(Iterator[T_co]):
    """The tasks that fit what `Session.select` was asked for, in the order of adding.

    It is an iterator of the tasks as objects, each read when its turn comes; `ids` and `stored` give
    their IDs, or what their records have, instead.  A task whose record can't be read raises
    LoadError, and the iterator goes on after it.  All of them raise ClosedError once the store has
    been closed.

    Attributes:
        filters (Filters): what was asked for.
        index (Index): of the session that was asked.
    """

    def __init__(self, index: Index, filters: Filters, first_page: int | None = None) -> None:
        self.filters = filters
        self.index = index
        self._store = index.store
        self._first_page = first_page or _FIRST_PAGE
        self._tasks = StoredTasks(index.store)
        # Not by a bound method: in a cycle with its pages, a loop that is left would end only when that is collected.
        self._pages = self._paged(partial(Selected._with_records, weakref.proxy(self)))
        self._fits = filters.fit_fields if filters.need_fields else None
        self._rest: tuple[list[Entry], list[bytes | None]] = ([], [])  # of the page, no objects yet
        self._version = -1  # of the store's batch, for which these are right
        self._made_to = 0  # the N up to which objects were made
        self._ready: list[Persistable | LoadError] = []  # the last one is the next one
        self._given: list[Persistable] = []  # objects that were made together, which the caller may change

    def _paged(self, read: Callable[[Reader, list[Entry]], Page]) -> Pages[Page]:
        return Pages(self.index, read, states=self.filters.read_states, size=self._first_page)

    def __next__(self) -> T_co:
        ready, fits = self._ready, self._fits
        while True:
            while ready:
                task = ready.pop()
                if isinstance(task, LoadError):
                    raise task
                try:
                    get_stamp(task)
                except AttributeError:  # it has been removed since it was read
                    continue
                if fits is None or fits(task):
                    return task  # type: ignore[return-value]
            self.finish_page()
            with self._store.lock:  # no record changes here between its reading and the making of the object
                try:
                    ready, self._given = self._store.objects(*self._next_records())
                except BaseException:
                    self._pages.after, self._rest = self._made_to, ([], [])  # the next call reads these again
                    raise
                self._made_to = self._pages.after if not self._rest[0] else self._rest[0][0][0] - 1
            ready.reverse()
            self._ready = ready

    def _next_records(self) -> tuple[list[Entry], list[bytes | None]]:
        """Return some entries, of a new page if this one is done or its records may have been changed here since."""
        entries, records = self._rest
        if not entries or self._version != self._store.batch.version:
            if entries:
                self._pages.after = self._made_to
            entries, records = next(self._pages)
            self._version = self._store.batch.version
        self._rest = entries[_TOGETHER:], records[_TOGETHER:]
        return entries[:_TOGETHER], records[:_TOGETHER]

    def finish_page(self) -> None:
        """Have the tasks that were given looked at, those that the caller has kept later."""
        if self._given:
            given, self._given = self._given, []
            self._store.remember(given)

    def __del__(self) -> None:
        given = getattr(self, "_given", None)
        if given:  # the caller has left the loop, and may have changed the last ones
            self._store.remember(given)

    def ids(self) -> Iterator[str]:
        """Give the IDs of the tasks that fit, from the first one.

        Records are read only if the fields or the class decide which tasks fit; one that can't be
        read raises LoadError then, and the iterator goes on after it.
        """
        if self.filters.need_records:
            return map(_id_of, self.stored())
        return chain.from_iterable(self._paged(lambda reader, page: self._ids(reader, self._of_ids(reader, page))))

    def stored(self) -> Iterator[StoredTask | UnreadableTask]:
        """Give the tasks that fit as their records have them, from the first one; no objects are made.

        An UnreadableTask stands for a task whose record can't be read: it may fit.
        """
        fits = self._fits
        tasks = chain.from_iterable(starmap(self._tasks.of, self._paged(self._with_records)))
        return tasks if fits is None else (t for t in tasks if isinstance(t, UnreadableTask) or fits(t))

    def _with_records(self, reader: Reader, entries: list[Entry]) -> tuple[list[Entry], list[bytes | None]]:
        """Return those entries that fit by ID and class, with their records."""
        entries = self._of_ids(reader, entries)
        records = self._tasks.records(reader, entries)
        if self.filters.kinds is None:
            return entries, records
        kept = [pair for pair in zip(entries, records, strict=True) if pair[1] and self._of_kinds(reader, pair[1])]
        return [entry for entry, _ in kept], [record for _, record in kept]

    def _of_ids(self, reader: Reader, entries: list[Entry]) -> list[Entry]:
        wanted = self.filters.id
        if wanted is None:
            return entries
        ids = zip(entries, self._ids(reader, entries), strict=True)
        return [entry for entry, id_ in ids if wanted.search(id_)]

    def _ids(self, reader: Reader, entries: list[Entry]) -> list[str]:
        name = self._store.schemas.name
        return [f"{name(schema, reader)}.{number}" for number, schema in entries]

    def _of_kinds(self, reader: Reader, record: bytes) -> bool:
        try:
            return self.filters.fit_schema(self._store.schemas.get(schema_number_or_0(record), reader))
        except CorruptRecord:
            return True  # its class isn't known; decoding the record raises what is wrong with it


def _id_of(task: StoredTask | UnreadableTask) -> str:
    if isinstance(task, UnreadableTask):
        raise task.error
    return task.persistent_id
