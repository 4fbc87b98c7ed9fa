"""The store: objects kept by their IDs, over any tables of bytes.

What a session's calls change goes into the batch first: objects are encoded, get their IDs and
are seen by this program at once.  A *unit* is a change that is staged whole or not at all; a
commit writes the batch, records and index together, in one transaction.
"""

from __future__ import annotations

import builtins
import gc
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote
from weakref import ref
from zlib import crc32

import msgpack

from .batch import NO_SLOTS, REMOVED, STAGED_BYTES, Batch
from .codec import (
    COLLECTION,
    PERSISTABLE,
    layout_of,
    parse_id,
    read_header,
    references,
    revision_of,
    schema_number,
    seal,
    values_of,
)
from .errors import (
    ClosedError,
    ConflictError,
    CorruptRecord,
    InvalidArgument,
    LoadError,
    NotFound,
    ReadOnlyError,
    UnknownFormat,
    UnstorableValue,
)
from .index import Index
from .ledger import Ledger
from .loader import Loader
from .schemas import Schemas
from .sequence import NEXT_KEY, NumberSequence
from .tables import META, RECORDS, Reader, Tables, Writer
from .tasks import Persistable, Unreadable
from .values import RECORD_KEY, UNPACKABLE, Encoder, holds_bytearray, may_hold_bytes

if TYPE_CHECKING:
    from .entries import Entry

FORMAT = 1
"""The version of the format of records and tables."""

DEFAULT_BATCH_BYTES = 64 << 20

_FORMAT_KEY, _STORE_KEY = b"format", b"store"
_CHUNK = 512
_MANY = 1000
_key = RECORD_KEY.pack


