"""The check of the index: it is compared with its counts, and with what the records and `holders` say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import groupby
from operator import or_
from types import NoneType
from typing import NamedTuple

import msgpack

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, unseal
from ..index.entries import (
    BLOCK,
    BLOCK_KEY,
    COUNT,
    COUNT_KEY,
    HOLDER_KEY,
    INDEX_KEY,
    Kind,
    numbers_of,
    unpack_members,
)
from ..tables.interface import COUNTS, INDEX, METADATA, RECORDS, UNIQUE, Contents, Item
from .finding import Finding
from .record_reader import Block, Read, RecordReader, read_blocks


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
    fault = "" if len(key) == INDEX_KEY.size else "its key can't be that of an entry"
    try:
        return Entry(block, Kind(*kind), 0 if fault else unpack_members(key, value), fault)
    except CorruptRecord as error:
        return Entry(block, Kind(*kind), 0, str(error))


def groups(contents: Contents) -> Iterator[tuple[int, int, list[Entry]]]:
    """Give the entries of each block of each session: session, number of the block, and these."""
    for prefix, items in groupby(contents.walk(INDEX), key=lambda item: item[0][: BLOCK_KEY.size]):
        entries = [entry_of(*item) for item in items]
        yield int.from_bytes(prefix[:4], "big"), entries[0].block, entries


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
        members: the number of a block -> the bits of its members.
        total: how many they are.
        whole: whether all entries can be read.
    """

    number: int
    members: dict[int, int]
    total: int
    whole: bool


