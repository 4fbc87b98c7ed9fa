"""Every exception of gc3session, grouped by the moment at which it is raised.

All derive from `Error`. Each docstring says when the exception is raised and what the caller can do; each
message says what happened, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable

from .text import escaped


class Error(Exception):
    """The base of every exception that gc3session raises on purpose: catch it to catch them all.

    Its text is safe to show on a terminal, although names and paths in it may have been chosen by a stranger.
    """

    def __str__(self) -> str:
        return escaped(Exception.__str__(self))  # KeyError.__str__ would return the message's repr


# -- calling ------------------------------------------------------------------


class InvalidArgument(Error, ValueError):
    """An argument has a value that the call can't use, and nothing was done; call again with another value."""


class NotInSession(InvalidArgument, KeyError):
    """The session has no task of that ID; `session.ids()` gives the IDs of those that it has."""


class UnstorableValue(InvalidArgument, TypeError):
    """An object holds a value that no record can keep, and nothing was written.

    The message says where in the object the value is. Replace it by one of a type that can be stored.
    """


class ReadOnlyError(Error):
    """The session or store was opened read-only, or the rights of its files forbid writing.

    Open it without `read_only=True`, or ask the owner of the files for the right to write; reading goes on.
    """


class ClosedError(Error):
    """The session or store has been closed; open it again."""


# -- opening ------------------------------------------------------------------


class OpenError(Error):
    """A session or store can't be opened; the base of the exceptions that concern what is to be opened.

    It is raised itself where a missing right, or a failing disk, keeps the files from being read.
    """


class NotASession(OpenError, InvalidArgument):
    """There is no session at that path, and none can or may be made there; name the directory of a session."""


class DamagedSession(OpenError):
    """A session directory lacks a file, or one of its files can't be read.

    `gc3session repair` restores what can be restored; otherwise restore the file from a backup.
    """


class CorruptStore(OpenError):
    """The store's data file is damaged, or isn't one.

    Restore it from a backup, or have `gc3session repair` save what can be read.
    """


class UnknownFormat(OpenError):
    """The store was written in a format that this version of gc3session doesn't know; upgrade gc3session."""


class NetworkFilesystemError(OpenError):
    """The store would be on a network filesystem, which LMDB can't use safely.

    Put the store on a local disk, or pass `allow_network_filesystem=True` if only one machine uses it.
    """


class StoreUnreachable(OpenError):
    """The server of the store can't be reached, was lost, has no free connection, or didn't answer in time.

    Nothing of the call was done. Make it again when the server is there; what was accepted with
    `flush=False` is kept in the batch.
    """


class AccessDenied(OpenError):
    """The server of the store refuses, or isn't trusted.

    A password, user, database or certificate is wrong, or a right is missing: correct the URL, or ask
    the server's administrator.
    """


# -- reading ------------------------------------------------------------------


class LoadError(Error):
    """An object can't be loaded: its record is missing or damaged, or its class refuses the values.

    The other objects can be loaded.

    Attributes:
        id: the ID of the object; '' if it isn't known.
    """

    def __init__(self, message: str, id_: str = "") -> None:
        super().__init__(message)
        self.id = id_


class NotFound(LoadError, KeyError):
    """There is no object of that ID in the store, or not any more."""


class CorruptRecord(LoadError):
    """The bytes of a record are damaged: its checksum or its contents are wrong.

    Restore it from a backup; `gc3session repair` takes it out of the session and keeps its bytes.
    """


# -- writing ------------------------------------------------------------------


class WriteError(Error):
    """A transaction failed, and nothing of it was written.

    A call that was to write at once has done nothing: make it again once the cause is removed. What was
    accepted with `flush=False` is kept, and `flush()` writes it then.
    """


class StoreFull(WriteError):
    """The disk, a quota or the address space has no room for the transaction.

    Nothing of it was written: make room, and call again. What was accepted with `flush=False` is kept.
    """


class CommitUnknown(WriteError):
    """The server was lost during a commit, and has not come back: whether it committed is not known yet.

    The next call that needs the store finds out. If it was committed, the call that raised this is done,
    and its tasks have their IDs; if not, it has done nothing. So make it again with the same tasks:
    none is stored twice. Before other tasks are made for that, ask `went_through`. What was accepted
    with `flush=False` is on disk then or kept.

    Attributes:
        went_through: returns whether it was committed; raises StoreUnreachable while the server isn't there.
    """

    def __init__(self, message: str, went_through: Callable[[], bool]) -> None:
        super().__init__(message)
        self.went_through = went_through


class StoreInUse(WriteError):
    """Another process has the store open, so that its file can't be replaced; nothing was changed.

    Close the store there, and try again.

    Attributes:
        pids: the pids of the processes that have it open, a tuple of int; empty if the system doesn't show them.
    """

    def __init__(self, message: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pids = pids


class ConflictError(WriteError):
    """A record has changed since the object was loaded; nothing was written.

    `session.refresh(task)` takes the stored record over; `force=True` overwrites it.

    Attributes:
        ids: the IDs of the objects concerned, a tuple of str.
    """

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class ClashError(WriteError):
    """A dump or session has IDs that the store has given out already; nothing was written.

    Use a new store; a dump can also be loaded with `on_clash='renumber'` or `'skip'`.

    Attributes:
        ids: the first few of these IDs, a tuple of str.
    """

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


# -- warnings -----------------------------------------------------------------


class UnsavedWarning(RuntimeWarning):
    """A session was closed, or dropped, with changes of its tasks that were never saved, or with a batch.

    Save what has changed with `save_all` or `save`, and close the session, or use it in a `with`.
    """


class MirrorWarning(UserWarning):
    """`session_ids.txt` doesn't agree with the index: it was rewritten or, as the message says, must be.

    What is stored is safe; only programs that read that file may have read something else.
    """


class WaitingWarning(UserWarning):
    """A call has been waiting for 5 s, and goes on waiting, for another program that is writing to the store.

    The message names the program; Ctrl-C ends the wait, and nothing was written then.
    """
