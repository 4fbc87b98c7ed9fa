"""The session directory: `created`, `session_ids.txt`, `store.url`, `jobs/` and `finished`, as in FORMAT.md."""

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
from .system.filesystem import (
    TEMPORARY_ENDING,
    make_directory,
    opened_regular,
    real_path,
    sync,
    temporary_name,
    touch,
    write_durably,
    write_error,
)
from .tables.urls import StoreURL

_LONGEST_COMMAND = 1 << 24  # bytes of `created` that are read; Linux runs no longer command line
_STORE_URL = re.compile(r"([a-z0-9+]+:([^#\s][^#\n]*))#([0-9a-f]{32})\n?")


class SessionDirectory:
    """The files of a session, except the contents of the store and of the mirror."""

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
        self.timestamp_files = {
            which: os.path.join(self.path, name) for which, name in self.TIMESTAMP_FILES.items()
        }
        self.files = (*self.timestamp_files.values(), self.mirror, self.url_file)

    def check(self, *, create: bool) -> bool:
        """Return True if there is a session, False if there is none but one can be made here.

        Raise NotASession if there is none and none can be made, or *create* is False; DamagedSession if the
        directory holds a session's data but no `store.url`.
        """
        try:
            names = set(os.listdir(self.path))
            os.stat(os.path.join(self.path, "."))  # a directory that may be listed need not be one to enter
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
                f"{self.path} holds a session's data but no {self.STORE_URL_FILENAME}: restore that file. If the"
                f" store is inside, it is the line 'lmdb:{self.DEFAULT_JOBS_DIR}#' and the session's identity,"
                " 32 hexadecimal digits. Or move what is there to another place"
            )
        # Some of these files are there while a session is being made, or after that was interrupted.
        parts = (self.TIMESTAMP_FILES["start"], self.INDEX_FILENAME, self.STORE_URL_FILENAME)
        pattern = re.compile(rf"({'|'.join(map(re.escape, parts))})({TEMPORARY_ENDING})?")
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

    def make(self, url: str, command: str, *, replace: bool, identity: bytes | None = None) -> None:
        """Make the files of a new session; `store.url`, which makes it a session, is the last one.

        Args:
            url: the URL of the store.
            command: the command line that `created` will hold.
            replace: whether to make it in place of the session that is there.
            identity: the session's identity; by default it is drawn at random.
        """
        created, finished = self.timestamp_files.values()
        try:
            # Flushed before `store.url` is there: a process that sees that file may write at once, durably.
            make_directory(self.path)
            line = self.line(url, identity or secrets.token_bytes(16))
            files = {created: command, self.mirror: "", self.url_file: line}
            if replace:
                files = {created: command, self.url_file: line, self.mirror: ""}
                if os.path.lexists(finished):
                    os.unlink(finished)
            for path, text in files.items():
                try:
                    write_durably(path, text.encode(errors="surrogateescape"), replace=replace)
                except FileExistsError:
                    continue  # another process is making the session, too: the file that came first stays
        except OSError as error:
            message = f"no session can be made at {self.path}"
            raise write_error(error, message, "choose a directory that you may write to", OpenError) from error

    def own_store_url(self) -> StoreURL:
        """Return the URL of the store inside the directory. Raise DamagedSession if something else is in its place."""
        self._check_plain(self.jobs, self.path)
        return StoreURL.of_path(self.jobs)

    def store_url(self) -> tuple[StoreURL, bytes]:
        """Return the URL of the store, absolute, and the session's identity.

        Raise DamagedSession if `store.url` can't be read, or isn't such a line.
        """
        try:
            with opened_regular(self.url_file) as file:
                text = file.read(65536).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedSession(f"{self.url_file} can't be read ({error}); restore it from a backup") from error
        return self.parsed(text)

    def parsed(self, text: str) -> tuple[StoreURL, bytes]:
        """Return what `store_url` returns if `store.url` holds *text*."""
        match = _STORE_URL.fullmatch(text)
        if match is None:
            raise DamagedSession(
                f"{self.url_file} says {text[:80]!r}, which is not the URL of a store, a '#' and 32"
                " hexadecimal digits; restore it from a backup"
            )
        url, identity = StoreURL(match[1]), bytes.fromhex(match[3])
        if not url.is_lmdb:
            return url, identity
        is_inside = not match[2].startswith("/")
        place = os.path.normpath(os.path.join(self.path, url.path))
        is_path = place.startswith(self.path.rstrip(os.sep) + os.sep) if is_inside else os.path.isabs(url.path)
        if "\0" in place or not is_path:
            what = "leads out of the session directory" if is_inside else "isn't the path of a store"
            raise DamagedSession(f"{self.url_file}: {match[2][:80]!r} {what}; correct that line")
        self._check_plain(place, self.path if is_inside else os.path.dirname(place))
        return StoreURL.of_path(place) if is_inside else url, identity

    def line(self, url: str, identity: bytes) -> str:
        """Return the line of `store.url` for a store and the session's identity; its URL is relative if it is inside."""
        store = StoreURL(url)
        if "#" in store or "\n" in store:
            raise InvalidArgument(f"the URL of a store can't have a '#' or a line break: {str(store)!r}")
        text = str(store)
        if store.is_lmdb:
            place = real_path(store.path)
            inside = os.path.relpath(place, real_path(self.path))
            text = (
                f"lmdb:{quote(inside, errors='surrogateescape')}" if self.holds(store) else StoreURL.of_path(place)
            )
        return f"{text}#{identity.hex()}\n"

    def write_line(self, line: str) -> None:
        """Write the line of a session that was moved to another store to `store.url`."""
        try:
            write_durably(self.url_file, line.encode())
        except OSError as error:
            raise WriteError(
                f"{self.url_file} can't be written: {error.strerror}; open the session again"
            ) from error

    def _check_plain(self, place: str, above: str) -> None:
        """Raise DamagedSession if *place*, or anything between it and *above*, exists but isn't a directory."""
        while place != above and place != os.sep:
            try:
                mode = os.lstat(place).st_mode
            except FileNotFoundError:
                pass  # the first write makes it
            except OSError as error:
                raise DamagedSession(
                    f"{self.url_file} leads to {place}: {error.strerror}; correct that line"
                ) from error
            else:
                if not stat.S_ISDIR(mode):
                    raise DamagedSession(
                        f"{place}, where the store should be, is a file or a symbolic link: put the directory of"
                        " the store there"
                    )
            place = os.path.dirname(place)

    def holds(self, url: str) -> bool:
        """Return whether the store at *url* is inside the directory."""
        return StoreURL(url).is_inside(self.path)

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
                " or make the session again, empty, with load=False"
            )

    # -- timestamps

    def timestamp(self, which: str) -> float | None:
        """Return the time ('start' or 'end') in seconds since 1970, or None if it isn't set."""
        nanoseconds = self.timestamp_ns(which)
        return None if nanoseconds is None else nanoseconds / 1e9

    def timestamp_ns(self, which: str) -> int | None:
        """Return the time ('start' or 'end') in ns since 1970, or None."""
        try:
            return os.lstat(self.timestamp_files[which]).st_mtime_ns
        except OSError:
            return None

    def command(self) -> str | None:
        """Return the command line in `created` (bytes that aren't UTF-8 as surrogates), or None."""
        try:
            with opened_regular(self.timestamp_files["start"]) as file:
                return file.read(_LONGEST_COMMAND).decode("utf-8", "surrogateescape")
        except OSError:
            return None

    def restore(self, command: str, times: dict[str, int]) -> None:
        """Write `created` with that *command*, and set the *times* ('start', 'end'), in ns since 1970.

        Raise OverflowError for a time that the system doesn't have.
        """
        write_durably(self.timestamp_files["start"], command.encode("utf-8", "surrogateescape"))
        for which, time in times.items():
            touch(self.timestamp_files[which], time)
        sync(self.path)

    def set_timestamp(self, which: str, time: float) -> None:
        """Set the time ('start' or 'end'), in seconds since 1970; the file is made if it is missing."""
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            raise InvalidArgument(f"a time is a number of seconds since 1970, not {time!r}")
        path = self.timestamp_files[which]
        try:
            try:
                # The file appears with its time: if that were set later, a crash in between would leave another time.
                write_durably(path, b"", replace=False, mtime=time)
            except FileExistsError:
                touch(path, round(time * 10**9) if isinstance(time, int) else int(time * 1e9))
        except (OverflowError, ValueError) as error:
            raise InvalidArgument(f"the time of {path} can't be set to {time!r}: {error}") from error
        except OSError as error:
            message = f"the time of {path} can't be set to {time!r}"
            raise write_error(error, message, "ask its owner for the right to write there") from error

    # -- the end

    def delete(self) -> None:
        """Delete the directory: it is renamed first, so that it is gone at once. A symbolic link to it is deleted, too."""
        real = real_path(self.path)
        doomed = os.path.join(os.path.dirname(real), f".{self.name}.{secrets.token_hex(4)}.deleted")
        try:
            os.rename(real, doomed)
            # Flushed before anything in it is deleted: after a power cut a part of it might be back under its name.
            with contextlib.suppress(PermissionError):  # a directory that may be written need not be readable
                sync(os.path.dirname(real))
            if os.path.islink(self.path):
                os.unlink(self.path)
                sync(os.path.dirname(self.path))
            shutil.rmtree(doomed)
        except OSError as error:
            raise WriteError(f"{error.filename or real} can't be deleted: {error.strerror}") from error

    def delete_store(self, url: str) -> None:
        """Delete the store at *url*, which is inside the directory and isn't used any more."""
        place = real_path(StoreURL(url).path)
        doomed = temporary_name(place)  # if this is interrupted, the rest is deleted as a leftover
        try:
            os.rename(place, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise WriteError(f"{error.filename or place} can't be deleted: {error.strerror}") from error
