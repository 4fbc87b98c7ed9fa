"""The line of JSON that a dump has for a task."""

from __future__ import annotations

from .. import Session, StoredTask, UnreadableTask
from ..transfer.dump import RecordLines


class TaskLines:
    """Writes the lines of some tasks of a session as `gc3session dump` does."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines = RecordLines()

    def of(self, task: StoredTask | UnreadableTask) -> str:
        """Return the line of a task, with its line feed; it says whether the session has the task."""
        index = self._session._index
        with self._session.store.reading() as reader:
            member = index.holds(reader, task.number)
            if isinstance(task, StoredTask):
                return self._lines.of(task.schema, task.number, member, task.record)
            state = index.state(reader, task.number) if member else ""
        return self._lines.raw(task.persistent_id, member, state, task.record)
