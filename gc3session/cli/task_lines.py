"""The line of JSON that a dump has for a task."""

from __future__ import annotations

from .. import Session, StoredTask, UnreadableTask
from ..index.entries import state_at
from ..transfer.dump import RecordLines


class TaskLines:
    """Writes the lines of some tasks of a session as `gc3session dump` does."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines = RecordLines()

    def of(self, task: StoredTask | UnreadableTask) -> str:
        """Return the line of a task, with its line feed.

        It has the task's order in the session, null if the task isn't in it, wherever it was found.
        """
        index, order = self._session._index, task.order
        if order and isinstance(task, StoredTask):
            return self._lines.of(task.schema, task.number, order, task.record)
        with self._session.store.reading() as reader:
            order = order or index.order_of(reader, task.number) or 0
            if isinstance(task, StoredTask):
                return self._lines.of(task.schema, task.number, order, task.record)
            session = index.session(reader)
            state = state_at(reader, session, order) if order and session is not None else ""
        return self._lines.raw(task.persistent_id, order, state, task.record)
