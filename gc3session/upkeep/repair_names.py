"""The repair of what records and index refer to by numbers: schemas, states, and the rows of sessions."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, header_of, unseal, values_of
from ..format.schema import Schema
from ..index.entries import HOLDER_KEY, SESSION_KEY, STATE_KEY, Row, numbers_of
from ..index.index_writer import session_name_key
from ..index.states import pack_state, unpack_state
from ..tables.interface import (
    COUNTS,
    HOLDERS,
    INDEX,
    META,
    METADATA,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    UNIQUE,
    Contents,
    Item,
)
from .changes import Changes
from .check_index import groups
from .record_reader import Read, RecordReader


class Used(NamedTuple):
    """The numbers that are in use.

    Attributes:
        schemas: those that records name.
        sessions: those that records and other tables name.
        damaged: the keys of records whose checksums are wrong.
    """

    schemas: set[int]
    sessions: set[int]
    damaged: set[bytes]


def used_numbers(contents: Contents) -> Used:
    """Return the numbers that the tables use, as far as they can be read."""
    used = Used(set(), set(), set())
    for key, record in contents.walk(RECORDS):
        try:
            unseal(int.from_bytes(key, "big"), record)
            header = header_of(record)
        except CorruptRecord:
            used.damaged.add(key)
            continue
        used.schemas.add(header.schema)
        used.sessions.add(header.home)
    used.sessions.update(
        HOLDER_KEY.unpack(key)[1] for key, _ in contents.walk(HOLDERS) if len(key) == HOLDER_KEY.size
    )
    for table in (COUNTS, INDEX, METADATA, UNIQUE):
        start = SESSION_KEY.pack(1)
        while (found := next(contents.walk(table, start), None)) is not None:
            session = int.from_bytes(found[0][:4], "big")
            used.sessions.add(session)
            start = max(found[0] + b"\0", SESSION_KEY.pack(min(session + 1, 0xFFFFFFFF)))
    used.sessions.discard(0)
    return used


Copies = Callable[[str], Iterable[Item]]
"""Gives items of a table that stand elsewhere in the store, also former ones."""


def restored_records(changes: Changes, used: Used, copies: Copies) -> dict[bytes, bytes]:
    """Put the best copy of each damaged record in its place, if there is one; return these by their keys."""
    best: dict[bytes, tuple[int, bytes]] = {}
    for key, record in copies(RECORDS) if used.damaged else ():
        if key in used.damaged and len(key) == RECORD_KEY.size:
            try:
                schema, revision, _ = values_of(int.from_bytes(key, "big"), record)
            except CorruptRecord:
                continue
            used.schemas.add(schema)
            best[key] = max(best.get(key, (0, b"")), (revision, record))
    for key, (revision, record) in best.items():
        number = int.from_bytes(key, "big")
        changes.save(f"{number}.record", changes.contents.get(RECORDS, key) or b"")
        changes.report(f"record {number}: restored from a copy in the data file, which is its revision {revision}")
        changes.put(RECORDS, key, record)
    return {key: record for key, (_, record) in best.items()}


def repair_schemas(changes: Changes, reader: RecordReader, used: Iterable[int], copies: Copies) -> None:
    """Restore schemas from *copies* that stand elsewhere in the store, and take out those that can't be read."""
    damaged: dict[bytes, CorruptRecord] = {}
    for key, data in changes.contents.walk(SCHEMAS):
        try:
            schema = Schema.from_item(key, data)
            reader.schemas[schema.number] = schema
        except CorruptRecord as error:
            damaged[key] = error
    missing = {number.to_bytes(4, "big") for number in used if 0 < number < 1 << 31} | {*damaged}
    missing -= {number.to_bytes(4, "big") for number in reader.schemas}
    # A schema never changes, so any copy of it that is left in an unused page is right.
    for key, data in copies(SCHEMAS) if missing else ():
        if key in missing:
            try:
                schema = Schema.from_item(key, data)
            except CorruptRecord:
                continue
            missing.discard(key)
            damaged.pop(key, None)
            reader.schemas[schema.number] = schema
            changes.put(SCHEMAS, key, data)
            changes.report(f"schema {schema.number}: restored from a copy in the data file")
    for key, fault in damaged.items():
        changes.take_out(SCHEMAS, key, fault)


