"""The mirror: `session_ids.txt`, one task ID a line, in the order of adding.

LMDB and a text file can't change together, so the index is what holds, and the mirror follows::

    in the transaction  lock `store.url`; is the mirror as the session's row says?
                        note its next size and time of change in the row
    after the commit    append the new lines, blank those that left, set the time of change
                        unlock

Whatever ends the process in between leaves a file whose size or time of change is not that of
the row, and the next transaction or opening writes it anew.  It is not flushed: the row has the
boot ID too, and after another boot the file is written anew as well.  So is one that was edited,
with a MirrorWarning (which the store gives once all is done).

A mark, as the row keeps it, is `[ time of change in ns, where, size before the last lines,
time of change before the transaction ]`.  *Where* is the boot ID; if the store is on a server,
so that several machines may write to the session, the inode of `store.url` follows, as each
machine may have a directory of its own.  A mirror that another one has written since is behind,
and written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from functools import cache
from pathlib import Path

from ..errors import CorruptStore, WriteError
from ..records.schemas import Schemas
from ..tables.interface import MEMBERS, Reader, Writer
from .entries import SESSION_KEY, Row, members
from .index_writer import Change

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PIECE = 1 << 20
_REMEDY = "restore the store from a backup"
_UNITS = (1, 100, 1000, 10**6, 10**9, 2 * 10**9)  # of times of change on various filesystems, in ns


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except FileNotFoundError:  # a system that has none: then every boot looks like the same one
        return ""
    except OSError as error:
        raise WriteError(f"{_BOOT_ID} can't be read ({error.strerror}); nothing was written") from error


def place_of(store_url: os.stat_result) -> str:
    """Return what a mark says of the directory with that `store.url`: the boot ID, and the inode."""
    return f"{_boot_id()} {store_url.st_ino}"


def _is_time(found: int, noted: int) -> bool:
    """Return whether a file of this time of change was given the one that was noted."""
    return any(found == noted - noted % unit for unit in _UNITS)


class Mirror:
    """The mirror at *path*; *lock* is a file of the session that stays for ever.

    It is told of the transactions by its session's index (see `index_writer.Listener`).

    Args:
        path: of the mirror.
        lock: `store.url` of the session.
        schemas: of the store.
        shared: whether other machines may write to the session.
    """

    _MOVED = (
        "the session was moved, destroyed or made anew since it was opened; nothing was written. Open it again"
    )

    def __init__(self, path: str, lock: str, schemas: Schemas, *, shared: bool = False) -> None:
        self.path = path
        self._lock_path = lock
        self._schemas = schemas
        self._shared = shared
        self._lock = -1
        self._locked = False
        self._complaint = ""
        self._change: Change | None = None
        self._end = 0
        self._time = 0

    @property
    def _temporary(self) -> str:
        return f"{self.path}.tmp"

    def intact(self, row: Row | None) -> bool:
        """Return whether the file is as *row* says; in constant time."""
        if row is None:
            row = Row(0, 0, 0, None)
        try:
            status, here = os.lstat(self.path), self._here()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != row.size:
            return False
        if row.mark is None:
            return row.size == 0
        time_, where, _, _ = row.mark
        return where == here and _is_time(status.st_mtime_ns, time_)

    def _here(self) -> str:
        return place_of(os.stat(self._lock_path)) if self._shared else _boot_id()

    # -- the steps of a transaction

    def plan(self, writer: Writer, before: Row, after: Row, change: Change) -> Row:
        """Lock the mirror and plan what `write` is to do; return the row *after* with its mark.

        Raise WriteError if the session is no longer where it was opened.
        """
        self.lock()
        self._complaint = ""
        self._time = time.time_ns()
        kept, former = before.size, before.mark[0] if before.mark else 0
        asked = change.anew
        if not change.anew and (not self.intact(before) or self._has_other_names()):
            change = change._replace(anew=True)
        if change.anew:
            try:
                self._write_anew(writer, after)
                if not asked:
                    self._complain_if_edited(before)
            except OSError as error:
                self._drop_temporary()  # on a full disk it would take what room there is
                self._complain(error)
                return after
            kept = after.size
            if not self._complaint:
                former = self._time_of_change()  # a killed process may have left another one than the row's
        self._change, self._end = change, kept
        return after._replace(mark=[self._time, self._here(), kept, former])

    def _has_other_names(self) -> bool:
        """Return whether what is written into the file would change another one, too: a hard link."""
        return os.path.lexists(self.path) and os.lstat(self.path).st_nlink > 1

    def _time_of_change(self) -> int:
        return os.lstat(self.path).st_mtime_ns if os.path.lexists(self.path) else 0

    def lock(self) -> None:
        """Lock the mirror before the transaction.  Raise WriteError as `plan` does."""
        if self._locked:
            return
        try:
            if self._lock < 0:
                self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._locked = True  # first: Ctrl-C may raise as soon as it is
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            there, held = os.lstat(self._lock_path), os.fstat(self._lock)
        except FileNotFoundError as error:
            raise WriteError(f"{self._lock_path} is gone: {self._MOVED}") from error
        except OSError as error:
            raise WriteError(
                f"{self._lock_path} can't be locked ({error.strerror}); nothing was written"
            ) from error
        if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise WriteError(f"{self._lock_path} is another file than when it was opened: {self._MOVED}")

    def _complain(self, error: OSError) -> None:
        self._complaint = (
            f"{self.path} could not be written ({error.strerror}): the tasks are stored, but it lists"
            " not all of them; make room, and the next flush mends it"
        )

    def write(self) -> None:
        """Write to the file what has been committed, and unlock it.

        A failure is only warned of: the tasks are stored, and the next transaction mends the file.
        """
        change, self._change = self._change, None
        try:
            if change is not None:
                self._carry_out(change)
        except OSError as error:
            self._complain(error)
        self._release_lock()

    def _carry_out(self, change: Change) -> None:
        if change.anew:
            os.utime(self._temporary, ns=(self._time, self._time))
            os.rename(self._temporary, self.path)
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _write_at(fd, change.text, self._end)
            for offset, length in change.blanks:
                _write_at(fd, b" " * length, offset)
            os.utime(fd, ns=(self._time, self._time))
        finally:
            os.close(fd)

    def unlock(self) -> str:
        """Drop a plan that was not carried out, and unlock the mirror; return what to warn of."""
        complaint, self._complaint = self._complaint, ""
        if self._change is not None and self._change.anew:
            self._drop_temporary()
        self._change = None
        self._release_lock()
        return complaint

    def _release_lock(self) -> None:
        if self._locked:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            except OSError:  # its closing unlocks it, too; or the program has closed what isn't its own
                with contextlib.suppress(OSError):
                    self.close()
            self._locked = False

    def _drop_temporary(self) -> None:
        with contextlib.suppress(OSError):  # it is gone, or a directory that somebody has put there
            os.unlink(self._temporary)

    def forked(self) -> None:
        """Give up the file that is locked: a child shares it, and its lock, with its parent."""
        self.close()
        self._locked, self._change = False, None

    def close(self) -> None:
        """Give back the file that is locked."""
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

    # -- writing it anew

    def _write_anew(self, reader: Reader, row: Row) -> None:
        """Write the whole file, with each ID at its line, under a temporary name."""
        self._check_size(reader, row)
        if os.path.lexists(self._temporary):
            os.unlink(self._temporary)
        fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            for offset in range(0, row.size, _PIECE):
                _write_at(fd, b" " * min(_PIECE, row.size - offset), offset)
            lines: list[str] = []
            begin = end = 0
            for (_, number, schema), line in members(reader, row.number):
                if line != end or end - begin > _PIECE:
                    self._write_lines(fd, lines, begin)
                    lines, begin, end = [], line, line
                lines.append(f"{self._schemas.name(schema, reader)}.{number}\n")
                end += len(lines[-1])
                if end > row.size:
                    raise CorruptStore(
                        f"{self.path}: by the session's index, a line of it is after its end; {_REMEDY}"
                    )
            self._write_lines(fd, lines, begin)
            if row.size:
                _write_at(fd, b"\n", row.size - 1)
        finally:
            os.close(fd)

    def _check_size(self, reader: Reader, row: Row) -> None:
        """Raise CorruptStore if the row has a size that its entries can't fill: it would fill the disk with blanks."""
        longest = max((len(schema.name) for schema in self._schemas.all(reader)), default=0)
        longest = max(longest, len("Unreadable")) + len(".\n") + 20
        if row.size - row.blank > longest * reader.count(MEMBERS, SESSION_KEY.pack(row.number)):
            raise CorruptStore(
                f"{self.path}: by the session's row it has more lines than there are tasks; {_REMEDY}"
            )

    @staticmethod
    def _write_lines(fd: int, lines: list[str], offset: int) -> None:
        # Before a line another one ends, blank or not.
        text = "".join(lines).encode()
        _write_at(fd, b"\n" + text if offset else text, offset - 1 if offset else 0)

    def _complain_if_edited(self, before: Row) -> None:
        """Complain if what the mirror holds can't be what a killed process has left."""
        if before.mark is None:
            edited = before.size == 0 and self._differs(0)
        else:
            _, where, kept, former = before.mark
            edited = where == self._here() and self._differs(kept, former)
        if edited:
            self._complaint = (
                f"{self.path} was changed by another program; it was written anew from the session's index."
                " Use Session.add and Session.forget to change what belongs to the session"
            )

    def _differs(self, kept: int, former: int = 0) -> bool:
        """Return whether the file is shorter than *kept* or has other lines than the new one.

        A killed process leaves the file as it was, which has the time *former*; or lines that
        the new file has blank, or a part of the last ones.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(status.st_mode):
            return True
        if _is_time(status.st_mtime_ns, former):
            return False
        if status.st_size < kept:
            return True
        with open(self.path, "rb") as old, open(self._temporary, "rb") as new:
            while piece := old.read(_PIECE):
                other = new.read(len(piece))
                if piece.startswith(other) and len(piece) > len(other):
                    return True
                if piece != other and any(a != b and b not in b" \n" for a, b in zip(piece, other, strict=False)):
                    return True
        return False


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
