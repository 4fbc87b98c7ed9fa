"""Is this file safe to hand to LMDB?  Its checks before opening are few, and it may end the process.

Of the data file, format version 1 (LMDB 0.9), only the two meta pages are read here: page 0 and
page 1, of which the one with the greater transaction number holds.  Numbers are in the byte
order of the machine::

    at    bytes
     0    8      page number
    10    2      flags: 8 for a meta page
    16    4      magic number 0xBEEFC0DE
    20    4      version, 1
    40   48      the free list's database:  page size (4), flags (2), depth (2), three page
                 counts (3 * 8), entries (8), root page (8)
    88   48      the main database, alike
   136    8      number of the last page
   144    8      transaction number
"""

from __future__ import annotations

import os
import stat
import struct

import lmdb.verify

from .errors import CorruptStore, OpenError, UnknownFormat

_MAGIC = 0xBEEFC0DE
_META_FLAG = 8
_FREE_FLAGS = 8  # MDB_INTEGERKEY
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32
_PAGE = struct.Struct("=Q2xH4x")
_DATABASE = struct.Struct("=IHHQQQQQ")
_META = struct.Struct("=IIQQ")
_END = struct.Struct("=QQ")


def regular_file(path: str) -> os.stat_result | None:
    """Return the status of *path*, or None if nothing is there.

    Raise CorruptStore if it is anything but a regular file: LMDB would follow a symbolic link
    and write into its target, or wait for ever on a FIFO.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CorruptStore(f"{path} is not a regular file; a store is never opened through one that isn't")
    return status


def last_page(path: str) -> tuple[int, int]:
    """Return the page size and the number of the last page of a data file, from its meta pages.

    Raise CorruptStore or UnknownFormat if they are not what LMDB writes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        first = _meta(path, os.pread(fd, 152, 0), 0)
        second = _meta(path, os.pread(fd, 152, first[0]), 1)
    finally:
        os.close(fd)
    page_size, last, _ = max(first, second, key=lambda meta: meta[2])
    return page_size, last


def _meta(path: str, page: bytes, number: int) -> tuple[int, int, int]:
    """Return page size, last page and transaction number of a meta page."""
    remedy = "restore it from a backup"
    if len(page) < 152:
        raise CorruptStore(f"{path} is too short to be an LMDB data file; {remedy}")
    page_number, flags = _PAGE.unpack_from(page, 0)
    magic, version, _, _ = _META.unpack_from(page, 16)
    if magic != _MAGIC or page_number != number or not flags & _META_FLAG:
        raise CorruptStore(f"{path} is not an LMDB data file, or its page {number} is damaged; {remedy}")
    if version != 1:
        raise UnknownFormat(f"{path} has LMDB's format {version}; only format 1 (LMDB 0.9) is read here")
    free, main = _DATABASE.unpack_from(page, 40), _DATABASE.unpack_from(page, 88)
    last, transaction = _END.unpack_from(page, 136)
    page_size = free[0]
    sound = (
        512 <= page_size <= 65536
        and page_size & (page_size - 1) == 0
        and free[1] == _FREE_FLAGS
        and 1 <= last < 1 << 50
        and all(db[2] <= _MAX_DEPTH and (db[7] == _NO_PAGE or 1 < db[7] <= last) for db in (free, main))
    )
    if not sound:
        raise CorruptStore(f"{path}: page {number} has impossible values; {remedy}")
    return page_size, last, transaction


def check_before_opening(directory: str) -> None:
    """Raise CorruptStore if opening the environment in *directory* might end the process.

    A file that looks short is walked through (6 s/GiB): LMDB leaves pages at the end unwritten
    that it has freed again.  The store closes that gap after each commit (see `missing_bytes`),
    so that only a killed writer and a truncation leave such a file.
    """
    try:
        _check(directory)
    except NotADirectoryError as error:
        raise CorruptStore(f"{directory} is not the directory of a store; restore it from a backup") from error
    except PermissionError as error:
        raise OpenError(
            f"{error.filename} can't be read: {error.strerror}; ask its owner for the rights"
        ) from error


def _check(directory: str) -> None:
    path = os.path.join(directory, "data.mdb")
    status = regular_file(path)
    regular_file(os.path.join(directory, "lock.mdb"))
    if status is None:
        raise CorruptStore(f"{path} is missing; restore it from a backup")
    if status.st_size == 0:
        raise CorruptStore(f"{path} is empty; restore it from a backup")
    for _ in range(3):  # beside a live writer the walk may see two states at once
        if not missing_bytes(path):
            return
        try:
            problems = lmdb.verify.verify(path)  # type: ignore[no-untyped-call]
        except lmdb.verify.VerifyError as error:
            problems = [error]
        if not problems:
            return
    raise CorruptStore(f"{path} is truncated or damaged ({problems[0]}); restore it from a backup")


def missing_bytes(path: str) -> int:
    """Return how many bytes the file is shorter than its pages; 0 if it isn't."""
    page_size, last = last_page(path)
    return max(0, (last + 1) * page_size - os.stat(path).st_size)
