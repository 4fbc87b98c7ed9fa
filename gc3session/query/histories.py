"""The histories of a session's tasks, read from the records.

No object is built, so no class is needed, and a walk through a session takes some bits of memory a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LoadError
from ..format.schema import PERSISTABLE
from ..store.index import CHUNK
from ..store.pages import Pages
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from ..system.number_set import Numbers

if TYPE_CHECKING:
    from ..store.index import Index


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
        self._tasks = StoredTasks(index.store)
        self._is_passed_over = is_passed_over
        self._seen = Numbers()
        self.last = 0
        self.unreadable: list[LoadError] = []

    def members(self, after: int) -> Iterator[History]:
        """Give the histories of the session's tasks after N *after*."""
        self.last = after
        for entries, records in Pages(self._index, self._tasks.with_records, after=after):
            yield from self._with_inner(self._tasks.of(entries, records))
            self.last = entries[-1][0]

    def of(self, numbers: Iterable[int]) -> Iterator[History]:
        """Give the histories of the records of some Ns; those that don't exist are left out."""
        source = iter(numbers)
        while some := list(islice(source, CHUNK)):
            yield from self._with_inner(self._at(some))

    def _at(self, numbers: list[int]) -> Iterator[StoredTask | UnreadableTask]:
        return self._tasks.at([(number, 0) for number in numbers])

    def _with_inner(self, tasks: Iterable[StoredTask | UnreadableTask]) -> Iterator[History]:
        """Give the histories of tasks and of those inside them, breadth first, except those given before."""
        for outer in tasks:
            if (history := self._history(outer)) is not None:
                yield history
            inner = deque(_parts(outer))
            while inner:
                some: dict[int, None] = {}
                while inner and len(some) < CHUNK:
                    number = inner.popleft()
                    if number not in self._seen and not self._is_passed_over(number):
                        some[number] = None
                for task in self._at(list(some)):
                    if (history := self._history(task)) is not None:
                        yield history
                    inner.extend(_parts(task))

    def _history(self, task: StoredTask | UnreadableTask) -> History | None:
        """Return the history of what is a task and wasn't given before."""
        if not self._seen.add(task.number):
            return None
        if isinstance(task, UnreadableTask):
            self.unreadable.append(task.error)
            return None
        if task.schema.kind == PERSISTABLE:
            return None
        name, state, code, events = map(task.fields.get, ("jobname", "state", "returncode", "history"))
        return History(
            task.number,
            task.persistent_id,
            name if isinstance(name, str) else None,
            state if isinstance(state, str) else None,
            code if type(code) is int else None,
            events if isinstance(events, list) else [],
        )


def _parts(task: StoredTask | UnreadableTask) -> list[int]:
    return [part.number for part in task.parts] if isinstance(task, StoredTask) else []
