"""The tables on PostgreSQL. Importing this registers their URLs, but doesn't import psycopg yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import OpenError
from ..urls import register

if TYPE_CHECKING:
    from .tables import PostgresqlTables

SCHEME: Final = "postgresql"


def _from_url(url: str, *, read_only: bool = False, patience: float = 60.0) -> PostgresqlTables:
    try:
        from .tables import PostgresqlTables
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise OpenError(
            "a store on PostgreSQL needs psycopg, which isn't installed: pip install 'gc3session[postgresql]'"
        ) from error
    return PostgresqlTables(url, read_only=read_only, patience=patience)


register(SCHEME, _from_url)
