"""Walking through a tree of pages, and so through the tables in one state of a data file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from ...interface import Contents, Item
from ..ranges import RANGES
from .meta import MAX_DEPTH, Tree
from .pages import BRANCH, LEAF, DamagedPage, Pages, Problem, flags_of, number_of


@attrs.define(eq=False)
class Walk:
    """One walk through a tree, leaf page after leaf page; a damaged page is reported and passed over.

    Args:
        pages: the pages of a state.
        tree: one of the trees of that state.
        used: the marks of the pages that this walk or an earlier one has used; see `Pages.new_marks`.
        problem: called with each fault.
        order: returns what a key is compared by.
        start: pages whose keys are all less are left out.

    Attributes:
        branches: how many branch pages have been found so far.
        leaves: how many leaf pages.
        deepest: the depth of the deepest page.
    """

    _pages: Pages
    _tree: Tree
    _used: bytearray
    _problem: Problem
    _order: Callable[[bytes], object] = bytes
    _start: bytes = b""
    branches: int = 0
    leaves: int = 0
    deepest: int = 0

    def use(self, number: int, count: int = 1) -> bool:
        """Mark pages as used. Return False, after reporting it, if one of them was used before."""
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
        """Yield each leaf page, the least key that it may have, and the key before which it must end, or None."""
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
            flags = flags_of(page)
            if not self.use(number):
                continue
            self.deepest = max(self.deepest, depth)
            if flags == BRANCH and depth < MAX_DEPTH:
                self.branches += 1
                ahead += reversed(self._below(page, depth, least, end))
            elif flags == LEAF:
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
            self._problem(f"page {number_of(page)} is a branch without a page below it")
            return []
        keys = [least, *(key for key, _ in children[1:])]
        ends: list[bytes | None] = [*keys[1:], end]
        order = self._order
        for key, stop in zip(keys, ends, strict=True):
            if stop is not None and key and not order(key) < order(stop):  # type: ignore[operator]
                self._problem(f"page {number_of(page)} has its keys out of order")
                break
        return [
            (number, depth + 1, key, stop)
            for (_, number), key, stop in zip(children, keys, ends, strict=True)
            if not self._start or stop is None or stop > self._start
        ]


def ignore(fault: str) -> None:
    """The `Problem` of a reader that wants what can be read, and no report of what can't."""


@attrs.define(eq=False)
class LmdbContents(Contents):
    """What can be read of the tables in one state of a data file.

    Args:
        pages: the pages of the state.
        tick: called before each page.
    """

    _pages: Pages
    _tick: Callable[[], None] = lambda: None

    def walk(self, table: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[Item]:
        """Yield the items of a part of a table; those that are out of order are left out."""
        pages, prefix = self._pages, RANGES[table] + prefix
        following = max(RANGES[table] + start, prefix)
        for page, least, end in Walk(pages, pages.meta.main, pages.new_marks(), ignore, start=following):
            if least[: len(prefix)] > prefix:
                return
            self._tick()
            for node in pages.nodes(page, ignore):
                if following <= node.key and node.key.startswith(prefix) and (end is None or node.key < end):
                    following = node.key + b"\0"
                    try:
                        yield node.key[1:], pages.value(node)
                    except DamagedPage:
                        continue

    def get(self, table: str, key: bytes) -> bytes | None:
        found = next(self.walk(table, key, key), None)
        return found[1] if found is not None and found[0] == key else None
