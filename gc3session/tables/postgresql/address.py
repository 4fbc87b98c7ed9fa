"""The address of a PostgreSQL store: what its URL says, and which parts of it may be shown."""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...errors import InvalidArgument

DEFAULT_SCHEMA: Final = "gc3session"

_SECRETS: Final = ("password", "sslpassword")
_FILES: Final = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl")
_OPTIONS: Final = frozenset(
    """
    host port user dbname passfile service require_auth channel_binding connect_timeout application_name
    fallback_application_name options keepalives keepalives_idle keepalives_interval keepalives_count
    tcp_user_timeout sslmode sslnegotiation sslcompression sslcert sslkey sslcertmode sslrootcert sslcrl sslcrldir
    sslsni ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version requirepeer
    gssencmode krbsrvname target_session_attrs load_balance_hosts
    """.split()
)
"""Options of libpq that a URL may set. The URL may come with a directory that somebody else has made.

With others libpq would write to any file (sslkeylogfile), or send what is meant for one host to
another (hostaddr, servicefile, gssdelegation).  The encoding is ours, whatever that of the database is.
"""
# libpq and urlsplit split such a URL in the same places.
_READ_ALIKE: Final = re.compile(r"[^:/?#]+://([^@/?#]*@)?[^@/?#]*(/[^@?#]*)?(\?[^@#]*)?")
_FORM: Final = (
    "the URL of a store on PostgreSQL is postgresql://user@host:port/database?schema=NAME; in each of these '@' is"
    " written %40, '/' %2F, '?' %3F, '#' %23, a blank %20"
)


class Address(NamedTuple):
    """Where a store is.

    Attributes:
        url: without passwords, so it may be stored and shown.
        schema: of the database, the one with the tables.
        options: for libpq, including the passwords that were in the URL.
    """

    url: str
    schema: str
    options: dict[str, Any]

    def within(self, patience: float) -> Address:
        """Return it so that a server which has vanished without a word is noticed in that many seconds.

        What the URL says of that holds, however.
        """
        seconds = max(1, int(patience))
        limits = {
            "connect_timeout": min(max(2, seconds), 10),  # to libpq 1 means 2
            "keepalives_idle": max(1, seconds // 2),
            "keepalives_interval": max(1, seconds // 6),
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * seconds,
        }
        return self._replace(options={**limits, **self.options})

    def __repr__(self) -> str:
        return f"<Address {self.url}>"


def address_of(url: str) -> Address:
    """Return what a URL says: `postgresql://user@host:port/database?schema=jobs&sslmode=...`.

    All but `schema` is for libpq, which gets what is missing from PGHOST and the like, the password
    file, and the service file. Raise InvalidArgument if libpq can't read the URL or would read it
    in another way, and for options that a URL must not set.
    """
    if not _READ_ALIKE.fullmatch(url) or any(char <= " " or char == "\x7f" for char in url):
        raise InvalidArgument(_FORM)
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True)  # for libpq a + isn't a blank
    except ValueError:  # its text contains the password
        raise InvalidArgument(_FORM) from None
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
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
    except (psycopg.Error, ValueError) as error:
        raise InvalidArgument(f"{_shown(parts)}: {' '.join(str(error).split())}") from None
    _check(options, parts)
    options = {"application_name": "gc3session", **options, **secrets, "client_encoding": "utf8"}
    return Address(_text(open_), schema, options)


def _check(options: dict[str, Any], parts: SplitResult) -> None:
    """Raise InvalidArgument for options by which somebody else's URL could do harm."""
    for key in options.keys() - _OPTIONS:
        raise InvalidArgument(f"{_shown(parts)}: the option {key} can't be set in the URL of a store")
    if "service" in options and not options.keys().isdisjoint(("host", "port")):
        raise InvalidArgument(
            f"{_shown(parts)}: a service's password is for its own host: have the service name host and port, not the URL"
        )
    if ":" in options.get("sslkey", ""):
        raise InvalidArgument(f"{_shown(parts)}: sslkey must be a file; an engine would be loaded as code")
    for key in _FILES:
        try:
            regular = stat.S_ISREG(os.stat(options.get(key, "")).st_mode)
        except (OSError, ValueError):  # there is none, as libpq will say
            continue
        if not regular:
            raise InvalidArgument(f"{_shown(parts)}: {key} must be a regular file")


def _without(query: str, keys: tuple[str, ...]) -> str:
    return "&".join(pair for pair in query.split("&") if unquote(pair.partition("=")[0]) not in keys)


def _text(parts: SplitResult) -> str:
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
