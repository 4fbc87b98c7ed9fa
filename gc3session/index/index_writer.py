"""What one transaction writes into the index of any session of the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..format.frame import RECORD_KEY
from ..tables.interface import LATE, LATE_MEMBERS, MEMBERS, META, SESSIONS, STATES, Writer
from .entries import LATE_BIT, MEMBER, SESSION_KEY, Row, expect_members, member, members, state_key

if TYPE_CHECKING:
    from ..store.store import Store
    from .index import Index


_MOST_BLANKS: Final = 1 << 26  # bytes of blank lines that a mirror keeps when it is rewritten


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

    def lock(self) -> None:
        """Called before the transaction where transactions run side by side: wait here for other programs."""

    def plan(self, writer: Writer, before: Row, after: Row, change: Change) -> Row:
        """Called at the end of the transaction; return the session's row with what the mirror needs to know."""

    def write(self) -> None:
        """Called after the commit, and again if Ctrl-C has interrupted it."""

    def unlock(self) -> str:
        """Called in the end, whether there was a commit or not; return what the user is to be warned of."""

    def forked(self) -> None:
        """Called in a forked child."""


class Membership(NamedTuple):
    """A session that holds a record."""

    session: int
    order: int


class NewEntries(NamedTuple):
    """Entries to be added to a session, in their order; if none is late the numbers are the orders."""

    orders: list[int]
    numbers: list[int]
    schemas: list[int]
    states: list[str]


def _digits(number: int) -> int:
    return len(str(number))


def _runs(schemas: list[int], numbers: list[int]) -> Iterator[tuple[int, int, int]]:
    """Give each run of one schema and of Ns of one length: schema, begin, end."""
    if len(set(schemas)) == 1 and _digits(min(numbers)) == _digits(max(numbers)):  # as most often
        yield schemas[0], 0, len(schemas)
        return
    begin = 0
    for (schema, _), run in groupby(zip(schemas, map(_digits, numbers), strict=True)):
        end = begin + sum(1 for _ in run)
        yield schema, begin, end
        begin = end


