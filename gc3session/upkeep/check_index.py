"""The check of the index: it is read as FORMAT.md describes it, and compared with the records."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from ..format.validation import Fault, Finding, ParsedSchema, parse_record, state_in, unframe
from ..system.number_set import Numbers
from ..tables.interface import LATE, LATE_MEMBERS, MEMBERS, RECORDS, STATES, Contents

_MEMBER: Final = Struct(">QIQ")
_LATE_BIT: Final = 1 << 31
_LONGEST_STATE = 400  # bytes of a state's name in a key
_STATE_PREFIX = 368  # bytes that are left of a longer name, before its SHA-256
_RECORDS_PER_ENTRY = 20  # if a store has more than so many, records are looked up one by one, not all read

Lines = Callable[[str | None, int], Iterator[Finding]]
"""Called with each task's ID (None if it isn't known) and the byte where its line in the mirror begins."""


class SessionRow(NamedTuple):
    """The row of a session in the table `sessions`; *size* and *blank* are bytes of its mirror."""

    identity: bytes
    number: int
    size: int
    blank: int
    mark: list[object] | None


def parse_row(key: bytes, data: bytes) -> SessionRow:
    """Return the row in an item of the table `sessions`. Raise Fault if there is none."""
    if len(key) != 16:
        raise Fault("its key is no identity of 16 bytes")
    body = unframe(0, data)
    if not (
        isinstance(body, list) and len(body) == 4 and all(type(part) is int and part >= 0 for part in body[:3])
    ):
        raise Fault("it doesn't have the parts of a session's row")
    number, size, blank, mark = body
    if not 0 < number < 1 << 32 or blank > size:
        raise Fault("its number or its sizes can't be right")
    if mark is not None:
        kinds = [type(part) for part in mark] if isinstance(mark, list) else []
        if kinds != [int, str, int, int]:
            raise Fault("its mark can't be one")
    return SessionRow(key, number, size, blank, mark)


class _Entry(NamedTuple):
    order: int
    number: int | None  # None if a late entry leads to no record
    schema: int
    line: int
    late: bool


class IndexCheck:
    """The check of the index of a store.

    Args:
        contents: the tables.
        schemas: those that could be read.
        present: the Ns that have records.
        next_number: the number after the greatest that was handed out; None if it can't be read.

    Attributes:
        entries: how many entries the session has that was checked last.
    """

    def __init__(
        self, contents: Contents, schemas: dict[int, ParsedSchema], present: Numbers, next_number: int | None
    ) -> None:
        self._contents = contents
        self._schemas = schemas
        self._present = present
        self._next = next_number
        self._own = Numbers()  # Ns that are the order of an entry
        self._late: dict[int, Numbers] = {}  # session -> orders of late entries
        self._back = Numbers()  # Ns that lead to a late entry
        for key, _ in contents.walk(LATE_MEMBERS):
            number = int.from_bytes(key[:8], "big")
            if number not in self._back:
                self._back.add(number)
        self.entries = 0

    def check(self, session: int, line: Lines) -> Iterator[Finding]:
        """Give what is wrong with the entries of a session; `entries` then says how many it has."""
        self.entries = 0
        self._late[session] = Numbers()
        states = orders_and_states(self._contents, session)
        state = next(states, None)
        for entry, record in self._with_records(session):
            self.entries += 1
            name = self._schemas[entry.schema].name if entry.schema in self._schemas else "Unreadable"
            where = f"{name}.{entry.number}" if entry.number is not None else f"entry {entry.order}"
            while state is not None and state[0] < entry.order:
                yield _without_entry(*state)
                state = next(states, None)
            held: list[bytes] = []
            while state is not None and state[0] == entry.order:
                held.append(state[1])
                state = next(states, None)
            yield from self._check_entry(session, entry, where)
            yield from self._check_state(entry, where, record, held)
            known = entry.number is not None and entry.schema in self._schemas
            yield from line(where if known else None, entry.line)
        while state is not None:
            yield _without_entry(*state)
            state = next(states, None)

    def _members(self, session: int) -> Iterator[_Entry]:
        for value in self._contents.walk_values(MEMBERS, session.to_bytes(4, "big")):
            if len(value) != _MEMBER.size:
                continue  # the check of the structure finds that
            order, schema, line = _MEMBER.unpack(value)
            late = bool(schema & _LATE_BIT)
            number: int | None = order
            if late:
                found = self._contents.get(LATE, value[:8])
                number = int.from_bytes(found, "big") if found is not None else None
            yield _Entry(order, number, schema & ~_LATE_BIT, line, late)

    def _with_records(self, session: int) -> Iterator[tuple[_Entry, bytes | None]]:
        """Give the entries of a session with their records, None if there is none."""
        get, count = self._contents.get, sum(1 for _ in self._members(session))
        if count * _RECORDS_PER_ENTRY < self._contents.entries(RECORDS):
            for entry in self._members(session):
                yield entry, None if entry.number is None else get(RECORDS, entry.number.to_bytes(8, "big"))
            return
        records = self._contents.walk(RECORDS)
        key, record = next(records, (b"\xff" * 9, b""))
        for entry in self._members(session):
            if entry.late:
                yield entry, None if entry.number is None else get(RECORDS, entry.number.to_bytes(8, "big"))
                continue
            wanted = entry.order.to_bytes(8, "big")
            while key < wanted:
                key, record = next(records, (b"\xff" * 9, b""))
            yield entry, record if key == wanted else None

    def _check_entry(self, session: int, entry: _Entry, where: str) -> Iterator[Finding]:
        if self._next is not None and entry.order >= self._next:
            yield Finding(
                "sequence", where, f"its place {entry.order} has not been handed out: 'next N' is {self._next}"
            )
        if entry.schema not in self._schemas:
            yield Finding("index", where, f"its entry names the schema {entry.schema}, which can't be read")
        if entry.number is None:
            yield Finding("late", where, "its entry leads to no record")
            return
        if entry.number not in self._present:
            yield Finding("index", where, "its entry has no record")
        back = None
        if entry.number in self._back:
            back = self._contents.get(LATE_MEMBERS, entry.number.to_bytes(8, "big") + session.to_bytes(4, "big"))
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
        self, entry: _Entry, where: str, record: bytes | None, held: list[bytes]
    ) -> Iterator[Finding]:
        for extra in held[1:]:
            yield Finding("state", where, f"it is in two states, {_shown(held[0])} and {_shown(extra)}")
        if not held:
            yield Finding("state", where, "it is in no state")
        if record is None or entry.number is None:
            return
        try:
            found = parse_record(entry.number, record)
            schema = self._schemas[found.schema]
            state = state_in(found, schema)
        except (Fault, KeyError):
            return  # the check of the records finds that
        expected = state_name(state)
        if len(held) == 1 and held[0] != expected:
            yield Finding(
                "state", where, f"it is in the state {_shown(held[0])}, but its record says {_shown(expected)}"
            )
        named = self._schemas.get(entry.schema)
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
            number, session, order = (
                int.from_bytes(key[:8], "big"),
                int.from_bytes(key[8:], "big"),
                int.from_bytes(value, "big"),
            )
            leads = self._contents.get(LATE, value)
            if leads is None or leads != key[:8] or order not in self._late.get(session, ()):
                yield Finding(
                    "late",
                    f"record {number}",
                    f"it leads to entry {order} of session number {session}, but there is none",
                )


def orders_and_states(contents: Contents, session: int) -> Iterator[tuple[int, bytes]]:
    """Give order and state of all that the session has in its states, sorted by order."""

    def orders(key: bytes) -> Iterator[tuple[int, bytes]]:
        for value in contents.walk_values(STATES, key):
            yield int.from_bytes(value, "big"), key[4:]

    prefix = session.to_bytes(4, "big")
    return heapq.merge(*(orders(key) for key in contents.keys(STATES) if key[:4] == prefix))


def state_name(state: str) -> bytes:
    """Return the name that a state has in the keys of the table `states`."""
    name = state.encode("utf-8", "surrogatepass")
    if len(name) <= _LONGEST_STATE:
        return name
    return name[:_STATE_PREFIX] + hashlib.sha256(name).digest()


def _without_entry(order: int, state: bytes) -> Finding:
    return Finding("state", f"entry {order}", f"it is in the state {_shown(state)}, but not in the session")


def _shown(state: bytes) -> str:
    return repr(state.decode("utf-8", "backslashreplace"))
