"""The index: which records belong to a session, in which order, and in which state they are.

A task that is added when its record is made has its N for its place in the session (its
*order*); at most one session can hold a record so.  A task that was stored before takes a fresh
number of the same sequence for its order, and two small tables lead from it to N and back
(LATE, LATE_MEMBERS).  So sorting by order is the order of adding, and an entry is 20 bytes::

    members:  session number (4)  ->  order (8), schema number (4; bit 31 set: late), line (8)
    states:   session number (4), state  ->  order (8)

The schema number gives the ID's name even where the record can't be read.  The line is where
the ID stands in the mirror, in bytes from its beginning: so it is found again when the task
leaves, and the whole file can be written anew without a change of the index.  A persistable
that isn't a task has the state ''.  A state of more than MAX_STATE bytes is cut and its SHA-256
added.

The row of a session in the table `sessions` has the frame of a record (codec.py) around
`[ session number, size, blank, mark ]`: the bytes of the mirror, how many of them are blank,
and what mirror.py has noted there, nil if the mirror is to be written anew.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise, repeat
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgpack

from .codec import schema_number, seal, unseal
from .errors import ConflictError, CorruptRecord, CorruptStore
from .tables import LATE, LATE_MEMBERS, MEMBERS, META, SESSIONS, STATES, Reader, Writer
from .values import RECORD_KEY

if TYPE_CHECKING:
    from .store import Store

MAX_STATE = 400
"""Bytes of a state's name in a key; LMDB's keys have at most 511."""

MEMBER = Struct(">QIQ")
SESSION_KEY = Struct(">I")
LATE_BIT = 1 << 31
CHUNK = 512
"""Entries that are read in one transaction."""

SetItem = Callable[[dict[int, int], int, int | None], None]


Entry = tuple[int, int, int]
"""A task's place in a session: its order, its N, the number of a schema that has the ID's name."""


class Row(NamedTuple):
    """What the table `sessions` holds of a session."""

    number: int
    size: int
    blank: int
    mark: Any

    def write(self, writer: Writer, identity: bytes) -> None:
        writer.put(SESSIONS, [(identity, seal(0, msgpack.packb(list(self))))])

    @classmethod
    def read(cls, reader: Reader, identity: bytes) -> Row | None:
        """Return the session's row, or None if it has never been written."""
        data = reader.get(SESSIONS, identity)
        return None if data is None else cls.from_bytes(identity, data)

    @classmethod
    def from_bytes(cls, identity: bytes, data: bytes) -> Row:
        try:
            return cls(*msgpack.unpackb(unseal(0, data)))
        except (ValueError, TypeError, CorruptRecord) as error:
            raise CorruptStore(
                f"the row of session {identity.hex()} is damaged ({error}); restore the store from a backup"
            ) from error


class Change(NamedTuple):
    """What a transaction changes in a mirror.

    Attributes:
        text: the lines after its end.
        blanks: which become blank: where, and how many bytes.
        anew: all of it is to be written anew.
    """

    text: bytes
    blanks: list[tuple[int, int]]
    anew: bool


class Listener(Protocol):
    """Who follows a session's transactions: its mirror."""

    def prepare(self, writer: Writer, before: Row, after: Row, change: Change) -> Any:
        """Called at the end of the transaction; return the mark for the session's row."""

    def apply(self) -> None:
        """Called after the commit."""

    def release(self) -> None:
        """Called in the end, whether there was a commit or not."""

    def forked(self) -> None:
        """Called in a forked child."""


def _digits(number: int) -> int:
    return len(str(number))


def state_key(session: int, state: str) -> bytes:
    """Return the key of a state of a session in the table `states`."""
    name = state.encode("utf-8", "surrogatepass")
    if len(name) > MAX_STATE:
        name = name[: MAX_STATE - 32] + hashlib.sha256(name).digest()
    return SESSION_KEY.pack(session) + name


def member(reader: Reader, session: int, order: int) -> tuple[int, int] | None:
    """Return schema number (with the late bit) and line of a session's entry of that order, or None."""
    values = reader.values(MEMBERS, SESSION_KEY.pack(session), MEMBER.pack(order, 0, 0), 1)
    if values:
        found, schema, line = MEMBER.unpack(values[0])
        if found == order:
            return schema, line
    return None


