"""The repair of a store's index: its entries are made what the records and the members say."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from ..format.frame import RECORD_KEY
from ..index.entries import LATE_BIT, MEMBER, SESSION_KEY, Row, state_key
from ..records.ids import parse_id
from ..system.number_set import Numbers
from ..tables.interface import LATE, LATE_MEMBERS, MEMBERS, STATES
from .check_index import AFTER_ALL, StatesWalk, shown_state
from .repair_records import Changes, Known, RecordsRepair

_LONGEST_LINE: Final = 4096  # bytes of a line of the mirror


class _Entry(NamedTuple):
    """An entry as it is to be.

    Attributes:
        order, number: its order and its N.
        schema: the number of its schema, 0 if it is to be added.
        line: where its line begins in the mirror; -1 if that can't stay.
        stored: its value in the table of members; None if it is to be added.
    """

    order: int
    number: int
    schema: int
    line: int
    stored: bytes | None

    @classmethod
    def added(cls, order: int, number: int) -> _Entry:
        """Return an entry that is to be added."""
        return cls(order, number, 0, 0, None)


class IndexRepair:
    """The repair of the index of all sessions of a store.

    Args:
        changes: where the repair is written.
        records: the records that can be read.
        known: what is known beside the tables.
    """

    def __init__(self, changes: Changes, records: RecordsRepair, known: Known) -> None:
        self.changes = changes
        self.records = records
        self.known = known
        self.own = Numbers()  # Ns that are the order of an entry
        self.late: set[tuple[int, int, int]] = set()  # order, N, session of late entries

    def repair_session(self, identity: bytes, row: Row, *, is_new: bool) -> None:
        """Repair members, states and row of a session; *is_new* if its row must be written anyway."""
        _SessionRepair(self, identity, row, is_new).run()

    def repair_late(self) -> None:
        """Make the late tables what the entries say, once all sessions have been repaired."""
        late = {RECORD_KEY.pack(order): RECORD_KEY.pack(number) for order, number, _ in self.late}
        back = {
            RECORD_KEY.pack(number) + SESSION_KEY.pack(session): RECORD_KEY.pack(order)
            for order, number, session in self.late
        }
        for table, expected in ((LATE, late), (LATE_MEMBERS, back)):
            for key, value in self.changes.contents.walk(table):
                if expected.get(key) == value:
                    del expected[key]
                elif key not in expected:
                    self.changes.report(f"{table} {key.hex()}: deleted, as no session has an entry for it")
                    self.changes.delete(table, key)
            for key, value in expected.items():
                self.changes.report(f"{table} {key.hex()}: corrected")
                self.changes.put(table, key, value)


class _SessionRepair:
    """The repair of one session's part of the index."""

    def __init__(self, index: IndexRepair, identity: bytes, row: Row, changed: bool) -> None:
        self._index = index
        self._changes = index.changes
        self._contents = index.changes.contents
        self._records = index.records
        self._identity = identity
        self._row = row
        self._key = SESSION_KEY.pack(row.number)
        self._is_known = identity == index.known.identity  # whether the mirror here is its mirror
        self._changed = changed
        self._clashing: list[int] = []  # Ns that get a new order, because another session has them at their own

    def run(self) -> None:
        records, changes = self._records, self._changes
        tidy = not self._lines_are_sound()
        states = StatesWalk(self._contents, self._row.number)
        line = used = end = 0
        for order, number, schema, at, stored in self._entries():
            own_schema, named_state = records.schema_and_state(number)
            name, expected = own_schema.name, state_key(self._row.number, named_state)
            if records.name(schema) != name:
                schema = own_schema.number
            size = len(name.encode("utf-8", "surrogatepass")) + len(str(number)) + 2
            at = line if tidy else at
            value = MEMBER.pack(order, schema | (0 if order == number else LATE_BIT), at)
            if value != stored:
                if stored is None:
                    self._report(f"{name}.{number}: added to the index")
                else:
                    changes.delete_value(MEMBERS, self._key, stored)
                    if not tidy:
                        self._report(f"{name}.{number}: its entry is corrected")
                changes.add_value(MEMBERS, self._key, value)
            if order != number:
                self._index.late.add((order, number, self._row.number))
            records.greatest = max(records.greatest, order)
            line, end, used = line + size, at + size, used + size
            held = False
            for place, key in states.until(order + 1):
                if (place, key) == (order, expected):
                    held = True
                else:
                    self._delete_state(place, key)
            if not held:
                self._report(f"{name}.{number}: put into its state")
                changes.add_value(STATES, expected, RECORD_KEY.pack(order))
        for place, key in states.until(AFTER_ALL):
            self._delete_state(place, key)
        self._write_row(line if tidy else max(end, self._row.size), used)
        if tidy and used:
            self._report(f"session {self._identity.hex()}: its lines get new places in the mirror")

    def _write_row(self, size: int, used: int) -> None:
        row, writer = self._row, self._changes.writer
        if (row.size, row.blank) != (size, size - used):
            self._report(f"session {self._identity.hex()}: its row is corrected")
        if (self._changed or self._is_known) and writer is not None:
            # Without a mark, so that the next opening rewrites its mirror.
            Row(row.number, size, size - used, None).write(writer, self._identity)

    def _report(self, what: str) -> None:
        self._changed = True
        self._changes.report(what)

    def _delete_state(self, order: int, key: bytes) -> None:
        self._changes.report(f"entry {order}: taken out of the state {shown_state(key)}")
        self._changes.delete_value(STATES, key, RECORD_KEY.pack(order))

    def _lines_are_sound(self) -> bool:
        """Return whether the lines of the entries that stay follow one another inside the mirror."""
        end = 0
        for entry in self._entries(quiet=True):
            name = self._records.name(entry.schema)
            if entry.stored is None or name is None or entry.line < end or entry.order < 0:
                return False
            end = entry.line + len(name.encode("utf-8", "surrogatepass")) + len(str(entry.number)) + 2
        return end <= self._row.size

    # -- the entries; *quiet* only looks at them

    def _entries(self, quiet: bool = False) -> Iterator[_Entry]:
        """Give the entries that stay or are added, sorted by their orders."""
        listed = (_Entry.added(number, number) for number in self._listed())
        yield from heapq.merge(listed, self._members(quiet), key=attrgetter("order"))
        for number in self._clashing:
            yield _Entry.added(self._records.new_number(), number)
        for number in self._index.known.late if self._is_known else ():
            if self._records.has(number) and not self._holds(number):
                yield _Entry.added(self._records.new_number(), number)

    def _holds(self, number: int) -> bool:
        return any(number == entry.number for entry in self._members(quiet=True))

    def _listed(self) -> list[int]:
        """Return the Ns in the mirror that have records but no entry, sorted."""
        if not self._is_known:
            return []
        held = Numbers(n for entry in self._members(quiet=True) for n in (entry.order, entry.number))
        late = set(self._index.known.late)
        return [n for n in self._index.known.listed if n not in held and n not in late and self._records.has(n)]

    def _members(self, quiet: bool) -> Iterator[_Entry]:
        """Give the members that stay, sorted by their orders; the others are taken out of the index."""
        own, seen = self._index.own, Numbers()
        for value in self._contents.walk_values(MEMBERS, self._key):
            if len(value) != MEMBER.size:
                continue
            order, schema, line = MEMBER.unpack(value)
            number = self._late_number(order, line) if schema & LATE_BIT else order
            why = "which record it has isn't known" if number is None else "it has no record that can be read"
            if number is not None and self._records.has(number) and order < 1 << 63:
                if number not in seen and order == number and number in own:
                    # Only one session can have a record at its own N; in this one it becomes late.
                    seen.add(number)
                    if quiet:
                        yield _Entry(order, number, schema, -1, value)
                    else:
                        self._clashing.append(number)
                        self._changes.delete_value(MEMBERS, self._key, value)
                    continue
                if number not in seen:
                    seen.add(number)
                    if order == number and not quiet:
                        own.add(number)
                    yield _Entry(order, number, schema & ~LATE_BIT, line, value)
                    continue
                why = f"record {number} is in the session twice"
            if not quiet:
                self._report(f"entry {order}: {why}; taken out of the index")
                self._changes.delete_value(MEMBERS, self._key, value)

    def _late_number(self, order: int, line: int) -> int | None:
        """Return the N of a late entry, from the late table or else from the mirror; None if neither has it."""
        found = self._contents.get(LATE, RECORD_KEY.pack(order))
        if found is not None and len(found) == 8 and any(found):
            return int.from_bytes(found, "big")
        if not self._is_known:
            return None
        text = self._index.known.line(line, _LONGEST_LINE).partition(b"\n")[0]
        parsed = parse_id(text.decode("utf-8", "replace"))
        return None if parsed is None else parsed[1]
