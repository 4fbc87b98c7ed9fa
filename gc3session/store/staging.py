"""How a store stages changes: objects are encoded into the batch, whole units at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final
from weakref import ref
from zlib import crc32

from ..errors import ClosedError, ConflictError, CorruptRecord, InvalidArgument, ReadOnlyError, UnstorableValue
from ..format.frame import RECORD_KEY, revision_of, seal, values_of
from ..format.schema import COLLECTION, PERSISTABLE
from ..index.index import Index
from ..records.batch import NO_SLOTS, REMOVED, STAGED_BYTES, set_slots
from ..records.codec import layout_of, note_stored
from ..records.sequence import NumberSequence
from ..records.values import UNPACKABLE, Encoder, holds_bytearray, may_hold_bytes, references
from ..system.gc_pause import no_collection
from ..system.signals import signal_safe
from ..tables.interface import RECORDS, Reader
from ..tasks import Persistable, Unreadable, set_changed
from .reading import StoreReading

_key = RECORD_KEY.pack

REMOVED_AT_ONCE: Final = 4096
"""Records that are looked for in one transaction when many are removed."""


class StoreStaging(StoreReading):
    """The staging half of a store.

    Attributes:
        batch_bytes: bytes of memory at which the batch is written.
        sequence: of the Ns.
        changed: id() of an object -> the object, which has unsaved changes.
    """

    batch_bytes: int
    sequence: NumberSequence
    changed: dict[int, Persistable]
    _encoder: Encoder
    _journal: list[tuple[Any, Any, Any]]
    _pending: list[Persistable]

    @abstractmethod
    def commit(self) -> None:
        """Write the batch."""

    @signal_safe
    def unit(self, *, flush: bool, room: bool = True) -> Iterator[None]:
        """`with` this, what is staged is staged whole or not at all, and written if *flush*.

        Inside a transaction it is written at the end of that.  A full batch is written first, unless *room* is False.
        """
        with self.lock:
            self.ensure_writable()
            batch = self.batch
            outermost = batch.journal is None
            if outermost and room:
                self.make_room()
            mark, size = len(batch.journal or ()), batch.bytes
            try:
                if outermost:
                    batch.journal = []
                yield
                if flush and outermost:
                    self.commit()
            except BaseException:
                if self._pending_commit is None:  # else it may be on disk: it is kept until that is known
                    try:
                        batch.undo(mark)
                    finally:
                        batch.undo(mark)  # goes on if a signal's handler has kept it from that
                    batch.bytes = min(size, batch.bytes)
                raise
            finally:
                if outermost:
                    batch.journal = None

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

    def stage(self, obj: Persistable, *, force: bool = False) -> int:
        """Encode *obj*, and what it refers to that is new or changed, into the batch; return its N.

        To be called in a unit.
        """
        number = self.own_number(obj)
        if isinstance(obj, Unreadable):
            raise InvalidArgument(f"{obj!r} stands for a record that can't be read; it can't be saved")
        if number is None:
            number = self._assign(obj)
        pending = self._pending
        pending.clear()
        done = {number}
        self._stage_one(obj, number, self._committed_base(obj, number) if force else self._base(obj, number))
        while pending:
            other = pending.pop()
            if other._number not in done:
                done.add(other._number)
                self._stage_one(other, other._number, self._base(other, other._number))
        return number

    def _base(self, obj: Persistable, number: int) -> tuple[int, str] | None:
        """Return the revision of its record that *obj* was read from, and its state; None for a new one.

        Raise ConflictError if the batch holds another one, of another object.
        """
        record = self.batch.records.get(number)
        if record is None:
            return (obj._revision, obj._stored_state) if obj._revision else None
        if revision_of(record) != obj._revision:
            raise ConflictError(
                f"{obj.persistent_id} was saved through another object since this one was loaded; nothing was"
                " written. refresh() takes over the stored state, save(force=True) overwrites it",
                (str(obj.persistent_id),),
            )
        return self.batch.bases.get(number)

    def _committed_base(self, obj: Persistable, number: int) -> tuple[int, str] | None:
        """Return revision and state of the committed record N, which is to be overwritten with *obj*."""
        with self.reading() as reader:
            record = reader.get(RECORDS, _key(number))
            if record is None:
                return None
            state = self.committed_state(reader, number)
        return revision_of(record), obj._stored_state if state is None else state

    def _assign(self, obj: Persistable) -> int:
        """Give *obj*, which is new, its N."""
        former = obj._schema
        layout = layout_of(type(obj))
        name = former.name if former is not None and layout.generic else layout.name
        schema = self.schemas.to_write(obj, layout, name)
        number = self.sequence.next()
        self.batch.set_slots(obj, (self, number, 0, "", schema))
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
        batch.clear_changed(obj, self.changed)
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
        # More than any that there was, even if the record has been removed meanwhile.
        revision = max(obj._revision, base[0] if base else 0) + 1
        body = self._encoder.pack(
            [schema.number, revision, values],
            lambda: ((f"{type(obj).__qualname__}.{name}", v) for name, v in zip(names, values, strict=True)),
        )
        state = "" if layout.kind == PERSISTABLE else obj.state  # type: ignore[attr-defined]
        batch.stage(number, seal(number, body), state, base)
        batch.set_slots(obj, (obj._store, number, revision, state, schema))

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
        done = number = 0
        try:
            for obj in objs:
                if type(obj) is not cls:
                    if not isinstance(obj, Persistable):
                        break
                    cls = type(obj)
                    layout = layout_of(cls)
                    schema = self.schemas.of_class(layout)
                    number_of_schema, values = schema.number, layout.values
                    has_state = layout.kind != PERSISTABLE
                if obj._schema is not None or room <= 0:
                    break
                number = next(sequence.numbers, 0) or sequence.next()
                set_changed(obj, False)  # first: see Batch.clear_changed
                try:
                    parts = values(obj)
                    body = pack([number_of_schema, 1, parts])
                except (AttributeError, *UNPACKABLE):
                    body = b""
                if not body or journal or pending or (may_hold_bytes(body) and holds_bytearray(parts)):
                    break
                records[number] = crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") + body
                states[number] = state = obj.state if has_state else ""  # type: ignore[attr-defined]
                joined[number] = number
                note_stored(obj, self, number, state, schema)
                live[number] = ref(obj)
                if obj.changed:  # by another thread
                    self.note_changed(obj)
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
                    set_slots(obj, NO_SLOTS)
                    set_changed(obj, True)
            finally:
                batch.journal = None
                batch.version += 1
                batch.bytes = self.batch_bytes - room
                journal.clear()
            if len(live) > self.loader.limit:
                self.loader.sweep()
        return done

    def stage_removals(self, numbers: Iterable[int]) -> None:
        """Take some records, and those in their `tasks`, out of the store and of every index.  In a unit."""
        source = iter(numbers)
        while some := list(islice(source, REMOVED_AT_ONCE)):
            with self.reading() as reader:
                self.expect_removals(reader, some)
                for number in some:
                    self.stage_removal(reader, number)

    def expect_removals(self, reader: Reader, numbers: list[int]) -> None:
        """Tell the reader that `stage_removal` will be called for all of these Ns."""
        self.expect_records(reader, numbers)
        for index in self.indexes:
            index.expect_orders(reader, numbers)

    def stage_removal(self, reader: Reader, number: int) -> None:
        """Take record N, and those in its `tasks`, out of the store and of every index.  In a unit."""
        parts = self._with_parts(reader, number)
        if len(parts) > 1:
            self.expect_removals(reader, parts)
        for n in parts:
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

    def _with_parts(self, reader: Reader, number: int) -> list[int]:
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
        self.batch.detach(obj)
        self.changed.pop(id(obj), None)

    def note_changed(self, obj: Persistable) -> None:
        """Keep a saved object alive while it has unsaved changes."""
        if obj.changed:
            self.changed[id(obj)] = obj
        else:
            self.changed.pop(id(obj), None)

    def stage_changed(self) -> None:
        """Encode all objects with unsaved changes into the batch.  To be called in a unit."""
        with no_collection():
            for obj in list(self.changed.values()):
                if obj.changed:
                    self.stage(obj)
                else:  # saved through another store of the same place
                    self.changed.pop(id(obj), None)
