"""From a dump (dump.py) to a session: the same records, IDs and schemas."""

from __future__ import annotations

import os
from itertools import islice, takewhile
from typing import IO, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import ClashError, CorruptRecord, InvalidArgument
from ..format.frame import RECORD_KEY
from ..format.schema import Schema
from ..records.json_values import FieldsDecoder, NotJSON, unpack
from ..session.base import SessionBase
from ..session.session import Session
from ..snapshots.copying import RecordCopier
from ..system.temporary import made_whole
from ..tables.interface import RECORDS, OnProgress, no_progress, with_progress
from .dump_files import opened_lines
from .dump_reader import DumpReader, DumpRecord, bytes_in, number_in

_IDS_IN_MESSAGE: Final = 3
_IDS_IN_EXCEPTION: Final = 1000


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
    progress: OnProgress = no_progress,
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


def _load_into(session: SessionBase, lines: IO[bytes], on_clash: str, progress: OnProgress) -> Loaded:
    session._ensure_writable()
    session.flush()
    loading = _Loading(session, lines, on_clash)
    try:
        return loading.run(progress)
    except (ValueError, CorruptRecord) as error:
        done = 0 if loading.copier is None else loading.copier.records
        before = f"; {done} records before it are loaded" if done else ""
        raise loading.dump.broken(f"{error}{before}") from error


def _load_new(directory: SessionDirectory, lines: IO[bytes], progress: OnProgress) -> Loaded:
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


class _Loading:
    """The loading of one dump into one session, whose batch is empty."""

    def __init__(self, session: SessionBase, lines: IO[bytes], on_clash: str) -> None:
        self._index = session._index
        self._store = session.store
        self._directory = session._directory
        self._on_clash = on_clash
        self._decoder = FieldsDecoder()
        self.dump = DumpReader(lines, self._decoder.decode)
        self.copier: RecordCopier | None = None

    def run(self, progress: OnProgress) -> Loaded:
        """Load all of it."""
        dump = self.dump
        dump.read_head()
        copier = self.copier = RecordCopier(self._index, dump.schemas, range(dump.first, dump.next))
        self._reserve(copier)
        skipped = gone = 0
        for record in with_progress(dump.read_records(), dump.count, progress):
            if self._on_clash == "skip" and record.number < copier.before:
                skipped += 1
                gone += self._store.tables.get(RECORDS, RECORD_KEY.pack(record.number)) is None
            elif "record" in record.line:
                self._load_unreadable(copier, record)
            else:
                self._load_readable(copier, record)
        copier.write()
        if copier.before == 1:
            self._set_times()
        return Loaded(copier.records, copier.members, skipped, gone, copier.shift)

    def _reserve(self, copier: RecordCopier) -> None:
        """Take the numbers of the dump.  Raise ClashError with the IDs that clash, for which the dump is read."""
        with self._store.lock:
            # The numbers that this program has reserved but not used would clash with those of the dump.
            if self._store.tables.exists() and self._store.batch.journal is None:
                self._store.sequence.give_back()
        if copier.reserve(self._on_clash):
            return
        clashing = takewhile(lambda record: record.number < copier.before, self.dump.read_records())
        ids = [record.id for record in islice(clashing, _IDS_IN_EXCEPTION)]
        count = len(ids) + sum(1 for _ in clashing)
        more = f" and {count - _IDS_IN_MESSAGE:,} more" if count > _IDS_IN_MESSAGE else ""
        raise ClashError(
            f"{self._store.url} has given out {', '.join(ids[:_IDS_IN_MESSAGE])}{more} before; nothing was loaded."
            " Load into a new session, or pass on_clash='renumber' to give all of the dump new IDs, or"
            " on_clash='skip' to take only those whose IDs are new",
            tuple(ids),
        )

    def _load_readable(self, copier: RecordCopier, record: DumpRecord) -> None:
        line, schema = record.line, self.dump.schema_of(record)
        if not isinstance(schema, Schema) or schema.name != record.name:
            raise ValueError(f"the schema of {record.id}, {line.get('schema')!r}, is not in the dump")
        fields = line.get("fields")
        if "values" in line:
            packed = bytes_in(line, "values")
            try:
                values = unpack(packed)
            except NotJSON as error:
                raise ValueError(f"the bytes of {record.id} are no values: {error}") from error
        elif type(fields) is dict and fields.keys() == {*schema.fields}:
            values = [fields[field] for field in schema.fields]
            packed = self._decoder.pack(values)
        else:
            raise ValueError(f"the fields of {record.id} are not those of its schema")
        schema.check(values)
        state = schema.state(values) if record.member else None
        copier.add(record.number, schema.number, number_in(line, "revision"), packed, state)

    def _load_unreadable(self, copier: RecordCopier, record: DumpRecord) -> None:
        data = bytes_in(record.line, "record")
        state = str(record.line.get("state", "")) if record.member else None
        schemas = self.dump.schemas.values()
        named = next((s.number for s in schemas if isinstance(s, Schema) and s.name == record.name), 0)
        copier.add_unreadable(record.number, named, data, state)

    def _set_times(self) -> None:
        """Give the session the times of the dumped one."""
        restored = self.dump.times()
        if self._directory is None or restored is None:
            return
        try:
            self._directory.restore(*restored)
        except OverflowError as error:
            raise ValueError(f"its times {restored[1]} are not times in ns") from error
