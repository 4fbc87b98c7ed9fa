"""One state of a store, held for a check or a repair while other processes write.

A reader's slot in `lock.mdb` keeps LMDB from reusing the pages of the state; but while it is held, the file
grows beside a busy writer. So as soon as anybody commits, the pages are copied into a
temporary file without a name (about a GiB a second), and the slot is given back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import IO

import attrs

from ...errors import CorruptStore, Error, WriteError
from ...system.temporary import keeping
from ..interface import Contents
from .data_file.meta import newest_meta_page, opened_data_file
from .data_file.pages import Pages, Problem
from .data_file.structure import check_structure
from .data_file.walk import LmdbContents
from .environment import Environment
from .locks import writers_waiting
from .opening import Transaction
from .registry import acquire, release

_PIECE = 1 << 24  # bytes copied at once
_ATTEMPTS = 100


@contextmanager
def contents(
    directory: str,
    problem: Problem,
    held: Callable[[], None],
    *,
    map_size: int,
    in_write: bool,
) -> Iterator[Contents]:
    """Check the structure of the store in *directory*, and yield what can be read of its tables.

    Args:
        directory: the directory of the environment.
        problem: called with each fault in the structure.
        held: called once the state is held, before the search for faults. Nobody commits meanwhile; if that can't be
            had, and somebody does, another state is held, and it is called again.
        map_size: for an environment that isn't open yet.
        in_write: whether the caller holds the write lock, so that nobody else can commit meanwhile.

    Raise CorruptStore if nothing can be read, OpenError if the rights don't allow it.
    """
    path = os.path.join(directory, "data.mdb")
    with (
        opened_data_file(path) as file,
        closing(_HeldState(directory, path, file, problem, map_size, in_write)) as state,
    ):
        with nullcontext() if in_write else writers_waiting(directory):
            state.take(held)
        check_structure(state.pages, problem, state.tick)
        yield LmdbContents(state.pages, state.tick)


@attrs.define(eq=False)
class _HeldState:
    """The pages of one state, which nobody overwrites until this is closed.

    The slot is held only while this program uses the environment for nothing else, because its other
    threads wait meanwhile.

    Attributes:
        pages: the pages; set by `take`.
    """

    _directory: str
    _path: str
    _file: IO[bytes]
    _problem: Problem
    _map_size: int
    _in_write: bool
    pages: Pages = attrs.field(init=False)
    _slot: ExitStack = attrs.field(factory=ExitStack)  # holds the reader's slot, if there is one
    _env: Environment | None = None  # None without a slot
    _transaction: Transaction = None
    _copy: IO[bytes] | None = None

    def take(self, then: Callable[[], None]) -> None:
        """Hold the newest state, by a reader's slot or in a copy, and call *then* before anybody has committed."""
        fd = self._file.fileno()
        # Raises if the meta pages are damaged, before LMDB sees them.
        self.pages = Pages(self._path, fd, newest_meta_page(self._path, fd))
        if self._in_write:
            return then()
        for _ in range(_ATTEMPTS):
            newest = newest_meta_page(self._path, fd).transaction  # which a killed writer may have told no reader
            held = self._hold()
            self.pages = Pages(self._path, fd, newest_meta_page(self._path, fd, held))
            if held is None:
                return then()
            env = self._env
            assert env is not None
            if held == self.pages.meta.transaction:
                if not (env.locked and len(env.users) == 1 and env.read_only):
                    self._copy_pages()
                then()
                if newest_meta_page(self._path, fd).transaction == newest:
                    return None
            self._give_back()
        raise Error(
            f"{self._path} is being written without pause, so that no state of it can be held; check it again when"
            " less is being written, or ask its owner for the right to write lock.mdb and writer.lock"
        )

    def _hold(self) -> int | None:
        """Take a reader's slot. Return the number of the transaction that it holds, or None if LMDB can't give one."""
        try:
            self._env = acquire(self._directory, self, True, self._map_size, None)
            self._slot.callback(release, self._env, self)
            self._slot.enter_context(self._env.reading)
            self._transaction = self._env.hold()
            self._slot.callback(self._transaction.abort)
            return int(self._transaction.id())
        except (CorruptStore, WriteError) as error:
            # The file is too damaged for LMDB; what can be read is read without it.
            self._give_back()
            self._problem(str(error))
            return None

    def _give_back(self) -> None:
        """Give back the slot and the environment."""
        self._env = None
        self._slot.close()

    def _copy_pages(self) -> None:
        """Copy the pages into a temporary file, and give the slot back."""
        with keeping(f"a copy of {self._path}, made because others write to it meanwhile,"):
            if self._copy is None:
                self._copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (`close` closes it)
            self._copy.truncate(0)
            for file in (self._file, self._copy):
                file.seek(0)
            shutil.copyfileobj(self._file, self._copy, _PIECE)
        self.pages.fd = self._copy.fileno()
        self._give_back()

    def tick(self) -> None:
        """Copy the pages if anybody has committed, or another part of this program needs the environment."""
        env = self._env
        if env is not None and (len(env.users) > 1 or env.has_newer_commit(self._transaction)):
            self._copy_pages()

    def close(self) -> None:
        """Give back the slot, and delete the copy of the pages."""
        self._give_back()
        if self._copy is not None:
            self._copy.close()
