"""A session that is damaged is mended without loss; what can't be read is put aside, with its bytes.

The order is such that a repair may be ended at any moment, and done again::

    1. what is no regular file where one should be is moved to `damaged/`
    2. the tables, in one transaction; what leaves them is in `damaged/` before.  Where the structure of
       the data file is damaged that is done in a new one, made from what can be read of it:
       what the mirror alone still knows is in it before it takes the place of the old one,
       which has a second name in `damaged/` then
    3. `store.url` and `created`, if they are missing
    4. the mirror, as at any opening
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from sys import byteorder
from typing import Any, Final

import attrs
import msgpack

from ..directory import SessionDirectory
from ..errors import (
    CorruptStore,
    DamagedSession,
    InvalidArgument,
    MirrorWarning,
    OpenError,
    UnknownFormat,
    WriteError,
)
from ..format.frame import FORMAT
from ..format.validation import Fault
from ..index.index import Index
from ..index.mirror import Mirror
from ..records.ids import parse_id
from ..store.store import make_store
from ..system.filesystem import opened_regular, sync, write_durably
from ..system.number_set import Numbers
from ..system.temporary import delete_leftovers
from ..tables.interface import META, SESSIONS, Contents, Salvaged, Tables, Writer
from ..tables.lmdb.data_file.meta import LARGEST_LOCK_FILE
from ..tables.urls import StoreURL, make_tables
from .check import check_session
from .check_index import row_found
from .repair_tables import Known, Mending

DAMAGED: Final = "damaged"
"""The directory in a session's directory where what could not be read is put."""

LOCK_MAGIC: Final = (0xBEEFC0DE).to_bytes(4, byteorder)

_MOST_LINES: Final = 10_000
_SHOWN: Final = 20


@attrs.frozen
class Repaired:
    """What a repair has done, or with *dry_run* would do.

    Attributes:
        done: a line for each thing; there are none if nothing was wrong.
        aside: the names of what was put aside in `damaged/`.
        dry_run: nothing was changed.
    """

    done: list[str]
    aside: list[str]
    dry_run: bool


def repair_session(path: str | os.PathLike[str], *, dry_run: bool = False, **store_options: Any) -> Repaired:
    """Mend the session at *path*, and return what was done; with *dry_run* only tell.

    What can be mended without loss is: the mirror, the index, counters, missing files.  A record
    or schema that can't be read is put aside in the directory `damaged` of the session, and so
    is a data file that had to be made anew.  No task that can be read is lost.

    Raise NotASession if there is none, StoreInUse if the store's files must be replaced and another
    program (or this one) has them open, OpenError or WriteError if it can't be mended.
    """
    directory = SessionDirectory(path)
    with contextlib.suppress(DamagedSession):
        directory.check(create=False)
    return _Repair(directory, dry_run, store_options).run()


