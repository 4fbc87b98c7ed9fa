"""The repair of records and index: what records, `holders` and readable entries say of who holds what is made one again.

Whatever session a record, `holders` or the index gives a record to has it after that.
"""

from __future__ import annotations

from collections import Counter

from ..errors import CorruptRecord
from ..format.frame import RECORD_KEY, with_home
from ..index.entries import (
    BLOCK,
    BLOCK_KEY,
    COUNT,
    COUNT_KEY,
    HOLDER_KEY,
    INDEX_KEY,
    Kind,
    MirrorNote,
    Row,
    numbers_of,
    pack_members,
)
from ..tables.interface import COUNTS, HOLDERS, INDEX, LEASES, RECORDS, UNIQUE
from .changes import Changes
from .check_index import all_of, check_lease, entry_of, groups
from .check_mirror import bytes_of_lines
from .record_reader import Block, Read, RecordReader, read_blocks
from .repair_names import StatesRepair


class IndexRepair:
    """The repair of records and index of all sessions of a store.

    Args:
        changes: where the repair is written.
        reader: reads the records; its schemas have been repaired.
        states: gives states their numbers.
        restored: records that have been restored, by their keys.

    Attributes:
        greatest: the greatest N that is in use.
        records: how many records can be read.
    """

    def __init__(
        self, changes: Changes, reader: RecordReader, states: StatesRepair, restored: dict[bytes, bytes]
    ) -> None:
        self._changes = changes
        self._contents = changes.contents
        self._reader = reader
        self._states = states
        self._restored = restored
        self._adopted: dict[int, list[int]] = {}  # block -> sessions that only the index says have records of it
        self._homes: dict[int, int] = {}  # N -> the home that it has got here
        self._counts: Counter[tuple[int, Kind]] = Counter()  # how many members each session has
        self._totals: Counter[int] = Counter()
        self._lines: Counter[int] = Counter()  # how many bytes the lines of each session have
        self._changed: set[int] = set()  # sessions whose entries are changed
        self._with_keys = {int.from_bytes(key[:4], "big") for key, _ in self._contents.walk(UNIQUE)}
        self._members: dict[tuple[int, int], int] = {}  # session, block -> bits, of those sessions
        self.greatest = 0
        self.records = 0

    def run(self) -> None:
        """Repair records, holders, leases and entries."""
        for key, _ in self._contents.walk(INDEX):
            if len(key) != INDEX_KEY.size:
                self._changes.report(f"entry {key.hex()} of the index: its key can't be right; deleted")
                self._changes.delete(INDEX, key)
        for session, number, entries in groups(self._contents):
            members = numbers_of(number, all_of(entry.bits for entry in entries))
            if not any(self._reader.says(self._contents, n, session) for n in members):
                self._adopted.setdefault(number, []).append(session)
        records = ((key, self._restored.get(key, record)) for key, record in self._contents.walk(RECORDS))
        for block in read_blocks(self._contents, records, self._reader):
            self._repair_block(block)
        for number in list(self._adopted):
            self._repair_block(Block(number, {}, [], [], []))

    def has(self, session: int, number: int) -> bool:
        """Return whether a session that has unique keys has record N."""
        return bool(self._members.get((session, number // BLOCK), 0) >> number % BLOCK & 1)

    # -- block by block

    def _repair_block(self, block: Block) -> None:
        changes = self._changes
        for table, key in block.strange:
            if table == RECORDS:
                changes.take_out(table, key, CorruptRecord("its key can't be an N"))
            else:
                changes.report(f"{table} {key.hex()}: it can't be right; deleted")
                changes.delete(table, key)
        for number, read in block.records.items():
            self.greatest = max(self.greatest, number)
            if isinstance(read, Read):
                self.records += 1
                self._states.add(read.state)
            else:
                changes.take_out(RECORDS, RECORD_KEY.pack(number), read)
        for number, session in block.others:
            held = block.records.get(number)
            if not isinstance(held, Read) or held.home == session:
                changes.report(f"record {number}: that session {session} holds it, too, is wrong; deleted")
                changes.delete(HOLDERS, HOLDER_KEY.pack(number, session))
        for key, value in block.leases:
            self._repair_lease(block, key, value)
        members = block.members(self._reader)
        for session in sorted({*members, *self._adopted.pop(block.number, ())}):
            self._repair_entries(session, block, members.get(session, {}))

    def _repair_lease(self, block: Block, key: bytes, value: bytes) -> None:
        number, session = HOLDER_KEY.unpack(key)
        try:
            check_lease(number, value)
            if isinstance(block.records.get(number), Read):
                return
            fault = "it has no record that can be read"
        except CorruptRecord as error:
            fault = str(error)
        self._changes.report(f"the lease of record {number} in session {session}: {fault}; deleted")
        self._changes.delete(LEASES, key)

    def _repair_entries(self, session: int, block: Block, kinds: dict[Kind, int]) -> None:
        """Make the entries of a session for a block what the records say, and those of them that can be read."""
        items = self._contents.walk(INDEX, prefix=BLOCK_KEY.pack(session, block.number))
        stored = {key: value for key, value in items if len(key) == INDEX_KEY.size}
        entries = [entry_of(key, value) for key, value in stored.items()]
        before = all_of(entry.bits for entry in entries)
        for number in numbers_of(block.number, before & ~all_of(kinds.values())):
            read = block.records.get(number)
            if isinstance(read, Read):
                self._adopt(session, number, read)
                kind = self._reader.kind(read)
                kinds[kind] = kinds.get(kind, 0) | 1 << number % BLOCK
        after = all_of(kinds.values())
        wanted = {INDEX_KEY.pack(session, block.number, *kind): bits for kind, bits in kinds.items()}
        packed = {key: pack_members(key, bits) for key, bits in wanted.items()}
        if packed != stored:
            self._changed.add(session)
            for key in stored.keys() - packed.keys():
                self._changes.delete(INDEX, key)
            for key, value in packed.items():
                if stored.get(key) != value:
                    self._changes.put(INDEX, key, value)
            right = all_of(entry.bits & kinds.get(entry.kind, 0) for entry in entries)
            self._report(session, block, before, right, after)
        for kind, bits in kinds.items():
            self._counts[session, kind] += bits.bit_count()
            self._totals[session] += bits.bit_count()
            self._lines[session] += bytes_of_lines(block.number, bits, self._reader.schemas[kind.schema].name)
        if session in self._with_keys:
            self._members[session, block.number] = after

    def _report(self, session: int, block: Block, before: int, right: int, after: int) -> None:
        """Report what is done, by the members before and after, and those that were in the right entry."""
        for bits, what in (
            (before & ~after, "taken out of"),
            (after & ~before, "added to"),
            (after & before & ~right, "put into its place in"),
        ):
            for number in numbers_of(block.number, bits):
                read = block.records.get(number)
                name = read.schema.name if isinstance(read, Read) else "record"
                self._changes.report(f"{name}.{number}: {what} the index of session {session}")
        if before == right == after:
            self._changes.report(f"session {session}, block {block.number}: its entries are written again")

    def _adopt(self, session: int, number: int, read: Read) -> None:
        """Have a record, or `holders`, say what only the index says: that a session has it."""
        if read.home or number in self._homes:
            self._changes.put(HOLDERS, HOLDER_KEY.pack(number, session), b"")
        else:
            self._homes[number] = session
            key = RECORD_KEY.pack(number)
            record = self._restored.get(key) or self._contents.get(RECORDS, key)
            assert record is not None
            self._changes.put(RECORDS, key, with_home(number, record, session))
        self._changes.report(f"{read.schema.name}.{number}: it says again that session {session} has it")

    # -- afterwards

    def repair_counts(self) -> None:
        """Make the counts those of the entries."""
        wanted = {COUNT_KEY.pack(session, *kind): COUNT.pack(n) for (session, kind), n in self._counts.items()}
        for key, value in self._contents.walk(COUNTS):
            if wanted.get(key) == value:
                del wanted[key]
            elif key not in wanted:
                self._changes.report(f"count {key.hex()}: there are no such tasks; deleted")
                self._changes.delete(COUNTS, key)
        for key, value in wanted.items():
            session, schema, state = COUNT_KEY.unpack(key)
            self._changes.report(
                f"session {session}: its count for schema {schema} and state {state} is made right"
            )
            self._changes.put(COUNTS, key, value)

    def repair_row(self, identity: bytes, row: Row, *, is_new: bool) -> None:
        """Make a session's row what its entries say; its mirror is to be written anew if anything was wrong."""
        total = self._totals[row.number]
        blank = None if row.mirror is None else MirrorNote(*row.mirror).size - self._lines[row.number]
        sound = row.total == total and (row.mirror is None or MirrorNote(*row.mirror).blank == blank)
        if not sound and not is_new:
            self._changes.report(f"session {identity.hex()}: its row is corrected")
        if (not sound or is_new or row.number in self._changed) and self._changes.writer is not None:
            row._replace(total=total, mirror=None).write(self._changes.writer, identity)
