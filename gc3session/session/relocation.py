"""The end of a session's move to another store (transfer/migrate.py), also of one that was interrupted."""

from __future__ import annotations

from ..directory import SessionDirectory
from ..errors import OpenError
from ..index.entries import coming_key, moved_key
from ..store.store import Store, make_store
from ..tables.interface import META, SESSIONS


def complete_move(target: Store, directory: SessionDirectory, identity: bytes, line: str) -> None:
    """Do what is left after the transaction that has moved a session from one store to another.

    Args:
        target: the store that it has moved to.
        directory: where the session is.
        identity: the one that it had in the old store.
        line: what `store.url` is to say. That is written last: until then, each opening does all of this.
    """
    target.write(lambda index_writer, writer: writer.delete(META, [coming_key(identity)]), numbers=False)
    directory.moved(line, write=True)


def delete_former_store(directory: SessionDirectory) -> None:
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
