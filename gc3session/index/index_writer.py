"""What one transaction writes into the index of any session of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Final, NamedTuple, Protocol

from ..errors import CorruptStore
from ..records.schemas import Schemas
from ..tables.interface import COUNTS, HOLDERS, INDEX, META, NUMBERING, SESSIONS, Reader, Writer
from .entries import (
    BLOCK,
    BLOCK_KEY,
    COUNT_KEY,
    HOLDER_KEY,
    INDEX_KEY,
    SESSION_KEY,
    Kind,
    MirrorNote,
    Row,
    bits_of,
    members,
    numbers_of,
    pack_members,
)
from .states import NewStates, StateNames

SESSION_NAMES: Final = b"session "
"""How the keys in the table `meta` begin that `session_name_key` returns."""


class Change(NamedTuple):
    """What a transaction changes in a mirror.

    Attributes:
        text: the lines after its end.
        removed: the IDs whose lines become blank.
        anew: all of it is to be written anew.
    """

    text: bytes
    removed: list[bytes]
    anew: bool


class Transactions(Protocol):
    """The transactions of a store."""

    def reading(self) -> AbstractContextManager[Reader]:
        """Return the newest committed state, for `with`."""

    def write(self, more: Callable[[IndexWriter, Writer], object], *, batch: bool = True) -> None:
        """Write what *more* does in one transaction, with the batch unless *batch* is False."""


class Listener(Protocol):
    """Who follows a session's transactions: its mirror."""

    def check(self) -> None:
        """Called before the store is made, and before a transaction if these run side by side.

        Raise WriteError if the session is no longer where it was opened.
        """

    def plan(self, writer: Writer, row: Row, change: Change) -> Row:
        """Called at the end of the transaction; return the session's row with what the mirror needs to know."""

    def write(self) -> None:
        """Called after the commit, and again if Ctrl-C has interrupted it.

        Raise WriteError if the session is no longer where it was opened.
        """

    def release(self) -> str:
        """Called in the end, whether there was a commit or not; return what the user is to be warned of."""

    def follow(self, store: Transactions, identity: bytes, *, now: bool = False) -> None:
        """Called when the transaction is over, and nothing is locked, and at the end of the program.

        Args:
            store: of the session.
            identity: of the session.
            now: there is no later call.
        """


def session_name_key(number: int) -> bytes:
    """Return the key in the table `meta` of the identity of the session with that number."""
    return SESSION_NAMES + SESSION_KEY.pack(number)


