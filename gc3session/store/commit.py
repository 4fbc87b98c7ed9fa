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

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConflictError, CorruptRecord
from ..format.frame import RECORD_KEY, Header, header_of, schema_number_or_0, with_home
from ..index.entries import BLOCK, Kind
from ..index.index_writer import IndexWriter
from ..index.membership import Membership
from ..records.batch import REMOVED
from ..tables.interface import META, RECORDS, Writer

if TYPE_CHECKING:
    from .reading import StoreReading

RECORDS_KEY: Final = b"records"
"""The key in the table `meta` of how many records there are (8 bytes)."""

Moves = dict[tuple[int, Kind | None, Kind], list[int]]
"""A session, where its index probably has records, and where it is to have them -> their Ns, sorted."""

_CHUNK: Final = 4096  # records read at a time
_key = RECORD_KEY.pack


class Commit:
    """Writes the batch of a store in a transaction.

    Args:
        store: whose batch it is.
        writer: of the transaction.
        index_writer: of the same.
    """

    def __init__(self, store: StoreReading, writer: Writer, index_writer: IndexWriter) -> None:
        self._store = store
        self._batch = store.batch
        self._writer = writer
        self._index_writer = index_writer
        self._stored: dict[int, tuple[bytes, Header | None]] = {}  # records that are there, of those concerned
        self._homes: dict[int, int] = {}  # N -> the home that its record gets, if that isn't what it says

    def write(self) -> None:
        """Write records and index entries.  Raise ConflictError if a stored record isn't as the batch expects."""
        batch, writer, indexes = self._batch, self._writer, self._store.indexes
        updates, removed = sorted(batch.updates()), sorted(batch.removals())
        self._read(sorted({*updates, *removed, *(n for index in indexes for n in (*index.left, *index.adopted))}))
        self._check_conflicts(updates + removed)
        holding = {n: self._holding(n) for n in (*updates, *removed) if n in self._stored}
        moves = self._moves(updates, holding)
        self._prepare(removed, moves, holding)
        for number in removed:
            self._remove(number)
        for index in indexes:
            self._leave(index)
        for index in indexes:
            self._join(index)
        for (session, before, after), numbers in moves.items():
            self._index_writer.move(session, numbers, before, after)
        self._put_homes()
        writer.delete(RECORDS, map(_key, removed))
        if updates:
            writer.put(RECORDS, [(_key(number), self._with_home_there(number)) for number in updates])
        new = sorted(number for number in batch.records if number not in batch.bases)
        writer.add(RECORDS, [(_key(number), self._with_new_home(number)) for number in new])
        change = len(new) - sum(number in self._stored for number in removed)
        if change:
            writer.count(META, RECORDS_KEY, change)

    # -- what is there

    def _read(self, numbers: list[int]) -> None:
        """Read and lock stored records, and read which sessions hold them, too."""
        for i in range(0, len(numbers), _CHUNK):
            keys = [_key(number) for number in numbers[i : i + _CHUNK]]
            self._writer.lock(RECORDS, keys)
            self._index_writer.read_holders(numbers[i : i + _CHUNK])
            for key, record in self._writer.get_many(RECORDS, keys):
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
        state = None if base is None else self._index_writer.states.known(base[1])
        return None if header is None or state is None else Kind(header.schema, state)

    def _holding(self, number: int) -> list[int]:
        """Return the numbers of the sessions that hold a stored record."""
        return self._index_writer.holding(number, self._home(number))

    def _prepare(self, removed: list[int], moves: Moves, holding: dict[int, list[int]]) -> None:
        """Lock the sessions that hold what changes, and read those of their entries that probably do."""
        own = {index.known_number for index in self._store.indexes}
        self._index_writer.lock({*chain.from_iterable(holding.values())} - own)
        places = [
            (session, block * BLOCK, kind)
            for (session, *kinds), numbers in moves.items()
            for block in {number // BLOCK for number in numbers}
            for kind in kinds
        ]
        for number in filter(holding.__contains__, removed):
            places += [(session, number, self._kind_before(number)) for session in holding[number]]
        self._index_writer.read(places)

    # -- what leaves

    def _remove(self, number: int) -> None:
        """Take a record that is removed out of each session that has it."""
        if number not in self._stored:
            return
        sessions = self._holding(number)
        for session in sessions:
            self._take(session, number)
        self._index_writer.release(sessions, number)

    def _take(self, session: int, number: int) -> bool:
        kind = self._index_writer.remove(session, number, self._kind_before(number))
        if kind is not None:
            self._index_writer.remove_line(session, number, kind.schema)
        return kind is not None

    def _leave(self, index: Membership) -> None:
        """Take out of a session what the batch takes away."""
        numbers = sorted(index.left)
        if not numbers:
            return
        session = self._index_writer.row(index.identity).number
        self._index_writer.read([(session, n, self._kind_before(n)) for n in numbers if n in self._stored])
        for number in numbers:
            if number in self._stored and self._take(session, number):
                self._give_up(session, number)

    def _give_up(self, session: int, number: int) -> None:
        """Note that a session doesn't hold a record any more: another one becomes its home, or none."""
        if self._home(number) != session:
            self._index_writer.release([session], number)
            return
        others = [other for other in self._holding(number) if other != session][:1]
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

    def _join(self, index: Membership) -> None:
        """Put into a session what the batch adds.  Raise ConflictError if an added record is gone."""
        if not index.joined:
            return
        session = self._index_writer.row(index.identity).number
        kinds: dict[tuple[int, str], list[int]] = {}
        entries: list[tuple[int, int]] = []
        store, batch = self._store, self._batch
        for number in sorted(index.joined):
            if number in index.adopted:
                record = batch.records.get(number)
                if number not in self._stored and record is None:
                    living = self._store.loader.living(number)
                    id_ = f"Unreadable.{number}" if living is None else str(living.persistent_id)
                    raise ConflictError(
                        f"{id_} was removed from the store while it was being added; nothing was written."
                        " forget() gives that up",
                        (id_,),
                    )
                if not self._adopt(index, session, number):
                    continue
                schema = schema_number_or_0(record or self._stored[number][0])
                state = store.state_of(self._writer, number) or ""
            else:  # a new one
                schema, _, home, _ = header_of(batch.records[number])
                state = batch.states[number]
                if home != session:
                    self._settle(session, number)
            entries.append((number, schema))
            kinds.setdefault((schema, state), []).append(number)
        states = self._index_writer.states
        self._index_writer.add(
            session, {Kind(schema, states.number(state)): n for (schema, state), n in kinds.items()}
        )
        if entries:
            self._index_writer.add_lines(session, entries)

    def _adopt(self, index: Membership, session: int, number: int) -> bool:
        """Note that a session has a stored record, too; return False if another process was faster."""
        if number in self._stored and number not in self._homes:
            record, header = self._stored[number]
            damaged = header is None and index.is_committed(self._writer, number, record)
            if damaged or session in self._holding(number):
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

    def _moves(self, updates: list[int], holding: dict[int, list[int]]) -> Moves:
        """Return which records get another state or schema; *holding* are the sessions that hold each."""
        bases, records, states = self._batch.bases, self._batch.records, self._batch.states
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number in updates:
            header = self._stored[number][1]
            former, after = header and header.schema, header_of(records[number]).schema
            key = former, bases[number][1], after, states[number], *holding[number]
            alike.setdefault(key, []).append(number)
        moves: Moves = {}
        for (_, _, schema, state, *sessions), numbers in alike.items():
            before, kind = self._kind_before(numbers[0]), Kind(schema, self._index_writer.states.number(state))
            if before != kind:
                for session in sessions:
                    moves.setdefault((session, before, kind), []).extend(numbers)
        for numbers in moves.values():
            numbers.sort()
        return moves

    def _with_home_there(self, number: int) -> bytes:
        """Return a staged record with the home that the stored one has, or gets."""
        record, home = self._batch.records[number], self._home(number)
        return record if header_of(record).home == home else with_home(number, record, home)

    def _with_new_home(self, number: int) -> bytes:
        record = self._batch.records[number]
        return with_home(number, record, self._homes[number]) if number in self._homes else record
