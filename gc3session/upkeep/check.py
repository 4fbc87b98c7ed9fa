"""Is all that is known of a session right?  Everything is read, and each fault is a finding.

This is written from FORMAT.md and shares no code with what writes a session.  Of the library it
uses the directory's paths and URL (directory.py), and the tables as bytes (`Tables.contents`).
So a fault of the index, the ledger, the mirror or the codec is found here, and not made again.

Memory is flat: the tables are walked side by side in the order of N, and of each N no more is
kept than a bit.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

import msgpack

from ..directory import SessionDirectory
from ..errors import CorruptStore, DamagedSession, InvalidArgument, UnknownFormat
from ..format.validation import Fault, Finding, SchemaFound, check_values, record_found, schema_found, state_in
from ..system.number_set import Numbers
from ..tables.interface import MEMBERS, META, RECORDS, SCHEMAS, SESSIONS, STATES, Contents, Tables
from ..tables.urls import StoreURL, make_tables
from .check_index import IndexCheck, SessionRow, row_found
from .check_mirror import MirrorCheck, MirrorCopy, mirror_copy

Progress = Callable[[int, int], None]

_FORMAT: Final = 1
_MOST_FAULTS: Final = 200  # of the structure: a damaged page tells more of them than anybody reads
_SHOWN: Final = 20
_STEP: Final = 4096


class Check(Iterator[Finding]):
    """The findings of one check of a session, one after the other.

    A reference to a record that the store doesn't have is no fault: `remove` leaves such
    references to what it removes.  They are counted, and with *references* they are findings.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        tables: Tables | None,
        *,
        references: bool = False,
        progress: Progress = lambda done, total: None,
        options: dict[str, Any] | None = None,
    ) -> None:
        # The work doesn't know of this object: so it ends, and gives back what it holds, with it.
        self._work = _Work(directory, tables, references, progress, options or {})
        self._findings = self._work.check()

    def __next__(self) -> Finding:
        return next(self._findings)

    def close(self) -> None:
        """End the check, and give back what it holds."""
        self._findings.close()

    @property
    def records(self) -> int:
        """How many records have been read."""
        return self._work.records

    @property
    def tasks(self) -> int:
        """How many tasks of the session have been looked at."""
        return self._work.tasks

    @property
    def dangling(self) -> int:
        """How many records have a reference to one that isn't in the store."""
        return self._work.dangling

    @property
    def examples(self) -> list[tuple[str, int]]:
        """Some of these: the ID, and the N that it refers to."""
        return self._work.examples


