"""The index: which records belong to a session, in which order, and in which state they are.

A task that is added when its record is made has its N for its place in the session (its
*order*); at most one session can hold a record so.  A task that was stored before takes a fresh
number of the same sequence for its order, and two small tables lead from it to N and back
(LATE, LATE_MEMBERS).  So sorting by order is the order of adding, and an entry is 8 + 4 bytes::

    members:  session number (4)  ->  order (8), schema number (4; bit 31 set: late)
    states:   session number (4), state  ->  order (8)

The schema number gives the ID's name even where the record can't be read.  A persistable that
isn't a task has the state ''.  A state of more than MAX_STATE bytes is cut and its SHA-256 added.

The row of a session in the table `sessions` has the frame of a record (codec.py) around
`[ session number, mirror ]`; what the mirror keeps there is mirror.py's.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgpack

from .codec import seal, unseal
from .errors import CorruptStore
from .tables import LATE, LATE_MEMBERS, MEMBERS, META, RECORDS, SESSIONS, STATES, Reader, Writer
from .values import RECORD_KEY

if TYPE_CHECKING:
    from .store import Store

MAX_STATE = 400
"""Bytes of a state's name in a key; LMDB's keys have at most 511."""

_ENTRY = Struct(">QI")
_SESSION = Struct(">I")
_LATE_BIT = 1 << 31
_CHUNK = 256  # entries read in one transaction


class Entry(NamedTuple):
    """A task's place in a session."""

    order: int
    number: int  # its N
    schema: int  # the number of a schema that has the ID's name


class Listener(Protocol):
    """Who follows a session's commits: its mirror."""

    def prepare(self, writer: Writer, kept: Any, change: Change) -> Any:
        """Called in the transaction; return what the session's row is to keep."""

    def apply(self) -> None:
        """Called after the commit."""

    def release(self) -> None:
        """Called in the end, whether there was a commit or not."""


class Change(NamedTuple):
    """What a commit does to a session's index, in the order of adding."""

    number: int
    added: list[str]
    removed: list[str]


class Row(NamedTuple):
    """What the table `sessions` holds of a session."""

    number: int
    mirror: Any

    def to_bytes(self) -> bytes:
        return seal(0, msgpack.packb(list(self)))

    @classmethod
    def read(cls, reader: Reader, identity: bytes) -> Row | None:
        """Return the session's row, or None if it has never been written."""
        data = reader.get(SESSIONS, identity)
        if data is None:
            return None
        try:
            return cls(*msgpack.unpackb(unseal(0, data), use_list=True))
        except (ValueError, TypeError) as error:
            raise CorruptStore(f"the row of session {identity.hex()} is damaged: {error}") from error


def state_key(session: int, state: str) -> bytes:
    """Return the key of a state of a session in the table `states`."""
    name = state.encode("utf-8", "surrogatepass")
    if len(name) > MAX_STATE:
        name = name[: MAX_STATE - 32] + hashlib.sha256(name).digest()
    return _SESSION.pack(session) + name


