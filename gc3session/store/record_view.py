"""Tasks as their records have them: no class is needed, and the objects that they refer to aren't loaded.

So a collection of a million tasks is read as fast as any other task, and whatever walks through a
session needs no memory for what it has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import attrs

from ..errors import CorruptRecord, LoadError, NotFound
from ..format.frame import TAIL, schema_number_or_0, values_of
from ..format.schema import COLLECTION, Schema
from ..records.values import DAMAGE, Decoder
from ..tables.interface import ReadBytes
from ..text import escaped
from .index import CHUNK

if TYPE_CHECKING:
    from ..index.entries import Entry
    from ..tables.interface import Reader
    from .reading import StoreReading

_AT_ONCE: Final = 32  # records that are unpacked together; of more the collector would search the parts


class StoredTask:
    """A task, or another persistable, as its record has it.

    Values whose class the program hasn't defined are `Opaque`.

    Attributes:
        number (int): the number at the end of the ID.
        record (bytes): the record.
    """

    __slots__ = ("_values", "number", "record", "schema")

    def __init__(self, number: int, schema: Schema, record: bytes, values: list[Any]) -> None:
        self.number = number
        self.schema = schema
        self.record = record
        self._values: Any = values

    @property
    def persistent_id(self) -> str:
        """The ID (str)."""
        return f"{self.schema.name}.{self.number}"

    @property
    def fields(self) -> dict[str, Any]:
        """The values by the names of the fields; a `StoredReference` stands for another persistable."""
        if type(self._values) is list:  # until they are asked for
            self._values = dict(zip(self.schema.fields, self._values, strict=True))
        return self._values  # type: ignore[no-any-return]

    @property
    def parts(self) -> list[StoredReference]:
        """The tasks of a collection; an empty list for any other task."""
        tasks = self.fields.get("tasks") if self.schema.kind == COLLECTION else None
        return [part for part in tasks if type(part) is StoredReference] if isinstance(tasks, list) else []

    def __repr__(self) -> str:
        return f"<StoredTask {escaped(self.persistent_id)}>"


@attrs.frozen
class UnreadableTask:
    """A task whose record is damaged or missing, in the place of its `StoredTask`.

    Attributes:
        persistent_id: its ID; the name in it is 'Unreadable' if that isn't known.
        number: the number at the end of the ID.
        name_schema: the number of a schema that has the name in its ID; 0 if there is none.
        record: its bytes; empty if it is missing.
        error: why it can't be read: CorruptRecord, or NotFound if it is missing.
    """

    persistent_id: str
    number: int
    name_schema: int
    record: bytes
    error: LoadError


class StoredReference:
    """A reference to another persistable in a field of a `StoredTask`; nothing is read before `read`.

    Two references are equal if they are to the same record.

    Attributes:
        number (int): the number at the end of the other's ID.
    """

    __slots__ = ("_tasks", "number")

    def __init__(self, tasks: StoredTasks, number: int) -> None:
        self._tasks = tasks
        self.number = number

    @property
    def persistent_id(self) -> str:
        """The ID of the other persistable (str); the name in it is 'Unreadable' if its record doesn't tell."""
        return self._tasks.id_of(self.number)

    def read(self) -> StoredTask:
        """Return the other persistable as its record has it now.

        Raise NotFound if the record is missing, CorruptRecord if it is damaged; both are LoadErrors.
        """
        return self._tasks.get(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredReference) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return f"<{escaped(self.persistent_id)}>"


