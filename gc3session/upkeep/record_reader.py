"""Records as a check and a repair read them: strictly, and without building anything of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CorruptRecord
from ..format.frame import values_of
from ..format.schema import Schema
from ..records.values import Decoder


class RecordReader:
    """Reads records. Each method raises CorruptRecord if the record can't be read.

    Attributes:
        schemas: those of the store that can be read, by their numbers.
    """

    def __init__(self) -> None:
        self.schemas: dict[int, Schema] = {}
        self._references: list[int] = []
        self._unpack = Decoder(self._references.append, checking=True).unpack

    def check(self, number: int, record: bytes) -> tuple[str, list[int]]:
        """Read all values of record N; return its ID and the Ns that it refers to."""
        self._references.clear()
        schema, _ = self._read(number, record, self._unpack)
        return f"{schema.name}.{number}", self._references

    def state(self, number: int, record: bytes) -> tuple[Schema, str]:
        """Return the schema and the state of record N, '' if its kind has none; its other values aren't decoded."""
        schema, values = self._read(number, record)
        return schema, schema.state(values)

    def _read(self, number: int, record: bytes, *unpack: Callable[[bytes], Any]) -> tuple[Schema, list[Any]]:
        written, revision, values = values_of(number, record, *unpack)
        if revision < 1:
            raise CorruptRecord(f"its revision can't be {revision}")
        schema = self.schemas.get(written)
        if schema is None:
            raise CorruptRecord(f"its schema {written} is damaged or missing")
        schema.check(values)
        return schema, values
