"""The tables on PostgreSQL, as one transaction sees and changes them.

What a transaction writes is sent only before it reads the same table, and at the commit: many
statements at once (a pipeline). Very many rows are sent by COPY.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, pairwise
from struct import Struct
from typing import Any, Final

import psycopg

from ...errors import CorruptStore
from ...format.frame import RECORD_KEY
from ..interface import META, SET_TABLES, Item, Reader, Writer
from .errors import Connection, is_lost
from .statements import LAYOUT, Statements

_COPIED_FROM: Final = 256  # rows: if there are as many, COPY is faster than a statement with all of them
_ROWS: Final = 4096  # rows that are put together for COPY at a time, and keys in one statement
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
        # What `expect` has read: table -> key -> value.
        self._items: dict[str, dict[bytes, bytes | None]] = {}
        # What `expect_values` has read: table and key -> start -> first value, and the same as value -> starts.
        self._firsts: dict[tuple[str, bytes], dict[bytes, bytes | None]] = {}
        self._starts: dict[tuple[str, bytes], dict[bytes, list[bytes]]] = {}

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

    def _column(self, table: str, what: str, *parameters: Any) -> list[Any]:
        return [row[0] for row in self._rows(table, what, *parameters)]

    def expect(self, table: str, keys: Iterable[bytes]) -> None:
        known = self._items.setdefault(table, {})
        wanted = [key for key in dict.fromkeys(keys) if key not in known]
        if len(wanted) > 1:
            known.update(dict.fromkeys(wanted))
            known.update(self.get_many(table, wanted))

    def expect_values(self, table: str, key: bytes, starts: Iterable[bytes]) -> None:
        known = self._firsts.setdefault((table, key), {})
        wanted = [start for start in dict.fromkeys(starts) if start not in known]
        if len(wanted) > 1:
            firsts = self.first_values(table, key, wanted)
            known.update(zip(wanted, firsts, strict=True))
            starts = self._starts.setdefault((table, key), {})
            for start, value in zip(wanted, firsts, strict=True):
                if value is not None:
                    starts.setdefault(value, []).append(start)

    def get(self, table: str, key: bytes) -> bytes | None:
        known = self._items.get(table)
        if known is not None and key in known:
            return known[key]
        return next(iter(self._column(table, "get", key)), None)

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

    def entries(self, table: str) -> int:
        return int(self._column(table, "entries")[0])

    def values(self, table: str, key: bytes, start: bytes, limit: int) -> list[bytes]:
        known = self._firsts.get((table, key)) if limit == 1 else None
        if known is not None and start in known:
            first = known[start]
            return [] if first is None else [first]
        return self._column(table, "values", key, start, limit)

    def first_values(self, table: str, key: bytes, starts: Iterable[bytes]) -> list[bytes | None]:
        wanted = list(starts)
        found: list[bytes | None] = []
        for i in range(0, len(wanted), _ROWS):
            found += self._column(table, "first_values", key, wanted[i : i + _ROWS])
        return found

    def keys(self, table: str) -> Iterator[bytes]:
        """Yield the keys that a table has, whether their values are counted right or not."""
        if table not in SET_TABLES:
            yield from super().keys(table)
            return
        key = b""
        while found := self._column(table, "next_key", key):
            key = found[0]
            yield key

    def miscounted(self) -> Iterator[tuple[str, bytes, int, int]]:
        """Yield the keys with a wrong count: table, key, how many values are counted, how many there are."""
        for table in SET_TABLES:
            for key, counted, there in self._rows(table, "miscounted"):
                yield table, key, counted, there

    def last_value(self, table: str, key: bytes) -> bytes | None:
        return next(iter(self._column(table, "last_value", key)), None)

    def count(self, table: str, key: bytes) -> int:
        return next(iter(self._column(table, "count", key)), 0)

    def counts(self, table: str, prefix: bytes) -> list[tuple[bytes, int]]:
        end = _after_prefix(prefix)
        if end is None:
            return self._rows(table, "counts", prefix)
        return self._rows(table, "counts_to", prefix, end)


def _are_dense(keys: Sequence[bytes]) -> bool:
    """Return whether the Ns in *keys* are sorted and have few gaps, so that reading their range is faster."""
    first, last = RECORD_KEY.unpack(keys[0])[0], RECORD_KEY.unpack(keys[-1])[0]
    return 0 < last - first < 2 * len(keys) and all(a < b for a, b in pairwise(keys))


def _values_to_copy(key: bytes, values: Sequence[bytes]) -> Iterator[bytes]:
    """Yield rows of one key and *values*, all of one length, in the format of a binary COPY."""
    head = _COLUMNS.pack(2, len(key)) + key + _SIZE.pack(len(values[0]))
    for i in range(0, len(values), _ROWS):
        yield head + head.join(values[i : i + _ROWS])


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


class PostgresqlWriter(PostgresqlReader, Writer):
    """A transaction that changes the tables; `send` sends the changes that wait in this program."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        super().__init__(connection, statements)
        self._waiting: list[tuple[bytes, tuple[Any, ...]]] = []  # statements and their parameters
        self._copied: Counter[tuple[str, bytes]] = Counter()  # table and key -> values sent, but not yet counted
        self._touched: set[str] = set()  # tables that these two will change

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        if table in self._touched:
            self.send()
        return super()._rows(table, what, *parameters)

    def _later(self, table: str, what: str, *parameters: Any) -> None:
        self._touched.add(table)
        self._waiting.append((self._statements(what, table), parameters))

    def send(self) -> None:
        """Send the changes that wait."""
        waiting, self._waiting = self._waiting, []
        if self._copied:
            counts = [(self._statements("added", table), (key, n)) for (table, key), n in self._copied.items()]
            waiting[:0] = counts
            self._copied.clear()
        self._touched.clear()
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
                        self.connection.execute(statement, parameters, prepare=False)
                except BaseException as error:  # noqa: BLE001 (raised below: psycopg would print it on stderr if another follows)
                    failure = error
        except Exception as error:  # noqa: BLE001 (any: psycopg may fail in other ways when it is interrupted)
            raise failure or _interruption(error, handled) or error from None
        if failure is not None:
            raise failure

    def fill(self, on_create: Callable[[Writer], None] | None) -> None:
        """Fill new tables, unless another process has done so; their version is written last, and marks them as complete."""
        if not self._rows("", "layout"):
            if self.scan(META, b"", 1):
                raise CorruptStore(
                    f"the table {self._statements.layout_name} is empty, but the store's other tables are not: restore it,"
                    f" or do INSERT INTO {self._statements.layout_name} VALUES ({LAYOUT})"
                )
            if on_create is not None:
                on_create(self)
            self._later("", "made")

    def keep_others_out(self) -> None:
        """Wait until nobody else writes, and let nobody write before this transaction ends.

        To be called first: the state that the transaction sees is the one of its first statement.
        """
        self.connection.execute(self._statements("keep_out"), ())

    def recount(self, table: str, key: bytes, there: int) -> None:
        """Set the count of a key's values to how many are there."""
        self._later(table, "recount", key, there)

    def commit(self, token: bytes, former: bytes | None) -> None:
        """Send the changes that wait and the commit, which stores *token* and deletes a *former* one."""
        self._waiting.append((self._statements("commit"), (token,)))
        if former is not None:
            self._waiting.append((self._statements("forget"), (former,)))
        self._waiting.append((b"COMMIT", ()))
        self.send()

    def _forget(self, table: str, keys: Iterable[bytes]) -> None:
        """Forget what `expect` has read of keys that are about to change."""
        known = self._items.get(table)
        if known is not None:
            for key in keys:
                known.pop(key, None)

    def put(self, table: str, items: Sequence[Item]) -> None:
        self._forget(table, (key for key, _ in items))
        if len(items) == 1:
            self._later(table, "put_one", *items[0])
            return
        rows = list(dict(items).items())
        for some in (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)):
            self._later(table, "put", *map(list, zip(*some, strict=True)))

    def add(self, table: str, items: Sequence[Item]) -> None:
        if len(items) < _COPIED_FROM:
            if items:
                self.put(table, items)
            return
        self._forget(table, (key for key, _ in items))
        self._copy(table, _items_to_copy(items))

    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        gone = list(keys)
        self._forget(table, gone)
        for key in gone:
            self._firsts.pop((table, key), None)
        for some in (gone[i : i + _ROWS] for i in range(0, len(gone), _ROWS)):
            self._later(table, "delete", some)
            if table in SET_TABLES:
                self._later(table, "uncount", some)

    def put_values(self, table: str, key: bytes, values: Sequence[bytes]) -> None:
        self._firsts.pop((table, key), None)
        if len(values) < _COPIED_FROM:
            if values:
                self._later(table, "put", key, list(values), key)
            return
        self._copy(table, _values_to_copy(key, values))
        self._touched.add(table)
        self._copied[table, key] += len(values)

    def _copy(self, table: str, rows: Iterable[bytes]) -> None:
        """Send new rows, which are in the format of COPY."""
        self.send()
        with self.connection.cursor().copy(self._statements("copy", table)) as copy:
            copy.write(_COPY_HEAD)
            for some in rows:
                copy.write(some)
            copy.write(_COPY_END)

    def delete_values(self, table: str, key: bytes, values: Iterable[bytes]) -> None:
        gone = list(values)
        known = self._firsts.get((table, key))
        if known is not None:
            for value in gone:
                for start in self._starts.get((table, key), {}).get(value, ()):
                    known.pop(start, None)
        for some in (gone[i : i + _ROWS] for i in range(0, len(gone), _ROWS)):
            self._later(table, "delete_values", key, some, key)
