"""The pages of an LMDB data file, read without LMDB: whatever stands in them, the process lives.

LMDB maps the file into memory and believes what it finds there; here every page is read by
`pread` and looked at first.  So `check` and `repair` read what LMDB would die of, and the gate
of the store (gate.py) tells beforehand.

The format is version 1, that of LMDB 0.9.  Numbers are in the byte order of the machine.
A page::

    at   bytes
     0   8      its number
     8   2      of a page of values of one length (LEAF2): that length
    10   2      flags: branch, leaf, overflow, meta, ...
    12   2      where its free space begins; of an overflow page (4): how many pages the run has
    14   2      where its free space ends
    16   2 * n  where its nodes are, sorted by key

A node: size of the value (4), flags (2), size of the key (2), key, value.  In a branch page the
first six bytes are the number of a page instead, whose keys are not less than the node's.
The value is that of the key, or, as the flags say, the number of the first page of an overflow
run (BIG), the description of another tree (SUB), a page in small with several values of one
key (DUP), or the description of the tree of these (SUB and DUP).

A meta page, page 0 or 1, of which the one with the greater transaction number holds::

    16   4      magic number 0xBEEFC0DE
    20   4      version, 1
    40   48     the tree of free pages
    88   48     the tree of tables
   136   8      number of the last page
   144   8      transaction number

A tree: page size or size of the values (4), flags (2), depth (2), how many branch, leaf and
overflow pages (3 * 8), how many entries (8), root page (8).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from struct import Struct, unpack_from
from typing import Final, NamedTuple

from ...errors import CorruptStore, UnknownFormat

BRANCH, LEAF, OVERFLOW, META, LEAF2, SUBPAGE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
BIG, SUB, DUP = 0x01, 0x02, 0x04
SET_FLAGS: Final = 0x14  # MDB_DUPSORT | MDB_DUPFIXED
FREE_FLAGS: Final = 0x08  # MDB_INTEGERKEY
MAX_DEPTH: Final = 32

_KINDS = (0, BIG, SUB, DUP, SUB | DUP)
_MAGIC = 0xBEEFC0DE
_NO_PAGE = (1 << 64) - 1
_HEAD = Struct("=QHHHH")
_RUN = Struct("=I")
_NUMBER = Struct("=Q")
_NODE = Struct("=HHHH")
_TREE = Struct("=IHHQQQQQ")
_META = Struct("=II")
_END = Struct("=QQ")
_META_SIZE = 152
_REMEDY = "restore it from a backup, or try 'gc3session repair'"
_SPARE_PAGES = 1 << 20  # of the bookkeeping, for pages that LMDB has freed before it wrote them

Problem = Callable[[str], None]


class DamagedPage(Exception):
    """A page isn't what it should be; the message says which, and what it is."""


