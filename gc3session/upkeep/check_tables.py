"""The check of the tables of a store: each item can be read, and all that refers to others is right."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import msgpack

from ..errors import CorruptRecord
from ..format.frame import FORMAT, RECORD_KEY
from ..format.schema import Schema
from ..index.entries import COUNT, SESSION_KEY, STATE_KEY, Row
from ..index.index_writer import SESSION_NAMES, session_name_key
from ..index.states import unpack_state
from ..system.number_set import Numbers
from ..tables.interface import (
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    Contents,
    OnProgress,
    no_progress,
    with_progress,
)
from .check_index import Entry, IndexCheck
from .check_mirror import MirrorCheck, MirrorCopy
from .finding import Change, Finding
from .record_reader import MissingSchema, Read, RecordReader


class TablesCheck:
    """The check of all tables, and of the mirror of one session.

    Args:
        contents: the tables.
        own: the identity of that session; None if it isn't known.
        mirror: its mirror; None if that is not to be checked.
        progress: called with the number of records read, and of all.

    Attributes:
        tasks: how many tasks that session has.
        known: whether it has a row.
        present: the Ns of all records.
        targets: the Ns that records refer to.
        reader: reads records.
    """

    def __init__(
        self,
        contents: Contents,
        own: bytes | None,
        mirror: MirrorCopy | None = None,
        progress: OnProgress = no_progress,
    ) -> None:
        self._contents = contents
        self._own = own
        self._mirror = mirror
        self._progress = progress
        self._rows: dict[int, tuple[bytes, Row]] = {}  # number of a session -> its identity and row
        self._named: dict[int, bytes] = {}  # number of a session -> the identity that `meta` has for it
        self._damaged: dict[bytes, str] = {}  # identity -> what is wrong with its row
        self._made: dict[bytes, tuple[Change, ...]] = {}  # identity -> what makes its row again
        self.tasks = 0
        self.known = True
        self.present = Numbers()
        self.targets = Numbers()
        self.reader = RecordReader(self.targets.add)

    def check(self) -> Iterator[Finding]:
        """Give all findings."""
        meta = self._contents.get
        version = meta(META, b"format")
        if version != msgpack.packb(FORMAT):
            yield Finding(
                "format",
                "meta",
                f"the format is {version!r}; this version of gc3session knows {FORMAT} only: upgrade gc3session",
                (Change(META, b"format", msgpack.packb(FORMAT)),),
            )
            return
        if len(meta(META, b"store") or b"") != 16:
            change = Change(META, b"store", secrets.token_bytes(16))
            yield Finding("format", "meta", "the store has no identity of 16 bytes", (change,))
        self.reader.next = _number(meta(META, b"next N"), 8)
        yield from self._check_schemas()
        yield from self._check_states()
        yield from self._check_rows()
        index = IndexCheck(self._contents, self.reader, self._row_again, self._stale)
        yield from self._check_sessions(index)
        yield from self._check_records(index)

    def _check_schemas(self) -> Iterator[Finding]:
        for key, data in self._contents.walk(SCHEMAS):
            try:
                schema = Schema.from_item(key, data)
                self.reader.schemas[schema.number] = schema
            except CorruptRecord as error:
                where = f"schema {int.from_bytes(key, 'big')}"
                yield Finding("schema", where, str(error), (Change(SCHEMAS, key, kept=True),))

    def _check_states(self) -> Iterator[Finding]:
        states = self.reader.states
        for key, data in self._contents.walk(STATES):
            number = int.from_bytes(key, "big")
            self.reader.last_state = max(self.reader.last_state, number if len(key) == STATE_KEY.size else 0)
            try:
                if len(key) != STATE_KEY.size or not number:
                    raise CorruptRecord("its key is no number of a state")
                name = unpack_state(number, data)
                if states.setdefault(name, number) != number:
                    raise CorruptRecord(f"it has the name {name!r}, as the state {states[name]} has")
            except CorruptRecord as error:
                yield Finding("state", f"state {number}", str(error), (Change(STATES, key, kept=True),))

    # -- sessions

    def _check_rows(self) -> Iterator[Finding]:
        for key, identity in self._contents.walk(META, prefix=SESSION_NAMES):
            self._named[int.from_bytes(key[len(SESSION_NAMES) :], "big")] = identity
        for key, data in self._contents.walk(SESSIONS):
            try:
                row = Row.parsed(key, data)
            except CorruptRecord as error:
                self._damaged[key] = f"its row is damaged: {error}"
                continue
            named = self._named.get(row.number)
            rival = self._rows[row.number][0] if row.number in self._rows else None
            if rival is None and named == self._own:
                rival = named
            if rival not in (None, key):
                other = rival if named == key else key
                self._damaged[other] = f"another session has the same number {row.number}"
                if other == key:
                    continue
            # A note of a mirror may be long, and there may be many sessions.
            self._rows[row.number] = key, row if key == self._own else row._replace(mirror=None)
        for number, identity in self._named.items():
            if identity not in self._damaged and self._rows.get(number, (b"",))[0] != identity:
                yield Finding(
                    "session",
                    f"meta {session_name_key(number)!r}",
                    f"it leads to {identity.hex()}, but that isn't its session",
                    (Change(META, session_name_key(number)),),
                )
        for number, (identity, _) in self._rows.items():
            if self._named.get(number) != identity:
                change = Change(META, session_name_key(number), identity)
                yield Finding(
                    "session", f"session {identity.hex()}", f"nothing leads from {number} to it", (change,)
                )

        greatest = max(self._rows, default=0)
        following = _number(self._contents.get(META, b"next session") or SESSION_KEY.pack(1), 4)
        if following is None or following <= greatest:
            message = f"'next session' is {following}, but there is session {greatest}"
            change = Change(META, b"next session", SESSION_KEY.pack(greatest + 1))
            yield Finding("sequence", "meta", message, (change,))

    def _row_again(self, number: int) -> tuple[Change, ...]:
        """Return what makes the row of a session again that has tasks, but no row; nothing if it has one.

        If a single one in use has no row, it is that of the session that is checked.
        """
        if number in self._rows:
            return ()
        held = {identity for identity, _ in self._rows.values()}
        identity = self._named.get(number, b"")
        if len(identity) != 16 or identity in held:
            held.update(self._named.values())
            spare = [i for i in (*self._damaged, self._own) if i is not None and len(i) == 16 and i not in held]
            identity = spare[0] if spare else secrets.token_bytes(16)
        row = Row(number, 0, None)
        self._rows[number] = identity, row
        self._made[identity] = (
            Change(SESSIONS, identity, row.to_bytes()),
            Change(META, session_name_key(number), identity),
        )
        return self._made[identity]

    def _stale(self, number: int) -> Change:
        """Return what says in a session's row that its mirror is to be written anew."""
        identity, row = self._rows[number]
        return Change(SESSIONS, identity, row._replace(mirror=None).to_bytes())

    def _check_sessions(self, index: IndexCheck) -> Iterator[Finding]:
        """Check what the tables have of each session; those that have no row get one."""
        own = next((n for n, (identity, _) in self._rows.items() if identity == self._own), 0)
        lines = None
        if self._mirror is not None and self._own is not None:
            lines = MirrorCheck(self._mirror, self._rows[own][1] if own else None, self.reader.schemas)

        def noted(session: int, entry: Entry) -> None:
            if session == own and lines is not None:
                lines.note(entry)

        for found in index.sessions(self._rows, noted):
            if isinstance(found, Finding):
                yield found
                continue
            if found.number in self._rows:
                identity, row = self._rows[found.number]
                if found.whole and row.total != found.total:
                    message = f"its row says {row.total} tasks, but it has {found.total}"
                    change = Change(SESSIONS, identity, row._replace(total=found.total, mirror=None).to_bytes())
                    yield Finding("session", f"session {identity.hex()}", message, (change,))
                if found.number == own:
                    self.tasks = found.total
                continue
            changes = self._row_again(found.number)
            if self._rows[found.number][0] not in self._damaged:  # else that is the finding
                where = f"session {found.number}"
                yield Finding("session", where, "it has entries in the tables, but no row", changes)
        for identity, fault in self._damaged.items():
            where = f"session {identity.hex()}"
            if len(identity) == 16 and identity not in self._made:
                numbers = [n for n, named in self._named.items() if named == identity and n not in self._rows]
                self._named.update(dict.fromkeys(numbers or [max(self._rows, default=0) + 1], identity))
                self._row_again(numbers[0] if numbers else max(self._rows, default=0) + 1)
            yield Finding("session", where, fault, self._made.get(identity, (Change(SESSIONS, identity),)))
        self.known = any(identity == self._own for identity, _ in self._rows.values())
        if lines is not None and (own or not self.known):  # else it isn't known what the mirror should be
            yield from lines.end(self.tasks)

    # -- records

    def _check_records(self, index: IndexCheck) -> Iterator[Finding]:
        count, greatest = int.from_bytes(self._contents.get(META, b"records") or b"", "big"), 0
        for block in index.blocks(with_progress(self._contents.walk(RECORDS), count, self._progress)):
            if isinstance(block, Finding):
                yield block
                continue
            for number, read in block.records.items():
                self.present.add(number)
                if isinstance(read, Read) or self.reader.can_be(number):
                    greatest = max(greatest, number)
                if not isinstance(read, Read):
                    yield Finding(
                        "record", f"record {number}", f"it can't be read: {read}", _without(number, read)
                    )
        if len(self.present) != count:
            change = Change(META, b"records", COUNT.pack(len(self.present)))
            yield Finding("format", "meta", f"'records' is {count}, but there are {len(self.present)}", (change,))
        following = self.reader.next
        if following is None or following <= greatest:
            change = Change(META, b"next N", RECORD_KEY.pack(greatest + 1))
            yield Finding(
                "sequence", "meta", f"'next N' is {following}, but there is record {greatest}", (change,)
            )


def _without(number: int, fault: CorruptRecord) -> tuple[Change, ...]:
    """Return what a repair does about a record that can't be read: it may need its schema only."""
    change = Change(RECORDS, RECORD_KEY.pack(number), kept=True)
    return (Change(SCHEMAS, fault.key, kept=True), change) if isinstance(fault, MissingSchema) else (change,)


def _number(data: bytes | None, size: int) -> int | None:
    """Return *data* as a number; None if they are missing, don't have that size, or the number is 0."""
    return int.from_bytes(data, "big") or None if data is not None and len(data) == size else None
