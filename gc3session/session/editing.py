"""Changing very many tasks in a loop, which are saved as it goes on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Generic
from weakref import WeakSet

from ..errors import Error, InvalidArgument
from ..query.selection import Filters, Selected
from ..store.index import CHUNK, Index
from ..tasks import Persistable, T

PART: Final = 4096
"""Changed tasks that are saved in one transaction."""

PAGES: Final = 2
"""Pages that are held after a loop has gone on: the program may have put the tasks into a list, to change them later."""


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
        self._pages: deque[list[Persistable]] = deque()  # which loops gave, not looked at yet
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
            self._pages.append([*loop._given])  # the loop may go on after the block
        self._look(0)
        if error is not None:
            self._give_up(error)
            return
        try:
            self.save()
        except BaseException as failure:
            self._give_up(failure)
            raise

    def hold(self, tasks: list[Persistable]) -> None:
        """Hold a page of tasks that a loop gave, and look for changes in those of a former one."""
        self._pages.append(tasks)
        self._look(PAGES)
        if len(self.changed) >= PART:
            self.save()

    def _look(self, pages: int) -> None:
        while len(self._pages) > pages:
            tasks = {id(task): task for task in self._pages.popleft()}.values()
            self.changed += [task for task in tasks if task.persistent_id is not None and task.changed]

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

    def taken(self) -> list[Persistable]:
        """Return the tasks of the page, which is done with."""
        given, self._given = self._given, []
        return given

    def finish_page(self) -> None:
        if self._edit.is_open:
            self._edit.hold(self.taken())
        else:
            super().finish_page()

    def __del__(self) -> None:
        edit = getattr(self, "_edit", None)
        if edit is not None and edit.is_open:  # the caller has left the loop, not the block
            edit._pages.append(self.taken())
        else:
            super().__del__()
