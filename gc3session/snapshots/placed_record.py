"""Records with their places in a session, as a snapshot gives them and a copy takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..format.frame import RECORD_KEY
from ..index.index import Index
from ..index.index_writer import IndexWriter, NewEntries
from ..tables.interface import RECORDS, Writer


class PlacedRecord(NamedTuple):
    """A record and its place in the session.

    Attributes:
        number: its N.
        order: its order in the session, 0 if the session doesn't hold it.
        schema: the number of a schema that has the name in its ID.
        state: its state; in a snapshot None if the record can be read, because it says the state itself.
        data: its bytes.
    """

    number: int
    order: int
    schema: int
    state: str | None
    data: bytes

    @property
    def position(self) -> int:
        """What a snapshot's records are sorted by: the order, or the N if the session doesn't hold it."""
        return self.order or self.number


def write_records(index: Index, records: list[PlacedRecord], state_of: Callable[[PlacedRecord], str]) -> None:
    """Write records to a session's store, and the entries of those that it holds, in one transaction.

    The session must have no entry yet that comes after one of these.
    """
    items = sorted((RECORD_KEY.pack(record.number), record.data) for record in records)
    held = [record for record in records if record.order]
    orders, numbers = [record.order for record in held], [record.number for record in held]
    if numbers == orders:
        numbers = orders  # the same list: so the index knows that no entry is late
    entries = NewEntries(orders, numbers, [record.schema for record in held], list(map(state_of, held)))

    def unit(index_writer: IndexWriter, writer: Writer) -> None:
        writer.put(RECORDS, items)
        if held:
            index_writer.join(index.identity, entries)

    with index.store.lock:
        index.store.write(unit, numbers=False)
