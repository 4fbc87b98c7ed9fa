"""Sessions that have moved to another store, and whose migration was killed before its end; see transfer/migrate.py."""

from __future__ import annotations

from ..directory import SessionDirectory
from ..errors import OpenError
from ..index.entries import coming_key, moved_key
from ..store.store import Store, make_store
from ..tables.interface import META, SESSIONS


def arrive(target: Store, directory: SessionDirectory, identity: bytes, url: str) -> None:
    """Do what is left once a session has moved: *url* is what `store.url` is to say.

    *identity* is the one that it had.  `store.url` comes last: before that whoever opens the session does this.
    """
    target.write(lambda ledger, writer: writer.delete(META, [coming_key(identity)]), numbers=False)
    directory.moved(url, write=True)


def delete_left(directory: SessionDirectory) -> None:
    """Delete the store in the session directory, which is not the session's, if a killed migration has left it."""
    try:
        store = make_store(directory.own_store_url())
    except OpenError:  # it is something else
        return
    with store:
        with store.reading() as reader:
            sessions = [identity for identity, _ in reader.scan(SESSIONS, b"")]
            left = bool(sessions) and all(reader.get(META, moved_key(one)) is not None for one in sessions)
        if left:
            store.discard()
            directory.delete_store(store.url)
