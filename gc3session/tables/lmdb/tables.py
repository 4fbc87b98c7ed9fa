"""The tables of a store in an LMDB environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fcntl import LOCK_UN, flock
from itertools import islice, takewhile
from typing import TypeVar

import lmdb

from ...errors import ClosedError, Error, InvalidArgument, NetworkFilesystemError, ReadOnlyError
from ...format.frame import RECORD_KEY
from ...system.filesystem import NETWORK_FILESYSTEMS, filesystem_of, real_path, sync
from ..interface import (
    MALFORMED,
    RECORDS,
    Compacted,
    Contents,
    Figure,
    Item,
    NoTables,
    OnProgress,
    Reader,
    Remains,
    Tables,
    Writer,
    no_progress,
)
from ..urls import StoreURL, register
from .copying import compact, copy_data
from .data_file.meta import meta_pages_of
from .environment import Environment
from .errors import MustReopen, malformed, translated
from .figures import figures, filesystem_figure
from .locks import lock_to_write
from .opening import DEFAULT_MAP_SIZE, Transaction, create_environment
from .ranges import RANGES
from .registry import acquire, discard, exclusive, release

T = TypeVar("T")


class _LmdbReader(Reader):
    """One LMDB transaction. What it returns are copies, which stay valid after its end."""

    __slots__ = ("_env", "_txn", "serial")

    def __init__(self, txn: Transaction, env: Environment | None = None) -> None:
        self._txn = txn
        self._env = env
        self.serial = txn.id()

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._txn.get(RANGES[table] + key)  # type: ignore[no-any-return]

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        range_ = RANGES[table]
        items = self._txn.cursor().getmulti([range_ + key for key in keys])
        return [(key[1:], value) for key, value in items]

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        range_ = RANGES[table]
        cursor = self._txn.cursor()
        if not cursor.set_range(range_ + start):
            return []
        prefix = range_ + prefix
        items = list(islice(cursor.iternext(), limit)) if limit else cursor.iternext()
        if limit and items and items[-1][0].startswith(prefix):
            return [(key[1:], value) for key, value in items]
        return [(key[1:], value) for key, value in takewhile(lambda item: item[0].startswith(prefix), items)]

    def records(self, numbers: Sequence[int]) -> list[bytes | None]:
        count = len(numbers)
        if (
            count > 1
            and numbers[-1] - numbers[0] == count - 1
            and numbers == [*range(numbers[0], numbers[-1] + 1)]
        ):
            cursor = self._txn.cursor()
            cursor.set_range(RANGES[RECORDS] + RECORD_KEY.pack(numbers[0]))
            found = list(islice(cursor.iternext(keys=False), count))
            if cursor.key() == RANGES[RECORDS] + RECORD_KEY.pack(numbers[-1]):  # there are no more in between
                return found
        return super().records(numbers)

    def release_memory(self) -> None:
        if self._env is not None:
            self._env.release_memory()


class _LmdbWriter(_LmdbReader, Writer):
    __slots__ = ()

    def put(self, table: str, items: Sequence[Item]) -> None:
        range_ = RANGES[table]
        if len(items) == 1:
            self._txn.put(range_ + items[0][0], items[0][1])
        else:
            self._txn.cursor().putmulti([(range_ + key, value) for key, value in items])

    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        range_ = RANGES[table]
        for key in keys:
            self._txn.delete(range_ + key)


def _ensure_same(env: Environment, txn: Transaction, error: BaseException | None) -> None:
    """Raise Error if there was a commit since *txn* began and *txn* isn't entered in `lock.mdb`.

    A writer may have overwritten the pages of such a reader.
    """
    if not env.locked and env.has_newer_commit(txn):
        raise Error(
            f"{env.path} is being written, and this user may not lock it, so what was read may be"
            " wrong: try again, or ask its owner for the right to write lock.mdb"
        ) from error


def _has_ended(txn: Transaction) -> bool:
    try:
        txn.id()
    except lmdb.Error:
        return True
    return False


def _recover(env: Environment, failure: Exception) -> None:
    """Make the environment usable again after a transaction couldn't begin or found no room."""
    if isinstance(failure, lmdb.MapFullError):
        env.grow()
    elif isinstance(failure, lmdb.MapResizedError):
        env.adopt_size()
    else:
        env.suspend()


