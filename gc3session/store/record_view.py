"""Tasks as their records have them: no class is needed, and what they refer to isn't loaded.

So a task of a million others is read as fast as any, and a walk through a session holds none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..errors import CorruptRecord, LoadError, NotFound
from ..format.frame import schema_number_or_0, unseal
from ..format.schema import COLLECTION, Schema
from ..index.index import CHUNK
from ..records.values import Decoder
from ..text import escaped

if TYPE_CHECKING:
    from ..index.entries import Entry
    from ..tables.interface import Reader
    from .store import Store

_RELAXED: Final = 16 << 20  # bytes of records that are read before memory is let go of


class StoredTask:
    """A task, or another persistable, as its record has it.

    Attributes:
        persistent_id: its ID.
        number: the N in it.
        order: its place in the session; 0 if it was found through a reference.
        schema: the class and the names of the fields.
        record: its bytes.
        fields: name -> value; a reference to another is a `StoredReference`.
    """

    __slots__ = ("fields", "number", "order", "persistent_id", "record", "schema")

    def __init__(
        self, id_: str, number: int, order: int, schema: Schema, record: bytes, fields: dict[str, Any]
    ) -> None:
        self.persistent_id = id_
        self.number = number
        self.order = order
        self.schema = schema
        self.record = record
        self.fields = fields

    @property
    def parts(self) -> list[StoredReference]:
        """What a collection consists of; nothing if it isn't one."""
        tasks = self.fields.get("tasks") if self.schema.kind == COLLECTION else None
        return [part for part in tasks if type(part) is StoredReference] if isinstance(tasks, list) else []

    def __repr__(self) -> str:
        return f"<StoredTask {escaped(self.persistent_id)}>"


@attrs.frozen
class UnreadableTask:
    """What stands in the place of a task whose record can't be read.

    Attributes:
        persistent_id: its ID, as the index has it.
        number: the N in it.
        order: its place in the session; 0 if it was found through a reference.
        name_schema: the number of a schema that has the name in its ID; 0 if there is none.
        record: its bytes; none if it is missing.
        error: why it can't be read.
    """

    persistent_id: str
    number: int
    order: int
    name_schema: int
    record: bytes
    error: LoadError


class StoredReference:
    """What stands in a field for another object; it is read when its fields are asked for.

    Attributes:
        number: the N of its record.
    """

    __slots__ = ("_tasks", "number")

    def __init__(self, tasks: StoredTasks, number: int) -> None:
        self._tasks = tasks
        self.number = number

    @property
    def persistent_id(self) -> str:
        """The ID of the object, whose name is 'Unreadable' if that can't be told."""
        return self._tasks.id_of(self.number)

    def read(self) -> StoredTask:
        """Return the object.  Raise LoadError if its record is missing or can't be read."""
        return self._tasks.get(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredReference) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return f"<{escaped(self.persistent_id)}>"


class StoredTasks:
    """Reads the records of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoder = Decoder(self.reference)
        self._taken = 0

    def reference(self, number: int) -> StoredReference:
        """Return what stands for a reference to record N."""
        return StoredReference(self, number)

    def records(self, reader: Reader, entries: list[Entry]) -> list[bytes | None]:
        """Return the records of some entries, None for each that is gone, and let go of memory now and then."""
        if self._taken > _RELAXED:
            reader.release_memory()
            self._taken = 0
        records = self._store.records(reader, entries)
        self._taken += sum([len(record) for record in records if record is not None])
        return records

    def of(self, entries: list[Entry], records: list[bytes | None]) -> list[StoredTask | UnreadableTask]:
        """Return the tasks of some entries, in their order; one whose record is gone is left out."""
        return [
            self._read(number, order, schema, record)
            for (order, number, schema), record in zip(entries, records, strict=True)
            if record is not None
        ]

    def at(self, entries: list[Entry]) -> list[StoredTask | UnreadableTask]:
        """Return the tasks of some entries as they are now, in their order, without those that are gone."""
        with self._store.lock, self._store.reading() as reader:
            records = self.records(reader, entries)
        return self.of(entries, records)

    def parts_of(self, task: StoredTask) -> Iterator[StoredTask | UnreadableTask]:
        """Give what a collection consists of, in its order, some read at a time."""
        numbers = [part.number for part in task.parts]
        for first in range(0, len(numbers), CHUNK):
            some = numbers[first : first + CHUNK]
            with self._store.lock, self._store.reading() as reader:
                records = self.records(reader, [(0, number, 0) for number in some])
            for number, record in zip(some, records, strict=True):
                if record is None:
                    yield self._gone(number)
                else:
                    yield self._read(number, 0, schema_number_or_0(record), record)

    def _read(self, number: int, order: int, name_schema: int, record: bytes) -> StoredTask | UnreadableTask:
        try:
            parts = self._decoder.unpack(unseal(number, record))
            try:
                schema_number, _, values = parts
                schema = self._schema(schema_number)
                fields = dict(zip(schema.fields, values, strict=True))
            except (ValueError, TypeError, AttributeError) as error:
                raise CorruptRecord(f"it is not a record: {error}") from error
        except LoadError as error:
            id_ = f"{self._name(name_schema)}.{number}"
            failure = type(error)(f"{id_} in {self._store.url}: {error}", id_)
            failure.__cause__ = error
            return UnreadableTask(id_, number, order, name_schema, record, failure)
        return StoredTask(f"{schema.name}.{number}", number, order, schema, record, fields)

    def _gone(self, number: int) -> UnreadableTask:
        id_ = f"Unreadable.{number}"
        error = NotFound(f"record {number} is referred to, but it is not in {self._store.url}", id_)
        return UnreadableTask(id_, number, 0, 0, b"", error)

    def get(self, number: int) -> StoredTask:
        """Return the object of record N.  Raise LoadError if it is missing or can't be read."""
        with self._store.lock, self._store.reading() as reader:
            record = self._store.record(reader, number)
        found = self._gone(number) if record is None else self._read(number, 0, schema_number_or_0(record), record)
        if isinstance(found, UnreadableTask):
            raise found.error
        return found

    def id_of(self, number: int) -> str:
        """Return the ID of record N, with the name 'Unreadable' if that can't be told."""
        with self._store.lock, self._store.reading() as reader:
            return f"{self._store.name_of(reader, number) or 'Unreadable'}.{number}"

    def _schema(self, number: int) -> Schema:
        schemas = self._store.schemas
        schema = schemas.known(number)
        if schema is None:
            with self._store.lock, self._store.reading() as reader:
                schema = schemas.get(number, reader)
        return schema

    def _name(self, schema_number: int) -> str:
        try:
            return self._schema(schema_number).name
        except CorruptRecord:
            return "Unreadable"
