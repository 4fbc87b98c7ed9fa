"""Databases that are unlike others: of another encoding, with rows that are hidden, behind a pooler."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from consistency import check
from examples import Simulation
from gc3session import AccessDenied, InvalidArgument, OpenError, Session, Task, dump_session, make_store
from gc3session.tables.postgresql.address import address_of
from postgresql_server import Server


@pytest.fixture
def database(postgresql: Server) -> Iterator[Callable[[str], str]]:
    """A function that makes a database of an encoding, and returns its URL."""
    made: list[str] = []

    def make(encoding: str) -> str:
        made.append(f"database{secrets.token_hex(4)}")
        with postgresql.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'").format(
                    sql.Identifier(made[-1]), sql.Literal(encoding)
                )
            )
        return postgresql.url().replace("/postgres?", f"/{made[-1]}?")

    yield make
    with postgresql.connect() as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("schema", ["plain", "日本語"])
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "EUC_JP", "UTF8", "LATIN1"])
def test_database_of_any_encoding_does_or_says_that_it_cannot(
    database: Callable[[str], str], tmp_path: Path, encoding: str, schema: str
) -> None:
    url = f"{database(encoding)}&schema={quote(schema)}"
    if encoding == "LATIN1" and schema != "plain":
        with pytest.raises(OpenError, match="LATIN1"):
            Session(tmp_path / "session", store_or_url=url)
        return
    with Session(tmp_path / "session", store_or_url=url) as session:
        ids = list(
            session.add_many(Simulation(jobname=f"仕事 {n}", state="終了" if n % 2 else "NEW") for n in range(600))
        )
        session.remove(ids.pop())
        assert [task.jobname for task in session.select(state="終了")] == [f"仕事 {n}" for n in range(1, 599, 2)]
        assert session.stats() == {"NEW": 300, "終了": 299}
        figures = {figure.name: figure for figure in session.info().figures}
        assert figures["database"].values["schema"] == schema
        assert list(session.check()) == [] or [finding.kind for finding in session.check()] == ["mirror"]
    with Session(tmp_path / "session") as session:
        dump_session(session, tmp_path / "dump")
        assert list(session.tasks) == ids
        assert list(session.check()) == []


def test_encoding_of_the_client_is_not_for_the_url_to_say(database: Callable[[str], str], tmp_path: Path) -> None:
    url = f"{database('EUC_JP')}&schema=x&client_encoding=EUC_JP"
    with pytest.raises(InvalidArgument, match="client_encoding"):
        Session(tmp_path / "session", store_or_url=url)


def test_environment_does_not_say_the_encoding_of_the_client(
    database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{database('EUC_JP')}&schema={quote('日本語')}"
    with monkeypatch.context() as patch:
        patch.setenv("PGCLIENTENCODING", "EUC_JP")
        with Session(tmp_path / "session", store_or_url=url) as session:
            session.add(Task())
    assert len(check(tmp_path / "session", mirror=False)) == 1


# -- rows that are hidden -------------------------------------------------------


@pytest.mark.parametrize("table", ["records", "index", "counts", "sessions"])
@pytest.mark.parametrize("pooled", [False, True])
def test_rows_that_are_hidden_from_a_user_are_told(
    postgresql: Server,
    postgresql_url: str,
    role: str,
    tmp_path: Path,
    table: str,
    pooled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        ids = list(session.add_many(Task() for _ in range(50)))
    schema = sql.Identifier(address_of(postgresql_url).schema)
    name = sql.Identifier(address_of(postgresql_url).schema, table)
    with postgresql.connect() as connection:
        for statement in (
            "GRANT USAGE ON SCHEMA {schema} TO {role}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY half ON {table} TO {role} USING (get_byte(key, length(key) - 1) % 2 = 0)",
        ):
            connection.execute(sql.SQL(statement).format(schema=schema, role=sql.Identifier(role), table=name))
    if pooled:
        pretend_pooler(monkeypatch)
    url = postgresql_url.replace("postgres@", f"{role}@")
    line = (tmp_path / "session" / "store.url").read_text()
    (tmp_path / "session" / "store.url").write_text(line.replace("postgres@", f"{role}@"))
    with pytest.raises(AccessDenied, match="row-level security"), Session(tmp_path / "session") as session:
        assert session.store_url == url
        stats = session.stats()
        assert [id_ for id_ in ids if id_ in session] == ids
        assert [task.persistent_id for task in session] == ids
        raise AssertionError(f"{len(session)} of 50 tasks, {stats}")


# -- behind a pooler --------------------------------------------------------------


def pretend_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process of the server look as if it were another one than that of the connection."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda self: -1))


def test_behind_a_pooler_settings_are_those_of_the_transaction(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pooler(monkeypatch)
    names = ("synchronous_commit", "row_security", "lock_timeout", "idle_in_transaction_session_timeout")
    url = f"{postgresql_url}&options=-c%20synchronous_commit%3Doff"
    ask = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}".encode()
    with make_store(url, patience=30) as store, Session(tmp_path / "session", store_or_url=store) as session:
        session.add(Task())
        tables: Any = store.tables
        set_ = ("on", "off", "30s", "15s")
        assert tables.write(lambda writer: writer._answer(ask)) == [set_]
        assert tables._ask(ask) == [set_]
        with store.reading() as reader:
            assert reader._answer(ask) == [(*set_[:3], "0")]
        with tables._connections.one() as connection:
            assert connection.execute(ask).fetchall() == [("off", "on", "0", "0")]
            assert connection.execute("SELECT * FROM pg_prepared_statements").fetchall() == []
        session.add_many(Simulation() for _ in range(2000))
        assert len(list(session)) == 2001
    check(tmp_path / "session")
