"""Connections that end at any instant, also between parent and child: each task whose call returned is there once."""

from __future__ import annotations

import os
import random
import secrets
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consistency import check
from gc3session import ClosedError, Session, Task, make_store
from gc3session.tables.postgresql.address import address_of
from gc3session.tables.postgresql.transaction import PostgresqlWriter


class Interrupted(Exception):
    """Raised in the child."""


@pytest.fixture
def url(postgresql_url: str) -> str:
    """The URL of a store whose connections have a name of their own."""
    return f"{postgresql_url}&application_name=test{secrets.token_hex(4)}"


@pytest.fixture
def session(url: str, tmp_path: Path) -> Iterator[Session]:
    with Session(tmp_path / "session", store_or_url=url) as session:
        session.add(Task())
        yield session


def have_ids(session: Session, tasks: list[Task]) -> None:
    """Assert that the session has the tasks that have an ID, each once, and one more."""
    session.flush()
    ids = list(session.ids())
    assert sorted(ids[1:]) == sorted(str(task.persistent_id) for task in tasks if task.persistent_id)
    assert session.stats() == {"NEW": len(ids)}
    check(session.path)


def test_connections_end_at_any_instant(session: Session, url: str) -> None:
    options = address_of(url).options
    statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    ended, left, done = 0, 0, threading.Event()

    def end_some() -> None:
        nonlocal ended, left
        chance = random.Random(1)
        with psycopg.connect(**{**options, "application_name": "test"}, autocommit=True) as connection:
            while not done.wait(chance.uniform(0.01, 0.05)):
                if left > 0:
                    left -= 1
                    ended += connection.execute(statement, (options["application_name"],)).rowcount

    thread = threading.Thread(target=end_some)
    thread.start()
    tasks: list[Task] = []
    try:
        while ended < 40:
            some = [Task() for _ in range(600)]
            some[0].extra["text"] = "x" * 200_000
            left = 3  # times, so that a slow machine comes to the end of the call, too
            session.add_many(some)
            tasks += some
    finally:
        done.set()
        thread.join()
    have_ids(session, tasks)


def test_a_child_that_is_forked_in_the_middle_leaves_the_parents_transaction_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection's descriptor is that of another file by then."""
    add = PostgresqlWriter.add
    children: list[int] = []
    parent = os.getpid()

    def add_and_fork(self: PostgresqlWriter, *args: Any) -> None:
        add(self, *args)
        if not children:
            descriptor = self.connection.pgconn.socket
            children.append(os.fork())
            if os.getpid() != parent:
                sockets.extend(socket.socketpair())
                if descriptor not in [end.fileno() for end in sockets]:
                    os.dup2(sockets[0].fileno(), descriptor)
                signal.alarm(20)  # for who writes there waits for an answer
                raise Interrupted

    sockets: list[socket.socket] = []
    monkeypatch.setattr(PostgresqlWriter, "add", add_and_fork)
    tasks = [Task() for _ in range(600)]
    try:
        session.add_many(tasks)
    except BaseException:
        if os.getpid() != parent:
            os._exit(bool(select.select(sockets, [], [], 0)[0]))
        raise
    assert os.waitpid(children[0], 0)[1] == 0
    have_ids(session, tasks)


def test_each_connection_has_the_sites_setting_of_when_it_was_made(url: str) -> None:
    lazy = f"{url}&options=-c%20synchronous_commit%3Doff"
    with make_store(lazy) as store:
        store.save(Task())
        tables: Any = store.tables
        connections = tables._connections
        [first] = connections._open
        held = connections.take()
        connections._conninfo = psycopg.conninfo.make_conninfo(
            "", **address_of(url).options
        )  # the site changes it
        second = connections.take()
        connections.give(second)
        connections.give(held)
        assert held is first
        shown = [tables.write(lambda writer: (writer.connection, writer._answer(b"SHOW synchronous_commit")))]
        assert shown == [(first, [("on",)])]


def test_a_store_that_is_discarded_meanwhile_gets_nothing_more(url: str, tmp_path: Path) -> None:
    session = Session(tmp_path / "session", store_or_url=url)
    session.add(Task())

    class Discarding(list[Task]):
        def __iter__(self) -> Iterator[Task]:
            for number, task in enumerate(super().__iter__()):
                if number == 2000:
                    session.store.discard()
                yield task

    with pytest.raises(ClosedError):
        session.add_many(Discarding(Task() for _ in range(3000)))
    with Session(session.path, read_only=True) as again:
        assert len(again) == 1
