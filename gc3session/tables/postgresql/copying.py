"""A transaction on PostgreSQL that has begun with COPY, and goes on while the program encodes what is to follow.

The server takes the rows of one table at a time.  So rows wait here, and the tables take turns:
whenever the server is done with one turn, the table that has most waiting gets the next.  libpq
sends and receives without waiting for the server; only at the end has the program to wait.
"""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import pq

from ...system.signals import signal_safe
from ..interface import Ahead, Writer
from .errors import Connection
from .statements import Statements
from .transaction import COPIED_FROM, COPY_END, COPY_HEAD, PostgresqlWriter

if TYPE_CHECKING:
    from .tables import PostgresqlTables

T = TypeVar("T")

TURN = 5000
"""Rows of a table from which on it gets a turn: for each COPY the server needs a millisecond."""


class Turns:
    """The rows that are sent on *connection*, and those that wait for it."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self._pgconn = connection.pgconn
        self._statements = statements
        self._rows_of: dict[str, list[bytes]] = {}  # table -> rows that wait
        self._number_of: Counter[str] = Counter()  # how many these are
        self._asked: str | None = None  # the table for which the server has been asked to take rows
        self._sent = False  # whether it has been given some, and has not told yet what became of them

    @property
    def idle(self) -> bool:
        """Whether the connection can be used for anything else."""
        return self._asked is None and not self._sent

    def add(self, table: str, rows: Iterable[bytes], number: int) -> None:
        """Take a *number* of rows, put together as COPY takes them."""
        self._rows_of.setdefault(table, []).extend(rows)
        self._number_of[table] += number

    def go_on(self, least: int) -> None:
        """Do what can be done without waiting; begin a turn only with so many rows.

        Raise psycopg.Error if the server has not taken what it was sent.
        """
        pgconn = self._pgconn
        if not self.idle:
            pgconn.flush()
            pgconn.consume_input()
            while not self.idle and not pgconn.is_busy():
                self._hear()
        if self.idle and self._number_of:
            [(table, number)] = self._number_of.most_common(1)
            if number >= least:
                self._asked = table
                pgconn.send_query(self._statements("copy", table))
                pgconn.flush()

    def _hear(self) -> None:
        """Take the server's next answer, which has arrived."""
        pgconn = self._pgconn
        result = pgconn.get_result()
        if self._asked is not None and result is not None and result.status == pq.ExecStatus.COPY_IN:
            rows = self._rows_of.pop(self._asked)
            del self._number_of[self._asked]
            self._asked, self._sent = None, True
            for some in (COPY_HEAD, *rows, COPY_END):
                if pgconn.put_copy_data(some) != 1:
                    raise psycopg.OperationalError("libpq has no memory for the rows")
            pgconn.put_copy_end()
            pgconn.flush()
        elif result is None and self._sent:
            self._sent = False
        elif result is None or result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.OperationalError("the server has not taken the rows")

    def settle(self) -> None:
        """Send all rows that wait, and wait until the server has taken them."""
        self.go_on(1)
        poll = select.poll()
        while not self.idle:
            poll.register(self._pgconn.socket, select.POLLIN | (select.POLLOUT if self._pgconn.flush() else 0))
            poll.poll()
            self.go_on(1)


class AheadWriter(PostgresqlWriter):
    """A transaction whose new rows go to the server by turns, until `end`; all of them before it reads."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        super().__init__(connection, statements)
        self.turns = Turns(connection, statements)
        self.copied_from = 1
        self._ahead = True

    def end(self) -> None:
        """Write what is to come in its order, as any transaction does."""
        self.turns.settle()
        self.copied_from = COPIED_FROM
        self._ahead = False

    def _copy(self, table: str, rows: Iterable[bytes], number: int) -> None:
        if self._ahead:
            self.turns.add(table, rows, number)
        else:
            super()._copy(table, rows, number)

    def _rows(self, table: str, what: str, *parameters: object) -> list[object]:
        self.turns.settle()
        return super()._rows(table, what, *parameters)

    def send(self) -> None:
        self.turns.settle()
        super().send()


class PostgresqlAhead(Ahead):
    """A transaction of *owner* that has begun."""

    def __init__(self, owner: PostgresqlTables, writer: AheadWriter) -> None:
        self._owner = owner
        self._writer: AheadWriter | None = writer

    @property
    def has_ended(self) -> bool:
        """Whether it was written or given up."""
        return self._writer is None

    def send(self, part: Callable[[Writer], bool]) -> bool:
        writer = self._writer
        if writer is None:
            return False
        done = False
        with self._given_up_if_it_fails():
            done = part(writer)
        if not done:
            self.drop()
        return done

    def go_on(self) -> None:
        if self._writer is not None:
            with self._given_up_if_it_fails():
                self._writer.turns.go_on(TURN)

    @signal_safe
    def _given_up_if_it_fails(self) -> Iterator[None]:
        """`with` this, what fails is given up: the write will meet an error of the server again, and tell."""
        try:
            yield
        except psycopg.Error:
            self.drop()
        except BaseException:
            self.drop()
            raise

    def write(
        self,
        rest: Callable[[Writer], T],
        unit: Callable[[Writer], T],
        committed: Callable[[T], None],
        aborted: Callable[[], object],
    ) -> T:
        if self._writer is not None:
            with self._given_up_if_it_fails():
                self._writer.end()
        writer = self._writer
        if writer is None:
            return self._owner.write(unit, committed, aborted)
        try:
            result = self._owner._transact(unit, committed, begun=(writer, rest))
            self._owner.end_ahead()
            return result
        finally:
            self._writer = None

    def drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if writer.turns.idle:
            self._owner._give_back(writer.connection)
        else:
            self._owner._connections.drop(writer.connection)
        self._owner.end_ahead()

    def forked(self) -> None:
        self._owner._connections.keep(self)
