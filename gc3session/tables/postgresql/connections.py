"""Connections to a PostgreSQL server: each is used by one thread at a time, and by no forked child."""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ...errors import AccessDenied, Error, InvalidArgument, StoreUnreachable
from ...system.forks import ENVIRONMENTS, at_fork
from ...system.signals import signal_safe
from .address import Address
from .errors import Connection, is_lost, translated

_AT_FIRST: Final = 5.0  # seconds to wait, at most, for a server that has not been reached before
_IDLE: Final = 4  # connections that are kept open for the next transactions

_ABOUT: Final = b"SELECT coalesce(current_setting('synchronous_commit', true) = 'off', false), pg_backend_pid()"
# libpq hands on no code of a refused connection.  In another language it is taken for a missing right.
_TOO_MANY: Final = re.compile("too many|connection slots|no more connections")
_PERSONAL: Final = ("user", "password", "dbname", "options")


def tells_states(connection: Connection) -> bool:
    """Return whether the server's `pg_current_snapshot()` is another one after each commit.

    CockroachDB has no such function; YugabyteDB has it, but it knows of one node's transactions.
    """
    status = connection.pgconn.parameter_status
    return status(b"crdb_version") is None and b"-YB-" not in (status(b"server_version") or b"")


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


class _Refused(Exception):
    """A connection could not be made.

    Attributes:
        error: what to tell the user.
        passes: whether another attempt may succeed soon, though nobody changes anything.
    """

    def __init__(self, error: Error, passes: bool) -> None:
        super().__init__(error)
        self.error = error
        self.passes = passes


def _said_of_each(error: psycopg.Error) -> str:
    """Return why a connection failed on one line; if there were several attempts, why each did."""
    lines = [line for line in str(error).splitlines() if line and not line[0].isspace()]  # the others are hints
    lines = [line.removeprefix("- ") for line in lines if line.startswith("- ")] or lines
    # With and without TLS the same may be said.
    return "; ".join(dict.fromkeys(line.removeprefix("connection failed: ") for line in lines))


def _without_tls(options: dict[str, Any]) -> dict[str, Any]:
    """Return options to ask the server whether it is up, without TLS and without telling it who asks."""
    kept = {key: value for key, value in options.items() if not key.startswith("ssl") and key not in _PERSONAL}
    return {**kept, "sslmode": "disable", "user": "gc3session", "dbname": "gc3session"}


class Connections:
    """The connections of one store in this process.

    Args:
        address: of the store.
        patience: seconds to wait for a server that was there before.

    Attributes:
        lazy: those whose commits return, as the site has it, before they are on the server's disk.
    """

    def __init__(self, address: Address, patience: float) -> None:
        self.lazy: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._conninfo = make_conninfo("", **address.options)
        self._plain = make_conninfo("", **_without_tls(address.options))
        self._url = address.url
        self.patience = patience
        self._known = False  # whether the server has been reached before
        self._ended = False
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()  # one that a signal has lost is closed
        self._lock = threading.Lock()
        _all.add(self)

    def take(self) -> Connection:
        """Return a connection for the caller alone; it may turn out to be lost.

        Raise StoreUnreachable if the server can't be reached, AccessDenied if it refuses.
        """
        idle = self.take_idle()
        if idle is not None:
            return idle
        # At first only for a server that is there, but has no connection left, or is about to start.
        patience = Patience(self.patience if self._known else min(self.patience, _AT_FIRST))
        while True:
            try:
                connection = self._connect()
                break
            except _Refused as refused:
                failure = refused
            if not (self._known or failure.passes) or not patience.wait():
                raise failure.error
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
                if last or isinstance(failure.error, StoreUnreachable):
                    raise failure from None  # libpq's exception holds the password
                continue  # it may have been starting when it refused
            self._open.add(connection)
            try:
                [(lazy, backend)] = connection.execute(_ABOUT).fetchall()
            except psycopg.Error as error:
                failed = translated(error, connection, self._url, reading=True)
                self.drop(connection)
                raise _Refused(failed, is_lost(connection)) from None
            if lazy:
                self.lazy.add(connection)
            if backend != connection.info.backend_pid:
                # A pooler is between, which may have each transaction done by another process of the
                # server: that would not know what was prepared before.
                connection.prepare_threshold = None
            return connection
        raise AssertionError

    def _refused(self, error: psycopg.Error) -> _Refused:
        """Return our exception for a failed connection; libpq has no code for why, but can ask."""
        told = f"{self._url}: {_said_of_each(error)}"
        gone = StoreUnreachable(f"{told}; check host and port, and whether the server is up")
        if isinstance(error, psycopg.errors.ConnectionTimeout):
            return _Refused(gone, passes=False)
        answer = pq.PGconn.ping(self._conninfo.encode())
        if answer == pq.Ping.NO_ATTEMPT:
            raise InvalidArgument(f"{told}; correct the URL of the store") from None
        if answer == pq.Ping.REJECT:
            return _Refused(
                StoreUnreachable(f"{told}; the server is starting or going down: try again in a moment"),
                passes=True,
            )
        if answer == pq.Ping.NO_RESPONSE:
            if pq.PGconn.ping(self._plain.encode()) == pq.Ping.NO_RESPONSE:
                return _Refused(gone, passes=False)
            return _Refused(
                AccessDenied(
                    f"{told}; the server is up, but there is no TLS connection as the URL asks for it: check"
                    " sslmode, sslrootcert, sslcert and sslkey, and the name of the host in the server's certificate"
                ),
                passes=False,
            )
        if _TOO_MANY.search(told):
            return _Refused(
                StoreUnreachable(
                    f"{told}; close programs that use it, or have max_connections, or the limit of the user or"
                    " database, raised"
                ),
                passes=True,
            )
        return _Refused(
            AccessDenied(
                f"{told}; the server is up, but refuses the connection: check user, database, and the password in"
                " ~/.pgpass, PGPASSWORD or the service file, or the certificate"
            ),
            passes=False,
        )

    def give(self, connection: Connection) -> None:
        """Take back a connection; one that is lost, or in a transaction, is closed."""
        idle = pq.TransactionStatus.IDLE
        if not is_lost(connection) and connection.pgconn.transaction_status == idle:
            with self._lock:
                if connection in self._open and len(self._idle) < _IDLE and not self._ended:
                    self._idle.append(connection)
                    return
        self.drop(connection)

    def has(self, connection: Connection) -> bool:
        """Return whether a connection is this process's, and not that of the one that it was forked from."""
        return connection in self._open

    def drop(self, connection: Connection) -> None:
        """Close a connection; a transaction that is open in it is rolled back."""
        if not self.has(connection):  # its descriptor is another's now
            return
        with self._lock:
            if connection in self._idle:
                self._idle.remove(connection)
        connection.close()
        self._open.discard(connection)

    @signal_safe
    def one(self) -> Iterator[Connection]:
        """`with` this, a connection is the caller's."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give(connection)

    def end(self) -> None:
        """Close all: those that are in use as soon as they are given back."""
        self._ended = True
        self.close()

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
        self._open, self._idle = weakref.WeakSet(), []


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_abandoned: list[object] = []


def _after_in_child() -> None:
    for connections in list(_all):
        connections.forked()


at_fork(ENVIRONMENTS, _after_in_child)
