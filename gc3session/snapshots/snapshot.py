"""A session as it was at one moment: its schemas, and its records with what the index says of them.

A single read transaction gives that moment. Pages that are freed while it is open can't be used
again, so that the data file grows beside a busy writer, and other threads of the program have to
wait. So the records are read at once (some 0.5 million a second) into a temporary file without a
name, and nothing is done with them before the transaction has ended.

A copy of the whole data file would serve as well, but would include the other sessions of a shared
store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, starmap
from typing import NamedTuple

import msgpack

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, header_of, schema_number_or_0, unseal, values_of
from ..format.schema import Schema, schema_or_bytes
from ..index.entries import Kind, Row, next_block, numbers_of
from ..index.states import StateNames
from ..records.sequence import NEXT_KEY
from ..records.values import references
from ..store.commit import RECORDS_KEY
from ..store.index import Index
from ..system.number_set import Numbers
from ..system.temporary import keeping
from ..tables.interface import (
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    Item,
    OnProgress,
    ReadBytes,
    Reader,
    no_progress,
    with_progress,
)

_CHUNK = 512  # records read in one call
_WRITTEN = 32  # records written in one call
_key = RECORD_KEY.pack
_pack = msgpack.Packer(unicode_errors="surrogatepass").pack


class HeldRecord(NamedTuple):
    """A record, and what the index of the session says of it.

    Attributes:
        number: its N.
        schema: the number of a schema that has the name in its ID; of one that can be read, its own.
        is_readable: whether its checksum is right, and its schema can be read.
        state: the state that the index has for it; None if the session doesn't hold it.
        data: its bytes.
    """

    number: int
    schema: int
    is_readable: bool
    state: str | None
    data: bytes


class Snapshot:
    """The state of a session at one moment; see `snapshot`.

    Attributes:
        next: the number after the greatest that the store has handed out.
        first: the least N of the records; `next` if there are none.
        schemas: number -> the schema, or its bytes if it is damaged.
        count: how many records there are.
        missing: Ns that are in the index but have no record; complete once all records have been read.
    """

    def __init__(self, reader: Reader, identity: bytes) -> None:
        self._reader = reader
        row = Row.read(reader, identity)
        self._session = 0 if row is None else row.number
        self._states = StateNames()
        self.missing: list[int] = []
        self.next: int = RECORD_KEY.unpack(reader.get(META, NEXT_KEY) or _key(1))[0]
        schemas = {int.from_bytes(key, "big"): data for key, data in reader.scan(SCHEMAS, b"")}
        # If no other session uses the store, all of its records belong here, also those that were forgotten.
        if {key for key, _ in reader.scan(SESSIONS, b"", 2)} <= {identity}:
            self._numbers = None
            self.count = int.from_bytes(reader.get(META, RECORDS_KEY) or b"", "big")
            first = [RECORD_KEY.unpack(key)[0] for key, _ in reader.scan(RECORDS, b"", 1)]
        else:
            self._numbers, used = self._reached()
            self.count = len(self._numbers)
            first = list(islice(self._numbers, 1))
            schemas = {number: data for number, data in schemas.items() if number in used}
        self.first = first[0] if first else self.next
        self.schemas = {number: schema_or_bytes(number, data) for number, data in sorted(schemas.items())}

    def _reached(self) -> tuple[Numbers, set[int]]:
        """Return the Ns of the session's records and of what these refer to, and of their schemas."""
        numbers, used = Numbers(), set()
        for member, kind in self._members():
            used.add(kind.schema)
            pending = [member]
            while pending:
                number = pending.pop()
                record = None if number in numbers else self._reader.get(RECORDS, _key(number))
                if record is None:
                    continue
                numbers.add(number)
                used.add(schema_number_or_0(record))
                try:
                    pending += references(values_of(number, record)[2])
                except CorruptRecord:
                    continue
        return numbers, used

    def _members(self) -> Iterator[tuple[int, Kind]]:
        """Give N and kind of each of the session's tasks, in order."""
        block = next_block(self._reader, self._session, 0)
        while block is not None:
            yield from sorted(
                (n, kind) for kind, bits in block.kinds.items() for n in numbers_of(block.number, bits)
            )
            block = next_block(self._reader, self._session, block.number + 1)

    def _records(self) -> Iterator[Item]:
        """Give all records of the snapshot by their Ns."""
        if self._numbers is None:
            yield from self._reader.walk(RECORDS)
            return
        keys = map(_key, self._numbers)
        while some := list(islice(keys, _CHUNK)):
            yield from self._reader.get_many(RECORDS, some)

    def read(self) -> Iterator[HeldRecord]:
        """Give all records, sorted by their Ns, from the transaction."""
        members = self._members()
        after_all = 1 << 64, Kind(0, 0)
        member, kind = next(members, after_all)
        read_bytes = ReadBytes()
        for key, record in self._records():
            read_bytes.add(self._reader, len(record))
            number = int.from_bytes(key, "big")
            while member < number:
                self.missing.append(member)
                member, kind = next(members, after_all)
            if member == number:
                yield self._held(number, kind, record)
                member, kind = next(members, after_all)
            else:
                yield self._held(number, None, record)
        while member < after_all[0]:
            self.missing.append(member)
            member, kind = next(members, after_all)

    def _held(self, number: int, kind: Kind | None, record: bytes) -> HeldRecord:
        state = None if kind is None else self._states.name(kind.state, self._reader)
        try:
            unseal(number, record)
            schema = header_of(record).schema
        except CorruptRecord:
            schema = 0
        if type(self.schemas.get(schema)) is Schema:
            return HeldRecord(number, schema, True, state, record)
        named = schema_number_or_0(record) if kind is None else kind.schema
        return HeldRecord(number, named, False, state, record)


@contextmanager
def snapshot(index: Index, progress: OnProgress = no_progress) -> Iterator[tuple[Snapshot, Iterator[HeldRecord]]]:
    """Give the newest committed state of a session, and its records sorted by their Ns.

    *progress* is called with how many of them have been given; the transaction has ended by then.
    """
    what = "the records of the session"
    with keeping(what):
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (`with` comes next)
    with copy as file:
        with index.store.reading() as reader, keeping(what):
            state = Snapshot(reader, index.identity)
            source = state.read()
            while some := list(islice(source, _WRITTEN)):
                file.write(_pack(some))
            file.seek(0)
        parts = msgpack.Unpacker(file, max_buffer_size=0, unicode_errors="surrogatepass")
        records = starmap(HeldRecord, chain.from_iterable(parts))
        yield state, with_progress(records, state.count, progress)
