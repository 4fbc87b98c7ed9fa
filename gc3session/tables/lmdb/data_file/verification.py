"""Whether a data file is safe to open: LMDB checks little before it opens one, and a bad page may end the process.

A file from elsewhere is walked through before it is opened, which takes some 1.5 us a record. One that was
made or walked through on this machine is trusted, or each opening would take that time. Beside a trusted
file there is a *mark*, `jobs/checked`, a line that only this machine could have written::

    time in ns since 1970, a blank, SHA-256 of: machine's ID, user, inode of data.mdb, that time

- A person who prepares a directory elsewhere knows neither the machine's ID nor which inode the data file
  will have here. A copy, or what is unpacked or restored, has other inodes than its original.
- The time in the mark must be the mark's own time of change (ctime), which nobody can set. So a
  mark that is sent back to the machine that wrote it is worthless, too.
- Data file and mark must belong to the user: the file of another user is always walked through.

A mark that is missing or wrong costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from functools import cache
from pathlib import Path
from typing import Final

from ....errors import CorruptStore, OpenError
from ....system.filesystem import is_holes, opened_directory, opened_regular
from .meta import newest_meta_page, opened_data_file
from .pages import Pages
from .structure import check_structure

MARK: Final = "checked"
"""The name of the mark."""

_MACHINE_IDS: Final = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",  # if there is neither of those, marks are valid until the next boot
)
_MARK_DELAY_NS: Final = 10 * 10**9  # that may pass between the time in the mark and its writing
_ATTEMPTS: Final = 10  # to walk through a file that is being written
_MARK_SIZE: Final = 200  # bytes that a mark has at most


# -- the check


def check_before_opening(directory: str, *, verify: bool | None) -> bool:
    """Raise CorruptStore if opening the environment in *directory* might end the process.

    The two meta pages are always checked. The whole file is walked through if *verify* is True; and
    if it is None, unless the file is trusted and doesn't look short. LMDB leaves pages at the end
    unwritten that it has freed again; the store fills that gap after each commit, so that only a killed writer
    or a truncation leaves a short file.

    Return whether the file was walked through.
    """
    try:
        return _check(directory, verify)
    except OSError as error:
        raise OpenError(
            f"{error.filename or directory} can't be read: {error.strerror}; try again, and look after the disk"
        ) from error


def _check(directory: str, verify: bool | None) -> bool:
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        fd = file.fileno()
        is_short = os.fstat(fd).st_size < newest_meta_page(path, fd).size
        if verify is False or (verify is None and not is_short and is_trusted(directory)):
            return False
        _walk_through(path, fd)
    return True


class _Fault(Exception):
    """Ends a walk at the first fault; the message says what it is."""


def _stop(fault: str) -> None:
    raise _Fault(fault)


def _walk_through(path: str, fd: int) -> None:
    """Raise CorruptStore if a page that LMDB would use isn't as it should be."""
    status = os.fstat(fd)
    if is_holes(status):  # a walk takes memory for each page
        raise CorruptStore(f"{path} is all holes: {status.st_size:,} bytes; restore it from a backup")
    for _ in range(_ATTEMPTS):
        meta = newest_meta_page(path, fd)
        try:
            check_structure(Pages(path, fd, meta), _stop)
            return
        except _Fault as fault:  # beside a live writer these may be pages of two states
            if newest_meta_page(path, fd).transaction == meta.transaction:
                raise CorruptStore(
                    f"{path} is truncated or damaged ({fault}); restore it from a backup, or try 'gc3session repair'"
                ) from fault
    raise OpenError(
        f"{path} wasn't made here, and another process writes to it so often that it can't be checked: wait for"
        " that process to end or, if you trust the person who made the file, open it with verify=False"
    )


# -- the mark


@cache
def _machine() -> bytes:
    for name in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            text = Path(name).read_bytes().strip()
            if text:
                return text
    return b""


def _mark(inode: int, time_ns: int) -> bytes:
    known_here = b"%s %d %d %d" % (_machine(), os.geteuid(), inode, time_ns)
    return b"%d %s\n" % (time_ns, hashlib.sha256(known_here).hexdigest().encode())


def is_trusted(directory: str) -> bool:
    """Return whether the data file in *directory* was made or walked through by this user, on this machine."""
    if not _machine():
        return False
    try:
        data = os.lstat(os.path.join(directory, "data.mdb"))
        with opened_regular(os.path.join(directory, MARK)) as file:
            mark, line = os.fstat(file.fileno()), file.read(_MARK_SIZE)
    except OSError:
        return False
    digits = line.partition(b" ")[0]
    if {mark.st_uid, data.st_uid} != {os.geteuid()} or not digits.isdigit():
        return False
    time_ns = int(digits)
    return abs(mark.st_ctime_ns - time_ns) < _MARK_DELAY_NS and line == _mark(data.st_ino, time_ns)


def mark_trusted(directory: str) -> None:
    """Mark the data file in *directory* as made or walked through here, if the mark can be written."""
    # Without the mark the next opening takes longer.
    with contextlib.suppress(OSError), opened_directory(directory) as place:
        line = _mark(os.lstat("data.mdb", dir_fd=place).st_ino, time.time_ns())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MARK, dir_fd=place)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(MARK, flags, 0o666, dir_fd=place), "wb") as file:
            file.write(line)
