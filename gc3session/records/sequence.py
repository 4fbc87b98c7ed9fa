"""The sequence of Ns of a store: numbers that are handed out once, whatever fails."""

from __future__ import annotations

from operator import length_hint

from ..format.frame import RECORD_KEY
from ..tables.interface import META, Tables, Writer

NEXT_KEY = b"next N"
_FIRST_BLOCK, _LARGEST_BLOCK = 16, 8192
_MOST_EXPECTED = 1 << 20


class NumberSequence:
    """Hands out Ns from blocks that are taken from the store inside its transactions.

    What a crash leaves of a block stays unused.  The numbers of one process increase.

    Attributes:
        numbers: the rest of the block; `next` continues with another block.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.reset()

    def reset(self) -> None:
        """Forget the block: it belongs to the process that this one was forked from."""
        self.numbers = iter(range(0))
        self._spare = range(0)  # the block after the one in use
        self._size = _FIRST_BLOCK
        self._expected = 0

    def expect(self, count: int) -> None:
        """Take the numbers that are about to be needed as one block."""
        self._expected = min(count, _MOST_EXPECTED) - length_hint(self.numbers) - len(self._spare)

    def next(self) -> int:
        """Return a number that was never handed out."""
        number = self.at_hand()
        if not number:
            self.use_block(self._tables.write(self.take_block))
            number = self.at_hand()
        return number

    def at_hand(self) -> int:
        """Return a number of the block; 0 if none is left."""
        number = next(self.numbers, 0)
        if not number:
            self.numbers, self._spare = iter(self._spare), range(0)
            number = next(self.numbers, 0)
        return number

    def low(self) -> bool:
        """Return whether a transaction that is made anyway should take a block along."""
        if self._tables.concurrent_writers:  # others would wait for the end of that, or it for theirs
            return False
        return not self._spare and length_hint(self.numbers) < self._size // 4

    def take_block(self, writer: Writer) -> tuple[int, int]:
        """Take a block in a transaction; `use_block` is to be called once that is committed."""
        size = max(self._size, self._expected)
        first = self.take(writer, size)
        return first, first + size

    def use_block(self, block: tuple[int, int]) -> None:
        """Use a block whose transaction was committed."""
        self._spare = range(*block)
        self._size = min(2 * self._size, _LARGEST_BLOCK)
        self._expected = 0

    def give_back(self) -> None:
        """Return what is left to the store, if nobody has taken a block since."""
        left = [*self.numbers, *self._spare]
        self.reset()
        if not left or left[-1] - left[0] != len(left) - 1:
            return

        def unit(writer: Writer) -> None:
            writer.lock(META, [NEXT_KEY])
            if writer.get(META, NEXT_KEY) == RECORD_KEY.pack(left[-1] + 1):
                writer.put(META, [(NEXT_KEY, RECORD_KEY.pack(left[0]))])

        self._tables.write(unit)

    @staticmethod
    def take(writer: Writer, count: int) -> int:
        """Take *count* numbers in a transaction; return the first."""
        writer.lock(META, [NEXT_KEY])
        first: int = RECORD_KEY.unpack(writer.get(META, NEXT_KEY) or RECORD_KEY.pack(1))[0]
        writer.put(META, [(NEXT_KEY, RECORD_KEY.pack(first + count))])
        return first
