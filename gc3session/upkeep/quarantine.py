"""The directory `damaged` in a session's directory: what a repair takes out of the session is kept there."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Final

from ..directory import SessionDirectory
from ..errors import DamagedSession
from ..system.filesystem import opened_regular, sync, write_durably, written_durably

DAMAGED: Final = "damaged"
"""The name of the directory."""


class Quarantine:
    """The directory `damaged` of one session.

    Args:
        directory: that of the session.
        dry_run: nothing is written, only the names are noted.

    Attributes:
        names: what has been put there, or would be.
    """

    def __init__(self, directory: SessionDirectory, dry_run: bool) -> None:
        self._session = directory.path
        self._path = os.path.join(directory.path, DAMAGED)
        self._dry_run = dry_run
        self.names: list[str] = []

    def save(self, name: str, data: bytes) -> None:
        """Write bytes to a file, unless a repair that was interrupted has done that already."""
        self.names.append(name)
        if self._dry_run:
            return
        with contextlib.suppress(OSError), opened_regular(os.path.join(self._path, name)) as file:
            if file.read() == data:
                return
        write_durably(self._free_path(name), data)
        sync(self._session)

    def move(self, path: str) -> None:
        """Move a file or directory here."""
        name = os.path.basename(path)
        self.names.append(name)
        if not self._dry_run:
            os.rename(path, self._free_path(name))
            self._sync()

    def link(self, path: str) -> None:
        """Give a file that is about to be replaced a second name here."""
        name = os.path.basename(path)
        self.names.append(name)
        if self._dry_run:
            return
        place = self._free_path(name)
        if not any(
            os.path.samestat(entry.stat(follow_symlinks=False), os.lstat(path)) for entry in os.scandir(self._path)
        ):
            try:
                os.link(path, place, follow_symlinks=False)
            except OSError:  # it is on another filesystem, or on one without links
                with opened_regular(path) as source, written_durably(place) as copy:
                    shutil.copyfileobj(source, copy)
        self._sync()

    def _free_path(self, name: str) -> str:
        """Return a path here that isn't in use: that of *name*, or with `.1`, `.2` and so on."""
        os.makedirs(self._path, exist_ok=True)
        if os.path.islink(self._path):
            raise DamagedSession(f"{self._path} is a link, which leads elsewhere; delete it")
        path, n = os.path.join(self._path, name), 1
        while os.path.lexists(path):
            path, n = os.path.join(self._path, f"{name}.{n}"), n + 1
        return path

    def _sync(self) -> None:
        sync(self._path)
        sync(self._session)
