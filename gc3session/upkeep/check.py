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
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Final

import attrs

from ..directory import SessionDirectory
from ..errors import CorruptRecord, CorruptStore, DamagedSession, InvalidArgument, UnknownFormat
from ..tables.interface import RECORDS, Contents, OnProgress, Tables, no_progress
from ..tables.urls import StoreURL, make_tables
from .check_mirror import MirrorCopy
from .check_tables import TablesCheck
from .finding import Finding
from .record_reader import RecordReader

_MOST_STRUCTURE_FAULTS: Final = 200  # one damaged page can have more faults than anybody reads
_RECENT_FAULTS: Final = 20  # a fault that is one of so many before it is not reported again
_MOST_EXAMPLES: Final = 20


class Check(Iterator[Finding]):
    """The findings of one check of a session, one after the other.

    A reference to a record that the store doesn't have is not a fault, because `remove` leaves
    references to what it removes. They are counted, and with *references* they are findings.

    Attributes:
        records: how many records have been read.
        tasks: how many tasks of the session have been checked.
        dangling: how many records have a reference to one that isn't in the store.
        examples: some of these: the ID of the record, and the N that it refers to.
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
        self.records = self.tasks = self.dangling = 0
        self.examples: list[tuple[str, int]] = []
        # The work's reference to this object is weak: when this one is dropped, the work ends and gives back what
        # it holds.
        work = _Work(weakref.proxy(self), directory, tables, references, progress, options or {})
        self._findings = work.check()

    def __next__(self) -> Finding:
        return next(self._findings)

    def close(self) -> None:
        """End the check before all findings have been given, and close what it has open."""
        self._findings.close()


@attrs.define
class _Work:
    """The work of a check, which notes its figures there."""

    _figures: Check
    _directory: SessionDirectory
    _tables: Tables | None
    _references: bool
    _progress: OnProgress
    _options: dict[str, Any]

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
        with contextlib.ExitStack() as stack:
            try:
                tables = self._tables or make_tables(url, read_only=True, **self._options)
                if self._tables is None:
                    stack.callback(tables.close)
                there = tables.exists()
            except InvalidArgument as error:
                yield Finding("directory", directory.STORE_URL_FILENAME, str(error))
                return
            yield from self._check_store(tables, identity) if there else self._check_no_store(url)

    def _check_files(self) -> Iterator[Finding]:
        directory = self._directory
        for which, path in directory.timestamp_files.items():
            name = os.path.basename(path)
            if os.path.lexists(path):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    yield Finding("directory", name, "it is not a regular file")
            elif which == "start":
                yield Finding("directory", name, "it is missing: when the session was started is not known")

    def _check_no_store(self, url: str) -> Iterator[Finding]:
        try:
            self._directory.check_no_tasks(url)
        except DamagedSession as error:
            yield Finding("directory", url, str(error))
            return
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

        alone, locked = self._directory.holds(tables.url), tables.concurrent_writers
        with MirrorCopy(self._directory, alone=alone, locked=locked) as mirror, contextlib.ExitStack() as held:
            try:
                contents = held.enter_context(tables.contents(problem, held=mirror.take))
            except (CorruptStore, UnknownFormat) as error:
                mirror.close()  # which lets writers go on
                faults = [str(error)]
            for fault in faults:
                yield Finding("structure", tables.url, fault)
            if not faults:  # else what is missing would be a finding again for each record and entry
                yield from self._check_tables(contents, tables.url, identity, mirror)

    def _check_tables(
        self, contents: Contents, url: str, identity: bytes | None, mirror: MirrorCopy
    ) -> Iterator[Finding]:
        check = TablesCheck(contents, identity, mirror, self._progress)
        for finding in check.check():
            yield finding
            self._figures.records, self._figures.tasks = len(check.present), check.tasks
        self._figures.records, self._figures.tasks = len(check.present), check.tasks
        if not check.known and identity is not None:
            yield from self._check_known(url)
        if any(number not in check.present for number in check.targets):
            yield from self._check_references(contents, check)

    def _check_references(self, contents: Contents, check: TablesCheck) -> Iterator[Finding]:
        """Count the records that refer to missing ones, and with *references* give findings for them."""
        missing: list[int] = []
        reader = RecordReader(lambda target: None if target in check.present else missing.append(target))
        reader.schemas = check.reader.schemas
        for key, data in contents.walk(RECORDS):
            missing.clear()
            number = int.from_bytes(key, "big")
            try:
                where = f"{reader.read(number, data).schema.name}.{number}"
            except CorruptRecord:
                continue  # it is a finding already
            if missing:
                self._figures.dangling += 1
                if len(self._figures.examples) < _MOST_EXAMPLES:
                    self._figures.examples.append((where, missing[0]))
                if self._references:
                    yield Finding(
                        "reference", where, f"it refers to record {missing[0]}, which is not in the store"
                    )


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
