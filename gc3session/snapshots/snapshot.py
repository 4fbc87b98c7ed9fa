"""A session as it was at one moment: its schemas, and its records with their places in the session.

A single read transaction gives that moment. As long as nobody commits, keeping it open costs
nothing. But pages that are freed while it is open can't be used again: beside a busy writer the
data file would grow by some 60 KB a commit. So as soon as somebody has committed, the rest of
the records is read at once (some 0.5 million a second) into a temporary file without a name, and
the transaction ends. If this program may write to the store, that happens right at the
beginning, because its other threads have to wait while the transaction is open.

A copy of the whole data file would serve as well, but it would take its room on the disk even where
nobody writes, and include the other sessions of a shared store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from struct import Struct
from typing import IO
from zlib import crc32

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, schema_number_or_0, values_of
from ..format.schema import Schema, schema_or_bytes
from ..index.entries import LATE_BIT, MEMBER, SESSION_KEY, Row, entry_at, state_at
from ..index.index import Index
from ..records.sequence import NEXT_KEY
from ..records.values import references
from ..system.number_set import Numbers
from ..system.temporary import keeping
from ..tables.interface import (
    LATE_MEMBERS,
    MEMBERS,
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
from .placed_record import PlacedRecord

_CHUNK = 512  # records or entries read in one call
_HEAD = Struct(">QQIiI")  # N, order, schema number, length of the state (-1: None), length of the record
_key = RECORD_KEY.pack


class Snapshot:
    """The state of a session at one moment; see `snapshot`.

    Attributes:
        next: the number after the greatest that the store has handed out.
        first: the least N of the records; `next` if there are none.
        schemas: number -> the schema, or its bytes if it is damaged.
        count: how many records there are.
        late: how many tasks of the session have an order that is not their N.
        missing: Ns that are in the index but have no record; complete once all records have been read.
    """

    def __init__(self, reader: Reader, identity: bytes) -> None:
        self._reader = reader
        self._row = row = Row.read(reader, identity)
        self._session = None if row is None else SESSION_KEY.pack(row.number)
        self.missing: list[int] = []
        self.next: int = RECORD_KEY.unpack(reader.get(META, NEXT_KEY) or _key(1))[0]
        schemas = {int.from_bytes(key, "big"): data for key, data in reader.scan(SCHEMAS, b"")}
        self.late = self._count_late()
        # If no other session uses the store, all of its records belong here, also those that were forgotten.
        if {key for key, _ in reader.scan(SESSIONS, b"")} <= {identity}:
            self._numbers = None
            self.count = reader.entries(RECORDS)
            first = [RECORD_KEY.unpack(key)[0] for key, _ in reader.scan(RECORDS, b"", 1)]
        else:
            self._numbers, used = self._reached()
            self.count = len(self._numbers)
            first = list(islice(self._numbers, 1))
            schemas = {number: data for number, data in schemas.items() if number in used}
        self.first = first[0] if first else self.next
        self.schemas = {number: schema_or_bytes(number, data) for number, data in sorted(schemas.items())}

    def _count_late(self) -> int:
        return sum(key[8:] == self._session for key, _ in self._reader.walk(LATE_MEMBERS))

    def _reached(self) -> tuple[Numbers, set[int]]:
        """Return the Ns of the session's records and of what these refer to, and of their schemas."""
        numbers, used = Numbers(), set()
        for order, schema in self._members():
            _, number, name_schema = entry_at(self._reader, order, schema)
            used.add(name_schema)
            pending = [number]
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

    def _members(self) -> Iterator[tuple[int, int]]:
        """Give order and schema number (with the late bit) of each entry of the session, in order."""
        after = 0
        while self._session is not None:
            values = self._reader.values(MEMBERS, self._session, MEMBER.pack(after + 1, 0, 0), 8 * _CHUNK)
            for order, schema, _ in map(MEMBER.unpack, values):
                yield order, schema
                after = order
            if len(values) < 8 * _CHUNK:
                return

    def _records(self) -> Iterator[list[Item]]:
        """Give all records of the snapshot by their Ns, some at a time."""
        if self._numbers is not None:
            keys = map(_key, self._numbers)
            while some := list(islice(keys, _CHUNK)):
                yield self._reader.get_many(RECORDS, some)
            return
        start = b""
        while items := self._reader.scan(RECORDS, start, _CHUNK):
            yield items
            start = items[-1][0] + b"\0"

    def read(self) -> Iterator[PlacedRecord]:
        """Give all records, sorted by their positions, from the transaction."""
        members = self._members()
        ahead = next(members, None)
        from_bytes = int.from_bytes
        # Schema numbers below 0x80 are a single byte of the record; other records take the way of `_placed`.
        readable = {n for n, schema in self.schemas.items() if n < 0x80 and type(schema) is Schema}
        read_bytes = ReadBytes()
        for items in self._records():
            read_bytes.add(self._reader, [record for _, record in items])
            last = RECORD_KEY.unpack(items[-1][0])[0]
            own: dict[bytes, int] = {}
            late: list[PlacedRecord] = []
            while ahead is not None and ahead[0] <= last:
                order, schema = ahead
                if schema < LATE_BIT:
                    own[_key(order)] = schema
                else:
                    late += self._late_record(order, schema)
                ahead = next(members, None)
            if self.late:
                elsewhere = self._late_between(items[0][0], items[-1][0])
                items = [item for item in items if item[0] not in elsewhere]
            placed: list[PlacedRecord] = []
            for key, record in items:
                number = from_bytes(key)
                entry = own.pop(key, None)
                written = record[5] if len(record) > 5 else 0
                if written in readable and crc32(record[4:], number & 0xFFFFFFFF) == from_bytes(record[:4]):
                    placed.append(PlacedRecord(number, 0 if entry is None else number, written, None, record))
                else:
                    placed.append(self._placed(number, 0 if entry is None else number, entry, record))
            self.missing += [RECORD_KEY.unpack(key)[0] for key in own]
            yield from sorted(placed + late, key=lambda record: record.position) if late else placed
        while ahead is not None:
            order, schema = ahead
            if schema < LATE_BIT:
                self.missing.append(order)
            else:
                yield from self._late_record(order, schema)
            ahead = next(members, None)

    def _placed(self, number: int, order: int, schema: int | None, record: bytes) -> PlacedRecord:
        """Return a record with its place; *schema* is that of its entry, None if it has none."""
        written = schema_number_or_0(record)
        sound = crc32(record[4:], number & 0xFFFFFFFF) == int.from_bytes(record[:4], "big")
        if sound and type(self.schemas.get(written)) is Schema:
            return PlacedRecord(number, order, written, None, record)
        state = state_at(self._reader, self._row.number, order) if order and self._row is not None else ""
        return PlacedRecord(number, order, written if schema is None else schema, state, record)

    def _late_record(self, order: int, schema: int) -> list[PlacedRecord]:
        """Return the record of the late entry of an order; an empty list if there is none."""
        _, number, name_schema = entry_at(self._reader, order, schema)
        record = self._reader.get(RECORDS, _key(number))
        if record is None:
            self.missing.append(number)
            return []
        return [self._placed(number, order, name_schema, record)]

    def _late_between(self, first: bytes, last: bytes) -> set[bytes]:
        """Return the keys of the records from *first* to *last* whose orders are not their Ns."""
        found: set[bytes] = set()
        start = first
        while items := self._reader.scan(LATE_MEMBERS, start, _CHUNK):
            found.update(key[:8] for key, _ in items if key[8:] == self._session and key[:8] <= last)
            if items[-1][0][:8] > last:
                break
            start = items[-1][0] + b"\0"
        return found


