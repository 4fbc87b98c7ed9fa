"""The tables of a data file read from end to end without LMDB, of one state, beside writers.

A reader's slot in lock.mdb keeps LMDB from using the pages of the state again; but as long as it
is held, the file grows beside a busy writer.  So when somebody commits, the pages are copied into
a temporary file without a name (a GiB or so a second), and the slot is given back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import IO

from ...errors import CorruptStore, Error, OpenError, WriteError
from ...system.signals import signal_safe
from ...system.temporary import keeping
from ..interface import Contents, Item
from .environment import Environment, Transaction, acquire, release
from .gate import regular_file
from .pages import DUP, SUB, DamagedPage, Node, Pages, Problem, Tree, Walk, find_leaf, newest_state
from .structure import check_structure, trees_of

_PIECE = 1 << 24
_CHUNK = 64
_ATTEMPTS = 100


def _nothing(problem: str) -> None:
    """Pass over a fault that has been told."""


class LmdbContents(Contents):
    """What can be read of the tables in one state of a data file.

    Args:
        pages: the pages of the state.
        tick: called now and then.
    """

    def __init__(self, pages: Pages, tick: Callable[[], None] = lambda: None) -> None:
        self._pages = pages
        self._tick = tick
        self._trees = trees_of(pages, _nothing)
        self._leaves: dict[str, tuple[bytes, dict[bytes, Node]]] = {}  # of each table the one last read by key

    def entries(self, table: str) -> int:
        return self._trees[table].entries if table in self._trees else 0

    def _nodes(self, table: str) -> Iterator[Node]:
        """Give the nodes of a table; those that are out of order are left out."""
        tree = self._trees.get(table)
        if tree is None:
            return
        last: bytes | None = None
        for page, _, _ in Walk(self._pages, tree, self._pages.unused(), _nothing):
            self._tick()
            for node in self._pages.nodes(page, _nothing):
                if last is None or last < node.key:
                    last = node.key
                    yield node

    def walk(self, table: str) -> Iterator[Item]:
        for node in self._nodes(table):
            if not node.flags & (SUB | DUP):
                try:
                    yield node.key, self._pages.value(node)
                except DamagedPage:
                    continue

    def keys(self, table: str) -> Iterator[bytes]:
        return (node.key for node in self._nodes(table))

    def walk_values(self, table: str, key: bytes) -> Iterator[bytes]:
        node = self._find(table, key)
        if node is None:
            return
        last: bytes | None = None
        for values in self._pieces(node):
            for value in values:
                if last is None or last < value:
                    last = value
                    yield value

    def _pieces(self, node: Node) -> Iterator[list[bytes]]:
        if not node.flags & DUP:
            if not node.flags:
                yield [node.data]
        elif not node.flags & SUB:
            yield self._pages.small(node, _nothing)
        elif len(node.data) >= 48:
            tree = Tree.at(node.data)
            for page, _, _ in Walk(self._pages, tree, self._pages.unused(), _nothing):
                self._tick()
                yield self._pages.fixed(page, tree.width, _nothing)

    def get(self, table: str, key: bytes) -> bytes | None:
        node = self._find(table, key)
        try:
            return None if node is None or node.flags & (SUB | DUP) else self._pages.value(node)
        except DamagedPage:
            return None

    def _find(self, table: str, key: bytes) -> Node | None:
        tree = self._trees.get(table)
        try:
            page = None if tree is None else find_leaf(self._pages, tree, key)
        except DamagedPage:
            return None
        if page is None:
            return None
        known, found = self._leaves.get(table, (b"", {}))
        if page != known:
            nodes = self._pages.nodes(page, _nothing)
            found = {node.key: node for node in reversed(nodes)}  # of two alike the first
            self._leaves[table] = page, found
        return found.get(key)


@signal_safe
def contents(
    directory: str,
    problem: Problem,
    progress: Callable[[int, int], None],
    held: Callable[[], None],
    *,
    map_size: int,
    alone: bool,
) -> Iterator[Contents]:
    """Give what can be read of the store in *directory*; each fault in its structure is told to *problem*.

    Args:
        directory: that of the environment.
        problem: called with each fault.
        progress: called with how many pages have been looked at, of how many.
        held: called once the state is held, before the search for faults.
        map_size: for an environment that isn't open yet.
        alone: nobody else can commit meanwhile: this program holds the write lock.

    Raise CorruptStore if nothing can be read, OpenError if it may not.
    """
    path = os.path.join(directory, "data.mdb")
    with opened_regular(path) as file:
        pin = _Pin(directory, path, file, problem, map_size=map_size, alone=alone)
        try:
            pin.take()
            held()
            total = pin.pages.state.last + 1

            def count(done: int) -> None:
                pin.tick()
                if done % _CHUNK == 0:
                    progress(done, total)

            check_structure(pin.pages, problem, count)
            yield LmdbContents(pin.pages, pin.tick)
        finally:
            pin.slot = None  # whatever a signal's handler prevents
            pin.close()


@contextmanager
def opened_regular(path: str) -> Iterator[IO[bytes]]:
    """Give a data file, open for reading.  Raise CorruptStore if it is missing, empty, or no file."""
    status = regular_file(path)
    if status is None or status.st_size == 0:
        raise CorruptStore(f"{path} is {'missing' if status is None else 'empty'}; restore it from a backup")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OpenError(f"{path} can't be read: {error.strerror}; ask its owner for the rights") from error
    with open(fd, "rb", buffering=0) as file:
        yield file


def _slot(env: Environment) -> Generator[Transaction, None, None]:
    """Give a transaction that holds the newest state, until the generator is dropped."""
    with env.reading:
        transaction = env.pin()
        try:
            yield transaction
        finally:
            transaction.abort()


class _Pin:
    """The pages of one state, which nobody changes until it is closed.

    The slot is held only while this program uses the environment for nothing else: its other
    threads wait meanwhile.

    Attributes:
        pages: once they are taken.
        slot: the reader's slot, given back as this is dropped; None without one.
    """

    pages: Pages
    slot: Generator[Transaction, None, None] | None = None

    def __init__(
        self, directory: str, path: str, file: IO[bytes], problem: Problem, *, map_size: int, alone: bool
    ) -> None:
        self._directory = directory
        self._path = path
        self._file = file
        self._problem = problem
        self._map_size = map_size
        self._alone = alone
        self._env: Environment | None = None
        self._transaction: Transaction = None
        self._copy: IO[bytes] | None = None

    def take(self) -> None:
        """Take the newest state."""
        fd = self._file.fileno()
        self.pages = Pages(self._path, fd, newest_state(self._path, fd))  # before LMDB sees the file
        if self._alone:
            return
        for _ in range(_ATTEMPTS):
            held = self._hold()
            self.pages = Pages(self._path, fd, newest_state(self._path, fd, held))
            if held is None:
                return
            env = self._env
            assert env is not None
            if held == self.pages.state.transaction:
                if env.locked and len(env.users) == 1 and env.read_only:
                    return
                self._keep()
                if env.locked or newest_state(self._path, fd).transaction == held:
                    return
            self._let_go()
        raise Error(
            f"{self._path} is being written without pause, so that no state of it can be held; check again when"
            " there is less to do, or ask its owner for the right to write lock.mdb"
        )

    def _hold(self) -> int | None:
        """Take a reader's slot; return the number of the transaction that it holds, None without a slot."""
        try:
            self._env = acquire(self._directory, self, True, self._map_size, None)
            self.slot = _slot(self._env)
            self._transaction = next(self.slot)
            return int(self._transaction.id())
        except (CorruptStore, WriteError) as error:
            # LMDB can't be asked; what can be read is read without it.
            self._let_go()
            self._problem(str(error))
            return None
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        self._transaction = self.slot = None
        if self._env is not None:
            release(self._env, self)
            self._env = None

    def _keep(self) -> None:
        """Copy the pages, and give the slot back."""
        size = min(os.fstat(self._file.fileno()).st_size, self.pages.marks * self.pages.size)
        with keeping(f"what {self._path} is now, while others write,"):
            if self._copy is None:
                self._copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of `with`)
            done = 0
            self._copy.truncate(0)
            while done < size:
                piece = os.pread(self._file.fileno(), min(_PIECE, size - done), done)
                if not piece:
                    break
                os.pwrite(self._copy.fileno(), piece, done)
                done += len(piece)
        self.pages.fd = self._copy.fileno()
        self._let_go()

    def tick(self) -> None:
        """Copy the pages if somebody has committed, or wants to use the environment here."""
        env = self._env
        if env is not None and (len(env.users) > 1 or env.has_moved_on(self._transaction)):
            self._keep()

    def close(self) -> None:
        """Give back the slot, and delete the copy of the pages."""
        self._let_go()
        if self._copy is not None:
            self._copy.close()
