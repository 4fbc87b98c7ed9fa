"""What a server refuses: each command, and each call, tells it in one line with the remedy, and nothing is lost.

Each of the situations below is made on a real server, around a session with twenty tasks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from psycopg import pq, sql

import gc3session.tables.postgresql.connections
from consistency import check
from gc3session import (
    AccessDenied,
    CorruptStore,
    DamagedSession,
    Error,
    InvalidArgument,
    OpenError,
    ReadOnlyError,
    Session,
    StoreUnreachable,
    Task,
    UnknownFormat,
)
from gc3session.cli.program import _COMMANDS, run
from postgresql_server import Server
from test_import_wf import DOCUMENT

COUNT = 20
SECRET = "s3cret"


@attrs.frozen
class Base:
    """A session on a server, and what else may reach it.

    Attributes:
        server: where it is.
        schema: in which schema.
        path: its directory.
        url: that of its store, as its owner writes it.
    """

    server: Server
    schema: str
    path: Path
    url: str

    def sql(self, *statements: str) -> None:
        """Do something to the database; {} in a statement is the schema, and the name `gone` is this test's own."""
        with self.server.connect() as connection:
            for statement in statements:
                own = statement.replace("gone", f"gone_{self.schema}")
                connection.execute(sql.SQL(own).format(sql.Identifier(self.schema)))

    def seen_as(self, url: str, place: Path) -> Path:
        """Return a directory of the same session which names its store by another URL."""
        path = place / secrets.token_hex(4)
        shutil.copytree(self.path, path)
        identity = (self.path / "store.url").read_text().rpartition("#")[2]
        (path / "store.url").write_text(f"{url}#{identity}")
        return path


@pytest.fixture
def base(postgresql: Server, tmp_path: Path) -> Iterator[Base]:
    schema = f"errors{secrets.token_hex(4)}"
    url = f"{postgresql.url()}&schema={schema}"
    made = Base(postgresql, schema, tmp_path / "base", url)
    with Session(made.path, store_or_url=url) as session:
        session.add_many(Task(jobname=f"t{n}") for n in range(COUNT))
    yield made
    made.sql("DROP SCHEMA IF EXISTS {} CASCADE", "DROP SCHEMA IF EXISTS gone CASCADE")


# -- situations ---------------------------------------------------------------

Situation = Callable[[Base, str], contextlib.AbstractContextManager[str]]
"""Given the session and a user makes something wrong; gives the URL by which the session is to be opened then."""


def named(change: Callable[[str], str]) -> Situation:
    """Return the situation that the URL is another one."""

    @contextlib.contextmanager
    def situation(base: Base, role: str) -> Iterator[str]:
        yield change(base.url)

    return situation


def by(user: str) -> Callable[[str], str]:
    return lambda url: url.replace("postgres@", f"{user}@", 1)


def granted(*statements: str) -> Situation:
    """Return the situation that a user has been given some rights, and no others."""

    @contextlib.contextmanager
    def situation(base: Base, role: str) -> Iterator[str]:
        base.sql(*(statement.replace("ROLE", role) for statement in statements))
        yield by(role)(base.url)

    return situation


def changed(there: str, back: str, url: Callable[[str], str] = lambda url: url) -> Situation:
    """Return the situation that the database has been changed."""

    @contextlib.contextmanager
    def situation(base: Base, role: str) -> Iterator[str]:
        base.sql(there)
        try:
            yield url(base.url)
        finally:
            base.sql(back)

    return situation


@contextlib.contextmanager
def locked(base: Base, role: str) -> Iterator[str]:
    """Whatever reads waits, and the server gives it up."""
    with base.server.connect() as connection, connection.transaction():
        connection.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(base.schema, "layout"))
        )
        yield f"{base.url}&options=-c%20statement_timeout%3D20"


@contextlib.contextmanager
def wrong_password(base: Base, role: str) -> Iterator[str]:
    base.sql(f"ALTER ROLE {role} PASSWORD '{SECRET}'")
    hba = base.server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"local all {role} scram-sha-256\n{before}")
    base.sql("SELECT pg_reload_conf()")
    os.environ["PGPASSWORD"] = f"not {SECRET}"
    try:
        yield by(role)(base.url)
    finally:
        del os.environ["PGPASSWORD"]
        hba.write_text(before)
        base.sql("SELECT pg_reload_conf()")


