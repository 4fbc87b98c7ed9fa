"""Moving a session from one store to another, so that a kill at any moment loses nothing.

::

    in the old store's transaction   copy all to the new store, in transactions of its own
                                     note in the old store where the session is now
    its commit                       the session has moved
    in the new store                 delete the note of what is coming
    then                             write `store.url`; delete the old store if it is in the directory

The old store's transaction keeps writers out while the copy is made. Later a program that has
the session open there finds the note before it writes, so that none of its changes is lost in a
store that was left behind. If `store.url` still names the old store, opening the session follows
the note to the new one. If a migration is killed, the next one deletes what it has copied: the
note in the new store of what is coming says what that is (see index/entries.py).
"""

from __future__ import annotations

import os
import secrets
from typing import Any, NamedTuple

from ..errors import InvalidArgument, WriteError
from ..index.entries import coming_key, moved_key
from ..index.index_writer import IndexWriter
from ..session.opening import complete_move
from ..session.session import Session
from ..snapshots.copying import copy_records
from ..snapshots.snapshot import Snapshot
from ..store.index import Index
from ..store.store import make_store
from ..tables.interface import META, OnProgress, Writer, no_progress, with_progress


class Moved(NamedTuple):
    """What has been moved to another store.

    Attributes:
        records: how many records were moved.
        members: how many of them the session holds.
        shift: what was added to each N; 0 unless they were renumbered.
    """

    records: int
    members: int
    shift: int


def migrate_session(
    session: Session, url: str | os.PathLike[str], *, progress: OnProgress = no_progress, **store_options: Any
) -> Moved:
    """Move a session to another store: its tasks and all that they refer to. The session is closed then.

    IDs and records stay as they are; but if the new store has given out some of their numbers, the same
    number is added to each, also in references. A kill at any moment leaves the
    session whole in one of the stores; another call completes the move. Other programs that
    have the session open wait meanwhile, and must open it again to go on writing. A store inside
    the session directory is deleted afterwards; one elsewhere keeps its records.

    Args:
        session: the session.
        url: the URL or path of the new store, as in `make_store`.
        progress: called with the number of records copied, and of all.
        store_options: those of the new store.

    Return what was moved. Raise WriteError if the session is damaged (repair it first) or can't be
    written. The session then stays where it was.
    """
    session._ensure_writable()
    source, directory = session.store, session._directory
    if source.batch.journal is not None:
        raise InvalidArgument("migrate() inside a transaction: it can't be undone")
    target = make_store(url, **store_options)
    with target:
        if target.url == source.url:
            raise InvalidArgument(f"{session.path} has its tasks in {target.url} already")
        with source.lock:
            source.flush()
            # A new identity, because it may have been in that store before: a program that has had it open since
            # then must not write to it.
            former, identity = session._index.identity, secrets.token_bytes(16)
            line = directory.line(target.url, identity)
            moved = Moved(0, 0, 0)

            def unit(index_writer: IndexWriter, writer: Writer) -> None:
                nonlocal moved
                moved = _copied(session, writer, Index(target, identity), progress)
                writer.put(META, [(moved_key(former), line.encode())])

            source.write(unit)
            complete_move(target, directory, former, line)
            session._abandon()
            if directory.holds(source.url):
                source.discard()
                directory.delete_store(source.url)
    Session(directory.path, create=False, **store_options).close()  # this writes its mirror
    return moved


def _copied(session: Session, source: Writer, target: Index, progress: OnProgress) -> Moved:
    """Copy all that a session has in *source*. Raise WriteError if it is damaged."""
    identity = session._index.identity
    state = Snapshot(source, identity)
    try:
        records = with_progress(state.read(), state.count, progress)
        copied = copy_records(state, records, target, coming_key(identity))
        if state.missing:
            raise ValueError(f"its index has an entry for record {state.missing[0]}, which is not in the store")
    except ValueError as error:
        raise WriteError(
            f"{session.path} can't be moved: {error}; repair it first with 'gc3session repair'"
        ) from error
    return Moved(copied.records, copied.members, copied.shift)
