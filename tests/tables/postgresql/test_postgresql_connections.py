"""Connections to a server: each is one thread's and one process's, and none is left when a store is closed."""

from __future__ import annotations

import gc
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from children import Child
from consistency import check
from gc3session import AccessDenied, OpenError, Session, StoreUnreachable, Task, make_store
from gc3session.tables.postgresql.address import address_of

THREADS, PROCESSES = 4, 3


@pytest.fixture
def url(postgresql_url: str) -> str:
    """The URL of a store whose connections have a name of their own."""
    return f"{postgresql_url}&application_name=test{secrets.token_hex(4)}"


@pytest.fixture
def backends(url: str) -> Iterator[Callable[[], list[int]]]:
    """A function that returns the server's processes that serve the store."""
    options = address_of(url).options
    with psycopg.connect(**{**options, "application_name": "test"}, autocommit=True) as connection:

        def backends() -> list[int]:
            statement = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
            return [pid for (pid,) in connection.execute(statement, (options["application_name"],))]

        yield backends


def are_left(backends: Callable[[], list[int]], most: int) -> bool:
    """Return whether no more than so many are left; the server needs a moment to notice that others are closed."""
    end = time.monotonic() + 60
    while len(backends()) > most:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def work(path: Path, url: str, name: str, count: int) -> list[str]:
    """Work in threads: on one session that they share with their process, and on one of their own each."""
    shared = Session(path)
    added: list[str] = []
    failures: list[BaseException] = []

    def in_thread(n: int) -> None:
        try:
            with Session(path.parent / f"{name}-{n}", store_or_url=url) as own:
                for i in range(count):
                    added.append(shared.add(Task(jobname=f"{name}/{n}/{i}")))
                    own.add(Task(jobname=str(i)))
                    assert added[-1] in shared
                    assert len(own) == i + 1
                    assert len(list(islice(shared, 5))) > 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=in_thread, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    if failures:
        raise failures[0]
    return added


def test_threads_of_forked_processes_share_a_session_and_leave_no_connection(
    url: str, tmp_path: Path, backends: Callable[[], list[int]], long_form: bool
) -> None:
    count = 60 if long_form else 2
    path = tmp_path / "session"
    session = Session(path, store_or_url=url)
    first = session.add(Task(jobname="first"))  # the parent has a connection open when it forks
    [own] = backends()
    children = [Child(work, path, url, f"p{n}", count) for n in range(PROCESSES)]
    ids = [id_ for child in children for id_ in child.result()]
    assert len(set(ids)) == PROCESSES * THREADS * count
    last = session.add(Task(jobname="last"))
    assert own in backends(), "a child has ended its parent's connection"
    assert set(session.tasks) == {first, *ids, last}
    session.close()
    assert are_left(backends, 0)
    assert len(check(path)) == len(ids) + 2
    for own_path in tmp_path.glob("p*-*"):
        assert len(check(own_path)) == count


def test_iterations_that_are_abandoned_hold_no_connection(
    url: str, tmp_path: Path, backends: Callable[[], list[int]]
) -> None:
    session = Session(tmp_path / "session", store_or_url=url)
    ids = session.add_many(Task(jobname=str(i)) for i in range(1500))
    session.save(Task(jobname="stored"))
    begun: dict[str, Callable[[], Iterator[object]]] = {
        "tasks": lambda: iter(session),
        "ids": session.ids,
        "select": lambda: session.select(state="NEW"),
        "load_many": lambda: session.load_many(ids),
        "workflow": session.iter_workflow,
        "log": session.log,
        "list": session.store.list,
    }
    held = {name: begin() for name, begin in begun.items() for _ in range(20)}
    for name, iterator in held.items():
        next(iterator)
        assert are_left(backends, 4), name
    held.clear()


def test_check_that_is_abandoned_gives_its_connection_back_also_after_the_end_of_its_session(
    url: str, tmp_path: Path, backends: Callable[[], list[int]]
) -> None:
    session = Session(tmp_path / "session", store_or_url=url)
    session.add(Task())
    session.store.tables.write(lambda writer: writer.put("counts", [(b"\xff" * 12, b"\0" * 7 + b"\1")]))
    checks = [session.check() for _ in range(10)]
    try:
        # Whatever it finds, it holds a transaction until it has ended.
        assert all(next(each).kind == "index" for each in checks)
        at_first = len(backends())
        for each in checks[:5]:
            each.close()
        half = are_left(backends, 5 + 4)  # and those that wait for the next transactions
        session.store.tables.write(lambda writer: writer.delete("counts", [b"\xff" * 12]))
        session.close()
        after = are_left(backends, 5)
    finally:
        for each in checks:
            each.close()
    assert at_first >= 10
    assert half
    assert after
    assert are_left(backends, 0)


def test_errors_and_lost_connections_leave_none(
    url: str, tmp_path: Path, backends: Callable[[], list[int]]
) -> None:
    session = Session(tmp_path / "session", store_or_url=url)
    session.add(Task())
    with psycopg.connect(**{**address_of(url).options, "application_name": "test"}, autocommit=True) as other:
        for _ in range(30):
            with pytest.raises(ZeroDivisionError), session.transaction():
                session.add(Task())
                raise ZeroDivisionError
            with pytest.raises(ZeroDivisionError):
                session.store.tables.write(lambda writer: 1 / len(writer.get_many("records", [])))
            with pytest.raises(ZeroDivisionError), session.store.reading() as reader:
                1 / len(reader.get_many("records", []))
        for _ in range(10):
            for pid in backends():
                other.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
            session.add(Task())
            assert len(session) > 1
        for _ in range(10):
            with pytest.raises(StoreUnreachable), session.store.reading() as reader:
                reader.get("meta", b"x")
                other.execute("SELECT pg_terminate_backend(%s, 60000)", (reader.connection.info.backend_pid,))
                reader.get("meta", b"x")
        assert are_left(backends, 4)
        table = sql.Identifier(address_of(url).schema, "records")
        for _ in range(10):
            with make_store(f"{url}&options=-c%20lock_timeout%3D5") as hasty, other.transaction():
                other.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                with pytest.raises(OpenError, match="lock timeout"):
                    hasty.load("Task.1")
            with pytest.raises(AccessDenied):
                make_store(url.replace("/postgres?", "/nosuch?"))
        assert are_left(backends, 4)
    session.close()
    gc.collect()
    assert are_left(backends, 0)
    assert len(check(tmp_path / "session")) == 11
