"""How the files of an LMDB environment are made, and opened by LMDB.

LMDB follows symbolic links. In a directory in which others may write, any look at a file may be out of date when
LMDB opens it, and LMDB would overwrite what the link leads to. So the files are opened here, without following;
and LMDB gets a path at which nobody can put anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import lmdb

from ...errors import CorruptStore, OpenError, ReadOnlyError
from ...system.filesystem import DESCRIPTORS, KnownFile, opened_directory, path_of, write_error
from ...system.temporary import made_whole
from .data_file.meta import LARGEST_LOCK_FILE
from .data_file.verification import mark_trusted
from .errors import translated
from .locks import DATA, LOCK, WRITER_LOCK, keep_locks, wait_for_replacement

DEFAULT_MAP_SIZE: Final = 1 << 40
"""Bytes of address space; they cost neither memory nor disk until they are used."""

_SMALLEST_MAP = 1 << 24  # bytes
_LOCK_FILE_SIZE: Final = 73_728  # bytes, for some more slots than _MAX_READERS
_MAX_READERS: Final = 1022  # the first opener's number counts; with LMDB's own 126 even opening fails for some
_ATTEMPTS: Final = 100  # to open files that are being replaced
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Transaction = Any
"""An `lmdb.Transaction`, which is generic in its stubs only."""


class OpenFiles(NamedTuple):
    """The files of an environment, which are open.

    Attributes:
        env: LMDB's environment.
        data: `data.mdb`.
        lock: `lock.mdb`; None if this user may not write it, so that readers aren't entered in it.
        writer: `writer.lock`; None if the environment was opened to read only.
    """

    env: lmdb.Environment
    data: KnownFile
    lock: KnownFile | None
    writer: KnownFile | None

    def close(self) -> None:
        """Close all but the data file, by which a later one is known."""
        try:
            self.env.close()
        finally:  # not before: LMDB would lose its locks
            for file in (self.lock, self.writer):
                if file is not None:
                    file.close()


# -- making


def create_environment(path: str, fill: Callable[[Transaction], None]) -> None:
    """Make an environment with empty tables in the directory *path*, unless another process is faster.

    *fill* is called with its first transaction. After a power cut the whole environment
    is there or none, because it is made under another name. The first `Environment.begin` to write flushes the
    name.
    """
    try:
        with made_whole(path) as temporary, opened_directory(temporary) as directory:
            fd = os.open(DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666, dir_fd=directory)
            data = KnownFile(fd, os.path.join(temporary, DATA))
            lock = _made(temporary, directory, LOCK, data.status)
            _made(temporary, directory, WRITER_LOCK, data.status)
            with (
                path_for_lmdb(temporary, directory, data, lock) as place,
                _opened(place, map_size=_SMALLEST_MAP, create=True, lib_version=0) as env,
                env.begin(write=True) as txn,
            ):
                fill(txn)
            os.fsync(data.fd)
            mark_trusted(temporary)
    except lmdb.Error as error:
        raise translated(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and os.path.isdir(path):
            return
        raise write_error(error, f"the store {path} can't be made", "open it with read_only=True") from error


def _made(path: str, directory: int, name: str, data: os.stat_result) -> KnownFile:
    """Make one of the two lock files, for those who may write the data file. Raise FileExistsError if it is there."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
    file = KnownFile(fd, os.path.join(path, name))
    if name == LOCK:  # LMDB would make and map a file of holes, and its process would die by SIGBUS on a full disk
        os.posix_fallocate(fd, 0, _LOCK_FILE_SIZE)
    for owner in ((data.st_uid, data.st_gid), (-1, data.st_gid)):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, *owner)
            break
    os.fchmod(fd, _lock_mode(data.st_mode))
    return file


def _lock_mode(mode: int) -> int:
    """Return the rights to a file that can be opened by those who may write a file of that *mode*."""
    return mode & 0o222 | (mode & 0o222) << 1


# -- opening


def open_files(path: str, *, read_only: bool, map_size: int) -> OpenFiles:
    """Have LMDB open the files in the directory *path*; it reads the two meta pages and no other page.

    A reader that may not write `lock.mdb`, or would have to make it, reads without being entered in it.
    """
    try:
        for _ in range(_ATTEMPTS):
            with opened_directory(path) as directory:
                files = _open_files(path, directory, read_only, map_size)
            try:
                locked = files.lock is None or keep_locks(files.lock.fd, files.data.fd)
                if locked and files.data.is_in_place():
                    return files
            except BaseException:
                files.close()
                raise
            files.close()  # the data file has been replaced meanwhile
        raise OpenError(f"the files in {path} are replaced again and again: try again when that has ended")
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise OpenError(
                f"{path} is a symbolic link, or not a directory; name the directory of a store"
            ) from error
        if read_only:
            raise OpenError(f"{path} can't be opened: {error.strerror}; ask its owner for the rights") from error
        raise write_error(
            error, f"{path} can't be opened", "open the session with read_only=True", OpenError
        ) from error


