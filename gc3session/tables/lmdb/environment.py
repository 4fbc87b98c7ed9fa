"""An LMDB environment: opened when it is first needed, grown, and closed again.

LMDB breaks in silence if its rules aren't kept. They are kept here and in registry.py, and nowhere else:

- a process opens the environment of a directory once: `registry.acquire`;
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
from typing import Final

import lmdb

from ...errors import CorruptStore, Error
from ...system.filesystem import sync, write_error
from ...system.temporary import delete_tree
from .data_file.verification import check_before_opening, mark_trusted, missing_bytes
from .errors import MustReopen, translated
from .opening import Transaction, open_files
from .sharing import shared_lock

_MADV_DONTNEED: Final = 4
# Only maps that are shared and not writable: nothing in them could be lost.
_MAP_OF_DATA_FILE: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r--s \S+ \S+ (\d+) .*/data\.mdb\n")


class Environment:
    """The LMDB environment in the directory *path*, shared by all that use it in this process.

    Attributes:
        users: the objects that use it. The references are weak, so that one which is never closed doesn't count.
        locked: whether its readers are entered in `lock.mdb`, so that no writer reuses their pages.
        writing: the lock held for each write transaction, which may wait long for another process.
        reading: the lock held for each read transaction, which copies what it needs and ends. A
            thread that takes both takes `writing` first.
        is_open: whether it can be read; the files alone may be open before that.
    """

    def __init__(self, path: str, read_only: bool, map_size: int, verify: bool | None) -> None:
        self.path = path
        self.verify = verify
        self.data = os.path.join(path, "data.mdb")
        self.read_only = read_only
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.locked = True
        self.is_open = False
        self.renew_locks()
        self._map_size = map_size
        self._lmdb: lmdb.Environment | None = None
        self._page_size = 4096
        self._filled_to = 0  # the last page of the data file when it was looked at for a gap
        self._file_id: tuple[int, int] | None = None
        self._sharing_lock = -1  # a descriptor whose lock keeps the data file from being replaced (sharing.py)
        self._name_on_disk = False

    def renew_locks(self) -> None:
        """Make the locks; in a forked child those of the parent may never become free."""
        self.writing = threading.RLock()
        self.reading = threading.RLock()
        self._opening = threading.Lock()

    # -- opening

    @property
    def was_replaced(self) -> bool:
        """Whether the open file is no longer the one at its path, because that was moved or replaced."""
        return self.is_open and self._file_id != _file_id(self.data)

    def opened(self) -> lmdb.Environment:
        """Return the open environment; to be called with `reading` or `writing` held."""
        env = self._lmdb
        if env is None or not self.is_open:
            with self._opening:
                env = self._lmdb if self._lmdb and self.is_open else self._open()
        return env

    def _open(self) -> lmdb.Environment:
        walked_through = check_before_opening(self.path, verify=self.verify)
        env = self._lmdb or self._open_files()
        try:
            if self.locked and not self.read_only:
                env.reader_check()
            self._map_size = env.info()["map_size"]
        except lmdb.Error as error:
            self.close()
            raise translated(error, self.path) from error
        self._page_size = env.stat()["psize"]
        self._file_id = _file_id(self.data)
        self.is_open = True  # last
        if walked_through and not self.read_only:
            mark_trusted(self.path)
        return env

    def _open_files(self) -> lmdb.Environment:
        self._end_sharing()  # if Ctrl-C has kept `close` from that
        self._sharing_lock = shared_lock(self.path)
        try:
            if self._sharing_lock >= 0 and not self.read_only:
                delete_tree(compacted_name(self.path))  # nobody compacts now, so the process that made it died
            self._lmdb, self.locked = open_files(self.path, read_only=self.read_only, map_size=self._map_size)
            return self._lmdb
        except BaseException:
            self._end_sharing()
            raise

    # -- transactions, with `reading` or `writing` held

    def begin(self, write: bool = False) -> Transaction:
        """Begin a transaction on the newest committed state.

        Raise MustReopen where `suspend` helps, lmdb.MapResizedError where `adopt_size` does.
        """
        if write and not self._name_on_disk:
            self._sync_name()
        for attempt in range(3):
            env = self.opened()
            if self._sharing_lock < 0 and self.was_replaced and os.path.lexists(self.data):
                raise MustReopen  # the store was compacted, and the file that is open here is the former one
            try:
                return env.begin(write=write)
            except lmdb.MapResizedError:
                raise
            except lmdb.ReadersFullError as error:
                if attempt or not env.reader_check():
                    raise translated(error, self.path) from error
            except lmdb.PanicError as error:
                if attempt:
                    raise translated(error, self.path) from error
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
                env = self._lmdb or self._open_files()
            env.reader_check()
            return env.begin()
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def last_transaction(self) -> int:
        """Return the number of the last committed transaction."""
        return (self._lmdb or self.opened()).info()["last_txnid"]

    def has_newer_commit(self, txn: Transaction) -> bool:
        """Return whether there has been a commit since *txn*, a read transaction, began."""
        return bool(self.last_transaction() != txn.id())

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

    def fill_gap(self) -> None:
        """Lengthen the data file to all its pages; a file that stays short would look truncated."""
        env = self.opened()
        last_page = env.info()["last_pgno"]
        if last_page == self._filled_to:
            return
        self._filled_to = last_page
        if os.stat(self.data).st_size >= (last_page + 1) * self._page_size:
            return
        with contextlib.suppress(lmdb.Error, OSError, CorruptStore):  # at worst the next opening takes longer
            txn = env.begin(write=True)  # so that no other process writes there meanwhile
            try:
                missing = missing_bytes(self.data)
                if missing:
                    os.truncate(self.data, os.stat(self.data).st_size + missing)
            finally:
                txn.abort()

    def release_memory(self) -> None:
        """Take the pages that were read out of this process's resident set.

        LMDB maps the file, and each page that was read stays mapped. The page belongs to the system's cache,
        which takes it back when memory is needed; but until then it counts as memory of this process, by which
        batch systems judge and end programs. What is read next comes from the system's cache.
        """
        if self._file_id is not None:
            unmap_pages(self._file_id[1])

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
        env, self._lmdb, self.is_open, self._filled_to = self._lmdb, None, False, 0
        try:
            if env is not None:
                env.close()
        finally:
            self._end_sharing()

    def _end_sharing(self) -> None:
        fd, self._sharing_lock = self._sharing_lock, -1
        if fd >= 0:
            os.close(fd)


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


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
