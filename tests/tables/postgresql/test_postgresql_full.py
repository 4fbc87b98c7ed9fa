"""The server's disk, or its memory, is really full: what was acknowledged is there, the rest is kept, and written once there is room."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import gc3session.tables.postgresql.connections
from consistency import check
from examples import Simulation
from gc3session import CommitUnknown, Session, StoreFull, StoreUnreachable, Task, WriteError, make_store
from mounts import mount, unmount
from postgresql_server import Server, server_user

MIB = 1 << 20


class Disk:
    """A filesystem of its own for a part of a server."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        mount(place, f"size={size},mode=700")
        user = server_user()
        assert user is not None
        os.chown(place, user.pw_uid, user.pw_gid)

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)

    def free(self) -> int:
        status = os.statvfs(self.place)
        return status.f_bavail * status.f_frsize

    def unmount(self) -> None:
        unmount(self.place)


def record_until_it_fails(session: Session, acknowledged: list[str]) -> WriteError:
    """Add tasks, and note the names of those whose calls have returned; return why one has not."""
    for n in range(10_000):
        tasks = [Simulation(jobname=f"{n}/{i}", extra={"x": secrets.token_hex(400)}) for i in range(50)]
        try:
            if n % 2:
                session.add_many(tasks)
            else:
                for task in tasks:
                    session.add(task, flush=False)
                session.flush()
        except WriteError as error:
            return error
        acknowledged += [task.jobname for task in tasks]
    raise AssertionError("it is never full")


@pytest.fixture
def full_tablespace(postgresql: Server, servers: Path) -> Iterator[tuple[str, Disk]]:
    """The URL of a store whose tables have a small disk for themselves."""
    name = f"small{secrets.token_hex(4)}"
    disk = Disk(servers / name, 4 * MIB)
    try:
        with postgresql.connect() as connection:
            connection.execute(
                sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(
                    sql.Identifier(name), sql.Literal(str(disk.place))
                )
            )
            yield f"{postgresql.url()}&schema={name}&options=-c%20default_tablespace%3D{name}", disk
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))
    finally:
        disk.unmount()


def test_full_disk_of_the_tables_keeps_the_batch(full_tablespace: tuple[str, Disk], tmp_path: Path) -> None:
    url, disk = full_tablespace
    with Session(tmp_path / "other", store_or_url=url) as other:
        theirs = [other.add(Task(jobname="theirs"))]
    session = Session(tmp_path / "session", store_or_url=url)
    names: list[str] = []
    failure = record_until_it_fails(session, names)
    assert isinstance(failure, StoreFull)
    assert "make room on the server and call again" in str(failure)
    assert "No space left" in str(failure)
    assert names, "there was no room from the beginning"
    with Session(tmp_path / "session", read_only=True) as again:
        assert [task.jobname for task in again] == names
        assert list(again.check()) == []
    with Session(tmp_path / "other") as other:
        assert list(other.tasks) == theirs
    names = [task.jobname for task in session]  # with the batch
    for _ in range(2):
        with pytest.raises(StoreFull):
            session.flush()
    assert [task.jobname for task in session] == names
    disk.resize(64 * MIB)
    session.flush()
    session.add(Task(jobname="afterwards"))
    assert [task.jobname for task in session] == [*names, "afterwards"]
    session.close()
    check(tmp_path / "session")
    check(tmp_path / "other")


SEGMENTS = {"max_wal_size": "4MB", "min_wal_size": "2MB"}


@pytest.fixture
def full_log(servers: Path) -> Iterator[tuple[Server, Disk]]:
    """A server whose write-ahead log has a small disk for itself."""
    directory = servers / secrets.token_hex(4)
    directory.mkdir()
    disk = Disk(directory / "disk", 32 * MIB)
    try:
        server = Server.made(directory / "server", "--waldir", str(disk.place / "wal"), "--wal-segsize=1")
        server.start(**SEGMENTS)
        yield server, disk
        server.delete()
    finally:
        disk.unmount()


def test_full_disk_of_the_log_ends_the_server_and_loses_nothing(
    full_log: tuple[Server, Disk], tmp_path: Path
) -> None:
    server, disk = full_log
    session = Session(tmp_path / "session", store_or_url=server.url(), patience=0.5)
    names = ["first"]
    session.add(Task(jobname="first"))
    filler = disk.place / "filler"
    filler.write_bytes(bytes(disk.free() - MIB // 2))
    failure = record_until_it_fails(session, names)
    # Some releases end at once, others refuse the transaction first.
    assert isinstance(failure, CommitUnknown | StoreFull)
    for _ in range(2):
        with pytest.raises((StoreUnreachable, CommitUnknown, StoreFull)):
            session.flush()
    filler.unlink()
    server.stop()
    server.start(**SEGMENTS)
    session.flush()
    found = [task.jobname for task in session]
    assert found[: len(names)] == names
    assert 0 < len(found) - len(names) <= 50, "the batch whose commit was unknown"
    assert len(set(found)) == len(found)
    session.close()
    check(tmp_path / "session")


@pytest.fixture
def cramped(servers: Path) -> Iterator[Server]:
    """A server with little memory for the order of transactions: one that lasts long fills it."""
    server = Server.made(servers / secrets.token_hex(4))
    server.start(max_connections="10", max_pred_locks_per_transaction="10", shared_buffers="16MB")
    yield server
    server.delete()


def test_memory_of_the_server_is_full_while_a_transaction_lasts(
    cramped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{cramped.url()}&schema=jobs"

    def lasts(connection: psycopg.Connection[Any]) -> None:
        connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        connection.execute("SELECT FROM jobs.meta")

    with make_store(url, patience=0.1) as store, Session(tmp_path / "session", store_or_url=store) as session:
        session.add(Task())
        with cramped.connect() as connection:
            lasts(connection)
            with pytest.raises(StoreFull, match="end transactions that have been open for long"):
                for _ in range(20_000):
                    session.add(Task())
        session.flush()
        number = sum(1 for _ in session)

    with Session(tmp_path / "session") as session, cramped.connect() as connection:
        assert len(session) == number
        lasts(connection)
        wait = gc3session.tables.postgresql.connections.Patience.wait

        def end_and_wait(self: gc3session.tables.postgresql.connections.Patience) -> bool:
            connection.execute("ROLLBACK")
            return wait(self)

        monkeypatch.setattr(gc3session.tables.postgresql.connections.Patience, "wait", end_and_wait)
        added = 0
        while connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            session.add(Task())
            added += 1
        assert len(session) == number + added
    check(session.path)