def _transact(env: Environment, unit: Callable[[Writer], T], committed: Callable[[T], None]) -> T:
    """Run *unit* in a transaction, and confirm it; nobody else can write meanwhile."""
    txn = env.begin(write=True)

    def confirm() -> None:
        env.ensure_kept()
        committed(result)

    try:
        result = unit(_LmdbWriter(txn))
        txn.commit()
        confirm()
    except BaseException as error:
        if not _has_ended(txn):
            txn.abort()
        elif not isinstance(error, (lmdb.Error, Error)):
            confirm()  # Ctrl-C came after the commit
        raise
    env.after_commit()
    return result


def _place(path: str) -> str:
    """Return the real path of an environment; a symbolic link in its own place isn't followed, and never opened."""
    above, name = os.path.split(path.rstrip(os.sep))
    if name in ("", os.curdir, os.pardir):
        return real_path(path)
    return os.path.join(real_path(above), name)


class LmdbTables(Tables):
    """The tables in an LMDB environment, a directory of its own.

    Args:
        url: `lmdb:///path`, `lmdb:path` or the path of the directory, which is made by the first write.
        read_only: never write, not even a lock where the rights forbid it.
        map_size: bytes of address space to begin with; the map grows when it is full.
        allow_network_filesystem: use the store even where LMDB's locks and memory maps don't
            reach other machines, which is safe only while a single machine uses it.
        verify: whether to walk through the data file before it is opened, which takes some 1.5 us a record:
            always (True), never (False), or if it wasn't made or walked through here (None); see
            data_file/verification.py.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        read_only: bool = False,
        map_size: int = DEFAULT_MAP_SIZE,
        allow_network_filesystem: bool = False,
        verify: bool | None = None,
    ) -> None:
        path = StoreURL(url).path
        if not path:
            raise InvalidArgument(f"{url!r} names no path; write lmdb:///absolute/path")
        self.path = _place(path)
        self.url = StoreURL.of_path(self.path)
        self.read_only = read_only
        self._map_size = map_size
        self._verify = verify
        self._env: Environment | None = None
        self._closed = False
        type_ = filesystem_of(self.path)
        if type_ in NETWORK_FILESYSTEMS and not allow_network_filesystem:
            raise NetworkFilesystemError(
                f"{self.path} is on a network filesystem ({type_}), where LMDB can lose data: put the"
                " store on a local disk (store_or_url='lmdb:///local/path'), or pass"
                " allow_network_filesystem=True if only this machine uses it"
            )

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def _environment(self) -> Environment | None:
        """Return the environment, or None if it has not been made yet."""
        if self._env is None:
            if self._closed:
                raise ClosedError(f"the store {self.url} is closed")
            if not self.exists():
                return None
            self._env = acquire(self.path, self, self.read_only, self._map_size, self._verify)
        return self._env

    @contextmanager
    def read(self) -> Iterator[Reader]:
        env = self._environment()
        if env is None:
            yield NoTables()
            return
        while True:
            with env.reading:
                try:
                    txn = env.begin()
                except (lmdb.MapResizedError, MustReopen) as error:
                    failure = error
                else:
                    try:
                        yield _LmdbReader(txn, env)
                    except BaseException as error:
                        _ensure_same(env, txn, error)
                        if isinstance(error, lmdb.Error):
                            raise translated(error, env.path) from error
                        if isinstance(error, MALFORMED):
                            raise malformed(error, env.path) from error
                        raise
                    else:
                        _ensure_same(env, txn, None)
                        return
                    finally:
                        txn.abort()
            _recover(env, failure)

    def contents(
        self,
        problem: Callable[[str], None],
        held: Callable[[], None] = lambda: None,
        *,
        writer: Writer | None = None,
    ) -> AbstractContextManager[Contents]:
        from .held_state import contents  # only checks and repairs need it

        if self._closed:
            raise ClosedError(f"the store {self.url} is closed")
        return contents(self.path, problem, held, map_size=self._map_size, in_write=writer is not None)

    def remains(self) -> AbstractContextManager[Remains]:
        from .data_file.remains import remains

        return remains(self.path)

    def exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self.path)

    def rebuild(self, keep: Callable[[str], None], fill: Callable[[Tables], None]) -> None:
        from .data_file.remains import rebuild

        with self.exclusive():
            rebuild(self.path, lambda path: LmdbTables(path, map_size=self._map_size), keep, fill)

    def get(self, table: str, key: bytes) -> bytes | None:
        env = self._env
        if env is not None and env.is_open and env.locked:
            with env.reading:
                try:
                    with env.begin() as txn:
                        return txn.get(RANGES[table] + key)  # type: ignore[no-any-return]
                except (lmdb.Error, MustReopen):
                    pass  # `read` below recovers from it, or raises
        return super().get(table, key)

    def is_busy(self) -> bool:
        env = self._environment()
        return env is not None and env.is_busy()

    def write(
        self,
        unit: Callable[[Writer], T],
        committed: Callable[[T], None] = lambda result: None,
        aborted: Callable[[], object] = lambda: None,
    ) -> T:
        if self.read_only:
            raise ReadOnlyError(f"the store {self.url} was opened read-only")
        env = self._environment()
        if env is None:
            if self.before_create is not None:
                self.before_create()
            create_environment(self.path, self._fill)
            env = self._environment()
            assert env is not None
        with env.writing:
            while True:
                try:
                    lock = env.writer_lock()
                    try:
                        lock_to_write(lock)
                        env.ensure_in_place()
                        return _transact(env, unit, committed)
                    finally:
                        # Here, and by no function: Ctrl-C may come as one begins, and all others would wait.
                        if lock.fd >= 0:
                            try:  # noqa: SIM105 (it is such a function)
                                flock(lock.fd, LOCK_UN)
                            except OSError:
                                pass  # nothing can be locked there
                except (lmdb.MapFullError, lmdb.MapResizedError, MustReopen) as error:
                    failure: Exception = error
                except lmdb.PanicError as error:
                    env.suspend()
                    raise translated(error, env.path) from error
                except lmdb.Error as error:
                    raise translated(error, env.path) from error
                except MALFORMED as error:
                    raise malformed(error, env.path) from error
                aborted()
                _recover(env, failure)

    def _fill(self, txn: Transaction) -> None:
        if self.on_create is not None:
            self.on_create(_LmdbWriter(txn))

    def figures(self) -> list[Figure]:
        while True:
            with self.read() as reader:
                if not isinstance(reader, _LmdbReader) or self._env is None:
                    return [filesystem_figure(os.path.dirname(self.path))]
                for meta in meta_pages_of(self._env.data):
                    if meta.transaction == reader.serial:
                        return figures(self._env, meta, reader._txn)
            # There were two commits meanwhile, and the meta page of that state is overwritten.

    def copy_to(self, path: str, progress: OnProgress = no_progress) -> None:
        os.mkdir(path)
        while True:
            with self.read() as reader:
                env = self._env
                assert env is not None
                if copy_data(env, reader.serial, os.path.join(path, "data.mdb"), progress):
                    break
        sync(path)

    def compact(self, progress: OnProgress = no_progress) -> Compacted:
        if self.read_only:
            raise ReadOnlyError(f"the store {self.url} was opened read-only")
        env = self._environment()
        return Compacted(0, 0) if env is None else compact(env, progress)

    def suspend(self) -> None:
        if self._env is not None:
            self._env.suspend()
            self._env = None  # whose user this may no longer be: the garbage collection forgets users

    def close(self) -> None:
        self._closed = True
        if self._env is not None:
            release(self._env, self)
            self._env = None

    def discard(self) -> None:
        """Close the environment for all that use it: its directory is about to be deleted."""
        self.close()
        discard(self.path)


register("lmdb", LmdbTables)
