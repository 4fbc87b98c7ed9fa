"""Which filesystem a path lies on, files that are opened with care, and files that survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import Error, ReadOnlyError, StoreFull, WriteError
from ..text import size_text

NETWORK_FILESYSTEMS = frozenset(
    "9p acfs afs beegfs ceph cifs coda fhgfs fuse.ceph fuse.glusterfs fuse.sshfs gfs gfs2 glusterfs"
    " gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb2 smb3 smbfs wekafs".split()
)
"""Types of filesystem whose memory maps and locks don't reach other machines."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's error numbers for a full disk, a quota and a limit on the size of files."""

NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Those for files that this program may not write."""

TEMPORARY_ENDING = r"\.(\d+)-(\d+)\.[0-9a-f]+\.tmp"
"""With what `temporary_name` ends, as a regular expression; its groups are the pid, and the namespace of that."""

DESCRIPTORS = "/proc/self/fd"
"""The directory in which the system shows the open files of this process by their descriptors."""

_MOUNTINFO = "/proc/self/mountinfo"
_PAUSE = 0.0005  # seconds between two attempts to lock a file


def write_error(error: OSError, message: str, remedy: str, otherwise: type[Error] = WriteError) -> Error:
    """Return our exception for one of the system's while something is written.

    Args:
        error: the system's exception.
        message: what can't be done.
        remedy: what to do if the right to do it is missing.
        otherwise: the exception where neither room nor a right is missing.
    """
    # It is a number where the call was given a descriptor.
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    message = f"{message}: {where}{error.strerror}"
    if error.errno in NO_ROOM:
        return StoreFull(f"{message}; make room")
    if error.errno in NO_RIGHT:
        return ReadOnlyError(f"{message}; {remedy}")
    return otherwise(message)


def real_path(path: str) -> str:
    """Return what `os.path.realpath` does, which raises FileNotFoundError if a link is taken away while it is followed."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return os.path.realpath(path)
    return os.path.abspath(path)


def filesystem_of(path: str, mountinfo: str = _MOUNTINFO) -> str | None:
    """Return the type of the filesystem that *path* is on, such as 'ext4'.

    Return None if the system doesn't say. *mountinfo* is in the format of proc(5).
    """
    real = real_path(path)
    try:
        lines = Path(mountinfo).read_bytes().decode(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, type_ = -1, None
    for line in lines:
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= best:  # of two mounts on one place, the later hides the former
            best, type_ = len(mount), right.split(" ")[0]
    return type_


def write_cache_of(path: str) -> str | None:
    """Return how the disk of *path* caches what is written, 'write back' or 'write through'.

    With 'write through' what has been written is on the disk; with 'write back' the cache holds it
    until it is flushed. Return None if the system doesn't say.
    """
    device = os.stat(path).st_dev
    block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for directory in (block, os.path.join(os.path.realpath(block), "..")):  # a partition has the cache of its disk
        try:
            return Path(directory, "queue", "write_cache").read_text().strip()
        except OSError:
            continue
    return None


def is_holes(status: os.stat_result) -> bool:
    """Return whether a file claims far more bytes than it has on the disk, so that reading it would never end."""
    return status.st_size > 100 * (512 * status.st_blocks + (1 << 20))


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Return whether `opened_regular` opens *path*."""
    try:
        _check_regular(path, os.lstat(path))
    except OSError:
        return False
    return True


def opened_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Return the regular file *path*, open for reading.

    Raise OSError if it is anything else, or all holes: a symbolic link leads elsewhere, and opening a FIFO
    may never return.
    """
    _check_regular(path, os.lstat(path))
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(fd))  # it may have been replaced since
    except BaseException:
        os.close(fd)
        raise
    return open(fd, "rb")


def _check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if is_holes(status):
        raise OSError(errno.EFBIG, "all holes", os.fspath(path))


class KnownFile:
    """An open file that knows whether its path still leads to it: as long as it is open, no other has its inode.

    Attributes:
        fd: the descriptor, which is this object's to close.
        path: where the file is.
        status: of the file, when it was opened.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.status = os.fstat(fd)
        self._id = self.status.st_dev, self.status.st_ino

    def is_in_place(self) -> bool:
        """Return whether its path leads to this file, and not by a symbolic link."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._id

    def close(self) -> None:
        """Close it; closing twice does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


