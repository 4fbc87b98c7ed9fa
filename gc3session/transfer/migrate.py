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
from typing import Any, Final, NamedTuple

from ..errors import InvalidArgument, WriteError
from ..format.frame import RECORD_KEY
from ..index.entries import coming_key, moved_key
from ..index.index import Index
from ..index.index_writer import IndexWriter
from ..session.relocation import complete_move
from ..session.session import Session
from ..snapshots.copying import copy_records
from ..snapshots.snapshot import Snapshot
from ..store.commit import RECORDS_KEY
from ..store.store import Store, make_store
from ..tables.interface import HOLDERS, META, RECORDS, OnProgress, Writer, no_progress, with_progress

_RECORDS_AT_ONCE: Final = 4096  # records that are looked at by one call


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
            move = _Move(session, target)
            moved = Moved(0, 0, 0)

            def unit(index_writer: IndexWriter, writer: Writer) -> None:
                nonlocal moved
                moved = move.copy(writer, progress)
                writer.put(META, [(moved_key(session._index.identity), move.line.encode())])

            source.write(unit)
            complete_move(target, directory, session._index.identity, move.line)
            session._abandon()
            if directory.holds(source.url):
                source.discard()
                directory.delete_store(source.url)
    Session(directory.path, create=False, **store_options).close()  # this writes its mirror
    return moved


class _Move:
    """The copying of a session into another store.

    The session gets a new identity there, because it may have been in that store before: a program that
    has had it open since then must not write to it.

    Attributes:
        line: what `store.url` is to say.
    """

    def __init__(self, session: Session, target: Store) -> None:
        self._index = session._index
        self._directory = session._directory
        self._target = target
        self._coming = coming_key(session._index.identity)
        self._own = range(0)
        self._identity = secrets.token_bytes(16)
        self.line = session._directory.line(target.url, self._identity)

    def copy(self, source: Writer, progress: OnProgress) -> Moved:
        """Copy all that the session has in *source*. Raise WriteError if it is damaged."""
        state = Snapshot(source, self._index.identity)
        records = with_progress(state.read(), state.count, progress)
        index = Index(self._target, self._identity)
        self._target.write(self._clear, numbers=False)
        try:
            copied = copy_records(state, records, index, own=self._own, on_reserve=self._reserve)
        except ValueError as error:
            raise self._refused(str(error)) from error
        if state.missing:
            raise self._refused(f"its index has an entry for record {state.missing[0]}, which is not in the store")
        return Moved(copied.records, copied.members, copied.shift)

    def _refused(self, why: str) -> WriteError:
        return WriteError(
            f"{self._directory.path} can't be moved: {why}; repair it first with 'gc3session repair'"
        )

    def _reserve(self, writer: Writer, numbers: range) -> None:
        first, next_ = map(RECORD_KEY.pack, (numbers.start, numbers.stop))
        writer.put(META, [(self._coming, first + next_ + self._identity)])

    def _clear(self, index_writer: IndexWriter, writer: Writer) -> None:
        """Delete what a migration of the session that was killed has left in the new store."""
        left = writer.get(META, self._coming)
        if left is None:
            return
        first, next_, identity = left[:8], left[8:16], left[16:]
        self._own = range(RECORD_KEY.unpack(first)[0], RECORD_KEY.unpack(next_)[0])
        index_writer.erase(identity)
        writer.count(META, RECORDS_KEY, -_delete(writer, RECORDS, first, next_))
        _delete(writer, HOLDERS, first, next_)


def _delete(writer: Writer, table: str, first: bytes, next_: bytes) -> int:
    """Delete the items whose keys are from *first* on and before *next_*; return how many there were."""
    count = 0
    while keys := [key for key, _ in writer.scan(table, first, _RECORDS_AT_ONCE) if key < next_]:
        writer.delete(table, keys)
        count += len(keys)
    return count
