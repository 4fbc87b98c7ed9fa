"""Others who lock what is needed, and servers that vanish: a call waits for `patience`, and says for whom."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import gc3session.tables.postgresql.connections
from children import Child, run_python
from consistency import check
from gc3session import Session, StoreUnreachable, Task, WriteError
from gc3session.tables.postgresql.address import address_of
from gc3session.tables.postgresql.transaction import PostgresqlWriter


@pytest.fixture
def other(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of another program to the store."""
    options = {**address_of(postgresql_url).options, "application_name": "reporting"}
    with psycopg.connect(**options, autocommit=True) as connection:
        yield connection


def table(url: str, name: str) -> sql.Identifier:
    return sql.Identifier(address_of(url).schema, name)


Call = Callable[[Session], object]

LOCKED: dict[str, tuple[str, str, Call, type[Exception]]] = {
    "the session": ("sessions", "SELECT FROM {} FOR UPDATE", lambda session: session.add(Task()), WriteError),
    "a record": (
        "records",
        "SELECT FROM {} FOR UPDATE",
        lambda session: session.remove(next(session.ids())),
        WriteError,
    ),
    "numbers": ("meta", "SELECT FROM {} FOR UPDATE", lambda session: _add_with_new_number(session), WriteError),
    "a table": (
        "records",
        "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        lambda session: list(session),
        StoreUnreachable,
    ),
    "all of a table": (
        "index",
        "LOCK TABLE {} IN SHARE MODE",
        lambda session: session.add(Task()),
        WriteError,
    ),
}


def _add_with_new_number(session: Session) -> None:
    session.store.sequence.reset()
    session.add(Task())


def _many() -> list[Task]:
    return [Task() for _ in range(100)]


@pytest.mark.parametrize("what", LOCKED)
def test_lock_of_others_is_waited_for_and_then_its_holder_is_named(
    postgresql_url: str, tmp_path: Path, other: psycopg.Connection[Any], what: str
) -> None:
    name, statement, call, kind = LOCKED[what]
    with Session(tmp_path / "session", store_or_url=postgresql_url, patience=0.3) as session:
        ids = [session.add(Task())]
        with other.transaction():
            other.execute(sql.SQL(statement).format(table(postgresql_url, name)))
            with pytest.raises(kind, match="lock") as caught:
                call(session)
        told = str(caught.value)
        assert f"process {other.info.backend_pid} of the server, reporting, user postgres" in told
        assert "the same machine, in a transaction since 20" in told
        assert "idle in transaction" in told
        assert list(session.tasks) == ids
        call(session)
    check(tmp_path / "session")


def test_those_who_wait_themselves_and_those_who_only_read_are_not_named(
    postgresql_url: str, tmp_path: Path, other: psycopg.Connection[Any]
) -> None:
    url = f"{postgresql_url}&application_name=innocent"
    with Session(tmp_path / "session", store_or_url=url, patience=0.3) as session:
        session.add(Task())
        with session.store.reading() as reader, other.transaction():
            assert reader.scan("records", b"")
            other.execute(sql.SQL("SELECT FROM {} FOR UPDATE").format(table(postgresql_url, "sessions")))
            waiting = [Child(_add_in_vain, tmp_path / "session") for _ in range(3)]
            told = [child.result() for child in waiting]
            with pytest.raises(WriteError) as caught:
                session.add(Task())
    for text in (*told, str(caught.value)):
        assert "server, reporting" in text
        assert "server, innocent" not in text


def _add_in_vain(path: Path) -> str:
    with Session(path, patience=0.3) as session, pytest.raises(WriteError) as caught:
        session.add(Task())
    return str(caught.value)


def test_transaction_of_others_that_has_written_and_waits_stops_nobody(
    postgresql_url: str, tmp_path: Path, other: psycopg.Connection[Any]
) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url, patience=0.3) as session:
        session.add(Task())
        other.execute("CREATE TEMPORARY TABLE own (n integer)")
        with other.transaction():
            other.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            other.execute(sql.SQL("SELECT FROM {}").format(table(postgresql_url, "records")))
            other.execute("INSERT INTO own VALUES (1)")
            for _ in range(20):
                session.add(Task())
            session.add_many(_many())
        assert len(session) == 121
    check(tmp_path / "session")


# -- a program of ours that is stopped ----------------------------------------------


