"""Changing very many tasks in a loop, which are saved as it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Generic
from weakref import WeakSet

from ..errors import Error, InvalidArgument
from ..index.index import CHUNK, Index
from ..query.selection import Filters, Selected
from ..tasks import Persistable, T

PART: Final = 4096
"""Changed tasks that are saved in one transaction."""


class Edit(Generic[T]):
    """The tasks that a `with session.edit(...)` is about; a loop over them saves what it changes.

    See `SessionBase.edit`.

    Attributes:
        changed: tasks that were changed and are not saved yet, in the order of the loop.
        is_open: whether the block is being run.
    """

    def __init__(self, index: Index, asked: Filters) -> None:
        self._index = index
        self._store = index.store
        self._asked = asked
        self._loops: WeakSet[_Loop] = WeakSet()
        self._saved: str | None = None  # the ID of the last task that has been saved
        self.changed: list[Persistable] = []  # in the order of the loop, not saved yet
        self.is_open = False

    def __enter__(self) -> Edit[T]:
        self._store.ensure_writable()
        self.is_open = True
        return self

    def __iter__(self) -> Iterator[T]:
        if not self.is_open:
            raise InvalidArgument(
                "what a loop over edit() changes is saved inside its `with` only: write `with session.edit() as tasks:`"
                " and the loop below that"
            )
        loop = _Loop(self, self._index, self._asked)
        self._loops.add(loop)
        return loop

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False
        for loop in [*self._loops]:
            self.changed += loop.changed_ones()
        if error is not None:
            self._give_up(error)
            return
        try:
            self.save()
        except BaseException as failure:
            self._give_up(failure)
            raise

    def save(self) -> None:
        """Save what has been changed."""
        tasks = [task for task in self.changed if task.persistent_id is not None]  # else it has been removed since
        if tasks:
            with self._store.unit(flush=True):
                for task in tasks:
                    self._store.stage(task)
            self._saved = tasks[-1].persistent_id
        self.changed.clear()

    def _give_up(self, error: BaseException) -> None:
        store = self._store
        for task in self.changed:
            with contextlib.suppress(Error):  # it was removed, or can't be read any more
                store.refresh(task)
        saved = "saved" if store.batch.journal is None else "in the transaction"
        error.add_note(
            f"edit: {f'nothing is {saved}' if self._saved is None else f'all up to {self._saved} is {saved}'};"
            f" what was changed in {len(self.changed)} tasks after that is given up"
        )


class _Loop(Selected[Any]):
    """One loop over the tasks of an edit."""

    def __init__(self, edit: Edit[Any], index: Index, asked: Filters) -> None:
        super().__init__(index, asked, CHUNK)
        self._edit = edit

    def changed_ones(self) -> list[Persistable]:
        """Return those of the page that have been changed."""
        given = {id(task): task for task in self._given}
        return [task for task in given.values() if task.persistent_id is not None and task.changed]

    def finish_page(self) -> None:
        edit = self._edit
        if not edit.is_open:
            super().finish_page()
            return
        edit.changed += self.changed_ones()
        self._given = []
        if len(edit.changed) >= PART:
            edit.save()

    def __del__(self) -> None:
        edit = getattr(self, "_edit", None)
        if edit is not None and edit.is_open:  # the caller has left the loop, not the block
            edit.changed += self.changed_ones()
        else:
            super().__del__()
