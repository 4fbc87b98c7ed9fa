"""The mirror: `session_ids.txt`, one task ID a line, in the order of the commits.

LMDB and a text file can't change together, so the index is what holds, and the mirror follows.  The
session's row says what the file is to be (`entries.MirrorNote`)::

    in the transaction  has the last commit's step been done?  If not, it is done now
                        note the next step in the row: the lines to append, those to blank
    after the commit    do that step

Whatever ends the process in between leaves the step for the next writer: until then the file lacks
the lines of one commit.  Nothing is flushed.  So after another boot, and on another filesystem, the
file is written anew; and so is one of another size, of another inode or with a second name, since
another program has written or replaced it (a MirrorWarning says so).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from ..errors import OpenError, WriteError
from ..records.schemas import Schemas
from ..system.filesystem import KnownFile, mount_of, opened_regular
from ..tables.interface import Reader, Writer
from .entries import MirrorNote, Row, next_block
from .index_writer import Change, Transactions

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PIECE: Final = 1 << 20  # bytes read or written at once
_MOST_LINES: Final = (
    1000  # that a row notes; a step of more is found undone by the file's size, and the file written anew
)
_NEAR: Final = 1 << 14  # bytes in which a line is looked for without halving them further


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except FileNotFoundError:  # a system that has none: then every boot looks like the same one
        return ""
    except OSError as error:
        raise WriteError(f"{_BOOT_ID} can't be read ({error.strerror}); nothing was written") from error


def place_of(fd: int) -> str:
    """Return what a row says of where its mirror is, by an open `store.url`: boot, mount, and the file's number.

    The number tells one directory of the session from another, where its store is on a server.
    """
    status = os.fstat(fd)
    return f"{_boot_id()} {status.st_dev} {mount_of(fd)} {status.st_ino}"


class Mirror:
    """The mirror at *path*; *url_file* is a file of the session that stays for ever, by which it is known.

    It is told of the transactions by its session's index (see `index_writer.Listener`).

    Args:
        path: of the mirror.
        url_file: `store.url` of the session.
        schemas: of the store.

    Raise OpenError if *url_file* can't be opened.
    """

    def __init__(self, path: str, url_file: str, schemas: Schemas) -> None:
        self.path = path
        self._url_path = url_file
        self._schemas = schemas
        self._url_file: KnownFile | None = None  # None if there is no such file
        self._where = ""
        self._complaint = ""
        self._file = -1  # the mirror, while a step is to be done
        self._step: MirrorNote | None = None
        self._text = b""  # what the step appends
        self._is_anew = False  # whether the step is to rename the file that was written anew
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._url_file = KnownFile(os.open(url_file, flags), url_file)
        except FileNotFoundError:
            pass  # `check` says so
        except OSError as error:
            raise OpenError(f"{url_file} can't be opened: {error.strerror}") from error

    @property
    def _temporary(self) -> str:
        return f"{self.path}.tmp"

    def intact(self, row: Row | None) -> bool:
        """Return whether the file is as *row* says; in constant time."""
        note = None if row is None or row.mirror is None else MirrorNote(*row.mirror)
        status = _regular(self.path)
        if status is None:
            return False
        if note is None:
            return status.st_size == 0 and (row is None or row.total == 0)
        if (status.st_ino, status.st_size) != (note.inode, note.size):
            return False
        if note.blanks:  # those of the last step; they are made in this order
            with contextlib.suppress(OSError), opened_regular(self.path) as file:
                file.seek(note.blanks[-1][0])
                if file.read(1) != b" ":
                    return False
        with contextlib.suppress(OSError):  # as whatever writes it says
            return note.where == self._place()
        return False

    def mend(self, store: Transactions, identity: bytes) -> None:
        """Bring the mirror up to date, which is that of the session *identity*; no transaction is open."""
        store.write(lambda index_writer, writer: index_writer.follow_mirror(identity))

    def follow(self, store: Transactions, identity: bytes, *, now: bool = False) -> None:
        pass

    # -- the steps of a transaction

    def check(self, *, committed: bool = False) -> None:
        """Raise WriteError if the session is no longer where it was opened."""
        if self._url_file is None or not self._url_file.is_in_place():
            lost = "what was just written may be lost with it" if committed else "nothing was written"
            raise WriteError(
                f"{self._url_path} is gone, or another file than it was: the session was moved, destroyed or made anew"
                f" since it was opened; {lost}. Close it and open it again"
            )

    def _place(self) -> str:
        """Return where the mirror is, as `place_of` says it."""
        if not self._where and self._url_file is not None:
            with opened_regular(self._url_path) as file:  # the known one is closed when a session has been dropped
                self._where = place_of(file.fileno())
        return self._where

    def plan(self, writer: Writer, row: Row, change: Change) -> Row:
        """Plan what `write` is to do; return the row with what the file will be then.

        Raise WriteError if the session is no longer where it was opened.
        """
        self.check()
        self._forget_step()
        note = None if row.mirror is None else MirrorNote(*row.mirror)
        try:
            lines = change.text.count(b"\n")
            if note is None and lines == row.total and self._is_empty():
                note = MirrorNote(os.fstat(self._file).st_ino, 0, 0, self._place(), 0, b"", [])
            elif note is None or not self._is_current(note):
                note = None
            if note is None or change.anew or len(change.removed) > _MOST_LINES:
                return row._replace(mirror=self._planned_anew(writer, row))
            return row._replace(mirror=self._planned(note, change, lines))
        except OSError as error:
            self._forget_step()
            self._complain(error)
            return row._replace(mirror=None)

    def _is_empty(self) -> bool:
        status = _regular(self.path)
        if status is None or status.st_size or status.st_nlink > 1:
            return False
        self._open_file()
        return True

    def _open_file(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def _is_current(self, note: MirrorNote) -> bool:
        """Return whether the file is as the row says; what a killed program has left of its step is done now."""
        if note.where != self._place():
            return False
        temporary, status = _regular(self._temporary), _regular(self.path)
        if temporary is not None and (temporary.st_ino, temporary.st_size) == (note.inode, note.size):
            os.rename(self._temporary, self.path)
            status = temporary
        if status is None:
            self._complain_of_change()
            return False
        is_ours = status.st_ino == note.inode and status.st_nlink == 1
        if status.st_size != note.size:
            begun = is_ours and note.begin <= status.st_size < note.size and self._has_begun(note)
            if not begun:
                self._complain_of_change()
            if not begun or not note.text:
                return False
        if not is_ours:
            return False
        self._open_file()
        if status.st_size < note.size:
            _write_at(self._file, note.text, note.begin)
        for offset, length in note.blanks:
            if os.pread(self._file, 1, offset) != b" ":
                _write_at(self._file, b" " * length, offset)
        return True

    def _has_begun(self, note: MirrorNote) -> bool:
        """Return whether what stands where the last step appends is the beginning of its text."""
        with open(self.path, "rb") as file:
            file.seek(note.begin)
            return not note.text or note.text.startswith(file.read(len(note.text)))

    def _planned(self, note: MirrorNote, change: Change, lines: int) -> MirrorNote:
        """Plan to append lines and to blank some."""
        blanks = _places(self._file, note.size, change.removed)
        self._text = change.text
        self._step = note._replace(
            size=note.size + len(change.text),
            blank=note.blank + sum(length + 1 for _, length in blanks),
            begin=note.size,
            text=change.text if lines <= _MOST_LINES else b"",
            blanks=blanks,
        )
        return self._step

    def _planned_anew(self, reader: Reader, row: Row) -> MirrorNote:
        """Write the whole file under a temporary name, which `write` renames."""
        if os.path.lexists(self._temporary):
            os.unlink(self._temporary)
        self._close_file()
        self._file = os.open(
            self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
        )
        size = 0
        for text in _texts(reader, row.number, self._schemas):
            _write_at(self._file, text, size)
            size += len(text)
        inode = os.fstat(self._file).st_ino
        self._step, self._is_anew = MirrorNote(inode, size, 0, self._place(), size, b"", []), True
        return self._step

    def _complain(self, error: Exception) -> None:
        why = error.strerror if isinstance(error, OSError) else error
        self._complaint = (
            f"{self.path} could not be written ({why}): the tasks are stored, but it lists"
            " not all of them; make room, and the next flush mends it"
        )

    def _complain_of_change(self) -> None:
        self._complaint = (
            f"{self.path} was changed by another program; it was written anew from the session's index."
            " Use Session.add and Session.forget to change what belongs to the session"
        )

    def write(self) -> None:
        """Do the step that was planned, as the transaction has been committed.

        A failure is only warned of: the tasks are stored, and the next transaction mends the file.  But raise
        WriteError if the session is no longer where it was opened.
        """
        step = self._step
        if step is None:
            return
        try:
            self.check(committed=True)
            if self._is_anew:
                os.rename(self._temporary, self.path)
            _write_at(self._file, self._text, step.begin)
            for offset, length in step.blanks:
                _write_at(self._file, b" " * length, offset)
        except OSError as error:
            self._complain(error)
        finally:
            self._step = None

    def release(self) -> str:
        """Drop a plan that was not carried out; return what to warn of."""
        complaint, self._complaint = self._complaint, ""
        self._forget_step()
        return complaint

    def _forget_step(self) -> None:
        if self._is_anew and self._step is not None:
            with contextlib.suppress(OSError):  # it is gone, or a directory that somebody has put there
                os.unlink(self._temporary)
        self._step, self._text, self._is_anew = None, b"", False
        self._close_file()

    def _close_file(self) -> None:
        fd, self._file = self._file, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give back the files."""
        self._forget_step()
        if self._url_file is not None:
            self._url_file.close()


