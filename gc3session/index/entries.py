"""The index: which records belong to which session, and in which state they are.

::

    index     session (4), block (8), schema number (4), state number (4)  ->  members
    counts    session (4), schema number (4), state number (4)             ->  how many (8)
    holders   N (8), session (4)                                           ->  nothing
    states    state number (4)                                             ->  name, sealed
    sessions  identity (16)                                                ->  row, sealed

A block is 4,096 Ns.  *Members* are those of a block that belong to the session, were written with
that schema and are in that state: up to 64 of them as their places in the block, sorted, 2 bytes
each; more as a bitmap of 512 bytes, in which bit p of a place p is bit p % 8 (1, 2, 4, ...) of byte
p // 8.  Behind them stands a CRC-32 that starts from that of the key (4 bytes).

State 0 is that of a persistable which isn't a task.  `counts` sums up the members of all blocks, and
a session's row those of all of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress, islice, repeat
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from ..errors import CorruptRecord, CorruptStore
from ..format.frame import seal, unseal
from ..tables.interface import INDEX, SESSIONS, Reader, Writer

BLOCK: Final = 4096
"""Ns in a block."""

LISTED: Final = 64
"""Members of an entry that are listed; more of them are kept as a bitmap."""

SESSION_KEY: Final = Struct(">I")
BLOCK_KEY: Final = Struct(">IQ")
INDEX_KEY: Final = Struct(">IQII")
COUNT_KEY: Final = Struct(">III")
COUNT: Final = Struct(">Q")
HOLDER_KEY: Final = Struct(">QI")
STATE_KEY: Final = Struct(">I")

_FEW: Final = 64  # entries of a block that are read at once
_BITS: Final = bytes.maketrans(b"01", b"\0\1")

Entry = tuple[int, int]
"""A task of a session: its N, and the number of a schema that has the ID's name."""


class Kind(NamedTuple):
    """What the members of an entry have in common.

    Attributes:
        schema: the number of their schema.
        state: the number of their state.
    """

    schema: int
    state: int


def moved_key(identity: bytes) -> bytes:
    """Return the key in the table `meta` of where a session that has left the store is now.

    Its value is what `store.url` is to say.
    """
    return b"moved " + identity


def coming_key(identity: bytes) -> bytes:
    """Return the key in the table `meta` of what a session that is moving to the store has written so far.

    Its value is the first and the next N of that (8 bytes each), and the session's identity in the
    store.  It is deleted once the session has moved.
    """
    return b"coming " + identity


# -- members, as the bits of an int: bit p is set if place p of the block is a member


