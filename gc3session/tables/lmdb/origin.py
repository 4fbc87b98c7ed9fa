"""Was this data file made here, or did it come from elsewhere, where anybody may have changed it?

LMDB trusts its data file: a page that isn't as LMDB writes it may end the process.  So a file
from elsewhere is walked through before it is opened (gate.py), which takes some 1.5 us a
record; one that was made or walked through here is not, as that would be done at each opening.
Beside such a file there is the *mark*, `jobs/checked`, a line that only this machine writes::

    time in ns since 1970, a blank, SHA-256 of: machine's ID, user, inode of data.mdb, that time

- Who makes a directory elsewhere knows neither the machine's ID nor which inode the data file
  will have here; a copy, or what is unpacked or restored, has other inodes than its original.
- The file's own time of change, which nobody can set, must be the time that it says, so that a
  mark that was sent back to the machine that wrote it is worthless, too.
- Data file and mark must be the user's own: the file of another user is always walked through.

A mark that is missing, or doesn't hold, costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from functools import cache
from pathlib import Path
from typing import Final

MARK: Final = "checked"
"""The name of the mark."""

_MACHINE_IDS: Final = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",  # where there is none of those, a mark holds until the next boot
)
_LATE_NS: Final = 10 * 10**9  # between the time in the mark and its writing
_LONGEST: Final = 200  # bytes


@cache
def _machine() -> bytes:
    for name in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            text = Path(name).read_bytes().strip()
            if text:
                return text
    return b""


def _line(inode: int, time_ns: int) -> bytes:
    told = b"%s %d %d %d" % (_machine(), os.geteuid(), inode, time_ns)
    return b"%d %s\n" % (time_ns, hashlib.sha256(told).hexdigest().encode())


def is_ours(directory: str) -> bool:
    """Return whether the data file in *directory* was made or checked by this user, on this machine."""
    if not _machine():
        return False
    user = os.geteuid()
    try:
        data = os.lstat(os.path.join(directory, "data.mdb"))
        fd = os.open(os.path.join(directory, MARK), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        mark = os.fstat(fd)
        if not stat.S_ISREG(mark.st_mode) or mark.st_uid != user or data.st_uid != user:
            return False
        line = os.read(fd, _LONGEST)
    except OSError:
        return False
    finally:
        os.close(fd)
    digits = line.partition(b" ")[0]
    if not digits.isdigit():
        return False
    time_ns = int(digits)
    return abs(mark.st_ctime_ns - time_ns) < _LATE_NS and line == _line(data.st_ino, time_ns)


def mark_as_ours(directory: str) -> None:
    """Note that the data file in *directory* was made or checked here; nothing if that can't be written."""
    path = os.path.join(directory, MARK)
    with contextlib.suppress(OSError):  # the next opening takes longer
        line = _line(os.lstat(os.path.join(directory, "data.mdb")).st_ino, time.time_ns())
        if os.path.lexists(path):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
