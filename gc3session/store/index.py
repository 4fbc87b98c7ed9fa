"""The entries of one session, as this program sees them: the committed ones, and over them those of the batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ClosedError
from ..format.frame import schema_number
from ..index.entries import BLOCK, COUNT, COUNT_KEY, SESSION_KEY, Block, Entry, Kind, next_block
from ..index.membership import Membership
from ..tables.interface import COUNTS, Reader

if TYPE_CHECKING:
    from .store import Store

CHUNK = 512
"""Entries that are read in one transaction."""


class Index(Membership):
    """The members of one session with their classes and states, in the order of N.

    Attributes:
        store: where the records are.
    """

    def __init__(self, store: Store, identity: bytes) -> None:
        self.store = store
        super().__init__(identity)

    def reset(self) -> None:
        super().reset()
        self._version = -1  # of the batch, for which the next is valid
        self._sorted: list[int] = []  # joined
        self._seen = (-1, -1)  # version of the batch and committed state for which the next is valid
        self._changed: dict[str, list[int]] = {}  # state -> the Ns in it because of the batch, sorted

    def ensure_open(self) -> None:
        """Raise ClosedError if the session has been closed by this program."""
        if self not in self.store.indexes:
            raise ClosedError("the session is closed; open it again")

    def state(self, reader: Reader, number: int) -> str:
        """Return the state that the index has for a committed member; '' if it has none."""
        kind = self.kinds(reader, [number]).get(number)
        return "" if kind is None else self.store.states.name(kind.state, reader)

    def chunk(self, reader: Reader, after: int, size: int = CHUNK) -> list[Entry]:
        """Return the next entries after N *after*, at most *size*; none means that there are no more."""
        session = self.number(reader)
        while True:
            block = next_block(reader, session, (after + 1) // BLOCK) if session else None
            if block is None:
                return self._merged(reader, [], after, None, size)
            entries = block.entries(after, size + 1)
            more = len(entries) > size
            entries = entries[:size]
            until = entries[-1][0] if more else (block.number + 1) * BLOCK - 1
            merged = self._merged(reader, entries, after, until, size)
            if merged:
                return merged
            after = until  # all of these have left

    def _merged(
        self, reader: Reader, committed: list[Entry], after: int, until: int | None, size: int
    ) -> list[Entry]:
        """Return committed entries with those of the batch, up to an N."""
        batch = self.store.batch
        if self.left:
            committed = [entry for entry in committed if entry[0] not in self.left]
        if batch.bases:  # an update may have another schema
            committed = [(n, self._staged_schema(n, schema)) for n, schema in committed]
        if not self.joined:
            return committed
        numbers = self._sorted_joined()
        first = bisect_right(numbers, after)
        last = len(numbers) if until is None else bisect_right(numbers, until)
        last = min(last, first + size)
        if first == last:
            return committed
        staged = {n: self.store.schema_number_of(reader, n) for n in numbers[first:last]}
        return sorted((dict(committed) | staged).items())[:size]

    def _staged_schema(self, number: int, schema: int) -> int:
        record = self.store.batch.records.get(number)
        return schema_number(record) if record else schema

    def _sorted_joined(self) -> list[int]:
        if self._version != self.store.batch.version:
            self._sorted = sorted(self.joined)
            self._version = self.store.batch.version
        return self._sorted

    def counts(self, reader: Reader) -> dict[str, int]:
        """Return how many entries are in each state; those without a state aren't counted."""
        store, counts = self.store, dict[str, int]()
        session = self.number(reader)
        prefix = SESSION_KEY.pack(session)
        for key, value in reader.scan(COUNTS, prefix, None, prefix) if session else ():
            state = store.states.name(COUNT_KEY.unpack(key)[2], reader)
            counts[state] = counts.get(state, 0) + COUNT.unpack(value)[0]
        for before, after in self._moves(reader):
            if before is not None:
                counts[before] = counts.get(before, 0) - 1
            if after is not None:
                counts[after] = counts.get(after, 0) + 1
        return {state: count for state, count in sorted(counts.items()) if state and count > 0}

    def _moves(self, reader: Reader) -> Iterator[tuple[str | None, str | None]]:
        """Give the state before and after for each entry that the batch changes."""
        store, updates = self.store, self.store.batch.updates()
        kinds = self.kinds(reader, {*self.adopted, *self.left, *updates})
        for number in self.joined:
            if number not in kinds:
                yield None, store.state_of(reader, number)
        for number in {*self.left, *updates} & kinds.keys():
            before = store.states.name(kinds[number].state, reader)
            yield before, None if number in self.left else store.state_of(reader, number)

    def chunk_in_state(self, reader: Reader, state: str, after: int, size: int = CHUNK) -> list[Entry]:
        """Return the next entries in a state after N *after*, at most *size*; none means there are no more."""
        changed = self._changed_to(reader, state)
        first = bisect_right(changed, after)
        number, session = self.store.states.number(state, reader), self.number(reader)
        wanted = (
            [] if number is None else [Kind(schema, number) for schema in self._schemas(reader, session, number)]
        )
        while True:
            block = next_block(reader, session, (after + 1) // BLOCK, wanted) if session and wanted else None
            if block is None:
                last, entries = len(changed), list[Entry]()
            else:
                kinds = {kind: bits for kind, bits in block.kinds.items() if kind.state == number}
                staged = self.store.batch.records
                entries = [
                    entry
                    for entry in Block(block.number, kinds).entries(after)
                    if entry[0] not in self.left and entry[0] not in staged
                ]
                after = (block.number + 1) * BLOCK - 1
                last = bisect_right(changed, after)
            found = dict(entries) | {n: self.store.schema_number_of(reader, n) for n in changed[first:last]}
            if found or block is None:
                return sorted(found.items())[:size]
            first = last

    @staticmethod
    def _schemas(reader: Reader, session: int, state: int) -> list[int]:
        """Return the numbers of the schemas of which the session has members in a state."""
        prefix = SESSION_KEY.pack(session)
        keys = [COUNT_KEY.unpack(key) for key, _ in reader.scan(COUNTS, prefix, None, prefix)] if session else []
        return [schema for _, schema, found in keys if found == state]

    def _changed_to(self, reader: Reader, state: str) -> list[int]:
        """Return the Ns that are in a state because of the batch, sorted."""
        seen = self.store.batch.version, reader.serial
        if self._seen != seen:
            self._seen, self._changed = seen, {}
        if state not in self._changed:
            store = self.store
            numbers = {*self.joined, *self.held(reader, store.batch.updates())}
            self._changed[state] = sorted(n for n in numbers if store.state_of(reader, n) == state)
        return self._changed[state]
