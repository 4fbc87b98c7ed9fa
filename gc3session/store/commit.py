"""One commit: how what is in the batch, and more, comes to the disk.

Objects have been encoded before (staging.py).  Then, in one transaction of the tables:

1. the records that are overwritten or removed are compared with what the batch expects: if another
   program has changed one, ConflictError is raised, and nothing has happened;
2. what leaves is taken out of the index of each session that has it, and what joins is put into it;
   a record says which session is its home, and the table `holders` which others have it;
3. the records are written, and those that have another state or schema move in the index;
4. index entries, counts and the rows of the sessions are written, and what the mirrors need to know.

After the commit the mirrors follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import ConflictError, CorruptRecord
from ..format.frame import RECORD_KEY, Header, header_of, schema_number_or_0, with_home
from ..index.entries import Kind
from ..index.index import Index
from ..index.index_writer import IndexWriter
from ..records.batch import REMOVED
from ..tables.interface import META, RECORDS, Writer

if TYPE_CHECKING:
    from .store import Store

RECORDS_KEY: Final = b"records"
"""The key in the table `meta` of how many records there are (8 bytes)."""

_CHUNK: Final = 512  # records read at a time
_key = RECORD_KEY.pack


def count_records(writer: Writer, change: int) -> None:
    """Note that there are so many records more, or fewer."""
    count = int.from_bytes(writer.get(META, RECORDS_KEY) or b"", "big") + change
    writer.put(META, [(RECORDS_KEY, max(0, count).to_bytes(8, "big"))])


class Commit:
    """Writes the batch of a store in a transaction.

    Args:
        store: whose batch it is.
        writer: of the transaction.
        index_writer: of the same.
    """

    def __init__(self, store: Store, writer: Writer, index_writer: IndexWriter) -> None:
        self._store = store
        self._batch = store.batch
        self._writer = writer
        self._index_writer = index_writer
        self._stored: dict[int, tuple[bytes, Header | None]] = {}  # records that are there, of those concerned
        self._homes: dict[int, int] = {}  # N -> the home that its record gets, if that isn't what it says

    def write(self) -> None:
        """Write records and index entries.  Raise ConflictError if a stored record isn't as the batch expects."""
        batch, writer = self._batch, self._writer
        updates, removed = sorted(batch.updates()), sorted(batch.removals())
        if updates or removed:
            self._read(updates + removed)
            self._check_conflicts(updates + removed)
        for number in removed:
            self._remove(number)
        for index in self._store.indexes:
            self._leave(index)
        for index in self._store.indexes:
            self._join(index)
        self._move(updates)
        self._put_homes()
        writer.delete(RECORDS, map(_key, removed))
        if updates:
            writer.put(RECORDS, [(_key(number), self._with_home_there(number)) for number in updates])
        new = sorted(number for number in batch.records if number not in batch.bases)
        writer.add(RECORDS, [(_key(number), self._with_new_home(number)) for number in new])
        change = len(new) - sum(number in self._stored for number in removed)
        if change:
            count_records(writer, change)

    # -- what is there

    def _read(self, numbers: list[int]) -> None:
        """Read stored records that have not been read yet."""
        numbers = [number for number in numbers if number not in self._stored]
        for i in range(0, len(numbers), _CHUNK):
            for key, record in self._writer.get_many(RECORDS, [_key(number) for number in numbers[i : i + _CHUNK]]):
                try:
                    header: Header | None = header_of(record)
                except CorruptRecord:
                    header = None
                number = RECORD_KEY.unpack(key)[0]
                self._stored[number] = record, header
                if header is None:
                    self._homes[number] = self._index_writer.home_of(number)

    def _check_conflicts(self, numbers: list[int]) -> None:
        """Raise ConflictError if a stored record isn't of the revision that the batch expects."""
        batch = self._batch
        conflicts: list[str] = []
        for number in numbers:
            record, header = self._stored.get(number, (b"", None))
            found = -1 if header is None else header.revision
            revision, staged = batch.bases[number][0], batch.records[number]
            if staged == REMOVED and (not record or not revision):
                continue  # somebody else has removed it, too; or it has never been loaded here
            if not record or found != revision:
                name = self._store.schemas.name(schema_number_or_0(staged or record), self._writer)
                conflicts.append(f"{name}.{number}")
        if conflicts:
            shown = ", ".join(conflicts[:3]) + (f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else "")
            raise ConflictError(
                f"{shown} changed or removed in {self._store.url} since loaded here; nothing was written. refresh()"
                " takes over the stored state, save(force=True) overwrites it",
                tuple(conflicts),
            )

    def _home(self, number: int) -> int:
        """Return the home of a record as it is to be."""
        if number in self._homes:
            return self._homes[number]
        if number in self._stored:
            header = self._stored[number][1]
            assert header is not None
            return header.home
        staged = self._batch.records.get(number)
        return header_of(staged).home if staged else 0

    def _kind_before(self, number: int) -> Kind | None:
        """Return where the index probably has a stored record: a guess, which need not be right."""
        header, base = self._stored[number][1], self._batch.bases.get(number)
        state = None if base is None else self._store.states.number(base[1], self._writer)
        return None if header is None or state is None else Kind(header.schema, state)

    # -- what leaves

    def _remove(self, number: int) -> None:
        """Take a record that is removed out of each session that has it."""
        if number not in self._stored:
            return
        sessions = self._index_writer.holding(number, self._home(number))
        for session in sessions:
            self._take(session, number)
        self._index_writer.release(sessions, number)

    def _take(self, session: int, number: int) -> bool:
        kind = self._index_writer.remove(session, number, self._kind_before(number))
        if kind is not None:
            self._index_writer.remove_line(session, number, kind.schema)
        return kind is not None

    def _leave(self, index: Index) -> None:
        """Take out of a session what the batch takes away."""
        numbers = sorted(index.left)
        if not numbers:
            return
        self._read(numbers)
        session = self._index_writer.row(index.identity).number
        for number in numbers:
            if number in self._stored and self._take(session, number):
                self._give_up(session, number)

    def _give_up(self, session: int, number: int) -> None:
        """Note that a session doesn't hold a record any more: another one becomes its home, or none."""
        if self._home(number) != session:
            self._index_writer.release([session], number)
            return
        others = self._index_writer.holding(number, 0)[:1]
        self._homes[number] = others[0] if others else 0
        self._index_writer.release(others, number)

    def erase(self, identity: bytes) -> None:
        """Take a session out of the store; its records stay there."""
        session, numbers = self._index_writer.erase(identity)
        for i in range(0, len(numbers), _CHUNK):
            some = numbers[i : i + _CHUNK]
            self._stored.clear()
            self._homes.clear()
            self._read(some)
            for number in some:
                if number in self._stored:
                    self._give_up(session, number)
            self._put_homes()

    def _put_homes(self) -> None:
        """Write the records of which nothing but the home changes."""
        records = [
            (_key(number), with_home(number, self._stored[number][0], home))
            for number, home in sorted(self._homes.items())
            if number not in self._batch.records and self._stored[number][1] is not None
        ]
        if records:
            self._writer.put(RECORDS, records)

    # -- what joins

    def _join(self, index: Index) -> None:
        """Put into a session what the batch adds.  Raise ConflictError if an added record is gone."""
        if not index.joined:
            return
        session = self._index_writer.row(index.identity).number
        self._read(list(index.adopted))
        kinds: dict[tuple[int, str], list[int]] = {}
        entries: list[tuple[int, int]] = []
        store, batch = self._store, self._batch
        for number in sorted(index.joined):
            record = batch.records.get(number)
            if number in index.adopted:
                if number not in self._stored and record is None:
                    raise ConflictError(
                        f"record {number} was removed from the store while it was being added; nothing was written"
                    )
                if not self._adopt(index, session, number):
                    continue
            elif header_of(batch.records[number]).home != session:
                self._settle(session, number)
            schema = schema_number_or_0(record or self._stored[number][0])
            entries.append((number, schema))
            kinds.setdefault((schema, store.state_of(self._writer, number) or ""), []).append(number)
        states = self._index_writer.states
        self._index_writer.add(session, {Kind(schema, states.number(state)): n for (schema, state), n in kinds.items()})
        if entries:
            self._index_writer.add_lines(session, entries)

    def _adopt(self, index: Index, session: int, number: int) -> bool:
        """Note that a session has a stored record, too; return False if another process was faster."""
        if number in self._stored:
            if number not in self._homes and index.is_committed(self._writer, number, self._stored[number][0]):
                return False
        self._settle(session, number)
        return True

    def _settle(self, session: int, number: int) -> None:
        """Make a session the home of a record, or note it as one that holds it, too."""
        home = self._home(number)
        if home == 0:
            self._homes[number] = session
        elif home != session:
            self._index_writer.hold(session, number)

    # -- what changes

    def _move(self, updates: list[int]) -> None:
        """Have the index say of which schema, and in which state, the records are that are overwritten."""
        batch, states = self._batch, self._index_writer.states
        for number in updates:
            before = self._kind_before(number)
            after = Kind(schema_number_or_0(batch.records[number]), states.number(batch.states[number]))
            if before != after:
                for session in self._index_writer.holding(number, self._home(number)):
                    self._index_writer.move(session, number, before, after)

    def _with_home_there(self, number: int) -> bytes:
        """Return a staged record with the home that the stored one has, or gets."""
        record, home = self._batch.records[number], self._home(number)
        return record if header_of(record).home == home else with_home(number, record, home)

    def _with_new_home(self, number: int) -> bytes:
        record = self._batch.records[number]
        return with_home(number, record, self._homes[number]) if number in self._homes else record