@contextlib.contextmanager
def too_many(base: Base, role: str) -> Iterator[str]:
    base.sql(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    yield by(role)(base.url)


READ = ("GRANT USAGE ON SCHEMA {} TO ROLE", "GRANT SELECT ON ALL TABLES IN SCHEMA {} TO ROLE")


@attrs.frozen
class Refused:
    """What becomes of a situation.

    Attributes:
        made: makes it.
        error: of a call.
        remedy: in its message.
        reading: whether reading is refused, too.
    """

    made: Situation
    error: type[Error]
    remedy: str
    reading: bool = True


REFUSED = {
    "server down": Refused(
        named(lambda url: "postgresql://postgres@127.0.0.1:1/postgres"), StoreUnreachable, "check host and port"
    ),
    "several hosts, all down": Refused(
        named(lambda url: "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/postgres"), StoreUnreachable, "port 1 .*port 2 .*check host"
    ),
    "no such database": Refused(
        named(lambda url: url.replace("/postgres?", "/nosuch?")), AccessDenied, "check user, database"
    ),
    "no such user": Refused(named(by("nosuch")), AccessDenied, "check user, database"),
    "no such service": Refused(named(lambda url: "postgresql:///postgres?schema=x&service=nosuch"), InvalidArgument, "correct the URL"),
    "no such setting": Refused(named(lambda url: f"{url}&options=-c%20nosuch%3D1"), AccessDenied, "nosuch"),
    "wrong password": Refused(wrong_password, AccessDenied, r"check user, database, and the password in ~/\.pgpass"),
    "too many connections": Refused(too_many, StoreUnreachable, "close programs that use it"),
    "no rights": Refused(granted(), AccessDenied, "ask the owner of the database for the right to read"),
    "no right to the schema": Refused(granted(READ[1]), AccessDenied, "right to read"),
    "no right to the tables": Refused(granted(READ[0]), AccessDenied, "right to read"),
    "no right to a table": Refused(
        granted(*READ, "REVOKE SELECT ON {}.meta FROM ROLE"), AccessDenied, "right to read"
    ),
    "the right to read alone": Refused(granted(*READ), AccessDenied, "read_only=True", reading=False),
    "transactions that may not write": Refused(
        named(lambda url: f"{url}&options=-c%20default_transaction_read_only%3Don"),
        ReadOnlyError,
        "read_only=True, or name the primary",
        reading=False,
    ),
    "statements that take too long": Refused(locked, StoreUnreachable, "raise the server's statement_timeout"),
    "tables of another version": Refused(
        changed("UPDATE {}.layout SET version = 3", "UPDATE {}.layout SET version = 2"), UnknownFormat, "upgrade gc3session"
    ),
    "records of another version": Refused(
        changed(
            r"UPDATE {}.meta SET value = '\x03' WHERE key = 'format'",
            r"UPDATE {}.meta SET value = '\x02' WHERE key = 'format'",
        ),
        UnknownFormat,
        "upgrade gc3session",
    ),
    "schema dropped": Refused(
        changed("ALTER SCHEMA {} RENAME TO gone", "ALTER SCHEMA gone RENAME TO {}"), DamagedSession, "restore it"
    ),
    "table dropped": Refused(
        changed("ALTER TABLE {}.meta RENAME TO gone", "ALTER TABLE {}.gone RENAME TO meta"), CorruptStore, "restore it"
    ),
}  # fmt: skip


@pytest.fixture(params=REFUSED)
def refused(
    request: pytest.FixtureRequest, base: Base, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Refused]]:
    """A session whose store can't be used as it is to be, and why."""
    monkeypatch.setattr(gc3session.tables.postgresql.connections, "_FIRST_PATIENCE", 0.05)
    refused = REFUSED[request.param]
    with refused.made(base, role) as url:
        if "schema=" not in url:
            url += f"?schema={base.schema}"
        yield base.seen_as(url, tmp_path), refused
    assert len(check(base.path)) == COUNT, "something was lost"


# -- calls --------------------------------------------------------------------


def test_each_call_raises_the_class_that_tells_what_to_do(refused: tuple[Path, Refused]) -> None:
    path, why = refused
    for read_only in (True, False):
        if not why.reading:
            with Session(path, read_only=read_only) as session:
                assert len(session) == COUNT
                assert session.stats() == {"NEW": COUNT}
                assert list(session.check()) == []
                assert session.info().tasks == COUNT
            continue
        with pytest.raises(why.error, match=why.remedy) as caught:
            Session(path, read_only=read_only)
        assert SECRET not in str(caught.value)
    if not why.reading:
        session = Session(path)
        task = session.load("Task.3")
        task.state = "RUNNING"
        writing: dict[str, Callable[[], Any]] = {
            "add": lambda: session.add(Task()),
            "add_many": lambda: session.add_many([Task() for _ in range(3000)]),
            "save_all": session.save_all,
            "remove": lambda: session.remove("Task.1"),
            "forget": lambda: session.forget("Task.2"),
            "destroy": session.destroy,
        }
        for name, write in writing.items():
            with pytest.raises(why.error, match=why.remedy):
                write()
            assert len(session) == COUNT, name
        assert task.changed
        session.store.discard()


