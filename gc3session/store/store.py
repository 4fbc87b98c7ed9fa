"""The store: objects kept by their IDs, over any tables of bytes.

What a session's calls change goes into the batch first: objects are encoded, get their IDs and
are seen by this program at once.  A *unit* is a change that is staged whole or not at all; a
commit writes the batch, records and index together, in one transaction.
"""

from __future__ import annotations

import builtins
import copy
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any
from weakref import ref

from ..errors import (
    ConflictError,
    Error,
    InvalidArgument,
    LoadError,
    MirrorWarning,
    UnsavedWarning,
    WriteError,
)
from ..format.frame import RECORD_KEY, schema_number_or_0
from ..index.entries import moved_key
from ..index.index_writer import IndexWriter, Listener
from ..index.membership import Membership
from ..index.states import StateNames
from ..records.batch import REMOVED, Batch
from ..records.codec import layout_of
from ..records.ids import parse_id
from ..records.schemas import Schemas
from ..records.sequence import NumberSequence
from ..records.values import Encoder
from ..system.forks import STORES, Lock, at_fork
from ..system.gc_pause import no_collection
from ..tables.interface import META, RECORDS, SESSIONS, Tables, Writer
from ..tables.urls import make_tables
from ..tasks import Persistable, Stamp, get_stamp, restamp, stamp_of
from ..text import escaped
from .changes import Changes, refuse
from .commit import Commit
from .loader import Loader
from .program_end import expect_workers, finish_at_end
from .reading import PendingCommit
from .staging import StoreStaging

DEFAULT_BATCH_BYTES = 64 << 20

_CHUNK = 512
_MANY = 1000
_key = RECORD_KEY.pack

Committed = tuple[int, int] | None
"""A block of numbers that a commit has taken along: the first, and the one after the last."""


