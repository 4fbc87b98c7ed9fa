"""Schemas: the class tag and field names that records were written with.

A schema is stored once, so that a record can be read without its class. Its bytes are a checksum as
in a record (frame.py), with the schema's number in place of N, and the msgpack array
`[ tag, name, kind, [ field name, ... ] ]`.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgpack

from ..errors import CorruptRecord
from .frame import seal, unseal

PERSISTABLE, TASK, COLLECTION = range(3)
"""The kinds of a schema: what its class is derived from, for programs that don't have the class."""

_NEEDED = ("state", "tasks")  # fields that a task has, and a collection both


@attrs.frozen
class Schema:
    """The class of a record, and what its values are.

    Attributes:
        number: the number by which records refer to the schema; 0 before it is stored.
        tag: the tag of the class, as `tasks.class_tag` returns it.
        name: the name with which the IDs of its objects begin.
        kind: PERSISTABLE, TASK or COLLECTION.
        fields: the field names, in the order of the values.
    """

    number: int = attrs.field(eq=False)
    tag: str
    name: str
    kind: int
    fields: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the bytes under which the schema is stored."""
        return seal(self.number, msgpack.packb([self.tag, self.name, self.kind, list(self.fields)]))

    @classmethod
    def from_item(cls, key: bytes, data: bytes) -> Schema:
        """Return the schema in an item of the table `schemas`. Raise CorruptRecord if there is none."""
        if len(key) != 4:
            raise CorruptRecord("its key is no schema number")
        return cls.from_bytes(int.from_bytes(key, "big"), data)

    @classmethod
    def from_bytes(cls, number: int, data: bytes) -> Schema:
        """Return the schema of that *number*. Raise CorruptRecord if *data* isn't one."""
        if not 0 < number < 1 << 31:
            raise CorruptRecord(f"{number} is no schema number")
        try:
            tag, name, kind, fields = msgpack.unpackb(unseal(number, data))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CorruptRecord(f"it is not a schema: {error}") from error
        if not (
            isinstance(tag, str)
            and isinstance(name, str)
            and name.isidentifier()
            and type(kind) is int
            and kind in range(3)
        ):
            raise CorruptRecord("its class, name or kind can't be one")
        if not (isinstance(fields, list) and all(isinstance(field, str) for field in fields)):
            raise CorruptRecord("the names of its fields aren't text")
        if len(set(fields)) < len(fields):
            raise CorruptRecord("two of its fields have the same name")
        if not set(_NEEDED[:kind]) <= set(fields):
            raise CorruptRecord(f"it lacks the field {' or '.join(_NEEDED[:kind])}, which such a class has")
        return cls(number, tag, name, kind, tuple(fields))

    def check(self, values: list[Any]) -> None:
        """Raise CorruptRecord if these can't be the values of a record."""
        if type(values) is not list:
            raise CorruptRecord("its values are no list")
        if len(values) != len(self.fields):
            raise CorruptRecord(f"it has {len(values)} values for the {len(self.fields)} fields of its schema")
        if self.kind != PERSISTABLE and type(values[self.fields.index("state")]) is not str:
            raise CorruptRecord("its state isn't text")
        if self.kind == COLLECTION and type(values[self.fields.index("tasks")]) is not list:
            raise CorruptRecord("its tasks aren't a list")

    def state(self, values: list[Any]) -> str:
        """Return the state in the values of a record, '' if its kind has none."""
        return "" if self.kind == PERSISTABLE else values[self.fields.index("state")]


def schema_or_bytes(number: int, data: bytes) -> Schema | bytes:
    """Return the schema of that *number*, or *data* as they are if it is damaged."""
    try:
        return Schema.from_bytes(number, data)
    except CorruptRecord:
        return data


def stored_schema(number: int, schema: Schema | bytes) -> tuple[bytes, bytes]:
    """Return a schema, or the bytes of a damaged one, as an item of the table `schemas`."""
    return number.to_bytes(4, "big"), schema.to_bytes() if isinstance(schema, Schema) else schema
