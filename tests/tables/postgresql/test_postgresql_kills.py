"""The server, or the process of it that serves a writer, is killed: no task that was added is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from children import Child
from consistency import check
from examples import Simulation
from gc3session import CommitUnknown, Session, StoreUnreachable, Task, make_store
from gc3session.tables.postgresql.statements import Statements
from gc3session.tables.postgresql.transaction import PostgresqlWriter
from postgresql_server import Server

WRITERS = 4


def add_and_tell(path: Path, process: int, count: int, tell: int) -> None:
    """Add tasks in several ways, and tell the names of those whose call has returned."""
    with Session(path) as session:
        number = 0
        while number < count:
            tasks = [Simulation(jobname=f"{process}/{number + n}", steps=number + n) for n in range(7)]
            number += len(tasks)
            while True:
                try:
                    add(session, tasks, number % 2 == 0)
                    break
                except StoreUnreachable:  # lost in the middle of a read: nothing has been done
                    continue
            os.write(tell, "".join(f"{task.jobname}\n" for task in tasks).encode())


def add(session: Session, tasks: list[Simulation], whole: bool) -> None:
    if not whole:
        session.add_many(tasks)
        return
    with session.transaction():
        for task in tasks:
            session.add(task)
    session.add(tasks[0])  # it is there: this adds nothing


def kill_a_backend(server: Server) -> None:
    for pid in server.backends()[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_and_start(server: Server) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("kill", [kill_and_start, kill_a_backend])
def test_server_killed_under_four_writers_has_each_task_whose_call_returned_once(
    server: Server, tmp_path: Path, kill: Callable[[Server], None], long_form: bool
) -> None:
    count = 20_000 if long_form else 700
    path = tmp_path / "session"
    Session(path, store_or_url=server.url()).close()
    alone = tmp_path / "alone"
    Session(alone, store_or_url=server.url()).close()
    reader, writer = os.pipe()
    children = [Child(add_and_tell, alone if i == 0 else path, i, count, writer) for i in range(WRITERS)]
    os.close(writer)
    done = b""
    with open(reader, "rb", buffering=0) as pipe:
        kills = 0
        while piece := pipe.read(65536):
            done += piece
            if done.count(b"\n") > (kills + 1) * count * WRITERS // 5 and kills < 4:
                kills += 1
                kill(server)
    for child in children:
        child.result()
    assert kills >= 3, "the writers had ended before the server was killed"
    acknowledged = done.decode().splitlines()
    assert len(acknowledged) == len(set(acknowledged)) == count * WRITERS
    with Session(path) as session, Session(alone) as other:
        names = [task.jobname for task in session]
        others = [task.jobname for task in other]
    assert sorted(names + others) == sorted(acknowledged)
    assert set(others) == {name for name in acknowledged if name.startswith("0/")}
    check(path)
    check(alone)


class LostAtCommit:
    """A connection that is cut just before, or just after, the server commits."""

    def __init__(self, server: Server, before: bool) -> None:
        self.server = server
        self.before = before
        self.cuts = 0

    def install(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        commit = PostgresqlWriter.commit

        def cut(writer: PostgresqlWriter, token: bytes, former: list[bytes], flushed_later: bool) -> None:
            if self.cuts >= times:
                commit(writer, token, former, flushed_later)
                return
            self.cuts += 1
            pid = writer.connection.info.backend_pid
            if self.before:
                os.kill(pid, signal.SIGTERM)
                commit(writer, token, former, flushed_later)
            else:
                commit(writer, token, former, flushed_later)
                os.kill(pid, signal.SIGTERM)
                while True:  # until the server has gone: the answer to the commit is as good as lost
                    writer.connection.execute(b"SELECT 1")

        monkeypatch.setattr(PostgresqlWriter, "commit", cut)


@pytest.mark.parametrize("before", [True, False])
def test_connection_lost_at_the_commit_neither_loses_nor_doubles(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    with Session(tmp_path / "session", store_or_url=server.url()) as session:
        ids = [session.add(Task(jobname="first"))]
        cut = LostAtCommit(server, before)
        cut.install(monkeypatch, times=3)
        ids.append(session.add(Task(jobname="second")))
        ids += session.add_many(Task(jobname=f"n{i}") for i in range(1000))
        task = session.load(ids[0])
        task.state = "RUNNING"
        session.save_all()
        session.remove(ids[1])
        assert cut.cuts == 3
        assert list(session.tasks) == [ids[0], *ids[2:]]
        assert session.stats() == {"NEW": 1000, "RUNNING": 1}
    check(tmp_path / "session")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("way", ["add", "add_many", "transaction", "flush"])
def test_commit_whose_outcome_nobody_can_tell_is_settled_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, way: str
) -> None:
    """A durable call has been done or has done nothing; what `flush=False` has accepted is kept."""
    session = Session(tmp_path / "session", store_or_url=server.url(), patience=0.1)
    first = session.load(session.add(Task(jobname="first")))
    commit = PostgresqlWriter.commit

    def die(writer: PostgresqlWriter, token: bytes, former: list[bytes], flushed_later: bool) -> None:
        if not before:
            commit(writer, token, former, flushed_later)
        server.kill()
        writer.connection.execute(b"SELECT 1")

    def call(task: Task) -> None:
        if way == "add":
            session.add(task)
        elif way == "add_many":
            session.add_many([task])
        elif way == "transaction":
            with session.transaction():
                first.state = "CHANGED"
                session.save(first)
                session.add(task)
        else:
            session.flush()

    task = Task(jobname="second")
    if way == "flush":
        session.add(task, flush=False)
    with monkeypatch.context() as patch:
        patch.setattr(PostgresqlWriter, "commit", die)
        with pytest.raises(CommitUnknown, match="call again"):
            call(task)
    with pytest.raises(StoreUnreachable):
        session.add(Task(jobname="third"))
    with pytest.raises(StoreUnreachable):
        len(session)
    server.start()
    done = not before or way == "flush"
    assert len(session) == 1 + done
    assert (task.persistent_id is not None) == done
    session.flush()
    assert len(list(Session(tmp_path / "session", read_only=True))) == 1 + done
    call(task)
    assert first.state == ("CHANGED" if way == "transaction" else "NEW")
    third = session.add(Task(jobname="third"))
    assert list(session.tasks) == [first.persistent_id, task.persistent_id, third]
    assert session.stats() == ({"CHANGED": 1, "NEW": 2} if way == "transaction" else {"NEW": 3})
    session.close()
    assert check(tmp_path / "session") == [first.persistent_id, task.persistent_id, third]


class Interrupted(BaseException):
    """What the handler of a signal raises."""


@pytest.mark.parametrize("before", [True, False])
def test_interruption_of_the_wait_for_a_server_that_was_lost_while_it_committed_doubles_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    session = Session(tmp_path / "session", store_or_url=server.url())
    ids = [session.add(Task(jobname="first"))]
    commit = PostgresqlWriter.commit

    def die(writer: PostgresqlWriter, token: bytes, former: list[bytes], flushed_later: bool) -> None:
        if not before:
            commit(writer, token, former, flushed_later)
        server.kill()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        writer.connection.execute(b"SELECT 1")

    def interrupt(*_: object) -> None:
        raise Interrupted

    ids += [session.add(Task(jobname=f"n{i}"), flush=False) for i in range(400)]
    with monkeypatch.context() as patch:
        patch.setattr(PostgresqlWriter, "commit", die)
        former = signal.signal(signal.SIGALRM, interrupt)
        with pytest.raises(Interrupted):
            session.flush()
        signal.signal(signal.SIGALRM, former)
    server.start()
    ids.append(session.add(Task(jobname="last"), flush=False))
    session.close()
    assert check(tmp_path / "session") == ids


def test_an_unknown_commit_of_numbers_is_none_of_the_batch(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that may have been taken are not used; what waits in the batch is not taken for written."""
    session = Session(tmp_path / "session", store_or_url=server.url(), patience=0.1)
    ids = [session.add(Task()), session.add(Task(jobname="waits"), flush=False)]
    session.store.sequence.reset()  # the next task needs new numbers
    commit = PostgresqlWriter.commit

    def die(writer: PostgresqlWriter, token: bytes, former: list[bytes], flushed_later: bool) -> None:
        commit(writer, token, former, flushed_later)
        server.kill()
        writer.connection.execute(b"SELECT 1")

    for flush in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(PostgresqlWriter, "commit", die)
            with pytest.raises(CommitUnknown):
                session.add(Task(), flush=flush)
        server.start()
    ids.append(session.add(Task()))
    session.close()
    assert check(tmp_path / "session") == ids


