"""LMDB environments: one for each directory in a process, opened safely, grown, and kept from forks.

LMDB's own rules, most of which it breaks in silence, are kept here and nowhere else:

- one environment for each directory in a process: `acquire` counts its users;
- its map grows only while this process has no transaction open: `alone`;
- no transaction is open while the process forks, and the child opens the environment anew;
- a write transaction begins and ends in one thread;
- its exceptions leave only as those of errors.py, chained.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import lmdb

from ...errors import CorruptStore, Error, OpenError, ReadOnlyError, StoreFull, WriteError
from ...system.filesystem import NO_ROOM, sync_directory, sync_file
from ...system.forks import ENVIRONMENTS, Lock, at_fork
from ...system.signals import signal_safe
from ...system.temporary import delete_tree, made_whole
from ..interface import PLAIN_TABLES, SET_TABLES
from .gate import check_before_opening, lock_file, missing_bytes, regular_file
from .memory import unmap_pages
from .origin import mark_as_ours
from .sharing import alone_with, in_use, share

DEFAULT_MAP_SIZE = 1 << 40
"""Bytes of address space; they cost neither memory nor disk until they are used."""

_SMALLEST_MAP = 1 << 24
_LOCK_BYTES = 73_728  # for some more than _MAX_READERS
_MAX_READERS = 1022  # only the first opener's count; at LMDB's own 126 even opening fails
_NO_ROOM = (errno.EIO, *NO_ROOM)  # LMDB turns short writes into EIO

Transaction = Any  # lmdb.Transaction is generic in its stubs only


def translated(error: lmdb.Error, path: str) -> Error:
    """Return our exception for one of LMDB's."""
    told = f"{path}: LMDB says: {error}"
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.PanicError):
        return WriteError(f"{told}; the environment was closed and is opened again at the next call")
    if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
        return StoreFull(f"{told}; the address space is limited: raise `ulimit -v`, or pass a smaller map_size")
    if code in _NO_ROOM:
        return StoreFull(
            f"{told}; the disk is full, a quota is reached, or the disk fails. Nothing of this"
            " transaction was written; make room and flush again"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return Error(f"{told}; too many processes read at once: wait for some of them to end")
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ReadOnlyError(f"{told}; open the session with read_only=True")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadDbiError)):
        return CorruptStore(f"{told}; the data file is damaged: restore it from a backup")
    return WriteError(f"{told}; close the session and open it again")


