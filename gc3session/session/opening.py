"""From a session directory to its store: an existing session is opened, or a new one is made."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

from ..directory import SessionDirectory
from ..errors import DamagedSession, OpenError
from ..index.entries import Row, coming_key, moved_key
from ..store.store import Store, make_store
from ..tables.interface import META, SESSIONS
from ..tables.urls import StoreURL, without_password

StoreOpener = Callable[..., Store]
"""`make_store` with the options that the session was given: called with a URL, and `read_only` to insist on that."""


class OpenedStore(NamedTuple):
    """The store of a session.

    Attributes:
        store: which is open.
        identity: of the session, 16 bytes.
        owned: whether the session has to close it; a Store that the caller has passed is the caller's.
    """

    store: Store
    identity: bytes
    owned: bool

    def close(self) -> None:
        """Close the store, unless it is the caller's."""
        if self.owned:
            self.store.close()


def open_existing(
    directory: SessionDirectory, store_or_url: Store | str | os.PathLike[str] | None, open_store: StoreOpener
) -> OpenedStore:
    """Return the store that `store.url` names; *store_or_url* is what the caller expects there.

    If the session has moved to another store, whose migration was killed before `store.url` said so, it is that one.
    """
    url, identity = directory.store_url()
    if isinstance(store_or_url, Store) and store_or_url.url == url:
        opened = OpenedStore(store_or_url, identity, owned=False)
    else:
        if isinstance(store_or_url, str | os.PathLike):
            named = StoreURL(store_or_url)
            if without_password(named) == url:
                url = named  # with its password
        elif store_or_url is None:
            _check_known(directory, url, identity, open_store)
        opened = OpenedStore(open_store(url), identity, owned=True)
    try:
        note = opened.store.moved_to(identity)
        if note is not None:
            opened.close()
            opened = _follow(directory, identity, note, open_store)
        if (
            not opened.store.read_only
            and not directory.holds(opened.store.url)
            and os.path.lexists(directory.jobs)
        ):
            _delete_former_store(directory)
    except BaseException:
        opened.close()
        raise
    return opened


def _follow(directory: SessionDirectory, former: bytes, note: str, open_store: StoreOpener) -> OpenedStore:
    """Return the store that the session has moved to, as the *note* in the former one says."""
    url, identity = directory.parsed(note)
    _check_known(directory, url, identity, open_store)
    store = open_store(url)
    try:
        if not store.read_only:
            complete_move(store, directory, former, note)
    except BaseException:
        store.close()
        raise
    return OpenedStore(store, identity, owned=True)


def complete_move(target: Store, directory: SessionDirectory, identity: bytes, line: str) -> None:
    """Do what is left after the transaction that has moved a session from one store to another.

    Args:
        target: the store that it has moved to.
        directory: where the session is.
        identity: the one that it had in the old store.
        line: what `store.url` is to say. That is written last: until then, each opening does all of this.
    """
    target.write(lambda index_writer, writer: writer.delete(META, [coming_key(identity)]), numbers=False)
    directory.write_line(line)


def _delete_former_store(directory: SessionDirectory) -> None:
    """Delete a store in the session directory that all of its sessions have left, such as one of an interrupted move."""
    try:
        store = make_store(directory.own_store_url())
    except OpenError:  # something else is there
        return
    with store:
        with store.reading() as reader:
            sessions = [identity for identity, _ in reader.scan(SESSIONS, b"")]
            left = bool(sessions) and all(reader.get(META, moved_key(one)) is not None for one in sessions)
        if left:
            store.discard()
            directory.delete_store(store.url)


def make_new(
    directory: SessionDirectory,
    store_or_url: Store | str | os.PathLike[str] | None,
    open_store: StoreOpener,
    *,
    anew: bool,
) -> OpenedStore:
    """Make a session in the directory, and return its store; *anew* in place of one that is there."""
    if isinstance(store_or_url, Store):
        store, owned = store_or_url, False
    else:
        store, owned = open_store(directory.own_store_url() if store_or_url is None else store_or_url), True
    try:
        store.ensure_writable()  # what could be wrong with the arguments has been found by now
        directory.make(store.url, f"{without_password(shlex.join(sys.orig_argv))}\n", replace=anew)
        url, identity = directory.store_url()
        if owned and url != store.url:  # it has another name there, or another process was faster and chose it
            store.close()
            store = open_store(url)
        if store_is_elsewhere(directory, store.url):
            # Such a store knows its sessions from the beginning: see _check_known.
            store.write(lambda index_writer, writer: index_writer.follow_mirror(identity))
    except BaseException:
        if owned:
            store.close()
        raise
    return OpenedStore(store, identity, owned)


def store_is_elsewhere(directory: SessionDirectory, url: str) -> bool:
    """Return whether the store at *url* is a directory outside the session's."""
    return StoreURL(url).is_lmdb and not directory.holds(url)


def _check_known(directory: SessionDirectory, url: StoreURL, identity: bytes, open_store: StoreOpener) -> None:
    """Raise DamagedSession if a store outside the directory doesn't know the session.

    Whoever makes a session directory can write any URL into its `store.url`.  So the session is opened
    only if that store knows it, or if the caller has named the store.
    """
    if not store_is_elsewhere(directory, url):
        return
    with open_store(url, read_only=True) as store, store.reading() as reader:
        known = Row.read(reader, identity) is not None
    if not known:
        raise DamagedSession(
            f"{directory.url_file} leads to {url}, which is missing or doesn't know this session:"
            f" if the session was made with that store, name it: store_or_url={str(url)!r}"
        )
