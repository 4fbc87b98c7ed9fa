"""The sequence of Ns of a store: numbers that are handed out once, whatever fails."""

from __future__ import annotations

from .tables import META, Tables, Writer
from .values import RECORD_KEY

_KEY = b"next N"
_FIRST_BLOCK, _LARGEST_BLOCK = 16, 8192


class Sequence:
    """Hands out Ns from blocks that are taken from the store inside its transactions.

    What a crash leaves of a block stays unused.  Numbers of one process increase.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._size = _FIRST_BLOCK
        self._blocks: list[tuple[int, int]] = []  # first, end; the front one is in use

    def next(self) -> int:
        """Return a number that nobody has had."""
        while self._blocks and self._blocks[0][0] == self._blocks[0][1]:
            del self._blocks[0]
        if not self._blocks:
            self.took(self._tables.write(self.reserve))
        first, end = self._blocks[0]
        self._blocks[0] = (first + 1, end)
        return first

    def block(self) -> range:
        """Return the numbers that can be had without a transaction; `used` says which were."""
        if not self._blocks or self._blocks[0][0] == self._blocks[0][1]:
            self._blocks[:1] = []
            if not self._blocks:
                self.took(self._tables.write(self.reserve))
        return range(*self._blocks[0])

    def low(self) -> bool:
        """Return whether a transaction that is made anyway should take a block along."""
        return sum(end - first for first, end in self._blocks) < self._size // 4

    def reserve(self, writer: Writer) -> tuple[int, int]:
        """Take a block in a transaction; `took` is to be called once that is committed."""
        first = RECORD_KEY.unpack(writer.get(META, _KEY) or RECORD_KEY.pack(1))[0]
        end = first + self._size
        writer.put(META, [(_KEY, RECORD_KEY.pack(end))])
        return first, end

    def took(self, block: tuple[int, int]) -> None:
        """Use a block whose transaction was committed."""
        if self._blocks and self._blocks[-1][1] == block[0]:
            block = (self._blocks.pop()[0], block[1])
        self._blocks.append(block)
        self._size = min(2 * self._size, _LARGEST_BLOCK)

    def give_back(self) -> None:
        """Return the rest of the last block to the store, if nobody has taken one after it."""
        first, end = self._blocks.pop() if self._blocks else (0, 0)
        self._blocks = []
        self._size = _FIRST_BLOCK
        if first < end:

            def unit(writer: Writer) -> None:
                if writer.get(META, _KEY) == RECORD_KEY.pack(end):
                    writer.put(META, [(_KEY, RECORD_KEY.pack(first))])

            self._tables.write(unit)
