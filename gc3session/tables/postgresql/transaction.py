"""The tables on PostgreSQL, as one transaction sees and changes them.

What doesn't give an answer waits until something does, and is sent together with that (a pipeline):
what begins the transaction, the locks, and the changes.  Very many new rows are sent by COPY.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, pairwise
from struct import Struct
from typing import Any, ClassVar, Final, TypeVar

import psycopg

from ...errors import CorruptStore
from ...format.frame import RECORD_KEY
from ..interface import INDEX, META, SESSIONS, TABLES, Item, Reader, Writer
from .arrays import BigintArray, ByteaArray
from .errors import Connection, is_lost
from .statements import LAYOUT, Statements

S = TypeVar("S")

Statement = tuple[bytes, tuple[Any, ...]]
"""With its parameters."""

Begun = tuple[Connection, Sequence[bytes]]
"""A connection on which no transaction is open, and the statements that begin one there."""

Changes = dict[str, dict[bytes, bytes | None]]
"""Table -> key -> value, None if it is missing."""

_COPIED_FROM: Final = 256  # rows: if there are as many, COPY is faster than a statement with all of them
_ROWS: Final = 4096  # rows that are put together for COPY at a time, and keys in one statement
_MOST_WAITING: Final = 16384  # changes of a table that wait to be sent
_AHEAD: Final = (INDEX, META)  # tables of which only those items are read that a locked session row guards
_FEW: Final = 16
_COMBINED: Final = 8  # statements
_LAST: Final = b"\xff" * 1024  # after all keys
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END: Final = b"\xff\xff"
_serials = count(1 << 64)  # for servers that don't identify a state: each transaction counts as another one
_COLUMNS: Final = Struct(">hi")
_SIZE: Final = Struct(">i")


def _parts(sequence: Sequence[S]) -> Iterator[Sequence[S]]:
    """Give a sequence by parts that one statement takes."""
    return (sequence[i : i + _ROWS] for i in range(0, len(sequence), _ROWS))


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin with *prefix*; None if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def _identifies_states(connection: Connection) -> bool:
    """Return whether the server's `pg_current_snapshot()` differs after each commit.

    CockroachDB has no such function. YugabyteDB has it, but it knows only one node's transactions.
    """
    status = connection.pgconn.parameter_status
    return status(b"crdb_version") is None and b"-YB-" not in (status(b"server_version") or b"")


class PostgresqlReader(Reader):
    """A transaction, which begins with the first answer; what it returns stays valid after its end.

    Args:
        begun: its connection, and what begins it.
        statements: for the tables.
        renew: called with the connection if that is lost before anything was read; returns another beginning.

    Attributes:
        spoiled: whether the connection isn't to be used again: after a failure the server skips what
            else was sent, and psycopg believes that it has prepared statements there.
    """

    _locks_out: ClassVar[bool] = False

    def __init__(
        self, begun: Begun, statements: Statements, renew: Callable[[Connection], Begun] | None = None
    ) -> None:
        self.connection, begin = begun
        self.spoiled = False
        self._statements = statements
        self._renew = renew
        # What is to be sent, and the tables that each reads for later.
        self._waiting: list[tuple[Statement, tuple[str, ...]]] = []
        self._locked: Changes = {}  # what nobody else changes
        self._serial: int | None = None
        self._pipeline: psycopg.Pipeline | None = None
        self._pipelines = contextlib.ExitStack()
        self._wait((statement, ()) for statement in begin)

    @property
    def serial(self) -> int:  # type: ignore[override]
        if self._serial is None:
            if _identifies_states(self.connection):
                snapshot = self._answer(b"SELECT pg_current_snapshot()::text")[0][0]
                self._serial = int.from_bytes(hashlib.sha256(snapshot.encode()).digest()[:8])
            else:
                self._serial = next(_serials)
        return self._serial

    def _wait(self, statements: Iterable[Statement], *tables: str) -> None:
        """Have statements wait until something is read, or the transaction ends; they may read some tables for later."""
        self._waiting += [(statement, tables) for statement in statements]

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        return self._answer(self._statements(what, table), parameters)

    def _answer(self, statement: bytes, parameters: tuple[Any, ...] = ()) -> list[Any]:
        while True:
            try:
                rows = self._send((statement, parameters))
            except psycopg.Error:
                if self._renew is None or not is_lost(self.connection):
                    raise
                self.connection, begin = self._renew(self.connection)
                self.spoiled = False
                self._waiting.clear()
                self._wait((statement, ()) for statement in begin)
            else:
                self._renew = None
                return rows

    def _send(self, *statements: Statement, last: bool = False) -> list[Any]:
        """Send what waits, and some statements; return the rows that the last one gives.

        Unless they are the *last* of a transaction that locks others out, the pipeline stays open: leaving it,
        psycopg has the server forget that a transaction which is idle for too long is to be ended.
        """
        together = [*self._waiting, *((statement, ()) for statement in statements)]
        if len(together) == 1 and not self._locks_out:
            cursors = [self.connection.execute(*together[0][0], binary=True)]
        else:
            stay = self._locks_out and not last
            cursors = self._send_together([statement for statement, _ in together], stay=stay)
        self._waiting.clear()
        for (_, tables), cursor in zip(together, cursors, strict=True):
            for table, key, value in cursor.fetchall() if tables else ():
                self._locked[table][key] = value
        return cursors[-1].fetchall() if cursors and cursors[-1].description else []

    def _send_together(self, statements: list[Statement], *, stay: bool) -> list[psycopg.Cursor[Any]]:
        """Execute statements in a pipeline, which is to *stay* open; return their cursors."""
        cursors: list[psycopg.Cursor[Any]] = []
        failure: BaseException | None = None
        handled = sys.exception()
        try:
            if self._pipeline is None and statements:
                self._pipeline = self._pipelines.enter_context(self.connection.pipeline())
            try:
                cursors += [self.connection.execute(*statement, binary=True) for statement in statements]
                if stay and self._pipeline is not None:
                    self._pipeline.sync()
            except BaseException as error:  # noqa: BLE001 (raised below: psycopg would print it on stderr if another follows)
                failure = error
            if not stay or failure is not None:
                self.leave()
        except Exception as error:  # noqa: BLE001 (any: psycopg may fail in other ways when it is interrupted)
            failure = failure or _interruption(error, handled) or error
        if failure is not None:
            self.spoiled = True
            raise failure from None
        return cursors

    def leave(self) -> None:
        """Leave the pipeline, as the transaction is to end."""
        self._pipeline = None
        self._pipelines.close()

    def get(self, table: str, key: bytes) -> bytes | None:
        rows = self._answer(self._statements("get", table), (key,))
        return rows[0][0] if rows else None

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        found: dict[bytes, bytes] = {}
        for some in _parts(keys):
            if len(some) > 1 and len(some[0]) == len(some[-1]) == 8 and _are_dense(some):
                found.update(self._rows(table, "between", some[0], some[-1]))
            else:
                found.update(self._rows(table, "get_many", ByteaArray(some)))
        return [(key, found[key]) for key in keys if key in found]

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        return self._rows(table, "scan", max(start, prefix), _after_prefix(prefix) or _LAST, limit)

    def scan_many(self, table: str, prefixes: Sequence[bytes]) -> list[Item]:
        found: list[Item] = []
        for some in _parts(prefixes):
            ends = ByteaArray(_after_prefix(prefix) or _LAST for prefix in some)
            found += self._rows(table, "scan_many", ByteaArray(some), ends)
        return found


def _are_dense(keys: Sequence[bytes]) -> bool:
    """Return whether the Ns in *keys* are sorted and have few gaps, so that reading their range is faster."""
    first, last = RECORD_KEY.unpack(keys[0])[0], RECORD_KEY.unpack(keys[-1])[0]
    return 0 < last - first < 2 * len(keys) and all(a < b for a, b in pairwise(keys))


def _items_to_copy(items: Sequence[Item]) -> Iterator[bytes]:
    """Yield rows of *items*, whose keys are of one length, in the format of a binary COPY."""
    size = _SIZE.pack
    for some in _parts(items):
        head = _COLUMNS.pack(2, len(some[0][0]))
        yield b"".join(chain.from_iterable((head, key, size(len(v)), v) for key, v in some))


def _interruption(error: Exception, handled: BaseException | None) -> BaseException | None:
    """Return what a signal's handler raised while a pipeline ended; psycopg raises *error* in its place.

    What was being *handled* already when the pipeline began is something else.
    """
    context = error.__context__
    while context is not None and context is not handled:
        if not isinstance(context, psycopg.Error):
            return context
        context = context.__context__
    return None


class LocksMissing(Exception):
    """A transaction needs the rows of more sessions than it has locked: it begins again, and locks all of them first."""


class PostgresqlWriter(PostgresqlReader, Writer):
    """A transaction that changes the tables.

    Args:
        begun, statements: as in `PostgresqlReader`.
        sessions: those whose rows are to be locked, as keys; they become more, if LocksMissing is raised.
        ahead: what is read with these rows, as the transaction before has read it: table -> few keys.  It becomes
            what this one reads.
    """

    _locks_out = True

    def __init__(
        self, begun: Begun, statements: Statements, sessions: set[bytes], ahead: dict[str, Sequence[bytes]]
    ) -> None:
        super().__init__(begun, statements)
        self._sessions = sessions
        self._ahead = ahead
        self._has_locked = False
        self._locked = {table: {} for table in TABLES}
        self._changes: Changes = {table: {} for table in TABLES}
        self._counts: dict[str, dict[bytes, int]] = {table: {} for table in TABLES}  # by how much numbers grow

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        if key in self._changes[table]:
            return self._changes[table][key]
        if any(table in tables for _, tables in self._waiting):
            self._send()
        if key in self._locked[table]:
            return self._locked[table][key]
        if key in self._counts[table]:
            self._have_changes_wait(table)
        value = super().get(table, key)
        if table == SESSIONS and value is not None and key in self._sessions:
            raise LocksMissing  # the row has come into being since it was to be locked
        return value

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        if any(table in tables for _, tables in self._waiting):
            self._send()
        if table in _AHEAD and len(keys) <= _FEW:
            self._ahead[table] = keys
        known = self._locked[table]
        if known and not self._changes[table] and all(key in known for key in keys):
            return [(key, value) for key in keys if (value := known[key]) is not None]
        return super().get_many(table, keys)

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        self._have_changes_wait(table)  # which come first
        return super()._rows(table, what, *parameters)

    def lock(self, table: str, keys: Iterable[bytes]) -> None:
        wanted = {*keys}
        if table == SESSIONS:
            if self._has_locked and wanted <= self._sessions:
                return
            self._sessions |= wanted
            if self._has_locked:
                raise LocksMissing
            wanted = self._sessions
        self._has_locked = True
        self._have_changes_wait(table)
        new = sorted(wanted - self._locked[table].keys())
        self._wait(((self._statements("lock", table), (ByteaArray(some),)) for some in _parts(new)), table)
        ahead = {**self._ahead}  # other threads may change it
        if table == SESSIONS and ahead:
            for other, some in ahead.items():
                self._locked[other].update(dict.fromkeys(some))
            text = b" UNION ALL ".join(self._statements("read", other) for other in ahead)
            self._wait([(text, (*map(ByteaArray, ahead.values()),))], *ahead)

    # -- writing

    def put(self, table: str, items: Sequence[Item]) -> None:
        self._change(table, dict(items))

    def add(self, table: str, items: Sequence[Item]) -> None:
        if len(items) < _COPIED_FROM:
            self.put(table, items)
            return
        self._have_changes_wait(table)
        self._send(last=True)  # in a pipeline there can't be a COPY
        with self.connection.cursor().copy(self._statements("copy", table)) as copy:
            copy.write(_COPY_HEAD)
            for some in _items_to_copy(items):
                copy.write(some)
            copy.write(_COPY_END)

    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        self._change(table, dict.fromkeys(keys))

    def _change(self, table: str, items: dict[bytes, bytes] | dict[bytes, None]) -> None:
        changes, known = self._changes[table], self._locked[table]
        changes.update(items)
        if known:
            known.update((key, value) for key, value in items.items() if key in known)
        if len(changes) > _MOST_WAITING:
            self._have_changes_wait(table)
            self._send()

    def count(self, table: str, key: bytes, change: int) -> None:
        counts = self._counts[table]
        counts[key] = counts.get(key, 0) + change

    def _have_changes_wait(self, table: str) -> None:
        """Have the changes of a table wait to be sent."""
        self._wait(self._putting(table))
        self._wait(self._counting(table))

    def _putting(self, table: str) -> Iterator[Statement]:
        """Give the statements that make the changes, of which there are none then."""
        items = sorted(self._changes[table].items())
        self._changes[table].clear()
        for gone in _parts([key for key, value in items if value is None]):
            yield self._statements("delete", table), (ByteaArray(gone),)
        for some in _parts([item for item in items if item[1] is not None]):
            yield self._statements("put", table), (*map(ByteaArray, zip(*some, strict=True)),)

    def _counting(self, table: str) -> Iterator[Statement]:
        """Give those that change numbers."""
        items = sorted(self._counts[table].items())
        self._counts[table].clear()
        for sign, statements in ((-1, ("vanish", "shrink")), (1, ("grow",))):
            for some in _parts([(key, sign * change) for key, change in items if sign * change > 0]):
                keys, changes = ByteaArray(key for key, _ in some), BigintArray(change for _, change in some)
                for what in statements:
                    yield self._statements(what, table), (keys, changes)

    # -- the whole transaction

    def fill(self, on_create: Callable[[Writer], None] | None) -> None:
        """Fill new tables, unless another process has done so; their version is written last, and marks them as complete."""
        self.keep_others_out()
        if not self._answer(self._statements("layout")):
            if self.scan(META, b"", 1):
                raise CorruptStore(
                    f"the table {self._statements.layout_name} is empty, but the store's other tables are not: restore it,"
                    f" or do INSERT INTO {self._statements.layout_name} VALUES ({LAYOUT})"
                )
            if on_create is not None:
                on_create(self)
            self._wait([(self._statements("made"), ())])

    def keep_others_out(self) -> None:
        """Wait until nobody else writes, and let nobody write before this transaction ends."""
        self._send((self._statements("keep_out"), ()))

    def commit(self, token: bytes, former: list[bytes], flushed_later: bool) -> None:
        """Send the changes that wait and the commit, which stores *token* and deletes *former* ones.

        They are one statement if they are few: no two of them change the same row.  If it is to be *flushed
        later*, the commit leaves what is locked to the others before it is on the server's disk, which the
        transaction after it waits for: so these others don't wait for each other's flush.
        """
        statements = [statement for table in TABLES for statement in self._putting(table)]
        statements.append((self._statements("commit"), (token,)))
        if former:
            statements.append((self._statements("forget"), (ByteaArray(former),)))
        for table in reversed(TABLES):
            statements += self._counting(table)
        if 1 < len(statements) <= _COMBINED:
            *some, last = [text for text, _ in statements]
            parts = b", ".join(b"s%d AS (%s)" % (i, text) for i, text in enumerate(some))
            statements = [(b"WITH %s %s" % (parts, last), tuple(chain.from_iterable(p for _, p in statements)))]
        self._wait(statements)
        if flushed_later:
            early = (b"SET LOCAL synchronous_commit = off", ())
            self._send(early, (b"COMMIT", ()), (self._statements("flush"), (token,)), last=True)
        else:
            self._send((b"COMMIT", ()), last=True)
