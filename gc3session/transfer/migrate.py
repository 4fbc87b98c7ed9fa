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
from typing import Any, Final

from ..errors import ClashError, InvalidArgument, WriteError
from ..format.frame import RECORD_KEY
from ..index.entries import coming_key, moved_key
from ..index.index import Index
from ..index.index_writer import IndexWriter
from ..session.relocation import complete_move
from ..session.session import Session
from ..snapshots.snapshot import Snapshot
from ..store.store import Store, make_store
from ..tables.interface import META, RECORDS, OnProgress, Writer
from .dump import DumpLines
from .load import Loading

_RECORDS_AT_ONCE: Final = 4096  # records that are looked at by one call


def migrate_session(
    session: Session, url: str | os.PathLike[str], *, progress: OnProgress | None = None, **store_options: Any
) -> None:
    """Move a session to another store: its tasks and all that they refer to. The session is closed then.

    IDs, records and the order of adding stay as they are. A kill at any moment leaves the
    session whole in one of the stores; another call completes the move. Other programs that
    have the session open wait meanwhile, and must open it again to go on writing. A store inside
    the session directory is deleted afterwards; one elsewhere keeps its records.

    Args:
        session: the session.
        url: the URL or path of the new store, as in `make_store`. A store that is in use must
            not have given out the numbers of the session's IDs.
        progress: called with the number of records copied, and of all.
        store_options: those of the new store.

    Raise ClashError if the new store has given out these IDs, WriteError if the session is
    damaged (repair it first) or can't be written. The session then stays where it was.
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

            def unit(index_writer: IndexWriter, writer: Writer) -> None:
                move.copy(writer, progress)
                writer.put(META, [(moved_key(session._index.identity), move.line.encode())])

            source.write(unit)
            complete_move(target, directory, session._index.identity, move.line)
            session._abandon()
            if directory.holds(source.url):
                source.discard()
                directory.delete_store(source.url)
    Session(directory.path, create=False, **store_options).close()  # this writes its mirror


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

    def copy(self, source: Writer, progress: OnProgress | None) -> None:
        """Copy all that the session has in *source*. Raise WriteError if its index is damaged."""
        state = Snapshot(source, self._index.identity)
        lines = DumpLines(state, state.read(), None).encoded()
        self._target.write(self._clear, numbers=False)
        index = Index(self._target, self._identity)
        try:
            Loading(index, None, lines, "fail", progress, own=self._own, reserve=self._reserve).run()
        except ClashError as error:
            raise ClashError(
                f"{self._target.url} has given out {error.ids[0]} and other IDs of {self._directory.path}, so it"
                " can't be moved there; choose a store that is new",
                error.ids,
            ) from error
        if state.missing:
            raise WriteError(
                f"{self._directory.path} can't be moved: its index has an entry for record {state.missing[0]}, which"
                " is not in the store; repair it first with 'gc3session repair'"
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
        start = first
        while items := writer.scan(RECORDS, start, _RECORDS_AT_ONCE):
            keys = [key for key, _ in items if key < next_]
            writer.delete(RECORDS, keys)
            if len(keys) < len(items):
                break
            start = items[-1][0] + b"\0"
        index_writer.erase(identity)
