"""The tasks of a session, as iterators and as a mapping; nothing is read before it is asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import CorruptRecord, InvalidArgument, LoadError
from ..format.frame import schema_number_or_0
from ..format.schema import Schema
from ..index.entries import Entry
from ..index.index import CHUNK, Index
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from ..store.store import Store
from ..tables.interface import Reader
from ..tasks import Persistable, class_tag, stamp_of
from .conditions import Condition
from .field_path import last_event
from .times import aware

if TYPE_CHECKING:
    pass


class Tasks(Iterator[Any]):
    """The tasks of an index, read some at a time."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._after = 0
        self._ready: list[Persistable | LoadError] = []

    def __next__(self) -> Any:
        while True:
            while self._ready:
                task = self._ready.pop()
                if isinstance(task, LoadError):
                    raise task
                if stamp_of(task) is not None:  # it may have been removed meanwhile
                    return task
            self._read()

    def _read(self) -> None:
        store = self._store
        while not self._ready:
            with store.lock:
                with store.reading() as reader:
                    entries = self._index.chunk(reader, self._after)
                    records = store.records(reader, entries)
                if not entries:
                    raise StopIteration
                self._ready = store.objects(entries, records)
            self._ready.reverse()
            self._after = entries[-1][0]


# -- selecting ----------------------------------------------------------------

Names = str | Collection[str]
Kinds = str | type[Persistable] | Collection[str | type[Persistable]]
Time = datetime | timedelta | str
Where = str | Condition | Iterable[str | Condition]


@attrs.frozen
class Filters:
    """What is asked of tasks; all of it must hold.

    Attributes:
        states: one of which they must be in; None for any.
        name, id: regular expressions that are searched for in the jobname and the ID.
        kinds: tags or names of classes, one of which must be theirs.
        where: conditions on their fields.
        since, before: seconds since 1970 between which their last event must be.
        fields: values that the fields of those names must have.
    """

    states: frozenset[str] | None
    name: re.Pattern[str] | None
    id: re.Pattern[str] | None
    kinds: frozenset[str] | None
    where: tuple[Condition, ...]
    since: float | None
    before: float | None
    fields: dict[str, Any]

    @property
    def need_records(self) -> bool:
        """Whether the index doesn't tell alone which tasks fit."""
        return self.kinds is not None or self.need_fields

    @property
    def need_fields(self) -> bool:
        """Whether the fields of a task tell whether it fits, beside its class."""
        return bool(
            self.name is not None or self.where or self.since is not None or self.before is not None or self.fields
        )

    @property
    def read_states(self) -> frozenset[str] | None:
        """The states in the index that have all tasks that can fit; None for all."""
        told = [states for condition in self.where if (states := condition.states()) is not None]
        if not told:
            return self.states
        wanted = frozenset.intersection(*told)
        # A persistable that is no task may have a field `state`; in the index its state is ''.
        return wanted | {""} if self.states is None else self.states & (wanted | {""})

    def fit_schema(self, schema: Schema) -> bool:
        """Return whether a schema is of one of the classes."""
        if self.kinds is None:
            return True
        qualified = schema.tag.partition(":")[2]
        names = (schema.tag, schema.name, qualified, qualified.rpartition(".")[2])
        return not self.kinds.isdisjoint(names)

    def fit_fields(self, task: Persistable | StoredTask) -> bool:
        """Return whether the fields of a task fit."""
        if self.name is not None:
            jobname = _field(task, "jobname")
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
        return all(_same(_field(task, field), value) for field, value in self.fields.items())

    def fit(self, task: StoredTask) -> bool:
        """Return whether a task fits, as far as its record tells."""
        if self.id is not None and not self.id.search(task.persistent_id):
            return False
        if self.states is not None and _field(task, "state") not in self.states:
            return False
        return self.fit_schema(task.schema) and self.fit_fields(task)


_missing = object()


def _field(task: Persistable | StoredTask, name: str) -> Any:
    return task.fields.get(name, _missing) if type(task) is StoredTask else getattr(task, name, _missing)


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError, MemoryError):  # such as of arrays, whose `==` is no yes or no
        return False


def filters(
    state: Names | None = None,
    name: str | re.Pattern[str] | None = None,
    id: str | re.Pattern[str] | None = None,  # noqa: A002 (it is one)
    kind: Kinds | None = None,
    where: Where = (),
    since: Time | None = None,
    before: Time | None = None,
    fields: dict[str, Any] | None = None,
) -> Filters:
    """Return what is asked for by the arguments of `select`.  Raise InvalidArgument for a wrong one."""
    states = None if state is None else frozenset([state] if isinstance(state, str) else state)
    if states is not None and not all(isinstance(one, str) for one in states):
        raise InvalidArgument(f"state must be a str or several, such as 'RUNNING', not {state!r}")
    conditions = [where] if isinstance(where, (str, Condition)) else list(where)
    for condition in conditions:
        if not isinstance(condition, (str, Condition)):
            raise InvalidArgument(f"where takes conditions, such as 'returncode != 0', not {condition!r}")
    return Filters(
        states,
        _pattern("name", name),
        _pattern("id", id),
        None if kind is None else _kinds(kind),
        tuple(Condition.parse(one) if isinstance(one, str) else one for one in conditions),
        None if since is None else aware(since).timestamp(),
        None if before is None else aware(before).timestamp(),
        fields or {},
    )


