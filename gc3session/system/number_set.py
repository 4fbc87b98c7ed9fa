"""A set of Ns that takes little memory."""

from __future__ import annotations

from collections.abc import Iterator

_PAGE = 1 << 15  # Ns
_EMPTY = bytes(64)


class Numbers:
    """A set of Ns, in bitmaps of 4 KiB: one for each 32,768 numbers among which is a member."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._length = 0

    def add(self, number: int) -> None:
        """Add an N that isn't in the set."""
        page = self._pages.get(number // _PAGE)
        if page is None:
            page = self._pages[number // _PAGE] = bytearray(_PAGE // 8)
        page[number % _PAGE // 8] |= 1 << number % 8
        self._length += 1

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number // _PAGE)
        return page is not None and bool(page[number % _PAGE // 8] & 1 << number % 8)

    def __len__(self) -> int:
        return self._length

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Yield the Ns, sorted, in lists of at most *size*."""
        chunk: list[int] = []
        for place in sorted(self._pages):
            page = self._pages[place]
            for first in range(0, len(page), len(_EMPTY)):
                part = page[first : first + len(_EMPTY)]
                if part == _EMPTY:
                    continue
                for at, byte in enumerate(part, first):
                    if byte:
                        begin = place * _PAGE + 8 * at
                        chunk += [begin + bit for bit in range(8) if byte & 1 << bit]
                while len(chunk) >= size:
                    yield chunk[:size]
                    chunk = chunk[size:]
        if chunk:
            yield chunk
