"""Whether the structure of a data file is sound: all that LMDB believes without checking, and may die of.

Each page that the newest state reaches must be what it should be, have its number, and be used
once. Keys must be in order, and inside the borders that the branch pages above set. The counts of
each tree must be those of its pages. Pages that are listed as free must not be in use.

Allowed, because LMDB itself leaves such files: a file that ends before pages that are free; overflow
runs that are longer than their values; pages that are neither used nor free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from operator import xor
from struct import Struct, unpack_from
from sys import byteorder

import attrs

from .meta import Tree
from .pages import BIG, DamagedPage, Node, Pages, Problem, number_of
from .walk import Walk

_NUMBER = Struct("=Q")


def check_structure(
    pages: Pages, problem: Problem, tick: Callable[[], None] = lambda: None
) -> tuple[bytes, bytes]:
    """Check the structure of a state.

    Args:
        pages: the pages of the state.
        problem: called with each fault.
        tick: called before each page.

    Return the marks of the pages that the tree of items leads to, and those of the free pages.
    """
    return _Structure(pages, problem, pages.new_marks(), tick).check()


@attrs.define
class _Structure:
    _pages: Pages
    _report: Problem
    _used: bytearray
    _tick: Callable[[], None]
    _faults: int = 0

    def _problem(self, fault: str) -> None:
        self._faults += 1
        self._report(fault)

    def check(self) -> tuple[bytes, bytes]:
        if self._pages.meta.last_page >= self._pages.marks:
            self._problem(
                f"the last page is said to be {self._pages.meta.last_page}, far beyond the end of the file"
            )
        self._check_items()
        reached = bytes(self._used)
        self._check_free()
        return reached, bytes(map(xor, reached, self._used))

    def _problem_of(self, what: str) -> Problem:
        return lambda fault: self._problem(f"{what}: {fault}")

    def _items(
        self, tree: Tree, walk: Walk, problem: Problem, order: Callable[[bytes], object] = bytes
    ) -> Iterator[Node]:
        """Yield the nodes of a tree; report what is wrong with them, or that they aren't as many as the tree says."""
        faults_before = self._faults
        overflows = entries = 0
        last: bytes | None = None
        for page, least, end in walk:
            self._tick()
            nodes = self._pages.nodes(page, problem)
            if not nodes:
                problem(f"page {number_of(page)} is empty")
            for node in nodes:
                if last is not None and not order(last) < order(node.key):  # type: ignore[operator]
                    problem(f"page {number_of(page)} has its keys out of order")
                    break
                last = node.key
            if nodes and not _inside(nodes[0].key, nodes[-1].key, least, end, order):
                problem(f"page {number_of(page)} has keys outside the borders that the page above sets")
            for node in nodes:
                entries += 1
                if node.flags & BIG:
                    overflows += self._check_run(node, walk, problem)
                yield node
        if self._faults > faults_before:
            return
        for what, found, expected in (
            ("branch pages", walk.branches, tree.branches),
            ("leaf pages", walk.leaves, tree.leaves),
            ("overflow pages", overflows, tree.overflows),
            ("entries", entries, tree.entries),
            ("levels", walk.deepest, tree.depth),
        ):
            if found != expected:
                problem(f"{found} {what} found, {expected} expected")

    def _check_items(self) -> None:
        tree, problem = self._pages.meta.main, self._problem_of("the tree of items")
        if tree.flags:
            problem(f"has the flags {tree.flags:#x}")
        for _ in self._items(tree, Walk(self._pages, tree, self._used, problem), problem):
            pass

    def _check_run(self, node: Node, walk: Walk, problem: Problem) -> int:
        """Check the overflow run of a value, and return how many pages it has."""
        try:
            first, count = self._pages.run(node)
        except DamagedPage as error:
            problem(f"the item {node.key.hex()}: {error}")
            return 0
        walk.use(first, count)
        return count

    def _check_free(self) -> None:
        tree, problem = self._pages.meta.free, self._problem_of("the list of free pages")
        walk = Walk(self._pages, tree, self._used, problem, _integer)
        lists: list[bytes] = []
        for node in self._items(tree, walk, problem, _integer):
            if len(node.key) != 8:
                problem("has an item that isn't a list of pages")
                continue
            if _NUMBER.unpack(node.key)[0] > self._pages.meta.transaction:
                problem(f"has pages of the transaction {_NUMBER.unpack(node.key)[0]}, which has not begun")
            with suppress(DamagedPage):  # reported by _check_run
                lists.append(self._pages.value(node))
        for data in lists:
            self._check_list(data, walk, problem)

    def _check_list(self, data: bytes, walk: Walk, problem: Problem) -> None:
        """Check one list of free pages: how many they are, then their numbers, the greatest first."""
        count = _NUMBER.unpack_from(data)[0] if len(data) >= 8 else -1
        if len(data) < 8 * (count + 1) or count < 0:
            problem("has a list that is cut off")
            return
        numbers = unpack_from(f"={count}Q", data, 8)
        if any(a <= b for a, b in pairwise(numbers)):
            problem("has a list that is out of order")
        for number in numbers:
            if not 1 < number <= self._pages.meta.last_page:
                problem(f"has page {number}, but the pages are 2 to {self._pages.meta.last_page}")
                return
            if not walk.use(number):
                return


def _integer(key: bytes) -> int:
    """Return the key of a list of free pages as a number; -1 for the empty border below all keys."""
    return int.from_bytes(key, byteorder) if key else -1


def _inside(
    first: bytes, last: bytes, least: bytes, end: bytes | None, order: Callable[[bytes], object] = bytes
) -> bool:
    return not order(first) < order(least) and (end is None or order(last) < order(end))  # type: ignore[operator]
