"""Every exception of gc3session, grouped by the moment at which it is raised.

All derive from `Error`.  Each message says what happened, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable

from .text import escaped


class Error(Exception):
    """The base of every exception that gc3session raises on purpose.

    As a text it is safe to show: names and paths in it may be those of a stranger.
    """

    def __str__(self) -> str:
        return escaped(Exception.__str__(self))  # that of KeyError would be the message's repr


# -- calling ------------------------------------------------------------------


class InvalidArgument(Error, ValueError):
    """An argument has a value that the call can't use."""


class NotInSession(InvalidArgument, KeyError):
    """The session has no task of that ID."""


class UnstorableValue(InvalidArgument, TypeError):
    """An object holds a value that no record can keep; nothing was written."""


class ReadOnlyError(Error):
    """The session or store was opened read-only, or its files forbid writing."""


class ClosedError(Error):
    """The session or store has been closed."""


# -- opening ------------------------------------------------------------------


class OpenError(Error):
    """A session or store can't be opened; the base of what `Session(path)` raises."""


class NotASession(OpenError, InvalidArgument):
    """There is no session at that path."""


class DamagedSession(OpenError):
    """A session directory lacks a file, or one of its files can't be read."""


class CorruptStore(OpenError):
    """The store's data file is damaged or isn't one."""


class UnknownFormat(OpenError):
    """The store was written in a format that this version doesn't know."""


class NetworkFilesystemError(OpenError):
    """The store would lie on a network filesystem, which LMDB can't use safely."""


class StoreUnreachable(OpenError):
    """The server of the store can't be reached, was lost, or has no connection or no time; what was to be written is kept."""


class AccessDenied(OpenError):
    """The server of the store refuses, or isn't trusted: a wrong password, user, database or certificate, or a right that is missing."""


# -- reading ------------------------------------------------------------------


class LoadError(Error):
    """An object can't be loaded.

    Attributes:
        id: the ID of the object; '' if none is concerned.
    """

    def __init__(self, message: str, id_: str = "") -> None:
        super().__init__(message)
        self.id = id_


class NotFound(LoadError, KeyError):
    """There is no object of that ID."""


class CorruptRecord(LoadError):
    """The bytes of a record are damaged: its checksum or its contents are wrong."""


# -- writing ------------------------------------------------------------------


class WriteError(Error):
    """A transaction failed; nothing of it was written and the batch is kept."""


class StoreFull(WriteError):
    """The disk, a quota or the address space leaves no room for the transaction."""


class CommitUnknown(WriteError):
    """The server was lost while it committed, and has not come back: what it did is not known yet.

    What was to be written is kept, with its IDs.  The next call that needs the store finds out
    whether it was written, and writes it if it was not: nothing is lost, and nothing done twice.

    Attributes:
        went_through: returns whether it was written, once the server can tell; raises
            StoreUnreachable until then.
    """

    def __init__(self, message: str, went_through: Callable[[], bool]) -> None:
        super().__init__(message)
        self.went_through = went_through


class StoreInUse(WriteError):
    """Another process has the store open, so its file can't be replaced; nothing was changed.

    Attributes:
        pids: of the processes that have it open, a tuple of int; empty if the system doesn't tell.
    """

    def __init__(self, message: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pids = pids


class ConflictError(WriteError):
    """A record has changed since the object was loaded; nothing was written.

    Attributes:
        ids: the IDs of the objects concerned, a tuple of str.
    """

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class ClashError(WriteError):
    """A dump has IDs that the store has given out already; nothing was written.

    Attributes:
        ids: the first ones of these IDs, a tuple of str.
    """

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


# -- warnings -----------------------------------------------------------------


class MirrorWarning(UserWarning):
    """`session_ids.txt` did not agree with the index and was, or must be, mended."""
