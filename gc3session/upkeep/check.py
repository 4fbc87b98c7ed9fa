"""The check of a session: everything on disk is read, and each fault is a finding.

Bytes are taken apart by the code that reads them anywhere (format/, records/values.py,
index/entries.py), and the tables are read as bytes (`Tables.contents`), not through an index.
Two readers of the format that share no code with the package are `tools/inspect_session.py` and the
judge of the tests, `tests/consistency.py`.

Memory stays flat: the index is read session by session, then the records block by block beside it,
and all that is kept of each N is a bit.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Iterator
from typing import Any, Final

import attrs
import msgpack

from ..directory import SessionDirectory
from ..errors import CorruptRecord, CorruptStore, DamagedSession, InvalidArgument, UnknownFormat
from ..format.frame import FORMAT
from ..format.schema import Schema
from ..index.entries import STATE_KEY, MirrorNote, Row
from ..index.index_writer import session_name_key
from ..index.states import unpack_state
from ..system.number_set import Numbers
from ..tables.interface import (
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    Contents,
    OnProgress,
    Tables,
    no_progress,
    with_progress,
)
from ..tables.urls import StoreURL, make_tables
from .check_index import Entry, Held, IndexCheck
from .check_mirror import MirrorCheck, MirrorCopy
from .finding import Finding
from .record_reader import Read, RecordReader

_MOST_STRUCTURE_FAULTS: Final = 200  # one damaged page can have more faults than anybody reads
_RECENT_FAULTS: Final = 20  # a fault that is one of so many before it is not reported again
_MOST_EXAMPLES: Final = 20
_SESSION: Final = session_name_key(0)[:-4]
_NOTHING: Final = Held(0, {}, 0, whole=True)


class Check(Iterator[Finding]):
    """The findings of one check of a session, one after the other.

    A reference to a record that the store doesn't have is not a fault, because `remove` leaves
    references to what it removes. They are counted, and with *references* they are findings.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        tables: Tables | None,
        *,
        references: bool = False,
        progress: OnProgress = no_progress,
        options: dict[str, Any] | None = None,
    ) -> None:
        # The work has no reference to this object, so when this one is dropped, the work ends and
        # gives back what it holds.
        self._work = _Work(directory, tables, references, progress, options or {})
        self._findings = self._work.check()

    def __next__(self) -> Finding:
        return next(self._findings)

    def close(self) -> None:
        """End the check before all findings have been given, and close what it has open."""
        self._findings.close()

    @property
    def records(self) -> int:
        """How many records have been read."""
        return self._work.records

    @property
    def tasks(self) -> int:
        """How many tasks of the session have been checked."""
        return self._work.tasks

    @property
    def dangling(self) -> int:
        """How many records have a reference to one that isn't in the store."""
        return self._work.dangling

    @property
    def examples(self) -> list[tuple[str, int]]:
        """Some of these: the ID of the record, and the N that it refers to."""
        return self._work.examples


