"""Connections to a PostgreSQL server: each is used by one thread at a time, and by no forked child."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from .errors import (
    AccessDenied,
    CorruptStore,
    Error,
    InvalidArgument,
    ReadOnlyError,
    StoreFull,
    StoreUnreachable,
    WriteError,
)
from .forks import ENVIRONMENTS, at_fork
from .postgresql_address import Address

Connection = psycopg.Connection[tuple[Any, ...]]

_IDLE: Final = 4  # connections that are kept open for the next transactions

# Commits wait for the server's disk, whatever the site's default.
_DURABLE: Final = (
    b"SELECT set_config('synchronous_commit', 'on', false)"
    b" WHERE current_setting('synchronous_commit', true) = 'off'"
)
_FULL: Final = ("53100", "53200", "53400")
_DENIED: Final = ("42501", "28000", "28P01")
_DAMAGED: Final = ("XX001", "XX002")
_READ_ONLY: Final = "25006"
_CANCELED: Final = "57014"
AGAIN: Final = ("40001", "40P01")
"""Of a transaction that could not be put in an order with others: it runs again."""


def is_lost(connection: Connection) -> bool:
    """Return whether the server, or the way to it, is gone."""
    return bool(connection.closed or connection.pgconn.status == pq.ConnStatus.BAD)


def tells_states(connection: Connection) -> bool:
    """Return whether the server's `pg_current_snapshot()` is another one after each commit.

    CockroachDB has no such function; YugabyteDB has it, but it knows of one node's transactions.
    """
    status = connection.pgconn.parameter_status
    return status(b"crdb_version") is None and b"-YB-" not in (status(b"server_version") or b"")


def translated(error: psycopg.Error, connection: Connection | None, url: str) -> Error:
    """Return our exception for one of the server's."""
    told = f"{url}: PostgreSQL says: {str(error).strip()}"
    state = error.sqlstate or ""
    if state in _FULL:
        return StoreFull(
            f"{told}; nothing of this transaction was written; make room on the server and flush again"
        )
    if state in _DENIED:
        return AccessDenied(f"{told}; ask the owner of the database for the right, or use another user")
    if state == _READ_ONLY:
        return ReadOnlyError(
            f"{told}; open the session with read_only=True, or name the primary server in the URL"
        )
    if state in _DAMAGED:
        return CorruptStore(f"{told}; restore the database from a backup")
    if state == _CANCELED:
        return WriteError(f"{told}; raise the server's statement_timeout, or write smaller batches (batch_bytes)")
    if connection is None or is_lost(connection):
        return StoreUnreachable(
            f"{told}; nothing of this transaction was written; try again once the server is up"
        )
    return WriteError(f"{told}; nothing of this transaction was written")


class Patience:
    """How long to go on trying, and the pauses between the attempts: longer and longer, at random."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = 0.002

    def wait(self) -> bool:
        """Wait a little.  Return False, at once, if the time is up."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, self._pause * random.uniform(0.5, 1.5)))
        self._pause = min(2 * self._pause, 1.0)
        return True


class Connections:
    """The connections of one store in this process.

    Args:
        address: of the store.
        patience: seconds to wait for a server that was there before.
    """

    def __init__(self, address: Address, patience: float) -> None:
        self._conninfo = make_conninfo("", **address.options)
        self._url = address.url
        self.patience = patience
        self._known = False  # whether the server has been reached before
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        _all.add(self)

    def take(self) -> Connection:
        """Return a connection for the caller alone; it may turn out to be lost.

        Raise StoreUnreachable if the server can't be reached, AccessDenied if it refuses.
        """
        idle = self.take_idle()
        if idle is not None:
            return idle
        patience = Patience(self.patience if self._known else 0)
        while True:
            try:
                connection = self._connect()
                break
            except (StoreUnreachable, AccessDenied):  # a server that is starting refuses, too
                if not patience.wait():
                    raise
        self._known = True
        return connection

    def take_idle(self) -> Connection | None:
        """Return a connection that is open, for the caller alone, or None if there is none."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> Connection:
        for last in (False, True):
            try:
                connection = psycopg.connect(self._conninfo, autocommit=True)
            except psycopg.Error as error:
                failure = self._refused(error)
                if last or isinstance(failure, StoreUnreachable):
                    raise failure from None  # libpq's exception holds the password
                continue  # it may have been starting when it refused
            self._open.add(connection)
            try:
                connection.execute(_DURABLE)
            except psycopg.Error as error:
                failure = translated(error, connection, self._url)
                self.drop(connection)
                raise failure from error
            return connection
        raise AssertionError

    def _refused(self, error: psycopg.Error) -> Error:
        """Return our exception for a failed connection; libpq has no code for why, but can ask."""
        told = f"{self._url}: {str(error).strip().splitlines()[0]}"
        answer = pq.PGconn.ping(self._conninfo.encode())
        if answer == pq.Ping.OK:
            return AccessDenied(
                f"{told}; the server is up, but refuses the connection: check user, database, and the password"
                " in ~/.pgpass, PGPASSWORD or the service file"
            )
        if answer == pq.Ping.NO_ATTEMPT:
            return InvalidArgument(f"{told}; correct the URL of the store")
        return StoreUnreachable(f"{told}; check host and port, and whether the server is up")

    def give(self, connection: Connection) -> None:
        """Take back a connection; one that is lost, or in a transaction, is closed."""
        idle = pq.TransactionStatus.IDLE
        if not is_lost(connection) and connection.pgconn.transaction_status == idle:
            with self._lock:
                if connection in self._open and len(self._idle) < _IDLE:
                    self._idle.append(connection)
                    return
        self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection; a transaction that is open in it is rolled back."""
        self._open.discard(connection)
        connection.close()

    @contextlib.contextmanager
    def one(self) -> Iterator[Connection]:
        """`with` this, a connection is the caller's."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give(connection)

    def close(self) -> None:
        """Close those that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self.drop(connection)

    @staticmethod
    def keep(forked: object) -> None:
        """Never finalise what uses a connection that this process, a forked child, has abandoned."""
        _abandoned.append(forked)

    def forked(self) -> None:
        """Forget the parent's connections: to end them would be told to the server."""
        self._lock = threading.Lock()
        for connection in self._open:
            with contextlib.suppress(psycopg.Error, OSError):
                os.close(connection.pgconn.socket)
        _abandoned.extend(self._open)  # never to be finalised while the program runs
        self._open, self._idle = set(), []


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_abandoned: list[object] = []


def _after_in_child() -> None:
    for connections in list(_all):
        connections.forked()


at_fork(ENVIRONMENTS, _after_in_child)
