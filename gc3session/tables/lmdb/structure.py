"""Is the structure of a data file sound?  What LMDB would believe, and may die of, is looked at here.

Each page that the newest state reaches must be what it should be, have its number, and be used
once; keys must be in order and inside the borders that the branches above give; the counts of
each tree must be those of its pages; the pages that are listed as free must not be in use.

Allowed, as LMDB itself leaves such files: one that ends before pages that are free; overflow
runs that are longer than their values; pages that are neither used nor free; wrong counts of the
pages of a table of sets, which nothing is decided by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from struct import Struct, unpack_from
from sys import byteorder
from typing import IO

from ...errors import CorruptStore
from ..interface import PLAIN_TABLES, SET_TABLES
from .pages import BIG, DUP, SET_FLAGS, SUB, DamagedPage, Node, Pages, Problem, State, Tree, Walk, newest_state

_COUNT = Struct("=Q")
_TREE_SIZE = 48


def trees_of(pages: Pages, problem: Problem) -> dict[str, Tree]:
    """Return the tables of a state by their names, those that can be read."""
    used = pages.unused()
    return dict(_Structure(pages, problem, used).tables())


def check_structure(pages: Pages, problem: Problem, progress: Callable[[int], None] = lambda used: None) -> None:
    """Call *problem* with each fault in the structure of a state, *progress* with how many pages are done."""
    _Structure(pages, problem, pages.unused(), progress).check()


class _Structure:
    def __init__(
        self,
        pages: Pages,
        problem: Problem,
        used: bytearray,
        progress: Callable[[int], None] = lambda used: None,
    ) -> None:
        self._pages = pages
        self._tell = problem
        self._told = 0
        self._used = used
        self._progress = progress
        self._done = 0

    def _problem(self, told: str) -> None:
        self._told += 1
        self._tell(told)

    def check(self) -> None:
        if self._pages.state.last >= self._pages.marks:
            self._problem(f"the last page is said to be {self._pages.state.last}, far beyond the end of the file")
        tables = dict(self.tables())
        for name in (*PLAIN_TABLES, *SET_TABLES):
            if name not in tables:
                self._problem(f"there is no table {name!r}")
        for name, tree in tables.items():
            self._check_table(name, tree)
        self._check_free()

    def tables(self) -> Iterator[tuple[str, Tree]]:
        """Give the tables that the main tree names."""
        pages, tree = self._pages, self._pages.state.main
        problem = self._of("the tree of tables")
        if tree.flags:
            problem(f"has the flags {tree.flags:#x}")
        before = self._told
        walk = Walk(pages, tree, self._used, problem)
        found = 0
        for node in self._items(walk, problem):
            found += 1
            name = node.key.decode(errors="backslashreplace")
            if node.flags != SUB or len(node.data) != _TREE_SIZE:
                problem(f"has an item {name!r} that is no table")
                continue
            described = Tree.at(node.data)
            expected = SET_FLAGS if name in SET_TABLES else 0 if name in PLAIN_TABLES else None
            if expected is None:
                problem(f"has the unknown table {name!r}")
            elif described.flags != expected:
                problem(f"has flags {described.flags:#x} for the table {name!r} instead of {expected:#x}")
            else:
                yield name, described
        self._compare(problem, tree, walk, 0, found, before)

    def _of(self, what: str) -> Problem:
        return lambda told: self._problem(f"{what}: {told}")

    def _items(self, walk: Walk, problem: Problem, order: Callable[[bytes], object] = bytes) -> Iterator[Node]:
        """Give the nodes of a tree, and tell if their keys aren't in order."""
        last: bytes | None = None
        for page, least, end in walk:
            self._done += 1
            self._progress(self._done)
            nodes = self._pages.nodes(page, problem)
            if not nodes:
                problem(f"page {_COUNT.unpack_from(page)[0]} is empty")
            for node in nodes:
                if last is not None and not order(last) < order(node.key):  # type: ignore[operator]
                    problem(f"page {_COUNT.unpack_from(page)[0]} has its keys out of order")
                    break
                last = node.key
            if nodes and not _inside(nodes[0].key, nodes[-1].key, least, end, order):
                problem(
                    f"page {_COUNT.unpack_from(page)[0]} has keys outside the borders that the page above gives"
                )
            yield from nodes

    def _check_table(self, name: str, tree: Tree) -> None:
        problem = self._of(f"table {name!r}")
        before = self._told
        walk = Walk(self._pages, tree, self._used, problem)
        overflows = entries = 0
        for node in self._items(walk, problem):
            if node.flags & (SUB | DUP):
                if name in SET_TABLES and node.flags & DUP:
                    entries += self._check_values(node, problem)
                else:
                    problem(f"the item {node.key.hex()} has a kind that such tables don't have")
                continue
            entries += 1
            if node.flags & BIG:
                overflows += self._check_run(node, walk, problem)
        self._compare(problem, tree, walk, overflows, entries, before)

    def _check_run(self, node: Node, walk: Walk, problem: Problem) -> int:
        """Return how many pages the overflow run of a value has."""
        try:
            first, count = self._pages.run(node)
        except DamagedPage as error:
            problem(f"the item {node.key.hex()}: {error}")
            return 0
        walk.use(first, count)
        return count

    def _check_values(self, node: Node, problem: Problem) -> int:
        """Check the set of values of a key, and return how many values it has."""
        if not node.flags & SUB:
            values = self._pages.small(node, problem)
            if not _ascending(values):
                problem(f"the values of {node.key.hex()} are out of order")
            return len(values)
        if len(node.data) != _TREE_SIZE:
            problem(f"the values of {node.key.hex()} are not described")
            return 0
        tree = Tree.at(node.data)
        before = self._told
        walk = Walk(self._pages, tree, self._used, problem)
        last, count = b"", 0
        for page, least, end in walk:
            self._done += 1
            self._progress(self._done)
            values = self._pages.fixed(page, tree.width, problem)
            if not values:
                problem(f"page {_COUNT.unpack_from(page)[0]} is empty")
                continue
            if not (last < values[0] and _ascending(values) and _inside(values[0], values[-1], least, end)):
                problem(f"page {_COUNT.unpack_from(page)[0]} has values of {node.key.hex()} out of order")
            last = values[-1]
            count += len(values)
        self._compare(self._of_key(problem, node.key), tree, walk, 0, count, before)
        return count

    @staticmethod
    def _of_key(problem: Problem, key: bytes) -> Problem:
        return lambda told: problem(f"the values of {key.hex()}: {told}")

    def _compare(
        self, problem: Problem, tree: Tree, walk: Walk, overflows: int, entries: int, before: int
    ) -> None:
        """Compare what a walk has found with what the tree's description says, unless it has met damage."""
        if self._told > before:
            return
        for what, found, told in (
            ("branch pages", walk.branches, tree.branches),
            ("leaf pages", walk.leaves, tree.leaves),
            ("overflow pages", overflows, tree.overflows),
            ("entries", entries, tree.entries),
            ("levels", walk.deepest, tree.depth),
        ):
            # LMDB counts the pages of sets into those of their table, and loses count when sets shrink.
            if found != told and not (tree.flags == SET_FLAGS and what.endswith("pages")):
                problem(f"{found} {what} found, {told} expected")

    def _check_free(self) -> None:
        tree = self._pages.state.free
        problem = self._of("the list of free pages")
        before = self._told
        walk = Walk(self._pages, tree, self._used, problem, _integer)
        overflows = entries = 0
        lists: list[bytes] = []
        for node in self._items(walk, problem, _integer):
            entries += 1
            if node.flags & (SUB | DUP) or len(node.key) != 8:
                problem("has an item that is none")
                continue
            if _COUNT.unpack(node.key)[0] > self._pages.state.transaction:
                problem(f"has pages of the transaction {_COUNT.unpack(node.key)[0]}, which has not been")
            if node.flags & BIG:
                overflows += self._check_run(node, walk, problem)
            try:
                lists.append(self._pages.value(node))
            except DamagedPage:  # told by _check_run
                continue
        self._compare(problem, tree, walk, overflows, entries, before)
        for data in lists:
            self._check_list(data, walk, problem)

    def _check_list(self, data: bytes, walk: Walk, problem: Problem) -> None:
        """Check one list of free pages: how many, and their numbers, the greatest first."""
        count = _COUNT.unpack_from(data)[0] if len(data) >= 8 else -1
        if len(data) < 8 * (count + 1) or count < 0:
            problem("has a list that is cut")
            return
        numbers = unpack_from(f"={count}Q", data, 8)
        if any(a <= b for a, b in pairwise(numbers)):
            problem("has a list that is out of order")
        for number in numbers:
            if not 1 < number <= self._pages.state.last:
                problem(f"has page {number}, but the pages are 2 to {self._pages.state.last}")
                return
            if not walk.use(number):
                return