def _regular(path: str) -> os.stat_result | None:
    """Return the status of a regular file; None if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _texts(reader: Reader, session: int, schemas: Schemas) -> Iterator[bytes]:
    """Give the text of a whole mirror, by parts."""
    number = 0
    while (block := next_block(reader, session, number)) is not None:
        names = {kind.schema: schemas.name(kind.schema, reader) for kind in block.kinds}
        yield "".join(f"{names[schema]}.{n}\n" for n, schema in block.entries()).encode()
        number = block.number + 1


def _places(fd: int, size: int, ids: list[bytes]) -> list[list[int]]:
    """Return where the lines of some IDs stand in a mirror, and how long they are; those that aren't there are left out."""
    found, missing = [], set[bytes]()
    for id_ in ids:
        offset = _bisected(fd, size, id_)
        if offset is None:
            missing.add(id_)
        else:
            found.append([offset, len(id_)])
    if missing:
        found += _scanned(fd, size, missing)
    return sorted(found)


def _bisected(fd: int, size: int, id_: bytes) -> int | None:
    """Return where the line of an ID begins, if the lines around it are sorted by N."""
    wanted = int(id_.rpartition(b".")[2])
    low, high = 0, size
    while high - low > _NEAR:
        middle = (low + high) // 2
        piece = os.pread(fd, _NEAR // 4, middle)
        line = next((line for line in piece.split(b"\n")[1:-1] if line.strip()), None)
        digits = b"" if line is None else line.rpartition(b".")[2]
        if digits.isdigit() and int(digits) <= wanted:
            low = middle + piece.index(b"\n" + line) + 1  # type: ignore[operator]
        else:
            high = middle
    begin = max(0, low - 1)
    piece = os.pread(fd, high - begin + len(id_) + _NEAR // 4, begin)
    if begin == 0:
        piece, begin = b"\n" + piece, -1
    at = piece.find(b"\n" + id_ + b"\n")
    return None if at < 0 else begin + at + 1


def _scanned(fd: int, size: int, ids: set[bytes]) -> list[list[int]]:
    """Return where the lines of some IDs stand, as `_places`: the whole file is read."""
    found = []
    at, rest = 0, b""
    while at < size and (piece := os.pread(fd, _PIECE, at)):
        begin = at - len(rest)
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line in ids:
                found.append([begin, len(line)])
            begin += len(line) + 1
        at += len(piece)
    return found


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
