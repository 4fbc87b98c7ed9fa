"""What a store on PostgreSQL reports about itself: server, place, size, connections, durability.

All of it takes constant time: the server has these numbers at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ...errors import OpenError, StoreUnreachable
from ...text import size_text
from ..interface import Figure
from .address import Address
from .statements import Statements

Ask = Callable[[bytes], list[tuple[Any, ...]]]
"""Returns the rows that a statement reads."""

_SERVER: Final = (
    b"SELECT current_setting('server_version'), current_database()::text, current_user::text,"
    b" current_setting('synchronous_commit', true), current_setting('fsync', true),"
    b" current_setting('max_connections', true)"
)
_CONNECTIONS: Final = (
    b"SELECT count(*) FROM pg_stat_activity"
    b" WHERE datname = current_database() AND application_name = current_setting('application_name')"
)


def figures(ask: Ask, address: Address, statements: Statements) -> list[Figure]:
    """Return the figures of the store at *address*."""
    [(version, database, user, synchronous, fsync, most)] = ask(_SERVER)
    [(connections,)] = ask(_CONNECTIONS)
    host = address.options.get("host") or address.options.get("hostaddr")
    port = address.options.get("port")
    place = {"host": host, "port": port, "database": database, "schema": address.schema, "user": user}
    at = f"{host or 'the default host'}{f', port {port}' if port else ''}"
    return [
        Figure("server", f"PostgreSQL {version} at {at}", {"version": version, "host": host, "port": port}),
        Figure("database", f"{database}, schema {address.schema}, as {user}", place),
        _size(ask, statements),
        _connections(connections, most),
        _durability(synchronous, fsync),
    ]


def _size(ask: Ask, statements: Statements) -> Figure:
    try:
        sizes = {table: int(size) for table, size in ask(statements("sizes"))}
    except StoreUnreachable:
        raise
    except OpenError:  # a relative of PostgreSQL that doesn't know this
        return Figure("tables", "unknown size: this server doesn't report it", {"bytes": None, "tables": []})
    total = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    text = f"{size_text(total)} with indexes: {', '.join(f'{table} {size_text(size)}' for table, size in largest)}"
    return Figure(
        "tables",
        text,
        {"bytes": total, "tables": [{"table": table, "bytes": size} for table, size in sizes.items()]},
    )


def _connections(count: int, most: str | None) -> Figure:
    text = f"{count:,} of gc3session to this database" + (
        f", of {int(most):,} that the server takes" if most else ""
    )
    return Figure("connections", text, {"connections": count, "most": int(most) if most else None})


def _durability(synchronous: str | None, fsync: str | None) -> Figure:
    if synchronous == "off":
        synchronous = "on"  # each transaction that writes sets it
    values = {"synchronous_commit": synchronous, "fsync": fsync}
    if fsync == "off":
        return Figure("durability", "none: the server was set not to flush anything to disk (fsync = off)", values)
    setting = "" if synchronous is None else f" (synchronous_commit = {synchronous})"
    return Figure("durability", f"each commit is on the server's disk before it returns{setting}", values)
