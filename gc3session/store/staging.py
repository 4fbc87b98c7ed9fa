"""How a store stages changes: objects are encoded into the batch, whole units at a time."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from typing import Any, Final
from weakref import ref
from zlib import crc32

from ..errors import (
    ClosedError,
    ConflictError,
    CorruptRecord,
    Error,
    InvalidArgument,
    ReadOnlyError,
    UnstorableValue,
)
from ..format.frame import RECORD_KEY, checksum_of, head, header_of, revision_of, seal, values_of, with_home
from ..format.schema import PERSISTABLE, Schema
from ..index.entries import Kind
from ..index.index_writer import IndexWriter
from ..index.membership import Membership
from ..records.batch import REMOVED, STAGED_BYTES, Journal
from ..records.codec import extras_of, layout_of
from ..records.sequence import NumberSequence
from ..records.values import UNPACKABLE, Encoder, holds_bytearray, may_hold_bytes, references
from ..system.gc_pause import no_collection
from ..tables.interface import META, RECORDS, Reader, Writer
from ..tasks import Origin, Persistable, Stamp, Task, Unreadable, get_stamp, mark_of, restamp, set_stamp, stamp_of
from .changes import ChangedRecord, NewReference, refuse
from .commit import RECORDS_KEY
from .reading import StoreReading

_key = RECORD_KEY.pack

REMOVED_AT_ONCE: Final = 4096
"""Records that are looked for in one transaction when many are removed."""


class StoreStaging(StoreReading):
    """The staging half of a store.

    Attributes:
        batch_bytes: bytes of memory at which the batch is written.
        sequence: of the Ns.
    """

    batch_bytes: int
    sequence: NumberSequence
    _encoder: Encoder
    _plain_encoder: Encoder
    """Packs what holds no references."""
    _owner: Any
    """The asyncio task that has begun the outermost unit; None if it was none."""
    _journal: list[tuple[Any, Any, Any]]
    _pending: list[Persistable]
    _outdated: list[tuple[Persistable, bytes]]
    """Objects whose values a copy, or a reference to a copy, has changed; and the records with the right ones."""
    _refers_to_copy: bool

    transactions: int
    """How many `transaction()` are open, one inside the other."""

    @abstractmethod
    def commit(self) -> None:
        """Write the batch."""

    @abstractmethod
    def write(
        self,
        more: Callable[[IndexWriter, Writer], object],
        *,
        batch: bool = True,
        numbers: bool = True,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the batch and what *more* does in one transaction; see `Store.write`."""

    @abstractmethod
    def flush(self) -> None:
        """Write the batch.  If that fails the batch is kept."""

    @contextmanager
    def unit(self, *, flush: bool, room: bool = True, journal: Journal | None = None) -> Iterator[None]:
        """`with` this, what is staged is staged whole or not at all, and written if *flush*.

        Inside a transaction it is written at the end of that.  A full batch is written first, unless *room* is False.
        What undoes it is added to a *journal*.
        """
        with self.lock:
            self.ensure_writable()
            batch = self.batch
            outermost = batch.journal is None
            if outermost:
                self._owner = asyncio_task()
            elif self._owner not in (None, asyncio_task()):
                raise InvalidArgument(
                    "another asyncio task of this thread is inside a transaction of this session, and only that one"
                    " can write until it ends: have no `await` in the transaction, or a lock around it"
                )
            if outermost and room:
                self.make_room()
            mark, size = len(batch.journal or ()), batch.bytes
            try:
                if outermost:
                    batch.journal = []
                yield
                if flush and outermost:
                    self.commit()
                if journal is not None and batch.journal is not None:
                    journal += batch.journal[mark:]
            except BaseException:
                if self._pending_commit is None:
                    batch.undo(mark)
                    batch.bytes = min(size, batch.bytes)
                elif batch.journal is not None:  # it may be on disk
                    self._pending_commit = self._pending_commit._replace(journal=batch.journal)
                raise
            finally:
                if outermost:
                    batch.journal = None

    def home_in(self, index: Membership) -> int:
        """Return the number of a session, which gets one, in a transaction of its own, if it has none."""
        if index.known_number:
            return index.known_number
        with self.reading() as reader:
            number = index.number(reader)
        if not number:
            self.write(lambda index_writer, writer: index_writer.row(index.identity), batch=False)
            with self.reading() as reader:
                number = index.number(reader)
        return number

    def ensure_writable(self) -> None:
        """Raise ReadOnlyError or ClosedError if the store can't be written."""
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed; open it again")
        if self._pending_commit is not None:
            self._resolve_commit()
        if self.tables.read_only:
            raise ReadOnlyError(f"{self.url} was opened read-only; open it without read_only=True to change it")

    def make_room(self) -> None:
        """Write the batch if it is full."""
        if self.batch.bytes >= self.batch_bytes:
            self.commit()

    def stage(self, obj: Persistable, *, force: bool = False, home: int = 0) -> int:
        """Encode *obj*, and what it refers to that is new or changed, into the batch; return its N.

        To be called in a unit.  A new *obj* is to be in the session *home*, if that isn't 0.
        """
        if isinstance(obj, Unreadable):
            raise InvalidArgument(f"{obj!r} stands for a record that can't be read; it can't be saved")
        number = self._numbered(obj, home)
        pending = self._pending
        pending.clear()
        self._outdated.clear()
        done = {number}
        self._stage_one(obj, number, force=force)
        while pending:
            other = pending.pop()
            number_of_other = get_stamp(other).number
            if number_of_other not in done:
                done.add(number_of_other)
                self._stage_one(other, number_of_other, force=False)
        for changed, record in self._outdated:
            self.batch.keep_fields(changed)
            self.loader.refill(changed, record)
        return number

    def _numbered(self, obj: Persistable, home: int = 0) -> int:
        """Return the N of *obj*, which gets one if it is new.  A copy that came through pickle keeps that of its record."""
        number = self.own_number(obj)
        if number is not None:
            return number
        if mark_of(obj) is not None:
            self.batch.restamp(obj, None)  # a copy of another store's record is a new object here
        return self._assign(obj, home)

    def _base(self, obj: Persistable, stamp: Stamp | Origin) -> tuple[int, str] | None:
        """Return the revision of its record that *obj* was read from, and its state; None for a new one.

        Raise ConflictError if the batch holds another one, of another object.
        """
        record = self.batch.records.get(stamp.number)
        if record is None:
            return (stamp.revision, stamp.state) if stamp.revision else None
        if revision_of(record) != stamp.revision:
            raise _saved_elsewhere(str(obj.persistent_id))
        return self.batch.bases.get(stamp.number)

    def _committed_base(self, stamp: Stamp | Origin) -> tuple[int, str] | None:
        """Return revision and state of the committed record N, which is to be overwritten."""
        with self.reading() as reader:
            record = reader.get(RECORDS, _key(stamp.number))
            if record is None:
                return None
            state = self.committed_state(reader, stamp.number)
        return revision_of(record), stamp.state if state is None else state

    def _assign(self, obj: Persistable, home: int) -> int:
        """Give *obj*, which is new, its N."""
        layout = layout_of(type(obj))
        former, _ = extras_of(obj)
        schema = self.schemas.to_write(obj, layout, layout.name if former is None else former.name)
        number = self.sequence.next()
        self.batch.restamp(obj, Stamp(self, number, 0, "", schema, home, 0, None))
        self.batch.set_item(self.loader.live, number, ref(obj))
        return number

    def _refer(self, obj: Persistable) -> int:
        """Return the N for a reference to *obj*; called while its holder is encoded."""
        new = stamp_of(obj) is None
        number = self._numbered(obj)
        if new or id(obj) in self.changes.objects:
            self._pending.append(obj)
        if new and self.loader.living(number) is not obj:
            self._refers_to_copy = True
        return number

    def _encoded(
        self, obj: Persistable, stamp: Stamp | Origin, revision: int, encoder: Encoder
    ) -> tuple[Schema, bytes, str]:
        """Return the schema, the record and the state that *obj* is to be stored with."""
        layout = layout_of(type(obj))
        schema = self.schemas.of_class(layout)
        if stamp.schema is not schema or stamp.leftover:
            schema = self.schemas.to_write(obj, layout, stamp.schema.name)
        names, values = layout.fields, layout.checked_values(obj)
        if schema.fields != names:
            fields = {**dict(zip(names, values, strict=True)), **extras_of(obj)[1]}
            names = schema.fields
            values = [fields[name] for name in names]
        body = encoder.pack(
            values,
            lambda: ((f"{type(obj).__qualname__}.{name}", v) for name, v in zip(names, values, strict=True)),
        )
        record = seal(
            stamp.number, head(schema.number, revision, stamp.home if type(stamp) is Stamp else 0) + body
        )
        return schema, record, obj.state if isinstance(obj, Task) else ""

    def _stage_one(self, obj: Persistable, number: int, *, force: bool) -> None:
        stamp: Stamp | Origin = get_stamp(obj)
        staged = self.batch.records.get(number)
        if staged and type(stamp) is Stamp:  # it may have left its session since
            stamp = stamp._replace(home=header_of(staged).home)
        original = self._original(obj, stamp, force=force) if type(stamp) is Origin else None
        base = self._committed_base(stamp) if force else self._base(obj, stamp)
        # Before its fields are read: a change by another thread from now on is a new one.
        self.batch.set_item(self.changes.objects, id(obj), None)
        self.batch.set_item(self.changes.records, number, None)
        # More than any that there was, even if the record has been removed meanwhile.
        revision = max(stamp.revision, base[0] if base else 0) + 1
        self._refers_to_copy = original is not None
        schema, record, state = self._encoded(obj, stamp, revision, self._encoder)
        self.batch.stage(number, record, state, base)
        leftover, home = stamp.leftover, stamp.home if type(stamp) is Stamp else 0
        if original is not None:
            self.batch.restamp(obj, stamp._replace(revision=revision, state=state, schema=schema))
            obj = original
        elif type(stamp) is Origin:
            self.batch.set_item(self.loader.live, number, ref(obj))
        self.batch.restamp(obj, Stamp(self, number, revision, state, schema, home, 0, leftover))
        if self._refers_to_copy:
            self._outdated.append((obj, record))
        layout = layout_of(type(obj))
        if schema.fields == layout.fields:
            checksum = checksum_of(record)
        else:
            checksum = self.changes.checksum(obj, layout, get_stamp(obj))
        set_stamp(obj, get_stamp(obj)._replace(checksum=checksum))

    def _original(self, copy: Persistable, origin: Origin, *, force: bool) -> Persistable | None:
        """Return the object of the record that *copy* is a copy of, if it is alive; it takes over the copy's values.

        Raise ConflictError if it has changes of its own, or has been saved since the copy was made.
        """
        original = self.loader.living(origin.number)
        if original is None:
            is_changed = origin.number in self.changes.records
        else:
            is_changed = get_stamp(original).revision > origin.revision or original.changed
        if is_changed and not force:
            raise ConflictError(
                f"{copy.persistent_id} was changed here since this copy of it was made; nothing was written."
                " refresh() gives up the change here, save(force=True) the copy's",
                (str(copy.persistent_id),),
            )
        return original

    def kept_records(self, objs: Iterable[Persistable]) -> dict[int, ChangedRecord]:
        """Return the records of objects with unsaved changes which are to be let go; those that can't be made now are left out."""
        kept: dict[int, ChangedRecord] = {}
        cls: type[Persistable] | None = None
        encoder = self.changes.encoder
        for obj in objs:
            stamp = stamp_of(obj)
            if stamp is None or not stamp.revision or stamp.number in self.batch.records:
                continue
            _, number, revision, former_state, schema, home, _, leftover = stamp
            if type(obj) is not cls:
                cls = type(obj)
                layout = layout_of(cls)
                own, has_state = self.schemas.of_class(layout), layout.kind != PERSISTABLE
            try:
                if schema is own and not leftover:  # the short way, for very many
                    body = encoder.pack(layout.checked_values(obj), lambda: ())
                    record = seal(number, head(schema.number, revision + 1, home) + body)
                    state = obj.state if has_state else ""  # type: ignore[attr-defined]
                else:
                    _, record, state = self._encoded(obj, stamp, revision + 1, encoder)
            except (NewReference, Error):
                continue  # what is wrong with it is said when it is saved
            kept[number] = ChangedRecord(record, state, revision, former_state)
        return kept

    def stage_new(self, objs: Sequence[Persistable], index: Membership) -> int:
        """Encode new objects and add them to *index*: the short way, for very many.

        Return how many; it stops before one that takes the long way (`stage`): it is not new,
        refers to other objects, brings fields of a former class along, or can't be stored; and
        where the batch is full.  Not to be called in a unit.
        """
        batch, live, joined = self.batch, self.loader.live, index.joined
        home = self.home_in(index)
        records, states = batch.records, batch.states
        sequence, pack = self.sequence, self._encoder.packer.pack
        pending = self._pending  # saved objects that are changed, and referred to
        pending.clear()
        room = self.batch_bytes - batch.bytes
        batch.journal = journal = self._journal
        cls: type | None = None
        done = number = 0
        try:
            for obj in objs:
                if type(obj) is not cls:
                    if not isinstance(obj, Persistable):
                        break
                    cls = type(obj)
                    layout = layout_of(cls)
                    if layout.generic:
                        break
                    schema = self.schemas.of_class(layout)
                    start, values = head(schema.number, 1, home), layout.checked_values
                    has_state = layout.kind != PERSISTABLE
                if getattr(obj, "_stamp", None) is not None or room <= 0:
                    break
                number = next(sequence.numbers, 0) or sequence.next()
                try:
                    parts = values(obj)
                    body = start + pack(parts)
                except (AttributeError, UnstorableValue, *UNPACKABLE):
                    body = b""
                if not body or journal or pending or (may_hold_bytes(body) and holds_bytearray(parts)):
                    break
                checksum = crc32(body, number & 0xFFFFFFFF)
                records[number] = body + b"\xce" + checksum.to_bytes(4, "big")
                states[number] = state = obj.state if has_state else ""  # type: ignore[attr-defined]
                joined[number] = True
                set_stamp(obj, Stamp(self, number, 1, state, schema, home, checksum, None))
                live[number] = ref(obj)
                room -= STAGED_BYTES + len(body)
                done += 1
                number = 0
        finally:
            try:
                if number:  # it was not finished
                    batch.undo(0)
                    pending.clear()
                    for column in (records, states, joined, live):
                        column.pop(number, None)
                    restamp(obj, None)
            finally:
                batch.journal = None
                batch.version += 1
                batch.bytes = self.batch_bytes - room
                journal.clear()
            if len(live) > self.loader.limit:
                self.loader.sweep()
        return done

    def give_up(self, numbers: Iterable[int], index: Membership, journal: Journal) -> None:
        """Undo what a call has staged and could not write: new records that were added to *index*, and a *journal*."""
        for number in filter(self.batch.is_new, numbers):
            columns = self.batch.records, self.batch.states, index.joined, self.loader.live
            journal += [(column, number, None) for column in columns]
            obj = self.loader.living(number)
            if obj is not None:
                journal.append((None, obj, None))
        if self._pending_commit is None:
            self.batch.give_up(journal)
        else:  # it may be on disk
            self._pending_commit = self._pending_commit._replace(journal=journal)

    def add_now(self, obj: Persistable, index: Membership) -> bool:
        """Write a new object and add it to *index*, in one transaction: the short way, for one alone.

        Return False, with nothing done, if it takes the long way: as in `stage_new`, or if the batch isn't empty.
        """
        if self.has_batch() or self.batch.journal is not None:
            return False
        if not isinstance(obj, Persistable) or mark_of(obj) is not None or layout_of(type(obj)).generic:
            return False
        layout = layout_of(type(obj))
        try:
            values = layout.checked_values(obj)
            body = self._plain_encoder.quick_pack(values)
        except (NewReference, AttributeError, UnstorableValue, *UNPACKABLE):
            self._plain_encoder = Encoder(refuse)  # what a failure has left in it
            return False
        if may_hold_bytes(body) and holds_bytearray(values):
            return False
        schema, state = self.schemas.of_class(layout), obj.state if isinstance(obj, Task) else ""
        # Where others write at the same time, they would wait for a number that is taken in this transaction.
        known = self.sequence.next() if self.tables.concurrent_writers else self.sequence.at_hand()
        stamp: Stamp | None = None

        def put(index_writer: IndexWriter, writer: Writer) -> None:
            nonlocal stamp
            number = known or self.sequence.take(writer, 1)
            home = index_writer.row(index.identity).number
            record = seal(number, head(schema.number, 1, home) + body)
            writer.put(RECORDS, [(_key(number), record)])
            index_writer.add(home, {Kind(schema.number, index_writer.states.number(state)): [number]})
            index_writer.add_lines(home, [(number, schema.number)])
            writer.count(META, RECORDS_KEY, 1)
            stamp = Stamp(self, number, 1, state, schema, home, checksum_of(record), None)

        def committed() -> None:
            assert stamp is not None
            restamp(obj, stamp)
            self.loader.note(stamp.number, obj)

        self.write(put, batch=False, numbers=False, committed=committed)
        return True

    def has_batch(self) -> bool:
        """Return whether there is anything in the batch."""
        return bool(self.batch.records) or any(index.joined or index.left for index in self.indexes)

    def stage_removals(self, numbers: Iterable[int]) -> None:
        """Take some records, and those in their `tasks`, out of the store and of every index.  In a unit."""
        source = iter(numbers)
        while some := list(islice(source, REMOVED_AT_ONCE)):
            with self.reading() as reader:
                found = self._with_parts(reader, some)
                held = [(index, index.held(reader, found)) for index in self.indexes]
            self._stage_removals(found, held)

    def _stage_removals(self, numbers: list[int], held: list[tuple[Membership, set[int]]]) -> None:
        for n in numbers:
            if self.batch.is_new(n):
                self.batch.unstage(n)
            else:
                # Of what was loaded here, the revision that was is to be removed, and no newer one.
                obj, kept = self.loader.living(n), self.changes.records.get(n)
                known = get_stamp(obj).revision if obj is not None else kept.revision if kept is not None else 0
                self.batch.stage(n, REMOVED, "", self.batch.bases.get(n) or (known, ""))
            self.batch.set_item(self.changes.records, n, None)
            for index, members in held:
                if n in members:
                    index.leave(self.batch.set_item, n)
            obj = self.loader.living(n)
            if obj is not None:
                self._detach(obj)

    def stage_leaving(self, index: Membership, number: int) -> None:
        """Take record N out of a session; it stays in the store.  In a unit."""
        index.leave(self.batch.set_item, number)
        if self.batch.is_new(number):  # what is written must not say that the session has it
            record = self.batch.records[number]
            self.batch.set_item(self.batch.records, number, with_home(number, record, 0))

    def _with_parts(self, reader: Reader, numbers: list[int]) -> list[int]:
        """Return some Ns and those of the records in their `tasks`, of all depths; those that there are."""
        found: dict[int, None] = {}
        while numbers:
            inner: list[int] = []
            for n, record in self.records_by_number(reader, numbers).items():
                found[n] = None
                try:
                    schema = self.schemas.get(header_of(record).schema, reader)
                    if "tasks" in schema.fields:
                        inner += references(values_of(n, record)[2][schema.fields.index("tasks")])
                except (CorruptRecord, LookupError, ValueError):
                    continue  # a damaged record is removed, too; its parts can't be known
            numbers = [n for n in inner if n not in found]
        return list(found)

    def _detach(self, obj: Persistable) -> None:
        """Make *obj* an object without an ID: its record is gone."""
        number = get_stamp(obj).number
        for mapping, key in (
            (self.loader.live, number),
            (self.changes.records, number),
            (self.changes.objects, id(obj)),
        ):
            self.batch.set_item(mapping, key, None)
        self.batch.restamp(obj, None)

    # -- changes

    def note_changed(self, obj: Persistable) -> None:
        """Keep a saved object alive while it has unsaved changes."""
        if not (self.read_only or self._closed):
            self.changes.note(obj, get_stamp(obj).number)
            if len(self.changes.objects) > self.changes.limit and self.lock.acquire(blocking=False):
                try:
                    self.changes.let_go()
                finally:
                    self.lock.release()

    def is_changed(self, obj: Persistable) -> bool:
        """Return whether *obj*, which has an ID here, differs from what was last loaded or saved of it."""
        with self.lock:
            stamp = stamp_of(obj)
            return stamp is None or self.changes.is_changed(obj, stamp)

    def forget_changes(self, obj: Persistable) -> None:
        """Take *obj* as it is now for what is stored."""
        with self.lock:
            stamp = stamp_of(obj)
            if stamp is not None:
                self.changes.forget(obj, stamp)

    def origin_of(self, obj: Persistable) -> Origin:
        """Return what a copy of *obj* is to know of its record, which is written if it is still in the batch.

        A pool of processes pickles in a thread of its own, and the one with the transaction may be waiting for
        the pool: so that thread doesn't wait for the transaction.
        """
        if get_stamp(obj).number in self.batch.records:
            if self.transactions:
                raise InvalidArgument(
                    f"{obj!r} can't be pickled inside a transaction, as it isn't written yet and may be undone"
                )
            with self.lock:
                self.flush()
        stamp, identity = get_stamp(obj), self.identity
        assert identity is not None
        return Origin(identity, stamp.number, stamp.revision, stamp.state, stamp.schema, stamp.leftover)

    def stage_changed(self, choose: Callable[[list[int]], list[int]], *, look_at_all: bool = True) -> None:
        """Encode objects with unsaved changes into the batch: those whose Ns *choose* returns.  In a unit.

        Changes inside values are looked for in all that are alive, or only in those that were loaded last.
        """
        changes = self.changes
        with no_collection():
            if look_at_all:
                self.look_at_all()
            else:
                changes.look_at_recent()
            chosen = {*choose(sorted(changes.numbers()))}
            for obj in sorted(changes.objects.values(), key=lambda obj: get_stamp(obj).number):
                if get_stamp(obj).number in chosen and id(obj) in changes.objects:
                    self.stage(obj)
            kept = {number: changes.records[number] for number in sorted(changes.records.keys() & chosen)}
            for number in [*kept]:
                living = self.loader.living(number)
                if living is not None:
                    self.stage(living)
                    del kept[number]
            self._stage_kept(kept)

    def look_at_all(self) -> None:
        """Look at all objects that are alive for changes inside their values."""
        self.changes.look_at([obj for held in [*self.loader.live.values()] if (obj := held()) is not None])
        self.changes.look_at_recent()

    def _stage_kept(self, kept: dict[int, ChangedRecord]) -> None:
        """Put the records of changed objects that were let go into the batch."""
        batch, records = self.batch, self.changes.records
        for number in [*(kept.keys() & batch.records.keys())]:
            one = kept.pop(number)
            if revision_of(batch.records[number]) != one.revision:
                with self.reading() as reader:
                    raise _saved_elsewhere(f"{self.name_of(reader, number)}.{number}")
            batch.set_item(records, number, None)
            batch.stage(number, one.record, one.state, batch.bases.get(number))
        if batch.journal is not None:
            batch.journal += zip(repeat(records), kept, kept.values())
        for number in kept:
            del records[number]
        batch.stage_many(
            {number: one.record for number, one in kept.items()},
            {number: one.state for number, one in kept.items()},
            {number: (one.revision, one.former_state) for number, one in kept.items()},
        )


def asyncio_task() -> Any:
    """Return the asyncio task that is running in this thread, or None."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no loop is running
        return None


def _saved_elsewhere(id_: str) -> ConflictError:
    return ConflictError(
        f"{id_} was saved through another object since this one was loaded; nothing was"
        " written. refresh() takes over the stored state, save(force=True) overwrites it",
        (id_,),
    )
