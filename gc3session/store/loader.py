"""From records to objects: one object for each record, as long as it is alive."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import ref
from zlib import crc32

import msgpack

from ..errors import CorruptRecord
from ..format.frame import TAIL, checksum_of, revision_of, schema_number, unseal
from ..format.schema import PERSISTABLE, Schema
from ..records.codec import Layout, fill, layout_for, layout_of
from ..records.schemas import Schemas
from ..records.values import DAMAGE, REFERENCE, Decoder
from ..tables.interface import Reader
from ..tasks import Keeper, Persistable, Stamp, Unreadable, classes_defined, get_stamp, set_stamp, stamp_of

_UNREADABLE = Schema(0, "", "Unreadable", PERSISTABLE, ())


class _Reference(Exception):
    """Raised where a record refers to another."""


class Loader:
    """Builds the objects of a store.

    An object that is referred to is made at once, but empty (a *shell*), and filled when its
    turn comes: so cycles work, and a chain of any length needs no recursion.

    Args:
        keeper: the store that the objects belong to.
        schemas: of the store.
        reading: opens the newest committed state.
        record: (reader, N) -> the record, or None.
    """

    def __init__(
        self,
        keeper: Keeper,
        schemas: Schemas,
        reading: Callable[[], AbstractContextManager[Reader]],
        record: Callable[[Reader, int], bytes | None],
    ) -> None:
        self._keeper = weakref.ref(keeper)
        self._schemas = schemas
        self._reading = reading
        self._record = record
        self._decoder = Decoder(self._resolve)
        self.live: dict[int, weakref.ref[Persistable]] = {}
        self.built: list[Persistable] = []  # what has been given since somebody took that list
        self.limit = 1024
        self._builders: dict[int, tuple[Callable[..., Persistable], Schema]] = {}  # by schema number
        self._layouts: dict[int, Layout] = {}  # by schema number
        self._classes = 0
        self._unpack = functools.partial(msgpack.unpackb, strict_map_key=False, ext_hook=self._build_plain)
        self._unpacker = self._new_unpacker()
        self._shells: dict[int, Persistable] = {}
        self._to_fill: list[tuple[int, bytes]] = []

    def living(self, number: int) -> Persistable | None:
        """Return the object of record N if it is alive."""
        ref = self.live.get(number)
        return None if ref is None else ref()

    def note(self, number: int, obj: Persistable) -> None:
        """Remember the object of record N, without keeping it alive."""
        self.live[number] = ref(obj)
        if len(self.live) > self.limit:
            self.sweep()

    def sweep(self) -> None:
        """Drop what is dead; as this is done when that may be half of all, it costs little."""
        for number in [number for number, held in self.live.items() if held() is None]:
            del self.live[number]
        self.limit = max(1024, 2 * len(self.live))

    def notice_classes(self) -> None:
        """Forget the builders if there are other classes than when they were noted."""
        if self._classes != classes_defined():
            self._builders.clear()
            self._layouts.clear()
            self._classes = classes_defined()

    def quick(self, number: int, record: bytes) -> Persistable | None:
        """Return a new object for a record: the short way, for very many.

        Return None if that takes the long way (`load`): the object is alive, refers to others,
        its class has changed since or isn't here, or the record is damaged.
        """
        held = self.live.get(number)
        if held is not None and held() is not None:
            return None
        body = record[:-TAIL]
        checksum = crc32(body, number & 0xFFFFFFFF)
        if checksum.to_bytes(4, "big") != record[-4:]:
            return None
        try:
            schema_number, revision, home, values = self._unpack(body)
            if (revision | home) >> 63:  # no revision could follow
                return None
            build, schema = self._builders[schema_number]
            obj: Persistable = build(values, self._keeper(), number, revision, schema, home, checksum)
        except (_Reference, CorruptRecord, *DAMAGE):
            return None
        self.live[number] = ref(obj)
        self.built.append(obj)
        if len(self.live) > self.limit:
            self.sweep()
        return obj

    def together(self, numbers: list[int], records: list[bytes | None]) -> list[Persistable] | None:
        """Return new objects for some records; None, with nothing done, if one of them takes the long way (see `quick`).

        The records are one stream of msgpack: each is followed by its checksum.
        """
        if not self.live.keys().isdisjoint(numbers) and any(self.living(n) is not None for n in numbers):
            return None
        builders, keeper, objs = self._builders, self._keeper(), list[Persistable]()
        try:
            self._unpacker.feed(b"".join(records))  # type: ignore[arg-type]  # for None, too, it takes the long way
            items = list(self._unpacker)
            checksums = [crc32(record[:-TAIL], number) for record, number in zip(records, numbers, strict=True)]  # type: ignore[index]
            if items[1::2] != checksums:
                raise ValueError
            for (schema_number, revision, home, values), number, checksum in zip(
                items[::2], numbers, checksums, strict=True
            ):
                if (revision | home) >> 63:  # no revision could follow
                    raise ValueError
                build, schema = builders[schema_number]
                objs.append(build(values, keeper, number, revision, schema, home, checksum))
        except (_Reference, CorruptRecord, *DAMAGE):
            self._unpacker = self._new_unpacker()  # with nothing left in it
            return None
        self.live.update(zip(numbers, map(ref, objs), strict=True))
        self.built += objs
        if len(self.live) > self.limit:
            self.sweep()
        return objs

    def _new_unpacker(self) -> msgpack.Unpacker:
        return msgpack.Unpacker(strict_map_key=False, ext_hook=self._build_plain, max_buffer_size=0)

    def _build_plain(self, code: int, data: bytes) -> Any:
        if code == REFERENCE:
            raise _Reference
        return self._decoder.build(code, data)

    def load(self, number: int, record: bytes) -> Persistable:
        """Return the object of a record, with all that it refers to.

        One that is alive and has no unsaved changes takes over what has been stored since.
        Raise LoadError if the record can't be read.
        """
        obj = self.living(number)
        if obj is not None:
            self.built.append(obj)
            if revision_of(record) > get_stamp(obj).revision and not obj.changed:
                self.refill(obj, record)
            return obj
        self.notice_classes()
        obj = self.quick(number, record)
        if obj is not None:
            return obj
        try:
            obj = self._build(number, record)
            while self._to_fill:
                self._build(*self._to_fill.pop())
            return obj
        finally:
            self._shells.clear()
            self._to_fill.clear()

    def refill(self, obj: Persistable, record: bytes) -> None:
        """Set the fields of *obj* to those in its record."""
        try:
            self._fill(obj, *self._decode(get_stamp(obj).number, record))
            while self._to_fill:
                self._build(*self._to_fill.pop())
        finally:
            self._shells.clear()
            self._to_fill.clear()

    def _build(self, number: int, record: bytes) -> Persistable:
        schema, revision, home, values = self._decode(number, record)
        layout = self._layout(schema)
        obj = self._shells.get(number)
        if obj is None and layout.fields == schema.fields and not layout.generic:
            self._builders[schema.number] = layout.build, schema
            obj = layout.build(values, self._keeper(), number, revision, schema, home, checksum_of(record))
        else:
            if obj is None:
                obj = self._shell(layout.cls, number, schema)
            self._fill(obj, schema, revision, home, values)
        self.note(number, obj)
        self.built.append(obj)
        return obj

    def _layout(self, schema: Schema) -> Layout:
        self.notice_classes()
        layout = self._layouts.get(schema.number)
        if layout is None:
            layout = self._layouts[schema.number] = layout_for(schema)
        return layout

    def _fill(self, obj: Persistable, schema: Schema, revision: int, home: int, values: list[Any]) -> None:
        fill(obj, schema, values, revision, home)
        stamp = stamp_of(obj)
        if stamp is not None:  # else it is a copy that came through pickle
            stamp.store.forget_changes(obj)

    def _decode(self, number: int, record: bytes) -> tuple[Schema, int, int, list[Any]]:
        parts = self._decoder.unpack(unseal(number, record))
        try:
            schema_number_, revision, home, values = parts
            if (revision | home) >> 63:
                raise ValueError("its header has impossible numbers")
            schema = self._schema(schema_number_)
            schema.check(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptRecord(f"it is not a record: {error}") from error
        return schema, revision, home, values

    def _schema(self, number: int) -> Schema:
        schema = self._schemas.known(number)
        if schema is None:
            with self._reading() as reader:
                schema = self._schemas.get(number, reader)
        return schema

    def _shell(self, cls: type[Persistable], number: int, schema: Schema) -> Persistable:
        obj: Persistable = object.__new__(layout_of(cls).twin)
        set_stamp(obj, Stamp(self._keeper(), number, 0, "", schema, 0, 0, None))
        obj.__class__ = cls
        return obj

    def _resolve(self, number: int) -> Persistable:
        """Return the object that a reference means; called while its holder is decoded."""
        obj = self.living(number)
        if obj is None:
            obj = self._shells.get(number)
        if obj is not None:
            self.built.append(obj)  # it may be changed through its holder
            return obj
        schema = _UNREADABLE
        try:
            with self._reading() as reader:
                record = self._record(reader, number)
            if record is None:
                raise CorruptRecord("there is no such record in the store")
            schema = self._schema(schema_number(record))
            unseal(number, record)
        except CorruptRecord as error:
            obj = self._shell(Unreadable, number, schema)
            object.__setattr__(obj, "reason", str(error))
            return obj
        obj = self._shells[number] = self._shell(self._layout(schema).cls, number, schema)
        self._to_fill.append((number, record))
        return obj
