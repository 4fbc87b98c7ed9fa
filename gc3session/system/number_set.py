"""A set of Ns that takes little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_PAGE = 1 << 15  # Ns
_EMPTY = bytes(64)


class Numbers:
    """A set of Ns, in bitmaps of 4 KiB: one for each 32,768 numbers among which is a member."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._pages: dict[int, bytearray] = {}
        self._length = 0
        self.add_all(numbers)

    def add_all(self, numbers: Iterable[int]) -> None:
        """Add some Ns."""
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> bool:
        """Add an N, and return whether it wasn't in the set before."""
        page = self._pages.get(number // _PAGE)
        if page is None:
            page = self._pages[number // _PAGE] = bytearray(_PAGE // 8)
        place, bit = number % _PAGE // 8, 1 << number % 8
        is_new = not page[place] & bit
        if is_new:
            page[place] |= bit
            self._length += 1
        return is_new

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number // _PAGE)
        return page is not None and bool(page[number % _PAGE // 8] & 1 << number % 8)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        """Give the Ns, sorted."""
        for place in sorted(self._pages):
            page = self._pages[place]
            for first in range(0, len(page), len(_EMPTY)):
                part = page[first : first + len(_EMPTY)]
                if part == _EMPTY:
                    continue
                for at, byte in enumerate(part, place * _PAGE // 8 + first):
                    if byte:
                        yield from [8 * at + bit for bit in range(8) if byte & 1 << bit]
