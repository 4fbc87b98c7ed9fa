"""Tables of bytes on PostgreSQL, or a database that speaks its protocol.

Several write transactions run at once.  Each locks the rows of the sessions that it changes, then the
records that it overwrites, and sees what was committed before that (READ COMMITTED).  One that turns
out to need the rows of more sessions begins again with all of them, so that no two wait for each
other.  One whose connection is lost before the commit, or that a server which knows only
serializable transactions can't put in an order with others, runs again from the start.

Each transaction inserts a row with a random *token*. If the connection is lost while the server
commits, a row with the same token is inserted on another connection. That insert waits for the
transaction to end. It fails if the transaction was committed; if it succeeds, the transaction can
never be committed any more.

A commit doesn't wait for the disk itself but has another one do so, which changes the row of that
token and comes right behind it: the server's log is written in order.  So what is locked is free
before that, and several writers of one session are flushed together.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors as server
from psycopg import pq

from ...errors import ClosedError, CommitUnknown, Error, ReadOnlyError, UnknownFormat, WriteError
from ..interface import Contents, Figure, NoTables, Reader, Tables, Writer
from .address import address_of
from .arrays import ByteaArray
from .connections import Connections, Patience
from .errors import AGAIN, LOCKED, OUT_OF_MEMORY, Connection, is_lost, speaks_of_loss, translated
from .figures import figures
from .statements import LAYOUT, Statements
from .transaction import Begun, LocksMissing, PostgresqlReader, PostgresqlWriter

T = TypeVar("T")

# Sees one state, and never has to run again.
_BEGIN_READING: Final = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MAY_BE_IDLE: Final = b"SET LOCAL idle_in_transaction_session_timeout = 0"  # as it keeps nobody from anything
_BEGIN_WRITING: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED"  # not READ WRITE: the site may forbid that
_MOST_TOKENS: Final = 64  # of transactions that went through, before these are deleted
_UNKNOWN: Final = "40003"  # SQLSTATE: the server itself doesn't know whether it has committed
_CREATED_BY_ANOTHER: Final = (
    server.UniqueViolation,
    server.DuplicateTable,
    server.DuplicateSchema,
    server.DuplicateObject,
)


class PostgresqlTables(Tables):
    """The tables in a schema of a PostgreSQL database.

    Args:
        url: `postgresql://user@host:port/database?schema=jobs`, and options of libpq.
        read_only: never write.
        patience: seconds to go on trying if a server that was reached before is gone, or if
            other transactions come in between.
    """

    concurrent_writers = True

    def __init__(self, url: str, *, read_only: bool = False, patience: float) -> None:
        address = address_of(url).within(patience)
        self.url = address.url
        self.read_only = read_only
        self.patience = patience
        self._address = address
        self._statements = Statements(address.schema)
        self._connections = Connections(address, patience)
        self._exist = False
        self._closed = False
        self._ahead: dict[str, Sequence[bytes]] = {}
        self._tokens: list[bytes] = []  # of transactions that are known to have been committed

    # -- creating

    def exists(self) -> bool:
        if self._exist:
            return True
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed")
        is_there = self._ask(self._statements("is_there"))
        version = [row[0] for row in self._ask(self._statements("layout"))] if is_there else []
        if version not in ([], [LAYOUT]):
            raise UnknownFormat(
                f"the store {self.url} has tables of the version {', '.join(map(str, version))}; this"
                f" version of gc3session knows version {LAYOUT} only: upgrade gc3session, or name another schema"
            )
        self._exist = bool(version)
        return self._exist

    def _create(self) -> None:
        """Create the tables, unless another process is faster."""
        patience = Patience(self.patience)
        while not self.exists():
            with self._connections.one() as connection:
                try:
                    # To create a schema takes a right of its own, which isn't needed if the owner has created it.
                    if not connection.execute(self._statements("schema_is_there"), ()).fetchall():
                        connection.execute(self._statements.create_schema, ())
                    for statement in (b"BEGIN", *self._statements.create_tables, b"COMMIT"):
                        connection.execute(statement, ())
                except psycopg.Error as error:
                    again = (
                        isinstance(error, _CREATED_BY_ANOTHER) or error.sqlstate in AGAIN or is_lost(connection)
                    )
                    if not again or not patience.wait():
                        raise self._translated(error, connection) from error
                    continue
            self._transact(lambda writer: writer.fill(self.on_create), lambda result: None)

    # -- reading

    def _begin(self, *, writing: bool = False) -> Begun:
        """Return a connection, and the statements that begin a transaction on it."""
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed")
        connection = self._connections.take()
        settings = self._connections.local_settings(connection)
        return connection, [_BEGIN_WRITING, *settings] if writing else [_BEGIN_READING, *settings, _MAY_BE_IDLE]

    def _end(self, reader: PostgresqlReader) -> None:
        """End a transaction, and give its connection back to the others."""
        connection = reader.connection
        if self._connections.has(connection):
            try:
                with contextlib.suppress(psycopg.Error):
                    reader.leave()
                if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                    with contextlib.suppress(psycopg.Error):
                        connection.execute(b"ROLLBACK")
            finally:
                if reader.spoiled:
                    self._connections.drop(connection)
                else:
                    self._connections.give(connection)  # which closes it unless the transaction has ended

    def _renewed(self, connection: Connection) -> Begun:
        """Begin again on a new connection, as the present one was lost before anything was read."""
        self._connections.drop(connection)
        return self._begin()

    def _ask(self, statement: bytes, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that one statement reads; if the connection is lost, it runs again on a new one."""
        while True:
            connection = self._connections.take()
            settings = self._connections.local_settings(connection)
            begun = connection, [b"BEGIN", *settings] if settings else []
            reader = PostgresqlReader(begun, self._statements)
            try:
                return reader._answer(statement, parameters)
            except psycopg.Error as error:
                if not is_lost(connection):
                    raise self._translated(error, connection, reading=True) from error
            finally:
                self._end(reader)

    def _translated(self, error: psycopg.Error, connection: Connection, *, reading: bool = False) -> Error:
        """Return our exception for one of the server's; if a lock of others was waited for, it says who they are."""
        holders = ""
        if error.sqlstate == LOCKED:
            with contextlib.suppress(Error):
                holders = "; ".join(row[0] for row in self._ask(self._statements("holders"), (self.patience,)))
        return translated(error, connection, self.url, reading=reading, holders=holders)

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        if not self.exists():
            yield NoTables()
            return
        reader = PostgresqlReader(self._begin(), self._statements, self._renewed)
        try:
            yield reader
        except BaseException as error:
            self._end(reader)
            if isinstance(error, psycopg.Error):
                raise self._translated(error, reader.connection, reading=True) from error
            raise
        self._end(reader)

    def contents(
        self,
        problem: Callable[[str], None],
        held: Callable[[], None] = lambda: None,
        *,
        writer: Writer | None = None,
    ) -> contextlib.AbstractContextManager[Contents]:
        if writer is not None:
            assert isinstance(writer, PostgresqlWriter)
            writer.keep_others_out()
        return super().contents(problem, held)

    def get(self, table: str, key: bytes) -> bytes | None:
        if not self.exists():
            return None
        rows = self._ask(self._statements("get", table), (key,))
        return rows[0][0] if rows else None

    # -- writing

    def write(
        self,
        unit: Callable[[Writer], T],
        committed: Callable[[T], None] = lambda result: None,
        aborted: Callable[[], object] = lambda: None,
    ) -> T:
        self.pending_commit = None
        if self.read_only:
            raise ReadOnlyError(f"the store {self.url} was opened read-only")
        if not self._exist:
            self._create()
        return self._transact(unit, committed)

    def _transact(self, unit: Callable[[PostgresqlWriter], T], committed: Callable[[T], None]) -> T:
        """Run *unit* in one transaction after another until one is committed; see `write`."""
        patience: Patience | None = None  # from the first failure on
        sessions: set[bytes] = set()
        while True:
            former: list[bytes] = []
            commit_sent = False
            connection, begin = begun = self._begin(writing=True)
            writer = PostgresqlWriter(begun, self._statements, sessions, self._ahead)
            try:
                token = secrets.token_bytes(16)
                if len(self._tokens) >= _MOST_TOKENS:
                    former, self._tokens = self._tokens, []
                result = unit(writer)
                commit_sent = True
                # Behind a pooler the site may not flush.
                writer.commit(token, former, flushed_later=len(begin) == 1)
                committed(result)
            except BaseException as error:
                if not self._connections.has(connection):  # this is a child, and it is the parent's transaction
                    raise
                failure = state = None
                if isinstance(error, psycopg.Error):
                    failure, state = self._translated(error, connection), error.sqlstate
                lost = speaks_of_loss(error, connection)
                self._tokens += former
                if isinstance(error, LocksMissing):
                    self._end(writer)
                    continue
                only_flush_failed = connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
                if commit_sent and (lost or only_flush_failed or state in (None, _UNKNOWN)):
                    self._connections.drop(connection)
                    if self._went_through(token, error):
                        self._tokens.append(token)
                        committed(result)
                        if failure is not None:
                            return result
                        raise
                elif lost:
                    self._connections.drop(connection)
                else:
                    self._end(writer)
                if failure is None:
                    raise
                if not lost and state not in (*AGAIN, _UNKNOWN):
                    raise failure from error
                patience = patience or Patience(self.patience)
                if patience.wait():
                    continue
                if lost or state == OUT_OF_MEMORY:
                    raise failure from error
                raise WriteError(
                    f"{self.url}: other transactions came in between for {self.patience:g} s; nothing was written:"
                    " try again, or let fewer programs change the same tasks at once"
                ) from error
            self._tokens.append(token)
            self._connections.give(connection)
            return result

    def _went_through(self, token: bytes, error: BaseException) -> bool:
        """Return whether the transaction with *token*, whose connection was lost, was committed."""
        try:
            return self._resolve(token)
        except BaseException as failure:
            self.pending_commit = CommitUnknown(
                f"{self.url}: the server was lost while it committed ({' '.join(str(error).split())}), and can't be"
                " asked what became of it: the next call finds out whether it was done, or has done nothing, so call"
                " again once the server is up",
                lambda: self._resolve(token),
            )
            if isinstance(failure, Error):
                raise self.pending_commit from failure
            raise

    def _resolve(self, token: bytes) -> bool:
        """Return whether the transaction with *token* was committed; if it was not, prevent that for ever."""
        patience = Patience(self.patience)
        while True:
            with self._connections.one() as connection:
                try:
                    try:
                        connection.execute(self._statements("prevent"), (token,))
                    except server.UniqueViolation:
                        # No row if an earlier call has prevented it.
                        return bool(connection.execute(self._statements("flush"), (token,)).fetchall())
                    return False
                except psycopg.Error as error:
                    again = speaks_of_loss(error, connection) or error.sqlstate in AGAIN
                    if not again or not patience.wait():
                        raise self._translated(error, connection) from error

    # -- ending

    def suspend(self) -> None:
        self._connections.close_idle()

    def figures(self) -> list[Figure]:
        return figures(self._ask, self._address, self._statements) if self.exists() else []

    def close(self) -> None:
        if not self._closed:
            self._forget_tokens()
        self._closed = True
        self._connections.close()

    def _forget_tokens(self) -> None:
        """Delete the tokens of this program's transactions, and old ones of programs that were killed."""
        connection = self._connections.take_idle() if self._tokens else None
        if connection is None:
            return
        try:
            connection.execute(self._statements("forget_old"), (ByteaArray(self._tokens),), binary=True)
            self._tokens = []
        except psycopg.Error:  # they do no harm: another program deletes them when they are old
            self._connections.drop(connection)
        else:
            self._connections.give(connection)

    def discard(self) -> None:
        self.close()
