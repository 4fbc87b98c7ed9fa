"""What the errors of a PostgreSQL server mean: ours for each of them, with the remedy."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import pq

from ...errors import (
    AccessDenied,
    CorruptStore,
    Error,
    OpenError,
    ReadOnlyError,
    StoreFull,
    StoreUnreachable,
    WriteError,
)

Connection = psycopg.Connection[tuple[Any, ...]]

OUT_OF_MEMORY: Final = "53200"

AGAIN: Final = ("40001", "40P01", OUT_OF_MEMORY)
"""Of a transaction that could not be put in an order with others: it runs again.

The server's memory for that order is full while one transaction lasts long beside very many; it
is free once that one has ended.
"""

_FULL: Final = ("53100", OUT_OF_MEMORY, "53400")
_DENIED: Final = ("42501", "28000", "28P01")
_DAMAGED: Final = ("XX001", "XX002")
_GONE: Final = ("42P01", "3F000")  # a table, the schema
_READ_ONLY: Final = "25006"
_STANDBY: Final = "0A000"  # no other statement of ours is refused so: one is serializable, and a standby isn't
_CANCELED: Final = "57014"


def is_lost(connection: Connection) -> bool:
    """Return whether the server, or the way to it, is gone."""
    return bool(connection.closed or connection.pgconn.status == pq.ConnStatus.BAD)


def speaks_of_loss(error: BaseException, connection: Connection) -> bool:
    """Return whether an error says that the connection is lost, or is about to be found so.

    Without a word of the server it is libpq or psycopg that complains of it.
    """
    return is_lost(connection) or (isinstance(error, psycopg.OperationalError) and not error.sqlstate)


def translated(error: psycopg.Error, connection: Connection | None, url: str, *, reading: bool = False) -> Error:
    """Return our exception for one of the server's, which came while *reading* or while writing."""
    told = f"{url}: PostgreSQL says: {_said(error)}"
    if not reading:
        told += "; nothing of this transaction was written"
    state = error.sqlstate or ""
    if state in _DENIED:
        right = "to read" if reading else "to write, or only read (read_only=True)"
        return AccessDenied(f"{told}; ask the owner of the database for the right {right}, or use another user")
    if state == _READ_ONLY or (state == _STANDBY and not reading):
        return ReadOnlyError(
            f"{told}; open the session with read_only=True, or name the primary server in the URL"
        )
    if state in _DAMAGED:
        return CorruptStore(f"{told}; restore the database from a backup")
    if state in _GONE:
        return CorruptStore(
            f"{told}; a table of the store was dropped or renamed: restore it from a backup of the database"
        )
    if connection is None or is_lost(connection):
        return StoreUnreachable(f"{told}; try again once the server is up")
    if state == _CANCELED:
        told += "; raise the server's statement_timeout"
        return StoreUnreachable(told) if reading else WriteError(f"{told}, or write smaller batches (batch_bytes)")
    if state in _FULL:
        if state == OUT_OF_MEMORY:
            told += (
                "; end transactions that have been open for long (pg_stat_activity), give the server more memory, or"
                " write smaller batches (batch_bytes)"
            )
        else:
            told += "; make room on the server"
        return StoreUnreachable(told) if reading else StoreFull(f"{told} and flush again")
    return OpenError(told) if reading else WriteError(told)


def _said(error: psycopg.Error) -> str:
    """Return what the server says, on one line and without the statement, or psycopg or libpq if it says nothing."""
    diagnosis = error.diag
    if not diagnosis.message_primary:
        return " ".join(str(error).split())
    more = " ".join(text for text in (diagnosis.message_detail, diagnosis.message_hint) if text)
    return " ".join(f"{diagnosis.message_primary}{f' ({more})' if more else ''}".split())
