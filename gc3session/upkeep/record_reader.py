"""Records as a check and a repair read them: strictly, and without building anything of the user's."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, header_of, values_of
from ..format.schema import Schema
from ..index.entries import BLOCK, HOLDER_KEY, Kind
from ..records.values import Decoder
from ..tables.interface import HOLDERS, LEASES, RECORDS, Contents, Item

_SIZES: Final = {RECORDS: 8, HOLDERS: HOLDER_KEY.size, LEASES: HOLDER_KEY.size}  # of the keys


class Read(NamedTuple):
    """What has been read of a record.

    Attributes:
        schema: its schema.
        state: its state; '' if its kind has none.
        home: the number of its home session.
    """

    schema: Schema
    state: str
    home: int


class MissingSchema(CorruptRecord):
    """A record's schema can't be read; *key* is that of the schema."""

    def __init__(self, number: int) -> None:
        super().__init__(f"its schema {number} is damaged or missing")
        self.key = number.to_bytes(4, "big") if 0 < number < 1 << 31 else b""


class RecordReader:
    """Reads records.

    Args:
        refers: called with each N that a record refers to.

    Attributes:
        schemas: those of the store that can be read, by their numbers.
        states: the numbers of the states that can be read, by their names.
        last_state: the greatest number of a state.
        next: the number after the greatest N that was handed out; None if it isn't known.
        unpack: returns the value whose bytes it is given; raises CorruptRecord if they are none.
    """

    def __init__(self, refers: Callable[[int], object] = lambda number: None) -> None:
        self.schemas: dict[int, Schema] = {}
        self.states: dict[str, int] = {"": 0}
        self.last_state = 0
        self.next: int | None = None
        self.unpack = Decoder(refers, checking=True).unpack

    def read(self, number: int, record: bytes) -> Read:
        """Read all values of record N.  Raise CorruptRecord if it can't be read."""
        if not self.can_be(number):
            raise CorruptRecord("its N has not been handed out by far")
        written, revision, values = values_of(number, record, self.unpack)
        if revision < 1:
            raise CorruptRecord(f"its revision can't be {revision}")
        schema = self.schemas.get(written)
        if schema is None:
            raise MissingSchema(written)
        schema.check(values)
        return Read(schema, schema.state(values), header_of(record).home)

    def can_be(self, number: int) -> bool:
        """Return whether there can be a record N; its checksum knows of the lower half of N only."""
        return self.next is None or number >> 32 <= self.next >> 32

    def at(self, contents: Contents, number: int) -> Read | CorruptRecord | None:
        """Return what can be read of record N, or why it can't be read; None if there is none."""
        record = contents.get(RECORDS, RECORD_KEY.pack(number))
        try:
            return None if record is None else self.read(number, record)
        except CorruptRecord as error:
            return error.with_traceback(None)

    def kind(self, read: Read) -> Kind:
        """Return where the index is to have a record; the number of a state that has none is -1."""
        return Kind(read.schema.number, self.states.get(read.state, -1))


def revision_in(key: bytes, record: bytes) -> int:
    """Return the revision of a record which proves itself by its checksum; 0 if it doesn't."""
    try:
        values_of(int.from_bytes(key, "big"), record)
        return header_of(record).revision if len(key) == RECORD_KEY.size else 0
    except CorruptRecord:
        return 0


class Block(NamedTuple):
    """What the tables that are sorted by N have of a block.

    Attributes:
        number: of the block.
        records: N -> what has been read of its record, or why it can't be read.
        others: N and session of each item of the table `holders`.
        leases: the items of the table `leases`.
        strange: table and key of those items whose keys, or values, can't be right.
    """

    number: int
    records: dict[int, Read | CorruptRecord]
    others: list[tuple[int, int]]
    leases: list[Item]
    strange: list[tuple[str, bytes]]

    def members(self, reader: RecordReader) -> dict[int, dict[Kind, int]]:
        """Return what the index is to have for this block: session -> kind -> the bits of its members."""
        found: dict[int, dict[Kind, int]] = {}
        homes = ((number, read.home) for number, read in self.records.items() if isinstance(read, Read))
        for number, session in (*homes, *self.others):
            read = self.records.get(number)
            if session and isinstance(read, Read):
                kinds, kind = found.setdefault(session, {}), reader.kind(read)
                kinds[kind] = kinds.get(kind, 0) | 1 << number % BLOCK
        return found


def read_blocks(contents: Contents, records: Iterable[Item], reader: RecordReader) -> Iterator[Block]:
    """Read all that is sorted by N, block by block; *records* are the items of that table."""
    tables = {RECORDS: records, HOLDERS: contents.walk(HOLDERS), LEASES: contents.walk(LEASES)}
    merged = heapq.merge(*(_tagged(table, items) for table, items in tables.items()))
    for number, items in groupby(merged, key=lambda item: _number(item[0]) // BLOCK):
        block = Block(number, {}, [], [], [])
        for key, table, value in items:
            n, no_holder = _number(key), table == HOLDERS and (value or not any(key[8:]))
            if len(key) != _SIZES[table] or not 0 < n < 1 << 63 or no_holder:
                block.strange.append((table, key))
            elif table == HOLDERS:
                block.others.append((n, HOLDER_KEY.unpack(key)[1]))
            elif table == LEASES:
                block.leases.append((key, value))
            else:
                try:
                    block.records[n] = reader.read(n, value)
                except CorruptRecord as error:
                    block.records[n] = error.with_traceback(None)
        yield block


def _tagged(table: str, items: Iterable[Item]) -> Iterator[tuple[bytes, str, bytes]]:
    return ((key, table, value) for key, value in items)


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8].ljust(8, b"\0"), "big")
