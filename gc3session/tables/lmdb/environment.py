"""An LMDB environment: opened when it is first needed, grown, and closed again.

LMDB breaks in silence if its rules aren't kept. They are kept here and in registry.py, and nowhere else:

- a process opens the environment of a directory once: `registry.acquire`;
- its files are those that were opened, from before a transaction to write until after its commit: `ensure_in_place`;
- no transaction is open while the process forks, and the child opens the environment again: registry.py;
- the map grows only while this process has no transaction open: `idle`;
- a write transaction begins and ends in one thread: `writing`;
- LMDB's exceptions leave this package only as those of gc3session/errors.py, chained.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import Final

import lmdb

from ...errors import Error, OpenError, WriteError
from ...system.filesystem import KnownFile, sync, write_error
from ...system.temporary import delete_tree
from .data_file.verification import check_before_opening, mark_trusted
from .errors import MustReopen, translated
from .locks import DATA, is_alive, is_locked, users
from .opening import OpenFiles, Transaction, open_files

_READER_CHECK: Final = 60.0  # seconds after which a writer looks for slots of dead readers, ...
_GROWTH: Final = 1.1  # ... or when the file has become so many times as large
_REPLACED: Final = (
    "is gone, or another file than it was: the store was moved, destroyed or made anew since it was opened"
)
_MADV_DONTNEED: Final = 4
# Only maps that are shared and not writable: nothing in them could be lost.
_MAP_OF_DATA_FILE: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r--s \S+ \S+ (\d+) .*/data\.mdb\n")


COMPACTED: Final = 0
"""The time of change (mtime, in ns) that a data file gets when a compacted one has taken its place."""


class Environment:
    """The LMDB environment in the directory *path*, shared by all that use it in this process.

    Attributes:
        users: the objects that use it. The references are weak, so that one which is never closed doesn't count.
        locked: whether its readers are entered in `lock.mdb`, so that no writer reuses their pages.
        writing: the lock held for each write transaction, which may wait long for another process.
        reading: the lock held for each read transaction, which copies what it needs and ends. A
            thread that takes both takes `writing` first.
        is_open: whether it can be read; the files alone may be open before that.
        data_file: the data file as it was last opened, which stays open while all else is closed; None before that,
            and once another one has been put in its place while nobody could have it open.
    """

    def __init__(self, path: str, read_only: bool, map_size: int, verify: bool | None) -> None:
        self.path = path
        self.verify = verify
        self.data = os.path.join(path, DATA)
        self.read_only = read_only
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.locked = True
        self.is_open = False
        self.renew_locks()
        self._map_size = map_size
        self._files: OpenFiles | None = None
        self.data_file: KnownFile | None = None
        self._page_size = 4096
        self._filled_to = 0  # the last page of the data file when it was looked at for a gap
        self._checked = (-_READER_CHECK, 0)  # when slots of dead readers were looked for, and the last page then
        self._name_on_disk = False

    def renew_locks(self) -> None:
        """Make the locks; in a forked child those of the parent may never become free."""
        self.writing = threading.RLock()
        self.reading = threading.RLock()
        self._opening = threading.Lock()

    # -- opening

    @property
    def was_replaced(self) -> bool:
        """Whether the data file at its path is another than the one that was opened, and not that one compacted."""
        return (
            self._is_other()
            and self.data_file is not None
            and os.fstat(self.data_file.fd).st_mtime_ns != COMPACTED
        )

    def _is_other(self) -> bool:
        """Return whether the data file at its path is another than the one that was opened."""
        return self.data_file is not None and not self.data_file.is_in_place()

    def opened(self) -> lmdb.Environment:
        """Return the open environment; to be called with `reading` or `writing` held."""
        files = self._files
        if files is None or not self.is_open:
            with self._opening:
                files = self._files if self._files and self.is_open else self._open()
        return files.env

    def _open(self) -> OpenFiles:
        walked_through = check_before_opening(self.path, verify=self.verify)
        files = self._files or self._open_files()
        env = files.env
        try:
            if self.locked and not self.read_only:
                self._check_readers(env)
            if self.locked:
                self._check_lock_table(env)
            self._map_size = env.info()["map_size"]
        except lmdb.Error as error:
            self.close()
            raise translated(error, self.path) from error
        except BaseException:
            self.close()
            raise
        self._page_size = env.stat()["psize"]
        self.is_open = True  # last
        if walked_through and not self.read_only:
            mark_trusted(self.path)
        return files

    def _open_files(self) -> OpenFiles:
        files = open_files(self.path, read_only=self.read_only, map_size=self._map_size)
        if self.was_replaced:
            files.close()
            raise OpenError(f"{self.data} {_REPLACED}. Close the session and open it again")
        self._files, self.data_file, self.locked = files, files.data, files.lock is not None
        if self.locked and not self.read_only:
            delete_tree(compacted_name(self.path))  # nobody compacts now, so the process that made it died
        return files

    def _check_lock_table(self, env: lmdb.Environment) -> None:
        """Raise OpenError if `lock.mdb` tells of another data file.

        LMDB believes it if another process has it open, and would read and write the wrong state.
        """
        before = env.info()["last_txnid"]
        while True:
            try:
                with env.begin() as txn:
                    known = txn.id()
                break
            except lmdb.MapResizedError:  # another process has grown the map meanwhile
                env.set_mapsize(0)
        if not before - 1 <= known <= env.info()["last_txnid"]:  # one less if a writer was killed
            raise OpenError(self._wrong_lock_table())

    def _wrong_lock_table(self) -> str:
        others = ", ".join(map(str, users(self.path)))
        return (
            f"{self.path}: lock.mdb tells of another data.mdb, which was replaced while process {others or '(unknown)'}"
            " has it open: end that, and open the session again"
        )

    # -- the files, and who writes, with `writing` held

    def writer_lock(self) -> KnownFile:
        """Return `writer.lock`, which the caller locks. Raise WriteError if the data file isn't that of before."""
        if not self.is_open and self.was_replaced:
            raise WriteError(f"{self.data} {_REPLACED}; nothing was written. Close the session and open it again")
        self.opened()
        files = self._files
        assert files is not None
        assert files.writer is not None
        return files.writer

    def is_busy(self) -> bool:
        """Return whether another process, or thread, writes at the moment."""
        if not self.writing.acquire(blocking=False):
            return True
        try:
            self.opened()
            return self._files is not None and self._files.writer is not None and is_locked(self._files.writer.fd)
        finally:
            self.writing.release()

    def ensure_in_place(self) -> None:
        """Raise WriteError if the files that are open here are no longer at their paths."""
        files = self._files
        assert files is not None
        for file in (files.data, files.lock, files.writer):
            if file is not None and not file.is_in_place():
                raise WriteError(
                    f"{file.path} {_REPLACED}; nothing was written. Close the session and open it again"
                )

    def ensure_kept(self) -> None:
        """Raise WriteError if the data file is no longer at its path after a commit."""
        if self._is_other():
            raise WriteError(
                f"{self.data} {_REPLACED}; what was just written is lost with it. Close the session and open it again"
            )

    # -- transactions, with `reading` or `writing` held

    def begin(self, write: bool = False) -> Transaction:
        """Begin a transaction on the newest committed state.

        Raise MustReopen where `suspend` helps, lmdb.MapResizedError where `adopt_size` does.
        """
        if write and not self._name_on_disk:
            self._sync_name()
        for is_last in (False, True):
            env = self.opened()
            if not self.locked and self._is_other() and os.path.lexists(self.data):
                raise MustReopen  # which this process couldn't keep another one from doing
            try:
                txn = env.begin(write=write)
                if write and txn.id() != env.info()["last_txnid"] + 1:
                    txn.abort()
                    raise WriteError(f"{self._wrong_lock_table()}; nothing was written")
                return txn
            except lmdb.MapResizedError:
                raise
            except lmdb.ReadersFullError as error:
                if is_last or not env.reader_check():
                    raise translated(error, self.path) from error
            except lmdb.PanicError as error:
                raise MustReopen from error
            except lmdb.Error as error:
                raise translated(error, self.path) from error
        raise Error(f"{self.path}: no transaction could be begun; open the session again")

    def hold(self) -> Transaction:
        """Begin a read transaction that holds the newest committed state of a file that may be damaged.

        No page of the state is read, because LMDB might die of it.
        """
        try:
            with self._opening:
                env = (self._files or self._open_files()).env
            env.reader_check()
            return env.begin()
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def has_newer_commit(self, txn: Transaction) -> bool:
        """Return whether there has been a commit since *txn*, a read transaction, began."""
        env = self._files.env if self._files else self.opened()
        return bool(env.info()["last_txnid"] != txn.id())

    def _sync_name(self) -> None:
        """Have the directory's name on disk before the first commit returns.

        The directory may have been made by another process that has not flushed the name yet.
        """
        try:
            sync(os.path.dirname(self.path))
        except PermissionError:
            pass  # this process can't have made the name either, without a right to the directory above
        except OSError as error:
            raise write_error(
                error, f"the name of {self.path} can't be flushed to disk", "open it with read_only=True"
            ) from error
        self._name_on_disk = True

    def after_commit(self) -> None:
        """Do what is left to do after a commit, while other processes can't write."""
        files = self._files
        assert files is not None
        last_page = files.env.info()["last_pgno"]
        if last_page != self._filled_to:
            self._filled_to = last_page
            size = (last_page + 1) * self._page_size
            if os.fstat(files.data.fd).st_size < size:
                # LMDB leaves pages at the end unwritten that it has freed again; then the file would look truncated.
                with contextlib.suppress(OSError):  # at worst the next opening takes longer
                    os.posix_fallocate(files.data.fd, size - 1, 1)
        time, page = self._checked
        if monotonic() > time + _READER_CHECK or last_page > page * _GROWTH:
            with contextlib.suppress(lmdb.Error):
                self._check_readers(files.env)

    def _check_readers(self, env: lmdb.Environment) -> None:
        """Free the slots of dead readers, which would keep pages from being used again."""
        self._checked = monotonic(), env.info()["last_pgno"]
        env.reader_check()

    def is_alive(self, pid: int) -> bool:
        """Return whether the process that has slots under that number lives."""
        return self._files is None or self._files.lock is None or is_alive(self._files.lock.fd, pid)

    def release_memory(self) -> None:
        """Take the pages that were read out of this process's resident set.

        LMDB maps the file, and each page that was read stays mapped. The page belongs to the system's cache,
        which takes it back when memory is needed; but until then it counts as memory of this process, by which
        batch systems judge and end programs. What is read next comes from the system's cache.
        """
        if self.data_file is not None:
            unmap_pages(self.data_file.status.st_ino)

    # -- while no transaction is open

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Wait until this process has no transaction open here; none can begin within `with`."""
        with self.writing, self.reading:
            yield

    def grow(self) -> None:
        """Double the map. Raise StoreFull if the address space has no room for that."""
        with self.idle():
            env = self.opened()
            size = max(env.info()["map_size"], self._map_size) * 2
            self._remap(env, size)
            self._map_size = size

    def adopt_size(self) -> None:
        """Take over the size to which another process has grown the map."""
        with self.idle():
            env = self.opened()
            self._remap(env, 0)
            self._map_size = max(self._map_size, env.info()["map_size"])

    def _remap(self, env: lmdb.Environment, size: int) -> None:
        try:
            env.set_mapsize(size)
        except lmdb.Error as error:  # the environment is of no use any more
            self.close()
            raise translated(error, self.path) from error

    def suspend(self) -> None:
        """Wait until it is idle, and close it; the next transaction opens it again."""
        with self.idle():
            self.close()

    def close(self) -> None:
        """Close it, while it is idle; the next transaction opens it again."""
        files, self._files, self.is_open, self._filled_to = self._files, None, False, 0
        if files is not None:
            files.close()


def compacted_name(directory: str) -> str:
    """Return the directory in which the compacted data file is written before it replaces that in *directory*."""
    return os.path.join(directory, "compacted.tmp")


def unmap_pages(inode: int) -> None:
    """Take the mapped pages of the data file of this *inode* out of this process's resident set."""
    import ctypes

    libc = ctypes.CDLL(None)
    with open("/proc/self/maps", "rb") as maps:
        for found in filter(None, map(_MAP_OF_DATA_FILE.fullmatch, maps)):
            if int(found[3]) == inode:
                begin, end = int(found[1], 16), int(found[2], 16)
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