class Holdings:
    """Writes the entries of all sessions of a store, in one transaction."""

    def __init__(self, writer: Writer, first: list[int]) -> None:
        self._writer = writer
        self._first = first  # the sessions that are asked first
        self._late = writer.entries(LATE_MEMBERS) > 0
        self._sessions: list[int] | None = None

    def of(self, number: int) -> list[tuple[int, int, bool]]:
        """Return session, order and whether it is late, for each session that holds record N."""
        key = RECORD_KEY.pack(number)
        found: list[tuple[int, int, bool]] = []
        start = key
        while self._late:
            items = self._writer.scan(LATE_MEMBERS, start, 16)
            found += [
                (_SESSION.unpack(item[8:])[0], RECORD_KEY.unpack(order)[0], True)
                for item, order in items
                if item[:8] == key
            ]
            if len(items) < 16 or items[-1][0][:8] != key:
                break
            start = items[-1][0] + b"\0"
        for session in self._candidates():
            if member(self._writer, session, number) is not None:
                found.append((session, number, False))
                break  # a record has its own N for its order in one session at most
        return found

    def _candidates(self) -> Iterator[int]:
        yield from self._first
        if self._sessions is None:
            rows = self._writer.scan(SESSIONS, b"", 1 << 30)
            numbers = (msgpack.unpackb(unseal(0, row))[0] for _, row in rows)
            self._sessions = [number for number in numbers if number not in self._first]
        yield from self._sessions

    def move(self, number: int, before: str | None, after: str) -> None:
        """Note in each session that record N is now in another state."""
        for session, order, _ in self.of(number):
            self._leave_state(session, order, before)
            self._writer.put_values(STATES, state_key(session, after), [RECORD_KEY.pack(order)])

    def leave(self, session: int, order: int, number: int, state: str | None) -> None:
        """Take record N, which is in *state* (None: unknown), out of a session."""
        entry = member(self._writer, session, order)
        if entry is None:
            return
        self._writer.delete_values(MEMBERS, _SESSION.pack(session), [_ENTRY.pack(order, entry)])
        if entry & _LATE_BIT:
            self._writer.delete(LATE, [RECORD_KEY.pack(order)])
            self._writer.delete(LATE_MEMBERS, [RECORD_KEY.pack(number) + _SESSION.pack(session)])
        self._leave_state(session, order, state)

    def _leave_state(self, session: int, order: int, state: str | None) -> None:
        value = [RECORD_KEY.pack(order)]
        if state is not None:
            self._writer.delete_values(STATES, state_key(session, state), value)
        else:  # a damaged record: it may be in any
            for key, _ in self._writer.counts(STATES, _SESSION.pack(session)):
                self._writer.delete_values(STATES, key, value)

    def join(self, session: int, entries: list[tuple[Entry, str]]) -> None:
        """Add entries with their states, in their order."""
        values, states = [], {}
        for (order, number, schema), state in entries:
            late = order != number
            values.append(_ENTRY.pack(order, schema | _LATE_BIT if late else schema))
            states.setdefault(state, []).append(RECORD_KEY.pack(order))
            if late:
                key, session_key = RECORD_KEY.pack(number), _SESSION.pack(session)
                self._writer.put(LATE, [(RECORD_KEY.pack(order), key)])
                self._writer.put(LATE_MEMBERS, [(key + session_key, RECORD_KEY.pack(order))])
        self._writer.put_values(MEMBERS, _SESSION.pack(session), values)
        for state, orders in states.items():
            self._writer.put_values(STATES, state_key(session, state), orders)


def member(reader: Reader, session: int, order: int) -> int | None:
    """Return the schema number (and late bit) of a session's entry of that order, or None."""
    values = reader.values(MEMBERS, _SESSION.pack(session), _ENTRY.pack(order, 0), 1)
    if values:
        found, schema = _ENTRY.unpack(values[0])
        if found == order:
            return schema  # type: ignore[no-any-return]
    return None