def members(reader: Reader, session: int) -> Iterator[tuple[Entry, int]]:
    """Give all committed entries of a session and their lines, in order."""
    after = 0
    while True:
        values = reader.values(MEMBERS, SESSION_KEY.pack(session), MEMBER.pack(after + 1, 0, 0), 4096)
        for order, schema, line in map(MEMBER.unpack, values):
            yield _entry(reader, order, schema), line
            after = order
        if len(values) < 4096:
            return


def _entry(reader: Reader, order: int, schema: int) -> Entry:
    if not schema & LATE_BIT:
        return order, order, schema
    number = reader.get(LATE, RECORD_KEY.pack(order))
    if number is None:
        raise CorruptStore(f"the index has no record for its entry {order}; restore the store from a backup")
    return order, RECORD_KEY.unpack(number)[0], schema & ~LATE_BIT


class _Holding(NamedTuple):
    """A session that holds a record."""

    session: int
    order: int


class Joining(NamedTuple):
    """Entries to be added to a session, in their order; if none is late the numbers are the orders."""

    orders: list[int]
    numbers: list[int]
    schemas: list[int]
    states: list[str]


def _runs(schemas: list[int], numbers: list[int]) -> Iterator[tuple[int, int, int]]:
    """Give each run of one schema and of Ns of one length: schema, begin, end."""
    begin = 0
    for (schema, _), run in groupby(zip(schemas, map(_digits, numbers), strict=True)):
        end = begin + sum(1 for _ in run)
        yield schema, begin, end
        begin = end


