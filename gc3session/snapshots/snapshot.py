"""A session as it was at one moment: its schemas, and its records with their places in the session.

One read transaction is that moment.  As long as nobody commits it costs nothing, however long
whoever uses the snapshot takes.  But the pages that are freed meanwhile can't be used again:
beside a busy writer the data file would grow by some 60 KB a commit.  So as soon as somebody has
committed, what is left is read at once (some 0.5 million records a second) into a temporary
file without a name, and the transaction ends.  With a store that this program can write that is
done in the beginning: its other threads wait while the transaction is open.

A copy of the whole environment would do, too; but it takes the room of the data file even where
nobody writes, and that of the other sessions of a shared store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from struct import Struct
from typing import IO, TYPE_CHECKING
from zlib import crc32

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, schema_number_or_0, values_of
from ..format.schema import Schema
from ..index.entries import LATE_BIT, MEMBER, SESSION_KEY, Row, entry_at, state_at
from ..records.sequence import NEXT_KEY
from ..records.values import references
from ..system.number_set import Numbers
from ..system.signals import signal_safe
from ..system.temporary import keeping
from ..tables.interface import LATE_MEMBERS, MEMBERS, META, RECORDS, SCHEMAS, SESSIONS, Item, Reader

if TYPE_CHECKING:
    from ..session.base import SessionBase

_CHUNK = 512
_HEAD = Struct(">QQIiI")
_RELAXED = 1 << 24  # bytes of records that are read before memory is let go of
_key = RECORD_KEY.pack


Kept = tuple[int, int, int, str | None, bytes]
"""A record and its place in the session.

