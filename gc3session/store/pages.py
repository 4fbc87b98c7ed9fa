"""Paging through the entries of a session, each page in a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

from .index import CHUNK

if TYPE_CHECKING:
    from ..index.entries import Entry
    from ..tables.interface import Reader
    from .index import Index

Page = TypeVar("Page")


class Pages(Iterator[Page]):
    """What *read* returns for the next entries of a session, in the order of adding, until there are no more.

    While the caller has a page no transaction is open, so a walk through a session may take as
    long as it likes beside a busy writer.  If a page can't be read, the next call tries it again.

    Args:
        index: of the session.
        read: called with a reader and the entries of a page while the store is locked.
        states: only entries in these states; None for all.
        after: the N after which to begin.
        size: entries in the first page; each page has twice as many as the one before, up to CHUNK.

    Attributes:
        after: the N of the last entry that has been read.
    """

    def __init__(
        self,
        index: Index,
        read: Callable[[Reader, list[Entry]], Page],
        *,
        states: Collection[str] | None = None,
        after: int = 0,
        size: int = CHUNK,
    ) -> None:
        self._index = index
        self._read = read
        self._states = states
        self.after = after
        self._size = size

    def __next__(self) -> Page:
        store = self._index.store
        with store.lock, store.reading() as reader:
            entries = self._entries(reader)
            if entries:
                page = self._read(reader, entries)
        if not entries:
            raise StopIteration
        self.after = entries[-1][0]
        self._size = min(2 * self._size, CHUNK)
        return page

    def _entries(self, reader: Reader) -> list[Entry]:
        """Return the next entries; none means that there are no more."""
        index, after, size = self._index, self.after, self._size
        if self._states is None:
            return index.chunk(reader, after, size)
        # Each state gives its next entries, so the next ones of all states are among these.
        found = [index.chunk_in_state(reader, state, after, size) for state in self._states]
        return found[0] if len(found) == 1 else sorted(entry for entries in found for entry in entries)[:size]
