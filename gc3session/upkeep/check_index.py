"""The check of the index: its tables are compared with one another and with the records."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY
from ..index.entries import LATE_BIT, MEMBER, SESSION_KEY, state_key
from ..system.number_set import Numbers
from ..tables.interface import LATE, LATE_MEMBERS, MEMBERS, RECORDS, STATES, Contents
from .finding import Finding
from .record_reader import RecordReader

_RECORDS_PER_ENTRY: Final = 20  # if a store has more than so many, records are looked up one by one, not all read

AFTER_ALL: Final = 1 << 64
"""An order that comes after all others."""

Lines = Callable[[str | None, int], Iterator[Finding]]
"""Called with each task's ID (None if it isn't known) and the byte where its line in the mirror begins."""


class _Entry(NamedTuple):
    order: int
    number: int | None  # None if a late entry leads to no record
    schema: int
    line: int
    late: bool

    @property
    def key(self) -> bytes | None:
        """The key of its record."""
        return None if self.number is None else RECORD_KEY.pack(self.number)


class IndexCheck:
    """The check of the index of a store.

    Args:
        contents: the tables.
        reader: reads the records.
        present: the Ns that have records.
        next_number: the number after the greatest that was handed out; None if it can't be read.

    Attributes:
        entries: how many entries the session has that was checked last.
    """

    def __init__(
        self, contents: Contents, reader: RecordReader, present: Numbers, next_number: int | None
    ) -> None:
        self._contents = contents
        self._reader = reader
        self._present = present
        self._next = next_number
        self._own = Numbers()  # Ns that are the order of an entry
        self._late: defaultdict[int, Numbers] = defaultdict(Numbers)  # session -> orders of late entries
        # Ns that lead to a late entry
        self._back = Numbers(int.from_bytes(key[:8], "big") for key, _ in contents.walk(LATE_MEMBERS))
        self.entries = 0

    def check(self, session: int, line: Lines) -> Iterator[Finding]:
        """Give what is wrong with the entries of a session; `entries` then says how many it has."""
        self.entries = 0
        schemas = self._reader.schemas
        states = StatesWalk(self._contents, session)
        for entry, record in self._with_records(session):
            self.entries += 1
            name = schemas[entry.schema].name if entry.schema in schemas else "Unreadable"
            where = f"{name}.{entry.number}" if entry.number is not None else f"entry {entry.order}"
            yield from _without_entry(states, entry.order)
            held = [key for _, key in states.until(entry.order + 1)]
            yield from self._check_entry(session, entry, where)
            yield from self._check_state(session, entry, where, record, held)
            known = entry.number is not None and entry.schema in schemas
            yield from line(where if known else None, entry.line)
        yield from _without_entry(states, AFTER_ALL)

    def _members(self, session: int) -> Iterator[_Entry]:
        for value in self._contents.walk_values(MEMBERS, SESSION_KEY.pack(session)):
            if len(value) != MEMBER.size:
                continue  # the check of the structure finds that
            order, schema, line = MEMBER.unpack(value)
            if schema < LATE_BIT:
                yield _Entry(order, order, schema, line, late=False)
            else:
                found = self._contents.get(LATE, value[:8])
                number = int.from_bytes(found, "big") if found is not None and len(found) == 8 else None
                yield _Entry(order, number, schema & ~LATE_BIT, line, late=True)

    def _with_records(self, session: int) -> Iterator[tuple[_Entry, bytes | None]]:
        """Give the entries of a session with their records, None if there is none."""
        get, count = self._contents.get, sum(1 for _ in self._members(session))
        one_by_one = count * _RECORDS_PER_ENTRY < self._contents.entries(RECORDS)
        records = self._contents.walk(RECORDS)
        found, record = b"", b""
        for entry in self._members(session):
            key = entry.key
            if one_by_one or entry.late or key is None:
                yield entry, None if key is None else get(RECORDS, key)
                continue
            while found < key:
                found, record = next(records, (b"\xff" * 9, b""))
            yield entry, record if found == key else None

    def _check_entry(self, session: int, entry: _Entry, where: str) -> Iterator[Finding]:
        if self._next is not None and entry.order >= self._next:
            yield Finding(
                "sequence", where, f"its place {entry.order} has not been handed out: 'next N' is {self._next}"
            )
        if entry.schema not in self._reader.schemas:
            yield Finding("index", where, f"its entry names the schema {entry.schema}, which can't be read")
        if entry.number is None or entry.key is None:
            yield Finding("late", where, "its entry leads to no record")
            return
        if entry.number not in self._present:
            yield Finding("index", where, "its entry has no record")
        back = None
        if entry.number in self._back:
            back = self._contents.get(LATE_MEMBERS, entry.key + SESSION_KEY.pack(session))
        if entry.late:
            self._late[session].add(entry.order)
            if back is None or int.from_bytes(back, "big") != entry.order:
                yield Finding("late", where, f"nothing leads from it to its place {entry.order}")
        elif back is not None:
            yield Finding("late", where, "the session has two entries for it")
        elif entry.order in self._own:
            yield Finding(
                "index", where, "two sessions have it at its own N, though only one can have added it first"
            )
        else:
            self._own.add(entry.order)

    def _check_state(
        self, session: int, entry: _Entry, where: str, record: bytes | None, held: list[bytes]
    ) -> Iterator[Finding]:
        for extra in held[1:]:
            yield Finding("state", where, f"it is in two states, {shown_state(held[0])} and {shown_state(extra)}")
        if not held:
            yield Finding("state", where, "it is in no state")
        if record is None or entry.number is None:
            return
        try:
            schema, state = self._reader.state(entry.number, record)
        except CorruptRecord:
            return  # the check of the records finds that
        expected = state_key(session, state)
        if len(held) == 1 and held[0] != expected:
            yield Finding(
                "state",
                where,
                f"it is in the state {shown_state(held[0])}, but its record says {shown_state(expected)}",
            )
        named = self._reader.schemas.get(entry.schema)
        if named is not None and named.name != schema.name:
            yield Finding("index", where, f"its record's ID begins with {schema.name!r}")

    def check_late(self) -> Iterator[Finding]:
        """Give the entries of the late tables that no session has; to be called after all sessions have been checked."""
        for key, value in self._contents.walk(LATE):
            order = int.from_bytes(key, "big")
            if not any(order in orders for orders in self._late.values()):
                yield Finding(
                    "late",
                    f"entry {order}",
                    f"it leads to record {int.from_bytes(value, 'big')}, but no session has this entry",
                )
        for key, value in self._contents.walk(LATE_MEMBERS):
            session, order = int.from_bytes(key[8:], "big"), int.from_bytes(value, "big")
            if self._contents.get(LATE, value) != key[:8] or order not in self._late.get(session, ()):
                yield Finding(
                    "late",
                    f"record {int.from_bytes(key[:8], 'big')}",
                    f"it leads to entry {order} of session number {session}, but there is none",
                )


class StatesWalk:
    """A walk through all that a session has in its states, by order."""

    def __init__(self, contents: Contents, session: int) -> None:
        def orders(key: bytes) -> Iterator[tuple[int, bytes]]:
            for value in contents.walk_values(STATES, key):
                yield int.from_bytes(value, "big"), key

        prefix = SESSION_KEY.pack(session)
        self._all = heapq.merge(*(orders(key) for key in contents.keys(STATES) if key[:4] == prefix))
        self._next = next(self._all, None)

    def until(self, end: int) -> Iterator[tuple[int, bytes]]:
        """Give order and key of the state of what comes next, up to the order before *end*."""
        while (found := self._next) is not None and found[0] < end:
            self._next = next(self._all, None)
            yield found


def _without_entry(states: StatesWalk, end: int) -> Iterator[Finding]:
    for order, key in states.until(end):
        yield Finding("state", f"entry {order}", f"it is in the state {shown_state(key)}, but not in the session")


def shown_state(key: bytes) -> str:
    """Return the name of the state in a key."""
    return repr(key[4:].decode("utf-8", "backslashreplace"))
