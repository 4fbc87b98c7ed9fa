"""The index: which records belong to one session, with the batch over what is committed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from ..errors import ClosedError, ConflictError
from ..format.frame import RECORD_KEY, schema_number
from ..tables.interface import LATE_MEMBERS, MEMBERS, STATES, Reader, Writer
from .entries import (
    LATE_BIT,
    MAX_STATE,
    MEMBER,
    SESSION_KEY,
    Entry,
    Row,
    entries_at,
    entry_at,
    expect_members,
    member,
    state_key,
)
from .index_writer import IndexWriter, Listener, Membership, NewEntries

if TYPE_CHECKING:
    from ..store.store import Store

CHUNK = 512
"""Entries that are read in one transaction."""

SetItem = Callable[[dict[int, int], int, int | None], None]


class Index:
    """One session's entries: those that are committed, and over them those of the batch.

    Attributes:
        store: where the records are.
        identity: 16 bytes that name the session in its store.
        listener: who is told of each commit; None if nobody.
        joined: order -> N, entries that the batch adds.
        late: N -> order, those of them whose order isn't their N.
        left: order -> N, committed entries that the batch takes away.
    """

    def __init__(self, store: Store, identity: bytes) -> None:
        self.identity = identity
        self.listener: Listener | None = None
        self.store = store
        self._number: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the batch."""
        self.joined: dict[int, int] = {}
        self.late: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self._version = -1  # of the batch, for which the next is valid
        self._orders: list[int] = []  # of joined, sorted
        self._seen = (-1, -1)  # version of the batch and committed state for which the next two are valid
        self._shown: list[int] | None = None  # of joined, sorted, without what is committed meanwhile
        self._changed: dict[str, list[Entry]] = {}  # state -> entries in it because of the batch

    def ensure_open(self) -> None:
        """Raise ClosedError if the session has been closed by this program."""
        if self not in self.store.indexes:
            raise ClosedError("the session is closed; open it again")

    # -- reading; each takes the state that it is to be read from

    def session(self, reader: Reader) -> int | None:
        """Return the session's number in the store, or None if nothing of it was written yet."""
        if self._number is None:
            row = Row.read(reader, self.identity)
            self._number = None if row is None else row.number
        return self._number

    def order_of(self, reader: Reader, number: int) -> int | None:
        """Return the order of record N in the session, or None if it isn't in it."""
        if self.joined.get(number) == number:
            return number
        order = self.committed_order(reader, number)
        if order is not None and order not in self.left:
            return order  # whether the batch adds it, too, or not
        return self.late.get(number)

    def expect_orders(self, reader: Reader, numbers: Iterable[int]) -> None:
        """Tell the reader that `committed_order` will be called for all of these Ns."""
        session = self.session(reader)
        if session is not None:
            numbers = list(numbers)
            expect_members(reader, session, numbers)
            key = SESSION_KEY.pack(session)
            reader.expect(LATE_MEMBERS, [RECORD_KEY.pack(number) + key for number in numbers])

    def committed_order(self, reader: Reader, number: int) -> int | None:
        """Return what `order_of` would without the batch."""
        session = self.session(reader)
        if session is None:
            return None
        entry = member(reader, session, number)
        if entry is not None and not entry[0] & LATE_BIT:
            return number
        late = reader.get(LATE_MEMBERS, RECORD_KEY.pack(number) + SESSION_KEY.pack(session))
        return None if late is None else RECORD_KEY.unpack(late)[0]

    def count(self, reader: Reader) -> int:
        """Return how many entries there are."""
        session = self.session(reader)
        count = len(self.joined)
        if session is None:
            return count
        count += reader.count(MEMBERS, SESSION_KEY.pack(session))
        expect_members(reader, session, self.left)
        self.expect_orders(reader, self.late)
        # Of both kinds, another process may have done the same meanwhile.
        count -= sum(member(reader, session, order) is not None for order in self.left)
        return count - sum(self._doubled(reader, number) for number in self.late)

    def _doubled(self, reader: Reader, number: int) -> bool:
        """Return whether another process has added record N, too, since the batch did."""
        order = self.committed_order(reader, number)
        return order is not None and order not in self.left

    def chunk(self, reader: Reader, after: int, size: int = CHUNK) -> list[Entry]:
        """Return the next entries after an order, at most *size*; none means that there are no more."""
        session = self.session(reader)
        if session is None:
            return self._merged(reader, [], after, None, size)
        while True:
            start = MEMBER.pack(after + 1, 0, 0)
            values = reader.values(MEMBERS, SESSION_KEY.pack(session), start, size)
            entries = entries_at(reader, [(order, schema) for order, schema, _ in map(MEMBER.unpack, values)])
            full = len(values) == size
            merged = self._merged(reader, entries, after, entries[-1][0] if full else None, size)
            if merged or not full:
                return merged
            after = entries[-1][0]  # all of these have left

    def _merged(
        self, reader: Reader, committed: list[Entry], after: int, until: int | None, size: int
    ) -> list[Entry]:
        """Return committed entries with those of the batch, up to an order."""
        if self.left:
            committed = [entry for entry in committed if entry[0] not in self.left]
        if not self.joined:
            return committed
        orders = self._shown_orders(reader)
        first = bisect_right(orders, after)
        last = len(orders) if until is None else bisect_right(orders, until)
        last = min(last, first + size)
        if first == last:
            return committed
        staged = [
            (order, self.joined[order], self.store.schema_number_of(reader, self.joined[order]))
            for order in orders[first:last]
        ]
        return sorted(committed + staged)[:size]

    def _shown_orders(self, reader: Reader) -> list[int]:
        """Return the orders of what the batch adds, sorted, but for what another process has added, too."""
        self._notice_changes(reader)
        if self._shown is None:
            self._shown = self._sorted_orders()
            self.expect_orders(reader, self.late)
            doubled = {order for number, order in self.late.items() if self._doubled(reader, number)}
            if doubled:
                self._shown = [order for order in self._shown if order not in doubled]
        return self._shown

    def _sorted_orders(self) -> list[int]:
        if self._version != self.store.batch.version:
            self._version, self._orders = self.store.batch.version, []
        if len(self._orders) != len(self.joined):
            orders = list(self.joined)
            if any(a > b for a, b in pairwise(orders)):
                orders.sort()
            self._orders = orders
        return self._orders

    def _notice_changes(self, reader: Reader) -> None:
        """Forget what was worked out from the batch and what is committed if one of them has changed since."""
        seen = self.store.batch.version, reader.serial
        if self._seen != seen:
            self._seen, self._shown, self._changed = seen, None, {}

    def counts(self, reader: Reader) -> dict[str, int]:
        """Return how many tasks are in which state; persistables that have none are left out."""
        session = self.session(reader)
        counts: dict[str, int] = {}
        if session is not None:
            for key, count in reader.counts(STATES, SESSION_KEY.pack(session)):
                counts[self._state_name(reader, session, key)] = count
        for before, after in self._moves(reader):
            if before is not None:
                counts[before] -= 1
            if after is not None:
                counts[after] = counts.get(after, 0) + 1
        return {state: count for state, count in sorted(counts.items()) if state and count}

    def _state_name(self, reader: Reader, session: int, key: bytes) -> str:
        name = key[4:]
        if len(name) < MAX_STATE:
            return name.decode("utf-8", "surrogatepass")
        value = reader.last_value(STATES, key)  # a name that was cut: its tasks know it
        assert value is not None
        order = RECORD_KEY.unpack(value)[0]
        schema, _ = member(reader, session, order) or (0, 0)
        entry = entry_at(reader, order, schema)
        return self.store.committed_state(reader, entry[1]) or name.decode("utf-8", "replace")

    def _moves(self, reader: Reader) -> Iterator[tuple[str | None, str | None]]:
        """Give the state before and after for each entry that the batch changes."""
        store = self.store
        changed = [*self.late, *self.left.values(), *store.batch.updates()]
        self.expect_orders(reader, changed)
        store.expect_records(reader, changed)
        for order, number in self.joined.items():
            if order == number or not self._doubled(reader, number):
                yield None, store.state_of(reader, number)
        for order, number in self.left.items():
            if self.committed_order(reader, number) == order:
                yield store.committed_state(reader, number), None
        for number in store.batch.updates():
            order_now = self.committed_order(reader, number)
            if order_now is not None and order_now not in self.left:
                yield store.committed_state(reader, number), store.state_of(reader, number)

    def chunk_in_state(self, reader: Reader, state: str, after: int, size: int = CHUNK) -> list[Entry]:
        """Return the next entries in a state after an order, at most *size*; none means there are no more."""
        session = self.session(reader)
        self._notice_changes(reader)
        if state not in self._changed:
            self._changed[state] = sorted(self._changed_to(reader, state))
        changed = self._changed[state]
        first = bisect_right(changed, after, key=itemgetter(0))
        if session is None:
            return changed[first : first + size]
        start = RECORD_KEY.pack(after + 1)
        while True:
            values = reader.values(STATES, state_key(session, state), start, size)
            orders = [RECORD_KEY.unpack(value)[0] for value in values]
            full = len(values) == size
            expect_members(reader, session, orders)
            found = [(order, member(reader, session, order)) for order in orders if order not in self.left]
            entries = entries_at(reader, [(order, entry[0]) for order, entry in found if entry is not None])
            entries = [entry for entry in entries if entry[1] not in self.store.batch.records]
            last = len(changed)
            if full:
                last = bisect_right(changed, orders[-1], key=itemgetter(0))
            merged = sorted(entries + changed[first : min(last, first + size)])[:size]
            if merged or not full:
                return merged
            first, start = last, RECORD_KEY.pack(orders[-1] + 1)

    def _changed_to(self, reader: Reader, state: str) -> Iterator[Entry]:
        """Give the entries that are in a state because of the batch."""
        store = self.store
        updates = store.batch.updates()
        self.expect_orders(reader, updates)
        for order in self._shown_orders(reader):
            number = self.joined[order]
            if store.state_of(reader, number) == state:
                yield order, number, store.schema_number_of(reader, number)
        for number in updates:
            order_now = self.committed_order(reader, number)
            if order_now is None or order_now in self.left:
                continue
            if store.state_of(reader, number) == state:
                yield order_now, number, store.schema_number_of(reader, number)

    # -- the batch; *set_item* is the batch's, so that it can be undone

    def join(self, set_item: SetItem, order: int, number: int) -> None:
        """Add record N at an order."""
        set_item(self.joined, order, number)
        if order != number:
            set_item(self.late, number, order)

    def leave(self, set_item: SetItem, order: int, number: int) -> None:
        """Take the entry of an order, which is record N, away."""
        late = self.late.get(number)
        if late is not None:
            set_item(self.late, number, None)
            set_item(self.joined, late, None)
        if order in self.joined:
            set_item(self.joined, order, None)
        elif order != late:  # committed: of what is late, by another process that has added it, too
            set_item(self.left, order, number)

    # -- writing

    def write_left(self, index_writer: IndexWriter, writer: Writer) -> None:
        """Note in the index_writer what the batch takes away."""
        self.expect_orders(writer, [*self.left.values(), *self.late])
        self.store.expect_records(writer, [*self.left.values(), *self.late])
        for order, number in self.left.items():
            if self.committed_order(writer, number) == order:
                session = self.session(writer)
                assert session is not None
                index_writer.leave(Membership(session, order), number, self.store.committed_state(writer, number))

    def write_joined(self, index_writer: IndexWriter, writer: Writer) -> None:
        """Write what the batch adds.  Raise ConflictError if an added record is gone."""
        if not self.joined:
            return
        new_entries = self._new_entries(writer)
        last = self.last(writer)
        if new_entries.orders and new_entries.orders[0] <= last:
            # Another process has added meanwhile: these come after it.
            first = self.store.sequence.take_reserved(writer, len(new_entries.orders), last)
            new_entries = new_entries._replace(orders=list(range(first, first + len(new_entries.orders))))
        if new_entries.orders:
            index_writer.join(self.identity, new_entries)

    def _new_entries(self, writer: Writer) -> NewEntries:
        """Return the entries that the batch adds; raise ConflictError if the record of one is gone."""
        store = self.store
        orders = self._sorted_orders()
        if not self.late:
            batch = store.batch
            schemas = [schema_number(batch.records[number]) for number in orders]
            return NewEntries(orders, orders, schemas, [batch.states[number] for number in orders])
        # Another process may have added the same.
        orders = [n for n in orders if self.joined[n] == n or self.committed_order(writer, self.joined[n]) is None]
        numbers = [self.joined[order] for order in orders]
        for number in numbers:
            if store.record(writer, number) is None:
                raise ConflictError(
                    f"record {number} was removed from the store while it was being added; nothing was written"
                )
        schemas = [store.schema_number_of(writer, number) for number in numbers]
        return NewEntries(orders, numbers, schemas, [store.state_of(writer, number) or "" for number in numbers])

    def last(self, reader: Reader) -> int:
        """Return the greatest committed order, or 0."""
        session = self.session(reader)
        value = None if session is None else reader.last_value(MEMBERS, SESSION_KEY.pack(session))
        return 0 if value is None else MEMBER.unpack(value)[0]