def test_an_open_session_whose_tables_are_dropped_is_not_made_anew(base: Base) -> None:
    session = Session(base.path)
    assert len(session) == COUNT
    for hidden in ("SCHEMA {}", "TABLE {}.records"):
        base.sql(f"ALTER {hidden} RENAME TO gone")
        for call in (lambda: list(session), lambda: session.add(Task())):
            with pytest.raises(CorruptStore, match="restore it from a backup"):
                call()
        base.sql(
            "ALTER SCHEMA gone RENAME TO {}" if "SCHEMA" in hidden else "ALTER TABLE {}.gone RENAME TO records"
        )
    id_ = session.add(Task())
    session.close()
    assert check(base.path)[COUNT:] == [id_]


def test_tables_that_have_lost_their_version_are_not_filled_anew(base: Base, tmp_path: Path) -> None:
    """The sequence would begin again, and new tasks take the places of the old ones."""
    base.sql("TRUNCATE {}.layout")
    with pytest.raises(CorruptStore, match="layout"), Session(tmp_path / "new", store_or_url=base.url) as session:
        session.add(Task())
    base.sql("INSERT INTO {}.layout VALUES (1)")


def test_a_standby_is_read_and_one_that_starts_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, signal = tmp_path / "session", server.data / "standby.signal"
    open_before = Session(path, store_or_url=server.url())
    open_before.add(Task())
    server.stop()
    signal.touch()
    server.start()
    for session in (open_before, Session(path)):
        assert session.stats() == {"NEW": 1}
        assert list(session.check()) == []
        with pytest.raises(ReadOnlyError, match="name the primary"):
            session.add(Task())
    server.stop()
    monkeypatch.setattr(gc3session.tables.postgresql.connections, "_FIRST_PATIENCE", 0.05)
    server.start(answer=pq.Ping.REJECT, hot_standby="off")
    with pytest.raises(StoreUnreachable, match="starting or going down: try again"):
        Session(path)
    server.stop()
    signal.unlink()
    server.start()
    open_before.add(Task())
    open_before.close()
    assert len(check(path)) == 2


# -- commands -----------------------------------------------------------------

READING = ("info", "list", "select", "show", "log", "watch", "dump", "diff", "backup", "check", "repair")
ARGUMENTS: dict[str, list[str]] = {
    "record": ["{file}"],
    "import-wf": ["{workflow}"],
    "show": ["Task.3"],
    "watch": ["--once"],
    "dump": ["-o", "{out}"],
    "load": ["{dump}", "--on-clash", "renumber"],
    "diff": ["{base}"],
    "backup": ["{new}"],
    "remove": ["--yes", "Task.3"],
    "forget": ["--yes", "Task.4"],
    "destroy": ["--yes"],
    "migrate": ["{new}"],
}


def test_each_command_tells_it_in_one_line(
    refused: tuple[Path, Refused],
    base: Base,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, why = refused
    (tmp_path / "task.jsonl").write_text('{"jobname": "x"}\n')
    (tmp_path / "workflow.json").write_text(json.dumps(DOCUMENT))
    with Session(tmp_path / "other") as other:
        other.add(Task())
    assert run(["dump", str(tmp_path / "other"), "-o", str(tmp_path / "dump")]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    wrong = []
    for name in _COMMANDS:
        places = {
            "file": tmp_path / "task.jsonl",
            "workflow": tmp_path / "workflow.json",
            "out": tmp_path / secrets.token_hex(4),
            "dump": tmp_path / "dump",
            "base": base.path,
            "new": tmp_path / secrets.token_hex(4),
        }
        arguments = [name, str(path), *(text.format(**places) for text in ARGUMENTS.get(name, []))]
        capsys.readouterr()
        with warnings.catch_warnings():
            status = run(arguments)
        out, err = capsys.readouterr()
        if name in READING and not why.reading:
            if status or err:
                wrong.append(f"{name}: {status}, {err}")
            continue
        if name == "compact" and not why.reading:
            continue  # nothing is written from here
        line = err
        if name == "check" and status == 1 and not err.count("\n") > 1:
            line, status = out, 2  # a finding, which the last line counts
        refused_later = (name == "record" and not why.reading) or (name == "load" and why.error is InvalidArgument)
        expected = 2 if issubclass(why.error, OpenError | InvalidArgument) and not refused_later else 1
        if status != expected or line.count("\n") != 1 or not re.search(why.remedy, line):
            wrong.append(f"{name}: {status}, {out}{err}")
        if "Traceback" in err or SECRET in err + out:
            wrong.append(f"{name}: {err}")
    assert not wrong, "\n".join(wrong)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
