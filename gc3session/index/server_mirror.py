"""The mirror of a session on a server: written anew now and then, and never while a transaction waits for it.

Where several programs and machines write at once there is no order of their commits to follow.  So a
commit only says in the session's row that the file is to be written anew: it takes the note of the
mirror away.  `flush` and `close` write the file, and a durable call if none has for 10 s.  The row
gets a note of the new file then, if it still is the row that was read with the index.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from ..errors import Error, MirrorWarning, StoreUnreachable, WriteError
from ..system.filesystem import locked_within
from ..tables.interface import Writer
from ..text import escaped
from .entries import Row
from .index_writer import Change, Transactions
from .mirror import Mirror

_PAUSE: Final = 10.0  # seconds, at least, from one file that a durable call writes to the next
_PATIENCE: Final = 10.0  # seconds to wait for another program that writes the file
_SHARE: Final = 20  # the pause is at least so many times what writing the file takes


class ServerMirror(Mirror):
    """A mirror that doesn't follow each commit; its arguments are those of `Mirror`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._concerned = False  # whether the transaction changes what it lists
        self._behind = False  # whether a commit has changed that
        self._not_before = time.monotonic() + _PAUSE

    def plan(self, writer: Writer, row: Row, change: Change) -> Row:
        self.check()
        if not (change.text or change.removed or change.anew):
            return row
        self._concerned = True
        return row._replace(mirror=None)

    def write(self) -> None:
        self._behind |= self._concerned

    def release(self) -> str:
        self._concerned = False
        return super().release()

    def follow(self, store: Transactions, identity: bytes, *, now: bool = False) -> None:
        if self._behind and (now or time.monotonic() >= self._not_before):
            with suppress(Error):  # what was called is done; a flush tells it
                self.mend(store, identity)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing the mirror within `with`. Raise OSError if one does so for long."""
        fd = os.open(self._url_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not locked_within(fd, fcntl.LOCK_EX, _PATIENCE):
                raise OSError(errno.EBUSY, f"{self._url_path} is locked by another program")
            self.check()
            yield
        finally:
            os.close(fd)

    def mend(self, store: Transactions, identity: bytes) -> None:
        begun = time.monotonic()
        try:
            # Locked before reading: of two programs the one that is the last to write has the newer state. Until
            # the end, or the file may be another one's by then.
            with self._locked():
                with store.reading() as reader:
                    row = Row.read(reader, identity)
                    note = None if row is None or self.intact(row) else self._planned_anew(reader, row)
                super().write()
                self._behind = False
                if note is not None and not self._complaint:
                    with suppress(StoreUnreachable, WriteError):  # then it is written once more than needed
                        store.write(
                            lambda index_writer, writer: index_writer.note_mirror(identity, row, note),
                            batch=False,
                        )
        except (OSError, StoreUnreachable) as error:
            self._complain(error)
        finally:
            complaint = self.release()
            self._behind |= bool(complaint)
            now = time.monotonic()
            self._not_before = now + max(_PAUSE, _SHARE * (now - begun))
        if complaint:
            warnings.warn(escaped(complaint), MirrorWarning, stacklevel=2)
