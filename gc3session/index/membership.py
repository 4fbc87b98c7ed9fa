"""Which records belong to one session: the committed ones, and over them those of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, repeat
from typing import Any, Final

from ..errors import CorruptRecord, CorruptStore
from ..format.frame import RECORD_KEY, header_of
from ..records.sequence import NEXT_KEY
from ..tables.interface import HOLDERS, META, RECORDS, Reader
from .entries import BLOCK, HOLDER_KEY, Kind, Row, bits_of, block_at, next_block, numbers_of
from .index_writer import Listener

_MANY: Final = 1 << 24
"""Tasks for which a list takes so much memory that it is worth asking whether there can be so many."""


class Membership:
    """The members of one session.

    Attributes:
        identity: 16 bytes that name the session in its store.
        known_number: of the session in the store, if that has been read; 0 before.
        listener: who is told of each commit; None if nobody.
        joined: the Ns that the batch adds, as keys.
        adopted: those of them whose records were stored before.
        left: the committed Ns that the batch takes away, as keys.
    """

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.listener: Listener | None = None
        self.known_number = 0
        self.reset()

    def reset(self) -> None:
        """Forget the batch."""
        self.joined: dict[int, bool] = {}
        self.adopted: dict[int, bool] = {}
        self.left: dict[int, bool] = {}

    # -- reading; each takes the state that it is to be read from

    def number(self, reader: Reader) -> int:
        """Return the session's number in the store; 0 if nothing of it was written yet."""
        if not self.known_number:
            row = Row.read(reader, self.identity)
            self.known_number = 0 if row is None else row.number
        return self.known_number

    def holds(self, reader: Reader, number: int) -> bool:
        """Return whether record N belongs to the session."""
        if number in self.joined:
            return True
        return number not in self.left and self.is_committed(reader, number)

    def is_committed(self, reader: Reader, number: int, record: bytes | None = None) -> bool:
        """Return what `holds` would without the batch; *record* is the committed one, if that has been read."""
        session = self.number(reader)
        if not session:
            return False
        if record is None:
            record = reader.get(RECORDS, RECORD_KEY.pack(number))
        if record is None:
            return False
        try:
            if header_of(record).home == session:
                return True
        except CorruptRecord:
            return number in self.kinds(reader, [number])
        return reader.get(HOLDERS, HOLDER_KEY.pack(number, session)) is not None

    def held(self, reader: Reader, numbers: Iterable[int]) -> set[int]:
        """Return those of some Ns that belong to the session."""
        numbers = {*numbers}
        joined = numbers & self.joined.keys()
        return joined | (self.kinds(reader, numbers - joined).keys() - self.left.keys())

    def kinds(self, reader: Reader, numbers: Iterable[int]) -> dict[int, Kind]:
        """Return those of some Ns that are committed members, and where the index has them."""
        session = self.number(reader)
        found: dict[int, Kind] = {}
        for block, some in groupby(sorted(numbers), lambda number: number // BLOCK) if session else ():
            wanted = bits_of([number % BLOCK for number in some])
            for kind, bits in block_at(reader, session, block).kinds.items():
                if bits & wanted:
                    found.update(zip(numbers_of(block, bits & wanted), repeat(kind)))
        return found

    def count(self, reader: Reader) -> int:
        """Return how many entries there are."""
        row = Row.read(reader, self.identity)
        if (
            row is not None
            and row.total > _MANY
            and row.total > RECORD_KEY.unpack(reader.get(META, NEXT_KEY) or bytes(8))[0]
        ):
            raise CorruptStore(
                f"session {self.identity.hex()} has more tasks by its row than the store ever had records:"
                " 'gc3session repair' counts them"
            )
        count = len(self.joined) + (0 if row is None else row.total)
        # Another process may have done the same meanwhile.
        return count - len(self.kinds(reader, self.adopted)) - len(self.kinds(reader, self.left))

    def last(self, reader: Reader) -> int:
        """Return the greatest committed N of the session, or 0."""
        session = self.number(reader)
        low, high = -1, RECORD_KEY.unpack(reader.get(META, NEXT_KEY) or bytes(8))[0] // BLOCK
        while session and low < high:  # the last block is in between
            middle = (low + high + 1) // 2
            block = next_block(reader, session, middle)
            if block is None:
                high = middle - 1
            else:
                low = block.number
        return block_at(reader, session, low).entries()[-1][0] if low >= 0 else 0

    # -- the batch; *set_item* is the batch's, so that it can be undone

    def join(self, set_item: Any, number: int, *, stored: bool) -> None:
        """Add record N, which was *stored* before or is new."""
        if number in self.left:  # it may have joined in this batch, too: then it isn't committed
            set_item(self.left, number, None)
        set_item(self.joined, number, True)
        if stored:
            set_item(self.adopted, number, True)

    def leave(self, set_item: Any, number: int) -> None:
        """Take record N away."""
        if number not in self.joined:
            set_item(self.left, number, True)
            return
        adopted = number in self.adopted
        set_item(self.joined, number, None)
        if adopted:  # another process may have added it, too
            set_item(self.adopted, number, None)
            set_item(self.left, number, True)