def _integer(key: bytes) -> int:
    """Return the number that the key of a list of free pages is; the least border is none."""
    return int.from_bytes(key, byteorder) if key else -1


def _ascending(values: list[bytes]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _inside(
    first: bytes, last: bytes, least: bytes, end: bytes | None, order: Callable[[bytes], object] = bytes
) -> bool:
    return not order(first) < order(least) and (end is None or order(last) < order(end))  # type: ignore[operator]


def problems_of(path: str, limit: int = 20) -> list[str]:
    """Return what is wrong with the structure of the data file *path*, the first *limit* faults.

    Beside a live writer the walk may meet pages of two states; it is repeated then.
    """
    found: list[str] = []
    with closing(_open(path)) as file:
        for _ in range(10):
            found = []
            try:
                before: State = newest_state(path, file.fileno())
                check_structure(Pages(path, file.fileno(), before), _limited(found, limit))
            except CorruptStore as error:
                return [str(error)]
            except _Enough:
                pass
            if not found or newest_state(path, file.fileno()).transaction == before.transaction:
                break
    return found


class _Enough(Exception):
    """There are as many faults as are wanted."""


def _limited(found: list[str], limit: int) -> Problem:
    def problem(told: str) -> None:
        found.append(told)
        if len(found) >= limit:
            raise _Enough

    return problem


def _open(path: str) -> IO[bytes]:
    return open(path, "rb", buffering=0)