class IndexWriter:
    """What one transaction writes into the index of any session of the store.

    Entries are read when they are first concerned, and written by `finish`.
    """

    def __init__(self, writer: Writer, schemas: Schemas, states: StateNames) -> None:
        self.states = NewStates(states, writer)
        self._writer = writer
        self._schemas = schemas
        self._stored: dict[bytes, int] = {}  # key of an entry -> its bits before
        self._bits: dict[bytes, int] = {}  # key of an entry -> its bits now
        self._keys: dict[bytes, set[bytes]] = {}  # key of a block -> those of its entries that are in `_bits`
        self._whole: set[bytes] = set()  # keys of blocks of which all entries have been read
        self._rows: dict[bytes, Row] = {}
        self._identities: dict[int, bytes] = {}
        self._texts: dict[int, list[bytes]] = {}  # session -> lines for its mirror
        self._removed: dict[int, list[bytes]] = {}  # session -> IDs that leave its mirror
        self._anew: set[int] = set()
        self._others: dict[int, list[int]] = {}  # N -> sessions that hold the record and aren't its home

    # -- which sessions hold a record

    def holding(self, number: int, home: int) -> list[int]:
        """Return the numbers of the sessions that hold record N, whose home is known."""
        if number not in self._others:
            self.read_holders([number])
        return [home, *self._others[number]] if home else self._others[number]

    def read_holders(self, numbers: list[int]) -> None:
        """Read which sessions hold some records, which are sorted and haven't been changed yet."""
        self._others.update((number, []) for number in numbers)
        if not self._writer.scan(HOLDERS, b"", 1):
            return
        for key, _ in self._writer.scan_many(HOLDERS, [number.to_bytes(8, "big") for number in numbers]):
            number, session = HOLDER_KEY.unpack(key)
            self._others[number].append(session)

    def hold(self, session: int, number: int) -> None:
        """Note that another session than its home holds record N, too."""
        self._writer.put(HOLDERS, [(HOLDER_KEY.pack(number, session), b"")])
        self._others.setdefault(number, []).append(session)

    def release(self, sessions: Iterable[int], number: int) -> None:
        """Note that some sessions, none of which is its home, don't hold record N any more."""
        for session in sessions:
            self._writer.delete(HOLDERS, [HOLDER_KEY.pack(number, session)])
            if session in self._others.get(number, ()):
                self._others[number].remove(session)

    # -- members

    def read(self, places: Iterable[tuple[int, int, Kind | None]]) -> None:
        """Read entries together that are about to be concerned: session, N of a member, and a kind."""
        self._expect(INDEX_KEY.pack(session, number // BLOCK, *kind) for session, number, kind in places if kind)

    def _expect(self, keys: Iterable[bytes]) -> None:
        missing = sorted({*keys} - self._bits.keys())
        if missing:
            found = dict(self._writer.get_many(INDEX, missing))
            for key in missing:
                self._note(key, found.get(key))

    def _read(self, key: bytes) -> int:
        """Return the bits of an entry as they are now."""
        if key not in self._bits:
            self._note(key, self._writer.get(INDEX, key))
        return self._bits[key]

    def _note(self, key: bytes, value: bytes | None) -> None:
        self._stored[key] = self._bits[key] = 0 if value is None else members(key, value)
        self._keys.setdefault(key[: BLOCK_KEY.size], set()).add(key)

    def _block(self, session: int, block: int) -> set[bytes]:
        """Return the keys of all entries of a block."""
        prefix = BLOCK_KEY.pack(session, block)
        if prefix not in self._whole:
            for key, value in self._writer.scan(INDEX, prefix, None, prefix):
                if key not in self._bits:
                    self._note(key, value)
            self._whole.add(prefix)
        return self._keys.get(prefix, set())

    def _key_of(self, session: int, number: int, guess: Kind | None) -> bytes | None:
        """Return the key of the entry that record N is in: that of *guess* if that is right; None if in none."""
        block, place = divmod(number, BLOCK)
        if guess is not None:
            key = INDEX_KEY.pack(session, block, *guess)
            if self._read(key) >> place & 1:
                return key
        return next((key for key in self._block(session, block) if self._bits[key] >> place & 1), None)

    def add(self, session: int, kinds: Mapping[Kind, list[int]]) -> None:
        """Add members to a session; the Ns of each kind are sorted."""
        added: dict[bytes, int] = {}
        for kind, numbers in kinds.items():
            for block, some in groupby(numbers, lambda number: number // BLOCK):
                key = INDEX_KEY.pack(session, block, *kind)
                added[key] = bits_of([number % BLOCK for number in some])
        self._expect(added)
        for key, bits in added.items():
            self._bits[key] |= bits

    def remove(self, session: int, number: int, guess: Kind | None = None) -> Kind | None:
        """Take record N out of a session; return of which kind it was, None if it was not a member."""
        key = self._key_of(session, number, guess)
        if key is None:
            return None
        self._bits[key] &= ~(1 << number % BLOCK)
        return Kind(*INDEX_KEY.unpack(key)[2:])

    def move(self, session: int, numbers: Iterable[int], guess: Kind | None, kind: Kind) -> None:
        """Have the index say that some records, whose Ns are sorted, are of that kind: those that are members."""
        for block, some in groupby(numbers, lambda number: number // BLOCK):
            wanted = bits_of([number % BLOCK for number in some])
            found = 0
            if guess is not None:
                key = INDEX_KEY.pack(session, block, *guess)
                found = self._read(key) & wanted
                self._bits[key] ^= found
            for number in numbers_of(block, wanted ^ found):
                if self.remove(session, number) is not None:
                    found |= 1 << number % BLOCK
            if found:
                key = INDEX_KEY.pack(session, block, *kind)
                self._bits[key] = self._read(key) | found

    # -- mirrors

    def add_lines(self, session: int, entries: Iterable[tuple[int, int]]) -> None:
        """Add lines to a session's mirror: N and schema number of each."""
        lines = []
        for schema, run in groupby(entries, lambda entry: entry[1]):
            name = f"{self._schemas.name(schema, self._writer)}."
            lines.append(name + f"\n{name}".join([str(number) for number, _ in run]) + "\n")
        self._texts.setdefault(session, []).append("".join(lines).encode())

    def remove_line(self, session: int, number: int, schema: int) -> None:
        """Take the line of record N out of a session's mirror."""
        name = self._schemas.name(schema, self._writer)
        self._removed.setdefault(session, []).append(f"{name}.{number}".encode())

    def follow_mirror(self, identity: bytes) -> None:
        """Have the mirror of a session compared with the index, and mended."""
        self._texts.setdefault(self.row(identity).number, [])

    def rewrite_mirror(self, identity: bytes) -> None:
        """Have the mirror of a session written anew, without blank lines."""
        self._anew.add(self.row(identity).number)

    def note_mirror(self, identity: bytes, row: Row | None, note: MirrorNote) -> None:
        """Have a session's row say what its mirror is, if it still is the *row* for which that was written."""
        if self.row(identity) == row:
            self._rows[identity] = row._replace(mirror=note)

    # -- sessions

    def row(self, identity: bytes) -> Row:
        """Return a session's row, which is made if it has none."""
        row = self._rows.get(identity)
        if row is None:
            self._writer.lock(SESSIONS, [identity])
            row = Row.read(self._writer, identity)
        if row is None:
            self._writer.lock(META, [NUMBERING])
            row = Row.read(self._writer, identity)  # another process may have been faster
        if row is None:
            number = SESSION_KEY.unpack(self._writer.get(META, b"next session") or SESSION_KEY.pack(1))[0]
            self._writer.put(META, [(b"next session", SESSION_KEY.pack(number + 1))])
            self._writer.put(META, [(session_name_key(number), identity)])
            row = Row(number, 0, None)
        self._rows[identity] = row
        self._identities[row.number] = identity
        return row

    def _row_of(self, session: int) -> tuple[bytes, Row]:
        """Return identity and row of the session with that number."""
        identity = self._identities.get(session) or self._writer.get(META, session_name_key(session))
        if identity is None:
            raise CorruptStore(f"session {session} has no identity: 'gc3session repair' rebuilds the index")
        return identity, self.row(identity)

    def lock(self, sessions: Iterable[int]) -> None:
        """Keep others from changing some sessions."""
        keys = sorted(map(session_name_key, sessions))
        items = self._writer.get_many(META, keys) if keys else []
        self._writer.lock(SESSIONS, [identity for _, identity in items])

    def home_of(self, number: int) -> int:
        """Return the home of a record that can't be read, by the index of all sessions; 0 if it has none."""
        names = self._writer.scan(META, SESSION_NAMES, None, SESSION_NAMES)
        sessions = [SESSION_KEY.unpack(key[-4:])[0] for key, _ in names]
        others = self.holding(number, 0)
        holding = (session for session in sessions if self._key_of(session, number, None) is not None)
        return next((session for session in holding if session not in others), 0)

    def erase(self, identity: bytes) -> tuple[int, list[int]]:
        """Take all entries of a session away, and its row; return its number and the Ns that it had.

        Their records stay as they are.
        """
        self._writer.lock(SESSIONS, [identity])
        row = Row.read(self._writer, identity)
        if row is None:
            return 0, []
        prefix = SESSION_KEY.pack(row.number)
        numbers: list[int] = []
        for table in (INDEX, COUNTS):
            items = self._writer.scan(table, prefix, None, prefix)
            if table == INDEX:
                for key, value in items:
                    numbers += numbers_of(INDEX_KEY.unpack(key)[1], members(key, value))
            self._writer.delete(table, [key for key, _ in items])
        self._writer.delete(SESSIONS, [identity])
        self._writer.delete(META, [session_name_key(row.number)])
        return row.number, sorted(numbers)

    # -- the end

    def finish(self, listeners: Mapping[bytes, Listener]) -> None:
        """Write entries, counts and rows; *listeners* plan what becomes of the mirrors."""
        changes: dict[tuple[int, Kind], int] = {}
        for key, bits in sorted(self._bits.items()):
            before = self._stored[key]
            if bits == before:
                continue
            if bits:
                self._writer.put(INDEX, [(key, pack_members(key, bits))])
            else:
                self._writer.delete(INDEX, [key])
            session, _, *kind = INDEX_KEY.unpack(key)
            change = bits.bit_count() - before.bit_count()
            changes[session, Kind(*kind)] = changes.get((session, Kind(*kind)), 0) + change
        concerned = {*self._texts, *self._removed, *self._anew}  # whose mirrors are
        totals = dict.fromkeys(concerned, 0)
        for (session, kind_), change in changes.items():
            totals[session] = totals.get(session, 0) + change
            if change:
                self._writer.count(COUNTS, COUNT_KEY.pack(session, *kind_), change)
        for session, change in totals.items():
            identity, row = self._row_of(session)
            after = row._replace(total=row.total + change)
            listener = listeners.get(identity)
            if listener is not None:
                text = b"".join(self._texts.get(session, ()))
                anew = session in self._anew
                after = listener.plan(self._writer, after, Change(text, self._removed.get(session, []), anew))
            elif change or session in concerned:
                after = after._replace(mirror=None)
            self._rows[identity] = after
        for identity, row in self._rows.items():
            row.write(self._writer, identity)
