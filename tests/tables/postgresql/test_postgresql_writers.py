"""Several writers at once: numbers are given once, no update is lost, none waits for another in a circle, and few are the waits."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from children import Child
from consistency import check
from examples import Simulation
from gc3session import ConflictError, Session, Task, make_store
from gc3session.tables.postgresql.address import address_of
from gc3session.tables.postgresql.transaction import LocksMissing, PostgresqlWriter

WRITERS = 4


def deadlocks(url: str) -> int:
    """Return how many deadlocks the server has found in the database so far."""
    with psycopg.connect(**address_of(url).options, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        [(number,)] = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchall()
    return int(number)


def begin_everything(path: Path, url: str, process: int, ready: int, go: int) -> list[str]:
    """Make a session, classes, states and numbers, all at the same time as others do."""
    classes = [
        attrs.make_class(f"Kind{process}{i}", {"x": attrs.field(default=0)}, bases=(Task,)) for i in range(3)
    ]
    os.write(ready, b"x")
    os.read(go, 1)
    with Session(path / "shared", store_or_url=url) as shared:
        ids = [shared.add(cls(state=f"S{i}")) for i in range(4) for cls in classes]
        with Session(path / f"own{process}", store_or_url=url) as own:
            own.add_many(Simulation(state=f"{process}/{n}" if n % 2 else f"all/{n}") for n in range(40))
    return ids


def test_writers_that_begin_together_get_different_numbers(postgresql_url: str, tmp_path: Path) -> None:
    (ready, told), (wait, go) = os.pipe(), os.pipe()
    children = [Child(begin_everything, tmp_path, postgresql_url, n, told, wait) for n in range(WRITERS)]
    for _ in children:
        os.read(ready, 1)
    os.write(go, b"x" * WRITERS)
    ids = [id_ for child in children for id_ in child.result()]
    assert len(set(ids)) == 12 * WRITERS
    Session(tmp_path / "shared").close()
    assert sorted(check(tmp_path / "shared")) == sorted(ids)
    for number in range(WRITERS):
        assert len(check(tmp_path / f"own{number}")) == 40


def count_up(path: Path, times: int) -> None:
    with Session(path) as session:
        [id_] = session.ids()
        for _ in range(times):
            task = session.load(id_)
            while True:
                task.extra["n"] += 1
                try:
                    session.save(task)
                    break
                except ConflictError:
                    session.refresh(task)


def test_no_update_is_lost(postgresql_url: str, tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path, store_or_url=postgresql_url) as session:
        id_ = session.add(Task(extra={"n": 0}))
    for child in [Child(count_up, path, 25) for _ in range(WRITERS)]:
        child.result()
    with Session(path) as session:
        assert session.load(id_).extra == {"n": 25 * WRITERS}
    check(path)


def change_shared(path: Path, url: str, seed: int) -> None:
    """Change, remove, adopt and forget records of sessions that others hold, too; by a store without a session as well."""
    chance = random.Random(seed)
    names = ["a", "b", "c"]
    chance.shuffle(names)
    with make_store(url) as store:
        sessions = [Session(path / name, store_or_url=store) for name in names[: chance.randrange(1, 3)]]
        for _ in range(40):
            ids = list(store.list())
            some = chance.sample(ids, min(len(ids), 6))
            session = chance.choice(sessions)
            try:
                for id_ in some:
                    what = chance.randrange(4)
                    if what == 0:
                        session.load(id_, add=True, flush=False)
                    elif what == 1 and id_ in session:
                        session.forget(id_, flush=False)
                    else:
                        task: Any = store.load(id_)
                        task.state = f"S{chance.randrange(5)}"
                        store.save(task)
                if chance.random() < 0.2:
                    store.remove(some[0])
                session.add_many(Task() for _ in range(2))
            except (ConflictError, LookupError):
                for each in [*store.batch.records]:
                    store.batch.unstage(each)
                for session in sessions:
                    session._index.reset()
        for session in sessions:
            session.close()


def test_writers_of_shared_records_wait_for_each_other_in_no_circle(postgresql_url: str, tmp_path: Path) -> None:
    with make_store(postgresql_url) as store:
        sessions = [Session(tmp_path / name, store_or_url=store) for name in "abc"]
        ids = sessions[0].add_many(Task(jobname=str(n)) for n in range(30))
        for session in sessions[1:]:
            for id_ in ids[::2]:
                session.load(id_, add=True)
            session.close()
        sessions[0].close()
    before = deadlocks(postgresql_url)
    for child in [Child(change_shared, tmp_path, postgresql_url, seed) for seed in range(WRITERS)]:
        child.result()
    assert deadlocks(postgresql_url) == before
    for name in "abc":
        Session(tmp_path / name).close()
        check(tmp_path / name)


def test_sessions_that_hold_what_changes_are_locked_before_anything_else(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_store(postgresql_url) as store:
        with (
            Session(tmp_path / "a", store_or_url=store) as one,
            Session(tmp_path / "b", store_or_url=store) as two,
        ):
            ids = list(one.add_many(Task(jobname=str(n)) for n in range(3)))
            for id_ in ids:
                two.load(id_, add=True)
            identities = [one._index.identity, two._index.identity]
        locked: list[tuple[str, list[bytes]]] = []
        lock = PostgresqlWriter.lock

        def noted(self: PostgresqlWriter, table: str, keys: Any) -> None:
            wanted = list(keys)
            try:
                lock(self, table, wanted)
            except LocksMissing:
                locked.append(("again", []))
                raise
            locked.append((table, sorted(self._sessions) if table == "sessions" else wanted))

        monkeypatch.setattr(PostgresqlWriter, "lock", noted)
        task: Any = store.load(ids[0])
        task.state = "CHANGED"
        store.save(task)
        after = locked[locked.index(("again", [])) + 1 :]
        assert after[0] == ("sessions", sorted(identities))
        assert ("again", []) not in after
    for name in "ab":
        with Session(tmp_path / name) as session:
            assert session.stats() == {"CHANGED": 1, "NEW": 2}
        check(tmp_path / name)


def test_threads_share_what_is_read_ahead(postgresql_url: str, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(session: Session, number: int) -> None:
        try:
            for n in range(40):
                id_ = session.add(Task(state=f"{number}{n % 3}"))
                if n % 4 == 0:
                    session.remove(id_)
        except BaseException as error:
            failures.append(error)

    with make_store(postgresql_url) as store:
        sessions = [Session(tmp_path / str(n), store_or_url=store) for n in range(2)]
        threads = [threading.Thread(target=work, args=(sessions[n % 2], n)) for n in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for session in sessions:
            session.close()
    for n in range(2):
        assert len(check(tmp_path / str(n))) == 60


# -- how often the server is waited for ---------------------------------------------


def waits(session: Session, call: Callable[[], object], trace: Path) -> int:
    """Return how often the server was waited for in a call."""
    [connection] = session.store.tables._connections._idle  # type: ignore[attr-defined]
    with open(trace, "wb") as file:
        connection.pgconn.trace(file.fileno())
        call()
        connection.pgconn.untrace()
    [same] = session.store.tables._connections._idle  # type: ignore[attr-defined]
    assert same is connection
    return trace.read_text().count("\tReadyForQuery\t")


def test_calls_wait_for_the_server_few_times(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        ids = [session.add(Task()) for _ in range(10)]
        session.add_many([Simulation() for _ in range(5000)])
        ids.append(session.add(Task()))
        tasks = list(session)[:1000]
        for task in tasks[:10]:
            task.state = "A"
        session.save_all()
        trace = tmp_path / "trace"
        waits(session, lambda: session.add(Task()), trace)
        assert waits(session, lambda: session.add(Task()), trace) == 2, "an INSERT in a transaction has three"
        assert waits(session, lambda: len(session), trace) <= 2
        for task in tasks:
            task.state = "A"
        assert waits(session, session.save_all, trace) < 30
        assert waits(session, lambda: session.remove_many(ids), trace) < 30
        assert waits(session, lambda: session.add_many([Simulation() for _ in range(5000)]), trace) < 30
        assert session.stats() == {"A": 990, "NEW": 9012}