class _Work:
    """The work of a check, and its figures."""

    def __init__(
        self,
        directory: SessionDirectory,
        tables: Tables | None,
        references: bool,
        progress: Progress,
        options: dict[str, Any],
    ) -> None:
        self.records = 0
        self.tasks = 0
        self.dangling = 0
        self.examples: list[tuple[str, int]] = []
        self._directory = directory
        self._tables = tables
        self._references = references
        self._progress = progress
        self._options = options
        self._schemas: dict[int, SchemaFound] = {}

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
            except DamagedSession:  # the same is told of both
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
                    yield Finding(
                        "directory", name, "it is missing, and with it the time when the session was started"
                    )
                continue
            if not stat.S_ISREG(mode):
                yield Finding("directory", name, "it is not a regular file")

    def _check_no_store(self, url: str) -> Iterator[Finding]:
        try:
            self._directory.check_no_tasks(url)
        except DamagedSession as error:
            yield Finding("directory", url, str(error))
            return
        with mirror_copy(self._directory) as mirror:
            mirror.take()
            yield from MirrorCheck(mirror, None).end()
        yield from self._check_known(url)

    def _check_known(self, url: str) -> Iterator[Finding]:
        """Give the finding that the store at *url*, which is missing or has no such session, can't be the session's.

        One in the directory may still be made by the first write.
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

        def problem(told: str) -> None:
            if len(faults) < _MOST_FAULTS and told not in faults[-_SHOWN:]:
                faults.append(told)

        with mirror_copy(self._directory) as mirror:
            readable = False
            try:
                with tables.contents(problem, held=mirror.take) as contents:
                    readable = True
                    for fault in faults:
                        yield Finding("structure", tables.url, fault)
                    if not faults:  # what is missing would be told once more for each record and entry
                        yield from self._check_tables(contents, tables.url, identity, mirror)
            except (CorruptStore, UnknownFormat) as error:
                if readable:
                    raise
                mirror.release()
                yield Finding("structure", tables.url, str(error))

    def _check_tables(
        self, contents: Contents, url: str, identity: bytes | None, mirror: MirrorCopy
    ) -> Iterator[Finding]:
        version = contents.get(META, b"format")
        if version != msgpack.packb(_FORMAT):
            yield Finding(
                "format",
                "meta",
                f"the format is {version!r}; this version of gc3session knows {_FORMAT} only: upgrade gc3session",
            )
            return
        if len(contents.get(META, b"store") or b"") != 16:
            yield Finding("format", "meta", "the store has no identity of 16 bytes")
        next_number = _number(contents.get(META, b"next N"), 8)
        if next_number is None:
            yield Finding("sequence", "meta", "'next N' is not a number of 8 bytes")
        yield from self._check_schemas(contents)
        rows: dict[int, SessionRow] = {}
        own: SessionRow | None = None
        damaged_rows = 0
        for finding, row in self._check_sessions(contents):
            if finding is not None:
                yield finding
            if row is not None:
                rows[row.number] = row
                own = row if row.identity == identity else own
            damaged_rows += row is None
        present = Numbers()
        yield from self._check_records(contents, present, next_number)
        index = IndexCheck(contents, self._schemas, present, next_number)
        for number in sorted({*rows, *_sessions(contents, MEMBERS), *_sessions(contents, STATES)}):
            if number not in rows:
                if not damaged_rows:  # else it was told of
                    yield Finding(
                        "session", f"session number {number}", "the index has entries of it, but it has no row"
                    )
                continue
            ours = own is not None and number == own.number
            lines = MirrorCheck(mirror if ours else None, rows[number])
            yield from index.check(number, lines.line)
            yield from lines.end()
            if ours:
                self.tasks = index.entries
        if damaged_rows:
            return  # which entries and which tasks have no session, and what the mirror should be, isn't known
        if own is None and identity is not None:
            yield from MirrorCheck(mirror, None).end()
            yield from self._check_known(url)
        yield from index.check_late()

    def _check_schemas(self, contents: Contents) -> Iterator[Finding]:
        for key, data in contents.walk(SCHEMAS):
            try:
                self._schemas[int.from_bytes(key, "big")] = schema_found(key, data)
            except Fault as fault:
                yield Finding("schema", f"schema {int.from_bytes(key, 'big')}", str(fault))

    def _check_sessions(self, contents: Contents) -> Iterator[tuple[Finding | None, SessionRow | None]]:
        next_session = _number(contents.get(META, b"next session") or b"\0\0\0\1", 4)
        if next_session is None:
            yield Finding("sequence", "meta", "'next session' is not a number of 4 bytes"), None
        numbers: set[int] = set()
        for key, data in contents.walk(SESSIONS):
            where = f"session {key.hex()}"
            try:
                row = row_found(key, data)
            except Fault as fault:
                yield Finding("session", where, f"its row is damaged: {fault}"), None
                continue
            if row.number in numbers:
                yield Finding("session", where, f"another session has its number {row.number}, too"), None
                continue
            numbers.add(row.number)
            if next_session is not None and row.number >= next_session:
                yield Finding("sequence", where, f"its number {row.number} has not been handed out"), row
            else:
                yield None, row

    # -- the records

    def _check_records(self, contents: Contents, present: Numbers, next_number: int | None) -> Iterator[Finding]:
        targets = Numbers()
        total = contents.entries(RECORDS)
        for key, data in contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            if len(key) != 8 or number == 0:
                yield Finding("record", f"record {key.hex()}", "its key is no N")
                continue
            present.add(number)
            self.records += 1
            if self.records % _STEP == 0:
                self._progress(self.records, total)
            where = f"record {number}"
            try:
                where = self._check_record(number, data, targets)
            except Fault as fault:
                yield Finding("record", where, f"it can't be read: {fault}")
            if next_number is not None and number >= next_number:
                yield Finding("sequence", where, f"its N has not been handed out: 'next N' is {next_number}")
        self._progress(self.records, total)
        if any(number not in present for numbers in targets.chunks(_STEP) for number in numbers):
            yield from self._check_references(contents, present)

    def _check_record(self, number: int, data: bytes, targets: Numbers) -> str:
        """Return the ID of a record; note what it refers to.  Raise Fault if it can't be read."""

        def refer(target: int) -> None:
            if target not in targets:
                targets.add(target)

        found = record_found(number, data)
        schema = self._schemas.get(found.schema)
        if schema is None:
            raise Fault(f"its schema {found.schema} is damaged or missing")
        state_in(found, schema)
        check_values(found, refer)
        return f"{schema.name}.{number}"

    def _check_references(self, contents: Contents, present: Numbers) -> Iterator[Finding]:
        """Note which records refer to those that aren't there."""
        for key, data in contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            missing: list[int] = []

            def refer(target: int, missing: list[int] = missing) -> None:
                if target not in present:
                    missing.append(target)

            try:
                found = record_found(number, data)
                check_values(found, refer)
                where = f"{self._schemas[found.schema].name}.{number}"
            except (Fault, KeyError):
                continue  # told before
            if missing:
                self.dangling += 1
                if len(self.examples) < _SHOWN:
                    self.examples.append((where, missing[0]))
                if self._references:
                    yield Finding(
                        "reference", where, f"it refers to record {missing[0]}, which is not in the store"
                    )


def _number(data: bytes | None, size: int) -> int | None:
    """Return the number that *data* are, None if they are not of that size, or it is 0."""
    return int.from_bytes(data, "big") or None if data is not None and len(data) == size else None


def _sessions(contents: Contents, table: str) -> set[int]:
    """Return the numbers of the sessions in a set table."""
    return {int.from_bytes(key[:4], "big") for key in contents.keys(table)}


def check_session(
    path: str | os.PathLike[str],
    *,
    references: bool = False,
    progress: Progress = lambda done, total: None,
    **store_options: Any,
) -> Check:
    """Return the findings of a check of the session at *path*, one by one as they come; none if all is right.

    Nothing is written, no class is needed, and the process lives whatever stands in the files.
    Beside writers it is one state of the session that is checked.

    Args:
        path: the session's directory.
        references: references to records that the store doesn't have are findings, too.
        progress: called with how many records have been read, of how many.
        store_options: those of the store, for LMDB `map_size` and `allow_network_filesystem`.

    Raise NotASession if there is none, OpenError if its files may not be read.
    """
    directory = SessionDirectory(path)
    with contextlib.suppress(DamagedSession):  # a finding
        directory.check(create=False)
    return Check(directory, None, references=references, progress=progress, options=store_options)
