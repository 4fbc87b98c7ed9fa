"""The locks that keep a data file from being replaced while anybody has the environment open.

A process that opens an environment holds a shared `flock` on its directory for as long as it is open. To replace
the data file a process needs the exclusive `flock`. Programs that use LMDB without this library don't know of
these locks, but LMDB has them hold a lock on the first byte of `lock.mdb`; so that lock is taken, too.

The lock on the first byte belongs to the process, which loses it as soon as it closes any descriptor of
`lock.mdb`. So that file is touched only while this process has the environment closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import StoreInUse, WriteError
from ...system.filesystem import is_regular

_LOCKS: Final = Path("/proc/locks")
_LOCK_LINE: Final = re.compile(r"\d+: (?:FLOCK|POSIX) +\S+ +\S+ (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ")
_BUSY: Final = (errno.EWOULDBLOCK, errno.EACCES)


def shared_lock(directory: str) -> int:
    """Return a descriptor of *directory* whose lock keeps the data file from being replaced, or -1 without a lock.

    Wait while another process replaces the file. There is no lock if this user may not list the directory, or
    if its filesystem has no such locks.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except OSError:
        os.close(fd)
        return -1
    except BaseException:  # Ctrl-C, while it waits
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def exclusive_lock(directory: str) -> Iterator[None]:
    """Within `with`, nobody can open the environment, which this process must have closed.

    Raise StoreInUse at once if another process has it open. Where `lock.mdb` is missing or isn't a file, nobody
    can hold a lock on it, and it isn't locked here either.
    """
    lock = os.path.join(directory, "lock.mdb")
    with _locked(directory, directory, os.O_RDONLY | os.O_DIRECTORY):
        if is_regular(lock):
            with _locked(directory, lock, os.O_RDWR):
                yield
        else:
            yield


@contextlib.contextmanager
def _locked(directory: str, path: str, flags: int) -> Iterator[None]:
    """Hold the exclusive lock on one of the two files within `with`."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _not_locked(path, error) from error
    try:
        try:
            if path == directory:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            raise (in_use(directory) if error.errno in _BUSY else _not_locked(path, error)) from error
        yield
    finally:
        os.close(fd)


def _not_locked(path: str, error: OSError) -> WriteError:
    return WriteError(
        f"{path} can't be locked ({error.strerror}), so the store's data file can't be replaced; nothing was changed"
    )


def in_use(directory: str, *, here: bool = False) -> StoreInUse:
    """Return the error that says which processes have the environment open: others, or with *here* this one."""
    pids = (os.getpid(),) if here else users(directory)
    who = f"by process {', '.join(map(str, pids))}" if pids else "by another process"
    return StoreInUse(
        f"{directory} is open {who}{', this one' if here else ''}; its data file can't be replaced meanwhile;"
        " nothing was changed. Close it there, and try again",
        pids,
    )


def users(directory: str) -> tuple[int, ...]:
    """Return the pids of other processes that have the environment open, as far as /proc/locks shows them."""
    inodes = set()
    for path in (directory, os.path.join(directory, "lock.mdb")):
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.stat(path).st_ino)
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return ()
    found = {int(match[1]) for line in lines if (match := _LOCK_LINE.match(line)) and int(match[2]) in inodes}
    return tuple(sorted(found - {0, os.getpid()}))
