"""Many tasks at once: whatever comes between while `add_many` encodes them, all are there once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from children import in_child
from consistency import check
from examples import Simulation
from gc3session import Session, StoreFull, Task, WriteError, make_store
from gc3session.tables.postgresql.address import address_of
from gc3session.tables.postgresql.connections import Connections
from postgresql_server import refuse

COUNT = 4000
MIDDLE = 2500


class Interrupted(Sequence[Task]):
    """Tasks; something happens once `add_many` has taken those before *after*."""

    def __init__(self, happens: Callable[[list[Task]], object], after: int = MIDDLE) -> None:
        self.tasks: list[Task] = [Simulation(jobname=str(i), steps=i) for i in range(COUNT)]
        self._happens, self._after = happens, after

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, place: Any) -> Any:
        return self.tasks[place]

    def __iter__(self) -> Iterator[Task]:
        yield from self.tasks[: self._after]
        self._happens(self.tasks)
        yield from self.tasks[self._after :]


@pytest.fixture
def session(postgresql_url: str, tmp_path: Path) -> Iterator[Session]:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        session.add(Task())
        yield session


def in_transactions(session: Session) -> list[int]:
    """Return the processes of the server in which this program has a transaction open."""
    connections: Connections = session.store.tables._connections  # type: ignore[attr-defined]
    return [
        connection.info.backend_pid
        for connection in connections._open
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    ]


def is_whole(session: Session, count: int = COUNT, others: int = 0) -> None:
    assert not in_transactions(session)
    session.flush()  # which writes the mirror
    with Session(session.path, read_only=True) as again:
        names = [task.jobname for task in list(again)[1:]]
        assert names == [str(i) for i in range(count)]
        assert sum(1 for _ in again.store.list()) == count + 1 + others
    session.flush()
    check(session.path)


@pytest.mark.parametrize("given", [lambda tasks: tasks, iter], ids=["sequence", "generator"])
def test_no_transaction_is_open_while_tasks_are_encoded(session: Session, given: Callable[..., Any]) -> None:
    seen: list[list[int]] = []
    tasks = Interrupted(lambda tasks: seen.append(in_transactions(session)))
    session.add_many(given(tasks))
    assert seen == [[]]
    is_whole(session)


def test_all_connections_are_lost(session: Session, postgresql_url: str) -> None:
    def happens(tasks: list[Task]) -> None:
        connections: Connections = session.store.tables._connections  # type: ignore[attr-defined]
        with psycopg.connect(**address_of(postgresql_url).options, autocommit=True) as connection:
            for pid in [each.info.backend_pid for each in connections._open]:
                connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    session.add_many(Interrupted(happens))
    is_whole(session)


def test_another_program_writes_to_the_session(session: Session) -> None:
    def happens(tasks: list[Task]) -> None:
        in_child(lambda: Session(session.path).add(Simulation(jobname="other")))

    session.add_many(Interrupted(happens))
    with Session(session.path, read_only=True) as again:
        names = [task.jobname for task in list(again)[1:]]
        assert sorted(names) == sorted(["other", *map(str, range(COUNT))])
    session.flush()
    check(session.path)


@pytest.mark.parametrize("after", [MIDDLE, COUNT])
def test_one_of_them_is_changed_and_saved(session: Session, after: int) -> None:
    def happens(tasks: list[Task]) -> None:
        tasks[7].state = "CHANGED"
        with session.store.unit(flush=False):
            session.store.stage(tasks[7])

    session.add_many(Interrupted(happens, after))
    assert session.stats()["CHANGED"] == 1
    is_whole(session)


@pytest.mark.parametrize("after", [MIDDLE, COUNT])
def test_one_of_them_is_removed(session: Session, after: int) -> None:
    def happens(tasks: list[Task]) -> None:
        session.remove(str(tasks[7].persistent_id), flush=False)

    session.add_many(Interrupted(happens, after))
    assert len(session) == COUNT
    assert len(list(session.store.list())) == COUNT
    session.flush()
    check(session.path)


@pytest.mark.parametrize("after", [MIDDLE, COUNT])
def test_one_of_them_is_forgotten(session: Session, after: int) -> None:
    session.add_many(Interrupted(lambda tasks: session.forget(str(tasks[7].persistent_id), flush=False), after))
    assert len(session) == COUNT
    assert len(list(session.store.list())) == COUNT + 1
    session.flush()
    check(session.path)


def test_one_that_was_stored_before_is_added_in_between(session: Session) -> None:
    first = Simulation(jobname="stored")
    session.store.save(first)
    session.add_many(Interrupted(lambda tasks: session.add(first, flush=False)))
    with Session(session.path, read_only=True) as again:
        names = [task.jobname for task in list(again)[1:]]
    assert names == ["stored", *map(str, range(COUNT))]
    session.flush()
    check(session.path)


def test_one_that_waits_in_the_batch_comes_before_them(session: Session) -> None:
    session.add(Simulation(jobname="waits"), flush=False)
    session.add_many(Interrupted(lambda tasks: None))
    with Session(session.path, read_only=True) as again:
        assert [task.jobname for task in list(again)[1:]] == ["waits", *map(str, range(COUNT))]
    session.flush()
    check(session.path)


def test_a_new_session_has_them_in_order(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "other", store_or_url=postgresql_url) as session:
        session.add_many(Interrupted(lambda tasks: None))
        assert [task.jobname for task in session] == [str(i) for i in range(COUNT)]
    check(tmp_path / "other")


def test_the_batch_is_written_meanwhile(session: Session) -> None:
    session.add_many(Interrupted(lambda tasks: session.flush()))
    is_whole(session)


def test_the_rest_cannot_be_had(session: Session) -> None:
    def happens(tasks: list[Task]) -> None:
        raise KeyError("the rest")

    with pytest.raises(KeyError, match="the rest"):
        session.add_many(Interrupted(happens))
    is_whole(session, MIDDLE)


def test_the_program_forks(session: Session) -> None:
    def child() -> int:
        session.add_many([Simulation(jobname="child") for _ in range(3000)])
        return os.getpid()

    session.add_many(Interrupted(lambda tasks: in_child(child)))
    with Session(session.path, read_only=True) as again:
        names = [task.jobname for task in list(again)[1:]]
        assert sorted(names) == sorted(["child"] * 3000 + [str(i) for i in range(COUNT)])
    session.flush()
    check(session.path)


def test_a_transaction_that_fails_leaves_none_of_them(session: Session) -> None:
    with contextlib.suppress(KeyError), session.transaction():
        session.add_many(Interrupted(lambda tasks: None))
        raise KeyError
    is_whole(session, 0)


def test_their_states_are_counted(session: Session) -> None:
    tasks = Interrupted(lambda tasks: None)
    for number, task in enumerate(tasks.tasks):
        task.state = f"STATE{number % 7}"
    session.add_many(tasks)
    expected = {f"STATE{i}": len(range(i, COUNT, 7)) for i in range(7)}
    assert session.stats() == {"NEW": 1, **expected}
    is_whole(session)


def test_they_are_larger_than_the_way_to_the_server_is_wide(session: Session) -> None:
    tasks = Interrupted(lambda tasks: None)
    for task in tasks.tasks[::10]:
        task.extra["text"] = "x" * 100_000
    session.add_many(tasks)
    is_whole(session)


@pytest.mark.parametrize("number", [MIDDLE, 100, 600, 3000])
def test_another_session_of_the_store_adds_meanwhile(session: Session, tmp_path: Path, number: int) -> None:
    with Session(tmp_path / "other", store_or_url=session.store) as other:
        other.add(Task())
        others = [Simulation(jobname="other") for _ in range(number)]
        session.add_many(Interrupted(lambda tasks: other.add_many(others)))
        is_whole(session, COUNT, number + 1)
        assert [task.jobname for task in list(other)[1:]] == ["other"] * number
    check(other.path)


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ("53100", StoreFull, "make room"),
        ("57014", WriteError, "statement_timeout"),
        ("40001", WriteError, "came in between"),
        ("53200", StoreFull, "end transactions"),
    ],
)
def test_what_the_server_refuses_at_the_end_is_told_as_ever(
    postgresql_url: str, tmp_path: Path, state: str, kind: type[Exception], message: str
) -> None:
    schema = address_of(postgresql_url).schema
    with (
        make_store(postgresql_url, patience=0.001) as store,
        Session(tmp_path / "session", store_or_url=store) as session,
        psycopg.connect(**address_of(postgresql_url).options, autocommit=True) as connection,
    ):
        session.add(Task())
        refuse(connection, schema, "sessions", state)
        tasks = [Simulation(jobname=str(i)) for i in range(COUNT)]
        with pytest.raises(kind, match=message):
            session.add_many(tasks)
        connection.execute(sql.SQL("DROP TRIGGER refuse ON {}").format(sql.Identifier(schema, "sessions")))
        session.flush()
        assert len(session) == 1
        session.add_many(tasks)
        is_whole(session)


@pytest.mark.parametrize("state", ["40001", "40P01", "53200"])
def test_a_transaction_that_is_refused_some_times_runs_again(
    session: Session, postgresql_url: str, state: str
) -> None:
    schema = address_of(postgresql_url).schema
    with psycopg.connect(**address_of(postgresql_url).options, autocommit=True) as connection:
        refuse(connection, schema, "sessions", state, times=4)
        session.add_many([Simulation(jobname=str(i)) for i in range(COUNT)])
        [(asked,)] = connection.execute(
            sql.SQL("SELECT last_value FROM {}").format(sql.Identifier(schema, "refused"))
        )
        assert asked > 4
    is_whole(session)
