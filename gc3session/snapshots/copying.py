"""Records that come from elsewhere, from another store or from a dump, into the store of a session.

They keep their Ns if the store has handed out none of these. Else the same number is added to each, also
in references. Schemas, states and the session itself have other numbers in each store.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import starmap
from typing import Final

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, TAIL, head, header_of, seal, unseal
from ..format.schema import Schema, stored_schema
from ..index.entries import Kind
from ..index.index_writer import IndexWriter
from ..records.references import with_references
from ..records.sequence import NEXT_KEY
from ..store.commit import RECORDS_KEY
from ..store.index import Index
from ..tables.interface import HOLDERS, META, NUMBERING, RECORDS, SCHEMAS, Item, Writer
from .snapshot import HeldRecord, Snapshot

BATCH_BYTES: Final = 16 << 20
"""Of memory that the records take which are written in one transaction."""

_ITEMS_AT_ONCE: Final = 4096  # that are deleted by one call
_RECORD_BYTES: Final = 400  # memory that a record takes beside its bytes, with its entry
_key = RECORD_KEY.pack


class RecordCopier:
    """Writes records that come from elsewhere: `reserve`, then `add` for each, sorted by their Ns, then `write`.

    Args:
        index: the session's; its batch is empty.
        schemas: those of the records, by their numbers there.
        numbers: from the least N of the records to the one after the greatest that was handed out there.
        coming: the key in the table `meta` of a note of what is coming (see `coming_key`); what an earlier copying,
            which was interrupted, has noted there is deleted first, and its Ns are free. b'' for no note.

    Attributes:
        shift: what is added to each N.
        before: the least N that the store had not handed out.
        records, members: how many have been written, and how many of them the session holds.
    """

    def __init__(
        self, index: Index, schemas: dict[int, Schema | bytes], numbers: range, coming: bytes = b""
    ) -> None:
        self._coming = coming
        self._index = index
        self._store = index.store
        self._schemas = schemas
        self._numbers = numbers
        self._home = 0
        self._here: dict[int, int] = {}  # number of a schema there -> its number here
        self._has_same_schemas = False
        self._is_alone = False  # whether there are no records to which references could lead by mistake
        self._items: list[Item] = []
        self._entries: list[tuple[int, int]] = []
        self._kinds: dict[tuple[int, str], list[int]] = {}
        self._held: list[int] = []  # damaged records of the session that don't say so
        self._bytes = 0
        self.shift = self.records = self.members = 0
        self.before = 1

    def reserve(self, on_clash: str) -> bool:
        """Take the Ns of the records from the store's sequence, and store the schemas.

        If the store has handed some of them out, *on_clash* says what to do: 'fail', and return False with nothing
        taken; 'renumber'; or 'skip', if those won't be added.
        """
        first, next_ = self._numbers.start, self._numbers.stop
        taken = False

        def unit(index_writer: IndexWriter, writer: Writer) -> None:
            nonlocal taken
            self._home = index_writer.row(self._index.identity).number
            own = self._cleared(index_writer, writer)
            writer.lock(META, [NUMBERING])
            writer.lock(META, [NEXT_KEY])
            self.before = here = RECORD_KEY.unpack(writer.get(META, NEXT_KEY) or _key(1))[0]
            end = min(here, next_)
            taken = first < end and not (own.start <= first and end <= own.stop)
            if taken and on_clash == "fail":
                return
            self.shift = here - first if taken and on_clash == "renumber" else 0
            end = next_ + self.shift
            writer.put(META, [(NEXT_KEY, _key(max(here, end)))])
            if self._coming:
                note = _key(first + self.shift) + _key(end) + self._index.identity
                writer.put(META, [(self._coming, note)])
            index_writer.follow_mirror(self._index.identity)
            self._is_alone = on_clash == "skip" or not writer.scan(RECORDS, b"", 1)
            schemas = list(starmap(stored_schema, self._schemas.items()))
            self._has_same_schemas = writer.scan(SCHEMAS, b"") in ([], schemas)
            if self._has_same_schemas:
                writer.put(SCHEMAS, schemas)

        with self._store.lock:
            self._store.write(unit, numbers=False)
        if taken and on_clash == "fail":
            return False
        for number, schema in self._schemas.items():
            if self._has_same_schemas:
                self._here[number] = number
            elif isinstance(schema, Schema):
                self._here[number] = self._store.schemas.stored(schema).number
        return True

    def _cleared(self, index_writer: IndexWriter, writer: Writer) -> range:
        """Delete what an interrupted copying has left, and return the Ns that it had reserved."""
        left = writer.get(META, self._coming) if self._coming else None
        if left is None:
            return range(0)
        first, next_, identity = left[:8], left[8:16], left[16:]
        index_writer.erase(identity)
        for table in (RECORDS, HOLDERS):
            while keys := [key for key, _ in writer.scan(table, first, _ITEMS_AT_ONCE) if key < next_]:
                writer.delete(table, keys)
                if table == RECORDS:
                    writer.count(META, RECORDS_KEY, -len(keys))
        return range(int.from_bytes(first, "big"), int.from_bytes(next_, "big"))

    def add(self, number: int, schema: int, revision: int, values: bytes, state: str | None) -> None:
        """Add a record.

        Args:
            number: its N.
            schema: the number of its schema; both are those that it had.
            revision: of the record.
            values: the msgpack bytes of its values.
            state: its state, if it is to be in the session; else None.
        """
        here = self._here[schema]
        self._add(number + self.shift, here, self._sealed(number, here, revision, values, state), state)

    def add_unreadable(self, number: int, schema: int, data: bytes, state: str | None) -> None:
        """Add a record that can't be read; *schema* has the name in its ID.

        Raise ValueError if it could be read once its schema is repaired, which can't be brought along.
        """
        home = self._home
        try:
            _, revision, home, end = header = header_of(data)
            unseal(number, data)
        except CorruptRecord:
            pass  # its bytes are damaged, and stay as they are
        else:
            if not self._has_same_schemas:
                raise ValueError(
                    f"record {number} can't be read: its schema is damaged, so only a new store can take it over"
                )
            home, data = self._home, self._sealed(number, header.schema, revision, data[end:-TAIL], state)
        number += self.shift
        if state is not None and home != self._home:
            self._held.append(number)
        self._add(number, self._here.get(schema, 0), data, state)

    def _sealed(self, number: int, schema: int, revision: int, values: bytes, state: str | None) -> bytes:
        """Return a record as it is to be here."""
        if self.shift or not self._is_alone:
            values = with_references(values, self._moved)
        return seal(number + self.shift, head(schema, revision, 0 if state is None else self._home) + values)

    def _moved(self, number: int) -> int:
        """Return the N that a reference gets.

        One whose record isn't among these must not lead to a record of the store: it gets 0, which no record has.
        """
        if number in self._numbers:
            return number + self.shift
        return number if self._is_alone else 0

    def _add(self, number: int, schema: int, data: bytes, state: str | None) -> None:
        self._items.append((_key(number), data))
        if state is not None:
            self._entries.append((number, schema))
            self._kinds.setdefault((schema, state), []).append(number)
        self._bytes += _RECORD_BYTES + len(data)
        if self._bytes >= BATCH_BYTES:
            self.write()

    def write(self) -> None:
        """Write the records that have been added since the last time, in one transaction."""
        items, entries, kinds, held = self._items, self._entries, self._kinds, self._held
        self._items, self._entries, self._kinds, self._held, self._bytes = [], [], {}, [], 0

        def unit(index_writer: IndexWriter, writer: Writer) -> None:
            index_writer.row(self._index.identity)  # which is locked first
            writer.add(RECORDS, items)
            writer.count(META, RECORDS_KEY, len(items))
            states = index_writer.states
            index_writer.add(
                self._home, {Kind(schema, states.number(state)): n for (schema, state), n in kinds.items()}
            )
            if entries:
                index_writer.add_lines(self._home, entries)
            for number in held:
                index_writer.hold(self._home, number)

        if items:
            with self._store.lock:
                self._store.write(unit, numbers=False)
            self.records += len(items)
            self.members += len(entries)


def copy_records(
    source: Snapshot, records: Iterable[HeldRecord], index: Index, coming: bytes = b""
) -> RecordCopier:
    """Copy the records of a snapshot into another store, into the session of *index* there; return what was done.

    If the store has handed out some of their Ns, they are renumbered.  *coming* is as in `RecordCopier`.  Raise
    ValueError if a record can't be taken over.
    """
    copier = RecordCopier(index, source.schemas, range(source.first, source.next), coming)
    copier.reserve("renumber")
    for number, schema, is_readable, state, data in records:
        if is_readable:
            header = header_of(data)
            copier.add(number, schema, header.revision, data[header.end : -TAIL], state)
        else:
            copier.add_unreadable(number, schema, data, state)
    copier.write()
    return copier
