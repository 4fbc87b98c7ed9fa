"""Changing very many tasks in a loop, which are saved as it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Generic

from ..errors import Error
from ..index.index import CHUNK, Index
from ..query.selection import Filters, Selected
from ..tasks import Persistable, T

PART: Final = 4096
"""Changed tasks that are saved in one transaction."""


class Edit(Generic[T]):
    """The tasks that a `with session.edit(...)` is about; a loop over them saves what it changes.

    See `SessionBase.edit`.
    """

    def __init__(self, index: Index, asked: Filters) -> None:
        self._index = index
        self._store = index.store
        self._asked = asked
        self._changed: list[Persistable] = []  # in the order of adding, not saved yet
        self._loops: list[_Loop] = []
        self._saved: str | None = None  # the ID of the last task that has been saved

    def __enter__(self) -> Edit[T]:
        self._store.ensure_writable()
        return self

    def __iter__(self) -> Iterator[T]:
        loop = _Loop(self, self._index, self._asked)
        self._loops.append(loop)
        return loop

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            for loop in self._loops:
                loop.finish_page()
            self._save()
            return
        for loop in self._loops:
            self._changed += loop.changed_ones()
        for task in self._changed:
            with contextlib.suppress(Error):  # it was removed, or can't be read any more
                self._store.refresh(task)
        error.add_note(
            f"edit: {'nothing is saved' if self._saved is None else f'all up to {self._saved} is saved'};"
            f" what was changed in {len(self._changed)} tasks after that is given up"
        )

    def take(self, tasks: list[Persistable]) -> None:
        """Save changed tasks, once there are many."""
        self._changed += tasks
        if len(self._changed) >= PART:
            self._save()

    def _save(self) -> None:
        changed = self._changed
        if changed:
            with self._store.unit(flush=True):
                for task in changed:
                    self._store.stage(task)
            self._saved = changed[-1].persistent_id
            changed.clear()


class _Loop(Selected[Any]):
    """One loop over the tasks of an edit."""

    def __init__(self, edit: Edit[Any], index: Index, asked: Filters) -> None:
        super().__init__(index, asked, CHUNK)
        self._edit = edit

    def changed_ones(self) -> list[Persistable]:
        """Return those of the page that have been changed."""
        given, self._given = self._given, []
        return [task for task in given if task.persistent_id is not None and task.changed]

    def finish_page(self) -> None:
        self._edit.take(self.changed_ones())