def _open_files(path: str, directory: int, read_only: bool, map_size: int) -> OpenFiles:
    if not read_only and not os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True):
        raise ReadOnlyError(f"{path} can't be written; open the session with read_only=True")
    data = _known(path, directory, DATA, os.O_RDONLY if read_only else os.O_RDWR)
    lock = writer = None
    if read_only:
        with contextlib.suppress(OSError):
            lock = _known(path, directory, LOCK, os.O_RDWR)
        if lock is not None and lock.status.st_nlink > 1:
            lock = None
    else:
        _check_alone(path, DATA, data)
        lock, writer = (_lock_file(path, directory, name, data.status) for name in (LOCK, WRITER_LOCK))
    if lock is not None:
        wait_for_replacement(lock.fd)
    size = _affordable(map_size, data.status.st_size)
    with path_for_lmdb(path, directory, data, lock) as place:
        while True:
            try:
                env = _opened(place, map_size=size, create=False, readonly=read_only, lock=lock is not None)
                return OpenFiles(env, data, lock, writer)
            except lmdb.MapResizedError:  # another process has grown the map since the file was looked at
                size *= 2
            except lmdb.MemoryError as error:
                size //= 2
                if size < max(_SMALLEST_MAP, os.fstat(data.fd).st_size):
                    raise translated(error, path) from error
            except lmdb.Error as error:
                raise translated(error, path) from error


def _opened(place: str, **options: Any) -> lmdb.Environment:
    return lmdb.open(place, mode=0o777, max_readers=_MAX_READERS, **options)


def _known(path: str, directory: int, name: str, flags: int) -> KnownFile:
    """Open a file of the environment. Raise CorruptStore if it isn't a file, OSError if it can't be opened."""
    try:
        file = KnownFile(os.open(name, flags | _FLAGS, dir_fd=directory), os.path.join(path, name))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _irregular(path, name) from error
        raise
    if not stat.S_ISREG(file.status.st_mode) or (name != DATA and file.status.st_size > LARGEST_LOCK_FILE):
        raise _irregular(path, name)
    return file


def _irregular(path: str, name: str) -> CorruptStore:
    remedy = "restore it from a backup" if name == DATA else "delete it while nobody uses the session"
    return CorruptStore(f"{path}/{name} is not a regular file, or not such a file: {remedy}")


def _check_alone(path: str, name: str, file: KnownFile) -> None:
    if file.status.st_nlink > 1:
        raise ReadOnlyError(
            f"{path}/{name} has other names, too (hard links), whose contents would change with it: open the"
            f" session with read_only=True, or put a copy of the file in its place"
        )


def _lock_file(path: str, directory: int, name: str, data: os.stat_result) -> KnownFile:
    """Open one of the two lock files, which is made if it is missing."""
    while True:
        try:
            file = _known(path, directory, name, os.O_RDWR)
        except FileNotFoundError:
            try:
                return _made(path, directory, name, data)
            except FileExistsError:
                continue  # another process was faster
        _check_alone(path, name, file)
        mode = stat.S_IMODE(file.status.st_mode)
        too_much = mode & 0o044 & ~_lock_mode(mode)
        if too_much and file.status.st_uid == os.geteuid():  # LMDB made it, or it is a copy
            os.fchmod(file.fd, mode & ~too_much)
        return file


@contextlib.contextmanager
def path_for_lmdb(path: str, directory: int, data: KnownFile, lock: KnownFile | None) -> Iterator[str]:
    """Within `with`, yield the path of a directory whose `data.mdb` and `lock.mdb` are the files that are open here.

    It is the environment's own directory where nobody else can change it; else one with links to the descriptors.
    """
    place = path_of(directory, path)
    if _is_private(directory, ".") and (place != path or _is_private(directory, "..")):
        yield place
        return
    why = f"others may write in {path}, so that it is opened by links in a private directory"
    if place == path:
        raise OpenError(f"{why} to {DESCRIPTORS}, which is missing: mount /proc, or take that right from them")
    with contextlib.ExitStack() as stack:
        try:
            private = stack.enter_context(tempfile.TemporaryDirectory(prefix="gc3session-"))
            for name, file in ((DATA, data), (LOCK, lock)):
                if file is not None:
                    os.symlink(path_of(file.fd, file.path), os.path.join(private, name))
        except OSError as error:
            raise OpenError(
                f"{why}, which can't be made ({error.strerror}): set TMPDIR to a place where it can, or take that"
                " right from them"
            ) from error
        yield private


def _is_private(directory: int, name: str) -> bool:
    """Return whether nobody but this user and root may change the names in a directory."""
    status = os.stat(name, dir_fd=directory)
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _affordable(map_size: int, used: int) -> int:
    """Return *map_size* or, where the address space is limited, less, so that some is left for the program."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        map_size = min(map_size, max(_SMALLEST_MAP, limit // 4))
    return max(map_size, used + used // 4, _SMALLEST_MAP) // 4096 * 4096
