"""LMDB's exceptions, translated to those of gc3session/errors.py: none of LMDB's own leaves this package."""

from __future__ import annotations

import errno
import os

import lmdb

from ...errors import CorruptStore, Error, OpenError, ReadOnlyError, StoreFull, WriteError
from ...system.filesystem import NO_RIGHT, NO_ROOM

_FULL = (errno.EIO, *NO_ROOM)  # LMDB makes EIO of a short write


class MustReopen(Exception):
    """A meta page could not be written, or the data file was replaced: the environment must be opened again."""


def translated(error: lmdb.Error, path: str) -> Error:
    """Return our exception for one that LMDB has raised about the environment in *path*."""
    message = f"{path}: LMDB says: {error}"
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.PanicError):
        return WriteError(f"{message}; the environment was closed and is opened again at the next call")
    if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
        return StoreFull(f"{message}; the address space is limited: raise `ulimit -v`, or pass a smaller map_size")
    if code in _FULL:
        return StoreFull(
            f"{message}; the disk is full, a quota is reached, or the disk fails. Nothing of this"
            " transaction was written; make room and call again"
        )
    if isinstance(error, lmdb.LockError) and code == errno.EAGAIN:
        return OpenError(
            f"{path} is open in another container, by a program that has the process number {os.getpid()} there as"
            " this one has it here, and LMDB can't tell them apart: run both in one PID namespace (as `docker run"
            " --pid=host` does), or wait until that program ends"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return Error(f"{message}; too many processes read at once: wait for some of them to end")
    if isinstance(error, lmdb.ReadonlyError) or code in NO_RIGHT:
        return ReadOnlyError(f"{message}; open the session with read_only=True")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadDbiError)):
        return CorruptStore(f"{message}; the data file is damaged: restore it from a backup")
    return WriteError(f"{message}; close the session and open it again")


def malformed(error: BaseException, path: str) -> CorruptStore:
    """Return our exception for a key or value that isn't as tables/interface.py has it."""
    return CorruptStore(f"{path}: a key or value isn't as the format has it ({error}); restore it from a backup")