def bits_of(places: Iterable[int]) -> int:
    """Return the bits of some places, which are sorted."""
    places = list(places)
    if not places:
        return 0
    first = places[0]
    if places[-1] - first == len(places) - 1:
        return ((1 << len(places)) - 1) << first
    bits = bytearray(BLOCK // 8)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bits, "little")


def numbers_of(block: int, bits: int, skipped: int = 0, size: int = BLOCK) -> list[int]:
    """Return the first *size* Ns of a block whose bits are set, without those of its first *skipped* places."""
    digits = f"{bits >> skipped:b}".encode().translate(_BITS)[::-1]
    first = block * BLOCK + skipped
    return list(islice(compress(range(first, first + len(digits)), digits), size))


def pack_members(key: bytes, bits: int) -> bytes:
    """Return the value of an entry of the index."""
    if bits.bit_count() <= LISTED:
        body = b"".join([number.to_bytes(2, "big") for number in numbers_of(0, bits)])
    else:
        body = bits.to_bytes(BLOCK // 8, "little")
    return body + crc32(body, crc32(key)).to_bytes(4, "big")


def unpack_members(key: bytes, value: bytes) -> int:
    """Return the bits of an entry of the index.  Raise CorruptRecord, which says only what is wrong with it."""
    body = value[:-4]
    if crc32(body, crc32(key)).to_bytes(4, "big") != value[-4:]:
        raise CorruptRecord("its checksum is wrong: the bytes on the disk are damaged")
    if len(body) == BLOCK // 8:
        return int.from_bytes(body, "little")
    places = [int.from_bytes(body[i : i + 2], "big") for i in range(0, len(body), 2)]
    if not places or len(places) > LISTED or len(body) % 2 or places != sorted({*places}) or places[-1] >= BLOCK:
        raise CorruptRecord("it lists no places of a block")
    return bits_of(places)


def members(key: bytes, value: bytes) -> int:
    """Return the bits of an entry of the index.  Raise CorruptStore if it is damaged."""
    try:
        return unpack_members(key, value)
    except CorruptRecord as error:
        raise CorruptStore(
            f"an entry of the index is damaged ({error}): 'gc3session repair' rebuilds it from the records"
        ) from error


class Block(NamedTuple):
    """The entries of a block of a session.

    Attributes:
        number: of the block: the N of its first place divided by BLOCK.
        kinds: what its members have in common -> their bits.
    """

    number: int
    kinds: dict[Kind, int]

    def entries(self, after: int = -1, size: int = BLOCK) -> list[Entry]:
        """Return the first *size* members after an N, in order."""
        skipped = max(0, after + 1 - self.number * BLOCK)
        by_schema: dict[int, int] = {}
        for kind, bits in self.kinds.items():
            by_schema[kind.schema] = by_schema.get(kind.schema, 0) | bits
        entries: list[Entry] = []
        for schema, bits in by_schema.items():
            entries += zip(numbers_of(self.number, bits, skipped, size), repeat(schema))
        return entries if len(by_schema) == 1 else sorted(entries)[:size]


def block_at(reader: Reader, session: int, number: int, wanted: Iterable[Kind] | None = None) -> Block:
    """Return a block of a session; if it has very many entries, and some are *wanted*, only these."""
    prefix = BLOCK_KEY.pack(session, number)
    items = reader.scan(INDEX, prefix, _FEW + 1, prefix)
    if len(items) > _FEW:
        if wanted is None:
            items = reader.scan(INDEX, prefix, None, prefix)
        else:
            items = reader.get_many(INDEX, sorted(INDEX_KEY.pack(session, number, *kind) for kind in wanted))
    return Block(number, {Kind(*INDEX_KEY.unpack(key)[2:]): members(key, value) for key, value in items})


def next_block(reader: Reader, session: int, number: int, wanted: Iterable[Kind] | None = None) -> Block | None:
    """Return the first block of a session, from that number on, which has entries; None if there is none."""
    first = reader.scan(INDEX, BLOCK_KEY.pack(session, number), 1, SESSION_KEY.pack(session))
    return None if not first else block_at(reader, session, INDEX_KEY.unpack(first[0][0])[1], wanted)


class MirrorNote(NamedTuple):
    """What a session's row says of its mirror.

    Attributes:
        inode: of the file.
        size: how many bytes it has.
        blank: how many of them are blank.
        where: the boot, and the filesystem, in which it was written.
        begin: where the lines of the last commit begin.
        text: these lines; b'' if they were too many to be noted.
        blanks: what the last commit made blank: where, and how many bytes.
    """

    inode: int
    size: int
    blank: int
    where: str
    begin: int
    text: bytes
    blanks: list[list[int]]


class Row(NamedTuple):
    """What the table `sessions` holds of a session.

    Attributes:
        number: of the session in the store.
        total: how many tasks it has.
        mirror: what a MirrorNote says, or None if the mirror is to be written anew.
    """

    number: int
    total: int
    mirror: Any

    def write(self, writer: Writer, identity: bytes) -> None:
        writer.put(SESSIONS, [(identity, self.to_bytes())])

    def to_bytes(self) -> bytes:
        """Return the row as the table has it."""
        return seal(0, msgpack.packb(self))

    @classmethod
    def read(cls, reader: Reader, identity: bytes) -> Row | None:
        """Return the session's row, or None if it has never been written."""
        data = reader.get(SESSIONS, identity)
        return None if data is None else cls.from_bytes(identity, data)

    @classmethod
    def from_bytes(cls, identity: bytes, data: bytes) -> Row:
        """Return the row in an item of the table. Raise CorruptStore if it is damaged."""
        try:
            return cls.parsed(identity, data)
        except CorruptRecord as error:
            raise CorruptStore(
                f"the row of session {identity.hex()} is damaged ({error}): 'gc3session repair' rebuilds it"
            ) from error

    @classmethod
    def parsed(cls, identity: bytes, data: bytes) -> Row:
        """Return the row in an item of the table. Raise CorruptRecord, which says only what is wrong with it."""
        if len(identity) != 16:
            raise CorruptRecord("its key is no identity of 16 bytes")
        try:
            row = cls(*msgpack.unpackb(unseal(0, data)))
            row.check()
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CorruptRecord(f"it is not a session's row: {error}") from error
        return row

    def check(self) -> None:
        """Raise ValueError if its parts aren't as the format has them."""
        if not all(type(n) is int for n in (self.number, self.total)) or not 0 < self.number < 1 << 32:
            raise ValueError("its numbers can't be right")
        if not 0 <= self.total < 1 << 63:
            raise ValueError("its total can't be right")
        if self.mirror is None:
            return
        note = MirrorNote(*self.mirror)
        sizes = (note.inode, note.size, note.blank, note.begin)
        sound = all(type(n) is int and n >= 0 for n in sizes) and note.blank <= note.size < 1 << 63
        sound = sound and type(note.where) is str and type(note.text) is bytes and type(note.blanks) is list
        sound = sound and note.begin <= note.size
        if not sound or not all(
            type(a) is type(b) is int and 0 <= a <= a + b <= note.size for a, b in note.blanks
        ):
            raise ValueError("what it says of the mirror can't be right")