Its N; its order in the session, 0 if it isn't in it; the number of a schema that has the name
in its ID; None, or of a record that can't be read the state that the index has for it; its bytes.
"""


def _position(kept: Kept) -> int:
    """Return where a record stands: where it was added to the session, or first saved."""
    return kept[1] or kept[0]


class Snapshot:
    """The state of a session at one moment; see `snapshot`.

    Attributes:
        next: the number after the greatest that the store has handed out.
        first: the least N of the records; `next` if there are none.
        schemas: number -> the schema, or its bytes if it is damaged.
        count: how many records there are.
        late: how many tasks of the session have another order than their N.
        missing: Ns that are in the index but have no record, of those that have been passed so far.
    """

    def __init__(self, session: SessionBase, reader: Reader) -> None:
        self._reader = reader
        self._identity = session._index.identity
        self._row = row = Row.read(reader, self._identity)
        self._session = None if row is None else SESSION_KEY.pack(row.number)
        self.missing: list[int] = []
        self.next: int = RECORD_KEY.unpack(reader.get(META, NEXT_KEY) or _key(1))[0]
        schemas = {int.from_bytes(key, "big"): data for key, data in reader.scan(SCHEMAS, b"")}
        self.late = self._count_late()
        # Of a store that no other session uses it is all, also what was forgotten.
        if {identity for identity, _ in reader.scan(SESSIONS, b"")} <= {self._identity}:
            self._numbers = None
            self.count = reader.entries(RECORDS)
            first = [RECORD_KEY.unpack(key)[0] for key, _ in reader.scan(RECORDS, b"", 1)]
        else:
            self._numbers, used = self._reached()
            self.count = len(self._numbers)
            first = next(self._numbers.chunks(1), [])
            schemas = {number: data for number, data in schemas.items() if number in used}
        self.first = first[0] if first else self.next
        self.schemas: dict[int, Schema | bytes] = {}
        for number, data in sorted(schemas.items()):
            try:
                self.schemas[number] = Schema.from_bytes(number, data)
            except CorruptRecord:
                self.schemas[number] = data

    def _count_late(self) -> int:
        after, late = b"", 0
        while items := self._reader.scan(LATE_MEMBERS, after, _CHUNK):
            late += sum(key[8:] == self._session for key, _ in items)
            after = items[-1][0] + b"\0"
        return late

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
            for numbers in self._numbers.chunks(_CHUNK):
                yield self._reader.get_many(RECORDS, list(map(_key, numbers)))
            return
        start = b""
        while items := self._reader.scan(RECORDS, start, _CHUNK):
            yield items
            start = items[-1][0] + b"\0"

    def read(self) -> Iterator[Kept]:
        """Give all records by their positions, from the transaction."""
        members = self._members()
        ahead = next(members, None)
        from_bytes = int.from_bytes
        # Of the schemas that the short way sees, whose numbers are a byte.
        readable = {n for n, schema in self.schemas.items() if n < 0x80 and type(schema) is Schema}
        taken = 0
        for items in self._records():
            taken += sum([len(record) for _, record in items])
            if taken > _RELAXED:
                self._reader.release_memory()
                taken = 0
            last = RECORD_KEY.unpack(items[-1][0])[0]
            own: dict[bytes, int] = {}
            late: list[Kept] = []
            while ahead is not None and ahead[0] <= last:
                order, schema = ahead
                if schema < LATE_BIT:
                    own[_key(order)] = schema
                else:
                    late += self._late(order, schema)
                ahead = next(members, None)
            if self.late:
                elsewhere = self._late_between(items[0][0], items[-1][0])
                items = [item for item in items if item[0] not in elsewhere]
            kept: list[Kept] = []
            for key, record in items:
                number = from_bytes(key)
                entry = own.pop(key, None)
                written = record[5] if len(record) > 5 else 0
                if written in readable and crc32(record[4:], number & 0xFFFFFFFF) == from_bytes(record[:4]):
                    kept.append((number, 0 if entry is None else number, written, None, record))
                else:
                    kept.append(self._kept(number, entry, record))
            self.missing += [RECORD_KEY.unpack(key)[0] for key in own]
            yield from sorted(kept + late, key=_position) if late else kept
        while ahead is not None:
            order, schema = ahead
            if schema < LATE_BIT:
                self.missing.append(order)
            else:
                yield from self._late(order, schema)
            ahead = next(members, None)

    def _kept(self, number: int, schema: int | None, record: bytes, order: int | None = None) -> Kept:
        """Return a record with its place; *schema* is that of its entry, None if it has none."""
        if order is None:
            order = 0 if schema is None else number
        written = schema_number_or_0(record)
        sound = crc32(record[4:], number & 0xFFFFFFFF) == int.from_bytes(record[:4], "big")
        if sound and type(self.schemas.get(written)) is Schema:
            return number, order, written, None, record
        state = state_at(self._reader, self._row.number, order) if order and self._row is not None else ""
        return number, order, written if schema is None else schema, state, record

    def _late(self, order: int, schema: int) -> list[Kept]:
        """Return the late entry of an order, if it has a record."""
        _, number, name_schema = entry_at(self._reader, order, schema)
        record = self._reader.get(RECORDS, _key(number))
        if record is None:
            self.missing.append(number)
            return []
        return [self._kept(number, name_schema, record, order)]

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


@signal_safe
def snapshot(session: SessionBase, *, at_once: bool = False) -> Iterator[tuple[Snapshot, Iterator[Kept]]]:
    """Give the newest state of a session that has been flushed, and its records by their positions.

    Unless the store is read-only, or with *at_once*, the transaction ends before the first of them is given.
    """
    transaction: Generator[Reader, None, None] | None = _transaction(session)

    def end(error: BaseException | None = None) -> None:
        if transaction is not None and error is None:
            next(transaction, None)
        elif transaction is not None and error is not None:
            transaction.throw(error)

    try:
        assert transaction is not None
        reader = next(transaction)
        state = Snapshot(session, reader)
        yield state, _followed(state, reader, end, at_once=at_once or not session.store.read_only)
    except BaseException as error:
        end(error)  # which raises ours for one of the tables'
        raise
    else:
        end()
    finally:
        transaction = None  # which ends it, whatever a signal's handler has prevented


def _transaction(session: SessionBase) -> Generator[Reader, None, None]:
    with session.store.reading() as reader:
        yield reader


def _followed(state: Snapshot, reader: Reader, end: Callable[[], None], *, at_once: bool) -> Iterator[Kept]:
    """Give the records of a snapshot from its transaction, until somebody commits; see above."""
    kept = state.read()
    if not at_once:
        for n, item in enumerate(kept):
            if n % _CHUNK == 0 and reader.newest() != reader.serial:
                break
            yield item
        else:
            return
        first = [item]
    else:
        first = []
    what = "what the session was at the beginning of the dump"
    with keeping(what):
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (`with` comes next)
    with copy as file:
        with keeping(what):
            for item in first:
                _write(file, item)
            for item in kept:
                _write(file, item)
            file.seek(0)
        end()
        while head := file.read(_HEAD.size):
            number, order, schema, state_size, size = _HEAD.unpack(head)
            told = file.read(state_size).decode("utf-8", "surrogatepass") if state_size >= 0 else None
            yield number, order, schema, told, file.read(size)


def _write(file: IO[bytes], item: Kept) -> None:
    number, order, schema, state, record = item
    name = b"" if state is None else state.encode("utf-8", "surrogatepass")
    file.write(_HEAD.pack(number, order, schema, -1 if state is None else len(name), len(record)) + name + record)
