"""The statements for the tables on PostgreSQL.

Each table of tables/interface.py is a table of the schema with two columns of type bytea, which
PostgreSQL sorts by bytes, as it has to be. The schema has three more tables::

    counts    tab text, key bytea -> n bigint   how many values a key of a set table has
    commits   token bytea -> through boolean    whether the transaction with that token was committed
    layout    version integer                   of all this; tables of another version are refused
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from ..interface import PLAIN_TABLES, SET_TABLES

LAYOUT: Final = 1
"""The version of this layout."""

_PLAIN = {
    "get": "SELECT value FROM {t} WHERE key = %b",
    "get_many": "SELECT key, value FROM {t} WHERE key = ANY(%b::bytea[])",
    "between": "SELECT key, value FROM {t} WHERE key BETWEEN %b AND %b",
    "scan": "SELECT key, value FROM {t} WHERE key >= %b ORDER BY key LIMIT %b::bigint",
    "scan_to": "SELECT key, value FROM {t} WHERE key >= %b AND key < %b ORDER BY key LIMIT %b::bigint",
    "entries": "SELECT count(*) FROM {t}",
    "put": (
        "INSERT INTO {t} (key, value) SELECT * FROM unnest(%b::bytea[], %b::bytea[])"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    ),
    "put_one": "INSERT INTO {t} (key, value) VALUES (%b, %b) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    "delete": "DELETE FROM {t} WHERE key = ANY(%b::bytea[])",
    "copy": "COPY {t} (key, value) FROM STDIN (FORMAT BINARY)",
}
_SET = {
    "scan": "SELECT key, value FROM {t} WHERE key >= %b ORDER BY key, value LIMIT %b::bigint",
    "scan_to": ("SELECT key, value FROM {t} WHERE key >= %b AND key < %b ORDER BY key, value LIMIT %b::bigint"),
    "entries": "SELECT coalesce(sum(n), 0)::bigint FROM {counts} WHERE tab = {name}",
    "values": "SELECT value FROM {t} WHERE key = %b AND value >= %b ORDER BY value LIMIT %b::bigint",
    "first_values": (
        "SELECT (SELECT value FROM {t} WHERE key = %b AND value >= s.start ORDER BY value LIMIT 1)"
        " FROM unnest(%b::bytea[]) WITH ORDINALITY AS s (start, place) ORDER BY s.place"
    ),
    "last_value": "SELECT value FROM {t} WHERE key = %b ORDER BY value DESC LIMIT 1",
    "count": "SELECT n FROM {counts} WHERE tab = {name} AND key = %b",
    "counts": "SELECT key, n FROM {counts} WHERE tab = {name} AND key >= %b AND n > 0 ORDER BY key",
    "counts_to": (
        "SELECT key, n FROM {counts} WHERE tab = {name} AND key >= %b AND key < %b AND n > 0 ORDER BY key"
    ),
    "put": (
        "WITH added AS (INSERT INTO {t} (key, value) SELECT %b::bytea, v FROM unnest(%b::bytea[]) AS v"
        " ON CONFLICT DO NOTHING RETURNING 1)"
        " INSERT INTO {counts} AS c (tab, key, n) VALUES ({name}, %b, (SELECT count(*) FROM added))"
        " ON CONFLICT (tab, key) DO UPDATE SET n = c.n + excluded.n"
    ),
    "added": (
        "INSERT INTO {counts} AS c (tab, key, n) VALUES ({name}, %b, %b::bigint)"
        " ON CONFLICT (tab, key) DO UPDATE SET n = c.n + excluded.n"
    ),
    "delete_values": (
        "WITH gone AS (DELETE FROM {t} WHERE key = %b AND value = ANY(%b::bytea[]) RETURNING 1)"
        " UPDATE {counts} SET n = n - (SELECT count(*) FROM gone) WHERE tab = {name} AND key = %b"
    ),
    "delete": "DELETE FROM {t} WHERE key = ANY(%b::bytea[])",
    "next_key": "SELECT key FROM {t} WHERE key > %b ORDER BY key LIMIT 1",
    "miscounted": (
        "SELECT coalesce(c.key, v.key), coalesce(c.n, 0), coalesce(v.n, 0)"
        " FROM (SELECT key, count(*) AS n FROM {t} GROUP BY key) AS v"
        " FULL JOIN (SELECT key, n FROM {counts} WHERE tab = {name}) AS c ON c.key = v.key"
        " WHERE coalesce(c.n, 0) <> coalesce(v.n, 0) ORDER BY 1"
    ),
    "recount": (
        "INSERT INTO {counts} (tab, key, n) VALUES ({name}, %b, %b::bigint)"
        " ON CONFLICT (tab, key) DO UPDATE SET n = excluded.n"
    ),
    "uncount": "DELETE FROM {counts} WHERE tab = {name} AND key = ANY(%b::bytea[])",
    "copy": "COPY {t} (key, value) FROM STDIN (FORMAT BINARY)",
}
_OTHERS = {
    "commit": "INSERT INTO {commits} (token, through) VALUES (%b, true)",
    "prevent": "INSERT INTO {commits} (token, through) VALUES (%b, false)",
    # In the order in which most transactions change the tables, so that deadlocks are rare.
    "keep_out": (
        "LOCK TABLE {late}, {late_members}, {members}, {states}, {records}, {sessions}, {meta}, {schemas}"
        " IN SHARE ROW EXCLUSIVE MODE"
    ),
    "went_through": "SELECT through FROM {commits} WHERE token = %b",
    "forget": "DELETE FROM {commits} WHERE token = %b",
    "forget_old": "DELETE FROM {commits} WHERE token = ANY(%b::bytea[]) OR at < now() - interval '30 days'",
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
        f"CREATE TABLE IF NOT EXISTS {{{name}}} (key bytea PRIMARY KEY, value bytea NOT NULL)"
        for name in PLAIN_TABLES
    ),
    *(
        f"CREATE TABLE IF NOT EXISTS {{{name}}} (key bytea, value bytea, PRIMARY KEY (key, value))"
        for name in SET_TABLES
    ),
    "CREATE TABLE IF NOT EXISTS {counts} (tab text, key bytea, n bigint NOT NULL, PRIMARY KEY (tab, key))",
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
        every = (*PLAIN_TABLES, *SET_TABLES, "counts", "commits", "layout")
        names: dict[str, sql.Composable] = {table: sql.Identifier(schema, table) for table in every}
        names["schema"] = sql.Identifier(schema)
        names["schema_name"] = sql.Literal(schema)
        names = {name: sql.SQL(quoted.as_string(None).replace("%", "%%")) for name, quoted in names.items()}

        def bytes_of(text: str, **more: sql.Composable) -> bytes:
            return sql.SQL(text).format(**names, **more).as_bytes(None)

        self._of: dict[tuple[str, str], bytes] = {}
        for tables, texts in ((PLAIN_TABLES, _PLAIN), (SET_TABLES, _SET)):
            for table in tables:
                for what, text in texts.items():
                    self._of[table, what] = bytes_of(text, t=names[table], name=sql.Literal(table))
                self._of[table, "copy"] = self._of[table, "copy"].replace(b"%%", b"%")
        for what, text in _OTHERS.items():
            self._of["", what] = bytes_of(text)
        self.layout_name = sql.Identifier(schema, "layout").as_string(None)
        self.create_schema = bytes_of("CREATE SCHEMA IF NOT EXISTS {schema}")
        self.create_tables = [bytes_of(text) for text in _CREATE_TABLES]

    def __call__(self, what: str, table: str = "") -> bytes:
        """Return the statement that does *what* with a table."""
        return self._of[table, what]