def stopped_in_commit(path: Path) -> str:
    """Add a task; the process stops itself once what is to be written has been sent, but for the commit."""
    gc3session.tables.postgresql.connections._LEAST_IDLE = 0.2  # type: ignore[misc]
    commit = PostgresqlWriter.commit
    stops = [True]

    def stop(writer: PostgresqlWriter, token: bytes, former: list[bytes], flushed_later: bool) -> None:
        if stops and writer._changes["records"]:
            stops.clear()
            writer.scan("records", b"", 1)
            os.kill(os.getpid(), signal.SIGSTOP)
        commit(writer, token, former, flushed_later)

    with Session(path, patience=0.2) as session:
        session.add(Task(jobname="before"))
        PostgresqlWriter.commit = stop  # type: ignore[method-assign]
        return session.add(Task(jobname="stopped"))


def test_program_that_is_stopped_in_a_commit_keeps_others_for_a_while_only_and_goes_on_later(
    postgresql_url: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        Session(tmp_path / name, store_or_url=postgresql_url).close()
    child = Child(stopped_in_commit, tmp_path / "a")
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    try:
        with Session(tmp_path / "b", patience=0.1) as session:
            session.add_many(_many())
        with Session(tmp_path / "a") as session:
            session.add(Task(jobname="other"))
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.result()
    with Session(tmp_path / "a") as session:
        assert sorted(task.jobname for task in session) == ["before", "other", "stopped"]
    check(tmp_path / "a")


# -- a server that vanishes -----------------------------------------------------------

HERE = """
    import ctypes, signal, subprocess, sys
    from pathlib import Path
    from postgresql_server import Server

    def ip(command):
        subprocess.run(["ip", *command.split()], check=True)

    def go_on():
        client.stdin.write("\\n")
        client.stdin.flush()

    if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
        sys.exit("no network of its own")
    signal.alarm(120)
    ip("link add v0 type veth peer name v1")
    path, directory, script = sys.argv[1:]
    server = Server.made(Path(directory))
    with open(server.data / "pg_hba.conf", "a") as rules:
        rules.write("host all all 10.77.0.0/24 trust\\n")
    command = ["unshare", "--net", sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        client.stdout.readline()
        ip(f"link set v1 netns {client.pid}")
        ip("addr add 10.77.0.1/24 dev v0")
        ip("link set v0 up")
        server.start(listen_addresses="10.77.0.1")
        try:
            go_on()
            assert client.stdout.readline() == "added\\n"
            ip("route add blackhole 10.77.0.2/32")  # what the server sends is thrown away
            go_on()
            while (line := client.stdout.readline()) not in ("", "told\\n"):
                print(line, end="")
            ip("route del blackhole 10.77.0.2/32")
            go_on()
            print(client.stdout.readline(), end="")
        finally:
            server.delete()
"""
THERE = """
    import subprocess, sys
    from gc3session import Session, StoreUnreachable, Task, WriteError

    def told(line):
        print(line, flush=True)
        sys.stdin.readline()

    told("begun")
    for command in ("addr add 10.77.0.2/24 dev v1", "link set v1 up"):
        subprocess.run(["ip", *command.split()], check=True)
    session = Session(sys.argv[1], store_or_url="postgresql://postgres@10.77.0.1/postgres", patience=1)
    session.add(Task())
    with session.store.reading() as reader:
        reader.serial  # so a second connection is open
        session.add(Task())
    told("added")
    for call in (lambda: session.add(Task()), lambda: len(session), lambda: list(session)):
        try:
            print("returned", call(), flush=True)
        except StoreUnreachable as error:
            print(error, flush=True)
    told("told")
    while True:
        try:
            session.add(Task())
            break
        except WriteError as error:  # the server doesn't know yet that the connection is gone
            assert "locked: process" in str(error)
    print(len(session), flush=True)
    session.close()
"""


def test_server_that_vanishes_without_a_word_is_noticed(servers: Path, tmp_path: Path) -> None:
    """It and the program are in networks of their own."""
    if os.getuid() or shutil.which("ip") is None:
        pytest.skip("NOT RUN: a network of its own can be made by root alone")
    arguments = (tmp_path / "session", servers / secrets.token_hex(4), textwrap.dedent(THERE))
    *errors, count = run_python(HERE, *arguments).splitlines()
    assert len(errors) == 3
    assert all("10.77.0.1" in line and "server is up" in line for line in errors)
    assert count == "3"