class Tree(NamedTuple):
    """A B-tree, as the data file describes it.

    Attributes:
        width: of a set of values the size of each.
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
    def at(cls, data: bytes, place: int = 0) -> Tree:
        tree = cls._make(_TREE.unpack_from(data, place))
        return tree._replace(root=None) if tree.root == _NO_PAGE else tree

    def to_bytes(self) -> bytes:
        return _TREE.pack(*self._replace(root=_NO_PAGE if self.root is None else self.root))

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return self.branches + self.leaves + self.overflows


class State(NamedTuple):
    """A committed state of the data file, as its meta page describes it."""

    page_size: int
    last: int
    transaction: int
    free: Tree
    main: Tree

    @property
    def size(self) -> int:
        """The bytes of all pages."""
        return (self.last + 1) * self.page_size


class Node(NamedTuple):
    """An item of a leaf page; *size* is that of the whole value, *data* what the page has of it."""

    key: bytes
    flags: int
    size: int
    data: bytes


def state_of(path: str, fd: int, number: int, page_size: int = 4096) -> State:
    """Return the state that meta page *number* (0 or 1) of a data file describes.

    Raise CorruptStore or UnknownFormat if it isn't what LMDB writes.
    """
    state = _described(path, fd, number, page_size)
    _check_possible(path, number, state)
    return state


def both_states(path: str, fd: int) -> tuple[State, State]:
    """Return what the two meta pages describe; only that of the newer one is known to be possible.

    Where writing a meta page has failed, LMDB puts the former transaction number back, so that the
    page doesn't hold, and leaves the new trees: they may lie beyond the former last page.

    Raise CorruptStore or UnknownFormat if that isn't what LMDB writes.
    """
    first = _described(path, fd, 0)
    second = _described(path, fd, 1, first.page_size)
    number = 0 if first.transaction >= second.transaction else 1
    _check_possible(path, number, (first, second)[number])
    return first, second


def newest_state(path: str, fd: int, held: int | None = None) -> State:
    """Return the newest committed state, or that of the transaction *held* if it is still there.

    A writer that was killed once it had written its meta page, and before it had said so in
    lock.mdb, has left a newer state than the one that LMDB's readers hold, until somebody commits.

    It raises as `both_states` does.
    """
    states = both_states(path, fd)
    state = max(states, key=lambda state: (state.transaction == held, state.transaction))
    _check_possible(path, states.index(state), state)
    return state


def _described(path: str, fd: int, number: int, page_size: int = 4096) -> State:
    page = os.pread(fd, _META_SIZE, number * page_size)
    if len(page) < _META_SIZE:
        raise CorruptStore(f"{path} is too short to be an LMDB data file; {_REMEDY}")
    own_number, _, flags, _, _ = _HEAD.unpack_from(page)
    magic, version = _META.unpack_from(page, 16)
    if magic != _MAGIC or own_number != number or not flags & META:
        raise CorruptStore(f"{path} is not an LMDB data file, or its page {number} is damaged; {_REMEDY}")
    if version != 1:
        raise UnknownFormat(f"{path} has LMDB's format {version}; only format 1 (LMDB 0.9) is read here")
    free, main = Tree.at(page, 40), Tree.at(page, 88)
    size = free.width
    if not (512 <= size <= 65536 and size & (size - 1) == 0):
        raise _impossible(path, number)
    last, transaction = _END.unpack_from(page, 136)
    return State(size, last, transaction, free, main)


def _check_possible(path: str, number: int, state: State) -> None:
    possible = (
        state.free.flags == FREE_FLAGS
        and 1 <= state.last < 1 << 50
        and all(
            tree.depth <= MAX_DEPTH and (tree.root is None or 1 < tree.root <= state.last)
            for tree in (state.free, state.main)
        )
    )
    if not possible:
        raise _impossible(path, number)


def _impossible(path: str, number: int) -> CorruptStore:
    return CorruptStore(f"{path}: page {number} has impossible values; {_REMEDY}")


def meta_page(number: int, state: State) -> bytes:
    """Return the meta page *number* (0 or 1) that describes a state."""
    page = bytearray(state.page_size)
    _HEAD.pack_into(page, 0, number, 0, META, 0, 0)
    _META.pack_into(page, 16, _MAGIC, 1)
    _NUMBER.pack_into(page, 32, state.size)  # of the map, for whoever opens the file without a size of his own
    page[40:88], page[88:136] = state.free.to_bytes(), state.main.to_bytes()
    _END.pack_into(page, 136, state.last, state.transaction)
    return bytes(page)


class Pages:
    """The pages of one state of a data file.

    Args:
        path: what messages name.
        fd: the open file; it may be set to that of a copy at any time.
    """

    def __init__(self, path: str, fd: int, state: State) -> None:
        self.path = path
        self.fd = fd
        self.state = state
        self.size = state.page_size
        held = os.fstat(fd).st_size // self.size
        self.marks = min(state.last + 1, held + max(held, _SPARE_PAGES))
        """Pages that can be marked as used: a damaged meta page must not ask for terabytes."""

    def unused(self) -> bytearray:
        """Return the marks of a walk that has not used any page yet."""
        return bytearray(self.marks // 8 + 1)

    def read(self, number: int) -> bytes:
        """Return a page of a tree.  Raise DamagedPage if it can't be one."""
        if not 1 < number <= self.state.last:
            raise DamagedPage(f"page {number} is referred to, but the pages are 2 to {self.state.last}")
        page = os.pread(self.fd, self.size, number * self.size)
        if len(page) < self.size:
            raise DamagedPage(f"page {number} is beyond the end of the file")
        if _HEAD.unpack_from(page)[0] != number:
            raise DamagedPage(f"page {number} has the number {_HEAD.unpack_from(page)[0]}")
        return page

    def run(self, node: Node) -> tuple[int, int]:
        """Return the first page and the number of pages of a value's overflow run.

        Raise DamagedPage if the run can't hold the value.  It may be longer than that needs: so
        LMDB leaves a value that was made smaller in the transaction that had written it.
        """
        if len(node.data) < 8:
            raise DamagedPage("a value's overflow run has no page number")
        first: int = _NUMBER.unpack_from(node.data)[0]
        page = self.read(first)
        _, _, flags, _, _ = _HEAD.unpack_from(page)
        (count,) = _RUN.unpack_from(page, 12)
        needed = (16 + node.size + self.size - 1) // self.size
        if flags != OVERFLOW or count < needed or first + count - 1 > self.state.last:
            raise DamagedPage(f"page {first} does not begin an overflow run of {needed} pages")
        if os.fstat(self.fd).st_size < (first + needed) * self.size:
            raise DamagedPage(f"the file ends inside the overflow run that begins at page {first}")
        return first, count

    def value(self, node: Node) -> bytes:
        """Return the value of a node, which is that of one key.  Raise DamagedPage if it is cut."""
        if not node.flags & BIG:
            return node.data
        first, _ = self.run(node)
        value = os.pread(self.fd, node.size, first * self.size + 16)
        if len(value) < node.size:
            raise DamagedPage(f"the file ends inside the overflow run that begins at page {first}")
        return value

    def nodes(self, page: bytes, problem: Problem) -> list[Node]:
        """Return the nodes of a leaf page that has some."""
        number, _, _, _, upper = _HEAD.unpack_from(page)
        found = []
        header, end = _NODE.unpack_from, self.size
        for place in self._places(page, problem):
            if not upper <= place <= end - 8:
                problem(f"page {number} has a node outside of it")
                continue
            low, high, flags, key_size = header(page, place)
            begin = place + 8 + key_size
            size = low | high << 16
            stop = begin + (8 if flags & BIG else size)
            if stop > end or flags not in _KINDS:
                problem(f"page {number} has a node that is none")
                continue
            found.append(Node(page[place + 8 : begin], flags, size, page[begin:stop]))
        return found

    def _places(self, page: bytes, problem: Problem) -> tuple[int, ...]:
        number, _, _, lower, upper = _HEAD.unpack_from(page)
        if not 16 <= lower <= upper <= self.size or lower % 2:
            problem(f"page {number} has impossible borders of its free space")
            return ()
        return unpack_from(f"={(lower - 16) // 2}H", page, 16)

    def children(self, page: bytes, problem: Problem) -> list[tuple[bytes, int]]:
        """Return the pages below a branch page, each with its least key; the first one's is b''."""
        number, _, _, _, upper = _HEAD.unpack_from(page)
        found: list[tuple[bytes, int]] = []
        for place in self._places(page, problem):
            if not upper <= place <= self.size - 8:
                problem(f"page {number} has a node outside of it")
                continue
            low, high, top, key_size = _NODE.unpack_from(page, place)
            key = page[place + 8 : place + 8 + key_size] if found else b""
            found.append((key, low | high << 16 | top << 32))
        return found

    def fixed(self, page: bytes, width: int, problem: Problem) -> list[bytes]:
        """Return the values of a page of values of one length, which may be one in small."""
        number, own_width, _, lower, _ = _HEAD.unpack_from(page)
        count = (lower - 16) // 2
        if own_width != width or width == 0 or lower < 16 or 16 + count * width > len(page):
            problem(f"page {number} has impossible values of {own_width} bytes")
            return []
        return [page[at : at + width] for at in range(16, 16 + count * width, width)]

    def small(self, node: Node, problem: Problem) -> list[bytes]:
        """Return the values of a key that stand in its leaf page."""
        if len(node.data) < 16:
            problem("the values of a key are cut")
            return []
        _, width, flags, _, _ = _HEAD.unpack_from(node.data)
        if flags & (LEAF | LEAF2) != LEAF | LEAF2:
            problem("the values of a key are not what they should be")
            return []
        return self.fixed(node.data, width, problem)


