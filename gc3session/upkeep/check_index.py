"""The check of the index: it is compared with its counts, and with what the records and `holders` say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import groupby
from operator import or_
from types import NoneType
from typing import Final, NamedTuple

import msgpack

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, unseal, with_home
from ..index.entries import (
    BLOCK,
    BLOCK_KEY,
    COUNT,
    COUNT_KEY,
    HOLDER_KEY,
    INDEX_KEY,
    SESSION_KEY,
    STATE_KEY,
    Kind,
    numbers_of,
    pack_members,
    unpack_members,
)
from ..index.states import pack_state
from ..tables.interface import (
    COUNTS,
    HOLDERS,
    INDEX,
    LEASES,
    METADATA,
    RECORDS,
    STATES,
    UNIQUE,
    Contents,
    Item,
)
from .finding import Change, Finding
from .record_reader import Block, Read, RecordReader, read_blocks

_LAST_BLOCK: Final = ((1 << 63) - 1) // BLOCK  # of the greatest N


class Entry(NamedTuple):
    """An entry of the index.

    Attributes:
        block: the number of its block.
        kind: what its members have in common.
        bits: these; 0 if they can't be read.
        fault: why they can't be read; '' if they can.
    """

    block: int
    kind: Kind
    bits: int
    fault: str


def entry_of(key: bytes, value: bytes) -> Entry:
    """Return the entry in an item of the index."""
    _, block, *kind = INDEX_KEY.unpack(key.ljust(INDEX_KEY.size, b"\0")[: INDEX_KEY.size])
    fault = "" if len(key) == INDEX_KEY.size and block <= _LAST_BLOCK else "its key can't be that of an entry"
    try:
        return Entry(block, Kind(*kind), 0 if fault else unpack_members(key, value), fault)
    except CorruptRecord as error:
        return Entry(block, Kind(*kind), 0, str(error))


def all_of(bits: Iterable[int]) -> int:
    """Return the bits that are set in any."""
    return reduce(or_, bits, 0)


class BySession:
    """The items of a table whose keys begin with the number of a session, session by session."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    @property
    def session(self) -> int | None:
        """The session of the next item; None if there is none."""
        return None if self._next is None else int.from_bytes(self._next[0][:4], "big")

    def take(self, session: int) -> Iterator[Item]:
        """Give the items of that session, which is the next one."""
        while self._next is not None and self.session == session:
            yield self._next
            self._next = next(self._items, None)


class Held(NamedTuple):
    """What the index has of a session.

    Attributes:
        number: of the session.
        total: how many members it has.
        whole: whether all entries can be read.
    """

    number: int
    total: int
    whole: bool