class IndexCheck:
    """The check of the index of a store.

    Args:
        contents: the tables.
        reader: reads the records.
        sessions: the numbers of the sessions that have rows; None if not all rows can be read.
    """

    def __init__(self, contents: Contents, reader: RecordReader, sessions: set[int] | None) -> None:
        self._contents = contents
        self._reader = reader
        self._sessions = sessions
        self._states = {number: name for name, number in reader.states.items()}
        self._entries = 0  # how many the index has, and after that how many of these haven't been compared

    # -- session by session

    def sessions(
        self, numbers: Iterable[int], begun: Callable[[int], None], noted: Callable[[int, Entry], None]
    ) -> Iterator[Finding | Held]:
        """Give what is wrong with the parts of each session, and then what the index has of it.

        Args:
            numbers: those of the sessions that have rows.
            begun: called with the number of each session, before its entries are read.
            noted: called with session and entry, of each entry.
        """
        tables = {name: BySession(self._contents.walk(name)) for name in (INDEX, COUNTS, UNIQUE, METADATA)}
        waiting = sorted(numbers, reverse=True)
        while True:
            ahead = [table.session for table in tables.values() if table.session is not None]
            if not ahead and not waiting:
                return
            session = min(ahead + waiting[-1:])
            if waiting[-1:] == [session]:
                waiting.pop()
            begun(session)
            held = Held(session, {}, 0, whole=True)
            counts: Counter[Kind] = Counter()
            for key, value in tables[INDEX].take(session):
                self._entries += 1
                entry = entry_of(key, value)
                noted(session, entry)
                yield from self._check_entry(session, entry, held)
                held.members[entry.block] = held.members.get(entry.block, 0) | entry.bits
                counts[entry.kind] += entry.bits.bit_count()
                held = held._replace(whole=held.whole and not entry.fault)
            yield from self._check_counts(session, tables[COUNTS].take(session), counts, held)
            yield from self._check_unique(session, tables[UNIQUE].take(session), held)
            yield from self._check_metadata(session, tables[METADATA].take(session))
            yield held._replace(total=counts.total())

    def _check_entry(self, session: int, entry: Entry, held: Held) -> Iterator[Finding]:
        where = f"session {session}, block {entry.block}"
        if entry.fault:
            yield Finding("index", where, f"an entry is damaged: {entry.fault}")
        elif entry.kind.schema not in self._reader.schemas:
            yield Finding("index", where, f"an entry names the schema {entry.kind.schema}, which can't be read")
        elif entry.kind.state not in self._states:
            yield Finding("index", where, f"an entry names the state {entry.kind.state}, which can't be read")
        for number in numbers_of(entry.block, entry.bits & held.members.get(entry.block, 0)):
            yield Finding("index", self._id(entry.kind, number), f"session {session} has it twice")

    def _check_counts(
        self, session: int, items: Iterable[Item], counts: Counter[Kind], held: Held
    ) -> Iterator[Finding]:
        stored: dict[Kind, int] = {}
        for key, value in items:
            if len(key) != COUNT_KEY.size or len(value) != COUNT.size:
                yield Finding("index", f"count {key.hex()} of session {session}", "it isn't a count")
            else:
                stored[Kind(*COUNT_KEY.unpack(key)[1:])] = COUNT.unpack(value)[0]
        if not held.whole:
            return
        for kind in sorted({*stored, *counts}):
            if stored.get(kind) != counts.get(kind):
                yield Finding(
                    "index",
                    f"session {session}, schema {kind.schema}, state {self._shown(kind)}",
                    f"it has {counts.get(kind, 0)} tasks, but {stored.get(kind, 'none')} are counted",
                )

    def _check_unique(self, session: int, items: Iterable[Item], held: Held) -> Iterator[Finding]:
        for key, value in items:
            block, place = divmod(int.from_bytes(value, "big"), BLOCK)
            if len(value) != RECORD_KEY.size or (held.whole and not held.members.get(block, 0) >> place & 1):
                yield Finding(
                    "unique", f"key {key[4:]!r} of session {session}", "it leads to no record of the session"
                )

    def _check_metadata(self, session: int, items: Iterable[Item]) -> Iterator[Finding]:
        for key, value in items:
            try:
                self._reader.value(unseal(0, value))
            except CorruptRecord as error:
                yield Finding("metadata", f"{key[4:]!r} of session {session}", f"it can't be read: {error}")

    # -- block by block

    def blocks(self, records: Iterable[Item]) -> Iterator[Finding | Block]:
        """Compare each block with the index; give what is wrong, and the block.  *records* are those of the store."""
        for block in read_blocks(self._contents, records, self._reader):
            members = block.members(self._reader)
            for session, kinds in members.items():
                if self._sessions is None or session in self._sessions:
                    yield from self._compare(session, block, kinds)
                else:
                    for number in numbers_of(block.number, all_of(kinds.values())):
                        yield Finding(
                            "index", self._name(block, number), f"session {session}, which has it, has no row"
                        )
            yield from self._check_holders(block)
            yield block
        if self._entries:
            yield from self._check_others()

    def _compare(self, session: int, block: Block, kinds: dict[Kind, int]) -> Iterator[Finding]:
        """Compare what the index has of a session for a block with the kinds that it should have."""
        missing = all_of(kinds.values())
        for key, value in self._contents.walk(INDEX, prefix=BLOCK_KEY.pack(session, block.number)):
            self._entries -= 1
            entry = entry_of(key, value)
            if entry.fault:
                return
            missing &= ~entry.bits
            for number in numbers_of(block.number, entry.bits & ~kinds.get(entry.kind, 0)):
                yield from self._check_member(session, block, entry.kind, number, kinds)
        for number in numbers_of(block.number, missing):
            yield Finding("index", self._name(block, number), f"session {session} has it, but its index lacks it")

    def _check_member(
        self, session: int, block: Block, kind: Kind, number: int, kinds: dict[Kind, int]
    ) -> Iterator[Finding]:
        """Give what is wrong with a member that should not be in its entry."""
        read = block.records.get(number)
        where = self._id(kind, number)
        if read is None:
            yield Finding("index", where, f"session {session} has it, but there is no such record")
        elif not isinstance(read, Read) or kind.state not in self._states:
            return  # it is a finding of the record, or of the entry
        elif not all_of(kinds.values()) >> number % BLOCK & 1:
            yield Finding("index", where, f"the index of session {session} has it, but its record doesn't say so")
        elif read.schema.number != kind.schema:
            yield Finding(
                "index", where, f"its entry names the schema {kind.schema}, its record {read.schema.number}"
            )
        else:
            yield Finding(
                "state", where, f"it is in the state {self._shown(kind)}, but its record says {read.state!r}"
            )

    def _check_others(self) -> Iterator[Finding]:
        """Compare what the index has for blocks of which no record says that the session has it."""
        for session, number, entries in groups(self._contents):
            members = numbers_of(number, all_of(entry.bits for entry in entries))
            if any(self._reader.says(self._contents, n, session) for n in members):
                continue
            reads = {n: self._reader.at(self._contents, n) for n in members}
            block = Block(number, {n: read for n, read in reads.items() if read is not None}, [], [], [])
            for entry in entries:
                for n in numbers_of(number, entry.bits):
                    yield from self._check_member(session, block, entry.kind, n, {})

    def _check_holders(self, block: Block) -> Iterator[Finding]:
        for table, key in block.strange:
            yield Finding("record" if table == RECORDS else "index", f"{table} {key.hex()}", "it can't be right")
        for number, session in block.others:
            read = block.records.get(number)
            if read is None:
                yield Finding(
                    "index", f"record {number}", f"session {session} has it, but there is no such record"
                )
            elif isinstance(read, Read) and read.home == session:
                yield Finding("index", self._name(block, number), f"session {session}, its home, has it twice")
        for key, value in block.leases:
            number, session = HOLDER_KEY.unpack(key)
            try:
                check_lease(number, value)
                fault = "" if number in block.records else "there is no such record"
            except CorruptRecord as error:
                fault = str(error)
            if fault:
                yield Finding("lease", f"record {number}", f"its lease in session {session}: {fault}")

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
