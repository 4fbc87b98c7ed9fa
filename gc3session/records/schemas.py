"""The schemas of a store, by number and by what they say."""

from __future__ import annotations

from ..errors import CorruptRecord
from ..format.schema import Schema
from ..tables.interface import META, NUMBERING, SCHEMAS, Reader, Tables, Writer
from ..tasks import Persistable
from .codec import Layout, extras_of


class Schemas:
    """What is known of the table `schemas`; a schema never changes once it is stored."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._by_number: dict[int, Schema] = {}
        self._stored: dict[Schema, Schema] = {}  # whatever number the key has
        self._by_class: dict[tuple[Layout, str], Schema] = {}
        self._of_layout: dict[Layout, Schema] = {}

    def get(self, number: int, reader: Reader) -> Schema:
        """Return the schema of that number.  Raise CorruptRecord if there is none."""
        schema = self._by_number.get(number)
        if schema is None:
            data = reader.get(SCHEMAS, number.to_bytes(4, "big")) if 0 < number < 1 << 31 else None
            if data is None:
                raise CorruptRecord(f"its schema, number {number}, is not in the store")
            try:
                schema = Schema.from_bytes(number, data)
            except CorruptRecord as error:
                raise CorruptRecord(f"schema {number} is damaged: {error}") from error
            self._note(schema)
        return schema

    def known(self, number: int) -> Schema | None:
        """Return the schema of that number if it has been read before."""
        return self._by_number.get(number)

    def name(self, number: int, reader: Reader) -> str:
        """Return what the IDs of a schema's objects begin with; 'Unreadable' if it can't be read."""
        try:
            return self.get(number, reader).name
        except CorruptRecord:
            return "Unreadable"

    def of_class(self, layout: Layout) -> Schema:
        """Return the schema of new objects of a class."""
        schema = self._of_layout.get(layout)
        if schema is None:
            schema = self._of_layout[layout] = self.stored(layout.schema())
        return schema

    def to_write(self, obj: Persistable, layout: Layout, name: str) -> Schema:
        """Return the schema to write *obj* with, whose ID begins with *name*.

        It is that of the class; an object of fields that the class doesn't have brings them along.
        """
        former, extras = extras_of(obj)
        if former is None or not (extras or layout.generic):
            schema = self._by_class.get((layout, name))
            if schema is None:
                schema = self._by_class[layout, name] = self.stored(layout.schema(name))
            return schema
        own = layout.schema(name)
        fields = (*(field for field in own.fields if field not in extras), *extras)
        if {*fields} == {*former.fields}:
            fields = former.fields
        return self.stored(Schema(0, former.tag if layout.generic else own.tag, name, layout.kind, fields))

    def stored(self, schema: Schema) -> Schema:
        """Return *schema* with its number; it is stored, in a transaction of its own, if it isn't."""
        if schema not in self._stored:
            with self._tables.read() as reader:
                self._read(reader)
        if schema not in self._stored:
            self._note(self._tables.write(lambda writer: self._add(writer, schema)))
        return self._stored[schema]

    def all(self, reader: Reader) -> list[Schema]:
        """Return all schemas, by their numbers; those that can't be read are left out."""
        self._read(reader)
        return [self._by_number[number] for number in sorted(self._by_number)]

    def _add(self, writer: Writer, schema: Schema) -> Schema:
        writer.lock(META, [NUMBERING])
        last = self._read(writer)
        if schema in self._stored:  # another process was faster
            return self._stored[schema]
        numbered = Schema(last + 1, schema.tag, schema.name, schema.kind, schema.fields)
        writer.put(SCHEMAS, [(numbered.number.to_bytes(4, "big"), numbered.to_bytes())])
        return numbered

    def _read(self, reader: Reader) -> int:
        """Read the table; return the greatest number in it."""
        last = 0
        for key, data in reader.scan(SCHEMAS, b""):
            last = int.from_bytes(key, "big")
            if last not in self._by_number:
                try:
                    self._note(Schema.from_bytes(last, data))
                except CorruptRecord:
                    continue  # raised where a record needs it
        return last

    def _note(self, schema: Schema) -> None:
        self._by_number[schema.number] = schema
        self._stored.setdefault(schema, schema)
