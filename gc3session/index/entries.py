"""The index: which records belong to a session, in which order, and in which state they are.

A task that is added when its record is made has its N for its place in the session (its
*order*); at most one session can hold a record so.  A task that was stored before takes a fresh
number of the same sequence for its order, and two small tables lead from it to N and back
(LATE, LATE_MEMBERS).  So sorting by order is the order of adding, and an entry is 20 bytes::

    members:  session number (4)  ->  order (8), schema number (4; bit 31 set: late), line (8)
    states:   session number (4), state  ->  order (8)

The schema number gives the ID's name even where the record can't be read.  The line is where
the ID stands in the mirror, in bytes from its beginning: so it is found again when the task
leaves, and the whole file can be written anew without a change of the index.  A persistable
that isn't a task has the state ''.  A state of more than MAX_STATE bytes is cut and its SHA-256
added.

The row of a session in the table `sessions` has the frame of a record (codec.py) around
`[ session number, size, blank, mark ]`: the bytes of the mirror, how many of them are blank,
and what mirror.py has noted there, nil if the mirror is to be written anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple

import msgpack

from ..errors import CorruptRecord, CorruptStore
from ..format.frame import RECORD_KEY, seal, unseal
from ..tables.interface import LATE, MEMBERS, SESSIONS, STATES, Reader, Writer

MAX_STATE = 400
"""Bytes of a state's name in a key; LMDB's keys have at most 511."""

MEMBER = Struct(">QIQ")
SESSION_KEY = Struct(">I")
LATE_BIT = 1 << 31

Entry = tuple[int, int, int]
"""A task's place in a session: its order, its N, the number of a schema that has the ID's name."""


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


class Row(NamedTuple):
    """What the table `sessions` holds of a session.

    Attributes:
        number: of the session in the store.
        size: bytes of the mirror.
        blank: how many of them are blank.
        mark: of the mirror (mirror.py), or None.
    """

    number: int
    size: int
    blank: int
    mark: Any

    def write(self, writer: Writer, identity: bytes) -> None:
        writer.put(SESSIONS, [(identity, seal(0, msgpack.packb(self)))])

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
                f"the row of session {identity.hex()} is damaged ({error}); restore the store from a backup"
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
        numbers = (self.number, self.size, self.blank)
        sound = all(type(n) is int for n in numbers) and 0 < self.number < 1 << 32
        if not sound or not 0 <= self.blank <= self.size < 1 << 63:
            raise ValueError("its numbers can't be right")
        no_mark = type(self.mark) is not list or [type(part) for part in self.mark] != [int, str, int, int]
        if self.mark is not None and no_mark:
            raise ValueError("what it says of the mirror can't be right")


def state_key(session: int, state: str) -> bytes:
    """Return the key of a state of a session in the table `states`."""
    name = state.encode("utf-8", "surrogatepass")
    if len(name) > MAX_STATE:
        name = name[: MAX_STATE - 32] + hashlib.sha256(name).digest()
    return SESSION_KEY.pack(session) + name


def member(reader: Reader, session: int, order: int) -> tuple[int, int] | None:
    """Return schema number (with the late bit) and line of a session's entry of that order, or None."""
    values = reader.values(MEMBERS, SESSION_KEY.pack(session), MEMBER.pack(order, 0, 0), 1)
    if values:
        found, schema, line = MEMBER.unpack(values[0])
        if found == order:
            return schema, line
    return None


def members(reader: Reader, session: int) -> Iterator[tuple[Entry, int]]:
    """Give all committed entries of a session, and their lines, in order."""
    after = 0
    while True:
        values = reader.values(MEMBERS, SESSION_KEY.pack(session), MEMBER.pack(after + 1, 0, 0), 4096)
        found = list(map(MEMBER.unpack, values))
        entries = entries_at(reader, [(order, schema) for order, schema, _ in found])
        for entry, (_, _, line) in zip(entries, found, strict=True):
            yield entry, line
        after = found[-1][0] if found else after
        if len(values) < 4096:
            return


def expect_members(reader: Reader, session: int, orders: Iterable[int]) -> None:
    """Tell the reader that `member` will be called for all of these orders."""
    reader.expect_values(MEMBERS, SESSION_KEY.pack(session), [MEMBER.pack(order, 0, 0) for order in orders])


def entries_at(reader: Reader, places: list[tuple[int, int]]) -> list[Entry]:
    """Return the entries whose member values have these orders and schema numbers (with the late bit)."""
    reader.expect(LATE, [RECORD_KEY.pack(order) for order, schema in places if schema & LATE_BIT])
    return [
        (order, order, schema) if schema < LATE_BIT else entry_at(reader, order, schema)
        for order, schema in places
    ]


def entry_at(reader: Reader, order: int, schema: int) -> Entry:
    """Return the entry whose member value has this order and schema number (with the late bit)."""
    if not schema & LATE_BIT:
        return order, order, schema
    number = reader.get(LATE, RECORD_KEY.pack(order))
    if number is None:
        raise CorruptStore(f"the index has no record for its entry {order}; restore the store from a backup")
    return order, RECORD_KEY.unpack(number)[0], schema & ~LATE_BIT


def state_at(reader: Reader, session: int, order: int) -> str:
    """Return the state that the index has for a session's entry of that order, '' if none."""
    value = RECORD_KEY.pack(order)
    for key, _ in reader.counts(STATES, SESSION_KEY.pack(session)):
        if reader.values(STATES, key, value, 1) == [value]:
            return key[4:].decode("utf-8", "surrogatepass")
    return ""
