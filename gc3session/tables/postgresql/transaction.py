"""The tables on PostgreSQL, as one transaction sees and changes them.

What a transaction writes is sent only before it scans the same table, and at the commit: many
statements at once (a pipeline).  Very many new rows are sent by COPY.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, pairwise
from struct import Struct
from typing import Any, Final

import psycopg

from ...errors import CorruptStore
from ...format.frame import RECORD_KEY
from ..interface import META, SESSIONS, TABLES, Item, Reader, Writer
from .errors import Connection, is_lost
from .statements import LAYOUT, Statements

_COPIED_FROM: Final = 256  # rows: if there are as many, COPY is faster than a statement with all of them
_ROWS: Final = 4096  # rows that are put together for COPY at a time, and keys in one statement
_MOST_WAITING: Final = 16384  # changes of a table that wait until they are sent
_LAST: Final = b"\xff" * 1024  # after all keys
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END: Final = b"\xff\xff"
_serials = count(1 << 64)  # for servers that don't identify a state: each transaction counts as another one
_COLUMNS: Final = Struct(">hi")
_SIZE: Final = Struct(">i")


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
    """A transaction that has begun; what it returns stays valid after its end.

    Args:
        connection: on which the transaction has begun.
        statements: for the tables.
        renew: called with the connection if that is lost before anything was read; returns another
            one, on which a new transaction has begun.
    """

    def __init__(
        self,
        connection: Connection,
        statements: Statements,
        renew: Callable[[Connection], Connection] | None = None,
    ) -> None:
        self.connection = connection
        self._statements = statements
        self._renew = renew
        self._serial: int | None = None

    @property
    def serial(self) -> int:  # type: ignore[override]
        """A number that identifies the committed state: it is different after each commit of any process."""
        if self._serial is None:
            if _identifies_states(self.connection):
                snapshot = self._answer(b"SELECT pg_current_snapshot()::text")[0][0]
                self._serial = int.from_bytes(hashlib.sha256(snapshot.encode()).digest()[:8])
            else:
                self._serial = next(_serials)
        return self._serial

    def newest(self) -> int:
        """Return the `serial` of this transaction: it may stay open although others commit, as it costs them nothing."""
        return self.serial

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        return self._answer(self._statements(what, table), parameters)

    def _answer(self, statement: bytes, parameters: Sequence[Any] = ()) -> list[Any]:
        while True:
            try:
                rows = self.connection.execute(statement, parameters, binary=True).fetchall()
            except psycopg.Error:
                if self._renew is None or not is_lost(self.connection):
                    raise
                self.connection = self._renew(self.connection)
            else:
                self._renew = None
                return rows

    def get(self, table: str, key: bytes) -> bytes | None:
        rows = self._rows(table, "get", key)
        return rows[0][0] if rows else None

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        found: dict[bytes, bytes] = {}
        for some in (keys[i : i + _ROWS] for i in range(0, len(keys), _ROWS)):
            if len(some) > 1 and len(some[0]) == len(some[-1]) == 8 and _are_dense(some):
                found.update(self._rows(table, "between", some[0], some[-1]))
            else:
                found.update(self._rows(table, "get_many", list(some)))
        return [(key, found[key]) for key in keys if key in found]

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        start = max(start, prefix)
        end = _after_prefix(prefix)
        if end is None:
            return self._rows(table, "scan", start, limit)
        return self._rows(table, "scan_to", start, end, limit)

    def scan_many(self, table: str, prefixes: Sequence[bytes]) -> list[Item]:
        found: list[Item] = []
        for some in (prefixes[i : i + _ROWS] for i in range(0, len(prefixes), _ROWS)):
            found += self._rows(
                table, "scan_many", list(some), [_after_prefix(prefix) or _LAST for prefix in some]
            )
        return found


def _are_dense(keys: Sequence[bytes]) -> bool:
    """Return whether the Ns in *keys* are sorted and have few gaps, so that reading their range is faster."""
    first, last = RECORD_KEY.unpack(keys[0])[0], RECORD_KEY.unpack(keys[-1])[0]
    return 0 < last - first < 2 * len(keys) and all(a < b for a, b in pairwise(keys))


def _items_to_copy(items: Sequence[Item]) -> Iterator[bytes]:
    """Yield rows of *items*, whose keys are of one length, in the format of a binary COPY."""
    size = _SIZE.pack
    for i in range(0, len(items), _ROWS):
        some = items[i : i + _ROWS]
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
    """A transaction that changes the tables; `send` sends the changes that wait in this program.

    Args:
        connection: on which the transaction has begun.
        statements: for the tables.
        sessions: those whose rows are to be locked, as keys; they become more, if LocksMissing is raised.
    """

    def __init__(self, connection: Connection, statements: Statements, sessions: set[bytes]) -> None:
        super().__init__(connection, statements)
        self._sessions = sessions
        self._locks = False  # whether this transaction has locked anything
        self._locked: dict[str, dict[bytes, bytes | None]] = {
            table: {} for table in TABLES
        }  # what nobody else changes
        self._changes: dict[str, dict[bytes, bytes | None]] = {
            table: {} for table in TABLES
        }  # None: to be deleted
        self._counts: dict[str, dict[bytes, int]] = {table: {} for table in TABLES}  # by how much numbers grow

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        for known in (self._changes[table], self._locked[table]):
            if key in known:
                return known[key]
        self._send_counts(table)
        return super().get(table, key)

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        known = self._locked[table]
        if known and not self._changes[table] and all(key in known for key in keys):
            return [(key, value) for key in keys if (value := known[key]) is not None]
        self._send_changes(table)
        return super().get_many(table, keys)

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        self._send_changes(table)
        return super().scan(table, start, limit, prefix)

    def scan_many(self, table: str, prefixes: Sequence[bytes]) -> list[Item]:
        self._send_changes(table)
        return super().scan_many(table, prefixes)

    def lock(self, table: str, keys: Iterable[bytes]) -> None:
        wanted = {*keys}
        if table == SESSIONS:
            if wanted <= self._sessions and self._locks:
                return
            self._sessions |= wanted
            if self._locks:
                raise LocksMissing
            wanted = self._sessions
        self._locks = True
        known = self._locked[table]
        new = sorted(wanted - known.keys())
        self._send_changes(table)
        for some in (new[i : i + _ROWS] for i in range(0, len(new), _ROWS)):
            known.update(self._rows(table, "lock", some))

    # -- writing

    def put(self, table: str, items: Sequence[Item]) -> None:
        self._change(table, dict(items))

    def add(self, table: str, items: Sequence[Item]) -> None:
        if len(items) < _COPIED_FROM:
            self.put(table, items)
            return
        self._send_changes(table)
        with self.connection.cursor().copy(self._statements("copy", table)) as copy:
            copy.write(_COPY_HEAD)
            for some in _items_to_copy(items):
                copy.write(some)
            copy.write(_COPY_END)

    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        self._change(table, dict.fromkeys(keys))

    def _change(self, table: str, items: dict[bytes, bytes | None]) -> None:
        changes, known = self._changes[table], self._locked[table]
        changes.update(items)
        if known:
            known.update((key, value) for key, value in items.items() if key in known)
        if len(changes) > _MOST_WAITING:
            self._send_changes(table)

    def count(self, table: str, key: bytes, change: int) -> None:
        counts = self._counts[table]
        counts[key] = counts.get(key, 0) + change

    def _send_changes(self, table: str) -> None:
        self._send([*self._statements_for(table), *self._counting(table)])

    def _send_counts(self, table: str) -> None:
        if self._counts[table]:
            self._send_changes(table)

    def _statements_for(self, table: str) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        """Give the statements, with their parameters, that make the changes which wait; they wait no more."""
        items = sorted(self._changes[table].items())
        self._changes[table].clear()
        gone = [key for key, value in items if value is None]
        for i in range(0, len(gone), _ROWS):
            yield self._statements("delete", table), (gone[i : i + _ROWS],)
        there = [item for item in items if item[1] is not None]
        for i in range(0, len(there), _ROWS):
            yield self._statements("put", table), (*map(list, zip(*there[i : i + _ROWS], strict=True)),)

    def _counting(self, table: str) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        """Give the same for the numbers that grow."""
        items = sorted(self._counts[table].items())
        self._counts[table].clear()
        for what, sign in (("shrink", -1), ("grow", 1)):
            some = [(key, sign * change) for key, change in items if sign * change > 0]
            for i in range(0, len(some), _ROWS):
                keys, changes = map(list, zip(*some[i : i + _ROWS], strict=True))
                yield self._statements(what, table), (keys, changes)
                if what == "shrink":
                    yield self._statements("delete_zeros", table), (keys,)

    def _send(self, waiting: list[tuple[bytes, tuple[Any, ...]]]) -> None:
        if len(waiting) == 1:
            self.connection.execute(*waiting[0])
        elif waiting:
            self._send_together(waiting)

    def _send_together(self, waiting: list[tuple[bytes, tuple[Any, ...]]]) -> None:
        failure: BaseException | None = None
        handled = sys.exception()
        try:
            with self.connection.pipeline():
                try:
                    for statement, parameters in waiting:
                        # After a failure the server skips the rest of the pipeline: psycopg would believe
                        # that a statement was prepared there.
                        self.connection.execute(statement, parameters)
                except BaseException as error:  # noqa: BLE001 (raised below: psycopg would print it on stderr if another follows)
                    failure = error
        except Exception as error:  # noqa: BLE001 (any: psycopg may fail in other ways when it is interrupted)
            raise failure or _interruption(error, handled) or error from None
        if failure is not None:
            raise failure

    # -- the whole transaction

    def fill(self, on_create: Callable[[Writer], None] | None) -> None:
        """Fill new tables, unless another process has done so; their version is written last, and marks them as complete."""
        self.keep_others_out()
        if not self._rows("", "layout"):
            if self.scan(META, b"", 1):
                raise CorruptStore(
                    f"the table {self._statements.layout_name} is empty, but the store's other tables are not: restore it,"
                    f" or do INSERT INTO {self._statements.layout_name} VALUES ({LAYOUT})"
                )
            if on_create is not None:
                on_create(self)
            self.connection.execute(self._statements("made"), ())

    def keep_others_out(self) -> None:
        """Wait until nobody else writes, and let nobody write before this transaction ends."""
        self.connection.execute(self._statements("keep_out"), ())

    def commit(self, token: bytes, former: bytes | None) -> None:
        """Send the changes that wait and the commit, which stores *token* and deletes a *former* one.

        Numbers are the last, as that of the records is one that all writers of the store wait for.
        """
        waiting = [statement for table in TABLES for statement in self._statements_for(table)]
        waiting.append((self._statements("commit"), (token,)))
        if former is not None:
            waiting.append((self._statements("forget"), (former,)))
        waiting += [statement for table in reversed(TABLES) for statement in self._counting(table)]
        self._send_together([*waiting, (b"COMMIT", ())])
