"""The check of the mirror: it is compared with the index byte for byte, as FORMAT.md describes it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from ..directory import SessionDirectory
from ..errors import OpenError
from ..index.entries import Row
from ..index.mirror import place_of
from ..system.filesystem import opened_regular
from ..system.temporary import keeping
from .finding import Finding

_PIECE: Final = 1 << 20  # bytes read at once
_COPY: Final = "a copy of the mirror"
_PATIENCE: Final = 10.0  # seconds that a writer may hold the mirror's lock
_PAUSE: Final = 0.002  # seconds between two tries to get it
_BLANK: Final = b" \n"

NO_ROW: Final = Row(0, 0, 0, [0, "", 0, 0])
"""In the place of the row of a session that has none, and so no tasks."""


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
        self._lock: IO[bytes] | None = None
        self._copy: IO[bytes] | None = None

    def hold(self) -> None:
        """Keep writers from the mirror until it has been copied, so that all that is committed is in it."""
        try:
            self._lock = opened_regular(self._directory.url_file)
        except OSError:  # without it nobody can write; the check of the directory finds it
            return
        self.where = place_of(os.fstat(self._lock.fileno()))
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
            with opened_regular(self._directory.mirror) as file:
                self._take(file)
            self.fault = ""
        except FileNotFoundError:
            self.fault = "it is missing"
        except PermissionError as error:
            raise OpenError(
                f"{self._directory.mirror} can't be read: {error.strerror}; ask its owner for the rights"
            ) from error
        except OSError as error:
            self.fault = f"it can't be read: {error.strerror}"
        finally:
            self.release()

    def _take(self, file: IO[bytes]) -> None:
        self.time = os.fstat(file.fileno()).st_mtime_ns
        with keeping(_COPY):
            self._copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of `with`)
        while piece := file.read(_PIECE):
            with keeping(_COPY):
                self._copy.write(piece)
            self.size += len(piece)
        with keeping(_COPY):
            self._copy.flush()

    def read(self, offset: int, size: int) -> bytes:
        """Return a piece of the mirror."""
        assert self._copy is not None
        self._copy.seek(offset)
        return self._copy.read(size)

    def release(self) -> None:
        """Release the lock, so that writers go on."""
        if self._lock is not None:
            self._lock.close()

    def close(self) -> None:
        """Delete the copy, and release the lock."""
        self.release()
        if self._copy is not None:
            self._copy.close()


@contextmanager
def mirror_copy(directory: SessionDirectory) -> Iterator[MirrorCopy]:
    """Give a copy of a session's mirror, to be made by `take`; writers wait until then."""
    copy = MirrorCopy(directory)
    try:
        copy.hold()
        yield copy
    finally:
        copy.close()


class MirrorCheck:
    """The check of the lines of a session, in the order of adding, against its row and the file.

    Args:
        mirror: the file; None if it belongs to another session.
        identity: the session's.
        row: the session's row, or NO_ROW.
    """

    def __init__(self, mirror: MirrorCopy | None, identity: bytes, row: Row) -> None:
        self._row = row
        self._where = f"session {identity.hex()}"
        self._end = 0
        self._used = 0
        self._mirror = mirror
        self._lost = False  # whether it isn't known any more what the file should be
        # The file as long as it may still be as the index says.
        self._file = mirror if mirror is not None and not mirror.fault and not self._is_stale(mirror) else None

    def _is_stale(self, mirror: MirrorCopy) -> bool:
        """Return whether the row says that the file has to be rewritten before it is used."""
        row = self._row
        if row.mark is None:
            return True
        where = str(row.mark[1])  # with an inode if another machine or directory may have written last
        return " " in where and where != mirror.where

    def line(self, id_: str | None, at: int) -> Iterator[Finding]:
        """Give what is wrong with the next task's line; its ID is None if it isn't known."""
        if id_ is None or self._lost:
            self._lost = True
            return
        line = f"{id_}\n".encode("utf-8", "surrogatepass")
        if at < self._end:
            self._lost = True
            yield Finding("mirror", id_, f"its line, at byte {at}, begins before the one before it ends")
        elif at + len(line) > self._row.size:
            self._lost = True
            yield Finding("mirror", id_, f"its line, at byte {at}, ends after the mirror's {self._row.size} bytes")
        elif self._file is not None:
            if self._end < at and not _is_blank(self._file, self._end, at):
                yield self._difference(self._file, f"between byte {self._end} and {at} it isn't blank")
            elif self._file.read(at, len(line)) != line:
                yield self._difference(self._file, f"at byte {at} it doesn't say {id_}")
        self._end = max(self._end, at + len(line))
        self._used += len(line)

    def _difference(self, file: MirrorCopy, what: str) -> Finding:
        """Return the finding that the file is not as the index says; there is at most one."""
        self._file = None
        mark = self._row.mark
        cause = "another program has edited it; repair rewrites it"
        if mark[0] != file.time or not file.where.startswith(str(mark[1])):
            cause = "a writer was interrupted, or another program has edited it; the next opening rewrites it"
        return Finding("mirror", file.name, f"{what}: {cause}")

    def end(self) -> Iterator[Finding]:
        """Give what is wrong with the rest of the file, and with the sizes in the row."""
        size, blank, mark = self._row.size, self._row.blank, self._row.mark
        if self._lost:
            return
        if blank != size - self._used and not self._end > size:
            yield Finding(
                "session",
                self._where,
                f"its row says {blank} blank bytes of {size}, but it is {size - self._used}",
            )
        if self._file is not None and self._file.size != size:
            yield self._difference(self._file, f"it has {self._file.size} bytes instead of {size}")
        elif self._file is not None and not _is_blank(self._file, self._end, size):
            yield self._difference(self._file, f"after byte {self._end} it isn't blank")
        elif self._mirror is not None and self._mirror.fault and mark is not None:
            yield Finding("mirror", self._mirror.name, self._mirror.fault)


def _is_blank(file: MirrorCopy, begin: int, end: int) -> bool:
    """Return whether a part of the file is blank lines."""
    last = b"\n"
    for offset in range(begin, end, _PIECE):
        piece = file.read(offset, min(_PIECE, end - offset))
        if piece.strip(_BLANK) or len(piece) < min(_PIECE, end - offset):
            return False
        last = piece[-1:]
    return last == b"\n"
