"""The tables in one state of a data file, read from its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...interface import Contents, Item
from ..ranges import RANGES
from .pages import DamagedPage, Node, Pages
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
        self._leaf: tuple[bytes, dict[bytes, Node]] = b"", {}  # the leaf that was last read by a key

    def walk(self, table: str) -> Iterator[Item]:
        """Yield the items of a table; those that are out of order are left out."""
        range_ = RANGES[table]
        last = range_
        for page, least, end in Walk(self._pages, self._pages.meta.main, self._pages.new_marks(), ignore):
            if end is not None and end <= range_:
                continue
            if least[:1] > range_:
                return
            self._tick()
            for node in self._pages.nodes(page, ignore):
                if node.key[:1] == range_ and last <= node.key:
                    last = node.key + b"\0"
                    try:
                        yield node.key[1:], self._pages.value(node)
                    except DamagedPage:
                        continue

    def get(self, table: str, key: bytes) -> bytes | None:
        key = RANGES[table] + key
        try:
            page = find_leaf(self._pages, self._pages.meta.main, key)
            if page is None:
                return None
            if page != self._leaf[0]:
                nodes = self._pages.nodes(page, ignore)
                self._leaf = page, {node.key: node for node in reversed(nodes)}  # the first of two with one key counts
            node = self._leaf[1].get(key)
            return None if node is None else self._pages.value(node)
        except DamagedPage:
            return None
