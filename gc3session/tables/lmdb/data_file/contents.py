"""The tables in one state of a data file, read from its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...interface import Contents, Item
from .meta import Tree
from .pages import DUP, SUB, DamagedPage, Node, Pages
from .structure import trees_of
from .walk import Walk, find_leaf


def ignore(fault: str) -> None:
    """The `Problem` of a reader that wants what can be read, and no report of what can't."""


class LmdbContents(Contents):
    """What can be read of the tables in one state of a data file.

    Args:
        pages: the pages of the state.
        tick: called before each page.
    """

    def __init__(self, pages: Pages, tick: Callable[[], None] = lambda: None) -> None:
        self._pages = pages
        self._tick = tick
        self._trees = trees_of(pages, ignore)
        self._leaves: dict[str, tuple[bytes, dict[bytes, Node]]] = {}  # table -> the leaf last read by key

    def entries(self, table: str) -> int:
        return self._trees[table].entries if table in self._trees else 0

    def _nodes(self, table: str) -> Iterator[Node]:
        """Yield the nodes of a table; those that are out of order are left out."""
        tree = self._trees.get(table)
        if tree is None:
            return
        last: bytes | None = None
        for page, _, _ in Walk(self._pages, tree, self._pages.new_marks(), ignore):
            self._tick()
            for node in self._pages.nodes(page, ignore):
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
            yield self._pages.small_page(node, ignore)
        elif len(node.data) >= 48:
            tree = Tree.from_bytes(node.data)
            for page, _, _ in Walk(self._pages, tree, self._pages.new_marks(), ignore):
                self._tick()
                yield self._pages.fixed(page, tree.width, ignore)

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
        last_page, found = self._leaves.get(table, (b"", {}))
        if page != last_page:
            nodes = self._pages.nodes(page, ignore)
            found = {node.key: node for node in reversed(nodes)}  # the first of two nodes with one key counts
            self._leaves[table] = page, found
        return found.get(key)
