"""The check of the mirror: it is compared with the index byte for byte, as FORMAT.md describes it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Final

from ..directory import SessionDirectory
from ..errors import OpenError
from ..index.entries import Row
from ..system.filesystem import is_holes
from ..system.signals import signal_safe
from ..system.temporary import keeping
from .finding import Finding

_PIECE: Final = 1 << 20  # bytes read at once
_COPY: Final = "a copy of the mirror"
_PATIENCE: Final = 10.0  # seconds that a writer may hold the mirror's lock
_PAUSE: Final = 0.002  # seconds between two tries to get it
_BLANK: Final = b" \n"


class MirrorCopy:
    """A copy of the mirror as it was at one moment; made by `mirror_copy`.

    Attributes:
        name: that of the file.
        fault: why there is no copy; '' if there is one.
        time: of the file's change, in ns.
        size: how many bytes it has.
        where: the boot ID and the inode of `store.url`, as a mark has them.
    """

    def __init__(self, directory: SessionDirectory) -> None:
        self._directory = directory
        self.name = directory.INDEX_FILENAME
        self.fault = "it was not looked at"
        self.time = 0
        self.size = 0
        self.where = ""
        self._lock = -1
        self._copy: IO[bytes] | None = None
        self._window, self._window_at = b"", 0

    def hold(self) -> None:
        """Keep writers from the mirror until it has been copied, so that all that is committed is in it."""
        try:
            self._lock = os.open(
                self._directory.url_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:  # without it nobody can write; the check of the directory finds it
            return
        self.where = f"{_boot_id()} {os.fstat(self._lock).st_ino}"
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE)
            except OSError:  # a filesystem without locks
                break

    def take(self) -> None:
        """Copy the mirror, and release the lock."""
        try:
            self.fault = self._take()
        except PermissionError as error:
            raise OpenError(
                f"{self._directory.mirror} can't be read: {error.strerror}; ask its owner for the rights"
            ) from error
        except OSError as error:
            self.fault = f"it can't be read: {error.strerror}"
        finally:
            self.release()

    def _take(self) -> str:
        path = self._directory.mirror
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return "it is missing"
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if is_holes(status):
            return "it is all holes"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            with keeping(_COPY):
                self._copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of `with`)
            while piece := file.read(_PIECE):
                with keeping(_COPY):
                    self._copy.write(piece)
                self.size += len(piece)
        self.time = status.st_mtime_ns
        return ""

    def read(self, offset: int, size: int) -> bytes:
        """Return a piece of the mirror."""
        begin = offset - self._window_at
        if not 0 <= begin <= begin + size <= len(self._window):
            assert self._copy is not None
            self._window_at, begin = offset, 0
            self._window = os.pread(self._copy.fileno(), max(size, _PIECE), offset)
        return self._window[begin : begin + size]

    def flush(self) -> None:
        """Make the copy complete, before it is read."""
        if self._copy is not None:
            with keeping(_COPY):
                self._copy.flush()

    def release(self) -> None:
        """Release the lock, so that writers go on."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def close(self) -> None:
        """Delete the copy, and release the lock."""
        self.release()
        if self._copy is not None:
            self._copy.close()


@signal_safe
def mirror_copy(directory: SessionDirectory) -> Iterator[MirrorCopy]:
    """Give a copy of a session's mirror, to be made by `take`; writers wait until then."""
    copy = MirrorCopy(directory)
    try:
        copy.hold()
        yield copy
    finally:
        copy.close()


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class MirrorCheck:
    """The check of the lines of a session, in the order of adding, against its row and the file.

    Args:
        mirror: the file; None if it belongs to another session.
        identity: the session's.
        row: the session's row; None if it has none, and so no tasks.
    """

    def __init__(self, mirror: MirrorCopy | None, identity: bytes, row: Row | None) -> None:
        self._row = row
        self._where = f"session {identity.hex()}"
        self._end = 0
        self._used = 0
        self._mirror = mirror
        self._differs = False  # whether the file has been found to differ
        self._lost = False  # whether it isn't known any more what the file should be
        if mirror is not None:
            mirror.flush()
        self._compared = mirror is not None and not mirror.fault and not self._known_to_be_stale()

    def _known_to_be_stale(self) -> bool:
        """Return whether the row says that the file has to be rewritten before it is used."""
        row, mirror = self._row, self._mirror
        assert mirror is not None
        if row is None:
            return False
        if row.mark is None:
            return True
        where = str(row.mark[1])  # with an inode if another machine or directory may have written last
        return " " in where and where != mirror.where

    def line(self, id_: str | None, at: int) -> Iterator[Finding]:
        """Give what is wrong with the next task's line; its ID is None if it isn't known."""
        row = self._row
        assert row is not None
        if id_ is None or self._lost:
            self._lost = True
            return
        size = len(id_.encode("utf-8", "surrogatepass")) + 1
        if at < self._end:
            self._lost = True
            yield Finding("mirror", id_, f"its line, at byte {at}, begins before the one before it ends")
        elif at + size > row.size:
            self._lost = True
            yield Finding("mirror", id_, f"its line, at byte {at}, ends after the mirror's {row.size} bytes")
        else:
            yield from self._compare(id_, at, size)
        self._end = max(self._end, at + size)
        self._used += size

    def _compare(self, id_: str, at: int, size: int) -> Iterator[Finding]:
        if not self._compared or self._differs or self._mirror is None:
            return
        if self._end < at and not self._blank(self._end, at):
            yield self._difference(f"between byte {self._end} and {at} it isn't blank")
        elif self._mirror.read(at, size) != f"{id_}\n".encode("utf-8", "surrogatepass"):
            yield self._difference(f"at byte {at} it doesn't say {id_}")

    def _blank(self, begin: int, end: int) -> bool:
        """Return whether a part of the file is blank lines."""
        assert self._mirror is not None
        last = b"\n"
        for offset in range(begin, end, _PIECE):
            piece = self._mirror.read(offset, min(_PIECE, end - offset))
            if piece.strip(_BLANK) or len(piece) < min(_PIECE, end - offset):
                return False
            last = piece[-1:]
        return last == b"\n"

    def _difference(self, what: str) -> Finding:
        """Return the finding that the file is not as the index says; there is at most one."""
        self._differs = True
        mirror = self._mirror
        assert mirror is not None
        mark = self._row.mark if self._row is not None else None
        cause = "another program has edited it; repair rewrites it"
        if mark is not None and not (mark[0] == mirror.time and mirror.where.startswith(str(mark[1]))):
            cause = "a writer was interrupted, or another program has edited it; the next opening rewrites it"
        return Finding("mirror", mirror.name, f"{what}: {cause}")

    def end(self) -> Iterator[Finding]:
        """Give what is wrong with the rest of the file, and with the sizes in the row."""
        row, mirror = self._row, self._mirror
        if self._lost:
            return
        size = 0 if row is None else row.size
        if row is not None and row.blank != size - self._used and not self._end > size:
            yield Finding(
                "session",
                self._where,
                f"its row says {row.blank} blank bytes of {size}, but it is {size - self._used}",
            )
        if mirror is None or self._differs:
            return
        if mirror.fault:
            if not (row is not None and row.mark is None):
                yield Finding("mirror", mirror.name, mirror.fault)
        elif self._compared and mirror.size != size:
            yield self._difference(f"it has {mirror.size} bytes instead of {size}")
        elif self._compared and not self._blank(self._end, size):
            yield self._difference(f"after byte {self._end} it isn't blank")