class IndexWriter:
    """What one transaction writes into the index of any session of the store."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._late: bool | None = None
        self._identities: dict[int, bytes] | None = None
        self._before: dict[int, Row] = {}
        self._rows: dict[int, tuple[bytes, Row]] = {}
        self._blanks: dict[int, list[tuple[int, int]]] = {}
        self._left: set[Membership] = set()
        self._gone: dict[tuple[str, bytes], list[bytes]] = {}  # table and key -> values that `take_away` deletes
        self._texts: dict[int, list[bytes]] = {}
        self._anew: set[int] = set()

    # -- which sessions hold a record

    def holdings(self, numbers: list[int]) -> list[tuple[int, Membership]]:
        """Return which sessions hold some records: (N, holding), once for each session."""
        found: list[tuple[int, Membership]] = []
        if self._late is None:
            self._late = bool(self._writer.scan(LATE_MEMBERS, b"", 1))
        if self._late:
            for number in numbers:
                key = RECORD_KEY.pack(number)
                for item, order in self._writer.scan(LATE_MEMBERS, key, prefix=key):
                    holding = Membership(SESSION_KEY.unpack(item[8:])[0], RECORD_KEY.unpack(order)[0])
                    found.append((number, holding))
        for session in self._sessions():
            key, starts = SESSION_KEY.pack(session), [MEMBER.pack(number, 0, 0) for number in numbers]
            values = self._writer.first_values(MEMBERS, key, starts)
            others: list[int] = []
            for number, value in zip(numbers, values, strict=True):
                order, schema, _ = (0, 0, 0) if value is None else MEMBER.unpack(value)
                if order == number and schema < LATE_BIT:
                    found.append((number, Membership(session, number)))
                else:
                    others.append(number)
            numbers = others  # a record has its own N for its order in one session at most
            if not numbers:
                break
        return found

    def _sessions(self) -> Iterator[int]:
        """Give the numbers of all sessions, those that this program uses first."""
        ours = []
        for index in self._store.indexes:
            number = index.session(self._writer)
            if number is not None and number not in ours:
                ours.append(number)
                yield number
        for number in self._all_sessions():
            if number not in ours:
                yield number

    def _all_sessions(self) -> dict[int, bytes]:
        """Return the identities of all sessions by their numbers."""
        if self._identities is None:
            rows = self._writer.scan(SESSIONS, b"")
            self._identities = {Row.from_bytes(key, data).number: key for key, data in rows}
        return self._identities

    def expect(self, held: Iterable[tuple[int, Membership]]) -> None:
        """Hear which records are about to leave which sessions, one by one."""
        orders: dict[int, list[int]] = {}
        for _, (session, order) in held:
            orders.setdefault(session, []).append(order)
        for session, some in orders.items():
            expect_members(self._writer, session, some)

    # -- changing them

    def leave(self, holding: Membership, number: int, state: str | None) -> None:
        """Take record N, which is in *state* (None: it can't be read), out of a session; `take_away` completes it."""
        session, order = holding
        if holding in self._left:
            return
        self._left.add(holding)
        entry = member(self._writer, session, order)
        if entry is None:
            return
        schema, line = entry
        self._later(MEMBERS, SESSION_KEY.pack(session), MEMBER.pack(order, schema, line))
        if schema & LATE_BIT:
            self._writer.delete(LATE, [RECORD_KEY.pack(order)])
            self._writer.delete(LATE_MEMBERS, [RECORD_KEY.pack(number) + SESSION_KEY.pack(session)])
        value = RECORD_KEY.pack(order)
        if state is not None:
            self._later(STATES, state_key(session, state), value)
        else:
            for key, _ in self._writer.counts(STATES, SESSION_KEY.pack(session)):
                self._later(STATES, key, value)
        name = self._store.schemas.name(schema & ~LATE_BIT, self._writer)
        self._blanks.setdefault(session, []).append((line, len(f"{name}.{number}")))

    def _later(self, table: str, key: bytes, value: bytes) -> None:
        self._gone.setdefault((table, key), []).append(value)

    def take_away(self) -> None:
        """Delete what `leave` has noted, many values at once; to be called before the entries are read again."""
        gone, self._gone = self._gone, {}
        for (table, key), values in gone.items():
            self._writer.delete_values(table, key, values)

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

    def join(self, identity: bytes, new_entries: NewEntries) -> None:
        """Add entries to a session."""
        row = self._row(identity)
        session = SESSION_KEY.pack(row.number)
        orders, numbers, schemas, states = new_entries
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
            late: list[tuple[bytes, bytes]] = []
            for place, (order, number) in enumerate(zip(orders, numbers, strict=True)):
                if order != number:
                    at, schema, start = MEMBER.unpack(values[place])
                    values[place] = MEMBER.pack(at, schema | LATE_BIT, start)
                    late.append((keys[place], RECORD_KEY.pack(number)))
            self._writer.add(LATE, late)
            self._writer.add(LATE_MEMBERS, sorted((number + session, order) for order, number in late))
            self._late = self._late or bool(late)
        self._writer.put_values(MEMBERS, session, values)
        by_state: dict[str, list[bytes]] = {state: [] for state in states}
        for state, key in zip(states, keys, strict=True):
            by_state[state].append(key)
        for state, some in by_state.items():
            self._writer.put_values(STATES, state_key(row.number, state), some)
        self._texts.setdefault(row.number, []).append("".join(texts).encode())
        self._rows[row.number] = identity, row._replace(size=line)

    def check_mirror(self, identity: bytes) -> None:
        """Have a session's mirror compared with the index, and rewritten if it differs.

        The blank lines are left out then if they are very many: a row that was made up could fill the disk with them.
        """
        if self._row(identity).blank > _MOST_BLANKS:
            self.rewrite_mirror(identity)

    def rewrite_mirror(self, identity: bytes) -> None:
        """Give the entries of a session lines without blank ones between them."""
        row = self._row(identity)
        key, line = SESSION_KEY.pack(row.number), 0
        gone: list[bytes] = []
        moved: list[bytes] = []
        for (order, number, schema), former in list(members(self._writer, row.number)):
            stored = schema if order == number else schema | LATE_BIT
            if line != former:
                gone.append(MEMBER.pack(order, stored, former))
                moved.append(MEMBER.pack(order, stored, line))
            line += len(f"{self._store.schemas.name(schema, self._writer)}.{number}\n")
        self._writer.delete_values(MEMBERS, key, gone)
        self._writer.put_values(MEMBERS, key, moved)
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
                self._row(self._all_sessions()[session])
        for session, (identity, row) in self._rows.items():
            blanks = self._blanks.get(session, [])
            blank = row.blank + sum(length + 1 for _, length in blanks)
            after = row._replace(blank=blank, mark=None)
            listener = listeners.get(identity)
            if listener is not None:
                change = Change(b"".join(self._texts.get(session, ())), blanks, session in self._anew)
                after = listener.plan(self._writer, self._before[session], after, change)
            after.write(self._writer, identity)
