"""How the files of an LMDB environment are made, and opened by LMDB."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any, Final

import lmdb

from ...errors import OpenError, ReadOnlyError
from ...system.filesystem import sync, write_error
from ...system.temporary import made_whole
from .data_file.meta import lock_file, regular_file
from .data_file.verification import mark_trusted
from .errors import translated

DEFAULT_MAP_SIZE: Final = 1 << 40
"""Bytes of address space; they cost neither memory nor disk until they are used."""

_SMALLEST_MAP = 1 << 24  # bytes
_LOCK_FILE_SIZE: Final = 73_728  # bytes, for some more slots than _MAX_READERS
_MAX_READERS: Final = 1022  # the first opener's number counts; with LMDB's own 126 even opening fails for some

Transaction = Any
"""An `lmdb.Transaction`, which is generic in its stubs only."""


def create_environment(path: str, fill: Callable[[Transaction], None]) -> None:
    """Make an environment with empty tables in the directory *path*, unless another process is faster.

    *fill* is called with its first transaction. After a power cut the whole environment
    is there or none, because it is made under another name. The first `Environment.begin` to write flushes the
    name.
    """
    try:
        with made_whole(path) as temporary:
            _reserve_lock_file(temporary)
            env = lmdb.open(
                temporary,
                map_size=_SMALLEST_MAP,
                max_readers=_MAX_READERS,
                mode=0o777,
                lib_version=0,
            )
            try:
                with env.begin(write=True) as txn:
                    fill(txn)
            finally:
                env.close()
            sync(os.path.join(temporary, "data.mdb"))
            mark_trusted(temporary)
    except lmdb.Error as error:
        raise translated(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and os.path.isdir(path):
            return
        raise write_error(error, f"the store {path} can't be made", "open it with read_only=True") from error


def open_files(path: str, *, read_only: bool, map_size: int) -> tuple[lmdb.Environment, bool]:
    """Have LMDB open the files in the directory *path*; it reads the two meta pages and no other page.

    Return the environment, and whether its readers are entered in `lock.mdb`. A reader that may not write that
    file, or would have to make it, reads without being entered.
    """
    data, lock = os.path.join(path, "data.mdb"), os.path.join(path, "lock.mdb")
    files = {data: regular_file(data), lock: lock_file(path)}
    linked = [name for name, status in files.items() if status is not None and status.st_nlink > 1]
    if not read_only:
        if not os.access(path, os.W_OK | os.X_OK):
            raise ReadOnlyError(f"{path} can't be written; open the session with read_only=True")
        if linked:
            raise ReadOnlyError(
                f"{linked[0]} has other names, too (hard links), whose contents would change with it: open the"
                f" session with read_only=True, or put a copy of the file in its place"
            )
        try:
            _reserve_lock_file(path)
        except OSError as error:
            remedy = "open the session with read_only=True"
            raise write_error(error, f"{lock} can't be made", remedy, OpenError) from error
    locked = not read_only or (os.access(lock, os.W_OK) and lock not in linked)
    size = _affordable(map_size, os.stat(data).st_size)
    while True:
        try:
            env = lmdb.open(
                path,
                map_size=size,
                create=False,
                readonly=read_only,
                lock=locked,
                mode=0o777,
                max_readers=_MAX_READERS,
            )
            return env, locked
        except lmdb.MapResizedError:  # another process has grown the map since the file was looked at
            size *= 2
        except lmdb.MemoryError as error:
            size //= 2
            if size < max(_SMALLEST_MAP, os.stat(data).st_size):
                raise translated(error, path) from error
        except lmdb.Error as error:
            raise translated(error, path) from error


def _affordable(map_size: int, used: int) -> int:
    """Return *map_size* or, where the address space is limited, less, so that some is left for the program."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        map_size = min(map_size, max(_SMALLEST_MAP, limit // 4))
    return max(map_size, used + used // 4, _SMALLEST_MAP) // 4096 * 4096


def _reserve_lock_file(directory: str) -> None:
    """Make `lock.mdb` with all its blocks, unless it is there.

    LMDB would make and map a file of holes, and its process would die by SIGBUS on a full disk.
    """
    try:
        fd = os.open(os.path.join(directory, "lock.mdb"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return
    try:
        os.posix_fallocate(fd, 0, _LOCK_FILE_SIZE)
    finally:
        os.close(fd)