class StoredTasks:
    """Reads the records of a store as `StoredTask`s."""

    def __init__(self, store: StoreReading) -> None:
        self._store = store
        self._decoder = Decoder(self._reference)
        self._read_bytes = ReadBytes()

    def _reference(self, number: int) -> StoredReference:
        return StoredReference(self, number)

    def records(self, reader: Reader, entries: list[Entry]) -> list[bytes | None]:
        """Return the records of some entries, None for each that is gone."""
        records = self._store.records(reader, entries)
        self._read_bytes.add(reader, sum(map(len, filter(None, records))))
        return records

    def with_records(self, reader: Reader, entries: list[Entry]) -> tuple[list[Entry], list[bytes | None]]:
        """Return some entries and their records."""
        return entries, self.records(reader, entries)

    def records_of(self, numbers: list[int]) -> list[bytes | None]:
        """Return the newest records of some Ns, None for each that there isn't."""
        with self._store.lock, self._store.reading() as reader:
            return self.records(reader, [(number, 0) for number in numbers])

    def of(self, entries: list[Entry], records: list[bytes | None]) -> Iterator[StoredTask | UnreadableTask]:
        """Give the tasks of some entries, in their order; one whose record is gone is left out.

        A schema of 0 in an entry says that it isn't known.
        """
        parts = (slice(first, first + _AT_ONCE) for first in range(0, len(entries), _AT_ONCE))
        return chain.from_iterable(self._some(entries[part], records[part]) for part in parts)

    def _some(self, entries: list[Entry], records: list[Any]) -> Iterable[StoredTask | UnreadableTask]:
        """Return what `of` does: all tasks at once, which is faster, or each by itself if any needs a closer look."""
        numbers = [number for number, _ in entries]
        with suppress(CorruptRecord, *DAMAGE):  # a record is gone or damaged, or its schema hasn't been read yet
            parts = self._decoder.unpack(b"".join([b"\xdc", (2 * len(records)).to_bytes(2, "big"), *records]))
            schema_numbers, _, _, values = zip(*parts[::2], strict=True)
            schemas: dict[int, Any] = {number: self._store.schemas.known(number) for number in {*schema_numbers}}
            counts = {number: len(schema.fields) for number, schema in schemas.items()}
            are_right = [*map(list.__len__, values)] == [*map(counts.__getitem__, schema_numbers)]
            if are_right and parts[1::2] == [*map(crc32, [record[:-TAIL] for record in records], numbers)]:
                return map(StoredTask, numbers, map(schemas.__getitem__, schema_numbers), records, values)
        return [
            self._read(number, schema or schema_number_or_0(record), record)
            for (number, schema), record in zip(entries, records, strict=True)
            if record is not None
        ]

    def at(self, entries: list[Entry]) -> Iterator[StoredTask | UnreadableTask]:
        """Give the tasks of some entries as they are now, in their order, without those that are gone."""
        return self.of(entries, self.records_of([number for number, _ in entries]))

    def parts_of(self, task: StoredTask) -> Iterator[StoredTask | UnreadableTask]:
        """Give the tasks of a collection in their order, without having all of them in memory."""
        numbers = [part.number for part in task.parts]
        for first in range(0, len(numbers), CHUNK):
            some = numbers[first : first + CHUNK]
            yield from map(self._found, some, self.records_of(some))

    def get(self, number: int) -> StoredTask:
        """Return the object of record N.  Raise LoadError if it is missing or can't be read."""
        [record] = self.records_of([number])
        found = self._found(number, record)
        if isinstance(found, UnreadableTask):
            raise found.error
        return found

    def _found(self, number: int, record: bytes | None) -> StoredTask | UnreadableTask:
        """Return the object that a reference to N leads to."""
        if record is not None:
            return self._read(number, schema_number_or_0(record), record)
        id_ = f"Unreadable.{number}"
        error = NotFound(f"record {number} is referred to, but it is not in {self._store.url}", id_)
        return UnreadableTask(id_, number, 0, b"", error)

    def _read(self, number: int, name_schema: int, record: bytes) -> StoredTask | UnreadableTask:
        try:
            schema_number, _, values = values_of(number, record, self._decoder.unpack)
            schema = self._schema(schema_number)
            if len(values) != len(schema.fields):
                raise CorruptRecord(
                    f"it has {len(values)} values for the {len(schema.fields)} fields of its schema"
                )
        except LoadError as error:
            id_ = f"{self._name(name_schema)}.{number}"
            failure = type(error)(f"{id_} in {self._store.url}: {error}", id_)
            failure.__cause__ = error
            return UnreadableTask(id_, number, name_schema, record, failure)
        return StoredTask(number, schema, record, values)

    def id_of(self, number: int) -> str:
        """Return the ID of record N; the name in it is 'Unreadable' if the record doesn't tell."""
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
