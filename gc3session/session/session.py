"""Sessions: persistent collections of tasks."""

from __future__ import annotations

import os
import secrets
import time as clock
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ..directory import SessionDirectory
from ..errors import AccessDenied, DamagedSession, InvalidArgument, OpenError, ReadOnlyError
from ..index.entries import MirrorNote, Row
from ..store.mirrored import mirror_of
from ..store.store import DEFAULT_BATCH_BYTES, Store, make_store
from ..tables.interface import OnProgress, no_progress
from ..tasks import T
from ..text import escaped
from .base import SessionBase
from .opening import make_new, open_existing

if TYPE_CHECKING:
    from ..snapshots.backup import BackedUp
    from ..upkeep.check import Check
    from ..upkeep.repair import Repaired
    from .information import Information

_FULL_OF_BLANKS = 1 << 16  # bytes of a mirror that may be blank before closing tidies it


class Session(SessionBase[T]):
    """A persistent collection of tasks that lives in a directory.

    Args:
        path: the directory; its last part is the session's name.  An existing session is
            opened; else, if it is missing or empty, a session is made there.
        create: if False, only an existing session is opened.
        store_or_url: where to keep the tasks of a new session: a Store, or the URL or path of
            one; unless told, in the subdirectory `jobs`.  An existing session uses the store
            that its file `store.url` names.
        load: if False, an existing session is made anew, without tasks; the old ones stay in
            the store.
        read_only: never write, neither to the session nor to the store.
        batch_bytes: bytes of memory at which what was done with `flush=False` is written.
        store_options: the store's own; for LMDB `map_size` (bytes of address space to begin
            with) and `allow_network_filesystem`.

    Raise OpenError (NotASession, DamagedSession, CorruptStore, UnknownFormat,
    NetworkFilesystemError), or InvalidArgument for an option that there isn't.

    >>> import os, tempfile
    >>> session = Session(os.path.join(tempfile.mkdtemp(), 'example'))
    >>> sorted(os.listdir(session.path))
    ['created', 'session_ids.txt', 'store.url']
    >>> from gc3session import Task
    >>> id1, id2 = session.add(Task(jobname='first')), session.add(Task())
    >>> len(session)
    2
    >>> session[id1].jobname
    'first'
    >>> session.remove(id1)
    >>> len(session)
    1
    >>> session.destroy()
    >>> os.path.exists(session.path)
    False
    """

    INDEX_FILENAME: ClassVar[str] = SessionDirectory.INDEX_FILENAME
    STORE_URL_FILENAME: ClassVar[str] = SessionDirectory.STORE_URL_FILENAME
    TIMESTAMP_FILES: ClassVar[dict[str, str]] = SessionDirectory.TIMESTAMP_FILES
    DEFAULT_JOBS_DIR: ClassVar[str] = SessionDirectory.DEFAULT_JOBS_DIR
    _directory: SessionDirectory

    def __init__(
        self,
        path: str | os.PathLike[str],
        create: bool = True,
        store_or_url: Store | str | os.PathLike[str] | None = None,
        *,
        load: bool = True,
        read_only: bool = False,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        **store_options: Any,
    ) -> None:
        for name, value in (("create", create), ("load", load), ("read_only", read_only)):
            if not isinstance(value, bool):  # it may be a URL with a password
                raise InvalidArgument(
                    f"{name} must be True or False, not a {type(value).__name__}; name the store with store_or_url="
                )
        if not isinstance(store_or_url, Store | str | os.PathLike | None):
            raise InvalidArgument(
                f"store_or_url must be a Store, or the URL or path of one, not a {type(store_or_url).__name__}"
            )
        self._directory = directory = SessionDirectory(path)
        self.path = directory.path
        self.name = directory.name
        if isinstance(store_or_url, Store) and store_options:
            raise InvalidArgument(f"{', '.join(store_options)}: a Store that is there takes no options")
        there = directory.check(create=create and not read_only)
        if read_only and not load:
            raise InvalidArgument(f"{self.path}: load=False makes a session anew; read_only=True forbids that")
        open_store = partial(make_store, **{"read_only": read_only, "batch_bytes": batch_bytes, **store_options})
        if there and load:
            opened = open_existing(directory, store_or_url, open_store)
        else:
            opened = make_new(directory, store_or_url, open_store, anew=there)
        store, identity, owned = opened
        try:
            super().__init__(store, identity, owns_store=owned)
            self._mirror = mirror_of(store, directory)
            self._index.listener = self._mirror
            if not (store.read_only or self._is_there()):
                raise OpenError(
                    f"{self.path} was moved, destroyed or made anew while it was opened; open it again"
                )
            self._tend_mirror(opening=True)
        except BaseException:
            index = getattr(self, "_index", None)
            if index in store.indexes:
                store.indexes.remove(index)
            opened.close()
            raise

    @property
    def created(self) -> float | None:
        """When the session was started, in seconds since 1970; None if that isn't known."""
        return self._directory.timestamp("start")

    @property
    def finished(self) -> float | None:
        """When the session ended, in seconds since 1970; None before `set_end_timestamp`."""
        return self._directory.timestamp("end")

    def set_start_timestamp(self, time: float | None = None) -> None:
        """Set `created` to *time* (seconds since 1970), or to now."""
        self._set_timestamp("start", time)

    def set_end_timestamp(self, time: float | None = None) -> None:
        """Set `finished` to *time* (seconds since 1970), or to now."""
        self._set_timestamp("end", time)

    def _set_timestamp(self, which: str, time: float | None) -> None:
        self._ensure_writable()
        self._directory.set_timestamp(which, clock.time() if time is None else time)

    def _tend_mirror(self, *, opening: bool = False) -> None:
        store, identity = self.store, self._index.identity
        with store.lock:
            if not store.tables.exists():
                try:
                    self._directory.check_no_tasks(store.url)
                except DamagedSession:
                    if not store.tables.exists():  # else another process has just made it
                        raise
            # On a server it waits for a flush: others may be writing all the time.
            if store.read_only or (opening and store.tables.concurrent_writers):
                return
            with store.reading() as reader:
                row = Row.read(reader, identity)
            # Who writes at the moment sees to it: nobody who only reads waits for that.
            if not self._mirror.intact(row) and self._is_there() and not store.tables.is_busy():
                # Without the right to write, the session can still be read; whatever writes to it says what is missing.
                with suppress(AccessDenied, ReadOnlyError):
                    self._mirror.mend(store, identity)

    def _is_there(self) -> bool:
        """Return whether the session is still where it was opened, and the same."""
        try:
            return self._directory.store_url()[1] == self._index.identity
        except DamagedSession:
            return False

    def _tidy(self) -> None:
        try:
            self._tidy_mirror()
        finally:
            self._mirror.close()

    def _tidy_mirror(self) -> None:
        store, identity = self.store, self._index.identity
        if not store.tables.exists():
            return
        self._tend_mirror()
        with store.reading() as reader:
            row = Row.read(reader, identity)
        note = None if row is None or row.mirror is None else MirrorNote(*row.mirror)
        if note is not None and note.blank > max(_FULL_OF_BLANKS, note.size // 2) and self._is_there():
            store.write(lambda index_writer, writer: index_writer.rewrite_mirror(identity))

    def check(self, *, references: bool = False) -> Check:
        """Return the findings of a check of all that is on disk, one by one; none if all is right.

        What is not flushed yet isn't looked at.  With *references*, references to records that the
        store doesn't have are findings, too.  See `check_session`.
        """
        from ..upkeep.check import Check  # most programs don't need it

        self._ensure_open()
        return Check(self._directory, self.store.tables, references=references)

    def info(self, *, scan: bool = False, progress: OnProgress = no_progress) -> Information:
        """Return what there is to know of the session and its store, in constant time.

        Args:
            scan: also read all records, to count them by schema and to find the first and last
                of all events.
            progress: called with how many records have been read, and how many there are.
        """
        from .information import information_of

        self._ensure_open()
        return information_of(self._index, self._directory, self._mirror, scan, progress)

    def backup(self, dest: str | os.PathLike[str], *, progress: OnProgress = no_progress) -> BackedUp:
        """Make a copy of the session at *dest*, which is a session itself, and return what it holds.

        It has the same identity, IDs and times.  The batch is written first.  The
        copy is one state of the session, whoever writes to it meanwhile, and is there whole or not
        at all, also after a power cut.

        Args:
            dest: a path where nothing is, or an empty directory.
            progress: called with how much has been done, and how much there is.

        Raise InvalidArgument if something is at *dest*, StoreFull if there is no room.
        """
        from ..snapshots.backup import backup_session

        self._ensure_open()
        if not self.store.read_only:
            self.flush()
        return backup_session(self._index, self._directory, dest, progress)

    def repair(self, dry_run: bool = False) -> Repaired:
        """Repair what is damaged on disk, and return what was done; with *dry_run* only what would be done.

        The batch is written first. If the session can't be opened, or its data file must be replaced,
        use `repair_session`; in the latter case this raises WriteError.
        """
        from ..upkeep.repair import repair_session  # most programs don't need it

        self._ensure_open()
        if not dry_run:
            self.flush()
        return repair_session(self.path, dry_run=dry_run)

    def destroy(self) -> None:
        """Delete the session directory, and the session's tasks from its store.

        A store inside the directory is deleted with it.  The session is closed then.
        """
        self._ensure_writable()
        store = self.store
        with store.lock:
            if store.batch.journal is not None:
                raise InvalidArgument("destroy() inside a transaction: it can't be undone")
            if self._directory.holds(store.url):
                self._directory.delete()
                self._closed = True
                store.indexes.clear()
                store.discard()
            else:
                with self._unit(True):
                    store.stage_removals(map(store.number_of, list(self.ids())))
                try:
                    store.indexes.remove(self._index)
                    store.erase(self._index.identity)
                except BaseException:
                    if self._index not in store.indexes:  # it is still this session's
                        store.indexes.append(self._index)
                    raise
                self._closed = True
                if self._owns_store:
                    store.close()
                self._directory.delete()
            self._mirror.close()

    def _abandon(self) -> None:
        """Close the session, which is elsewhere now, and write nothing."""
        self._closed = True
        self.store.indexes.remove(self._index)
        self._mirror.close()
        if self._owns_store:
            self.store.close()

    def __repr__(self) -> str:
        return f"<Session {self.name!r} at {escaped(self.path)}{' (closed)' if self._closed else ''}>"


class TemporarySession(SessionBase[T]):
    """A session without a directory: its tasks are stored, its index goes when it is closed.

    Args:
        store_or_url: a Store, or the URL or path of one.
        batch_bytes: bytes of memory at which what was done with `flush=False` is written.
        store_options: those of the store, as in `make_store`.

    The tasks stay in the store after `close`; `destroy` deletes them.
    """

    def __init__(
        self,
        store_or_url: Store | str | os.PathLike[str],
        *,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        **store_options: Any,
    ) -> None:
        self.path = None
        self.name = "(temporary)"
        owned = not isinstance(store_or_url, Store)
        if isinstance(store_or_url, Store):
            store = store_or_url
            if store_options:
                raise InvalidArgument(f"{', '.join(store_options)}: a Store that is there takes no options")
        else:
            store = make_store(store_or_url, batch_bytes=batch_bytes, **store_options)
        super().__init__(store, secrets.token_bytes(16), owns_store=owned)

    def _tidy(self) -> None:
        if self.store.tables.exists():
            self.store.erase(self._index.identity)

    def destroy(self) -> None:
        """Delete the session's tasks from the store, and close the session."""
        with self._unit(True):
            self.store.stage_removals(map(self.store.number_of, list(self.ids())))
        self.close()

    def __repr__(self) -> str:
        return f"<TemporarySession in {escaped(self.store.url)}{' (closed)' if self._closed else ''}>"
