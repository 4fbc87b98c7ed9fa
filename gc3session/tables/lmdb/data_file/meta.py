"""The files of an environment, opened with care, and the two meta pages with which a data file begins.

A commit writes its meta page last: pages 0 and 1 in turn, so that the one before stays whole. The page with
the greater transaction number describes the newest committed state. The format is version 1, that of
LMDB 0.9; numbers are in the byte order of the machine::

    at   bytes
     0   8      number of the page: 0 or 1
    10   2      flags: META
    16   4      magic number 0xBEEFC0DE
    20   4      version, 1
    32   8      size of the memory map
    40   48     the tree of free pages; the first number in it is the page size
    88   48     the tree of tables
   136   8      number of the last page
   144   8      transaction number

A tree: page size or size of the values (4), flags (2), depth (2), how many branch, leaf and
overflow pages (3 * 8), how many entries (8), root page (8).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from sys import byteorder
from typing import IO, Final, NamedTuple

from ....errors import CorruptStore, OpenError, UnknownFormat

META: Final = 0x08
MAX_DEPTH: Final = 32
PAGE_HEADER: Final = Struct("=QHHHH")
"""With this each page begins; see pages.py."""

LARGEST_LOCK_FILE: Final = 1 << 24
"""Bytes; LMDB maps all of it, and those that are made here have 72 KiB."""

_FREE_FLAGS: Final = 0x08  # MDB_INTEGERKEY
_MAGIC: Final = 0xBEEFC0DE
_NO_PAGE: Final = (1 << 64) - 1
_TREE: Final = Struct("=IHHQQQQQ")
_MAGIC_AND_VERSION: Final = Struct("=II")
_MAP_SIZE: Final = Struct("=Q")
_LAST_AND_TRANSACTION: Final = Struct("=QQ")
_META_SIZE: Final = 152  # bytes
_REMEDY: Final = "restore it from a backup, or try 'gc3session repair'"


# -- opening


def can_be_lock_file(path: str) -> bool:
    """Return whether *path* can be a lock file of LMDB, or isn't there."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LOCK_FILE:
            return False
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        return True
    return not head.strip(b"\0") or head == _MAGIC.to_bytes(4, byteorder)  # a new one is all zeros


