"""The pages of a data file, read without LMDB: whatever stands in them, the process lives.

LMDB maps the file into memory and believes what it finds there. Here every page is read by
`pread`, and checked before it is used. So `check` and `repair` read what LMDB would die of, and
verification.py knows before LMDB opens the file.

A page::

    at   bytes
     0   8      its number
     8   2      not used here
    10   2      flags: branch, leaf, overflow, meta, ...
    12   2      where its free space begins; of an overflow page (4): how many pages the run has
    14   2      where its free space ends
    16   2 * n  where its nodes are, sorted by key

A node: size of the value (4), flags (2), size of the key (2), key, value; it begins at an even place, and nodes
fill the page from the end of its free space on. In a branch page the first six bytes are the number of a page
instead, whose keys are not less than the node's.
The value is that of the key or, as the flags say, the number of the first page of an overflow run
(BIG).  LMDB knows more kinds of pages and nodes, for other tables than this library's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct, unpack_from
from typing import Final, NamedTuple

from .meta import PAGE_HEADER, MetaPage

BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
BIG: Final = 0x01

_NODE_KINDS: Final = (0, BIG)
_LONGEST_KEY: Final = 511  # bytes
_NODE: Final = Struct("=HHHH")
_RUN_LENGTH: Final = Struct("=I")
_PAGE_NUMBER: Final = Struct("=Q")
_SPARE_PAGES: Final = 1 << 20  # beyond the file's end: LMDB may free pages before it has written them

Problem = Callable[[str], None]
"""Called with each fault that is found."""


class DamagedPage(Exception):
    """A page isn't what it should be; the message says which page, and what is wrong with it."""


class Node(NamedTuple):
    """An item of a leaf page.

    Attributes:
        size: the size of the whole value.
        data: the part of the value that is in the page.
    """

    key: bytes
    flags: int
    size: int
    data: bytes


class Pages:
    """The pages of one state of a data file.

    Args:
        path: the file's path, for messages.
        fd: the open file; it may be replaced by that of a copy at any time.
        meta: the meta page of the state.
    """

    def __init__(self, path: str, fd: int, meta: MetaPage) -> None:
        self.path = path
        self.fd = fd
        self.meta = meta
        self.size = meta.page_size
        in_file = os.fstat(fd).st_size // self.size
        self.marks = min(meta.last_page + 1, in_file + max(in_file, _SPARE_PAGES))
        """How many pages can be marked as used: a damaged meta page must not make a walk take terabytes."""

    def new_marks(self) -> bytearray:
        """Return a bit for each page, none of them set: the pages that a walk has used."""
        return bytearray(self.marks // 8 + 1)

    def read(self, number: int) -> bytes:
        """Return a page of a tree. Raise DamagedPage if it can't be one."""
        if not 1 < number <= self.meta.last_page:
            raise DamagedPage(f"page {number} is referred to, but the pages are 2 to {self.meta.last_page}")
        page = os.pread(self.fd, self.size, number * self.size)
        if len(page) < self.size:
            raise DamagedPage(f"page {number} is beyond the end of the file")
        if number_of(page) != number:
            raise DamagedPage(f"page {number} has the number {number_of(page)}")
        return page

    def run(self, node: Node) -> tuple[int, int]:
        """Return the first page and the number of pages of a value's overflow run.

        Raise DamagedPage if the run can't hold the value. It may be longer than the value needs: LMDB
        leaves it so when a value is made smaller in the transaction that has written it.
        """
        first = self._first_page(node)
        page = self.read(first)
        flags = flags_of(page)
        (count,) = _RUN_LENGTH.unpack_from(page, 12)
        needed = (16 + node.size + self.size - 1) // self.size
        if flags != OVERFLOW or count < needed or first + count - 1 > self.meta.last_page:
            raise DamagedPage(f"page {first} does not begin an overflow run of {needed} pages")
        if os.fstat(self.fd).st_size < (first + needed) * self.size:
            raise DamagedPage(f"the file ends inside the overflow run that begins at page {first}")
        return first, count

    def _first_page(self, node: Node) -> int:
        if len(node.data) < 8:
            raise DamagedPage("a value's overflow run has no page number")
        first: int = _PAGE_NUMBER.unpack_from(node.data)[0]
        if not 1 < first <= self.meta.last_page:
            raise DamagedPage(f"page {first} is referred to, but the pages are 2 to {self.meta.last_page}")
        return first

    def value(self, node: Node, *, sound: bool = True) -> bytes:
        """Return the value of a node. Raise DamagedPage if it is cut off or, unless *sound* is False, in a damaged run."""
        if not node.flags & BIG:
            return node.data
        first = self.run(node)[0] if sound else self._first_page(node)
        value = os.pread(self.fd, node.size, first * self.size + 16)
        if len(value) < node.size:
            raise DamagedPage(f"the file ends inside the overflow run that begins at page {first}")
        return value

    def nodes(self, page: bytes, problem: Problem) -> list[Node]:
        """Return the nodes of a leaf page."""
        number, _, _, _, upper = PAGE_HEADER.unpack_from(page)
        found = []
        header, end, room = _NODE.unpack_from, self.size, self.size - upper
        for place in self._places(page, problem):
            if not upper <= place <= end - 8:
                problem(f"page {number} has a node outside its borders")
                continue
            low, high, flags, key_size = header(page, place)
            begin = place + 8 + key_size
            size = low | high << 16
            stop = begin + (8 if flags & BIG else size)
            if stop > end or flags not in _NODE_KINDS or not 0 < key_size <= _LONGEST_KEY:
                problem(f"page {number} has a node with impossible sizes or flags")
                continue
            room -= (stop - place + 1) & ~1
            found.append(Node(page[place + 8 : begin], flags, size, page[begin:stop]))
        if room:
            problem(f"page {number} has nodes that overlap, or gaps between them")
        return found

    def _places(self, page: bytes, problem: Problem) -> tuple[int, ...]:
        number, _, _, lower, upper = PAGE_HEADER.unpack_from(page)
        is_possible = 16 <= lower <= upper <= self.size
        if not is_possible or lower % 2:
            problem(f"page {number} has impossible borders of its free space")
        if not is_possible:
            return ()
        return unpack_from(f"={(lower - 16) // 2}H", page, 16)

    def children(self, page: bytes, problem: Problem) -> list[tuple[bytes, int]]:
        """Return the least key and the number of each page below a branch page; the first key is b''."""
        number, _, _, _, upper = PAGE_HEADER.unpack_from(page)
        found: list[tuple[bytes, int]] = []
        room = self.size - upper
        for place in self._places(page, problem):
            if not upper <= place <= self.size - 8:
                problem(f"page {number} has a node outside its borders")
                continue
            low, high, top, key_size = _NODE.unpack_from(page, place)
            if key_size > _LONGEST_KEY:
                problem(f"page {number} has a node with impossible sizes or flags")
            room -= (8 + key_size + 1) & ~1
            key = page[place + 8 : place + 8 + key_size] if found else b""
            found.append((key, low | high << 16 | top << 32))
        if room:
            problem(f"page {number} has nodes that overlap, or gaps between them")
        return found


def number_of(page: bytes) -> int:
    """Return the number that a page says it has."""
    number: int = PAGE_HEADER.unpack_from(page)[0]
    return number


def flags_of(page: bytes) -> int:
    """Return the flags of a page."""
    flags: int = PAGE_HEADER.unpack_from(page)[2]
    return flags
