"""Tasks as their records have them: no class is needed, and what they refer to isn't loaded.

So a task of a million others is read as fast as any, and a walk through a session holds none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .codec import COLLECTION, Schema, unseal
from .errors import CorruptRecord, LoadError, NotFound
from .store_reading import schema_number_or_0
from .values import Decoder

if TYPE_CHECKING:
    from .entries import Entry
    from .store import Store


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
        return f"<StoredTask {self.persistent_id}>"


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
        return f"<{self.persistent_id}>"


class StoredTasks:
    """Reads the records of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoder = Decoder(self.reference)

    def reference(self, number: int) -> StoredReference:
        """Return what stands for a reference to record N."""
        return StoredReference(self, number)

    def of(self, entries: list[Entry], records: list[bytes | None]) -> list[StoredTask | LoadError]:
        """Return the tasks of some entries, in their order.

        A LoadError stands in the place of one that can't be read; one whose record is gone is left out.
        """
        return [
            self._read(number, order, schema, record)
            for (order, number, schema), record in zip(entries, records, strict=True)
            if record is not None
        ]

    def _read(self, number: int, order: int, name_schema: int, record: bytes) -> StoredTask | LoadError:
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
            return failure
        return StoredTask(f"{schema.name}.{number}", number, order, schema, record, fields)

    def get(self, number: int) -> StoredTask:
        """Return the object of record N.  Raise LoadError if it is missing or can't be read."""
        with self._store.lock, self._store.reading() as reader:
            record = self._store.record(reader, number)
        if record is None:
            raise NotFound(f"there is no record {number} in {self._store.url}")
        found = self._read(number, 0, schema_number_or_0(record), record)
        if isinstance(found, LoadError):
            raise found
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