@contextmanager
def opened_data_file(path: str) -> Iterator[IO[bytes]]:
    """Open a data file for reading.

    Raise CorruptStore if it is missing, empty, or anything but a regular file: LMDB would follow a symbolic link
    and write into its target, or wait forever on a FIFO. Raise OpenError if the rights don't allow to read it.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptStore(f"{path} is not a regular file; a store is never opened through one that isn't")
        if not status.st_size:
            raise CorruptStore(f"{path} is empty; restore it from a backup")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptStore(f"{path} is missing; restore it from a backup") from error
    except NotADirectoryError as error:
        raise CorruptStore(
            f"{os.path.dirname(path)} is not the directory of a store; restore it from a backup"
        ) from error
    except OSError as error:
        raise OpenError(f"{path} can't be read: {error.strerror}; ask its owner for the rights") from error
    with open(fd, "rb", buffering=0) as file:
        yield file


# -- meta pages


class Tree(NamedTuple):
    """A B-tree, as the data file describes it.

    Attributes:
        width: the size of each value if this is the set of values of one key.
        root: the number of its root page, None if the tree is empty.
    """

    width: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int | None

    @classmethod
    def from_bytes(cls, data: bytes, place: int = 0) -> Tree:
        tree = cls._make(_TREE.unpack_from(data, place))
        return tree._replace(root=None) if tree.root == _NO_PAGE else tree

    def to_bytes(self) -> bytes:
        return _TREE.pack(*self._replace(root=_NO_PAGE if self.root is None else self.root))

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return self.branches + self.leaves + self.overflows


class MetaPage(NamedTuple):
    """What a meta page says: the root of one committed state.

    Attributes:
        page_size: in bytes.
        last_page: the number of the last page that the state may use.
        transaction: the number of the transaction that committed the state.
        free: the tree of free pages.
        main: the tree of tables.
    """

    page_size: int
    last_page: int
    transaction: int
    free: Tree
    main: Tree

    @property
    def size(self) -> int:
        """The bytes of all pages up to the last one."""
        return (self.last_page + 1) * self.page_size

    @property
    def used(self) -> int:
        """The bytes of the pages that are in use; the others are free."""
        return (2 + self.free.pages + self.main.pages) * self.page_size

    def to_bytes(self, number: int) -> bytes:
        """Return meta page *number* (0 or 1), which says this."""
        page = bytearray(self.page_size)
        PAGE_HEADER.pack_into(page, 0, number, 0, META, 0, 0)
        _MAGIC_AND_VERSION.pack_into(page, 16, _MAGIC, 1)
        _MAP_SIZE.pack_into(page, 32, self.size)  # for a program that opens the file without a map size of its own
        page[40:88], page[88:136] = self.free.to_bytes(), self.main.to_bytes()
        _LAST_AND_TRANSACTION.pack_into(page, 136, self.last_page, self.transaction)
        return bytes(page)


def read_meta_page(path: str, fd: int, number: int, page_size: int = 4096) -> MetaPage:
    """Return meta page *number* (0 or 1) of a data file.

    Raise CorruptStore or UnknownFormat if it isn't what LMDB writes.
    """
    meta = _parsed(path, fd, number, page_size)
    _check_possible(path, number, meta)
    return meta


def read_meta_pages(path: str, fd: int) -> tuple[MetaPage, MetaPage]:
    """Return both meta pages of a data file; only of the newer one it is known that its values are possible.

    Where writing a meta page has failed, LMDB puts the former transaction number back, so that the
    page doesn't count, and leaves the new trees there: they may lie beyond the former last page.

    Raise CorruptStore or UnknownFormat if they aren't what LMDB writes.
    """
    first = _parsed(path, fd, 0)
    second = _parsed(path, fd, 1, first.page_size)
    number = 0 if first.transaction >= second.transaction else 1
    _check_possible(path, number, (first, second)[number])
    return first, second


def newest_meta_page(path: str, fd: int, held: int | None = None) -> MetaPage:
    """Return the meta page of the newest committed state, or of the transaction *held* if that is still there.

    A writer that was killed once it had written its meta page, and before it had said so in
    `lock.mdb`, leaves a newer state than the one that LMDB's readers hold, until somebody commits.

    Raise as `read_meta_pages` does.
    """
    pages = read_meta_pages(path, fd)
    newest = max(pages, key=lambda meta: (meta.transaction == held, meta.transaction))
    _check_possible(path, pages.index(newest), newest)
    return newest


def meta_pages_of(path: str) -> tuple[MetaPage, MetaPage]:
    """Return both meta pages of the data file *path*. Raise as `opened_data_file` and `read_meta_pages` do."""
    with opened_data_file(path) as file:
        return read_meta_pages(path, file.fileno())


def _parsed(path: str, fd: int, number: int, page_size: int = 4096) -> MetaPage:
    page = os.pread(fd, _META_SIZE, number * page_size)
    if len(page) < _META_SIZE:
        raise CorruptStore(f"{path} is too short to be an LMDB data file; {_REMEDY}")
    own_number, _, flags, _, _ = PAGE_HEADER.unpack_from(page)
    magic, version = _MAGIC_AND_VERSION.unpack_from(page, 16)
    if magic != _MAGIC or own_number != number or not flags & META:
        raise CorruptStore(f"{path} is not an LMDB data file, or its page {number} is damaged; {_REMEDY}")
    if version != 1:
        raise UnknownFormat(f"{path} has LMDB's format {version}; only format 1 (LMDB 0.9) is read here")
    free, main = Tree.from_bytes(page, 40), Tree.from_bytes(page, 88)
    size = free.width
    if not (512 <= size <= 65536 and size & (size - 1) == 0):
        raise _impossible(path, number)
    last_page, transaction = _LAST_AND_TRANSACTION.unpack_from(page, 136)
    return MetaPage(size, last_page, transaction, free, main)


def _check_possible(path: str, number: int, meta: MetaPage) -> None:
    possible = (
        meta.free.flags == _FREE_FLAGS
        and 1 <= meta.last_page < 1 << 50
        and all(
            tree.depth <= MAX_DEPTH and (tree.root is None or 1 < tree.root <= meta.last_page)
            for tree in (meta.free, meta.main)
        )
    )
    if not possible:
        raise _impossible(path, number)


def _impossible(path: str, number: int) -> CorruptStore:
    return CorruptStore(f"{path}: page {number} has impossible values; {_REMEDY}")
