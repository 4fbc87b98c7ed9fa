"""The statements for the tables on PostgreSQL; FORMAT.md says which tables and columns there are."""

from __future__ import annotations

from typing import Final

from psycopg import sql

from ..interface import COUNTS, META, TABLES

LAYOUT: Final = 2
"""The version of this layout."""

_NUMBER = "('x' || encode({}.value, 'hex'))::bit(64)::bigint"
_ANY_TABLE = {
    "get": "SELECT value FROM {t} WHERE key = %b",
    "get_many": "SELECT key, value FROM {t} WHERE key = ANY(%b::bytea[])",
    "between": "SELECT key, value FROM {t} WHERE key BETWEEN %b AND %b",
    "read": "SELECT {name}::text, key, value FROM {t} WHERE key = ANY(%b::bytea[])",
    "lock": "SELECT {name}::text, key, value FROM {t} WHERE key = ANY(%b::bytea[]) ORDER BY key FOR NO KEY UPDATE",
    "scan": "SELECT key, value FROM {t} WHERE key >= %b AND key < %b ORDER BY key LIMIT %b::bigint",
    "scan_many": (
        "SELECT key, value FROM unnest(%b::bytea[], %b::bytea[]) AS p (first, after)"
        " JOIN {t} ON key >= first AND key < after ORDER BY key"
    ),
    "put": (
        "INSERT INTO {t} (key, value) SELECT * FROM unnest(%b::bytea[], %b::bytea[])"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    ),
    "grow": (
        "INSERT INTO {t} AS c (key, value) SELECT k, int8send(n) FROM unnest(%b::bytea[], %b::bigint[]) AS u (k, n)"
        f" ON CONFLICT (key) DO UPDATE SET value = int8send({_NUMBER.format('c')} + {_NUMBER.format('excluded')})"
    ),
    "vanish": (
        "DELETE FROM {t} AS c USING unnest(%b::bytea[], %b::bigint[]) AS u (k, n)"
        f" WHERE key = k AND {_NUMBER.format('c')} = n"
    ),
    "shrink": (
        f"UPDATE {{t}} AS c SET value = int8send(greatest({{least}}{_NUMBER.format('c')} - n))"
        f" FROM unnest(%b::bytea[], %b::bigint[]) AS u (k, n) WHERE key = k AND {_NUMBER.format('c')} <> n"
    ),
    "delete": "DELETE FROM {t} WHERE key = ANY(%b::bytea[])",
    "copy": "COPY {t} (key, value) FROM STDIN (FORMAT BINARY)",
}
_OTHERS = {
    "commit": "INSERT INTO {commits} (token, through) VALUES (%b, true)",
    "forget": "DELETE FROM {commits} WHERE token = ANY(%b::bytea[])",
    "prevent": "INSERT INTO {commits} (token, through) VALUES (%b, false)",
    "keep_out": f"LOCK TABLE {', '.join(f'{{{table}}}' for table in TABLES)} IN SHARE ROW EXCLUSIVE MODE",
    "flush": "UPDATE {commits} SET at = clock_timestamp() WHERE token = %b AND through RETURNING through",
    "forget_old": "DELETE FROM {commits} WHERE token = ANY(%b::bytea[]) OR at < now() - interval '30 days'",
    # Who has locked something for as long as was waited for it: those who wait themselves don't count.
    "holders": (
        "SELECT DISTINCT format('process %%s of the server, %%s, user %%s at %%s, in a transaction since %%s (%%s)',"
        " a.pid, coalesce(nullif(a.application_name, ''), 'a program without a name'), a.usename,"
        " coalesce(host(a.client_addr), 'the same machine'), coalesce(a.xact_start::text, 'some time'),"
        " coalesce(a.state, 'of another user'))"
        " FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid JOIN pg_class AS c ON c.oid = l.relation"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = {schema_name} AND l.granted AND l.mode <> 'AccessShareLock' AND a.pid <> pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND a.wait_event_type IS DISTINCT FROM 'Lock'"
        " AND coalesce(a.xact_start <= clock_timestamp() - make_interval(secs => %b::float8), true)"
    ),
    "sizes": (
        "SELECT table_name::text, pg_total_relation_size((quote_ident(table_schema) || '.'"
        " || quote_ident(table_name))::regclass)::bigint FROM information_schema.tables WHERE table_schema = {schema_name} ORDER BY table_name"
    ),
    "made": f"INSERT INTO {{layout}} (version) VALUES ({LAYOUT})",
    "layout": "SELECT version FROM {layout}",
    # Not from information_schema, which hides what the user may not use: the store would seem not to exist.
    "schema_is_there": "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = {schema_name}",
    "is_there": (
        "SELECT 1 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace"
        " WHERE s.nspname = {schema_name} AND c.relname = 'layout'"
    ),
}
_CREATE_TABLES = (
    *(
        f"CREATE TABLE IF NOT EXISTS {{{table}}} (key bytea PRIMARY KEY, value bytea NOT NULL"
        f"{' CHECK (get_byte(value, 0) < 128)' if table == COUNTS else ''})"
        for table in TABLES
    ),
    (
        "CREATE TABLE IF NOT EXISTS {commits}"
        " (token bytea PRIMARY KEY, through boolean NOT NULL, at timestamptz NOT NULL DEFAULT now())"
    ),
    "CREATE TABLE IF NOT EXISTS {layout} (version integer PRIMARY KEY)",
)


class Statements:
    """The statements for the tables of one schema, with all names quoted.

    A % in a name is doubled, so all statements but COPY have to be executed with parameters, even
    if there are none: with `()`.

    Attributes:
        layout_name: the quoted name of the table `layout`, for messages.
        create_schema: the statement that creates the schema.
        create_tables: those that create the tables, unless they are there.
    """

    def __init__(self, schema: str) -> None:
        names: dict[str, sql.Composable] = {
            table: sql.Identifier(schema, table) for table in (*TABLES, "commits", "layout")
        }
        names["schema"] = sql.Identifier(schema)
        names["schema_name"] = sql.Literal(schema)
        names = {name: sql.SQL(quoted.as_string(None).replace("%", "%%")) for name, quoted in names.items()}

        def bytes_of(text: str, **more: sql.Composable) -> bytes:
            return sql.SQL(text).format(**names, **more).as_bytes(None)

        self._of = {("", what): bytes_of(text) for what, text in _OTHERS.items()}
        for table in TABLES:
            for what, text in _ANY_TABLE.items():
                # Too low a number of records doesn't keep anybody from writing; a check tells it.
                least = sql.SQL("0, " if table == META else "")
                self._of[table, what] = bytes_of(text, t=names[table], name=sql.Literal(table), least=least)
            self._of[table, "copy"] = self._of[table, "copy"].replace(b"%%", b"%")
        self.layout_name = sql.Identifier(schema, "layout").as_string(None)
        self.create_schema = bytes_of("CREATE SCHEMA IF NOT EXISTS {schema}")
        self.create_tables = [bytes_of(text) for text in _CREATE_TABLES]

    def __call__(self, what: str, table: str = "") -> bytes:
        """Return the statement that does *what* with a table."""
        return self._of[table, what]
