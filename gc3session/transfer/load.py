"""From a dump (dump.py) to a session: the same records, IDs, schemas and order of adding."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable, Iterable
from itertools import starmap
from typing import IO, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import ClashError, CorruptRecord, InvalidArgument
from ..format.frame import RECORD_KEY, read_header, seal, unseal, values_of
from ..format.schema import PERSISTABLE, Schema, stored_schema
from ..index.index import Index
from ..index.index_writer import IndexWriter
from ..records.ids import parse_id
from ..records.json_values import FieldsDecoder
from ..records.sequence import NEXT_KEY
from ..session.base import SessionBase
from ..session.session import Session
from ..snapshots.placed_record import PlacedRecord, write_records
from ..system.temporary import made_whole
from ..tables.interface import META, RECORDS, SCHEMAS, OnProgress, Writer, no_progress, with_progress
from .dump_files import opened_lines
from .dump_reader import DumpReader, DumpRecord, number_in

_BATCH_BYTES: Final = 16 << 20
_RECORD_BYTES: Final = 400  # memory that a record takes beside its bytes, with its entry
_IDS_IN_MESSAGE: Final = 3
_IDS_IN_EXCEPTION: Final = 1000
_key = RECORD_KEY.pack


class _Clash(Exception):
    """Raised in the transaction that finds a clash, so that it isn't committed."""


class Loaded(NamedTuple):
    """What has been loaded from a dump.

    Attributes:
        records: how many records were loaded.
        members: how many of them the session holds.
        skipped: how many records were skipped because their IDs had been given out before.
        gone: how many of the skipped ones are not in the store any more.
        shift: what was added to each N; 0 unless they were renumbered.
    """

    records: int
    members: int
    skipped: int
    gone: int
    shift: int


def load_dump(
    target: SessionBase | str | os.PathLike[str],
    file: str | os.PathLike[str] | IO[bytes],
    *,
    on_clash: str = "fail",
    progress: OnProgress | None = None,
) -> Loaded:
    """Load all that `dump_session` has written to a file; return how much was loaded.

    Args:
        target: a session, or the path of one. If there is none at the path, it is made, whole or not at all.
        file: the dump: a path (compressed if it ends with `.gz` or `.zst`), or a binary file.
        on_clash: what to do with records whose N the session's store has given out before, whether
            it is in use now or not: 'fail'; 'skip' them, and take the others; or 'renumber': add
            the same number to each N of the dump.
        progress: called with the number of records read, and of all.

    A session that was empty is then the same as the dumped one, its times included. The classes
    are not needed. A session that exists is written in parts of 16 MiB; if one of them fails,
    those before it stay.

    Raise ClashError, with nothing written, for IDs that clash; InvalidArgument, naming the
    line, if the file isn't a whole dump; StoreFull if there is no room.
    """
    if on_clash not in ("fail", "skip", "renumber"):
        raise InvalidArgument(f"on_clash must be 'fail', 'skip' or 'renumber', not {on_clash!r}")
    with opened_lines(file) as lines:
        if isinstance(target, SessionBase):
            return _load_into(target, lines, on_clash, progress)
        directory = SessionDirectory(target)
        if directory.check(create=True):
            with Session(directory.path, create=False) as session:
                return _load_into(session, lines, on_clash, progress)
        return _load_new(directory, lines, progress)


def _load_into(session: SessionBase, lines: IO[bytes], on_clash: str, progress: OnProgress | None) -> Loaded:
    session._ensure_writable()
    session.flush()
    return Loading(session._index, session._directory, lines, on_clash, progress).run()


def _load_new(directory: SessionDirectory, lines: IO[bytes], progress: OnProgress | None) -> Loaded:
    """Make a session from a dump, under another name until it is complete."""
    with made_whole(directory.path) as temporary:
        session = Session(temporary)
        try:
            loaded = _load_into(session, lines, "fail", progress)
            session.close()
        except BaseException:
            session.store.discard()
            raise
    return loaded


