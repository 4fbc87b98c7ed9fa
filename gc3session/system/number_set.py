"""A set of Ns in little memory."""

from __future__ import annotations

from collections.abc import Iterator

_PIECE = 1 << 15
_NONE = bytes(64)


class Numbers:
    """A set of Ns, which takes a bit for each number near one of them."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._length = 0

    def add(self, number: int) -> None:
        """Add N, which isn't in it."""
        page = self._pages.get(number // _PIECE)
        if page is None:
            page = self._pages[number // _PIECE] = bytearray(_PIECE // 8)
        page[number % _PIECE // 8] |= 1 << number % 8
        self._length += 1

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number // _PIECE)
        return page is not None and bool(page[number % _PIECE // 8] & 1 << number % 8)

    def __len__(self) -> int:
        return self._length

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Give the Ns, sorted, at most *size* at a time."""
        chunk: list[int] = []
        for place in sorted(self._pages):
            page = self._pages[place]
            for first in range(0, len(page), len(_NONE)):
                some = page[first : first + len(_NONE)]
                if some == _NONE:
                    continue
                for at, byte in enumerate(some, first):
                    if byte:
                        begin = place * _PIECE + 8 * at
                        chunk += [begin + bit for bit in range(8) if byte & 1 << bit]
                while len(chunk) >= size:
                    yield chunk[:size]
                    chunk = chunk[size:]
        if chunk:
            yield chunk
