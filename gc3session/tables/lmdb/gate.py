"""Is this file safe to hand to LMDB?  Its checks before opening are few, and it may end the process."""

from __future__ import annotations

import os
import stat
from sys import byteorder

from ...errors import CorruptStore, OpenError
from ...system.filesystem import is_holes
from .origin import is_ours
from .pages import State, both_states
from .structure import problems_of

LARGEST_LOCK = 1 << 24
"""Bytes of a lock file: LMDB maps all of it, and ours have 72 KiB."""

_LOCK_MAGIC = (0xBEEFC0DE).to_bytes(4, byteorder)  # the number that a lock file of LMDB begins with


def regular_file(path: str) -> os.stat_result | None:
    """Return the status of *path*, or None if nothing is there.

    Raise CorruptStore if it is anything but a regular file: LMDB would follow a symbolic link
    and write into its target, or wait for ever on a FIFO.  Raise OpenError if that may not be known.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise OpenError(f"{path} can't be read: {error.strerror}; ask its owner for the rights") from error
    if not stat.S_ISREG(status.st_mode):
        raise CorruptStore(f"{path} is not a regular file; a store is never opened through one that isn't")
    return status


def can_be_lock(path: str) -> bool:
    """Return whether *path* can be LMDB's lock file, or isn't there."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LOCK:
            return False
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        return True
    return not head.strip(b"\0") or head == _LOCK_MAGIC  # one of zeros is new


def lock_file(directory: str) -> os.stat_result | None:
    """Return the status of `lock.mdb`, or None if there is none.  Raise CorruptStore if it can't be one."""
    status = regular_file(os.path.join(directory, "lock.mdb"))
    if status is not None and status.st_size > LARGEST_LOCK:
        raise CorruptStore(
            f"{directory}/lock.mdb is no lock file of LMDB: delete it while nobody uses the session"
        )
    return status


def states(path: str) -> tuple[State, State]:
    """Return what the meta pages of a data file describe; see `both_states`."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return both_states(path, fd)
    finally:
        os.close(fd)


def committed_state(path: str) -> State:
    """Return the newest committed state of a data file.  It raises as `states` does."""
    return max(states(path), key=lambda state: state.transaction)


def check_before_opening(directory: str, *, verify: bool | None) -> bool:
    """Raise CorruptStore if opening the environment in *directory* might end the process.

    The two meta pages are always looked at.  The whole file is walked through (some 1.5 us a record) if
    *verify* is True; and if it is None, unless the file was made or walked through here
    (origin.py) and doesn't look short: LMDB leaves pages at the end unwritten that it has
    freed again.  The store closes that gap after each commit (see `missing_bytes`), so that only
    a killed writer and a truncation leave such a file.

    Return whether it was walked through.
    """
    try:
        return _check(directory, verify)
    except NotADirectoryError as error:
        raise CorruptStore(f"{directory} is not the directory of a store; restore it from a backup") from error
    except PermissionError as error:
        raise OpenError(
            f"{error.filename or directory} can't be read: {error.strerror}; ask its owner for the rights"
        ) from error
    except OSError as error:
        raise OpenError(
            f"{error.filename or directory} can't be read: {error.strerror}; try again, and look after the disk"
        ) from error


def _check(directory: str, verify: bool | None) -> bool:
    path = os.path.join(directory, "data.mdb")
    status = regular_file(path)
    lock_file(directory)
    if status is None:
        raise CorruptStore(f"{path} is missing; restore it from a backup")
    if status.st_size == 0:
        raise CorruptStore(f"{path} is empty; restore it from a backup")
    missing = missing_bytes(path)
    if verify is False or (verify is None and not missing and is_ours(directory)):
        return False
    _walk_through(path, status)
    return True


def _walk_through(path: str, status: os.stat_result) -> None:
    """Raise CorruptStore if a page that LMDB would use isn't as it should be."""
    if is_holes(status):  # a walk takes memory for each page
        raise CorruptStore(f"{path} is all holes: {status.st_size:,} bytes; restore it from a backup")
    before = committed_state(path).transaction
    problems = problems_of(path, 1)
    if not problems:
        return
    if committed_state(path).transaction == before:
        raise CorruptStore(
            f"{path} is truncated or damaged ({problems[0]}); restore it from a backup, or try 'gc3session repair'"
        )
    raise OpenError(
        f"{path} wasn't made here, and is written by another process so often that it can't be checked: wait for"
        " that to end or, if you trust who has made it, open it with verify=False"
    )


def missing_bytes(path: str) -> int:
    """Return how many bytes the file is shorter than its pages; 0 if it isn't."""
    return max(0, committed_state(path).size - os.stat(path).st_size)