class Store:
    """Objects kept by their IDs (`ClassName.N`); any number of sessions may share it.

    Args:
        tables: the tables of bytes to keep them in.
        batch_bytes: bytes of memory at which what was done with `flush=False` is written.

    Threads may share a store.  Make one with `make_store`.
    """

    def __init__(self, tables: Tables, *, batch_bytes: int = DEFAULT_BATCH_BYTES) -> None:
        if not isinstance(batch_bytes, int) or batch_bytes < 1:
            raise InvalidArgument(f"batch_bytes must be a positive int, not {batch_bytes!r}")
        self.tables = tables
        self.batch_bytes = batch_bytes
        self.schemas = Schemas(tables)
        self.sequence = NumberSequence(tables)
        self.batch = Batch()
        self.indexes: builtins.list[Index] = []
        self.changed: dict[int, Persistable] = {}
        self.loader = Loader(self, self.reading, self.record)
        self.lock = threading.RLock()
        self._encoder = Encoder(self._refer)
        self._journal: list[tuple[Any, Any, Any]] = []  # for stage_new
        self._pending: builtins.list[Persistable] = []
        self._identity: bytes | None = None
        self._closed = False
        self._pid = os.getpid()
        tables.on_create = self._on_create
        if tables.exists():
            with self.reading():
                pass
        _stores.add(self)

    @property
    def url(self) -> str:
        """Where the store is, as `make_store` takes it."""
        return self.tables.url

    @property
    def read_only(self) -> bool:
        """Whether the store was opened so that it is never written."""
        return self.tables.read_only

    @property
    def identity(self) -> bytes | None:
        """16 bytes that were drawn when the store was made; None before that."""
        if self._identity is None:
            with self.reading():
                pass
        return self._identity

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
                raise self._not_found(id_)
            try:
                obj = self.loader.load(number, record)
            except LoadError as error:
                raise type(error)(f"{id_} in {self.url}: {error}", id_) from error
            if obj._schema.name != name:  # type: ignore[union-attr]
                raise self._not_found(id_)
            return obj

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
        number = self.number_of(id_)
        with self.unit(flush=True):
            with self.reading() as reader:
                record = self.record(reader, number)
                if record is None or self.name_of(reader, number) != id_.rpartition(".")[0]:
                    raise self._not_found(id_)
                base, state = self._base_of(reader, number)
            living = self.loader.living(number)
            if self.own_number(obj) not in (None, number):
                copy = type(obj).__new__(type(obj))
                copy.__setstate__(obj.__getstate__())
                obj = copy
            elif living is not obj:
                if living is not None:
                    self._detach(living)
                self.batch.set_item(self.loader.live, number, ref(obj))
            name = id_.rpartition(".")[0]
            schema = self.schemas.to_write(obj, layout_of(type(obj)), name)
            self.batch.set_slots(obj, (self, number, base, state, schema, True))
            self.stage(obj)

    def remove(self, id_: str) -> None:
        """Delete the object stored as *id_* and, of a collection, the tasks in it.

        They leave every session that held them.  Raise NotFound if there is none.
        """
        number = self.number_of(id_)
        with self.unit(flush=True):
            with self.reading() as reader:
                if self.record(reader, number) is None or self.name_of(reader, number) != id_.rpartition(".")[0]:
                    raise self._not_found(id_)
            self.stage_removal(number)

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
                    f"{self.schemas.name(_schema_number(record), reader)}.{number}"
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

        Raise NotFound if its record was removed.
        """
        with self.unit(flush=False):
            number = self.own_number(obj)
            if number is None:
                raise InvalidArgument(f"{obj!r} was never saved: there is nothing to refresh it from")
            if self.batch.records.get(number) and not self.batch.is_new(number):
                self.batch.unstage(number)
            with self.reading() as reader:
                record = self.record(reader, number)
            if record is None:
                raise self._not_found(str(obj.persistent_id))
            self.loader.refill(obj, record)
            self.changed.pop(number, None)

    def close(self) -> None:
        """Write the batch and close the files.  Closing twice does nothing."""
        with self.lock:
            if self._closed:
                return
            if not self.read_only:
                self.flush()
                if self.tables.exists():
                    self.sequence.give_back()
            self._closed = True
            self.tables.close()

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
        return f"<Store {self.url}>"

    # -- reading

    def reading(self) -> Any:
        """Return the newest committed state, for `with`.  Raise UnknownFormat if it isn't ours."""
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed; open it again")
        if self._identity is None and self.tables.exists():
            with self.tables.read() as reader:
                self._check_format(reader)
        return self.tables.read()

    def _check_format(self, reader: Reader) -> None:
        data = reader.get(META, _FORMAT_KEY)
        if data != msgpack.packb(FORMAT):
            raise UnknownFormat(
                f"the store {self.url} has the format version {_shown(data)}; this version of gc3session"
                f" knows version {FORMAT} only: upgrade gc3session"
            )
        self._identity = reader.get(META, _STORE_KEY)

    def _on_create(self, writer: Writer) -> None:
        items = [(_FORMAT_KEY, msgpack.packb(FORMAT)), (_STORE_KEY, uuid.uuid4().bytes), (NEXT_KEY, _key(1))]
        writer.put(META, items)

    def record(self, reader: Reader, number: int) -> bytes | None:
        """Return the record of N as this program sees it, or None."""
        record = self.batch.records.get(number)
        return reader.get(RECORDS, _key(number)) if record is None else record or None

    def name_of(self, reader: Reader, number: int) -> str:
        """Return what the ID of record N begins with."""
        record = self.record(reader, number)
        return "" if record is None else self.schemas.name(_schema_number(record), reader)

    def schema_number_of(self, reader: Reader, number: int) -> int:
        """Return the schema number of record N; 0 if it can't be told."""
        record = self.batch.records.get(number) or reader.get(RECORDS, _key(number))
        return 0 if record is None else _schema_number(record)

    def state_of(self, reader: Reader, number: int) -> str | None:
        """Return the state of record N as this program sees it; None if it can't be told."""
        state = self.batch.states.get(number)
        return self.committed_state(reader, number) if state is None else state

    def committed_state(self, reader: Reader, number: int) -> str | None:
        """Return the state in the committed record N; None if it can't be told."""
        record = reader.get(RECORDS, _key(number))
        if record is None:
            return None
        try:
            schema_number_, _, values = values_of(number, record)
            schema = self.schemas.get(schema_number_, reader)
            return "" if schema.kind == PERSISTABLE else str(values[schema.fields.index("state")])
        except (CorruptRecord, LookupError, ValueError):
            return None

    def records(self, reader: Reader, entries: builtins.list[Entry]) -> builtins.list[bytes | None]:
        """Return the records of some entries, None for each that is gone."""
        keys = [_key(number) for _, number, _ in entries]
        items = reader.get_many(RECORDS, keys)
        found: builtins.list[bytes | None]
        if len(items) == len(keys):
            found = [record for _, record in items]
        else:
            by_key = dict(items)
            found = [by_key.get(key) for key in keys]
        if self.batch.records:
            staged = [self.batch.records.get(number) for _, number, _ in entries]
            found = [a if b is None else b or None for a, b in zip(found, staged, strict=True)]
        return found

    def objects(
        self, entries: builtins.list[Entry], records: builtins.list[bytes | None]
    ) -> builtins.list[Persistable | LoadError]:
        """Return the objects of some entries, in their order.

        A LoadError stands in the place of one that can't be loaded; one whose record is gone is
        left out.  No transaction may be open: a class's `upgrade_record` is the user's code.
        """
        loaded: builtins.list[Persistable | LoadError] = []
        quick = self.loader.quick
        for (_, number, schema), record in zip(entries, records, strict=True):
            if record is not None:
                obj = quick(number, record)
                loaded.append(self._object(number, schema, record) if obj is None else obj)
        return loaded

    def _object(self, number: int, schema: int, record: bytes) -> Persistable | LoadError:
        try:
            return self.loader.load(number, record)
        except LoadError as error:
            with self.reading() as reader:
                id_ = f"{self.schemas.name(schema, reader)}.{number}"
            failure = type(error)(f"{id_} in {self.url}: {error}", id_)
            failure.__cause__ = error
            return failure

    # -- IDs

    @staticmethod
    def number_of(id_: str) -> int:
        """Return the N of an ID.  Raise NotFound if it can't be one."""
        return (parse_id(id_) or Store._no_id(id_))[1]

    @staticmethod
    def _no_id(id_: object) -> NoReturn:
        raise NotFound(f"{id_!r} is not an ID: they are of the form ClassName.N")

    def _not_found(self, id_: str) -> NotFound:
        return NotFound(f"there is no object {id_} in {self.url}; Store.list() gives the IDs of all", id_)

    def own_number(self, obj: Persistable) -> int | None:
        """Return the N of *obj* in this store, or None if it has no ID yet.

        Raise InvalidArgument if it isn't a persistable, or belongs to another store.
        """
        if not isinstance(obj, Persistable):
            raise InvalidArgument(
                f"only objects of attrs classes derived from Persistable or Task can be stored, not {obj!r}"
            )
        if obj._store is None:
            return None
        if obj._store is not self and (self.identity is None or obj._store.identity != self.identity):
            raise InvalidArgument(
                f"{obj!r} belongs to the store {obj._store.url}; store a copy of it here (copy.copy)"
            )
        return obj._number

    # -- staging

    @contextmanager
    def unit(self, *, flush: bool) -> Iterator[None]:
        """`with` this, what is staged is staged whole or not at all, and written if *flush*.

        Inside a transaction it is written at the end of that.
        """
        with self.lock:
            self.ensure_writable()
            batch = self.batch
            outermost = batch.journal is None
            if outermost:
                self.make_room()
                batch.journal = []
            mark = len(batch.journal or ())
            try:
                yield
                if flush and outermost:
                    self.commit()
            except BaseException:
                batch.undo(mark)
                for index in self.indexes:
                    index.undone()
                raise
            finally:
                if outermost:
                    batch.journal = None

    def ensure_writable(self) -> None:
        """Raise ReadOnlyError or ClosedError if the store can't be written."""
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed; open it again")
        if self.tables.read_only:
            raise ReadOnlyError(f"{self.url} was opened read-only; open it without read_only=True to change it")

    def make_room(self) -> None:
        """Write the batch if it is full."""
        if self.batch.bytes >= self.batch_bytes:
            self.commit()

    def stage(self, obj: Persistable, *, force: bool = False) -> int:
        """Encode *obj*, and what it refers to that is new or changed, into the batch; return its N.

        To be called in a unit.
        """
        number = self.own_number(obj)
        if isinstance(obj, Unreadable):
            raise InvalidArgument(f"{obj!r} stands for a record that can't be read; it can't be saved")
        if number is None:
            number = self._assign(obj)
        base = None
        if force:
            with self.reading() as reader:
                base = self._base_of(reader, number)
        pending = self._pending
        pending.clear()
        done = {number}
        self._stage_one(obj, number, base)
        while pending:
            other = pending.pop()
            if other._number not in done:
                done.add(other._number)
                self._stage_one(other, other._number, None)
        return number

    def _base_of(self, reader: Reader, number: int) -> tuple[int, str]:
        """Return revision and state of the committed record N; 0 if there is none."""
        record = reader.get(RECORDS, _key(number))
        if record is None:
            return 0, ""
        try:
            return read_header(record)[1], self.committed_state(reader, number) or ""
        except CorruptRecord:
            return 0, ""

    def _assign(self, obj: Persistable) -> int:
        """Give *obj*, which is new, its N."""
        former = obj._schema
        layout = layout_of(type(obj))
        name = former.name if former is not None and layout.generic else layout.name
        schema = self.schemas.to_write(obj, layout, name)
        number = self.sequence.next()
        self.batch.set_slots(obj, (self, number, 0, "", schema, True))
        self.loader.note(number, obj)
        return number

    def _refer(self, obj: Persistable) -> int:
        """Return the N for a reference to *obj*; called while its holder is encoded."""
        number = self.own_number(obj)
        if number is None:
            number = self._assign(obj)
            self._pending.append(obj)
        elif obj.changed:
            self._pending.append(obj)
        return number

    def _stage_one(self, obj: Persistable, number: int, base: tuple[int, str] | None) -> None:
        assert obj._schema is not None
        batch = self.batch
        layout = layout_of(type(obj))
        schema = self.schemas.to_write(obj, layout, obj._schema.name)
        names = layout.fields
        try:
            values = layout.values(obj)
        except AttributeError as error:
            raise UnstorableValue(
                f"{type(obj).__qualname__}: a field isn't set ({error}); nothing was written"
            ) from error
        if schema.fields != names:
            fields = {**(obj._leftover or {}), **dict(zip(names, values, strict=True))}
            names = schema.fields
            values = [fields[name] for name in names]
        if base is None:  # unless forced
            if number not in batch.records:
                base = obj._revision, obj._stored_state
            else:
                base = batch.bases.get(number, (0, ""))
        revision = base[0] + 1
        body = self._encoder.pack(
            [schema.number, revision, values],
            lambda: ((f"{type(obj).__qualname__}.{name}", v) for name, v in zip(names, values, strict=True)),
        )
        state = "" if layout.kind == PERSISTABLE else obj.state  # type: ignore[attr-defined]
        batch.stage(number, seal(number, body), state, base if base[0] else None)
        batch.set_slots(obj, (obj._store, number, revision, state, schema, False))
        batch.set_item(self.changed, number, None)

    def stage_new(self, objs: Sequence[Persistable], index: Index) -> int:
        """Encode new objects and add them to *index*: the short way, for very many.

        Return how many; it stops before one that takes the long way (`stage`): it is not new,
        refers to other objects, brings fields of a former class along, or can't be stored; and
        where the batch is full.  Not to be called in a unit.
        """
        batch, live, joined = self.batch, self.loader.live, index.joined
        records, states = batch.records, batch.states
        sequence, pack = self.sequence, self._encoder.packer.pack
        pending = self._pending  # saved objects that are changed, and referred to
        pending.clear()
        room = self.batch_bytes - batch.bytes
        batch.journal = journal = self._journal
        cls: type | None = None
        done = 0
        try:
            for obj in objs:
                if type(obj) is not cls:
                    if not isinstance(obj, Persistable):
                        break
                    cls = type(obj)
                    layout = layout_of(cls)
                    schema = self.schemas.of_class(layout)
                    number_of_schema, values, stored = schema.number, layout.values, layout.stored
                    has_state = layout.kind != PERSISTABLE
                if obj._schema is not None or room <= 0:
                    break
                number = next(sequence.numbers, 0) or sequence.next()
                try:
                    parts = values(obj)
                    body = pack([number_of_schema, 1, parts])
                except (AttributeError, *UNPACKABLE):
                    body = b""
                if not body or journal or pending or (may_hold_bytes(body) and holds_bytearray(parts)):
                    batch.undo(0)
                    pending.clear()
                    break
                records[number] = crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") + body
                states[number] = state = obj.state if has_state else ""  # type: ignore[attr-defined]
                joined[number] = number
                stored(obj, self, number, state, schema)
                live[number] = ref(obj)
                room -= STAGED_BYTES + len(body)
                done += 1
        finally:
            batch.journal = None
            journal.clear()
            batch.bytes = self.batch_bytes - room
            if len(live) > self.loader.limit:
                self.loader.sweep()
        return done

    def stage_removal(self, number: int) -> None:
        """Take record N, and those in its `tasks`, out of the store and of every index.  In a unit."""
        with self.reading() as reader:
            for n in self._with_parts(reader, number):
                if self.batch.is_new(n):
                    self.batch.unstage(n)
                else:
                    self.batch.stage(n, REMOVED, "", (0, ""))
                for index in self.indexes:
                    order = index.order_of(reader, n)
                    if order is not None:
                        index.leave(self.batch.set_item, order, n)
                obj = self.loader.living(n)
                if obj is not None:
                    self._detach(obj)
                self.batch.set_item(self.changed, n, None)

    def _with_parts(self, reader: Reader, number: int) -> builtins.list[int]:
        """Return N and the Ns of the records in its `tasks`, of all depths."""
        found: dict[int, None] = {}
        pending = [number]
        while pending:
            n = pending.pop()
            record = None if n in found else self.record(reader, n)
            if record is None:
                continue
            found[n] = None
            try:
                schema_number_, _, values = values_of(n, record)
                schema = self.schemas.get(schema_number_, reader)
                if schema.kind == COLLECTION:
                    pending += references(values[schema.fields.index("tasks")])
            except (CorruptRecord, LookupError, ValueError):
                continue  # a damaged record is removed, too; its parts can't be known
        return list(found)

    def _detach(self, obj: Persistable) -> None:
        """Make *obj* an object without an ID: its record is gone."""
        hash(obj)  # it keeps that
        self.batch.set_item(self.loader.live, obj._number, None)
        self.batch.set_slots(obj, NO_SLOTS)

    def note_changed(self, obj: Persistable) -> None:
        """Keep a saved object alive while it has unsaved changes."""
        if obj.changed:
            self.changed[obj._number] = obj
        else:
            self.changed.pop(obj._number, None)

    # -- writing

    def commit(self) -> None:
        """Write the batch, records and indexes in one transaction; keep it if that fails."""
        if not self.batch.records and not any(index.joined or index.left for index in self.indexes):
            return
        self.write(lambda ledger, writer: None)

    def write(self, more: Callable[[Ledger, Writer], None]) -> None:
        """Write the batch, and what *more* does, in one transaction."""

        def unit(writer: Writer) -> tuple[int, int] | None:
            ledger = Ledger(self, writer)
            self._write_batch(ledger, writer)
            more(ledger, writer)
            ledger.finish(self.indexes)
            return self.sequence.reserve(writer) if self.sequence.low() else None

        try:
            if len(self.batch.records) < _MANY:
                self.tables.write(unit, self._after_commit)
            else:
                with _no_collection():
                    self.tables.write(unit, self._after_commit)
        finally:
            for index in self.indexes:
                if index.listener is not None:
                    index.listener.release()

    def _after_commit(self, block: tuple[int, int] | None) -> None:
        if block is not None:
            self.sequence.took(block)
        self.batch.clear()
        for index in self.indexes:
            index.reset()
            if index.listener is not None:
                index.listener.apply()

    def _write_batch(self, ledger: Ledger, writer: Writer) -> None:
        records, states = self.batch.records, self.batch.states
        updates = sorted(self.batch.updates())
        if updates:
            self._check_conflicts(writer, updates)
        removed = sorted(self.batch.removals())
        for number, holding in ledger.holdings(removed) if removed else ():
            ledger.leave(holding, number, self.committed_state(writer, number))
        writer.delete(RECORDS, map(_key, removed))
        for index in self.indexes:
            index.write(ledger, writer)
        moves: dict[tuple[str, str], builtins.list[int]] = {}
        for number in updates:
            before, after = self.batch.bases[number][1], states[number]
            if before != after:
                moves.setdefault((before, after), []).append(number)
        if moves:
            ledger.move(moves)
        writer.put(RECORDS, [(_key(number), records[number]) for number in sorted(records) if records[number]])

    def _check_conflicts(self, writer: Writer, updates: builtins.list[int]) -> None:
        """Raise ConflictError if a stored record isn't of the revision that the batch expects."""
        bases, records = self.batch.bases, self.batch.records
        conflicts: list[str] = []
        for i in range(0, len(updates), _CHUNK):
            numbers = updates[i : i + _CHUNK]
            found = dict(writer.get_many(RECORDS, list(map(_key, numbers))))
            for number in numbers:
                record = found.get(_key(number))
                if record is None or revision_of(record) != bases[number][0]:
                    conflicts.append(f"{self.schemas.name(_schema_number(records[number]), writer)}.{number}")
        if conflicts:
            shown = ", ".join(conflicts[:3]) + (f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else "")
            raise ConflictError(
                f"{shown} changed or removed in {self.url} since loaded here; nothing was written. refresh()"
                " takes over the stored state, save(force=True) overwrites it",
                tuple(conflicts),
            )

    def stage_changed(self) -> None:
        """Encode all objects with unsaved changes into the batch.  To be called in a unit."""
        with _no_collection():
            for obj in list(self.changed.values()):
                if obj.changed:
                    self.stage(obj)

    # -- fork

    def after_fork_in_child(self) -> None:
        """Begin afresh: the batch and the sequence's block stay the parent's."""
        self._pid = os.getpid()
        self.lock = threading.RLock()
        self.batch = Batch()
        self.sequence.reset()
        for index in self.indexes:
            index.reset()
            if index.listener is not None:
                index.listener.forked()