@attrs.define
class _Work:
    """The work of a check, and its figures."""

    _directory: SessionDirectory
    _tables: Tables | None
    _references: bool
    _progress: OnProgress
    _options: dict[str, Any]
    records: int = 0
    tasks: int = 0
    dangling: int = 0
    examples: list[tuple[str, int]] = attrs.field(factory=list)
    _targets: Numbers = attrs.field(factory=Numbers)  # Ns that records refer to
    _reader: RecordReader = attrs.field(init=False)
    _rows: dict[int, tuple[bytes, Row]] = attrs.field(factory=dict)  # number of a session -> its identity and row
    _all_rows: bool = True  # whether all rows can be read

    def __attrs_post_init__(self) -> None:
        self._reader = RecordReader(self._targets.add)

    # -- the directory

    def check(self) -> Generator[Finding, None, None]:
        directory = self._directory
        yield from self._check_files()
        identity = None
        try:
            url, identity = directory.store_url()
        except DamagedSession as error:
            yield Finding("directory", directory.STORE_URL_FILENAME, str(error))
            try:
                url = directory.own_store_url()
            except DamagedSession:  # its message would be the same
                return
        try:
            tables = self._tables or make_tables(url, read_only=True, **self._options)
            there = tables.exists()
        except InvalidArgument as error:
            yield Finding("directory", directory.STORE_URL_FILENAME, str(error))
            return
        try:
            if there:
                yield from self._check_store(tables, identity)
            else:
                yield from self._check_no_store(url)
        finally:
            if self._tables is None:
                tables.close()

    def _check_files(self) -> Iterator[Finding]:
        directory = self._directory
        for name, needed in (
            (directory.TIMESTAMP_FILES["start"], True),
            (directory.TIMESTAMP_FILES["end"], False),
        ):
            try:
                mode = os.lstat(os.path.join(directory.path, name)).st_mode
            except FileNotFoundError:
                if needed:
                    yield Finding("directory", name, "it is missing: when the session was started is not known")
                continue
            if not stat.S_ISREG(mode):
                yield Finding("directory", name, "it is not a regular file")

    def _check_no_store(self, url: str) -> Iterator[Finding]:
        try:
            self._directory.check_no_tasks(url)
        except DamagedSession as error:
            yield Finding("directory", url, str(error))
            return
        with MirrorCopy(self._directory, alone=True) as mirror:
            mirror.take()
            yield from MirrorCheck(mirror, b"", None, {}).end(_NOTHING)
        yield from self._check_known(url)

    def _check_known(self, url: str) -> Iterator[Finding]:
        """Give a finding for a store at *url* that is missing or doesn't know the session, if that can't be right.

        It can be if the store is inside the directory: the first write makes it.
        """
        if self._tables is None and StoreURL(url).is_lmdb and not self._directory.holds(url):
            yield Finding(
                "directory",
                self._directory.STORE_URL_FILENAME,
                f"it leads to {url}, which is missing or doesn't know this session",
            )

    # -- the store

    def _check_store(self, tables: Tables, identity: bytes | None) -> Iterator[Finding]:
        faults: list[str] = []

        def problem(fault: str) -> None:
            if len(faults) < _MOST_STRUCTURE_FAULTS and fault not in faults[-_RECENT_FAULTS:]:
                faults.append(fault)

        with MirrorCopy(self._directory, alone=self._directory.holds(tables.url)) as mirror:
            readable = False
            try:
                with tables.contents(problem, held=mirror.take) as contents:
                    readable = True
                    for fault in faults:
                        yield Finding("structure", tables.url, fault)
                    if not faults:  # else what is missing would be a finding again for each record and entry
                        yield from self._check_tables(contents, tables.url, identity, mirror)
            except (CorruptStore, UnknownFormat) as error:
                if readable:
                    raise
                mirror.close()
                yield Finding("structure", tables.url, str(error))

    def _check_tables(
        self, contents: Contents, url: str, identity: bytes | None, mirror: MirrorCopy
    ) -> Iterator[Finding]:
        version = contents.get(META, b"format")
        if version != msgpack.packb(FORMAT):
            yield Finding(
                "format",
                "meta",
                f"the format is {version!r}; this version of gc3session knows {FORMAT} only: upgrade gc3session",
            )
            return
        if len(contents.get(META, b"store") or b"") != 16:
            yield Finding("format", "meta", "the store has no identity of 16 bytes")
        next_number = _number(contents.get(META, b"next N"), 8)
        if next_number is None:
            yield Finding("sequence", "meta", "'next N' is not a number of 8 bytes")
        yield from self._check_schemas(contents)
        yield from self._check_states(contents)
        yield from self._check_sessions(contents, identity)
        index = IndexCheck(contents, self._reader, set(self._rows) if self._all_rows else None)
        lines: dict[int, MirrorCheck] = {}

        def noted(session: int, entry: Entry) -> None:
            lines[session].note(entry)

        def begun(session: int) -> None:
            owner, row = self._rows.get(session, (b"", None))
            lines[session] = MirrorCheck(mirror if owner == identity else None, owner, row, self._reader.schemas)

        for found in index.sessions(self._rows, begun, noted):
            if isinstance(found, Finding):
                yield found
                continue
            check = lines.pop(found.number)
            if found.number in self._rows:
                yield from check.end(found)
                if self._rows[found.number][0] == identity:
                    self.tasks = found.total
            elif self._all_rows:  # else one of the damaged ones may be its row
                yield Finding("session", f"session {found.number}", "it has entries in the tables, but no row")
        if self._all_rows and identity is not None and all(owner != identity for owner, _ in self._rows.values()):
            yield from MirrorCheck(mirror, identity, None, {}).end(_NOTHING)
            yield from self._check_known(url)
        yield from self._check_records(contents, index, next_number)

    def _check_schemas(self, contents: Contents) -> Iterator[Finding]:
        for key, data in contents.walk(SCHEMAS):
            try:
                schema = Schema.from_item(key, data)
                self._reader.schemas[schema.number] = schema
            except CorruptRecord as error:
                yield Finding("schema", f"schema {int.from_bytes(key, 'big')}", str(error))

    def _check_states(self, contents: Contents) -> Iterator[Finding]:
        for key, data in contents.walk(STATES):
            number = int.from_bytes(key, "big")
            try:
                if len(key) != STATE_KEY.size or not number:
                    raise CorruptRecord("its key is no number of a state")
                name = unpack_state(number, data)
                if self._reader.states.setdefault(name, number) != number:
                    raise CorruptRecord(f"it has the name {name!r}, as the state {self._reader.states[name]} has")
            except CorruptRecord as error:
                yield Finding("state", f"state {number}", str(error))

    def _check_sessions(self, contents: Contents, own: bytes | None) -> Iterator[Finding]:
        next_session = _number(contents.get(META, b"next session") or b"\0\0\0\1", 4)
        if next_session is None:
            yield Finding("sequence", "meta", "'next session' is not a number of 4 bytes")
        for key, data in contents.walk(SESSIONS):
            where = f"session {key.hex()}"
            try:
                row = Row.parsed(key, data)
            except CorruptRecord as error:
                self._all_rows = False
                yield Finding("session", where, f"its row is damaged: {error}")
                continue
            if row.number in self._rows:
                self._all_rows = False
                yield Finding("session", where, f"another session has the same number {row.number}")
                continue
            if key != own and row.mirror is not None:  # its text may be long, and a store may have many sessions
                row = row._replace(mirror=MirrorNote(*row.mirror)._replace(text=b"", blanks=[]))
            self._rows[row.number] = key, row
            if next_session is not None and row.number >= next_session:
                yield Finding("sequence", where, f"its number {row.number} has not been handed out")
            if contents.get(META, session_name_key(row.number)) != key:
                yield Finding("session", where, f"nothing leads from its number {row.number} to it")
        for key, identity in contents.walk(META, prefix=_SESSION):
            row_of = self._rows.get(int.from_bytes(key[len(_SESSION) :], "big"))
            if self._all_rows and (row_of is None or row_of[0] != identity):
                yield Finding(
                    "session", f"meta {key!r}", f"it leads to {identity.hex()}, but that isn't its session"
                )

    # -- the records

    def _check_records(self, contents: Contents, index: IndexCheck, next_number: int | None) -> Iterator[Finding]:
        present = Numbers()
        count = int.from_bytes(contents.get(META, b"records") or b"", "big")
        for block in index.blocks(with_progress(contents.walk(RECORDS), count, self._progress)):
            if isinstance(block, Finding):
                yield block
                continue
            for number, read in block.records.items():
                present.add(number)
                where = f"{read.schema.name}.{number}" if isinstance(read, Read) else f"record {number}"
                if not isinstance(read, Read):
                    yield Finding("record", where, f"it can't be read: {read}")
                if next_number is not None and number >= next_number:
                    yield Finding("sequence", where, f"its N has not been handed out: 'next N' is {next_number}")
        self.records = len(present)
        if self.records != count:
            yield Finding("format", "meta", f"'records' is {count}, but there are {self.records}")
        if any(number not in present for number in self._targets):
            yield from self._check_references(contents, present)

    def _check_references(self, contents: Contents, present: Numbers) -> Iterator[Finding]:
        """Count the records that refer to missing ones, and with *references* give findings for them."""
        missing: list[int] = []
        reader = RecordReader(lambda target: None if target in present else missing.append(target))
        reader.schemas = self._reader.schemas
        for key, data in contents.walk(RECORDS):
            missing.clear()
            number = int.from_bytes(key, "big")
            try:
                where = f"{reader.read(number, data).schema.name}.{number}"
            except CorruptRecord:
                continue  # it is a finding already
            if missing:
                self.dangling += 1
                if len(self.examples) < _MOST_EXAMPLES:
                    self.examples.append((where, missing[0]))
                if self._references:
                    yield Finding(
                        "reference", where, f"it refers to record {missing[0]}, which is not in the store"
                    )


def _number(data: bytes | None, size: int) -> int | None:
    """Return *data* as a number; None if they are missing, don't have that size, or the number is 0."""
    return int.from_bytes(data, "big") or None if data is not None and len(data) == size else None


def check_session(
    path: str | os.PathLike[str],
    *,
    references: bool = False,
    progress: OnProgress = no_progress,
    **store_options: Any,
) -> Check:
    """Check the session at *path*: return an iterator of findings, which gives none if all is right.

    Nothing is written, no class is needed, and no damage to the files can end the process.
    While others write, one state of the session is checked.

    Args:
        path: the session's directory.
        references: references to records that the store doesn't have are findings, too.
        progress: called with the number of records read, and of all.
        store_options: those of the store; for LMDB `map_size` and `allow_network_filesystem`.

    Raise NotASession if there is none, OpenError if its files can't be read.
    """
    directory = SessionDirectory(path)
    with contextlib.suppress(DamagedSession):  # a finding
        directory.check(create=False)
    return Check(directory, None, references=references, progress=progress, options=store_options)