def is_lock(path: str) -> bool:
    """Return whether *path* can be LMDB's lock file, or isn't there."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LOCK_FILE:
            return False
        with open(path, "rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        return True
    # It begins with LMDB's magic number and the version of the lock's format; one of zeros is new.
    return not head.strip(b"\0") or head[:4] == LOCK_MAGIC


def _knows(tables: Tables, identity: bytes) -> bool:
    """Return whether a session of that identity is in the store, as far as that can be read."""
    try:
        with tables.contents(lambda told: None) as contents:
            return any(key == identity for key, _ in contents.walk(SESSIONS))
    except OpenError:
        return False


def _check_format(contents: Contents, url: str) -> None:
    """Raise UnknownFormat if a later version of gc3session has written this."""
    try:
        version = msgpack.unpackb(contents.get(META, b"format") or b"")
    except (ValueError, msgpack.UnpackException):
        return
    if type(version) is int and version > FORMAT:
        raise UnknownFormat(
            f"the store {url} has the format version {version}; this version of gc3session knows version {FORMAT}"
            " only, and has mended nothing: upgrade gc3session"
        )


class _Repair:
    def __init__(self, directory: SessionDirectory, dry_run: bool, options: dict[str, Any]) -> None:
        self._directory = directory
        self._dry_run = dry_run
        self._options = options
        self._done: list[str] = []
        self._more = 0
        self._aside: list[str] = []
        self._place = os.path.join(directory.path, DAMAGED)
        self._listed = Numbers()
        self._late: list[int] = []
        self._from_mirror = False
        self._kinds: set[str] = set()
        self._wrong_url = False
        self._no_store = False

    def run(self) -> Repaired:
        directory = self._directory
        try:
            if not self._dry_run:
                self._delete_leftovers()
            self._kinds = {finding.kind for finding in check_session(directory.path, **self._options)}
            if not self._kinds:
                return Repaired([], [], self._dry_run)
            self._move_what_is_no_file()
            url, identity = self._location()
            tables = make_tables(url, read_only=self._dry_run, **self._options)
            try:
                identity = self._mend_store(tables, identity)
            finally:
                tables.close()
            self._mend_files(identity)
        except OSError as error:
            raise WriteError(f"{error.filename or directory.path} can't be mended: {error.strerror}") from error
        if self._more:
            self._done.append(f"and {self._more:,} more")
        return Repaired(self._done, self._aside, self._dry_run)

    def _tell(self, told: str) -> None:
        if len(self._done) < _MOST_LINES:
            self._done.append(told)
        else:
            self._more += 1

    # -- putting aside

    def _free_name(self, name: str) -> str:
        """Return a path in `damaged/` that isn't taken."""
        os.makedirs(self._place, exist_ok=True)
        if os.path.islink(self._place):
            raise DamagedSession(f"{self._place} is a link, which leads elsewhere; delete it")
        path, n = os.path.join(self._place, name), 1
        while os.path.lexists(path):
            path, n = os.path.join(self._place, f"{name}.{n}"), n + 1
        return path

    def _put_aside(self, name: str, data: bytes) -> None:
        """Write bytes into a file in `damaged/`, unless they are there from a repair that was interrupted."""
        self._aside.append(name)
        if self._dry_run:
            return
        path = os.path.join(self._place, name)
        with contextlib.suppress(OSError), opened_regular(path) as file:
            if file.read() == data:
                return
        write_durably(self._free_name(name), data)
        sync(self._directory.path)

    def _move_aside(self, path: str, why: str) -> None:
        name = os.path.basename(path)
        self._tell(f"{name}: {why}; put aside")
        self._aside.append(name)
        if not self._dry_run:
            os.rename(path, self._free_name(name))
            sync(self._place)
            sync(self._directory.path)

    def _keep(self, path: str) -> None:
        """Give a file that is about to be replaced a second name in `damaged/`."""
        name = os.path.basename(path)
        self._aside.append(name)
        place = self._free_name(name)
        if not any(
            os.path.samestat(entry.stat(follow_symlinks=False), os.lstat(path))
            for entry in os.scandir(self._place)
        ):
            try:
                os.link(path, place, follow_symlinks=False)
            except OSError:  # another filesystem, or one without links
                self._copy(path, place)
        sync(self._place)
        sync(self._directory.path)

    def _copy(self, path: str, place: str) -> None:
        temporary = self._free_name(f"{os.path.basename(place)}.{os.getpid()}.tmp")
        with opened_regular(path) as source, open(temporary, "xb") as target:  # never through a link
            shutil.copyfileobj(source, target)
            os.fsync(target.fileno())
        os.rename(temporary, place)

    # -- the files

    def _delete_leftovers(self) -> None:
        """Delete what was written under temporary names by a process that was killed, such as another repair."""
        directory = self._directory
        delete_leftovers(os.path.join(directory.path, directory.DEFAULT_JOBS_DIR))
        for name in (*directory.TIMESTAMP_FILES.values(), directory.INDEX_FILENAME, directory.STORE_URL_FILENAME):
            delete_leftovers(os.path.join(directory.path, name), files=True)

    def _move_what_is_no_file(self) -> None:
        directory = self._directory
        for name in (*directory.TIMESTAMP_FILES.values(), directory.INDEX_FILENAME, directory.STORE_URL_FILENAME):
            path = os.path.join(directory.path, name)
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    self._move_aside(path, "it is not a regular file")
        if os.path.lexists(directory.jobs) and not os.path.isdir(directory.jobs):
            self._move_aside(directory.jobs, "it is not the directory of a store")
            self._no_store = True

    def _location(self) -> tuple[StoreURL, bytes | None]:
        """Return the URL of the store, and the session's identity if that is known.

        Where there is no store at the URL, but one in the directory, that is the session's.
        """
        directory = self._directory
        if self._no_store and self._dry_run:  # it is not moved
            return StoreURL.of_path(f"{directory.jobs}.none"), None
        own = directory.own_store_url()
        inside = os.path.lexists(directory.jobs)
        try:
            url, identity = directory.store_url()
        except DamagedSession as error:
            self._read_mirror()
            if len(self._listed) and not inside and not self._no_store:
                raise DamagedSession(
                    f"{error}: nothing else tells where the store of the {len(self._listed):,} tasks in"
                    f" {directory.INDEX_FILENAME} is"
                ) from error
            return own, None
        try:
            tables = make_tables(url, read_only=True, **self._options)
            try:
                there = tables.exists()
                known = directory.holds(url) or not url.is_lmdb or (there and _knows(tables, identity))
            finally:
                tables.close()
        except InvalidArgument as error:
            if not inside:
                raise DamagedSession(f"{directory.url_file}: {error}; correct that file") from error
            there = known = False
        if not there and inside:
            self._wrong_url = True
            return own, identity
        if not known:  # whoever made the directory wrote what he liked into `store.url`
            raise DamagedSession(
                f"{directory.url_file} leads to {url}, which is missing, unreadable or doesn't know this session,"
                f" and what is outside its directory stays as it is. If it is its store, move it to {directory.DEFAULT_JOBS_DIR} in"
                f" {directory.path}, and repair the session again"
            )
        return url, identity

    def _mend_files(self, identity: bytes) -> None:
        directory = self._directory
        try:
            directory.store_url()
        except DamagedSession:
            self._wrong_url = not self._no_store or not self._dry_run
        if self._wrong_url:
            if os.path.lexists(directory.url_file):
                self._tell(f"{directory.STORE_URL_FILENAME}: it doesn't lead to this session's store; put aside")
                if self._dry_run:
                    self._aside.append(directory.STORE_URL_FILENAME)
                else:  # it is never missing meanwhile: it may be the only one that knows the identity
                    self._keep(directory.url_file)
            self._tell(f"{directory.STORE_URL_FILENAME}: made again, for {directory.DEFAULT_JOBS_DIR}")
            if not self._dry_run:
                line = directory.line(StoreURL.of_path(directory.jobs), identity)
                write_durably(directory.url_file, line.encode())
        start = directory.TIMESTAMP_FILES["start"]
        if not os.path.lexists(os.path.join(directory.path, start)):
            self._tell(f"{start}: made again; when the session was started is not known")
            if not self._dry_run:
                write_durably(os.path.join(directory.path, start), b"")
        if "mirror" in self._kinds or not os.path.lexists(directory.mirror):
            self._tell(f"{directory.INDEX_FILENAME}: written anew from the index")
        if not self._dry_run:
            self._mend_mirror()

    def _mend_mirror(self) -> None:
        """Have the mirror compared with the index, and written anew, as an opening does."""
        directory = self._directory
        url, identity = directory.store_url()
        store = make_store(url, **self._options)
        mirror = Mirror(
            directory.mirror, directory.url_file, store.schemas, shared=store.tables.concurrent_writers
        )
        index = Index(store, identity)
        index.listener = mirror
        store.indexes.append(index)
        try:
            with warnings.catch_warnings(), store.lock:
                warnings.simplefilter("ignore", MirrorWarning)
                if store.tables.exists():
                    store.write(lambda ledger, writer: ledger.mend(identity))
        finally:
            store.indexes.remove(index)
            mirror.close()
            store.close()

    # -- the store

    def _mend_store(self, tables: Tables, identity: bytes | None) -> bytes:
        """Mend the store; return the session's identity."""
        self._read_mirror()
        if len(self._listed) and not self._directory.holds(tables.url) and not tables.exists():
            # What is elsewhere may come back: a database that is being restored, a disk that isn't mounted.
            raise DamagedSession(
                f"{self._directory.mirror} lists {len(self._listed):,} tasks, but the store {tables.url} is missing:"
                f" restore it, or correct {self._directory.url_file}; nothing was mended"
            )
        if not tables.exists() or self._move_unusable(tables):
            self._forget_mirror()
            return identity or secrets.token_bytes(16)
        if self._is_damaged(tables):
            return self._rebuild(tables, identity)
        return self._mend_tables(tables, identity)

    def _read_mirror(self) -> None:
        """Note which Ns the mirror lists, and which of them stand after greater ones."""
        greatest = 0
        with contextlib.suppress(OSError), opened_regular(self._directory.mirror) as file:
            while line := file.readline(4096):
                parsed = parse_id(line.strip().decode("utf-8", "replace"))
                if parsed is None or parsed[1] in self._listed:
                    continue
                self._listed.add(parsed[1])
                if parsed[1] < greatest:
                    self._late.append(parsed[1])
                greatest = max(greatest, parsed[1])

    def _forget_mirror(self) -> None:
        """Put a mirror aside whose store is gone."""
        if len(self._listed):
            self._move_aside(self._directory.mirror, f"its {len(self._listed):,} tasks have no store any more")
        elif os.path.lexists(self._directory.mirror):
            self._tell(f"{self._directory.INDEX_FILENAME}: emptied, as there are no tasks")
        if not self._dry_run:
            write_durably(self._directory.mirror, b"")

    def _move_unusable(self, tables: Tables) -> bool:
        """Move aside what is in the place of the store's files, and can't be one; return whether it was the store."""
        path = getattr(tables, "path", None)
        if path is None:
            return False
        lock = os.path.join(path, "lock.mdb")
        if not is_lock(lock):
            self._move_of_store(tables, lock, "it is not a lock of LMDB's; the next opening makes one")
        try:
            status = os.lstat(os.path.join(path, "data.mdb"))
        except FileNotFoundError:
            why = "it has no data.mdb"
        else:
            if stat.S_ISREG(status.st_mode) and status.st_size:
                return False
            why = "its data.mdb is empty" if stat.S_ISREG(status.st_mode) else "its data.mdb is no regular file"
        self._move_of_store(tables, path, why)
        return True

    def _move_of_store(self, tables: Tables, path: str, why: str) -> None:
        """Move aside *path*, of a store that is the session's own.  Raise StoreInUse if somebody has it open."""
        if not self._directory.holds(tables.url):
            raise DamagedSession(
                f"{path}: {why}. {self._directory.url_file} leads there, and what is outside the session's directory"
                f" stays as it is: correct that file, or restore the store from a backup"
            )
        with contextlib.nullcontext() if self._dry_run else tables.exclusive():
            self._move_aside(path, why)

    def _is_damaged(self, tables: Tables) -> bool:
        faults: list[str] = []
        try:
            with tables.contents(lambda told: faults.append(told) if len(faults) < _SHOWN else None):
                pass
        except (CorruptStore, UnknownFormat) as error:
            faults.append(str(error))
        return bool(faults)

    def _rebuild(self, tables: Tables, identity: bytes | None) -> bytes:
        """Have the store made anew; return the session's identity."""
        told = identity

        def finish(new: Tables, found: Salvaged) -> None:
            nonlocal told
            self._from_mirror = not found.members
            self._tell(found.message)
            told = self._mend_tables(new, identity)

        found = tables.rebuild(self._keep, self._listed, finish, dry_run=self._dry_run)
        if found is None:
            raise CorruptStore(
                f"{tables.url} is damaged, and can't be made anew from here: restore it from a backup"
            )
        if self._dry_run:
            self._tell(found.message)
            if found.replaced:
                self._aside.append(found.replaced)
        return told or secrets.token_bytes(16)

    def _identity(self, tables: Tables, told: bytes | None) -> bytes:
        """Return the identity of the session whose mirror is here; *told* is that of `store.url`.

        A mirror with tasks and an identity that the store doesn't know don't belong together.
        """
        rows = []
        with tables.contents(lambda told: None) as contents:
            for key, data in contents.walk(SESSIONS):
                with contextlib.suppress(Fault):
                    rows.append(row_found(key, data))
        if told is not None and (
            not len(self._listed)
            or any(row.identity == told for row in rows)
            or not self._directory.holds(tables.url)
        ):
            return told
        if len(rows) > 1:
            status = os.lstat(self._directory.mirror) if os.path.lexists(self._directory.mirror) else None
            rows = [
                row
                for row in rows
                if status is not None
                and row.size == status.st_size
                and row.mark
                and row.mark[0] == status.st_mtime_ns
            ]
            if len(rows) != 1 and told is None:
                raise DamagedSession(
                    f"{self._directory.url_file} is lost, and which of the sessions in {tables.url} this is can't be"
                    " told: restore that file from a backup"
                )
        if len(rows) != 1:
            return told or secrets.token_bytes(16)
        self._wrong_url = True
        return rows[0].identity

    def _mend_tables(self, tables: Tables, identity: bytes | None) -> bytes:
        """Set the tables right; return the session's identity."""
        identity = self._identity(tables, identity)
        done, aside = len(self._done), len(self._aside)

        def run(writer: Writer | None) -> None:
            # A unit may run twice, if it found no room.
            del self._done[done:], self._aside[aside:]
            with tables.contents(lambda told: None, writer=writer) as contents:
                _check_format(contents, tables.url)
                Mending(contents, writer, known, self._tell, self._put_aside).run()

        with self._mirror_lines() as line:
            known = Known(
                identity, line, self._listed_numbers, self._late if self._from_mirror else [], tables.schema_copies
            )
            if self._dry_run:
                run(None)
            else:
                tables.write(run)
        return identity

    def _listed_numbers(self) -> Iterator[int]:
        if self._from_mirror:
            for numbers in self._listed.chunks(1024):
                yield from numbers

    @contextlib.contextmanager
    def _mirror_lines(self) -> Iterator[Callable[[int, int], bytes]]:
        try:
            fd = os.open(self._directory.mirror, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            yield lambda place, size: b""
            return
        try:
            yield lambda place, size: os.pread(fd, size, min(place, 1 << 60))
        finally:
            os.close(fd)
