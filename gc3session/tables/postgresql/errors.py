"""What the errors of a PostgreSQL server mean: an exception of ours for each of them, with the remedy."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ...errors import (
    AccessDenied,
    CorruptStore,
    Error,
    InvalidArgument,
    OpenError,
    ReadOnlyError,
    StoreFull,
    StoreUnreachable,
    WriteError,
)
from ..interface import MISCOUNTED
from .address import Address

Connection = psycopg.Connection[tuple[Any, ...]]

OUT_OF_MEMORY: Final = "53200"

AGAIN: Final = ("40001", "40P01", OUT_OF_MEMORY)
"""SQLSTATEs of a transaction that the server couldn't put in an order with others: it runs again.

The server keeps that order in memory of a fixed size, which is full while one long transaction runs
beside very many others, and free again once that one has ended.
"""

_FULL: Final = ("53100", OUT_OF_MEMORY, "53400")
_DENIED: Final = ("42501", "28000", "28P01")
_DAMAGED: Final = ("XX001", "XX002")
LOCKED: Final = "55P03"
"""SQLSTATE: a lock of others was waited for, until the time was up."""
_GONE: Final = ("42P01", "3F000")  # a table, the schema
_READ_ONLY: Final = "25006"
_MISCOUNTED: Final = "23514"  # a number of the table `counts` below 0
# "Feature not supported": the only one of ours is a serializable transaction on a standby.
_STANDBY: Final = "0A000"
_CANCELED: Final = "57014"

# libpq passes on no code for a refused connection. In another language this looks like a missing right.
_TOO_MANY: Final = re.compile("too many|connection slots|no more connections")
_PERSONAL: Final = ("user", "password", "dbname", "options")


def is_lost(connection: Connection) -> bool:
    """Return whether the server, or the way to it, is gone."""
    return bool(connection.closed or connection.pgconn.status == pq.ConnStatus.BAD)


def speaks_of_loss(error: BaseException, connection: Connection) -> bool:
    """Return whether the connection is lost, or an error says so before the connection itself knows.

    An error without an SQLSTATE doesn't come from the server but from libpq or psycopg.
    """
    return is_lost(connection) or (isinstance(error, psycopg.OperationalError) and not error.sqlstate)


def translated(
    error: psycopg.Error, connection: Connection | None, url: str, *, reading: bool = False, holders: str = ""
) -> Error:
    """Return our exception for one of the server's, which came while *reading* or while writing.

    If a lock was waited for, *holders* says who has it.
    """
    message = f"{url}: PostgreSQL says: {_server_message(error)}"
    if not reading:
        message += "; nothing of this transaction was written"
    state = error.sqlstate or ""
    if state in _DENIED:
        right = "to read" if reading else "to write, or only read (read_only=True)"
        return AccessDenied(f"{message}; ask the owner of the database for the right {right}, or use another user")
    if state == _READ_ONLY or (state == _STANDBY and not reading):
        return ReadOnlyError(
            f"{message}; open the session with read_only=True, or name the primary server in the URL"
        )
    if state in _DAMAGED:
        return CorruptStore(f"{message}; restore the database from a backup")
    if state in _GONE:
        return CorruptStore(
            f"{message}; a table of the store was dropped or renamed: restore it from a backup of the database"
        )
    if state == _MISCOUNTED:
        return CorruptStore(f"{url}: {MISCOUNTED}; nothing of this transaction was written")
    if connection is None or is_lost(connection):
        return StoreUnreachable(f"{message}; try again once the server is up")
    if state == LOCKED:
        who = f": {holders}" if holders else ", by a transaction that has ended meanwhile"
        message += f"; what was waited for is locked{who}; try again when that has ended, or end it (pg_terminate_backend)"
        return StoreUnreachable(message) if reading else WriteError(message)
    if state == _CANCELED:
        message += "; raise the server's statement_timeout"
        message += "" if reading else ", or write smaller batches (batch_bytes)"
        return StoreUnreachable(message) if reading else WriteError(message)
    if state in _FULL:
        if state == OUT_OF_MEMORY:
            message += (
                "; end transactions that have been open for long (pg_stat_activity), give the server more memory, or"
                " write smaller batches (batch_bytes)"
            )
        else:
            message += "; make room on the server"
        return StoreUnreachable(message) if reading else StoreFull(f"{message} and call again")
    return OpenError(message) if reading else WriteError(message)


def _server_message(error: psycopg.Error) -> str:
    """Return the server's message on one line, without the statement; psycopg's or libpq's if there is none."""
    diagnosis = error.diag
    if not diagnosis.message_primary:
        return " ".join(str(error).split())
    more = " ".join(text for text in (diagnosis.message_detail, diagnosis.message_hint) if text)
    return " ".join(f"{diagnosis.message_primary}{f' ({more})' if more else ''}".split())


# -- connections that can't be made


class Refused(Exception):
    """A connection could not be made.

    Attributes:
        error: the exception for the user.
        temporary: whether another attempt may succeed soon, though nobody changes anything.
    """

    def __init__(self, error: Error, *, temporary: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.temporary = temporary


def refused(error: psycopg.Error, address: Address) -> Refused:
    """Return why there is no connection; libpq has no code for that, but can ask the server whether it is up.

    Raise InvalidArgument if libpq can't make sense of the URL.
    """
    message = f"{address.url}: {_reasons(error)}"
    unreachable = StoreUnreachable(f"{message}; check host and port, and whether the server is up")
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return Refused(unreachable)
    answer = _ping(address.options)
    if answer == pq.Ping.NO_ATTEMPT:
        raise InvalidArgument(f"{message}; correct the URL of the store") from None
    if answer == pq.Ping.REJECT:
        starting = "the server is starting or going down: try again in a moment"
        return Refused(StoreUnreachable(f"{message}; {starting}"), temporary=True)
    if answer == pq.Ping.NO_RESPONSE:
        if _ping(_without_tls(address.options)) == pq.Ping.NO_RESPONSE:
            return Refused(unreachable)
        return Refused(
            AccessDenied(
                f"{message}; the server is up, but there is no TLS connection as the URL asks for it: check"
                " sslmode, sslrootcert, sslcert and sslkey, and the name of the host in the server's certificate"
            )
        )
    if _TOO_MANY.search(message):
        return Refused(
            StoreUnreachable(
                f"{message}; close programs that use it, or have max_connections, or the limit of the user or"
                " database, raised"
            ),
            temporary=True,
        )
    return Refused(
        AccessDenied(
            f"{message}; the server is up, but refuses the connection: check user, database, and the password in"
            " ~/.pgpass, PGPASSWORD or the service file, or the certificate"
        )
    )


def _reasons(error: psycopg.Error) -> str:
    """Return on one line why a connection failed; if several attempts were made, why each of them did."""
    lines = [line for line in str(error).splitlines() if line and not line[0].isspace()]  # the others are hints
    lines = [line.removeprefix("- ") for line in lines if line.startswith("- ")] or lines
    # An attempt with TLS and one without may fail for the same reason.
    return "; ".join(dict.fromkeys(line.removeprefix("connection failed: ") for line in lines))


def _ping(options: dict[str, Any]) -> pq.Ping:
    return pq.Ping(pq.PGconn.ping(make_conninfo("", **options).encode()))


def _without_tls(options: dict[str, Any]) -> dict[str, Any]:
    """Return options to ask the server whether it is up, without TLS and without saying who is asking."""
    kept = {key: value for key, value in options.items() if not key.startswith("ssl") and key not in _PERSONAL}
    return {**kept, "sslmode": "disable", "user": "gc3session", "dbname": "gc3session"}
