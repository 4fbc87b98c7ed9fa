"""Changing very many tasks in a loop, which are saved as it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Generic
from weakref import WeakSet

from ..errors import Error, InvalidArgument
from ..query.selection import Filters, Selected
from ..store.index import CHUNK, Index
from ..tasks import Persistable, T, get_stamp, stamp_of

PART: Final = 4096
"""Changed tasks that are saved in one transaction."""


class Edit(Generic[T]):
    """The tasks that a `with session.edit(...)` is about; a loop over them saves what it changes.

    See `SessionBase.edit`.

    Attributes:
        is_open: whether the block is being run.
    """

    def __init__(self, index: Index, asked: Filters) -> None:
        self._store = index.store
        self._index = index
        self._asked = asked
        self._loops: WeakSet[_Loop] = WeakSet()
        self._saved = 0  # the N of the last task that has been saved
        self._given: set[int] = set()  # Ns of what loops gave: of all that may have changed since it was saved
        self._most = 2 * PART  # of these, before it is looked which haven't changed
        self._unsaved = 0  # changed objects of the store, as something was saved last
        self.is_open = False

    def __enter__(self) -> Edit[T]:
        self._store.ensure_writable()
        self._unsaved = len(self._store.changes)
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
            self.note(loop._given)  # the loop may go on after the block
        if error is not None:
            self._give_up(error)
            return
        try:
            self._save(look_at_all=True)
        except BaseException as failure:
            self._give_up(failure)
            raise

    def note(self, tasks: list[Persistable]) -> None:
        """Have tasks that a loop gave saved, if they are changed."""
        self._given.update(get_stamp(task).number for task in tasks if stamp_of(task) is not None)

    def save_part(self) -> None:
        """Save what has been changed, if that is much."""
        changes = self._store.changes
        if len(changes) - self._unsaved >= PART:
            self._save(look_at_all=False)  # the program may hold very many, which are looked at in the end
        if len(self._given) > self._most:
            with self._store.lock:
                changes.look_at_recent()
                alive = {n for n in self._given if self._store.loader.living(n) is not None}
                self._given &= alive | changes.numbers()
            self._most = max(2 * PART, 2 * len(self._given))

    def _save(self, *, look_at_all: bool) -> None:
        """Save what has been changed."""
        store = self._store
        last = self._saved

        def choose(changed: list[int]) -> list[int]:
            nonlocal last
            chosen = [number for number in changed if number in self._given]
            last = chosen[-1] if chosen else last
            return chosen

        with store.unit(flush=True):
            store.stage_changed(choose, look_at_all=look_at_all)
        self._saved, self._unsaved = last, len(store.changes)

    def _give_up(self, error: BaseException) -> None:
        store = self._store
        with store.lock:
            store.look_at_all()
            given_up = sorted(self._given & store.changes.numbers())
            for number in given_up:
                task = store.loader.living(number)
                if task is None:
                    store.changes.records.pop(number)
                    continue
                with contextlib.suppress(Error):  # it was removed, or can't be read any more
                    store.refresh(task)
        with store.reading() as reader:
            saved = f"all up to {store.name_of(reader, self._saved)}.{self._saved}" if self._saved else "nothing"
        where = "saved" if store.batch.journal is None else "in the transaction"
        error.add_note(
            f"edit: {saved} is {where}; what was changed in {len(given_up)} tasks after that is given up"
        )


class _Loop(Selected[Any]):
    """One loop over the tasks of an edit."""

    def __init__(self, edit: Edit[Any], index: Index, asked: Filters) -> None:
        super().__init__(index, asked, CHUNK)
        self._edit = edit

    def finish_page(self) -> None:
        is_open = self._edit.is_open
        if is_open:
            self._edit.note(self._given)
        super().finish_page()
        if is_open:
            self._edit.save_part()

    def __del__(self) -> None:
        edit = getattr(self, "_edit", None)
        if edit is not None and edit.is_open:  # the caller has left the loop, not the block
            edit.note(self._given)
        super().__del__()
