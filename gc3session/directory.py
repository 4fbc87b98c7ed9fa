"""The session directory: `created`, `session_ids.txt`, `store.url`, `jobs/` and `finished`.

`store.url` is one line: the URL of the store, relative to the directory if the store is inside
it, and after a `#` the session's own identity, 32 hexadecimal digits that were drawn when the
session was made::

    lmdb:jobs#5f1c7ad5e8b44f9c8d5c9f8a0e6b2d31
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from typing import ClassVar
from urllib.parse import quote

from .errors import DamagedSession, InvalidArgument, NotASession, OpenError, WriteError
from .system.filesystem import make_directory, opened_regular, sync_directory, touch, write_durably, write_error
from .tables.urls import StoreURL

_LONGEST_COMMAND = 1 << 24  # bytes of `created` that are read; Linux runs no longer command line
_STORE_URL = re.compile(r"([a-z0-9+]+:([^#\s][^#\n]*))#([0-9a-f]{32})\n?")


class SessionDirectory:
    """The files of a session, but for the contents of the store and of the mirror."""

    INDEX_FILENAME: ClassVar[str] = "session_ids.txt"
    STORE_URL_FILENAME: ClassVar[str] = "store.url"
    TIMESTAMP_FILES: ClassVar[dict[str, str]] = {"start": "created", "end": "finished"}
    DEFAULT_JOBS_DIR: ClassVar[str] = "jobs"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise InvalidArgument(f"a session's path must be a non-empty str or path, not {path!r}")
        self.path = os.path.abspath(text)
        self.name = os.path.basename(self.path)
        self.mirror = os.path.join(self.path, self.INDEX_FILENAME)
        self.jobs = os.path.join(self.path, self.DEFAULT_JOBS_DIR)
        self.url_file = os.path.join(self.path, self.STORE_URL_FILENAME)

    def check(self, *, create: bool) -> bool:
        """Return whether there is a session, False if one can be made here.

        Raise NotASession if there is none and none may be made, DamagedSession if it lacks a file.
        """
        try:
            names = set(os.listdir(self.path))
            os.stat(os.path.join(self.path, "."))  # who may list it may not come to what is in it
        except FileNotFoundError:
            names = set()
            if not create:
                raise NotASession(f"there is no session at {self.path}: the directory is missing") from None
        except NotADirectoryError:
            raise NotASession(f"{self.path} is a file, not the directory of a session") from None
        except OSError as error:
            raise NotASession(f"{self.path} can't be read: {error.strerror}") from error
        if self.STORE_URL_FILENAME in names:
            return True
        if self.DEFAULT_JOBS_DIR in names or (self.INDEX_FILENAME in names and not self._empty_mirror()):
            raise DamagedSession(
                f"{self.path} holds a session's data but no {self.STORE_URL_FILENAME}: restore that file, which"
                f" for a store in it is the line 'lmdb:{self.DEFAULT_JOBS_DIR}#' and the session's identity,"
                " 32 hexadecimal digits; or move what is there elsewhere"
            )
        # Of a session that is being made, or whose making was interrupted, there may be a part.
        parts = (self.TIMESTAMP_FILES["start"], self.INDEX_FILENAME, self.STORE_URL_FILENAME)
        pattern = re.compile(rf"({'|'.join(map(re.escape, parts))})(\.\d+\.\d+\.tmp)?")
        if not all(map(pattern.fullmatch, names)):
            remedy = "choose an empty or new directory" if create else "name the directory of a session"
            raise NotASession(f"{self.path} is not a session, and not empty; {remedy}")
        if not create:
            raise NotASession(
                f"there is no session at {self.path}: the directory has no {self.STORE_URL_FILENAME}"
            )
        return False

    def _empty_mirror(self) -> bool:
        try:
            return os.lstat(self.mirror).st_size == 0
        except OSError:
            return False

    def make(self, url: str, command: str, *, anew: bool, identity: bytes | None = None) -> None:
        """Make the files of a new session, whose store is at *url*; *anew* in place of one.

        *command* is what `created` is to say; the *identity* is drawn unless it is told.  `store.url` comes last: with it the session is there.
        """
        created = os.path.join(self.path, self.TIMESTAMP_FILES["start"])
        finished = os.path.join(self.path, self.TIMESTAMP_FILES["end"])
        try:
            # Before `store.url` is there: whoever sees that may write, and return, at once.
            make_directory(self.path)
            line = self.line(url, identity or secrets.token_bytes(16))
            files = {created: command, self.mirror: "", self.url_file: line}
            if anew:
                files = {created: command, self.url_file: line, self.mirror: ""}
                if os.path.lexists(finished):
                    os.unlink(finished)
            for path, text in files.items():
                try:
                    write_durably(path, text.encode(errors="surrogateescape"), replace=anew)
                except FileExistsError:
                    continue  # another process is making the session, too: whoever was first holds
        except OSError as error:
            message = f"no session can be made at {self.path}"
            raise write_error(error, message, "choose a directory that you may write to", OpenError) from error

    def own_store_url(self) -> StoreURL:
        """Return the URL of a store inside the directory.  Raise DamagedSession if something else is there."""
        self._check_plain(self.jobs, self.path)
        return StoreURL.of_path(self.jobs)

    def _relative(self, url: StoreURL) -> str:
        """Return *url* as it is written in `store.url`: relative if the store is inside the directory."""
        if "#" in url or "\n" in url:
            raise InvalidArgument(f"the URL of a store can't have a '#' or a line break: {str(url)!r}")
        if not url.is_lmdb:
            return url
        place = os.path.realpath(url.path)
        if url.is_inside(self.path):
            return f"lmdb:{quote(os.path.relpath(place, os.path.realpath(self.path)))}"
        return StoreURL.of_path(place)

    def store_url(self) -> tuple[StoreURL, bytes]:
        """Return the URL of the store, absolute, and the session's identity.

        Raise DamagedSession if `store.url` doesn't say.
        """
        try:
            with opened_regular(self.url_file) as file:
                text = file.read(65536).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedSession(f"{self.url_file} can't be read ({error}); restore it from a backup") from error
        return self._parsed(text)

    def _parsed(self, text: str) -> tuple[StoreURL, bytes]:
        """Return what `store_url` does for the *text* of a `store.url`."""
        match = _STORE_URL.fullmatch(text)
        if match is None:
            raise DamagedSession(
                f"{self.url_file} says {text[:80]!r}, which is not the URL of a store, a '#' and 32"
                " hexadecimal digits; restore it from a backup"
            )
        url, identity = StoreURL(match[1]), bytes.fromhex(match[3])
        if not url.is_lmdb:
            return url, identity
        if match[2].startswith("/"):
            place = os.path.normpath(url.path)
            if "\0" in place or not place.startswith(os.sep):
                raise DamagedSession(f"{self.url_file}: {match[2][:80]!r} is not the path of a store; edit it")
            self._check_plain(place, os.path.dirname(place))
            return url, identity
        place = os.path.normpath(os.path.join(self.path, url.path))
        if "\0" in place or not place.startswith(self.path.rstrip(os.sep) + os.sep):
            raise DamagedSession(f"{self.url_file}: {match[2]!r} leads out of the session directory; edit it")
        self._check_plain(place, self.path)
        return StoreURL.of_path(place), identity

    def line(self, url: str, identity: bytes) -> str:
        """Return the line of `store.url` for the store at *url* and the session's identity."""
        return f"{self._relative(StoreURL(url))}#{identity.hex()}\n"

    def moved(self, line: str, *, write: bool) -> tuple[StoreURL, bytes]:
        """Return what `store_url` does for the *line* of a session that was moved to another store.

        With *write* `store.url` says so from then on.
        """
        parsed = self._parsed(line)
        if write:
            try:
                write_durably(self.url_file, line.encode())
            except OSError as error:
                raise WriteError(
                    f"{self.url_file} can't be written: {error.strerror}; open the session again"
                ) from error
        return parsed

    def _check_plain(self, place: str, above: str) -> None:
        """Raise DamagedSession if *place*, or what is between it and *above*, is there but no directory."""
        while place != above and place != os.sep:
            try:
                mode = os.lstat(place).st_mode
            except FileNotFoundError:
                pass  # the first write makes it
            except OSError as error:
                raise DamagedSession(f"{self.url_file} leads to {place}: {error.strerror}; edit it") from error
            else:
                if not stat.S_ISDIR(mode):
                    raise DamagedSession(
                        f"{place}, where the store is to be, is not a directory, or a link to one: put the"
                        " directory itself there"
                    )
            place = os.path.dirname(place)

    def holds(self, url: str) -> bool:
        """Return whether the store at *url* is inside the directory."""
        return StoreURL(url).is_inside(self.path)

    def has_other_store(self, url: str) -> bool:
        """Return whether there is a store in the directory though the session's, at *url*, is elsewhere."""
        return os.path.lexists(self.jobs) and not self.holds(url)

    def check_no_tasks(self, url: str) -> None:
        """Raise DamagedSession if the mirror lists tasks, though the store at *url* is missing."""
        try:
            with opened_regular(self.mirror) as file:
                listed = sum(bool(line.strip()) for line in file)
        except OSError:
            return
        if listed:
            raise DamagedSession(
                f"{self.mirror} lists {listed} tasks, but the store {url} is missing: restore it from a backup,"
                " or make the session anew with load=False"
            )

    # -- timestamps

    def _timestamp_file(self, which: str) -> str:
        return os.path.join(self.path, self.TIMESTAMP_FILES[which])

    def timestamp(self, which: str) -> float | None:
        """Return the time ('start' or 'end') in seconds since 1970, or None."""
        try:
            return os.lstat(self._timestamp_file(which)).st_mtime
        except OSError:
            return None

    def timestamp_ns(self, which: str) -> int | None:
        """Return the time ('start' or 'end') in ns since 1970, or None."""
        try:
            return os.lstat(self._timestamp_file(which)).st_mtime_ns
        except OSError:
            return None

    def command(self) -> str | None:
        """Return the command line in `created` (bytes that aren't UTF-8 as surrogates), or None."""
        try:
            with opened_regular(self._timestamp_file("start")) as file:
                return file.read(_LONGEST_COMMAND).decode("utf-8", "surrogateescape")
        except OSError:
            return None

    def restore(self, command: str, times: dict[str, int]) -> None:
        """Write `created` with that *command*, and set the *times* ('start', 'end'), in ns since 1970.

        Raise OverflowError for a time that the system doesn't have.
        """
        write_durably(self._timestamp_file("start"), command.encode("utf-8", "surrogateescape"))
        for which, time in times.items():
            touch(self._timestamp_file(which), time)
        sync_directory(self.path)

    def set_timestamp(self, which: str, time: float) -> None:
        """Set the time ('start' or 'end'), in seconds since 1970; the file is made if it is missing."""
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            raise InvalidArgument(f"a time is a number of seconds since 1970, not {time!r}")
        path = self._timestamp_file(which)
        try:
            try:
                # With its time from the first: a crash in between would leave that of the call.
                write_durably(path, b"", replace=False, mtime=time)
            except FileExistsError:
                touch(path, round(time * 10**9) if isinstance(time, int) else int(time * 1e9))
        except (OverflowError, ValueError) as error:
            raise InvalidArgument(f"the time of {path} can't be set to {time!r}: {error}") from error
        except OSError as error:
            message = f"the time of {path} can't be set to {time!r}"
            raise write_error(error, message, "ask the session's owner") from error

    # -- the end

    def delete(self) -> None:
        """Delete the directory: it vanishes at once, and then bit by bit.  A symbolic link to it goes, too."""
        real = os.path.realpath(self.path)
        doomed = os.path.join(os.path.dirname(real), f".{self.name}.{secrets.token_hex(4)}.deleted")
        try:
            os.rename(real, doomed)
            # First of all: else a power cut might bring it back under its name, and parts of it only.
            with contextlib.suppress(PermissionError):  # who may write the directory above need not read it
                sync_directory(os.path.dirname(real))
            if os.path.islink(self.path):
                os.unlink(self.path)
                sync_directory(os.path.dirname(self.path))
            shutil.rmtree(doomed)
        except OSError as error:
            raise WriteError(f"{error.filename or real} can't be deleted: {error.strerror}") from error

    def delete_store(self, url: str) -> None:
        """Delete the store at *url*, which is inside the directory and used by nobody any more."""
        place = os.path.realpath(StoreURL(url).path)
        doomed = f"{place}.{os.getpid()}.{secrets.token_hex(4)}.tmp"  # as one that is being made: it is cleared
        try:
            os.rename(place, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise WriteError(f"{error.filename or place} can't be deleted: {error.strerror}") from error
