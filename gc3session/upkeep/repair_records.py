"""The repair of a store's schemas and records: what can't be read is taken out of the tables, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, schema_number_or_0
from ..format.schema import Schema
from ..system.number_set import Numbers
from ..tables.interface import META, RECORDS, SCHEMAS, Contents, Item, Writer
from .quarantine import DAMAGED
from .record_reader import RecordReader


class Known(NamedTuple):
    """What is known beside the tables.

    Attributes:
        identity: that of the session; None if it isn't known.
        line: returns the bytes of the mirror at a place, up to a size.
        listed: the Ns in the mirror that are to be added to the index if it lacks them.
        late: those of them that stand after greater ones, in their order.
        schemas: gives copies of schemas that stand elsewhere in the store.
    """

    identity: bytes | None
    line: Callable[[int, int], bytes]
    listed: Numbers
    late: list[int]
    schemas: Callable[[], Iterator[Item]]


class Changes(NamedTuple):
    """One repair of the tables, as its parts share it; the methods write nothing in a dry run.

    Attributes:
        contents: the committed state.
        writer: the transaction; None in a dry run.
        report: called with a line for each thing that is done.
        save: called with the name and the bytes of what is taken out, before that is deleted.
    """

    contents: Contents
    writer: Writer | None
    report: Callable[[str], None]
    save: Callable[[str, bytes], None]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if self.writer is not None:
            self.writer.put(table, [(key, value)])

    def delete(self, table: str, key: bytes) -> None:
        if self.writer is not None:
            self.writer.delete(table, [key])

    def add_value(self, table: str, key: bytes, value: bytes) -> None:
        if self.writer is not None:
            self.writer.put_values(table, key, [value])

    def delete_value(self, table: str, key: bytes, value: bytes) -> None:
        if self.writer is not None:
            self.writer.delete_values(table, key, [value])


class RecordsRepair:
    """The repair of schemas and records, and after it what can be read of them.

    Attributes:
        greatest: the greatest number that is in use as an N or an order.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._contents = changes.contents
        self._reader = RecordReader()
        self._present = Numbers()
        self.greatest = 0

    def run(self, copies: Callable[[], Iterator[Item]]) -> None:
        """Take out what can't be read. *copies* is that of `Known.schemas`."""
        self._repair_schemas(copies)
        for key, data in self._contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            try:
                if len(key) != 8 or not 0 < number < 1 << 63:
                    raise CorruptRecord("its key can't be an N")
                self._reader.check(number, data)
                self._present.add(number)
            except CorruptRecord as error:
                self._take_out(RECORDS, f"{number if len(key) == 8 else key.hex()}", key, data, error)
            if len(key) == 8 and number < 1 << 63:
                self.greatest = max(self.greatest, number)

    def _take_out(self, table: str, name: str, key: bytes, data: bytes, fault: CorruptRecord) -> None:
        kind = table.removesuffix("s")
        self._changes.save(f"{name}.{kind}", data)
        self._changes.report(f"{kind} {int.from_bytes(key, 'big')}: {fault}; moved to {DAMAGED}/")
        self._changes.delete(table, key)

    def _repair_schemas(self, copies: Callable[[], Iterator[Item]]) -> None:
        schemas = self._reader.schemas
        damaged: dict[int, tuple[bytes, bytes, CorruptRecord]] = {}
        for key, data in self._contents.walk(SCHEMAS):
            number = int.from_bytes(key, "big")
            try:
                schemas[number] = Schema.from_item(key, data)
            except CorruptRecord as error:
                damaged[number] = key, data, error
        needed = set(damaged)
        for _, record in self._contents.walk(RECORDS):
            number = schema_number_or_0(record)
            if 0 < number < 1 << 31 and number not in schemas:
                needed.add(number)
        if not needed:
            return
        # A schema never changes, so any copy of it that is left in an unused page is right.
        for key, data in copies():
            number = int.from_bytes(key, "big")
            if number in needed:
                schemas[number] = Schema.from_item(key, data)
                needed.discard(number)
                self._changes.put(SCHEMAS, key, data)
                self._changes.report(f"schema {number}: restored from a copy in the data file")
        for number in sorted(needed & set(damaged)):
            key, data, fault = damaged[number]
            self._take_out(SCHEMAS, f"{number if len(key) == 4 else key.hex()}", key, data, fault)

    # -- afterwards

    def has(self, number: int) -> bool:
        """Return whether there is a record N that can be read."""
        return number in self._present

    def name(self, schema: int) -> str | None:
        """Return the name in the IDs of a schema's records; None if there is no such schema."""
        found = self._reader.schemas.get(schema)
        return None if found is None else found.name

    def schema_and_state(self, number: int) -> tuple[Schema, str]:
        """Return schema and state of record N, which can be read."""
        data = self._contents.get(RECORDS, RECORD_KEY.pack(number))
        assert data is not None
        return self._reader.state(number, data)

    def new_number(self) -> int:
        """Return a number that was never handed out."""
        following = self._contents.get(META, b"next N") or b""
        self.greatest = max(self.greatest, int.from_bytes(following, "big") - 1 if len(following) == 8 else 0) + 1
        return self.greatest