class StatesRepair:
    """The repair of the names of states.

    A name that can't be read is taken from the records that the index has in that state.
    """

    def __init__(self, changes: Changes, reader: RecordReader) -> None:
        self._changes = changes
        self._reader = reader
        self._last = 0  # the greatest number

    def run(self) -> None:
        """Restore what can be restored, and take out what can't be read."""
        states, damaged, good = self._reader.states, dict[bytes, CorruptRecord](), {0}
        for key, data in self._changes.contents.walk(STATES):
            number = int.from_bytes(key, "big")
            try:
                if len(key) != STATE_KEY.size or not number:
                    raise CorruptRecord("its key is no number of a state")
                name = unpack_state(number, data)
                if states.setdefault(name, number) != number:
                    raise CorruptRecord(f"it has the name of the state {states[name]}")
                good.add(number)
            except CorruptRecord as error:
                damaged[key] = error
        for _, _, entries in groups(self._changes.contents):
            for entry in entries:
                if entry.kind.state in good or entry.fault:
                    continue
                reads = (self._reader.at(self._changes.contents, n) for n in numbers_of(entry.block, entry.bits))
                read = next((read for read in reads if isinstance(read, Read)), None)
                good.add(entry.kind.state)
                if read is not None and read.state not in states:
                    damaged.pop(STATE_KEY.pack(entry.kind.state), None)
                    self._name(entry.kind.state, read.state)
        for key, fault in damaged.items():
            self._changes.take_out(STATES, key, fault)
        self._last = max(*good, *(int.from_bytes(key, "big") for key in damaged if len(key) == 4), 0)

    def add(self, name: str) -> None:
        """Give a state a number if it has none."""
        if name not in self._reader.states:
            self._last += 1
            self._name(self._last, name)

    def _name(self, number: int, name: str) -> None:
        self._reader.states[name] = number
        self._changes.put(STATES, STATE_KEY.pack(number), pack_state(number, name))
        self._changes.report(f"state {number}: its name is {name!r}, as records say")


class RowsRepair:
    """The repair of the rows of sessions.

    Attributes:
        rows: number of a session -> its identity and its row; after `run` of all sessions.
        new: the numbers of those that are made again.
    """

    def __init__(self, changes: Changes, own: bytes | None) -> None:
        self._changes = changes
        self._own = own
        self.rows: dict[int, tuple[bytes, Row]] = {}
        self.new: set[int] = set()

    def run(self, used: Iterable[int]) -> None:
        """Make rows again that are missing or damaged: those of the session numbers in use, and of identities that are there."""
        contents = self._changes.contents
        prefix = session_name_key(0)[:-4]
        named = {int.from_bytes(key[len(prefix) :], "big"): i for key, i in contents.walk(META, prefix=prefix)}
        waiting: list[bytes] = []
        for key, data in contents.walk(SESSIONS):
            try:
                row = Row.parsed(key, data)
            except CorruptRecord:
                waiting.append(key)
                continue
            if row.number in self.rows and named.get(row.number) != key:
                waiting.append(key)
                continue
            if row.number in self.rows:
                waiting.append(self.rows[row.number][0])
            self.rows[row.number] = key, row
        for key in [key for key in waiting if len(key) != 16]:
            waiting.remove(key)
            self._changes.report(f"session {key.hex()}: its row has no identity; deleted")
            self._changes.delete(SESSIONS, key)
        held = {identity for identity, _ in self.rows.values()}
        for number, identity in named.items():
            if identity in waiting and number not in self.rows:
                waiting.remove(identity)
                self._make(number, identity)
        spare = list[bytes]()
        if self._own is not None and self._own not in {*held, *waiting, *named.values()}:
            spare = [self._own]  # if a single session in use has no row, it is this one
        for number in sorted({*used} - self.rows.keys()):
            identity = named.get(number, b"")
            if len(identity) != 16 or identity in held:
                identity = (spare or waiting or [secrets.token_bytes(16)]).pop(0)
            self._make(number, identity)
        for identity in waiting:
            self._make(max(self.rows, default=0) + 1, identity)
        self._repair_names(named)

    def _make(self, number: int, identity: bytes) -> None:
        self.rows[number] = identity, Row(number, 0, None, None)
        self.new.add(number)
        self._changes.report(f"session {number}: its row is made again, for the session {identity.hex()}")

    def _repair_names(self, named: dict[int, bytes]) -> None:
        """Have the number of each session lead to its identity, and no other number to any."""
        for number in {*named, *self.rows}:
            identity = self.rows[number][0] if number in self.rows else None
            if named.get(number) == identity:
                continue
            self._changes.report(f"meta: what session {number} is, is corrected")
            if identity is None:
                self._changes.delete(META, session_name_key(number))
            else:
                self._changes.put(META, session_name_key(number), identity)
