"""A transaction on PostgreSQL that has begun with COPY, and goes on while the program encodes what is to follow.

The server takes the rows of one table at a time.  So those of the other tables wait here, and the
tables take turns: by the time that one's turn ends, the server has long taken its rows, and nobody
waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from .postgresql_errors import Connection
from .postgresql_tables import COPY_END, COPY_HEAD, PostgresqlWriter, Statements
from .tables import Ahead, Writer

if TYPE_CHECKING:
    from .postgresql_store import PostgresqlTables

T = TypeVar("T")

TURN = 10_000
"""Rows of a table after which it has its turn: for each COPY the server needs a millisecond."""


class AheadWriter(PostgresqlWriter):
    """A transaction whose new rows go to the server by turns; all of them before it reads or commits."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        super().__init__(connection, statements)
        self._rows_of: dict[str, list[bytes]] = {}  # table -> rows that wait
        self._number_of: Counter[str] = Counter()  # how many these are
        self._copying: AbstractContextManager[Any] | None = None
        self._copy_in: Any = None
        self._table: str | None = None  # into which that copies

    def _copy(self, table: str, rows: Iterable[bytes], number: int) -> None:
        if table == self._table:
            for some in rows:
                self._copy_in.write(some)
        else:
            self._rows_of.setdefault(table, []).extend(rows)
            self._number_of[table] += number

    def take_turns(self) -> None:
        """Give another table its turn if enough of its rows wait."""
        if self._number_of and (self._table is None or max(self._number_of.values()) >= TURN):
            self._turn()

    def _turn(self) -> None:
        """Send the rows of the table that has most waiting; they need not have arrived."""
        [(table, _)] = self._number_of.most_common(1)
        rows = self._rows_of.pop(table)
        del self._number_of[table]
        self._end_copy()
        self._copying = self.connection.cursor().copy(self._statements("copy", table))
        self._copy_in = self._copying.__enter__()
        self._table = table
        self._copy_in.write(COPY_HEAD)
        for some in rows:
            self._copy_in.write(some)

    def _end_copy(self) -> None:
        copying, self._copying, self._table = self._copying, None, None
        if copying is not None:
            self._copy_in.write(COPY_END)
            copying.__exit__(None, None, None)

    def _settle(self) -> None:
        """Send all rows that wait."""
        while self._rows_of:
            self._turn()
        self._end_copy()

    def _rows(self, table: str, what: str, *parameters: Any) -> list[Any]:
        self._settle()
        return super()._rows(table, what, *parameters)

    def send(self) -> None:
        self._settle()
        super().send()

    def give_up(self) -> None:
        """End the COPY, if one goes on, so that the connection can be used again."""
        copying, self._copying, self._table = self._copying, None, None
        if copying is not None:
            error = psycopg.Error("given up")
            with suppress(psycopg.Error):
                copying.__exit__(type(error), error, None)


class PostgresqlAhead(Ahead):
    """A transaction of *owner* that has begun."""

    def __init__(self, owner: PostgresqlTables, writer: AheadWriter) -> None:
        self._owner = owner
        self._writer: AheadWriter | None = writer

    def send(self, part: Callable[[Writer], bool]) -> bool:
        if self._writer is None:
            return False
        try:
            done = part(self._writer)
            if done:
                self._writer.take_turns()
        except psycopg.Error:  # the write will meet it again, and tell
            done = False
        except BaseException:
            self.drop()
            raise
        if not done:
            self.drop()
        return done

    def go_on(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.connection.pgconn.flush()
        except psycopg.Error:
            self.drop()

    def write(
        self,
        rest: Callable[[Writer], T],
        unit: Callable[[Writer], T],
        committed: Callable[[T], None],
        aborted: Callable[[], object],
    ) -> T:
        writer, self._writer = self._writer, None
        if writer is None:
            return self._owner.write(unit, committed, aborted)
        try:
            return self._owner._transact(unit, committed, begun=(writer, rest))
        finally:
            writer.give_up()

    def drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.give_up()
            self._owner._give_back(writer.connection)

    def forked(self) -> None:
        self._owner._connections.keep(self)
