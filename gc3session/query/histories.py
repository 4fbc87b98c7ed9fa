"""The tasks of a session with what has happened to them, read from the records.

No object is built, so no class is needed, and a session of any size takes a bit of memory a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from ..errors import CorruptRecord
from ..format.frame import schema_number_or_0, values_of
from ..format.schema import PERSISTABLE, Schema
from ..records.values import references
from ..system.number_set import Numbers

if TYPE_CHECKING:
    from ..session.base import SessionBase

_CHUNK: Final = 512  # records that are read in one transaction
_RELAXED: Final = 1 << 24  # bytes of records after which memory is let go of
_NONE: Final[list[Any]] = []


class History(NamedTuple):
    """A task, and what has happened to it.

    Attributes:
        number: its N.
        id: its ID.
        name: its jobname, None if it has none.
        state: the one it is in.
        returncode: its field of that name, None if it is no int.
        events: as in `Task.history`, whatever the record has there.
    """

    number: int
    id: str
    name: str | None
    state: str | None
    returncode: int | None
    events: list[Any]


class Histories:
    """The histories of tasks and of the tasks inside them, each once.

    Attributes:
        last: the greatest order that has been read.
        unreadable: an exception for each record that can't be read.
    """

    def __init__(self, session: SessionBase, passed_over: Callable[[int], bool] = lambda number: False) -> None:
        """Begin with nothing read.

        Args:
            session: of which to read.
            passed_over: N -> whether a task that is found inside another one isn't wanted.
        """
        self._session = session
        self._store = session.store
        self._passed_over = passed_over
        self._seen = Numbers()
        self._places: dict[int, _Places] = {}
        self.last = 0
        self.unreadable: list[CorruptRecord] = []

    def members(self, after: int) -> Iterator[History]:
        """Give those of the session's tasks whose order is greater than *after*."""
        store, index = self._store, self._session._index
        self.last = after
        read = 0
        while True:
            self._session._ensure_open()
            with store.lock, store.reading() as reader:
                entries = index.chunk(reader, self.last)
                records = store.records(reader, entries)
                if read > _RELAXED:
                    reader.release_memory()
                    read = 0
            if not entries:
                return
            read += sum([len(record) for record in records if record is not None])
            for (_, number, schema), record in zip(entries, records, strict=True):
                if record is not None:
                    yield from self._with_inner(number, record, schema)
            self.last = entries[-1][0]

    def of(self, numbers: Iterable[list[int]]) -> Iterator[History]:
        """Give those of some Ns, of which some hundred come at a time, as far as they are there."""
        for some in numbers:
            for number, record in self._records(some):
                yield from self._with_inner(number, record)

    def _records(self, numbers: list[int]) -> list[tuple[int, bytes]]:
        store = self._store
        self._session._ensure_open()
        with store.lock, store.reading() as reader:
            records = [(number, store.record(reader, number)) for number in numbers]
        return [(number, record) for number, record in records if record is not None]

    def _with_inner(self, number: int, record: bytes, schema: int | None = None) -> Iterator[History]:
        """Give a task and those inside it, which have not been given yet: breadth first, as far as there are."""
        inner: deque[int] = deque()
        yield from self._history(number, record, inner, schema)
        while inner:
            some: dict[int, None] = {}
            while inner and len(some) < _CHUNK:
                number = inner.popleft()
                if number not in self._seen and not self._passed_over(number):
                    some[number] = None
            for number, record in self._records(list(some)):
                yield from self._history(number, record, inner)

    def _history(
        self, number: int, record: bytes, inner: deque[int], schema: int | None = None
    ) -> Iterator[History]:
        """Give the history in a record if it is a task's, and not given yet; note what is inside it."""
        if number in self._seen:
            return
        self._seen.add(number)
        try:
            written, _, values = values_of(number, record)
            places = self._places.get(written) or self._placed(written)
            if type(values) is not list or len(values) != places.count:
                raise ValueError("its values are not those of its schema")
            if places.tasks is not None:
                inner.extend(references(values[places.tasks]))
        except (CorruptRecord, ValueError, TypeError, msgpack.UnpackException) as error:
            self._note_unreadable(number, schema_number_or_0(record) if schema is None else schema, error)
            return
        if places.is_task:
            name = None if places.name is None else values[places.name]
            state = None if places.state is None else values[places.state]
            returncode = None if places.returncode is None else values[places.returncode]
            events = _NONE if places.history is None else values[places.history]
            yield History(
                number,
                f"{places.id}.{number}",
                name if type(name) is str else None,
                state if type(state) is str else None,
                returncode if type(returncode) is int else None,
                events if type(events) is list else _NONE,
            )

    def _placed(self, number: int) -> _Places:
        with self._store.lock, self._store.reading() as reader:
            schema = self._store.schemas.get(number, reader)
        places = self._places[number] = _Places(schema)
        return places

    def _note_unreadable(self, number: int, schema: int, error: Exception) -> None:
        with self._store.lock, self._store.reading() as reader:
            id_ = f"{self._store.schemas.name(schema, reader)}.{number}"
        failure = CorruptRecord(f"{id_} in {self._store.url}: {error}", id_)
        failure.__cause__ = error
        self.unreadable.append(failure)


class _Places:
    """Where in the records of one schema what is needed stands; None if it doesn't."""

    def __init__(self, schema: Schema) -> None:
        self.id = schema.name
        self.is_task = schema.kind != PERSISTABLE
        self.count = len(schema.fields)
        places = {name: place for place, name in enumerate(schema.fields)}
        self.name, self.state = places.get("jobname"), places.get("state")
        self.history, self.returncode = places.get("history"), places.get("returncode")
        self.tasks = places.get("tasks")