class Store(StoreStaging):
    """Objects kept by their IDs (`ClassName.N`); any number of sessions may share it.

    Args:
        tables: the tables of bytes to keep them in.
        batch_bytes: bytes of memory at which what was done with `flush=False` is written.

    Attributes:
        title (str): what messages call it: a session that has it for itself has its own name here.

    Threads may share a store.  Make one with `make_store`.
    """

    def __init__(self, tables: Tables, *, batch_bytes: int = DEFAULT_BATCH_BYTES) -> None:
        if not isinstance(batch_bytes, int) or batch_bytes < 1:
            raise InvalidArgument(f"batch_bytes must be a positive int, not {batch_bytes!r}")
        self._closed = True  # until it is open
        self.tables = tables
        self.title = f"the store {tables.url}"
        self.batch_bytes = batch_bytes
        self.schemas = Schemas(tables)
        self.states = StateNames()
        self.sequence = NumberSequence(tables)
        self.batch = Batch()
        self.indexes: builtins.list[Membership] = []
        self.changes = Changes(
            self.kept_records,
            lambda stamp: self.is_same(stamp.store),
            lambda number: None if self._closed else self._committed(number),
        )
        self.loader = Loader(self, self.schemas, self.reading, self.record)
        self.lock = threading.RLock()
        self._encoder = Encoder(self._refer)
        self._plain_encoder = Encoder(refuse)
        self._journal: list[tuple[Any, Any, Any]] = []  # for stage_new
        self._pending: builtins.list[Persistable] = []
        self._outdated: builtins.list[tuple[Persistable, bytes]] = []
        self._refers_to_copy = False
        self._identity: bytes | None = None
        self._pending_commit: PendingCommit | None = None
        self._closed = False
        self._pid = os.getpid()
        self._changed_by_parent: frozenset[int] | None = None
        self.transactions = 0
        tables.on_create = self._on_create
        tables.before_create = self._check_sessions
        expect_workers()
        try:
            _stores[id(self)] = self
            if tables.exists():
                with self.reading():
                    pass
        except BaseException:
            self._closed = True
            tables.close()
            raise

    # -- the public operations

    def save(self, obj: Persistable, *, force: bool = False) -> str:
        """Write *obj*, and what it refers to if that is new or changed; return its ID.

        Raise UnstorableValue if it holds what can't be stored, ConflictError if its record has
        changed since it was loaded (unless *force*), StoreFull if there is no room.  If it
        raises, nothing has changed.
        """
        with self.unit(flush=True):
            self.stage(obj, force=force)
            return str(obj.persistent_id)

    def load(self, id_: str) -> Persistable:
        """Return the object stored as *id_*; the same object as before if that is alive.

        Raise NotFound if there is none, CorruptRecord if its record is damaged, LoadError if its
        class can't take it.
        """
        name, number = parse_id(id_) or self._no_id(id_)
        with self.lock:
            record = self.batch.records.get(number)
            if record is None:
                record = self._committed(number)
            if not record:
                if record is None:
                    self._give_up(number)
                raise self._not_found(id_)
            try:
                obj = self.loaded(number, record)
            except LoadError as error:
                raise type(error)(f"{id_} in {self.url}: {error}", id_) from error
            finally:
                built, self.loader.built = self.loader.built, []
            if get_stamp(obj).schema.name != name:
                raise self._not_found(id_)
            if not self.read_only:
                self.changes.hold(built)
            return obj

    def _give_up(self, number: int) -> None:
        """Forget what was changed here in a record that another program has removed: it could never be saved."""
        self.changes.records.pop(number, None)
        living = self.loader.living(number)
        if living is not None:
            self.changes.forget(living, get_stamp(living))

    def _committed(self, number: int) -> bytes | None:
        if self._closed or self._identity is None:
            with self.reading() as reader:
                return reader.get(RECORDS, _key(number))  # type: ignore[no-any-return]
        return self.tables.get(RECORDS, _key(number))

    def replace(self, id_: str, obj: Persistable) -> None:
        """Write *obj* in place of the object stored as *id_*.

        An *obj* without an ID becomes the object of that ID; one with another ID keeps that,
        and is copied.  Raise NotFound if nothing is stored as *id_*.
        """
        with self.unit(flush=True):
            number = self._existing(id_)
            living = self.loader.living(number)
            if living is not obj:
                if self.own_number(obj) not in (None, number):
                    obj = copy.copy(obj)
                if living is not None:
                    self._detach(living)
                self.batch.set_item(self.loader.live, number, ref(obj))
                schema = self.schemas.to_write(obj, layout_of(type(obj)), id_.rpartition(".")[0])
                self.batch.restamp(obj, Stamp(self, number, 0, "", schema, 0, 0, None))
            self.stage(obj, force=True)

    def remove(self, id_: str) -> None:
        """Delete the object stored as *id_* and, of a collection, the tasks in it.

        They leave every session that held them.  Raise NotFound if there is none.
        """
        with self.unit(flush=True):
            self.stage_removals([self._existing(id_)])

    def _existing(self, id_: str) -> int:
        """Return the N of an ID.  Raise NotFound if nothing is stored as that."""
        number = self.number_of(id_)
        with self.reading() as reader:
            if self.record(reader, number) is None or self.name_of(reader, number) != id_.rpartition(".")[0]:
                raise self._not_found(id_)
        return number

    def list(self) -> Iterator[str]:
        """Give the IDs of all objects, in the order in which they were first saved."""
        after = 0
        while True:
            with self.lock, self.reading() as reader:
                items = reader.scan(RECORDS, _key(after + 1), _CHUNK)
                found = [(RECORD_KEY.unpack(key)[0], record) for key, record in items]
                last = found[-1][0] if len(found) == _CHUNK else None
                fresh = [
                    (number, record)
                    for number, record in self.batch.records.items()
                    if number > after and (last is None or number <= last) and number not in self.batch.bases
                ]
                ids = [
                    f"{self.schemas.name(schema_number_or_0(record), reader)}.{number}"
                    for number, record in sorted({**dict(found), **dict(fresh)}.items())
                    if self.batch.records.get(number) != REMOVED
                ]
            yield from ids
            if last is None:
                return
            after = last

    def invalidate_cache(self) -> None:
        """Forget which objects are alive: whatever is loaded next is a new object."""
        with self.lock:
            self.loader.live.clear()

    def pre_fork(self) -> None:
        """Write the batch and close the files; the next use opens them again.

        `os.fork` needs no such call; a fork that Python does not know of does.
        """
        with self.lock:
            self.flush()
            self.tables.suspend()

    def post_fork(self) -> None:
        """Begin afresh in a child that was forked without Python's knowledge; see `pre_fork`."""
        if os.getpid() != self._pid:
            self.after_fork_in_child()

    def flush(self) -> None:
        """Write the batch.  If that fails the batch is kept."""
        with self.lock:
            if self.batch.journal is not None:
                raise InvalidArgument("flush() inside a transaction: it is written as a whole at its end")
            self.commit()

    def refresh(self, obj: Persistable) -> None:
        """Take over the stored state of *obj*; what was changed in it since is given up.

        Raise NotFound if its record was removed: the object then has no ID any more.
        """
        with self.lock:
            number = self.own_number(obj)
            if number is None:
                raise InvalidArgument(f"{obj!r} was never saved: there is nothing to refresh it from")
            is_copy = stamp_of(obj) is None  # of the object here, whose changes are its own
            staged = not is_copy and bool(self.batch.records.get(number)) and not self.batch.is_new(number)
            # A staged record is given up only once the stored one has been taken over.
            with self.unit(flush=False, room=False) if staged else nullcontext():
                if staged:
                    self.batch.unstage(number)
                with self.reading() as reader:
                    record = self.record(reader, number)
                failure: Error | None = None
                if record is None:
                    failure = self._not_found(str(obj.persistent_id))
                    if is_copy:
                        restamp(obj, None)
                    else:
                        self._detach(obj)
                else:
                    try:
                        self.loader.refill(obj, record)
                        if not is_copy:
                            self.changes.objects.pop(id(obj), None)
                            self.changes.records.pop(number, None)
                    except LoadError as error:  # what was staged is given up all the same
                        failure = error
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Write the batch and close the files.  Closing twice does nothing."""
        unsaved = 0
        with self.lock:
            if not self._closed:
                if not self.read_only:
                    self.flush()
                    unsaved = self.unsaved()
                    if self.tables.exists():
                        with suppress(WriteError):  # then they stay unused
                            self.sequence.give_back()
                self._closed = True
            self.tables.close()
        if unsaved:
            warnings.warn(
                f"{self.title} is closed: changes of {_objects(unsaved)} were never saved; call save_all() before",
                UnsavedWarning,
                stacklevel=_levels_to_user(),
            )

    def discard(self) -> None:
        """Close the store without writing the batch: it is about to be deleted."""
        with self.lock:
            self._closed = True
            self.batch = Batch()
            self.tables.discard()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {escaped(self.url)}>"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self.has_batch() and self._pid == os.getpid():
            _dropped.append(self)
            warnings.warn(
                f"{self!r} was dropped without flush() or close(): what was to be written later, of"
                f" {_objects(self._waiting())}, is written at the end of the program",
                UnsavedWarning,
                stacklevel=1,
                source=self,
            )

    def unsaved(self) -> int:
        """Return how many objects have changes that were not saved, as far as these are still known.

        In a forked child it is those that were assigned there: the rest may be its parent's.
        """
        with self.lock:
            if self._changed_by_parent is not None:
                return len(self.changes.numbers() - self._changed_by_parent)
            self.look_at_all()
            return len(self.changes)

    def finish(self) -> builtins.list[str]:
        """Write the batch at the end of the program, but for what can't be written; return lines for people on that."""
        lines: builtins.list[str] = []
        with self.lock:
            if self.read_only or self._closed:
                return lines
            if any(store is self for store in _dropped):
                self.tables.suspend()  # they are taken for gone, and others may have opened the files since
            while self.has_batch() and self.batch.journal is None:
                try:
                    self.flush()
                except ConflictError as error:  # the others are written
                    lines.append(f"{', '.join(error.ids)} can't be written: {error}")
                    for number in map(self.number_of, error.ids):
                        self._give_up_staged(number)
                except Error as error:
                    lines.append(f"what was to be written later, of {_objects(self._waiting())}, is lost: {error}")
                    self.discard()
                    return lines
            for index in self.indexes:
                if index.listener is not None:
                    index.listener.follow(self, index.identity, now=True)
            if unsaved := self.unsaved():
                lines.append(
                    f"changes of {_objects(unsaved)} in {self.url} were never saved: call save_all() or save()"
                )
        return lines

    def _waiting(self) -> int:
        """Return how many objects there is something of in the batch."""
        moves = [number for index in self.indexes for number in (*index.joined, *index.left)]
        return len({*self.batch.records, *moves})

    def _give_up_staged(self, number: int) -> None:
        """Take what can't be written of record N out of the batch: its change, or else that it is added."""
        if number in self.batch.records:
            self.batch.unstage(number)
            return
        for index in self.indexes:
            index.adopted.pop(number, None)
            index.joined.pop(number, None)

    # -- writing

    def commit(self) -> None:
        """Write the batch, records and indexes in one transaction; keep it if that fails."""
        if self.has_batch():
            self.write(lambda index_writer, writer: None)

    def write(
        self,
        more: Callable[[IndexWriter, Writer], object],
        *,
        batch: bool = True,
        numbers: bool = True,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the batch, unless *batch* is False, and what *more* does, in one transaction.

        Unless *numbers* is False a block of numbers for new records is taken along when few are left.  After the
        commit *committed* is called, before anybody is warned of anything.
        """

        def after_commit(block: Committed) -> None:
            self._after_commit(block, batch=batch)
            committed()

        def unit(writer: Writer) -> Committed:
            writer.lock(SESSIONS, [index.identity for index in self.indexes])
            self._check_not_moved(writer)
            index_writer = IndexWriter(writer, self.schemas, self.states)
            if batch:
                Commit(self, writer, index_writer).write()
            more(index_writer, writer)
            index_writer.finish(listeners)
            return self.sequence.take_block(writer) if numbers and self.sequence.low() else None

        self._resolve_commit()
        listeners = {index.identity: index.listener for index in self.indexes if index.listener is not None}
        try:
            if self.tables.concurrent_writers:
                self._check_sessions()
            with no_collection() if len(self.batch.records) >= _MANY else nullcontext():
                self._transact(unit, after_commit)
        finally:
            complaints = self._release_listeners()
        for complaint in complaints:
            if complaint:
                warnings.warn(escaped(complaint), MirrorWarning, stacklevel=2)
        for index in self.indexes:
            if index.listener is not None:
                index.listener.follow(self, index.identity)

    def erase(self, identity: bytes) -> None:
        """Take a session out of the store; its records stay there."""
        self.write(lambda index_writer, writer: Commit(self, writer, index_writer).erase(identity))

    def _transact(self, unit: Callable[[Writer], Committed], committed: Callable[[Committed], None]) -> None:
        try:
            self.tables.write(unit, committed, self._release_listeners)
        except BaseException:  # Ctrl-C while the server is waited for, too
            pending = self.tables.pending_commit
            self._pending_commit = None if pending is None else PendingCommit(pending.went_through, committed)
            raise

    def _resolve_commit(self) -> None:
        """Find out what became of a commit during which the server was lost."""
        pending = self._pending_commit
        if pending is None:
            return
        if pending.went_through():
            pending.committed(None)
        else:
            self.batch.give_up(pending.journal)
        self._pending_commit = None

    def _release_listeners(self) -> builtins.list[str]:
        """Have all mirrors drop what they were to do; return what to warn of."""
        return [listener.release() for listener in self._listeners()]

    def _listeners(self) -> builtins.list[Listener]:
        return [index.listener for index in self.indexes if index.listener is not None]

    def _check_sessions(self) -> None:
        for listener in self._listeners():
            listener.check()

    def _check_not_moved(self, writer: Writer) -> None:
        for _, moved in writer.get_many(META, [moved_key(index.identity) for index in self.indexes]):
            where = moved.decode("ascii", "replace").partition("#")[0]
            raise WriteError(
                f"a session that is open here has moved from {self.url} to {where}; nothing was written. Close"
                " it and open it again"
            )

    def _after_commit(self, block: Committed, *, batch: bool = True) -> None:
        for listener in self._listeners():  # first: if a session isn't there any more, nothing is acknowledged
            listener.write()
        if block is not None:
            self.sequence.use_block(block)
        if batch:
            self.batch.clear()
            for index in self.indexes:
                index.reset()

    # -- fork

    def after_fork_in_child(self) -> None:
        """Begin afresh: the batch and the sequence's block stay the parent's."""
        self._pid = os.getpid()
        self.transactions = 0
        self.lock = threading.RLock()
        self._pending_commit = None
        staged, self.batch = self.batch, Batch()
        for number in staged.records:
            obj = self.loader.living(number)
            stamp = None if obj is None else stamp_of(obj)
            if obj is None or stamp is None or stamp.store is not self:
                continue
            if number in staged.bases:
                revision, state = staged.bases[number]
                restamp(obj, stamp._replace(revision=revision, state=state))
                self.note_changed(obj)
            else:
                self.changes.objects.pop(id(obj), None)
                restamp(obj, None)
                self.loader.live.pop(number)
        self._changed_by_parent = frozenset(self.changes.numbers())
        self.sequence.reset()
        for index in self.indexes:
            index.reset()


_stores: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()


def _all_stores() -> list[Store]:
    # Other threads may make stores meanwhile: `valuerefs` is a copy made at once.
    return [store for ref_ in _stores.valuerefs() if (store := ref_()) is not None]


def _locks() -> list[Lock]:
    return [store.lock for store in _all_stores()]


def _after_in_child() -> None:
    _dropped.clear()  # they are the parent's
    for store in _all_stores():
        store.after_fork_in_child()


def _levels_to_user() -> int:
    """Return the `stacklevel` with which the caller warns of what the user's code has called, also by `with`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("gc3session."):
        level, frame = level + 1, frame.f_back
    return level


def _objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}"


_dropped: list[Store] = []  # which nobody has any more, and which have something to write

finish_at_end(lambda: [*_all_stores(), *_dropped])
at_fork(STORES, _after_in_child, locks=_locks, before=expect_workers)


# -- where stores are made -----------------------------------------------------


def make_store(
    url: str | os.PathLike[str],
    *,
    read_only: bool = False,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    **options: Any,
) -> Store:
    """Return the store at *url*; it is made by the first write.

    Args:
        url: `lmdb:///absolute/path`, `lmdb:relative/path`, or a path alone.
        read_only: never write.
        batch_bytes: bytes of memory at which what was done with `flush=False` is written.
        options: those of the kind of store, for LMDB `map_size` (bytes) and
            `allow_network_filesystem`.

    Raise InvalidArgument for an unknown scheme or option, OpenError if it can't be opened.
    """
    return Store(make_tables(url, read_only=read_only, **options), batch_bytes=batch_bytes)
