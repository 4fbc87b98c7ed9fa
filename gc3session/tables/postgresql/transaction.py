"""The tables on PostgreSQL, as one transaction sees and changes them.

What a transaction writes is sent when it is needed: before it reads the same table, and at the
commit, many statements at once (a pipeline).  Very many rows go by COPY.
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
from .connections import tells_states
from .errors import Connection, is_lost
from .statements import LAYOUT, Statements

_COPIED_FROM: Final = 256  # rows from which on a COPY of their own is faster
_ROWS: Final = 4096  # rows of COPY that are put together at a time, or keys of one statement
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END: Final = b"\xff\xff"
_serials = count(1 << 64)  # of states that the server has no names for: each counts as another one
_COLUMNS: Final = Struct(">hi")
_SIZE: Final = Struct(">i")


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin with *prefix*; None if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


class PostgresqlReader(Reader):
    """A transaction that has been begun; what it hands out is valid after its end.

    Args:
        renewed: begins another one on a new connection, where the connection is lost before
            anything has been read.
    """

    def __init__(
        self, connection: Connection, statements: Statements, renewed: Callable[[], Connection] | None = None
    ) -> None:
        self.connection = connection
        self._statements = statements
        self._renewed = renewed
        self._serial: int | None = None
        self._items: dict[str, dict[bytes, bytes | None]] = {}  # what `expect` has read, by table
        self._firsts: dict[tuple[str, bytes], dict[bytes, bytes | None]] = {}  # by table and key: start -> value
        self._starts: dict[tuple[str, bytes], dict[bytes, list[bytes]]] = {}  # the same: value -> starts

    @property
    def serial(self) -> int:  # type: ignore[override]
        """A number of the committed state: another one once anybody has committed."""
        if self._serial is None:
            if tells_states(self.connection):
                shown = self._answer(b"SELECT pg_current_snapshot()::text")[0][0]
                self._serial = int.from_bytes(hashlib.sha256(shown.encode()).digest()[:8])
            else:
                self._serial = next(_serials)
        return self._serial

    def newest(self) -> int:
        """Return the `serial` of this transaction: it may stay open beside writers, nothing grows for it alone."""
        return self.serial

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        return self._answer(self._statements(what, table), parameters)

    def _answer(self, statement: bytes, parameters: Sequence[Any] = ()) -> list[Any]:
        while True:
            try:
                rows = self.connection.execute(statement, parameters, binary=True).fetchall()
            except psycopg.Error:
                if self._renewed is None or not is_lost(self.connection):
                    raise
                self.connection = self._renewed()
            else:
                self._renewed = None
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
        """Give the keys of a table: those that it has, whatever is counted of them."""
        if table not in SET_TABLES:
            yield from super().keys(table)
            return
        key = b""
        while found := self._column(table, "next_key", key):
            key = found[0]
            yield key

    def miscounted(self) -> Iterator[tuple[str, bytes, int, int]]:
        """Give what is counted wrong: table and key, how many values are counted, and how many there are."""
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
    """Return whether sorted Ns have few gaps between them: then a range is read faster."""
    first, last = RECORD_KEY.unpack(keys[0])[0], RECORD_KEY.unpack(keys[-1])[0]
    return 0 < last - first < 2 * len(keys) and all(a < b for a, b in pairwise(keys))


def _values_to_copy(key: bytes, values: Sequence[bytes]) -> Iterator[bytes]:
    """Give the rows of some values of a key, which are of one length, as a binary COPY takes them."""
    head = _COLUMNS.pack(2, len(key)) + key + _SIZE.pack(len(values[0]))
    for i in range(0, len(values), _ROWS):
        yield head + head.join(values[i : i + _ROWS])


def _items_to_copy(items: Sequence[Item]) -> Iterator[bytes]:
    """Give the rows of some items, whose keys are of one length, as a binary COPY takes them."""
    size = _SIZE.pack
    for i in range(0, len(items), _ROWS):
        some = items[i : i + _ROWS]
        head = _COLUMNS.pack(2, len(some[0][0]))
        yield b"".join(chain.from_iterable((head, key, size(len(v)), v) for key, v in some))


def _interruption(error: Exception, handled: BaseException | None) -> BaseException | None:
    """Return what a signal's handler has raised while a pipeline was ended, of which *error* is what psycopg made.

    What was being *handled* when the pipeline began has nothing to do with it.
    """
    context = error.__context__
    while context is not None and context is not handled:
        if not isinstance(context, psycopg.Error):
            return context
        context = context.__context__
    return None


class PostgresqlWriter(PostgresqlReader, Writer):
    """A transaction that changes the tables; `send` sends what it has not sent yet."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        super().__init__(connection, statements)
        self._waiting: list[tuple[bytes, tuple[Any, ...]]] = []
        self._copied: Counter[tuple[str, bytes]] = Counter()  # table and key -> values not yet counted
        self._touched: set[str] = set()  # tables that these two change

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        if table in self._touched:
            self.send()
        return super()._rows(table, what, *parameters)

    def _later(self, table: str, what: str, *parameters: Any) -> None:
        self._touched.add(table)
        self._waiting.append((self._statements(what, table), parameters))

    def send(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        if self._copied:
            counts = [(self._statements("added", table), (key, n)) for (table, key), n in self._copied.items()]
            waiting[:0] = counts
            self._copied.clear()
        self._touched.clear()
        if len(waiting) == 1:
            self.connection.execute(*waiting[0])
        elif waiting:
            self._send_at_once(waiting)

    def _send_at_once(self, waiting: list[tuple[bytes, tuple[Any, ...]]]) -> None:
        failure: BaseException | None = None
        handled = sys.exception()
        try:
            with self.connection.pipeline():
                try:
                    for statement, parameters in waiting:
                        # A pipeline that fails skips what is after that: psycopg would take a statement
                        # for prepared that never was.
                        self.connection.execute(statement, parameters, prepare=False)
                except BaseException as error:  # noqa: BLE001 (raised below: of two errors psycopg tells one on stderr)
                    failure = error
        except Exception as error:  # noqa: BLE001 (also what psycopg stumbles over when it is interrupted)
            raise failure or _interruption(error, handled) or error from None
        if failure is not None:
            raise failure

    def fill(self, on_create: Callable[[Writer], None] | None) -> None:
        """Fill new tables, unless another process has; with their version they are there."""
        if not self._rows("", "layout"):
            if self.scan(META, b"", 1):
                raise CorruptStore(
                    f"the table {self._statements.place} is empty, but the store's other tables are not: restore it,"
                    f" or do INSERT INTO {self._statements.place} VALUES ({LAYOUT})"
                )
            if on_create is not None:
                on_create(self)
            self._later("", "made")

    def keep_others_out(self) -> None:
        """Wait until nobody else writes, and let nobody write before this transaction ends; to be called first."""
        self.connection.execute(self._statements("keep_out"), ())

    def recount(self, table: str, key: bytes, there: int) -> None:
        """Set right how many values of a key are counted."""
        self._later(table, "recount", key, there)

    def commit(self, token: bytes, former: bytes | None) -> None:
        """Send what waits, and the commit, which leaves *token* and takes a former one away."""
        self._waiting.append((self._statements("commit"), (token,)))
        if former is not None:
            self._waiting.append((self._statements("forget"), (former,)))
        self._waiting.append((b"COMMIT", ()))
        self.send()

    def _forget(self, table: str, keys: Iterable[bytes]) -> None:
        """Forget what `expect` has read of some keys, which change."""
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
        self._copy(table, _items_to_copy(items), len(items))

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
        self._copy(table, _values_to_copy(key, values), len(values))
        self._touched.add(table)
        self._copied[table, key] += len(values)

    def _copy(self, table: str, rows: Iterable[bytes], number: int) -> None:
        """Send a *number* of new rows, put together as COPY takes them."""
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