def _shown(version: bytes | None) -> str:
    try:
        return str(msgpack.unpackb(version or b""))
    except (ValueError, msgpack.UnpackException):
        return repr(version)


def _schema_number(record: bytes) -> int:
    try:
        return schema_number(record)
    except CorruptRecord:
        return 0


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the collection of cycles while work is done that makes many objects, but no cycles.

    It would look through all that the program has for every quarter that there is more: half of
    the time of saving 100,000 tasks.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _before_fork() -> None:
    for store in list(_stores):
        store.lock.acquire()


def _after_in_parent() -> None:
    for store in list(_stores):
        store.lock.release()


def _after_in_child() -> None:
    for store in list(_stores):
        store.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


# -- where stores are made -----------------------------------------------------

_constructors: dict[str, Callable[..., Tables]] = {}


def register(scheme: str, constructor: Callable[..., Tables]) -> None:
    """Have `make_store` use *constructor* for URLs that begin with *scheme* and a colon.

    It is called with the URL, and `read_only` and the store's own options as keyword arguments;
    it returns the tables (tables.Tables).
    """
    if not isinstance(scheme, str) or not scheme.replace("+", "").isalnum():
        raise InvalidArgument(f"the scheme of a URL must be letters and digits, not {scheme!r}")
    _constructors[scheme] = constructor


def full_url(url: str | os.PathLike[str]) -> str:
    """Return the URL of a store for what `make_store` takes: a path alone is one of LMDB."""
    text = os.fspath(url)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"a store's URL must be a non-empty str or path, not {url!r}")
    scheme, colon, _ = text.partition(":")
    if isinstance(url, str) and colon and "/" not in scheme:
        return text
    return f"lmdb://{quote(os.path.abspath(text))}"


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
    text = full_url(url)
    scheme = text.partition(":")[0]
    constructor = _constructors.get(scheme)
    if constructor is None:
        raise InvalidArgument(
            f"{text!r}: no store is registered for the scheme {scheme!r}; known are {', '.join(sorted(_constructors))}"
        )
    try:
        tables = constructor(text, read_only=read_only, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise InvalidArgument(f"{scheme} stores: {error}") from error
    return Store(tables, batch_bytes=batch_bytes)
