"""What is wrong in the tables of a store is set right, without loss, in one transaction.

Records are what holds: an entry of the index without its record goes, and states, late tables,
lines of the mirror and counters are made what the records and the members say.  A record or
schema that can't be read is put aside with its bytes, and leaves the index.

The state that is read is the committed one, while the transaction that writes is open: LMDB
leaves its pages as they are.  So this streams, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgpack

from ..format.frame import RECORD_KEY
from ..format.validation import Fault, SchemaFound, check_values, record_found, schema_found, state_in
from ..index.entries import LATE_BIT, MEMBER, SESSION_KEY, Row
from ..records.ids import parse_id
from ..system.number_set import Numbers
from ..tables.interface import (
    LATE,
    LATE_MEMBERS,
    MEMBERS,
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    Contents,
    Item,
    Writer,
)
from .check_index import SessionRow, row_found, state_name

_LONGEST_LINE: Final = 4096

Aside = Callable[[str, bytes], None]
"""Called with the name and the bytes of what is put aside."""


class Known(NamedTuple):
    """What is known beside the tables.

    Attributes:
        identity: that of the session; None if that isn't known.
        line: gives the text of the mirror from a place on.
        listed: gives the Ns in the mirror that are to be added if the index hasn't got them.
        late: those of them that stand after greater ones, in their order.
        schemas: copies of schemas that are elsewhere in the store.
    """

    identity: bytes | None
    line: Callable[[int, int], bytes]
    listed: Callable[[], Iterator[int]]
    late: list[int]
    schemas: Callable[[], Iterator[Item]]


class Mending:
    """One mending of the tables.

    Args:
        contents: the committed state.
        writer: the transaction; None only tells what would be done.
        known: what is known beside the tables.
        tell: called with what is done, a line each.
        aside: called with what is put aside, before it is deleted.
    """

    def __init__(
        self, contents: Contents, writer: Writer | None, known: Known, tell: Callable[[str], None], aside: Aside
    ) -> None:
        self._contents = contents
        self._writer = writer
        self._known = known
        self._tell = tell
        self._aside = aside
        self._schemas: dict[int, SchemaFound] = {}
        self._present = Numbers()
        self._last = 0  # the greatest number that is in use
        self._own = Numbers()  # Ns that are the order of an entry
        self._made: set[bytes] = set()  # identities of sessions whose rows are made again
        self._late: set[tuple[int, int, int]] = set()  # order, N, session of late entries

    def run(self) -> None:
        """Mend all tables."""
        self._mend_schemas()
        self._read_records()
        rows = self._mend_rows()
        for row in rows:
            _Session(self, row).mend()
        self._mend_late()
        self._mend_meta(rows)

    # -- changes

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if self._writer is not None:
            self._writer.put(table, [(key, value)])

    def delete(self, table: str, key: bytes) -> None:
        if self._writer is not None:
            self._writer.delete(table, [key])

    def add_value(self, table: str, key: bytes, value: bytes) -> None:
        if self._writer is not None:
            self._writer.put_values(table, key, [value])

    def delete_value(self, table: str, key: bytes, value: bytes) -> None:
        if self._writer is not None:
            self._writer.delete_values(table, key, [value])

    # -- schemas and records

    def _mend_schemas(self) -> None:
        damaged: dict[int, tuple[bytes, bytes, str]] = {}
        for key, data in self._contents.walk(SCHEMAS):
            number = int.from_bytes(key, "big")
            try:
                self._schemas[number] = schema_found(key, data)
            except Fault as fault:
                damaged[number] = key, data, str(fault)
        needed = set(damaged)
        for _, record in self._contents.walk(RECORDS):
            number = _schema_of(record)
            if number and number not in self._schemas:
                needed.add(number)
        if not needed:
            return
        # A schema never changes, so any copy of it that is left in an unused page is right.
        for key, data in self._known.schemas():
            number = int.from_bytes(key, "big")
            if number in needed:
                try:
                    self._schemas[number] = schema_found(key, data)
                except Fault:
                    continue
                needed.discard(number)
                self.put(SCHEMAS, key, data)
                self._tell(f"schema {number}: set right from a copy in the data file")
        for number in sorted(needed & set(damaged)):
            key, data, told = damaged[number]
            self._aside(f"{key.hex() if len(key) != 4 else number}.schema", data)
            self._tell(f"schema {number}: {told}; put aside")
            self.delete(SCHEMAS, key)

    def _read_records(self) -> None:
        for key, data in self._contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            fault = "its key is no N" if len(key) != 8 or not 0 < number < 1 << 63 else self.fault_of(number, data)
            if fault:
                self._aside(f"{number if len(key) == 8 else key.hex()}.record", data)
                self._tell(f"record {number}: {fault}; put aside")
                self.delete(RECORDS, key)
            else:
                self._present.add(number)
            if len(key) == 8 and number < 1 << 63:
                self._last = max(self._last, number)

    def fault_of(self, number: int, data: bytes) -> str:
        """Return what is wrong with a record, '' if nothing."""
        try:
            found = record_found(number, data)
            schema = self._schemas.get(found.schema)
            if schema is None:
                return f"its schema {found.schema} is damaged or missing"
            state_in(found, schema)
            check_values(found, lambda target: None)
        except Fault as fault:
            return str(fault)
        return ""

    def name_and_state(self, number: int, data: bytes) -> tuple[int, str, bytes]:
        """Return schema number, name and state (as a key of the table `states` has it) of a sound record."""
        found = record_found(number, data)
        schema = self._schemas[found.schema]
        return found.schema, schema.name, state_name(state_in(found, schema))

    def name(self, schema: int) -> str | None:
        found = self._schemas.get(schema)
        return None if found is None else found.name

    def has(self, number: int) -> bool:
        return number in self._present

    # -- sessions

    def _mend_rows(self) -> list[SessionRow]:
        """Return the rows of all sessions that there are entries of, mended."""
        rows: dict[int, SessionRow] = {}
        damaged: list[bytes] = []
        for key, data in self._contents.walk(SESSIONS):
            try:
                row = row_found(key, data)
            except Fault:
                damaged.append(key)
                continue
            if row.number in rows:
                damaged.append(key)
            else:
                rows[row.number] = row
        without = sorted(
            {int.from_bytes(key[:4], "big") for table in (MEMBERS, STATES) for key in self._contents.keys(table)}
            - set(rows)
        )
        own = self._known.identity
        waiting = [key for key in damaged if key != own and len(key) == 16]
        if own is not None and not any(row.identity == own for row in rows.values()):
            waiting.insert(0, own)  # if there is one index without a row, it is that of this session
        for number in [number for number in without if number]:
            identity = waiting.pop(0) if waiting else secrets.token_bytes(16)
            rows[number] = SessionRow(identity, number, 0, 0, None)
            self._made.add(identity)
            self._tell(f"session number {number}: its row is made again, for the session {identity.hex()}")
        for identity in waiting:
            if identity in damaged or identity == own:
                number = max([*rows, *without], default=0) + 1
                rows[number] = SessionRow(identity, number, 0, 0, None)
                self._made.add(identity)
                if identity in damaged:
                    self._tell(f"session {identity.hex()}: its row is made again")
        for key in damaged:
            if not any(row.identity == key for row in rows.values()):
                self._tell(f"session {key.hex()}: its row has no identity; deleted")
                self.delete(SESSIONS, key)
        return list(rows.values())

    # -- the rest

    def late_of(self, order: int) -> int | None:
        """Return the N of a late entry, None if it leads nowhere."""
        found = self._contents.get(LATE, RECORD_KEY.pack(order))
        return None if found is None or len(found) != 8 else int.from_bytes(found, "big")

    def fresh(self) -> int:
        """Return a number that was never handed out."""
        following = self._contents.get(META, b"next N") or b""
        self._last = max(self._last, int.from_bytes(following[:8], "big") - 1 if len(following) == 8 else 0) + 1
        return self._last

    def note_late(self, order: int, number: int, session: int) -> None:
        self._late.add((order, number, session))
        self._last = max(self._last, order)

    def _mend_late(self) -> None:
        late = {RECORD_KEY.pack(order): RECORD_KEY.pack(number) for order, number, _ in self._late}
        back = {
            RECORD_KEY.pack(number) + SESSION_KEY.pack(session): RECORD_KEY.pack(order)
            for order, number, session in self._late
        }
        for table, expected in ((LATE, late), (LATE_MEMBERS, back)):
            for key, value in self._contents.walk(table):
                if expected.get(key) == value:
                    del expected[key]
                elif key not in expected:
                    self._tell(f"{table} {key.hex()}: no entry of a session is there for it; deleted")
                    self.delete(table, key)
            for key, value in expected.items():
                self._tell(f"{table} {key.hex()}: set right")
                self.put(table, key, value)

    def _mend_meta(self, rows: list[SessionRow]) -> None:
        def mend(name: bytes, value: bytes) -> None:
            self._tell(f"meta: {name.decode()!r} is set right")
            self.put(META, name, value)

        version = msgpack.packb(1)
        if self._contents.get(META, b"format") != version:
            mend(b"format", version)
        if len(self._contents.get(META, b"store") or b"") != 16:
            mend(b"store", secrets.token_bytes(16))
        following = self._contents.get(META, b"next N") or b""
        if len(following) != 8 or not self._last < int.from_bytes(following, "big") < 1 << 63:
            mend(b"next N", RECORD_KEY.pack(self._last + 1))
        number = max((row.number for row in rows), default=0)
        following = self._contents.get(META, b"next session") or SESSION_KEY.pack(1)
        if len(following) != 4 or int.from_bytes(following, "big") <= number:
            mend(b"next session", SESSION_KEY.pack(number + 1))


class _Session:
    """The mending of one session's index."""

    def __init__(self, mending: Mending, row: SessionRow) -> None:
        self._mending = mending
        self._row = row
        self._key = SESSION_KEY.pack(row.number)
        self._ours = row.identity == mending._known.identity
        self._changed = row.identity in mending._made
        self._clashing: list[int] = []

    def mend(self) -> None:
        """Make members, states and row what they should be."""
        mending, contents = self._mending, self._mending._contents
        tidy = not self._lines_are_sound()
        states = self._states()
        state = next(states, None)
        line = used = end = 0
        for order, number, schema, at, stored in self._entries():
            record = contents.get(RECORDS, RECORD_KEY.pack(number))
            assert record is not None
            own_schema, name, expected = mending.name_and_state(number, record)
            if mending.name(schema) != name:
                schema = own_schema
            size = len(name.encode("utf-8", "surrogatepass")) + len(str(number)) + 2
            at = line if tidy else at
            value = MEMBER.pack(order, schema | (0 if order == number else LATE_BIT), at)
            if value != stored:
                if stored is None:
                    self._tell(f"{name}.{number}: added to the index")
                else:
                    mending.delete_value(MEMBERS, self._key, stored)
                    if not tidy:
                        self._tell(f"{name}.{number}: its entry is set right")
                mending.add_value(MEMBERS, self._key, value)
            if order != number:
                mending.note_late(order, number, self._row.number)
            mending._last = max(mending._last, order)
            line, end, used = line + size, at + size, used + size
            while state is not None and state[0] < order:
                self._drop_state(*state)
                state = next(states, None)
            held = False
            while state is not None and state[0] == order:
                if state[1] == expected:
                    held = True
                else:
                    self._drop_state(*state)
                state = next(states, None)
            if not held:
                self._tell(f"{name}.{number}: put into its state")
                mending.add_value(STATES, self._key + expected, RECORD_KEY.pack(order))
        while state is not None:
            self._drop_state(*state)
            state = next(states, None)
        self._write_row(line if tidy else max(end, self._row.size), used)
        if tidy and used:
            self._tell(f"session {self._row.identity.hex()}: the lines of its mirror are laid out anew")

    def _write_row(self, size: int, used: int) -> None:
        row = self._row
        if (row.size, row.blank) != (size, size - used):
            self._tell(f"session {row.identity.hex()}: its row is set right")
        if (self._changed or self._ours) and self._mending._writer is not None:
            # Without a mark, so that its mirror is written anew at the next opening.
            Row(row.number, size, size - used, None).write(self._mending._writer, row.identity)

    def _tell(self, told: str) -> None:
        self._changed = True
        self._mending._tell(told)

    def _drop_state(self, order: int, state: bytes) -> None:
        self._mending._tell(f"entry {order}: taken out of the state {state.decode('utf-8', 'backslashreplace')!r}")
        self._mending.delete_value(STATES, self._key + state, RECORD_KEY.pack(order))

    def _states(self) -> Iterator[tuple[int, bytes]]:
        from heapq import merge

        contents = self._mending._contents

        def of(key: bytes) -> Iterator[tuple[int, bytes]]:
            for value in contents.walk_values(STATES, key):
                yield int.from_bytes(value, "big"), key[4:]

        return merge(*(of(key) for key in contents.keys(STATES) if key[:4] == self._key))

    def _lines_are_sound(self) -> bool:
        """Return whether the lines follow one another inside the mirror, for the entries that stay."""
        end = 0
        for order, number, schema, at, stored in self._entries(quiet=True):
            name = self._mending.name(schema)
            if stored is None or name is None or at < end or order < 0:
                return False
            end = at + len(name.encode("utf-8", "surrogatepass")) + len(str(number)) + 2
        return end <= self._row.size

    def _entries(self, quiet: bool = False) -> Iterator[tuple[int, int, int, int, bytes | None]]:
        """Give order, N, schema, line and the stored value of each entry that stays, or is added (None)."""
        members = self._members(quiet)
        listed = iter(self._listed())
        ahead = next(listed, None)
        for entry in members:
            while ahead is not None and ahead < entry[0]:
                yield ahead, ahead, 0, 0, None
                ahead = next(listed, None)
            yield entry
        while ahead is not None:
            yield ahead, ahead, 0, 0, None
            ahead = next(listed, None)
        for number in self._clashing:
            yield self._mending.fresh(), number, 0, 0, None
        for number in self._mending._known.late if self._ours else ():
            if self._mending.has(number) and not self._holds(number):
                yield self._mending.fresh(), number, 0, 0, None

    def _holds(self, number: int) -> bool:
        return any(number == held for _, held, *_ in self._members(quiet=True))

    def _listed(self) -> list[int]:
        """Return the Ns in the mirror that have records and no entry, sorted."""
        if not self._ours:
            return []
        held = Numbers()
        for order, number, *_ in self._members(quiet=True):
            for each in {order, number}:
                if each not in held:
                    held.add(each)
        late = set(self._mending._known.late)
        return [
            n for n in self._mending._known.listed() if n not in held and n not in late and self._mending.has(n)
        ]

    def _members(self, quiet: bool) -> Iterator[tuple[int, int, int, int, bytes]]:
        mending, seen = self._mending, Numbers()
        for value in mending._contents.walk_values(MEMBERS, self._key):
            if len(value) != MEMBER.size:
                continue
            order, schema, line = MEMBER.unpack(value)
            number: int | None = order
            if schema & LATE_BIT:
                number = mending.late_of(order) or self._number_in_mirror(line)
            told = "its record can't be told" if number is None else "it has no record that can be read"
            if number is not None and mending.has(number) and order < 1 << 63:
                if number not in seen and order == number and number in mending._own:
                    # One session alone can have a record's N for its order; here it becomes late.
                    seen.add(number)
                    if quiet:
                        yield order, number, schema, -1, value
                    else:
                        self._clashing.append(number)
                        mending.delete_value(MEMBERS, self._key, value)
                    continue
                if number not in seen:
                    seen.add(number)
                    if order == number and not quiet:
                        mending._own.add(number)
                    yield order, number, schema & ~LATE_BIT, line, value
                    continue
                told = f"record {number} is in the session twice"
            if not quiet:
                self._tell(f"entry {order}: {told}; taken out of the index")
                mending.delete_value(MEMBERS, self._key, value)

    def _number_in_mirror(self, line: int) -> int | None:
        if not self._ours:
            return None
        text = self._mending._known.line(line, _LONGEST_LINE).partition(b"\n")[0]
        parsed = parse_id(text.decode("utf-8", "replace"))
        return None if parsed is None else parsed[1]


def _schema_of(record: bytes) -> int:
    """Return the schema number that a record names, 0 if it can't be told."""
    try:
        body = msgpack.Unpacker(max_buffer_size=0)
        body.feed(record[4:26])
        body.read_array_header()
        number = body.unpack()
    except (ValueError, msgpack.UnpackException):
        return 0
    return number if type(number) is int and 0 < number < 1 << 31 else 0
