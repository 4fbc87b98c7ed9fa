"""Records that are sent to PostgreSQL before the transaction that writes them is complete.

While a program encodes very many objects the server takes those that are ready: the transaction is
begun, and its COPY goes on.  Nobody else knows the keys, so nobody waits for it.  If anything
fails the transaction is given up, and the write is made as if nothing had been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from .postgresql_errors import Connection
from .postgresql_tables import COPY_END, COPY_HEAD, rows_to_copy
from .tables import Ahead, Item, Writer

if TYPE_CHECKING:
    from .postgresql_store import PostgresqlTables

T = TypeVar("T")


class PostgresqlAhead(Ahead):
    """A transaction that has begun with a COPY into one table, which goes on."""

    def __init__(self, owner: PostgresqlTables, table: str, connection: Connection, statement: bytes) -> None:
        self.table = table
        self.keys: set[bytes] = set()
        self._owner = owner
        self._connection: Connection | None = connection
        self._copying: AbstractContextManager[Any] = connection.cursor().copy(statement)
        try:
            self._copy = self._copying.__enter__()
            self._copy.write(COPY_HEAD)
        except psycopg.Error:
            self._give_up()
        except BaseException:
            self._give_up()
            raise

    def send(self, items: Sequence[Item]) -> None:
        if self._connection is None:
            return
        try:
            for rows in rows_to_copy(items):
                self._copy.write(rows)
        except psycopg.Error:  # the write will meet it again, and tell
            self._give_up()
        except BaseException:
            self._give_up()
            raise
        self.keys.update(key for key, _ in items)

    def _ended(self) -> Connection | None:
        """End the COPY; return its connection, whose transaction goes on, or None if that has failed."""
        if self._connection is None:
            return None
        try:
            self._copy.write(COPY_END)
            self._copying.__exit__(None, None, None)
        except psycopg.Error:
            self._give_up()
        except BaseException:
            self._give_up()
            raise
        connection, self._connection = self._connection, None
        return connection

    def write(
        self,
        unit: Callable[[Writer], T],
        committed: Callable[[T], None],
        aborted: Callable[[], object],
    ) -> T:
        connection = self._ended()
        if connection is None:
            return self._owner.write(unit, committed, aborted)
        return self._owner._transact(unit, committed, begun=(connection, {self.table: self.keys}))

    def drop(self) -> None:
        self._give_up()

    def forked(self) -> None:
        self._owner._connections.keep(self)

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        error = psycopg.Error("given up")
        with suppress(psycopg.Error):
            self._copying.__exit__(type(error), error, None)
        self._owner._give_back(connection)