class Walk:
    """One walk through a tree, leaf page after leaf page; what is damaged is told and passed over.

    Args:
        used: marks of the pages that were used, by this walk or others before it.
        problem: called with each damage.
        order: what keys are compared by.

    Attributes:
        branches, leaves, deepest: what has been found so far.
    """

    def __init__(
        self,
        pages: Pages,
        tree: Tree,
        used: bytearray,
        problem: Problem,
        order: Callable[[bytes], object] = bytes,
    ) -> None:
        self._pages = pages
        self._tree = tree
        self._used = used
        self._problem = problem
        self._order = order
        self.branches = self.leaves = self.deepest = 0

    def use(self, number: int, count: int = 1) -> bool:
        """Mark pages as used; return False if one of them was so before."""
        for page in range(number, number + count):
            if page >= self._pages.marks:
                self._problem(f"page {page} is far beyond the end of the file")
                return False
            if self._used[page >> 3] & 1 << (page & 7):
                self._problem(f"page {page} is used twice")
                return False
            self._used[page >> 3] |= 1 << (page & 7)
        return True

    def __iter__(self) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """Give each leaf page, the least key that it may have, and the one that ends it (None: no end)."""
        if self._tree.root is None:
            return
        ahead: list[tuple[int, int, bytes, bytes | None]] = [(self._tree.root, 1, b"", None)]
        while ahead:
            number, depth, least, end = ahead.pop()
            try:
                page = self._pages.read(number)
            except DamagedPage as error:
                self._problem(str(error))
                continue
            flags = _HEAD.unpack_from(page)[2]
            if not self.use(number):
                continue
            self.deepest = max(self.deepest, depth)
            if flags == BRANCH and depth < MAX_DEPTH:
                self.branches += 1
                ahead += reversed(self._below(page, depth, least, end))
            elif flags in (LEAF, LEAF | LEAF2):
                self.leaves += 1
                if depth != self._tree.depth:
                    self._problem(f"page {number} is a leaf at depth {depth} of {self._tree.depth}")
                yield page, least, end
            else:
                self._problem(f"page {number} is neither branch nor leaf: its flags are {flags:#x}")

    def _below(
        self, page: bytes, depth: int, least: bytes, end: bytes | None
    ) -> list[tuple[int, int, bytes, bytes | None]]:
        children = self._pages.children(page, self._problem)
        if not children:
            self._problem(f"page {_HEAD.unpack_from(page)[0]} is a branch without pages below it")
            return []
        keys = [least, *(key for key, _ in children[1:])]
        ends: list[bytes | None] = [*keys[1:], end]
        order = self._order
        for key, stop in zip(keys, ends, strict=True):
            if stop is not None and key and not order(key) < order(stop):  # type: ignore[operator]
                self._problem(f"page {_HEAD.unpack_from(page)[0]} has its keys out of order")
                break
        return [
            (number, depth + 1, key, stop) for (_, number), key, stop in zip(children, keys, ends, strict=True)
        ]


def flags_of(page: bytes) -> int:
    """Return the flags of a page."""
    flags: int = _HEAD.unpack_from(page)[2]
    return flags


def width_of(page: bytes) -> int:
    """Return the size of the values of a page of values of one length."""
    width: int = _HEAD.unpack_from(page)[1]
    return width


def find_leaf(pages: Pages, tree: Tree, key: bytes) -> bytes | None:
    """Return the leaf page that has *key* if the tree has it.  Raise DamagedPage where the way is."""
    number = tree.root
    for _ in range(MAX_DEPTH):
        if number is None:
            return None
        page = pages.read(number)
        flags = _HEAD.unpack_from(page)[2]
        if flags & LEAF:
            return page
        children = pages.children(page, _raise) if flags == BRANCH else []
        if not children:
            raise DamagedPage(f"page {number} is neither branch nor leaf: its flags are {flags:#x}")
        number = children[bisect_right([k for k, _ in children[1:]], key)][1]
    raise DamagedPage(f"the tree of page {tree.root} is too deep")


def _raise(problem: str) -> None:
    raise DamagedPage(problem)
