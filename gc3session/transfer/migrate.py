"""Moving a session from one store to another, so that a kill at any moment loses nothing.

::

    in the old store's transaction   copy all to the new store, in transactions of its own
                                     note in the old store where the session is now
    its commit                       the session has moved
    in the new store                 delete the note of what is coming
    then                             `store.url` says so; a store inside the directory is deleted

The old store's transaction keeps writers out while the copy is made, and after it a program
that has the session open there reads the note before it writes: none of its changes is lost
in a store that is left behind.  Who opens a session whose `store.url` names the store with the
note goes on to the new one.  What a killed migration has left in the new store is deleted by
the next one: there is a note of what is coming (see entries.py).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

from ..errors import ClashError, InvalidArgument, WriteError
from ..format.frame import RECORD_KEY
from ..index.entries import coming_key, moved_key
from ..index.index_writer import Ledger
from ..session.base import SessionBase
from ..session.relocation import arrive
from ..session.session import Session
from ..snapshots.snapshot import Snapshot
from ..store.store import Store, make_store
from ..tables.interface import META, RECORDS, OnProgress, Writer
from .dump import DumpLines
from .load import Loading

_CHUNK = 4096


def migrate_session(
    session: Session, url: str | os.PathLike[str], *, progress: OnProgress | None = None, **store_options: Any
) -> None:
    """Move a session to another store: its tasks and all that they refer to.  It is closed then.

    IDs, records and the order of adding stay as they are.  A kill at any moment leaves the
    session whole, in the one store or in the other; calling it again completes the move.
    Whoever has the session open meanwhile waits, and must open it again to go on writing.
    A store inside the session directory is deleted afterwards; another one keeps its records.

    Args:
        session: which session.
        url: where to: the URL or path of a store, as in `make_store`.  One that is in use
            must not have given out the numbers of the session's IDs.
        progress: called with the number of records copied, and of all.
        store_options: those of the new store.

    Raise ClashError if the new store has given out these IDs, WriteError if the session is
    damaged (repair it first) or can't be written; the session stays where it was then.
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

            def unit(ledger: Ledger, writer: Writer) -> None:
                move.copy(writer, progress)
                writer.put(META, [(moved_key(session._index.identity), move.url.encode())])

            source.write(unit)
            arrive(target, directory, session._index.identity, move.url)
            session._abandon()
            if directory.holds(source.url):
                source.discard()
                directory.delete_store(source.url)
    Session(directory.path, create=False, **store_options).close()  # its mirror is written


class _Move:
    """The copying of a session into another store, where it gets an identity of its own.

    Attributes:
        url: what `store.url` is to say.
    """

    def __init__(self, session: Session, target: Store) -> None:
        self._session = session
        self._target = target
        self._coming = coming_key(session._index.identity)
        self._own = range(0)
        # A new one: who has the session open in this store since it was here before must not write to it.
        self._identity = secrets.token_bytes(16)
        self.url = session._directory.line(target.url, self._identity)

    def copy(self, source: Writer, progress: OnProgress | None) -> None:
        """Copy all that the session has in *source*.  Raise WriteError if its index is damaged."""
        state = Snapshot(self._session, source)
        lines = DumpLines(self._session, state, state.read())
        self._target.write(self._clear, numbers=False)
        there = SessionBase(self._target, self._identity, owns_store=False)
        try:
            Loading(there, _encoded(lines), "fail", progress, own=self._own, reserve=self._reserve).run()
        except ClashError as error:
            raise ClashError(
                f"{self._target.url} has given out {error.ids[0]} and other IDs of {self._session.path}, so it can't be"
                " moved there; choose a store that is new",
                error.ids,
            ) from error
        finally:
            self._target.indexes.remove(there._index)
        if state.missing:
            raise WriteError(
                f"{self._session.path} can't be moved: its index has an entry for record {state.missing[0]}, which"
                " is not in the store; mend it first with 'gc3session repair'"
            )

    def _reserve(self, writer: Writer, numbers: range) -> None:
        first, next_ = map(RECORD_KEY.pack, (numbers.start, numbers.stop))
        writer.put(META, [(self._coming, first + next_ + self._identity)])

    def _clear(self, ledger: Ledger, writer: Writer) -> None:
        """Delete what a killed migration of the session has left in the new store."""
        left = writer.get(META, self._coming)
        if left is None:
            return
        first, next_ = RECORD_KEY.unpack(left[:8])[0], RECORD_KEY.unpack(left[8:16])[0]
        self._own = range(first, next_)
        start = left[:8]
        while items := writer.scan(RECORDS, start, _CHUNK):
            keys = [key for key, _ in items if key < left[8:16]]
            writer.delete(RECORDS, keys)
            if len(keys) < len(items):
                break
            start = items[-1][0] + b"\0"
        ledger.erase(left[16:])


def _encoded(lines: DumpLines) -> Iterator[bytes]:
    return (line.encode("ascii") for line in lines)