class Loading:
    """The loading of one dump into one session.

    Args:
        index: the session's; its batch is empty.
        directory: where the session is; None if it has no directory.
        on_clash, progress: as in `load_dump`.
        lines: the lines of the dump.
        own: Ns that an earlier loading, which was interrupted, has reserved: they don't clash.
        reserve: called with the Ns of the dump, in the transaction that takes them.
    """

    def __init__(
        self,
        index: Index,
        directory: SessionDirectory | None,
        lines: Iterable[bytes],
        on_clash: str,
        progress: OnProgress | None,
        *,
        own: range = range(0),
        reserve: Callable[[Writer, range], None] = lambda writer, numbers: None,
    ) -> None:
        self._index = index
        self._directory = directory
        self._store = index.store
        self._on_clash = on_clash
        self._progress = progress or no_progress
        self._own = own
        self._reserve = reserve
        self._decoder = FieldsDecoder()
        self._decoder.moved = lambda number: number + self._shift
        self._dump = DumpReader(lines, self._decoder)
        self._shift = 0
        self._as_is = False  # whether records keep their bytes: the store is new, and no N changes
        self._before = 0  # Ns below this are skipped
        self._numbers: dict[int, int] = {}  # number of a schema in the dump -> its number here
        self._records: list[PlacedRecord] = []
        self._bytes = 0
        self._loaded = self._members = self._skipped = self._gone = 0

    def run(self) -> Loaded:
        """Load all of it."""
        self._give_back()
        try:
            self._run()
        except ValueError as error:
            before = f"; {self._loaded} records before it are loaded" if self._loaded else ""
            raise self._dump.text.broken(f"{error}{before}") from error
        self._give_back()
        return Loaded(self._loaded, self._members, self._skipped, self._gone, self._shift)

    def _give_back(self) -> None:
        """Return the numbers that this program has reserved but not used: those of the dump would clash with them."""
        with self._store.lock:
            if self._store.tables.exists() and self._store.batch.journal is None:
                self._store.sequence.give_back()

    def _run(self) -> None:
        dump = self._dump
        dump.read_head()
        new = self._begin()  # before any record is decoded, because its references may be renumbered
        for record in with_progress(dump.read_records(), dump.count, self._progress):
            self._take(record)
            if self._bytes >= _BATCH_BYTES:
                self._write()
        self._write()
        if new:
            self._set_times()

    def _begin(self) -> bool:
        """Take the numbers of the dump and store its schemas; return whether the store was new."""
        first, next_ = self._dump.first, self._dump.next
        here, stored = 1, False

        def unit(index_writer: IndexWriter, writer: Writer) -> None:
            nonlocal here, stored
            here = RECORD_KEY.unpack(writer.get(META, NEXT_KEY) or _key(1))[0]
            mine = first >= self._own.start and min(here, next_) <= self._own.stop
            if first < here and self._on_clash == "fail" and not mine:
                raise _Clash
            self._reserve(writer, range(first, next_))
            shift = here - first if first < here and self._on_clash == "renumber" else 0
            writer.put(META, [(NEXT_KEY, _key(max(here, next_ + shift)))])
            index_writer.check_mirror(self._index.identity)
            stored = writer.entries(SCHEMAS) == 0
            if stored:
                writer.put(SCHEMAS, list(starmap(stored_schema, self._dump.schemas.items())))

        try:
            with self._store.lock:
                self._store.write(unit, numbers=False)
        except _Clash:
            raise self._clash(here) from None
        if first < here:
            self._shift = here - first if self._on_clash == "renumber" else 0
            self._before = here if self._on_clash == "skip" else 0
        self._as_is = stored and not self._shift
        for number, schema in self._dump.schemas.items():
            if stored:
                self._numbers[number] = number
            elif isinstance(schema, Schema):
                self._numbers[number] = self._store.schemas.stored(schema).number
        return here == 1

    def _clash(self, here: int) -> ClashError:
        """Return the exception with the IDs that clash, which are all below N *here*; the dump is read for them."""
        ids: list[str] = []
        count = 0
        for id_ in self._dump.read_ids():
            parsed = parse_id(id_)
            if parsed is not None and parsed[1] < here:
                count += 1
                if count <= _IDS_IN_EXCEPTION:
                    ids.append(id_)
        more = f" and {count - _IDS_IN_MESSAGE:,} more" if count > _IDS_IN_MESSAGE else ""
        return ClashError(
            f"{self._store.url} has given out {', '.join(ids[:_IDS_IN_MESSAGE])}{more} before; nothing was loaded."
            " Load into a new session, or pass on_clash='renumber' to give all of the dump new IDs, or"
            " on_clash='skip' to take only those whose IDs are new",
            tuple(ids),
        )

    # -- records

    def _take(self, record: DumpRecord) -> None:
        """Put the record of a line into the batch, or skip it."""
        if record.number < self._before:
            self._skipped += 1
            self._gone += self._store.tables.get(RECORDS, _key(record.number)) is None
            return
        schema, state, data = self._raw(record) if "record" in record.line else self._built(record)
        order = record.order + self._shift if record.order else 0
        self._records.append(PlacedRecord(record.number + self._shift, order, schema, state, data))
        self._bytes += _RECORD_BYTES + len(data)

    def _built(self, record: DumpRecord) -> tuple[int, str, bytes]:
        """Return the schema number here, the state, and the bytes of a record whose line has its fields."""
        number = record.line.get("schema")
        schema = self._dump.schemas.get(number) if type(number) is int else None
        fields = record.line.get("fields")
        if not isinstance(schema, Schema) or type(fields) is not dict or schema.name != record.name:
            raise ValueError(f"{record.id} has no fields, or its schema {number!r} is not in the dump")
        if len(fields) != len(schema.fields):
            raise ValueError(f"the fields of {record.id} are not those of its schema")
        try:
            values = [fields[field] for field in schema.fields]
        except KeyError as error:
            raise ValueError(f"{record.id} lacks the field {error}") from error
        here = self._numbers[schema.number]
        body = self._decoder.pack([here, number_in(record.line, "revision"), values])
        state = "" if schema.kind == PERSISTABLE else str(fields.get("state", ""))
        return here, state, seal(record.number + self._shift, body)

    def _raw(self, record: DumpRecord) -> tuple[int, str, bytes]:
        """Return what `_built` does, for a record whose line has its bytes."""
        data = b64decode(record.line["record"], validate=True)
        named = [n for n, s in self._dump.schemas.items() if isinstance(s, Schema) and s.name == record.name]
        here = self._numbers[named[0]] if named else 0
        if "state" in record.line:  # it can't be read
            sound = seal(record.number, data[4:]) == data
            if sound and not self._as_is:
                raise ValueError(f"{record.id} has a damaged schema: it can be loaded into a new session only")
            return here, str(record.line["state"]), data
        try:
            written, revision, values = values_of(record.number, data)
            _, _, start = read_header(data)
        except CorruptRecord as error:
            raise ValueError(f"the bytes of {record.id} are damaged: {error}") from error
        schema = self._dump.schemas.get(written)
        if not isinstance(schema, Schema):
            raise ValueError(f"the schema of {record.id} is damaged")  # noqa: TRY004
        if self._shift:
            raise ValueError(f"{record.id} is nested too deep to be renumbered")
        here = self._numbers[written]
        body = unseal(record.number, data)
        if here != written:
            body = b"\x93" + self._decoder.pack(here) + self._decoder.pack(revision) + data[start:]
        return here, schema.state(values), seal(record.number, body)

    def _write(self) -> None:
        """Write the batch."""
        records, self._records, self._bytes = self._records, [], 0
        if records:
            write_records(self._index, records, lambda record: record.state or "")
        self._loaded += len(records)
        self._members += sum(record.order > 0 for record in records)

    def _set_times(self) -> None:
        """Give the session the times of the dumped one."""
        restored = self._dump.times()
        if self._directory is None or restored is None:
            return
        try:
            self._directory.restore(*restored)
        except OverflowError as error:
            raise ValueError(f"its times {restored[1]} are not times in ns") from error
