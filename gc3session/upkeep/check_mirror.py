"""The check of the mirror: it is compared with the index, and with what the session's row says of it.

Lines may stand in any order, so their hashes are added up, and so are those that the index asks for.
A step that a killed writer has left undone is done here, in a copy of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import OpenError
from ..format.schema import Schema
from ..index.entries import MirrorNote, Row, numbers_of
from ..index.mirror import place_of
from ..system.filesystem import locked_within, opened_regular
from ..system.temporary import keeping
from .check_index import Entry
from .finding import Finding

_LONGEST_LINE: Final = 1 << 20  # bytes
_PATIENCE: Final = 10.0  # seconds that a writer may hold the mirror's lock


class _Copy(NamedTuple):
    file: IO[bytes]
    inode: int  # of the original
    size: int


class MirrorCopy(contextlib.ExitStack):
    """A copy of a session's mirror as it was at one moment.

    Args:
        directory: the session's.
        alone: whether no other directory can be one of the same session in the same store.
        locked: whether programs lock `store.url` to write the mirror; then they wait until the copy is taken.

    Attributes:
        name: that of the file.
        alone: that argument.
        fault: why there is no copy; '' if there is one.
        where: the place of `store.url`, as a row has it.
    """

    def __init__(self, directory: SessionDirectory, *, alone: bool, locked: bool = False) -> None:
        super().__init__()
        self.alone = alone
        self._locked = locked
        self._directory = directory
        self._lock = contextlib.ExitStack()
        self._copies: list[_Copy] = []
        self.name = directory.INDEX_FILENAME
        self.fault = "it was not looked at"
        self.where = ""

    def __enter__(self) -> MirrorCopy:
        self.push(self._lock)
        try:
            lock = self._lock.enter_context(opened_regular(self._directory.url_file))
        except OSError:  # without it nobody can write; the check of the directory finds it
            return self
        self.where = place_of(lock.fileno())
        if self._locked:
            with contextlib.suppress(OSError):  # a filesystem without locks
                locked_within(lock.fileno(), fcntl.LOCK_SH, _PATIENCE)
        return self

    def take(self) -> None:
        """Copy the mirror, so that writers go on; what was copied before is given up."""
        path = self._directory.mirror
        self._copies.clear()
        with self._lock:
            with contextlib.suppress(OSError):  # what is, or in a moment is, to be renamed
                self._take(f"{path}.tmp")
            try:
                self._take(path)
                self.fault = ""
            except FileNotFoundError:
                self.fault = "it is missing"
            except PermissionError as error:
                raise OpenError(f"{path} can't be read: {error.strerror}; ask its owner for the rights") from error
            except OSError as error:
                self.fault = f"it can't be read: {error.strerror}"

    def _take(self, path: str) -> None:
        with opened_regular(path) as file, keeping("a copy of the mirror"):
            copy = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (closed at the end of `with`)
            shutil.copyfileobj(file, copy)
            copy.flush()
            self._copies.append(_Copy(copy, os.fstat(file.fileno()).st_ino, copy.tell()))

    def of(self, note: MirrorNote) -> _Copy | None:
        """Return the copy of the file that a row means: the new one, if only its name is to be changed."""
        right = [copy for copy in self._copies if (copy.inode, copy.size) == (note.inode, note.size)]
        return next(iter(right or ([] if self.fault else self._copies[-1:])), None)


class MirrorCheck:
    """The check of a session's mirror.

    Args:
        mirror: the file.
        row: the session's row, or None if it has none, and so no tasks.
        schemas: by number.
    """

    def __init__(self, mirror: MirrorCopy, row: Row | None, schemas: Mapping[int, Schema]) -> None:
        self._mirror = mirror
        self._row = row
        self._schemas = schemas
        self._note: MirrorNote | None = MirrorNote(0, 0, 0, "", 0, b"", [])
        if row is not None:
            self._note = None if row.mirror is None else MirrorNote(*row.mirror)
        self._used = self._hashes = 0
        self._known = True  # whether all entries, and the names of all IDs, are known

    def note(self, entry: Entry) -> None:
        """Note an entry of the index."""
        schema = self._schemas.get(entry.kind.schema)
        if entry.fault or schema is None:
            self._known = False
            return
        begin = f"{schema.name}.".encode()
        lines = [b"%b%d\n" % (begin, number) for number in numbers_of(entry.block, entry.bits)]
        self._used += sum(map(len, lines))
        self._hashes += sum(map(hash, lines))

    def end(self, total: int) -> Iterator[Finding]:
        """Give what is wrong, as all entries have been noted; *total* is how many tasks there are."""
        note, mirror = self._note, self._mirror
        if note is None or not self._known:
            return
        copy = mirror.of(note)
        if copy is not None:
            yield from self._compare(copy, note, total)
        elif self._row is not None:
            yield Finding("mirror", mirror.name, mirror.fault)

    def _compare(self, copy: _Copy, note: MirrorNote, total: int) -> Iterator[Finding]:
        mirror = self._mirror
        unfinished = note.begin <= copy.size < note.size
        elsewhere = not mirror.alone and self._row is not None and note.where != mirror.where
        if elsewhere or (unfinished and not note.text):
            return  # the next writer writes it anew
        blank = note.size - self._used
        if note.blank != blank:
            message = f"the session's row says {note.blank} blank bytes of {note.size}, but it is {blank}"
            yield Finding("mirror", mirror.name, message)
            return
        fd = copy.file.fileno()
        if unfinished:
            os.pwrite(fd, note.text, note.begin)
        for offset, length in note.blanks:
            if offset + length <= os.fstat(fd).st_size:
                os.pwrite(fd, b" " * length, offset)
        hashes = lines = 0
        copy.file.seek(0)
        for line in iter(lambda: copy.file.readline(_LONGEST_LINE), b""):
            if line.strip(b" ") != b"\n":
                hashes, lines = hashes + hash(line), lines + 1
        if (hashes, lines) == (self._hashes, total):
            return
        current = (copy.inode, mirror.where) == (note.inode, note.where) and (unfinished or copy.size == note.size)
        cause = (
            "another program has edited it, and 'gc3session repair' writes it anew"
            if current
            else "another program, or an interruption, has changed it, and the next writer writes it anew"
        )
        listed = "other tasks than the session's" if lines == total else f"{lines} tasks instead of {total}"
        yield Finding("mirror", mirror.name, f"it lists {listed}: {cause}")
