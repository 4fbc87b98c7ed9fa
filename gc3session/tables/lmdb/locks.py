"""The locks of an environment's files: who writes, and who has the data file open.

`writer.lock`
    Locked by `flock` from before a transaction to write begins until the mirrors have followed it. LMDB's own
    lock is then free, so that nobody waits for that: a wait in LMDB can't be interrupted.
`lock.mdb`
    LMDB has each process hold a shared lock on the first byte while it has the environment open, and one on the
    byte of its process number by which others see that its slots aren't those of a dead one. Both belong to
    the process, which loses them as soon as it closes any descriptor of the file, as a program does that copies
    or hashes the files of its own session. So locks of the open file description are held beside them. To
    replace the data file a process needs the first byte for itself.
`data.mdb`
    A lock on its first byte, which anybody may hold who reads it, keeps nobody from anything; it tells who has the
    environment open if `lock.mdb` was taken away.

The first two can be opened only by those who may write them: a lock by anybody else could stop all of these.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import StoreInUse, WaitingWarning, WriteError
from ...system.filesystem import KnownFile, is_regular, locked_within
from ...text import escaped

DATA: Final = "data.mdb"
LOCK: Final = "lock.mdb"
WRITER_LOCK: Final = "writer.lock"

_BUSY: Final = (errno.EAGAIN, errno.EACCES)
_LOCKS: Final = Path("/proc/locks")
_LOCK_LINE: Final = re.compile(r"\d+: (FLOCK|POSIX) +\S+ +\S+ (\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ")
_PATIENCE: Final = 5.0  # seconds to wait for another writer without a word
_PATIENCE_TO_READ: Final = 10.0  # seconds that who only reads waits for a writer


def _lock_of(kind: int, byte: int) -> bytes:
    """Return the `struct flock` for a lock on one byte."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0)


# -- who writes


def lock_to_write(file: KnownFile) -> None:
    """Lock `writer.lock`, which is open; wait while another program has it locked.

    After 5 s warn of the program that is waited for. Raise WriteError if the system can't lock it.
    """
    try:
        if not locked_within(file.fd, fcntl.LOCK_EX, _PATIENCE):
            warnings.warn(escaped(f"{file.path}: waiting for {_holder(file.fd)}"), WaitingWarning, stacklevel=2)
            fcntl.flock(file.fd, fcntl.LOCK_EX)
    except OSError as error:
        raise WriteError(f"{file.path} can't be locked ({error.strerror}); nothing was written") from error


def is_locked(fd: int) -> bool:
    """Return whether another program has `writer.lock` locked, which is open as *fd* and not locked by it."""
    try:
        busy = not locked_within(fd, fcntl.LOCK_EX, 0)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:  # nobody can lock it
        return True
    return busy


@contextlib.contextmanager
def writers_waiting(directory: str) -> Iterator[None]:
    """Within `with` nobody writes, if this user may keep others from it, and none takes longer than some seconds."""
    path = os.path.join(directory, WRITER_LOCK)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nobody has ever written, or this user may not keep others from it
            if is_regular(path):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                locked_within(fd, fcntl.LOCK_SH, _PATIENCE_TO_READ)
        yield


def _holder(fd: int) -> str:
    """Return who has `writer.lock` locked, and what can be done."""
    for pid in _pids(os.fstat(fd), "FLOCK"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                return f"process {pid}, which is stopped while it writes: `kill -CONT {pid}` lets it go on"
        return f"process {pid}, which is writing; Ctrl-C ends the wait"
    return "a process that this system doesn't show, such as one in another container; Ctrl-C ends the wait"


def _pids(status: os.stat_result, kind: str) -> list[int]:
    """Return the processes that hold locks of that kind on a file, as far as the system shows them."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return []
    found = [match for match in map(_LOCK_LINE.match, lines) if match and match[1] == kind]
    found = [match for match in found if int(match[5]) == status.st_ino and int(match[2]) > 0]
    device = os.major(status.st_dev), os.minor(status.st_dev)
    # On some filesystems files have other devices than what they are locked as has.
    exact = [match for match in found if (int(match[3], 16), int(match[4], 16)) == device]
    return sorted({int(match[2]) for match in exact or found})


# -- who has the environment open


def wait_for_replacement(fd: int) -> None:
    """Wait while a process replaces the data file; `lock.mdb` is open as *fd*. LMDB would wait, too, but not for Ctrl-C.

    To be called before LMDB has opened the file.
    """
    fcntl.lockf(fd, fcntl.LOCK_SH, 1)
    fcntl.lockf(fd, fcntl.LOCK_UN, 1)


def keep_locks(fd: int, data: int) -> bool:
    """Lock what LMDB has locked in `lock.mdb`, until *fd* is closed; return False if LMDB's locks were lost meanwhile.

    To be called when LMDB has opened the file; *fd* must be closed after LMDB has closed it. *data* is the data file.
    """
    pid = os.getpid()
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_RDLCK, 0))
        # LMDB's lock on the process number is exclusive: no other one could be held beside it.
        fcntl.fcntl(fd, fcntl.F_SETLK, _lock_of(fcntl.F_RDLCK, pid))
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_RDLCK, pid))
    except OSError as error:
        if error.errno not in _BUSY:
            raise
        return False
    with contextlib.suppress(OSError):
        fcntl.lockf(data, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
    return True


def is_alive(fd: int, pid: int) -> bool:
    """Return whether the process with slots in `lock.mdb` under that number lives, in whatever container."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock_of(fcntl.F_WRLCK, pid))
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def exclusive_lock(directory: str) -> Iterator[None]:
    """Within `with`, nobody can open the environment, which this process must have closed.

    Raise StoreInUse at once if another process has it open.
    """
    path = os.path.join(directory, LOCK)
    with contextlib.ExitStack() as stack:
        if is_regular(path):
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise _not_locked(path, error) from error
            stack.callback(os.close, fd)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_WRLCK, 0))
            except OSError as error:
                raise (in_use(directory) if error.errno in _BUSY else _not_locked(path, error)) from error
        elif users(directory):
            raise in_use(directory)
        yield


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
    """Return the pids of other processes that have the environment open, as far as the system shows them."""
    paths = filter(is_regular, (os.path.join(directory, name) for name in (DATA, LOCK)))
    return tuple(sorted({pid for path in paths for pid in _pids(os.stat(path), "POSIX")} - {os.getpid()}))