class Index:
    """One session's entries: those that are committed, and over them those of the batch.

    Attributes:
        identity: 16 bytes that name the session in its store; None for an index that is kept
            in memory alone (TemporarySession).
        joined: order -> N, entries that the batch adds.
        late: N -> order, those of them whose order isn't their N.
        left: order -> N, committed entries that the batch takes away.
    """

    def __init__(self, store: Store, identity: bytes | None, listener: Listener | None = None) -> None:
        self.identity = identity
        self.listener = listener
        self.joined: dict[int, int] = {}
        self.late: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self._store = store
        self._number: int | None = None

    # -- reading; each takes the state that it is to be read from

    def session(self, reader: Reader) -> int | None:
        """Return the session's number in the store, or None if nothing of it was written yet."""
        if self._number is None and self.identity is not None:
            row = Row.read(reader, self.identity)
            self._number = None if row is None else row.number
        return self._number

    def order_of(self, reader: Reader, number: int) -> int | None:
        """Return the order of record N in the session, or None if it isn't in it."""
        if self.joined.get(number) == number:
            return number
        if number in self.late:
            return self.late[number]
        order = self._committed_order(reader, number)
        return None if order is None or order in self.left else order

    def _committed_order(self, reader: Reader, number: int) -> int | None:
        session = self.session(reader)
        if session is None:
            return None
        if member(reader, session, number) is not None:
            return number
        late = reader.get(LATE_MEMBERS, RECORD_KEY.pack(number) + _SESSION.pack(session))
        return None if late is None else RECORD_KEY.unpack(late)[0]  # type: ignore[no-any-return]

    def count(self, reader: Reader) -> int:
        """Return how many entries there are."""
        session = self.session(reader)
        count = len(self.joined)
        if session is None:
            return count
        count += reader.count(MEMBERS, _SESSION.pack(session))
        # Of both kinds, another process may have done the same meanwhile.
        count -= sum(member(reader, session, order) is not None for order in self.left)
        return count - sum(self._committed_order(reader, number) is not None for number in self.late)

    def last(self, reader: Reader) -> int:
        """Return the greatest order, or 0."""
        session = self.session(reader)
        value = None if session is None else reader.last_value(MEMBERS, _SESSION.pack(session))
        committed = 0 if value is None else _ENTRY.unpack(value)[0]
        return max(committed, max(self.joined, default=0))

    def chunk(self, reader: Reader, after: int) -> list[Entry]:
        """Return the next entries after an order; none means that there are no more."""
        session = self.session(reader)
        if session is None:
            return self._merged(reader, [], after, None)
        start = _ENTRY.pack(after + 1, 0)
        while True:
            values = reader.values(MEMBERS, _SESSION.pack(session), start, _CHUNK)
            entries = [self._entry(reader, *_ENTRY.unpack(value)) for value in values]
            full = len(values) == _CHUNK
            merged = self._merged(reader, entries, after, entries[-1].order if full else None)
            if merged or not full:
                return merged
            after = entries[-1].order  # all of these have left
            start = _ENTRY.pack(after + 1, 0)

    @staticmethod
    def _entry(reader: Reader, order: int, schema: int) -> Entry:
        if not schema & _LATE_BIT:
            return Entry(order, order, schema)
        number = reader.get(LATE, RECORD_KEY.pack(order))
        if number is None:
            raise CorruptStore(f"the index has no record for its entry {order}; run a repair")
        return Entry(order, RECORD_KEY.unpack(number)[0], schema & ~_LATE_BIT)

    def _merged(self, reader: Reader, committed: list[Entry], after: int, until: int | None) -> list[Entry]:
        """Return committed entries with those of the batch, up to an order."""
        if self.left:
            committed = [entry for entry in committed if entry.order not in self.left]
        if not self.joined:
            return committed
        orders = self._sorted_joined()
        first = bisect_right(orders, after)
        last = len(orders) if until is None else bisect_right(orders, until)
        if until is None and not committed:
            last = min(last, first + _CHUNK)
        if first == last:
            return committed
        known = {entry.number for entry in committed}
        staged = [
            Entry(order, self.joined[order], self._store.schema_number_of(reader, self.joined[order]))
            for order in orders[first:last]
            if self.joined[order] not in known
        ]
        return sorted(committed + staged)

    def _sorted_joined(self) -> list[int]:
        orders = list(self.joined)
        if any(a > b for a, b in zip(orders, orders[1:], strict=False)):
            orders.sort()
        return orders

    def counts(self, reader: Reader) -> dict[str, int]:
        """Return how many tasks are in which state."""
        session = self.session(reader)
        counts: dict[str, int] = {}
        if session is not None:
            for key, count in reader.counts(STATES, _SESSION.pack(session)):
                counts[self._state_name(reader, session, key)] = count
        for before, after in self._moves(reader):
            if before is not None:
                counts[before] -= 1
            if after is not None:
                counts[after] = counts.get(after, 0) + 1
        return {state: count for state, count in sorted(counts.items()) if count}

    def _state_name(self, reader: Reader, session: int, key: bytes) -> str:
        name = key[4:]
        if len(name) < MAX_STATE:
            return name.decode("utf-8", "surrogatepass")
        value = reader.last_value(STATES, key)  # a name that was cut: its tasks know it
        assert value is not None
        order = RECORD_KEY.unpack(value)[0]
        schema = member(reader, session, order)
        entry = self._entry(reader, order, schema or 0)
        return self._store.committed_state(reader, entry.number) or name.decode("utf-8", "replace")

    def _moves(self, reader: Reader) -> Iterator[tuple[str | None, str | None]]:
        """Give the state before and after for each entry that the batch changes."""
        store = self._store
        for order, number in self.joined.items():
            if order == number or self._committed_order(reader, number) is None:
                yield None, store.state_of(reader, number)
        for order, number in self.left.items():
            if self._committed_order(reader, number) == order:
                yield store.committed_state(reader, number), None
        for number in store.staged_updates():
            order_now = self._committed_order(reader, number)
            if order_now is not None and order_now not in self.left:
                yield store.committed_state(reader, number), store.state_of(reader, number)

    def chunk_in_state(self, reader: Reader, state: str, after: int) -> list[Entry]:
        """Return the next entries in a state after an order; none means there are no more."""
        session = self.session(reader)
        changed = sorted(self._changed_to(reader, state))
        first = bisect_right(changed, (after,), key=lambda entry: entry[:1])
        if session is None:
            return changed[first : first + _CHUNK]
        start = RECORD_KEY.pack(after + 1)
        while True:
            values = reader.values(STATES, state_key(session, state), start, _CHUNK)
            orders = [RECORD_KEY.unpack(value)[0] for value in values]
            full = len(values) == _CHUNK
            entries = []
            for order in orders:
                schema = member(reader, session, order)
                if schema is not None and order not in self.left:
                    entry = self._entry(reader, order, schema)
                    if not self._store.is_staged(entry.number):
                        entries.append(entry)
            last = len(changed)
            if full:
                last = bisect_right(changed, (orders[-1],), key=lambda entry: entry[:1])
            merged = sorted(entries + changed[first:last])
            if merged or not full:
                return merged
            first, start = last, RECORD_KEY.pack(orders[-1] + 1)

    def _changed_to(self, reader: Reader, state: str) -> Iterator[Entry]:
        """Give the entries that are in a state because of the batch."""
        store = self._store
        for order, number in self.joined.items():
            if store.state_of(reader, number) == state:
                yield Entry(order, number, store.schema_number_of(reader, number))
        for number in store.staged_updates():
            order_now = self._committed_order(reader, number)
            if order_now is None or order_now in self.left or number in self.late:
                continue
            if store.state_of(reader, number) == state:
                yield Entry(order_now, number, store.schema_number_of(reader, number))

    # -- the batch; *set_item* is the store's, so that it can be undone

    def join(self, set_item: Callable[[dict[int, int], int, int | None], None], order: int, number: int) -> None:
        """Add record N at an order."""
        set_item(self.joined, order, number)
        if order != number:
            set_item(self.late, number, order)

    def leave(self, set_item: Callable[[dict[int, int], int, int | None], None], order: int, number: int) -> None:
        """Take the entry of an order, which is record N, away."""
        if order in self.joined:
            set_item(self.joined, order, None)
            if order != number:
                set_item(self.late, number, None)
        else:
            set_item(self.left, order, number)

    def changed(self) -> bool:
        """Return whether the batch holds entries to be written."""
        return self.identity is not None and bool(self.joined or self.left)

    # -- writing

    def register(self, writer: Writer) -> Row:
        """Return the session's row, a new one if it has none yet."""
        assert self.identity is not None
        row = Row.read(writer, self.identity)
        if row is None:
            last = writer.get(META, b"next session") or _SESSION.pack(1)
            number = _SESSION.unpack(last)[0]
            writer.put(META, [(b"next session", _SESSION.pack(number + 1))])
            row = Row(number, None)
        return row

    def write_row(self, writer: Writer, row: Row, change: Change) -> None:
        """Write the session's row, with what its listener keeps there."""
        assert self.identity is not None
        kept = row.mirror if self.listener is None else self.listener.prepare(writer, row.mirror, change)
        writer.put(SESSIONS, [(self.identity, Row(row.number, kept).to_bytes())])

    def committed(self) -> None:
        """The batch was written."""
        if self.identity is not None:
            self.joined, self.late, self.left = {}, {}, {}


def entries_of(reader: Reader, session: int) -> Iterator[Entry]:
    """Give all committed entries of a session, in order."""
    start = _ENTRY.pack(0, 0)
    while True:
        values = reader.values(MEMBERS, _SESSION.pack(session), start, 4096)
        for value in values:
            yield Index._entry(reader, *_ENTRY.unpack(value))
        if len(values) < 4096:
            return
        start = _ENTRY.pack(_ENTRY.unpack(values[-1])[0] + 1, 0)


