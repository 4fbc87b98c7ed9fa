"""Where a PostgreSQL store is: what its URL says, and what of it may be shown."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .errors import InvalidArgument

DEFAULT_SCHEMA: Final = "gc3session"

_SECRETS: Final = ("password", "sslpassword")
_DEFAULTS: Final = {
    "application_name": "gc3session",
    "connect_timeout": "10",
    # A peer that is gone without a word is noticed in about a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


class Address(NamedTuple):
    """Where a store is.

    Attributes:
        url: without passwords; what may be written down and shown.
        schema: of the database, in which the tables are.
        options: for libpq, with passwords if the URL had some.
    """

    url: str
    schema: str
    options: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Address {self.url}>"


def address_of(url: str) -> Address:
    """Return what a URL says: `postgresql://user@host:port/database?schema=jobs&sslmode=...`.

    All but `schema` is libpq's own; what is left out comes from where libpq takes it: PGHOST and
    the like, the password file, the service file.  Raise InvalidArgument if libpq can't read it.
    """
    parts = urlsplit(url)
    if parts.fragment or "#" in url:
        raise InvalidArgument(f"{_shown(parts)}: a '#' in the URL of a store must be written %23")
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    query = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True)  # libpq takes a + as it is
    secrets = {key: value for key, value in query if key in _SECRETS}
    if colon:
        secrets["password"] = unquote(password)
    schema = DEFAULT_SCHEMA
    for key, value in query:
        if key == "schema":
            schema = value
    open_ = parts._replace(netloc=name + at + host, query=_without(parts.query, _SECRETS))
    if not schema or "\0" in schema or len(schema.encode(errors="replace")) > 63:
        raise InvalidArgument(f"{_shown(parts)}: a schema's name has 1 to 63 bytes; write ?schema=NAME")
    plain = open_._replace(query=_without(parts.query, (*_SECRETS, "schema")))
    try:
        options: dict[str, Any] = conninfo_to_dict(_text(plain))
    except psycopg.Error as error:
        raise InvalidArgument(f"{_text(open_)}: {error}") from None
    return Address(_text(open_), schema, {**_DEFAULTS, **options, **secrets})


def _without(query: str, keys: tuple[str, ...]) -> str:
    return "&".join(pair for pair in query.split("&") if unquote(pair.partition("=")[0]) not in keys)


def _text(parts: SplitResult) -> str:
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
