"""Connections to a PostgreSQL server: each is used by one thread at a time, and never by a forked child.

This is a pool of our own because psycopg_pool connects in threads of its own. There the reason
why the server refuses is only logged, and the caller waits until a timeout; a program that forks
would have threads that it never started; and a connection whose user was interrupted by Ctrl-C
would be counted as in use for ever.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ...errors import StoreUnreachable
from ...system.forks import ENVIRONMENTS, at_fork
from .address import Address
from .arrays import BigintArray, BigintArrayDumper, ByteaArray, ByteaArrayDumper
from .errors import Connection, Refused, is_lost, refused, translated

_FIRST_PATIENCE: Final = 5.0  # seconds to wait, at most, for a server that has not been reached before
_PREPARED_FROM: Final = 2  # times that a statement has been executed
_MOST_IDLE: Final = 4  # connections that are kept open for the next transactions

_ABOUT: Final = (
    b"SELECT pg_backend_pid(), current_setting('synchronous_commit', true), current_setting('lock_timeout', true),"
    b" current_setting('idle_in_transaction_session_timeout', true), current_setting('plan_cache_mode', true)"
)
_LEAST_IDLE: Final = 10.0  # seconds


class Patience:
    """How long to go on trying, with random pauses between the attempts that become longer and longer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = 0.002

    def wait(self) -> bool:
        """Wait a little and return True; return False at once if the time is up."""
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
        patience: seconds to wait for a server that has been reached before.
    """

    def __init__(self, address: Address, patience: float) -> None:
        self._settings: weakref.WeakKeyDictionary[Connection, list[bytes]] = weakref.WeakKeyDictionary()
        self._address = address
        self._conninfo = make_conninfo("", **address.options)
        self._patience = patience
        self._reached = False  # whether the server has been reached before
        self._closed = False
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()  # weak: one that Ctrl-C has lost is closed
        self._lock = threading.Lock()
        _all.add(self)

    def take(self) -> Connection:
        """Return a connection for the caller alone; it may turn out to be lost.

        Raise StoreUnreachable if the server can't be reached, AccessDenied if it refuses.
        """
        connection = self.take_idle()
        if connection is not None:
            return connection
        patience = Patience(self._patience if self._reached else min(self._patience, _FIRST_PATIENCE))
        while True:
            try:
                connection = self._connect()
                break
            except Refused as refusal:
                failure = refusal
            # Wait for a server that was there, or that is there but is starting or has no connection left.
            if not (self._reached or failure.temporary) or not patience.wait():
                raise failure.error
        self._reached = True
        return connection

    def take_idle(self) -> Connection | None:
        """Return a connection that is open already, for the caller alone, or None if there is none."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> Connection:
        """Return a new connection. Raise Refused if there is none to be had now."""
        for last in (False, True):
            try:
                connection = psycopg.connect(self._conninfo, autocommit=True)
                break
            except psycopg.Error as error:
                failure = refused(error, self._address)
                # The server may have been starting when it refused, and up when it was asked why.
                if last or isinstance(failure.error, StoreUnreachable):
                    raise failure from None  # libpq's exception holds the password
        connection.adapters.register_dumper(ByteaArray, ByteaArrayDumper)
        connection.adapters.register_dumper(BigintArray, BigintArrayDumper)
        self._open.add(connection)
        try:
            self._set_up(connection)
        except psycopg.Error as error:
            message = translated(error, connection, self._address.url, reading=True)
            self.drop(connection)
            raise Refused(message, temporary=is_lost(connection)) from None
        return connection

    def _set_up(self, connection: Connection) -> None:
        """Have the server flush each commit, wait no longer than told for locks, and hide no rows without a word."""
        [(backend, synchronous, lock_timeout, idle, plans)] = connection.execute(_ABOUT).fetchall()
        settings = [b"row_security = off"]
        if synchronous == "off":
            settings.append(b"synchronous_commit = on")
        # What the site or the URL says is left.  A transaction of ours that has stopped is ended while others wait for it.
        if lock_timeout == "0":
            settings.append(b"lock_timeout = %d" % max(1, 1000 * self._patience))
        if idle == "0":
            settings.append(
                b"idle_in_transaction_session_timeout = %d" % (1000 * max(self._patience / 2, _LEAST_IDLE))
            )
        if plans is not None:  # the plans for any keys are as good as those for the keys at hand
            settings.append(b"plan_cache_mode = force_generic_plan")
        if backend == connection.info.backend_pid:
            connection.execute(b"; ".join(b"SET " + setting for setting in settings))
            connection.prepare_threshold = _PREPARED_FROM
        else:
            # There is a pooler in between. It may have another process of the server do each
            # transaction, which doesn't know the statements that were prepared before, nor settings.
            connection.prepare_threshold = None
            self._settings[connection] = [b"SET LOCAL " + setting for setting in settings]

    def local_settings(self, connection: Connection) -> list[bytes]:
        """Return the statements by which each transaction on a connection is to begin."""
        return self._settings.get(connection, [])

    def give(self, connection: Connection) -> None:
        """Take back a connection; close it if it is lost, still in a transaction, or not needed."""
        idle = pq.TransactionStatus.IDLE
        if not is_lost(connection) and connection.pgconn.transaction_status == idle:
            with self._lock:
                if self.has(connection) and len(self._idle) < _MOST_IDLE and not self._closed:
                    self._idle.append(connection)
                    return
        self.drop(connection)

    def has(self, connection: Connection) -> bool:
        """Return whether a connection belongs to this process, and not to the one that it was forked from."""
        return connection in self._open

    def drop(self, connection: Connection) -> None:
        """Close a connection; a transaction that is open in it is rolled back."""
        if not self.has(connection):  # the parent's: its descriptor may be that of another file here
            return
        connection.close()
        self._open.discard(connection)

    @contextlib.contextmanager
    def one(self) -> Iterator[Connection]:
        """Lend a connection, for `with`."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give(connection)

    def close_idle(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self.drop(connection)

    def close(self) -> None:
        """Close all connections: those in use as soon as they are given back."""
        self._closed = True
        self.close_idle()

    def forked(self) -> None:
        """Forget the parent's connections, without a word to the server, which would end them."""
        self._lock = threading.Lock()
        for connection in self._open:
            with contextlib.suppress(psycopg.Error, OSError):
                os.close(connection.pgconn.socket)
        _abandoned.extend(self._open)
        self._open, self._idle = weakref.WeakSet(), []


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_abandoned: list[Connection] = []  # in a forked child, the parent's; libpq must never finalise them


def _after_in_child() -> None:
    for connections in list(_all):
        connections.forked()


at_fork(ENVIRONMENTS, _after_in_child)