class IndexCheck:
    """The check of the index of a store.

    Args:
        contents: the tables.
        reader: reads the records.
        row_again: called with the number of a session; returns what makes its row again, nothing if it has one.
        stale: called with the number of a session; returns what says that its mirror is to be written anew.
    """

    def __init__(
        self,
        contents: Contents,
        reader: RecordReader,
        row_again: Callable[[int], tuple[Change, ...]],
        stale: Callable[[int], Change],
    ) -> None:
        self._contents = contents
        self._reader = reader
        self._row_again = row_again
        self._stale = stale
        self._homes: dict[int, int] = {}  # N -> the home that a repair gives it
        self._states = {number: name for name, number in reader.states.items()}
        self._compared: set[bytes] = set()  # session and number of the blocks that have been compared with records

    # -- session by session

    def sessions(self, numbers: Iterable[int], noted: Callable[[int, Entry], None]) -> Iterator[Finding | Held]:
        """Give what is wrong with the parts of each session, and then what the index has of it.

        Args:
            numbers: those of the sessions that have rows.
            noted: called with session and entry, of each entry.
        """
        tables = {name: BySession(self._contents.walk(name)) for name in (INDEX, COUNTS, UNIQUE, METADATA)}
        rows = BySession((SESSION_KEY.pack(number), b"") for number in sorted(numbers))
        while ahead := [part.session for part in (rows, *tables.values()) if part.session is not None]:
            session = min(ahead)
            list(rows.take(session))
            if not session:
                for name, table in tables.items():
                    for key, _ in table.take(0):
                        yield Finding("index", f"{name} {key.hex()}", "it can't be right", (Change(name, key),))
                continue
            members: dict[int, int] = {}  # the number of a block -> the bits of its members
            counts: Counter[Kind] = Counter()
            whole = True
            for key, value in tables[INDEX].take(session):
                entry = entry_of(key, value)
                noted(session, entry)
                if entry.fault:
                    where = f"session {session}, block {entry.block}"
                    yield Finding("index", where, f"an entry is damaged: {entry.fault}", (Change(INDEX, key),))
                for number in numbers_of(entry.block, entry.bits & members.get(entry.block, 0)):
                    yield Finding("index", self._id(entry.kind, number), f"session {session} has it twice")
                self._reader.last_state = max(self._reader.last_state, entry.kind.state & 0x7FFFFFFF)
                members[entry.block] = members.get(entry.block, 0) | entry.bits
                counts[entry.kind] += entry.bits.bit_count()
                whole = whole and not entry.fault
            yield from self._check_counts(session, tables[COUNTS].take(session), counts if whole else None)
            yield from self._check_unique(session, tables[UNIQUE].take(session), members if whole else None)
            yield from self._check_metadata(session, tables[METADATA].take(session))
            yield Held(session, counts.total(), whole)

    def _check_counts(
        self, session: int, items: Iterable[Item], counts: Counter[Kind] | None
    ) -> Iterator[Finding]:
        stored: dict[Kind, int] = {}
        for key, value in items:
            if len(key) != COUNT_KEY.size or len(value) != COUNT.size:
                where = f"count {key.hex()} of session {session}"
                yield Finding("index", where, "it isn't a count", (Change(COUNTS, key),))
            else:
                stored[Kind(*COUNT_KEY.unpack(key)[1:])] = COUNT.unpack(value)[0]
        if counts is None:  # of entries that can't be read
            return
        for kind in sorted({*stored, *counts}):
            if stored.get(kind) != counts.get(kind):
                key = COUNT_KEY.pack(session, *kind)
                yield Finding(
                    "index",
                    f"session {session}, schema {kind.schema}, state {self._shown(kind)}",
                    f"it has {counts.get(kind, 0)} tasks, but {stored.get(kind, 'none')} are counted",
                    (Change(COUNTS, key, COUNT.pack(counts[kind]) if kind in counts else None),),
                )

    def _check_unique(
        self, session: int, items: Iterable[Item], members: dict[int, int] | None
    ) -> Iterator[Finding]:
        for key, value in items:
            block, place = divmod(int.from_bytes(value, "big"), BLOCK)
            if len(value) != RECORD_KEY.size or (members is not None and not members.get(block, 0) >> place & 1):
                where = f"key {key[4:]!r} of session {session}"
                yield Finding("unique", where, "it leads to no record of the session", (Change(UNIQUE, key),))

    def _check_metadata(self, session: int, items: Iterable[Item]) -> Iterator[Finding]:
        for key, value in items:
            try:
                self._reader.unpack(unseal(0, value))
            except CorruptRecord as error:
                where = f"{key[4:]!r} of session {session}"
                yield Finding("metadata", where, f"it can't be read: {error}", (Change(METADATA, key, kept=True),))

    # -- block by block

    def blocks(self, records: Iterable[Item]) -> Iterator[Finding | Block]:
        """Compare each block with the index; give what is wrong, and the block.  *records* are those of the store."""
        for block in read_blocks(self._contents, records, self._reader):
            for session, kinds in block.members(self._reader).items():
                changes = self._row_again(session)
                if changes:
                    yield Finding("session", f"session {session}", "it has tasks, but no row", changes)
                prefix = BLOCK_KEY.pack(session, block.number)
                self._compared.add(prefix)
                items = dict(self._contents.walk(INDEX, prefix=prefix))
                yield from self._compare(session, block, kinds, items)
            yield from self._check_holders(block)
            yield block
        yield from self._check_others()

    def _check_others(self) -> Iterator[Finding]:
        """Compare what the index has for blocks of which no record says that the session has it."""
        for prefix, group in groupby(self._contents.walk(INDEX), key=lambda item: item[0][: BLOCK_KEY.size]):
            if prefix in self._compared or prefix.startswith(bytes(4)):
                continue  # there is no session 0: that is the finding
            items = dict(group)
            session, number = int.from_bytes(prefix[:4], "big"), int.from_bytes(prefix[4:], "big")
            members = numbers_of(number, all_of(entry_of(*item).bits for item in items.items()))
            reads = {n: self._reader.at(self._contents, n) for n in members}
            block = Block(number, {n: read for n, read in reads.items() if read is not None}, [], [], [])
            yield from self._compare(session, block, {}, items)

    def _compare(
        self, session: int, block: Block, kinds: dict[Kind, int], items: dict[bytes, bytes]
    ) -> Iterator[Finding]:
        """Compare the entries that a session has for a block with the kinds that it should have."""
        entries = [entry_of(*item) for item in items.items()]
        if any(entry.fault for entry in entries):
            return  # it isn't known what is missing
        should, there = all_of(kinds.values()), all_of(entry.bits for entry in entries)
        faults = [
            fault
            for entry in entries
            for fault in self._faults(session, block, entry, kinds.get(entry.kind, 0), should)
        ]
        lacking = f"session {session} has it, but its index lacks it"
        faults += (("index", self._name(block, n), lacking) for n in numbers_of(block.number, should & ~there))
        changes = self._made_right(session, block, should, entries, items) if faults else ()
        for fault in faults:
            yield Finding(*fault, changes)
            changes = ()

    def _faults(
        self, session: int, block: Block, entry: Entry, right: int, should: int
    ) -> Iterator[tuple[str, str, str]]:
        """Give what is wrong with an entry: *right* are its members that it should have, *should* all of the session."""
        kind = entry.kind
        for name, number, known in (
            ("schema", kind.schema, self._reader.schemas),
            ("state", kind.state, self._states),
        ):
            if number not in known:
                where = f"session {session}, block {block.number}"
                yield "index", where, f"an entry names the {name} {number}, which can't be read"
                return
        for number in numbers_of(block.number, entry.bits & ~right):
            read = block.records.get(number)
            where = self._id(kind, number)
            if read is None:
                yield "index", where, f"session {session} has it, but there is no such record"
            elif not isinstance(read, Read):
                continue  # that is the finding
            elif not should >> number % BLOCK & 1:
                yield "index", where, f"the index of session {session} has it, but its record doesn't say so"
            elif read.schema.number != kind.schema:
                yield "index", where, f"its entry names the schema {kind.schema}, its record {read.schema.number}"
            else:
                yield "state", where, f"it is in the state {self._shown(kind)}, but its record says {read.state!r}"

    def _made_right(
        self, session: int, block: Block, should: int, entries: list[Entry], items: dict[bytes, bytes]
    ) -> tuple[Change, ...]:
        """Return what makes entries right: whatever record the session should have, or its index has, it has then."""
        changes = [self._stale(session)]
        kinds: dict[Kind, int] = {}
        for number in numbers_of(block.number, should | all_of(entry.bits for entry in entries)):
            read, bit = block.records.get(number), 1 << number % BLOCK
            if not isinstance(read, Read):
                continue
            if not should & bit:
                changes.append(self._adoption(session, number, read.home))
            if read.state not in self._reader.states:
                changes.append(self._new_state(read.state, [e.kind.state for e in entries if e.bits & bit]))
            kind = self._reader.kind(read)
            kinds[kind] = kinds.get(kind, 0) | bit
        wanted = {INDEX_KEY.pack(session, block.number, *kind): bits for kind, bits in kinds.items()}
        changes += (Change(INDEX, key) for key in items if key not in wanted)
        changes += (Change(INDEX, key, pack_members(key, bits)) for key, bits in wanted.items())
        return tuple(changes)

    def _adoption(self, session: int, number: int, home: int) -> Change:
        """Return what has a record, or `holders`, say that a session has it."""
        if home or number in self._homes:
            return Change(HOLDERS, HOLDER_KEY.pack(number, session), b"")
        self._homes[number] = session
        key = RECORD_KEY.pack(number)
        return Change(RECORDS, key, with_home(number, self._contents.get(RECORDS, key) or b"", session))

    def _new_state(self, name: str, numbers: list[int]) -> Change:
        """Give a state a number: that of an entry whose state can't be read, or a new one."""
        number = next((number for number in numbers if number not in self._states), 0)
        if not number:
            number = self._reader.last_state = self._reader.last_state + 1
        self._states[number] = name
        self._reader.states[name] = number
        return Change(STATES, STATE_KEY.pack(number), pack_state(number, name))

    def _check_holders(self, block: Block) -> Iterator[Finding]:
        for table, key in block.strange:
            kind, change = ("record" if table == RECORDS else "index"), Change(table, key, kept=table == RECORDS)
            yield Finding(kind, f"{table} {key.hex()}", "it can't be right", (change,))
        for number, session in block.others:
            read, changes = block.records.get(number), (Change(HOLDERS, HOLDER_KEY.pack(number, session)),)
            if read is None:
                message = f"session {session} has it, but there is no such record"
                yield Finding("index", f"record {number}", message, changes)
            elif isinstance(read, Read) and read.home == session:
                message = f"session {session}, its home, has it twice"
                yield Finding("index", self._name(block, number), message, changes)
        for key, value in block.leases:
            number, session = HOLDER_KEY.unpack(key)
            try:
                check_lease(number, value)
                fault = "" if number in block.records else "there is no such record"
            except CorruptRecord as error:
                fault = str(error)
            if fault:
                message = f"its lease in session {session}: {fault}"
                yield Finding("lease", f"record {number}", message, (Change(LEASES, key),))

    # -- names

    @staticmethod
    def _name(block: Block, number: int) -> str:
        read = block.records.get(number)
        return f"{read.schema.name}.{number}" if isinstance(read, Read) else f"record {number}"

    def _id(self, kind: Kind, number: int) -> str:
        schema = self._reader.schemas.get(kind.schema)
        return f"record {number}" if schema is None else f"{schema.name}.{number}"

    def _shown(self, kind: Kind) -> str:
        name = self._states.get(kind.state)
        return f"number {kind.state}" if name is None else repr(name)


def check_lease(number: int, data: bytes) -> None:
    """Raise CorruptRecord if *data* isn't a lease of record N."""
    try:
        worker, until, attempts = msgpack.unpackb(unseal(number, data))
        right = type(worker) in (str, NoneType) and type(until) in (int, NoneType) and type(attempts) is int
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"it is no lease: {error}") from error
    if not right:
        raise CorruptRecord("it is no lease: its parts have the wrong types")