class Ledger:
    """What one transaction writes into the index of any session of the store."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._late = writer.entries(LATE_MEMBERS) > 0
        self._identities: dict[int, bytes] | None = None
        self._before: dict[int, Row] = {}
        self._rows: dict[int, tuple[bytes, Row]] = {}
        self._blanks: dict[int, list[tuple[int, int]]] = {}
        self._text: dict[int, bytes] = {}
        self._anew: set[int] = set()

    # -- which sessions hold a record

    def holdings(self, numbers: list[int]) -> list[tuple[int, _Holding]]:
        """Return which sessions hold some records: (N, holding), once for each session."""
        found: list[tuple[int, _Holding]] = []
        if self._late:
            for number in numbers:
                key = RECORD_KEY.pack(number)
                for item, order in self._writer.scan(LATE_MEMBERS, key, prefix=key):
                    holding = _Holding(SESSION_KEY.unpack(item[8:])[0], RECORD_KEY.unpack(order)[0])
                    found.append((number, holding))
        for session in self._sessions():
            key, starts = SESSION_KEY.pack(session), [MEMBER.pack(number, 0, 0) for number in numbers]
            values = self._writer.first_values(MEMBERS, key, starts)
            others: list[int] = []
            for number, value in zip(numbers, values, strict=True):
                order, schema, _ = (0, 0, 0) if value is None else MEMBER.unpack(value)
                if order == number and schema < LATE_BIT:
                    found.append((number, _Holding(session, number)))
                else:
                    others.append(number)
            numbers = others  # a record has its own N for its order in one session at most
            if not numbers:
                break
        return found

    def _sessions(self) -> Iterable[int]:
        """Return the numbers of all sessions, those that this program uses first."""
        if self._identities is None:
            rows = self._writer.scan(SESSIONS, b"")
            self._identities = {Row.from_bytes(key, data).number: key for key, data in rows}
            ours = {index.identity for index in self._store.indexes}
            self._identities = dict(sorted(self._identities.items(), key=lambda item: item[1] not in ours))
        return self._identities

    # -- changing them

    def leave(self, holding: _Holding, number: int, state: str | None) -> None:
        """Take record N, which is in *state* (None: it can't be read), out of a session."""
        session, order = holding
        entry = member(self._writer, session, order)
        if entry is None:
            return
        schema, line = entry
        self._writer.delete_values(MEMBERS, SESSION_KEY.pack(session), [MEMBER.pack(order, schema, line)])
        if schema & LATE_BIT:
            self._writer.delete(LATE, [RECORD_KEY.pack(order)])
            self._writer.delete(LATE_MEMBERS, [RECORD_KEY.pack(number) + SESSION_KEY.pack(session)])
        value = [RECORD_KEY.pack(order)]
        if state is not None:
            self._writer.delete_values(STATES, state_key(session, state), value)
        else:
            for key, _ in self._writer.counts(STATES, SESSION_KEY.pack(session)):
                self._writer.delete_values(STATES, key, value)
        name = self._store.schemas.name(schema & ~LATE_BIT, self._writer)
        self._blanks.setdefault(session, []).append((line, len(f"{name}.{number}")))

    def move(self, moves: dict[tuple[str, str], list[int]]) -> None:
        """Note the records that go from one state to another: (before, after) -> Ns, sorted."""
        leaving: dict[bytes, list[bytes]] = {}
        coming: dict[bytes, list[bytes]] = {}
        for (before, after), numbers in moves.items():
            orders: dict[int, list[int]] = {}
            for _, (session, order) in self.holdings(numbers):
                orders.setdefault(session, []).append(order)
            for session, some in orders.items():
                values = [RECORD_KEY.pack(order) for order in sorted(some)]
                leaving.setdefault(state_key(session, before), []).extend(values)
                coming.setdefault(state_key(session, after), []).extend(values)
        for key, values in leaving.items():
            self._writer.delete_values(STATES, key, values)
        for key, values in coming.items():
            values.sort()
            self._writer.put_values(STATES, key, values)

    def join(self, identity: bytes, joining: Joining) -> None:
        """Add entries to a session."""
        row = self._row(identity)
        session = SESSION_KEY.pack(row.number)
        orders, numbers, schemas, states = joining
        keys = list(map(RECORD_KEY.pack, orders))
        values: list[bytes] = []
        texts: list[str] = []
        line = row.size
        for schema, begin, end in _runs(schemas, numbers):
            ids = f"{self._store.schemas.name(schema, self._writer)}."
            texts.append(ids + f"\n{ids}".join(map(str, numbers[begin:end])) + "\n")
            each = len(ids) + len(str(numbers[begin])) + 1
            lines = range(line, line + each * (end - begin), each)
            values += map(MEMBER.pack, orders[begin:end], repeat(schema), lines)
            line = lines.stop
        if numbers is not orders:
            for place, (order, number) in enumerate(zip(orders, numbers, strict=True)):
                if order != number:
                    at, schema, start = MEMBER.unpack(values[place])
                    values[place] = MEMBER.pack(at, schema | LATE_BIT, start)
                    self._writer.put(LATE, [(keys[place], RECORD_KEY.pack(number))])
                    self._writer.put(LATE_MEMBERS, [(RECORD_KEY.pack(number) + session, keys[place])])
                    self._late = True
        self._writer.put_values(MEMBERS, session, values)
        by_state: dict[str, list[bytes]] = {state: [] for state in states}
        for state, key in zip(states, keys, strict=True):
            by_state[state].append(key)
        for state, some in by_state.items():
            self._writer.put_values(STATES, state_key(row.number, state), some)
        self._text[row.number] = self._text.get(row.number, b"") + "".join(texts).encode()
        self._rows[row.number] = identity, row._replace(size=line)

    def mend(self, identity: bytes) -> None:
        """Have a session's mirror compared with the index, and written anew if it differs."""
        self._row(identity)

    def tidy(self, identity: bytes) -> None:
        """Give the entries of a session lines without blank ones between them."""
        row = self._row(identity)
        key, line = SESSION_KEY.pack(row.number), 0
        for (order, number, schema), former in list(members(self._writer, row.number)):
            stored = schema if order == number else schema | LATE_BIT
            if line != former:
                self._writer.delete_values(MEMBERS, key, [MEMBER.pack(order, stored, former)])
                self._writer.put_values(MEMBERS, key, [MEMBER.pack(order, stored, line)])
            line += len(f"{self._store.schemas.name(schema, self._writer)}.{number}\n")
        self._rows[row.number] = identity, row._replace(size=line, blank=0)
        self._anew.add(row.number)

    def erase(self, identity: bytes) -> None:
        """Take all entries of a session away, and its row; the records stay."""
        row = Row.read(self._writer, identity)
        if row is None:
            return
        for (order, number, _), _ in list(members(self._writer, row.number)):
            if order != number:
                self._writer.delete(LATE, [RECORD_KEY.pack(order)])
                self._writer.delete(LATE_MEMBERS, [RECORD_KEY.pack(number) + SESSION_KEY.pack(row.number)])
        for key, _ in self._writer.counts(STATES, SESSION_KEY.pack(row.number)):
            self._writer.delete(STATES, [key])
        self._writer.delete(MEMBERS, [SESSION_KEY.pack(row.number)])
        self._writer.delete(SESSIONS, [identity])

    def _row(self, identity: bytes) -> Row:
        """Return the session's row as it is in this transaction; a new one if it has none."""
        for known, row in self._rows.values():
            if known == identity:
                return row
        found = Row.read(self._writer, identity)
        if found is None:
            number = SESSION_KEY.unpack(self._writer.get(META, b"next session") or SESSION_KEY.pack(1))[0]
            self._writer.put(META, [(b"next session", SESSION_KEY.pack(number + 1))])
            found = Row(number, 0, 0, None)
            self._identities = None
        self._before[found.number] = found
        self._rows[found.number] = identity, found
        return found

    def finish(self, indexes: Iterable[Index]) -> None:
        """Write the rows of the sessions that have changed; the listeners of *indexes* prepare."""
        listeners = {index.identity: index.listener for index in indexes}
        for session in self._blanks:
            if session not in self._rows:
                self._sessions()
                assert self._identities is not None
                self._row(self._identities[session])
        for session, (identity, row) in self._rows.items():
            blanks = self._blanks.get(session, [])
            after = row._replace(blank=row.blank + sum(length + 1 for _, length in blanks), mark=None)
            listener = listeners.get(identity)
            if listener is not None:
                change = Change(self._text.get(session, b""), blanks, session in self._anew)
                after = after._replace(mark=listener.prepare(self._writer, self._before[session], after, change))
            after.write(self._writer, identity)


class Index:
    """One session's entries: those that are committed, and over them those of the batch.

    Attributes:
        identity: 16 bytes that name the session in its store.
        listener: who is told of each commit; None if nobody.
        joined: order -> N, entries that the batch adds.
        late: N -> order, those of them whose order isn't their N.
        left: order -> N, committed entries that the batch takes away.
    """

    def __init__(self, store: Store, identity: bytes) -> None:
        self.identity = identity
        self.listener: Listener | None = None
        self._store = store
        self._number: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the batch."""
        self.joined: dict[int, int] = {}
        self.late: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self._orders: list[int] = []  # of joined, sorted; valid if as many

    def undone(self) -> None:
        """Take note that changes of the batch were undone behind its back."""
        self._orders = []

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
        if number in self.late:
            return self.late[number]
        order = self.committed_order(reader, number)
        return None if order is None or order in self.left else order

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
        # Of both kinds, another process may have done the same meanwhile.
        count -= sum(member(reader, session, order) is not None for order in self.left)
        return count - sum(self._doubled(reader, number) for number in self.late)

    def _doubled(self, reader: Reader, number: int) -> bool:
        """Return whether another process has added record N, too, since the batch did."""
        order = self.committed_order(reader, number)
        return order is not None and order not in self.left

    def chunk(self, reader: Reader, after: int) -> list[Entry]:
        """Return the next entries after an order; none means that there are no more."""
        session = self.session(reader)
        if session is None:
            return self._merged(reader, [], after, None)
        while True:
            start = MEMBER.pack(after + 1, 0, 0)
            values = reader.values(MEMBERS, SESSION_KEY.pack(session), start, CHUNK)
            entries = [
                (order, order, schema) if schema < LATE_BIT else _entry(reader, order, schema)
                for order, schema, _ in map(MEMBER.unpack, values)
            ]
            full = len(values) == CHUNK
            merged = self._merged(reader, entries, after, entries[-1][0] if full else None)
            if merged or not full:
                return merged
            after = entries[-1][0]  # all of these have left

    def _merged(self, reader: Reader, committed: list[Entry], after: int, until: int | None) -> list[Entry]:
        """Return committed entries with those of the batch, up to an order."""
        if self.left:
            committed = [entry for entry in committed if entry[0] not in self.left]
        if not self.joined:
            return committed
        orders = self._sorted_orders()
        first = bisect_right(orders, after)
        last = len(orders) if until is None else bisect_right(orders, until)
        if until is None and not committed:
            last = min(last, first + CHUNK)
        if first == last:
            return committed
        known = {number for _, number, _ in committed}
        staged = [
            (order, self.joined[order], self._store.schema_number_of(reader, self.joined[order]))
            for order in orders[first:last]
            if self.joined[order] not in known
        ]
        return sorted(committed + staged)

    def _sorted_orders(self) -> list[int]:
        if len(self._orders) != len(self.joined):
            self._orders = list(self.joined)
            if any(a > b for a, b in pairwise(self._orders)):
                self._orders.sort()
        return self._orders

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
        entry = _entry(reader, order, schema)
        return self._store.committed_state(reader, entry[1]) or name.decode("utf-8", "replace")

    def _moves(self, reader: Reader) -> Iterator[tuple[str | None, str | None]]:
        """Give the state before and after for each entry that the batch changes."""
        store = self._store
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

    def chunk_in_state(self, reader: Reader, state: str, after: int) -> list[Entry]:
        """Return the next entries in a state after an order; none means there are no more."""
        session = self.session(reader)
        changed = sorted(self._changed_to(reader, state))
        first = bisect_right(changed, after, key=itemgetter(0))
        if session is None:
            return changed[first : first + CHUNK]
        start = RECORD_KEY.pack(after + 1)
        while True:
            values = reader.values(STATES, state_key(session, state), start, CHUNK)
            orders = [RECORD_KEY.unpack(value)[0] for value in values]
            full = len(values) == CHUNK
            entries = []
            for order in orders:
                found = member(reader, session, order)
                if found is not None and order not in self.left:
                    entry = _entry(reader, order, found[0])
                    if entry[1] not in self._store.batch.records:
                        entries.append(entry)
            last = len(changed)
            if full:
                last = bisect_right(changed, orders[-1], key=itemgetter(0))
            merged = sorted(entries + changed[first:last])
            if merged or not full:
                return merged
            first, start = last, RECORD_KEY.pack(orders[-1] + 1)

    def _changed_to(self, reader: Reader, state: str) -> Iterator[Entry]:
        """Give the entries that are in a state because of the batch."""
        store = self._store
        for order, number in self.joined.items():
            if store.state_of(reader, number) == state:
                yield order, number, store.schema_number_of(reader, number)
        for number in store.batch.updates():
            order_now = self.committed_order(reader, number)
            if order_now is None or order_now in self.left or number in self.late:
                continue
            if store.state_of(reader, number) == state:
                yield order_now, number, store.schema_number_of(reader, number)

    # -- the batch; *set_item* is the batch's, so that it can be undone

    def join(self, set_item: SetItem, order: int, number: int) -> None:
        """Add record N at an order."""
        self._orders = []
        set_item(self.joined, order, number)
        if order != number:
            set_item(self.late, number, order)

    def leave(self, set_item: SetItem, order: int, number: int) -> None:
        """Take the entry of an order, which is record N, away."""
        self._orders = []
        if order in self.joined:
            set_item(self.joined, order, None)
            if order != number:
                set_item(self.late, number, None)
        else:
            set_item(self.left, order, number)

    # -- writing

    def write(self, ledger: Ledger, writer: Writer) -> None:
        """Write what the batch changes.  Raise ConflictError if an added record is gone."""
        for order, number in self.left.items():
            if self.committed_order(writer, number) == order:
                session = self.session(writer)
                assert session is not None
                ledger.leave(_Holding(session, order), number, self._store.committed_state(writer, number))
        if not self.joined:
            return
        joining = self._joining(writer)
        if joining.orders and joining.orders[0] <= self._last(writer):
            # Another process has added meanwhile: these come after it.
            first = self._store.sequence.take(writer, len(joining.orders))
            joining = joining._replace(orders=list(range(first, first + len(joining.orders))))
        if joining.orders:
            ledger.join(self.identity, joining)

    def _joining(self, writer: Writer) -> Joining:
        """Return the entries that the batch adds; ConflictError if the record of one is gone."""
        store, batch = self._store, self._store.batch
        orders = self._sorted_orders()
        if not self.late:
            schemas = [schema_number(batch.records[number]) for number in orders]
            return Joining(orders, orders, schemas, [batch.states[number] for number in orders])
        # Another process may have added the same.
        orders = [n for n in orders if self.joined[n] == n or self.committed_order(writer, self.joined[n]) is None]
        numbers = [self.joined[order] for order in orders]
        for number in numbers:
            if store.record(writer, number) is None:
                raise ConflictError(
                    f"record {number} was removed from the store while it was being added; nothing was written"
                )
        schemas = [store.schema_number_of(writer, number) for number in numbers]
        return Joining(orders, numbers, schemas, [store.state_of(writer, number) or "" for number in numbers])

    def _last(self, reader: Reader) -> int:
        """Return the greatest committed order, or 0."""
        session = self.session(reader)
        value = None if session is None else reader.last_value(MEMBERS, SESSION_KEY.pack(session))
        return 0 if value is None else MEMBER.unpack(value)[0]
