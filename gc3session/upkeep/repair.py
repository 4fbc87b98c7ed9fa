"""The repair of a damaged session, without loss: what can't be read is moved to `damaged/`.

A repair can be interrupted at any moment and done again, because of its order::

    1. anything but a regular file where one should be is moved to `damaged/`
    2. the tables are repaired in one transaction; what is taken out is in `damaged/` before. If the
       structure of the data file is damaged, this is done in a new file that is made from what can
       be read. Then it replaces the old one, which has got a second name in `damaged/` before
    3. `store.url` and `created` are made again if they are missing
    4. the mirror is written anew
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import warnings
from functools import partial
from itertools import chain
from typing import Any, Final

import attrs

from ..directory import SessionDirectory
from ..errors import (
    CorruptRecord,
    CorruptStore,
    DamagedSession,
    InvalidArgument,
    MirrorWarning,
    OpenError,
    UnknownFormat,
)
from ..format.frame import header_of
from ..index.entries import MirrorNote, Row
from ..index.index_writer import SESSION_NAMES
from ..records.ids import parse_id
from ..store.mirrored import mirrored_index
from ..store.store import make_store
from ..system.filesystem import opened_regular, write_durably, write_error
from ..system.number_set import Numbers
from ..system.temporary import delete_leftovers
from ..tables.interface import META, RECORDS, SESSIONS, Tables, Writer
from ..tables.lmdb.data_file.meta import can_be_lock_file
from ..tables.urls import StoreURL, make_tables
from .check import check_session
from .quarantine import DAMAGED, Quarantine
from .repair_tables import TablesRepair, copies_in, ignored
from .salvage import Salvage

_ROUNDS: Final = 10  # three are enough for all that is known
_MOST_REPORT_LINES: Final = 10_000
_LONGEST_LINE: Final = 4096  # bytes of a line of the mirror


@attrs.frozen
class Repaired:
    """What a repair has done, or with *dry_run* would do.

    Attributes:
        done: a line for each thing that was done; empty if nothing was wrong.
        quarantined: the names of what was moved to `damaged/`.
        dry_run: whether nothing was changed.
    """

    done: list[str]
    quarantined: list[str]
    dry_run: bool


def repair_session(path: str | os.PathLike[str], *, dry_run: bool = False, **store_options: Any) -> Repaired:
    """Repair the session at *path*, and return what was done; with *dry_run* only what would be done.

    The mirror, the index, counters and missing files are made right again. A record or schema that
    can't be read is moved to the directory `damaged` in the session's, and so is a data file that
    had to be replaced. No task that can be read is lost.

    Raise NotASession if there is none, StoreInUse if the store's files must be replaced while another
    program (or this one) has them open, OpenError, WriteError or ReadOnlyError if it can't be repaired.
    """
    directory = SessionDirectory(path)
    with contextlib.suppress(DamagedSession):
        directory.check(create=False)
    return _Repair(directory, dry_run, store_options).run()


def _knows(tables: Tables, identity: bytes) -> bool:
    """Return whether a session of that identity is in the store or, if that is damaged, was in it."""
    faults: list[str] = []
    try:
        with tables.contents(faults.append) as contents:
            names = (value for _, value in contents.walk(META, prefix=SESSION_NAMES))
            if identity in chain(names, (key for key, _ in contents.walk(SESSIONS))):
                return True
        return bool(faults) and any(key == identity for key, _ in copies_in(tables, SESSIONS))
    except OpenError:
        return False


class _Repair:
    def __init__(self, directory: SessionDirectory, dry_run: bool, options: dict[str, Any]) -> None:
        self._directory = directory
        self._dry_run = dry_run
        self._options = options
        self._done: list[str] = []
        self._more = 0  # lines that are not in `done`
        self._damaged = Quarantine(directory, dry_run)
        self._listed = Numbers()  # Ns in the mirror
        self._kinds: set[str] = set()  # of the findings
        self._wrong_url = False  # whether `store.url` must be made again
        self._no_store = False  # whether what was in the store's place has been moved

    def run(self) -> Repaired:
        directory = self._directory
        try:
            if not self._dry_run:
                self._delete_leftovers()
            self._kinds = {finding.kind for finding in check_session(directory.path, **self._options)}
            if not self._kinds:
                return Repaired([], [], self._dry_run)
            self._move_irregular_files()
            self._read_mirror()
            url, identity = self._location()
            with contextlib.closing(make_tables(url, read_only=self._dry_run, **self._options)) as tables:
                identity = self._repair_store(tables, identity)
            self._repair_files(identity)
        except OSError as error:
            raise write_error(
                error, f"{directory.path} can't be repaired", "ask its owner for the rights"
            ) from error
        if self._more:
            self._done.append(f"and {self._more:,} more")
        return Repaired(self._done, self._damaged.names, self._dry_run)

    def _report(self, what: str) -> None:
        if len(self._done) < _MOST_REPORT_LINES:
            self._done.append(what)
        else:
            self._more += 1

    def _quarantine(self, path: str, why: str) -> None:
        self._report(f"{os.path.basename(path)}: {why}; moved to {DAMAGED}/")
        self._damaged.move(path)

    # -- the files

    def _delete_leftovers(self) -> None:
        """Delete what was written under temporary names by a process that was killed, such as another repair."""
        delete_leftovers(self._directory.jobs)
        for path in self._directory.files:
            delete_leftovers(path, files=True)

    def _move_irregular_files(self) -> None:
        directory = self._directory
        for path in directory.files:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    self._quarantine(path, "it is not a regular file")
        if os.path.lexists(directory.jobs) and not os.path.isdir(directory.jobs):
            self._quarantine(directory.jobs, "it is not the directory of a store")
            self._no_store = True

    def _location(self) -> tuple[StoreURL, bytes | None]:
        """Return the URL of the store, and the session's identity if that is known.

        If there is no store at the URL, but one in the directory, the latter is the session's.
        """
        directory = self._directory
        if self._no_store and self._dry_run:  # what is in the store's place has not been moved
            return StoreURL.of_path(f"{directory.jobs}.none"), None
        own = directory.own_store_url()
        inside = os.path.lexists(directory.jobs)
        try:
            url, identity = directory.store_url()
        except DamagedSession as error:
            if len(self._listed) and not inside and not self._no_store:
                raise DamagedSession(
                    f"{error}: nothing else says where the store of the {len(self._listed):,} tasks in"
                    f" {directory.INDEX_FILENAME} is"
                ) from error
            return own, None
        try:
            with contextlib.closing(make_tables(url, read_only=True, **self._options)) as tables:
                there = tables.exists()
                known = directory.holds(url) or not url.is_lmdb or (there and _knows(tables, identity))
        except InvalidArgument as error:
            if not inside:
                raise DamagedSession(f"{directory.url_file}: {error}; correct that file") from error
            there = known = False
        if not there and inside:
            self._wrong_url = True
            return own, identity
        if not known:  # `store.url` may name any store: the directory may come from somebody else
            raise DamagedSession(
                f"{directory.url_file} leads to {url}, which is missing, unreadable or doesn't know this session."
                " A repair changes nothing outside the session's directory: if that is its store, move it to"
                f" {directory.jobs}, and repair the session again"
            )
        return url, identity

    def _repair_files(self, identity: bytes) -> None:
        directory = self._directory
        try:
            directory.store_url()
        except DamagedSession:
            self._wrong_url = not self._no_store or not self._dry_run
        if self._wrong_url:
            if os.path.lexists(directory.url_file):
                self._report(
                    f"{directory.STORE_URL_FILENAME}: it doesn't lead to this session's store; moved to {DAMAGED}/"
                )
                # A link, so that the file is never missing: nothing else may know the identity.
                self._damaged.link(directory.url_file)
            self._report(f"{directory.STORE_URL_FILENAME}: made again, for {directory.DEFAULT_JOBS_DIR}")
            if not self._dry_run:
                line = directory.line(StoreURL.of_path(directory.jobs), identity)
                write_durably(directory.url_file, line.encode())
        created = directory.timestamp_files["start"]
        if not os.path.lexists(created):
            self._report(f"{os.path.basename(created)}: made again, but when the session was started is not known")
            if not self._dry_run:
                write_durably(created, b"")
        if "mirror" in self._kinds or not os.path.lexists(directory.mirror):
            self._report(f"{directory.INDEX_FILENAME}: rewritten from the index")
        if not self._dry_run:
            self._repair_mirror()

    def _repair_mirror(self) -> None:
        url, identity = self._directory.store_url()
        with (
            warnings.catch_warnings(),
            make_store(url, **self._options) as store,
            mirrored_index(store, self._directory, identity) as (index, mirror),
            store.lock,
        ):
            warnings.simplefilter("ignore", MirrorWarning)
            if store.tables.exists():
                store.write(lambda index_writer, writer: index_writer.rewrite_mirror(identity))
                mirror.mend(index.store, index.identity)

    # -- the store

    def _repair_store(self, tables: Tables, identity: bytes | None) -> bytes:
        """Repair the store; return the session's identity."""
        if len(self._listed) and not self._directory.holds(tables.url) and not tables.exists():
            # A store elsewhere may come back: a database that is being restored, a disk that isn't mounted.
            raise DamagedSession(
                f"{self._directory.mirror} lists {len(self._listed):,} tasks, but the store {tables.url} is missing:"
                f" restore it, or correct {self._directory.url_file}; nothing was repaired"
            )
        if not tables.exists() or self._move_unusable(tables):
            self._empty_mirror()
            return identity or secrets.token_bytes(16)
        if self._is_damaged(tables):
            return self._rebuild(tables, identity)
        return self._repair_tables(tables, identity)

    def _read_mirror(self) -> None:
        """Note which Ns the mirror lists."""
        with contextlib.suppress(OSError), opened_regular(self._directory.mirror) as file:
            while line := file.readline(_LONGEST_LINE):
                parsed = parse_id(line.strip().decode("utf-8", "replace"))
                if parsed is not None:
                    self._listed.add(parsed[1])

    def _empty_mirror(self) -> None:
        """Empty the mirror, because the session has no store, and keep the old one in quarantine."""
        if len(self._listed):
            self._quarantine(self._directory.mirror, f"its {len(self._listed):,} tasks have no store any more")
        elif os.path.lexists(self._directory.mirror):
            self._report(f"{self._directory.INDEX_FILENAME}: emptied, as there are no tasks")
        if not self._dry_run:
            write_durably(self._directory.mirror, b"")

    def _move_unusable(self, tables: Tables) -> bool:
        """Move what can't be a file of the store out of its place; return whether the whole store was moved."""
        path = getattr(tables, "path", None)
        if path is None:
            return False
        lock = os.path.join(path, "lock.mdb")
        if not can_be_lock_file(lock):
            self._move_of_store(tables, lock, "it is not a lock file of LMDB, which the next opening makes")
        try:
            status = os.lstat(os.path.join(path, "data.mdb"))
        except FileNotFoundError:
            why = "it has no data.mdb"
        else:
            if stat.S_ISREG(status.st_mode) and status.st_size:
                return False
            why = "its data.mdb is empty" if stat.S_ISREG(status.st_mode) else "its data.mdb is not a regular file"
        self._move_of_store(tables, path, why)
        return True

    def _move_of_store(self, tables: Tables, path: str, why: str) -> None:
        """Move *path* out of a store in the session's directory. Raise StoreInUse if a program has the store open."""
        if not self._directory.holds(tables.url):
            raise DamagedSession(
                f"{path}: {why}. {self._directory.url_file} leads there, but a repair changes nothing outside the"
                " session's directory: correct that file, or restore the store from a backup"
            )
        with contextlib.nullcontext() if self._dry_run else tables.exclusive():
            self._quarantine(path, why)

    @staticmethod
    def _is_damaged(tables: Tables) -> bool:
        faults: list[str] = []
        try:
            with tables.contents(faults.append):
                return bool(faults)
        except (CorruptStore, UnknownFormat):
            return True

    def _rebuild(self, tables: Tables, identity: bytes | None) -> bytes:
        """Make a new store from what can be read of the old one; return the session's identity."""
        remaining = tables.remains()
        if remaining is None:
            raise CorruptStore(
                f"{tables.url} is damaged, and can't be repaired from here: restore it from a backup"
            )
        with remaining as remains:
            salvage = Salvage(remains, self._listed)
            if self._dry_run:
                self._report(salvage.fill(None))
                self._damaged.link(remains.path)
                return identity or secrets.token_bytes(16)

            def fill(new: Tables) -> None:
                nonlocal identity
                self._report(salvage.fill(new))
                identity = self._repair_tables(new, identity)

            tables.rebuild(self._damaged.link, fill)
        return identity or secrets.token_bytes(16)

    def _identity(self, tables: Tables, known: bytes | None) -> bytes:
        """Return the identity of the session whose mirror is here; *known* is that of `store.url`.

        If the store doesn't know that one, though the mirror has tasks, it is another session of the store.
        """
        rows: dict[bytes, Row | None] = {}
        with tables.contents(ignored) as contents:
            numbers = set[int]()
            for key, identity in contents.walk(META, prefix=SESSION_NAMES):
                numbers.add(int.from_bytes(key[len(SESSION_NAMES) :], "big"))
                rows[identity] = None
            for key, data in contents.walk(SESSIONS):
                rows[key] = None
                with contextlib.suppress(CorruptRecord):
                    rows[key] = row = Row.parsed(key, data)
                    numbers.add(row.number)
            listed, inside = bool(len(self._listed)), self._directory.holds(tables.url)
            if known is not None and (known in rows or not listed or not inside):
                return known
            lost = set[int]()
            for _, record in contents.walk(RECORDS):
                with contextlib.suppress(CorruptRecord):
                    lost.add(header_of(record).home)
            lost -= numbers | {0}
        if len(lost) == 1 and (known is not None or not rows):  # it has tasks, but neither a row nor a name
            return known or secrets.token_bytes(16)
        if len(rows) > 1 or lost:
            status = os.lstat(self._directory.mirror) if os.path.lexists(self._directory.mirror) else None
            notes = {i: MirrorNote(*row.mirror) for i, row in rows.items() if status and row and row.mirror}
            place = status and (status.st_ino, status.st_size)
            rows = {identity: rows[identity] for identity, note in notes.items() if note[:2] == place}
            if len(rows) != 1:
                raise DamagedSession(
                    f"{self._directory.url_file} is lost, or not that of this session, and nothing else says which of"
                    f" the sessions in {tables.url} this is: restore that file from a backup"
                )
        if not rows:
            return known or secrets.token_bytes(16)
        self._wrong_url = True
        return next(iter(rows))

    def _repair_tables(self, tables: Tables, identity: bytes | None) -> bytes:
        """Repair the tables; return the session's identity."""
        identity = self._identity(tables, identity)
        repair = TablesRepair(tables, identity, self._damaged, self._report)
        for _ in range(_ROUNDS):
            run = partial(self._round, repair, len(self._done), len(self._damaged.names))
            if not (run(None) if self._dry_run else tables.write(run)) or self._dry_run:
                return identity
        raise CorruptStore(f"{tables.url} is damaged in a way that can't be repaired: restore it from a backup")

    def _round(self, repair: TablesRepair, done: int, names: int, writer: Writer | None) -> bool:
        # If the data file has to grow, this runs a second time.
        del self._done[done:], self._damaged.names[names:]
        return repair.round(writer)