@contextmanager
def snapshot(
    index: Index, progress: OnProgress = no_progress, *, at_once: bool = False
) -> Iterator[tuple[Snapshot, Iterator[PlacedRecord]]]:
    """Give the newest committed state of a session, and its records sorted by their positions.

    *progress* is called with how many of them have been given. If the store can be written, or with
    *at_once*, the transaction ends before the first one is given.
    """
    with ExitStack() as transaction:
        reader = transaction.enter_context(index.store.reading())
        state = Snapshot(reader, index.identity)
        records = _records(state, reader, transaction.close, at_once=at_once or not index.store.read_only)
        yield state, with_progress(records, state.count, progress)


def _records(state: Snapshot, reader: Reader, end: Callable[[], None], *, at_once: bool) -> Iterator[PlacedRecord]:
    """Give the records of a snapshot: from its transaction until somebody commits, then from a temporary file."""
    source = state.read()
    first: list[PlacedRecord] = []
    if not at_once:
        for n, record in enumerate(source):
            if n % _CHUNK == 0 and reader.newest() != reader.serial:
                first = [record]
                break
            yield record
        else:
            return
    what = "the records of the session"
    with keeping(what):
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (`with` comes next)
    with copy as file:
        with keeping(what):
            for record in chain(first, source):
                _write(file, record)
            file.seek(0)
        end()
        while head := file.read(_HEAD.size):
            number, order, schema, state_size, size = _HEAD.unpack(head)
            text = file.read(state_size).decode("utf-8", "surrogatepass") if state_size >= 0 else None
            yield PlacedRecord(number, order, schema, text, file.read(size))


def _write(file: IO[bytes], record: PlacedRecord) -> None:
    number, order, schema, state, data = record
    name = b"" if state is None else state.encode("utf-8", "surrogatepass")
    file.write(_HEAD.pack(number, order, schema, -1 if state is None else len(name), len(data)) + name + data)