def test_batch_is_kept_while_the_server_is_away(server: Server, tmp_path: Path) -> None:
    session = Session(tmp_path / "session", store_or_url=server.url(), patience=0.1)
    session.add(Task())
    ids = [session.add(Task(jobname=f"n{i}"), flush=False) for i in range(10)]
    server.kill()
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            session.flush()
    server.start()
    session.flush()
    assert list(session.tasks)[1:] == ids
    session.close()
    check(tmp_path / "session")


def test_transaction_that_is_prevented_can_never_commit(server: Server, tmp_path: Path) -> None:
    """The old one is still open in the server when it is asked for: it waits, and then can't be committed."""
    store = make_store(server.url())
    store.save(Task())
    tables = store.tables
    token = secrets.token_bytes(16)
    with server.connect() as old:
        old.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        schema = sql.Identifier("gc3session", "commits")
        insert = sql.SQL("INSERT INTO {} (token, through) VALUES (%s, true)").format(schema)
        assert tables._resolve(token) is False  # type: ignore[attr-defined]
        with pytest.raises(psycopg.errors.UniqueViolation):
            old.execute(insert, (token,))
        assert tables._resolve(token) is False  # type: ignore[attr-defined]
        old.execute("ROLLBACK")
        other = secrets.token_bytes(16)
        old.execute(insert, (other,))
        assert tables._resolve(other) is True  # type: ignore[attr-defined]
    store.close()


def failing_once(what: str, statements: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return what gives a statement that fails in the place of the first that does this, and then the right ones."""
    texts = [b"SELECT 1 / (length(%b::bytea) - 16)"]
    return lambda self, asked, table="": texts.pop() if asked == what and texts else statements(self, asked, table)


@pytest.mark.parametrize("failing", [False, True], ids=["", "flush fails"])
def test_what_has_returned_is_on_the_servers_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """The commit itself doesn't wait for it; what comes behind it does, or whoever asks what became of the commit."""
    server.stop()
    server.start(wal_writer_delay="10s")  # so that nobody else flushes it
    path, names = tmp_path / "session", list[str]()
    Session(path, store_or_url=server.url()).close()
    for n in range(4):
        with Session(path) as session:
            session.add(Task(jobname=f"before {n}"))
            names += [f"before {n}", f"task {n}"]
            with monkeypatch.context() as patch:
                if failing:
                    patch.setattr(Statements, "__call__", failing_once("flush", Statements.__call__))
                session.add(Task(jobname=f"task {n}"))
            server.kill()
            server.start(wal_writer_delay="10s")
            assert [task.jobname for task in session] == names
    check(path)
