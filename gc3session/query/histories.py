"""The histories of a session's tasks, read from the records.

No object is built, so no class is needed, and a walk through a session takes some bits of memory a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from ..errors import CorruptRecord
from ..format.frame import schema_number_or_0, values_of
from ..format.schema import PERSISTABLE, Schema
from ..records.values import references
from ..store.index import CHUNK
from ..store.pages import Pages
from ..store.record_view import StoredTasks
from ..system.number_set import Numbers

if TYPE_CHECKING:
    from ..store.index import Index

_NONE: Final[list[Any]] = []


class History(NamedTuple):
    """A task, and its events.

    Attributes:
        number: its N.
        id: its ID.
        name: its jobname; None if it isn't a str.
        state: its state; None if it isn't a str.
        returncode: its return code; None if it isn't an int.
        events: the entries of its history, as they are in the record.
    """

    number: int
    id: str
    name: str | None
    state: str | None
    returncode: int | None
    events: list[Any]


class TaskHistories:
    """Reads the histories of tasks and of the tasks inside them, each once.

    Attributes:
        last: the greatest N that has been read.
        unreadable: an exception for each record that can't be read.
    """

    def __init__(self, index: Index, is_passed_over: Callable[[int], bool] = lambda number: False) -> None:
        """Begin with nothing read.

        Args:
            index: of the session.
            is_passed_over: called with the N of a task inside another one; if it returns True the task is left out.
        """
        self._index = index
        self._store = index.store
        self._tasks = StoredTasks(index.store)
        self._is_passed_over = is_passed_over
        self._seen = Numbers()
        self._layouts: dict[int, _RecordLayout] = {}
        self.last = 0
        self.unreadable: list[CorruptRecord] = []

    def members(self, after: int) -> Iterator[History]:
        """Give the histories of the session's tasks after N *after*."""
        self.last = after
        for entries, records in Pages(self._index, self._tasks.with_records, after=after):
            for (number, schema), record in zip(entries, records, strict=True):
                if record is not None:
                    yield from self._with_inner(number, record, schema)
            self.last = entries[-1][0]

    def of(self, numbers: Iterable[int]) -> Iterator[History]:
        """Give the histories of the records of some Ns; those that don't exist are left out."""
        source = iter(numbers)
        while some := list(islice(source, CHUNK)):
            for number, record in self._records(some):
                yield from self._with_inner(number, record)

    def _records(self, numbers: list[int]) -> list[tuple[int, bytes]]:
        records = zip(numbers, self._tasks.records_of(numbers), strict=True)
        return [(number, record) for number, record in records if record is not None]

    def _with_inner(self, number: int, record: bytes, schema: int | None = None) -> Iterator[History]:
        """Give the histories of a task and of those inside it, breadth first, except those given before."""
        inner: deque[int] = deque()
        yield from self._history(number, record, inner, schema)
        while inner:
            some: dict[int, None] = {}
            while inner and len(some) < CHUNK:
                number = inner.popleft()
                if number not in self._seen and not self._is_passed_over(number):
                    some[number] = None
            for number, record in self._records(list(some)):
                yield from self._history(number, record, inner)

    def _history(
        self, number: int, record: bytes, inner: deque[int], schema: int | None = None
    ) -> Iterator[History]:
        """Give the history in a record if it is a task's and wasn't given before; add what is inside to *inner*."""
        if number in self._seen:
            return
        self._seen.add(number)
        try:
            written, _, values = values_of(number, record)
            layout = self._layouts.get(written) or self._layout(written)
            if type(values) is not list or len(values) != layout.count:
                raise ValueError("its values are not those of its schema")
            if layout.tasks is not None:
                inner.extend(references(values[layout.tasks]))
        except (CorruptRecord, ValueError, TypeError, msgpack.UnpackException) as error:
            self._note_unreadable(number, schema_number_or_0(record) if schema is None else schema, error)
            return
        if layout.is_task:
            name = None if layout.name is None else values[layout.name]
            state = None if layout.state is None else values[layout.state]
            returncode = None if layout.returncode is None else values[layout.returncode]
            events = _NONE if layout.history is None else values[layout.history]
            yield History(
                number,
                f"{layout.class_name}.{number}",
                name if type(name) is str else None,
                state if type(state) is str else None,
                returncode if type(returncode) is int else None,
                events if type(events) is list else _NONE,
            )

    def _layout(self, number: int) -> _RecordLayout:
        with self._store.lock, self._store.reading() as reader:
            schema = self._store.schemas.get(number, reader)
        layout = self._layouts[number] = _RecordLayout(schema)
        return layout

    def _note_unreadable(self, number: int, schema: int, error: Exception) -> None:
        with self._store.lock, self._store.reading() as reader:
            id_ = f"{self._store.schemas.name(schema, reader)}.{number}"
        failure = CorruptRecord(f"{id_} in {self._store.url}: {error}", id_)
        failure.__cause__ = error
        self.unreadable.append(failure)


class _RecordLayout:
    """Where in the records of one schema the wanted fields are; None for a field that the schema doesn't have."""

    def __init__(self, schema: Schema) -> None:
        self.class_name = schema.name
        self.is_task = schema.kind != PERSISTABLE
        self.count = len(schema.fields)
        places = {name: place for place, name in enumerate(schema.fields)}
        self.name, self.state = places.get("jobname"), places.get("state")
        self.history, self.returncode = places.get("history"), places.get("returncode")
        self.tasks = places.get("tasks")