class Environment:
    """The LMDB environment in *path*, shared by all that use it in this process.

    Attributes:
        users: the objects that use it; one that was dropped without a word counts no more.
        writing: held for each write transaction, which may wait long for another process.
        reading: held for each read transaction, which copies what it needs and ends.  Whoever
            takes both takes `writing` first.
    """

    def __init__(self, path: str, read_only: bool, map_size: int, verify: bool | None) -> None:
        self.path = path
        self.verify = verify
        self.data = os.path.join(path, "data.mdb")
        self.read_only = read_only
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.locked = True
        self.writing = threading.RLock()
        self.reading = threading.RLock()
        self._map_size = map_size
        self._lmdb: lmdb.Environment | None = None
        self._bare: lmdb.Environment | None = None  # opened, but its tables have not been looked at
        self._dropped: list[lmdb.Environment] = []  # to be closed
        self._opening = threading.Lock()
        self.tables: dict[str, Any] = {}
        self._page_size = 4096
        self._last_page = 0
        self._file: tuple[int, int] | None = None
        self._shared = -1  # a descriptor that keeps the data file from being replaced (sharing.py)
        self._name_on_disk = False

    # -- opening

    @property
    def is_open(self) -> bool:
        return self._lmdb is not None

    def opened(self) -> lmdb.Environment:
        """Return the open environment; to be called with `reading` or `writing` held."""
        env = self._lmdb
        if env is None:
            with self._opening:
                env = self._lmdb or self._open()
        return env

    def _open(self) -> lmdb.Environment:
        checked = check_before_opening(self.path, verify=self.verify)
        # It stays `_bare` until all is done: whoever is interrupted leaves it for the next attempt.
        if self._bare is None:
            self._bare = self._open_bare()
        env = self._bare
        try:
            if self.locked and not self.read_only:
                env.reader_check()
            while not self.tables:
                try:
                    self.tables = self._handles(env, create=False)
                except lmdb.MapResizedError:  # another process has grown it since it was opened here
                    env.set_mapsize(0)
            self._map_size = env.info()["map_size"]
        except lmdb.Error as error:
            self.drop()
            if isinstance(error, lmdb.NotFoundError):
                raise CorruptStore(f"{self.path} is not a store of gc3session: {error}") from error
            raise translated(error, self.path) from error
        self._page_size = env.stat()["psize"]
        self._file = _file_of(self.data)
        self._lmdb, self._bare = env, None
        if checked and not self.read_only:
            mark_as_ours(self.path)
        return env

    def _open_bare(self) -> lmdb.Environment:
        """Open the files; of the data file nothing but its two meta pages is looked at."""
        self._close_dropped()  # of an opening, or a closing, that a signal has ended
        self._shared = share(self.path)
        try:
            return self._open_shared()
        except BaseException:
            self._end_sharing()
            raise

    def _open_shared(self) -> lmdb.Environment:
        lock = os.path.join(self.path, "lock.mdb")
        files = {self.data: regular_file(self.data), lock: lock_file(self.path)}
        shared = [path for path, status in files.items() if status is not None and status.st_nlink > 1]
        if not self.read_only and not os.access(self.path, os.W_OK | os.X_OK):
            raise ReadOnlyError(f"{self.path} can't be written; open the session with read_only=True")
        if not self.read_only and shared:
            raise ReadOnlyError(
                f"{shared[0]} has other names, too (hard links), whose contents would change with it: open the session"
                f" with read_only=True, or put a copy of the file in its place"
            )
        # A reader that may not write lock.mdb, or would have to make it, reads without a lock.
        self.locked = locked = not self.read_only or (os.access(lock, os.W_OK) and lock not in shared)
        if locked and not self.read_only:
            if self._shared >= 0:  # so nobody compacts now: what is there was left by a process that died
                delete_tree(compacted_name(self.path))
            try:
                _reserve_lock(self.path)
            except OSError as error:
                raise _untold(error, lock) from error
        size = self._affordable(self._map_size)
        while True:
            try:
                env = lmdb.open(
                    self.path,
                    map_size=size,
                    create=False,
                    readonly=self.read_only,
                    lock=locked,
                    mode=0o777,
                    max_dbs=16,
                    max_readers=_MAX_READERS,
                )
                break
            except (lmdb.MemoryError, lmdb.MapResizedError) as error:
                smaller = size // 2
                if isinstance(error, lmdb.MapResizedError):
                    smaller = size * 2
                elif smaller < max(_SMALLEST_MAP, os.stat(self.data).st_size):
                    raise translated(error, self.path) from error
                size = smaller
            except lmdb.Error as error:
                raise translated(error, self.path) from error
        self._map_size = size
        return env

    def _affordable(self, size: int) -> int:
        """Return *size*, or less where the address space is limited: the program needs some, too."""
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            size = min(size, max(_SMALLEST_MAP, limit // 4))
        used = os.stat(self.data).st_size
        return max(size, used + used // 4, _SMALLEST_MAP) // 4096 * 4096

    @staticmethod
    def _handles(env: lmdb.Environment, create: bool) -> dict[str, Any]:
        handles: dict[str, Any] = {name: env.open_db(name.encode(), create=create) for name in PLAIN_TABLES}
        for name in SET_TABLES:
            handles[name] = env.open_db(name.encode(), create=create, dupsort=True, dupfixed=True)
        return handles

    @classmethod
    def create(cls, path: str, fill: Any) -> None:
        """Make an environment with empty tables at *path*, unless another process is faster.

        *fill* is called with its first transaction and its table handles.  After a power cut
        there is the whole environment or none: it is made under another name.  The first
        `begin` to write flushes that name.
        """
        try:
            with made_whole(path) as temporary:
                _reserve_lock(temporary)
                env = lmdb.open(
                    temporary,
                    map_size=_SMALLEST_MAP,
                    max_dbs=16,
                    max_readers=_MAX_READERS,
                    mode=0o777,
                    lib_version=0,
                )
                try:
                    tables = cls._handles(env, create=True)
                    with env.begin(write=True) as txn:
                        fill(txn, tables)
                finally:
                    env.close()
                sync_file(os.path.join(temporary, "data.mdb"))
                mark_as_ours(temporary)
        except lmdb.Error as error:
            raise translated(error, path) from error
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and os.path.isdir(path):
                return
            raise _untold(error, path) from error

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the open file is no longer the one at its path: that was moved or replaced."""
        return self._lmdb is not None and self._file != _file_of(self.data)

    # -- transactions, with `reading` or `writing` held

    def begin(self, write: bool = False) -> Transaction:
        """Begin a transaction on the newest committed state."""
        if write and not self._name_on_disk:
            self._sync_name()
        for attempt in range(3):
            env = self.opened()
            if self._shared < 0 and self.is_elsewhere and os.path.lexists(self.data):
                raise Panic  # the file was compacted, and what is open here is the former one
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
                raise Panic from error
            except lmdb.Error as error:
                raise translated(error, self.path) from error
        raise Error(f"{self.path}: no transaction could be begun; open the session again")

    def pin(self) -> Transaction:
        """Begin a read transaction that holds the newest committed state.

        No page of it is looked at: it may be that of a damaged file, of which LMDB would die.
        """
        try:
            with self._opening:
                env = self._lmdb or self._bare
                if env is None:
                    env = self._bare = self._open_bare()
            env.reader_check()
            return env.begin()
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def _sync_name(self) -> None:
        """Have the directory's name on disk before the first commit is acknowledged.

        It was made by this process or by another one, which may not have come to that yet.
        """
        try:
            sync_directory(os.path.dirname(self.path))
        except PermissionError:
            pass  # who may not read the directory above has not made this one
        except OSError as error:
            raise _untold(error, self.path) from error
        self._name_on_disk = True

    def has_moved_on(self, txn: Transaction) -> bool:
        """Return whether there has been a commit since *txn*, a read transaction, began."""
        return bool(self.newest() != txn.id())

    def newest(self) -> int:
        """Return the number of the last committed transaction."""
        return (self._bare or self.opened()).info()["last_txnid"]

    def release_memory(self) -> None:
        """Take what has been read out of this process's resident set; see memory.py."""
        if self._file is not None:
            unmap_pages(self._file[1])

    def fill_gap(self) -> None:
        """Lengthen the data file to all its pages: a file that stays short looks truncated."""
        env = self.opened()
        last = env.info()["last_pgno"]
        if last == self._last_page:
            return
        self._last_page = last
        if os.stat(self.data).st_size >= (last + 1) * self._page_size:
            return
        with contextlib.suppress(lmdb.Error, OSError):  # only a slower opening would come of it
            txn = env.begin(write=True)  # so that no other process writes there meanwhile
            try:
                missing = missing_bytes(self.data)
                if missing:
                    os.truncate(self.data, os.stat(self.data).st_size + missing)
            finally:
                txn.abort()

    # -- alone

    @signal_safe
    def alone(self) -> Iterator[None]:
        """Wait until this process has no transaction open, and let none begin."""
        with self.writing, self.reading:
            yield

    def grow(self) -> None:
        """Double the map.  Raise StoreFull if the address space has no room for that."""
        with self.alone():
            env = self.opened()
            size = max(env.info()["map_size"], self._map_size) * 2
            self._remap(env, size)
            self._map_size = size

    def adopt_size(self) -> None:
        """Take over the size that another process has grown the map to."""
        with self.alone():
            env = self.opened()
            self._remap(env, 0)
            self._map_size = max(self._map_size, env.info()["map_size"])

    def _remap(self, env: lmdb.Environment, size: int) -> None:
        try:
            env.set_mapsize(size)
        except lmdb.Error as error:  # this has ended the environment
            self.drop()
            raise translated(error, self.path) from error

    def reopen(self) -> None:
        """Close the environment; the next transaction opens it again."""
        with self.alone():
            self.drop()

    def drop(self) -> None:
        """Close the environment; only where no transaction is open."""
        self._dropped += [env for env in (self._lmdb, self._bare) if env is not None]
        self._lmdb, self._bare, self.tables, self._last_page = None, None, {}, 0
        self._close_dropped()

    def _close_dropped(self) -> None:
        for env in self._dropped:
            env.close()
        self._dropped = []
        self._end_sharing()

    def _end_sharing(self) -> None:
        fd, self._shared = self._shared, -1
        if fd >= 0:
            os.close(fd)


def compacted_name(directory: str) -> str:
    """Return the directory in which the data file is written that is to replace that in *directory*."""
    return os.path.join(directory, "compacted.tmp")


def _reserve_lock(directory: str) -> None:
    """Make the lock file with all its blocks: LMDB would map a file of holes, and die on a full disk."""
    try:
        fd = os.open(os.path.join(directory, "lock.mdb"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return
    try:
        os.posix_fallocate(fd, 0, _LOCK_BYTES)
    finally:
        os.close(fd)


def _file_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _untold(error: OSError, path: str) -> Error:
    """Return our exception for one of the system's while a store is made or opened."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ReadOnlyError(f"the store {path} can't be made: {error.strerror}; open it with read_only=True")
    if error.errno in _NO_ROOM:
        return StoreFull(f"the store {path} can't be made: {error.strerror}; make room")
    return OpenError(f"the store {path} can't be made: {error}")


class Panic(Exception):
    """A meta page could not be written, or the file was replaced: the environment must be opened again."""


# -- the environments of this process ------------------------------------------

_environments: dict[str, Environment] = {}
_registry = threading.Lock()


def acquire(path: str, user: object, read_only: bool, map_size: int, verify: bool | None) -> Environment:
    """Return the environment in the directory *path*, for one more *user*, who gives it back with `release`."""
    try:
        with _registry:
            env = _environments.get(path)
            if env is None or env.is_elsewhere:
                env = _environments[path] = Environment(path, read_only, map_size, verify)
            elif env.read_only and not read_only:
                with env.alone():
                    env.drop()
                    env.read_only = False
            env.users.add(user)
            return env
    except BaseException:  # of a signal's handler, too
        if path in _environments:
            release(_environments[path], user)
        raise


@signal_safe
def alone_in(path: str) -> Iterator[None]:
    """Within `with`, nobody has the environment in the directory *path* open.  Raise StoreInUse if somebody has."""
    # Asked first: to close `lock.mdb` gives up the lock that LMDB has on it for this process.
    with _registry:
        if path in _environments:
            _close_unused(_environments[path])
        if path in _environments:
            raise in_use(path, here=True)
    with alone_with(path):
        yield


def discard(path: str) -> None:
    """Close the environment of a directory that is being deleted, whoever uses it."""
    with _registry:
        env = _environments.pop(path, None)
    if env is not None:
        env.reopen()


def release(env: Environment, user: object) -> None:
    """Take a user away from *env*; the last one closes it.  It can be called again, should it be interrupted."""
    with _registry:
        env.users.discard(user)
        _close_unused(env)


def _close_unused(env: Environment) -> None:
    if not env.users:
        env.reopen()
        if _environments.get(env.path) is env:
            del _environments[env.path]


def _locks() -> list[Lock]:
    return [_registry, *(lock for env in list(_environments.values()) for lock in (env.writing, env.reading))]


def _before_fork() -> None:
    # Nothing is left open: LMDB's state in a child is not to be used, nor closed, while the
    # parent reads on (wrong reads within seconds where the child closed it).
    for env in _environments.values():
        env.drop()


def _after_in_child() -> None:
    global _registry
    _registry = threading.Lock()
    for env in _environments.values():
        env.writing = threading.RLock()
        env.reading = threading.RLock()
        env._opening = threading.Lock()


at_fork(ENVIRONMENTS, _after_in_child, locks=_locks, before=_before_fork)
