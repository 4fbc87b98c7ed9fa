"""The tables in one state of a data file, read from its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...interface import Contents, Item
from ..ranges import RANGES
from .pages import DamagedPage, Pages
from .walk import Walk


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
