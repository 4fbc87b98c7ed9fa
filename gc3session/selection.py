"""The tasks of a session, as an iterator and as a mapping; nothing is read before it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .entries import Entry
from .errors import LoadError
from .index import Index
from .store import Store
from .tables import Reader
from .tasks import Persistable

if TYPE_CHECKING:
    from .session_base import SessionBase


class Tasks(Iterator[Any]):
    """The tasks of an index, or those in one state, read some at a time."""

    def __init__(self, store: Store, index: Index, state: str | None = None) -> None:
        self._store = store
        self._index = index
        self._state = state
        self._after = 0
        self._ready: list[Persistable | LoadError] = []

    def __next__(self) -> Any:
        while True:
            while self._ready:
                task = self._ready.pop()
                if isinstance(task, LoadError):
                    raise task
                if task._store is not None:  # it may have been removed meanwhile
                    return task
            self._read()

    def _read(self) -> None:
        store = self._store
        while not self._ready:
            with store.lock:
                with store.reading() as reader:
                    entries = self._chunk(reader)
                    records = store.records(reader, entries)
                if not entries:
                    raise StopIteration
                self._ready = store.objects(entries, records)
            self._ready.reverse()
            self._after = entries[-1][0]

    def _chunk(self, reader: Reader) -> list[Entry]:
        if self._state is None:
            return self._index.chunk(reader, self._after)
        return self._index.chunk_in_state(reader, self._state, self._after)


class Selected(Iterator[Any]):
    """The tasks that fit what is asked for; it goes on after one that can't be read.

    Args:
        tasks: to choose from.
        states: one of which they must be in; None for any.
        pattern: of their jobname.
        fields: values that the fields of those names must have.
    """

    def __init__(
        self,
        tasks: Iterator[Any],
        states: frozenset[str] | None,
        pattern: re.Pattern[str] | None,
        fields: dict[str, Any],
    ) -> None:
        self._tasks = tasks
        self._states = states
        self._pattern = pattern
        self._fields = fields.items()

    def __next__(self) -> Any:
        missing = object()
        states, pattern, fields = self._states, self._pattern, self._fields
        for task in self._tasks:
            if states is not None and getattr(task, "state", None) not in states:
                continue
            if pattern is not None and not pattern.search(getattr(task, "jobname", "")):
                continue
            if all(_same(getattr(task, field, missing), value) for field, value in fields):
                return task
        raise StopIteration


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


class TasksByID(Mapping[str, Any]):
    """The tasks of a session by ID; nothing is loaded before it is asked for."""

    def __init__(self, session: SessionBase) -> None:
        self._session = session

    def __getitem__(self, task_id: str) -> Any:
        return self._session[task_id]

    def __iter__(self) -> Iterator[str]:
        return self._session.ids()

    def __len__(self) -> int:
        return len(self._session)

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str) and task_id in self._session

    def __repr__(self) -> str:
        return f"<{len(self)} tasks of {self._session!r}>"