def _pattern(argument: str, value: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except (re.error, TypeError) as error:
        raise InvalidArgument(f"{argument} must be a regular expression, not {value!r}: {error}") from error


def _kinds(kind: Kinds) -> frozenset[str]:
    several = [kind] if isinstance(kind, (str, type)) else list(kind)
    for one in several:
        if not isinstance(one, str) and not (isinstance(one, type) and issubclass(one, Persistable)):
            raise InvalidArgument(f"kind must be the name, the tag or a class of tasks, or several, not {one!r}")
    return frozenset(one if isinstance(one, str) else class_tag(one) for one in several)


# Of a selection a few are often enough, so it begins with few.
_FIRST = 16


def _next_size(size: int) -> int:
    return min(2 * size, CHUNK)


def _id_of(task: StoredTask | UnreadableTask) -> str:
    if isinstance(task, UnreadableTask):
        raise task.error
    return task.persistent_id


class Selected(Iterator[Any]):
    """The tasks that fit what is asked for, in the order of adding; see `SessionBase.select`.

    A task whose record can't be read raises LoadError; the iterator goes on after it.

    Attributes:
        filters: what is asked for.
    """

    def __init__(self, store: Store, index: Index, filters: Filters) -> None:
        self._store = store
        self._index = index
        self.filters = filters
        self._states = filters.read_states
        self._tasks = StoredTasks(store)
        self._after = 0
        self._size = _FIRST
        self._ready: list[Persistable | LoadError] = []

    def __next__(self) -> Any:
        while True:
            while self._ready:
                task = self._ready.pop()
                if isinstance(task, LoadError):
                    raise task
                if stamp_of(task) is not None and self.filters.fit_fields(task):  # it may have been removed
                    return task
            if not self._read():
                raise StopIteration

    def _read(self) -> bool:
        """Read the next ones; return whether there were any."""
        store = self._store
        with store.lock:
            with store.reading() as reader:
                chunk = self._chunk(reader, self._after, self._size)
                if not chunk:
                    return False
                entries, records = self._with_records(reader, chunk)
            self._ready = store.objects(entries, records)
        self._ready.reverse()
        self._after, self._size = chunk[-1][0], _next_size(self._size)
        return True

    def ids(self) -> Iterator[str]:
        """Give the IDs of the tasks instead, from the first one.

        Records are read only if the fields or the class tell which tasks fit; one that can't be
        read raises LoadError then, and the iterator goes on after it.
        """
        return map(_id_of, self.stored()) if self.filters.need_records else self._ids_in_index()

    def _ids_in_index(self) -> Iterator[str]:
        after, size = 0, _FIRST
        while True:
            with self._store.lock, self._store.reading() as reader:
                chunk = self._chunk(reader, after, size)
                if not chunk:
                    return
                found = self._ids(reader, self._of_ids(reader, chunk))
            yield from found
            after, size = chunk[-1][0], _next_size(size)

    def stored(self) -> Iterator[StoredTask | UnreadableTask]:
        """Give the tasks as their records have them, from the first one; no objects are made.

        An UnreadableTask stands in the place of one whose record can't be read: it may fit.
        """
        store = self._store
        after, size = 0, _FIRST
        while True:
            with store.lock, store.reading() as reader:
                chunk = self._chunk(reader, after, size)
                if not chunk:
                    return
                entries, records = self._with_records(reader, chunk)
            for task in self._tasks.of(entries, records):
                if isinstance(task, UnreadableTask) or self.filters.fit_fields(task):
                    yield task
            after, size = chunk[-1][0], _next_size(size)

    def _chunk(self, reader: Reader, after: int, size: int) -> list[Entry]:
        """Return the next entries in the wanted states; none means that there are no more."""
        if self._states is None:
            return self._index.chunk(reader, after, size)
        # Each gives its next ones, so the first ones of all are among these.
        found = [self._index.chunk_in_state(reader, state, after, size) for state in self._states]
        return found[0] if len(found) == 1 else sorted(entry for some in found for entry in some)[:size]

    def _with_records(self, reader: Reader, chunk: list[Entry]) -> tuple[list[Entry], list[bytes | None]]:
        """Return those entries that fit by ID and class, with their records."""
        entries = self._of_ids(reader, chunk)
        records = self._tasks.records(reader, entries)
        if self.filters.kinds is None:
            return entries, records
        kept = [pair for pair in zip(entries, records, strict=True) if pair[1] and self._of_kinds(reader, pair[1])]
        return [entry for entry, _ in kept], [record for _, record in kept]

    def _of_ids(self, reader: Reader, chunk: list[Entry]) -> list[Entry]:
        pattern = self.filters.id
        if pattern is None:
            return chunk
        ids = zip(chunk, self._ids(reader, chunk), strict=True)
        return [entry for entry, id_ in ids if pattern.search(id_)]

    def _ids(self, reader: Reader, entries: list[Entry]) -> list[str]:
        name = self._store.schemas.name
        return [f"{name(schema, reader)}.{number}" for _, number, schema in entries]

    def _of_kinds(self, reader: Reader, record: bytes) -> bool:
        try:
            return self.filters.fit_schema(self._store.schemas.get(schema_number_or_0(record), reader))
        except CorruptRecord:
            return True  # it can't be told; the reading of it tells why