@contextlib.contextmanager
def opened_directory(path: str) -> Iterator[int]:
    """Within `with`, give a descriptor of the directory at an absolute path, which can be used for the names in it only.

    Raise OSError if any part of the path is a symbolic link, also one that somebody has just put there.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(os.sep, flags)
    try:
        for name in filter(None, path.split(os.sep)):
            above, fd = fd, os.open(name, flags, dir_fd=fd)
            os.close(above)
        yield fd
    finally:
        os.close(fd)


def path_of(fd: int, path: str) -> str:
    """Return a path that leads to an open file or directory, whatever *path* leads to; *path* itself without /proc."""
    return f"{DESCRIPTORS}/{fd}" if os.path.isdir(DESCRIPTORS) else path


def locked_within(fd: int, kind: int, seconds: float) -> bool:
    """Lock an open file by `flock`, at once or within some seconds; return whether it is locked.

    Raise OSError if its filesystem has no such locks.

    It is tried again and again. To wait in the system would let each writer write once, and then the next: ext4
    delays a flush by another process than that of the last one, so that all would write half as much.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(_PAUSE)


def mount_of(fd: int) -> str:
    """Return what tells the mount of an open file from all others since the boot; '' if the system doesn't say.

    The numbers in `/proc/self/mountinfo` are used again, so that a disk which comes back may get its former one.
    """
    import ctypes  # takes 2 ms

    size, mask_size, place = 256, 4, 0x90  # of `struct statx`
    at_empty_path, unique = 0x1000, 0x4000  # AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE (Linux 6.8)
    buffer = ctypes.create_string_buffer(size)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    known = statx is not None and statx(fd, b"", at_empty_path, unique, buffer) == 0
    if known and int.from_bytes(buffer.raw[:mask_size], sys.byteorder) & unique:
        return str(int.from_bytes(buffer.raw[place : place + 8], sys.byteorder))
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}") as facts:
        return next((line.split()[1] for line in facts if line.startswith("mnt_id:")), "")
    return ""


def sync(path: str) -> None:
    """Flush to disk the contents of a file, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: str) -> None:
    """Make the directory *path* and those above it, and flush their names to disk.

    Names of directories that are there already are flushed, too: another process may have just made them.
    """
    os.makedirs(path, exist_ok=True)
    device = os.stat(path).st_dev
    while (parent := os.path.dirname(path)) != path and os.stat(parent).st_dev == device:
        try:
            sync(parent)
        except PermissionError:
            return  # this process can't have made a name in a directory that it may not read
        path = parent


def touch(path: str | os.PathLike[str], time_ns: int) -> None:
    """Set the time of change (mtime) of a file, which is made if it is missing. A symbolic link is not followed.

    A file that has other names, too (hard links), is first replaced by a copy, so that they keep their time.
    Raise OSError, or OverflowError for a time that the system doesn't have.
    """
    if os.path.lexists(path) and os.lstat(path).st_nlink > 1:
        with opened_regular(path) as file:
            contents = file.read()
        write_durably(os.fspath(path), contents)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666), "wb") as file:
        os.utime(file.fileno(), ns=(time_ns, time_ns))
        os.fsync(file.fileno())


def temporary_name(path: str) -> str:
    """Return another name beside *path*, which says which process uses it; see TEMPORARY_ENDING."""
    return f"{path}.{os.getpid()}-{pid_namespace()}.{secrets.token_hex(4)}.tmp"


def pid_namespace() -> int:
    """Return the number of the namespace of pids that this process is in, such as its container's; 0 if there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def write_durably(path: str, contents: bytes, *, replace: bool = True, mtime: float | None = None) -> None:
    """Write the file *path* as `written_durably` does."""
    with written_durably(path, replace=replace, mtime=mtime) as file:
        file.write(contents)


@contextlib.contextmanager
def written_durably(path: str, *, replace: bool = True, mtime: float | None = None) -> Iterator[IO[bytes]]:
    """Give a file that is at *path* at the end; after a power cut the old file is there or the new one, whole.

    Its time of change is *mtime* (seconds since 1970), or now. Raise FileExistsError if there is a file
    and *replace* is False. If the block raises, nothing is left of the new file.
    """
    temporary = temporary_name(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            if mtime is not None:
                os.utime(fd, (mtime, mtime))
            os.fsync(fd)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        if not replace or os.path.lexists(temporary):
            os.unlink(temporary)
    sync(os.path.dirname(path))


def give_owner(new: str, path: str) -> None:
    """Give a new file the owner and the rights of *path*, which it is about to replace."""
    status = os.stat(path)
    try:
        os.chown(new, status.st_uid, status.st_gid)
    except PermissionError as error:
        raise ReadOnlyError(
            f"{path} belongs to another user, and you can't give the new file to that user: have its owner do this"
        ) from error
    shutil.copystat(path, new)


def require_room(directory: str, needed: int, what: str) -> None:
    """Raise StoreFull if the filesystem of *directory* has less room than the *needed* bytes; *what* needs them."""
    status = os.statvfs(directory)
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    free = blocks * status.f_frsize
    if free < needed:
        raise StoreFull(
            f"{what} takes {size_text(needed)}, and the filesystem of {directory} has {size_text(free)} free: make"
            " room there, or choose another place"
        )
