"""The server's disk, or its memory, is really full: what was acknowledged is there, the rest is kept, and written once there is room."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

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


def record_until_it_fails(
    session: Session, acknowledged: list[str], durable: bool
) -> tuple[WriteError, list[Task]]:
    """Add tasks, and note the names of those whose calls have returned; return why one has not, and its tasks."""
    for n in range(10_000):
        tasks: list[Task] = [
            Simulation(jobname=f"{n}/{i}", extra={"x": secrets.token_hex(400)}) for i in range(50)
        ]
        try:
            if durable:
                session.add_many(tasks)
            else:
                for task in tasks:
                    session.add(task, flush=False)
                session.flush()
        except WriteError as error:
            return error, tasks
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


@pytest.mark.parametrize("durable", [True, False])
def test_full_disk_of_the_tables_keeps_the_batch(
    full_tablespace: tuple[str, Disk], tmp_path: Path, durable: bool
) -> None:
    url, disk = full_tablespace
    with Session(tmp_path / "other", store_or_url=url) as other:
        theirs = [other.add(Task(jobname="theirs"))]
    session = Session(tmp_path / "session", store_or_url=url)
    names: list[str] = []
    failure, tasks = record_until_it_fails(session, names, durable)
    assert isinstance(failure, StoreFull)
    assert "make room on the server and call again" in str(failure)
    assert "No space left" in str(failure)
    assert names, "there was no room from the beginning"
    with Session(tmp_path / "session", read_only=True) as other:
        assert [task.jobname for task in other] == names
        assert [finding for finding in other.check() if finding.kind != "mirror"] == []
    with Session(tmp_path / "other") as other:
        assert list(other.tasks) == theirs
    kept = [] if durable else [task.jobname for task in tasks]  # in the batch

    def again() -> object:
        return session.add_many(tasks) if durable else session.flush()

    for _ in range(2):
        assert [task.jobname for task in session] == [*names, *kept]
        with pytest.raises(StoreFull):
            again()
    disk.resize(64 * MIB)
    again()
    names += [task.jobname for task in tasks]
    session.add(Task(jobname="afterwards"))
    assert [task.jobname for task in session] == [*names, "afterwards"]
    session.close()
    check(tmp_path / "session")
    check(tmp_path / "other")


SEGMENTS = {"max_wal_size": "4MB", "min_wal_size": "2MB", "wal_keep_size": "64MB"}
"""Nothing of the log is used again, however slowly it grows."""


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


@pytest.mark.parametrize("durable", [True, False])
def test_full_disk_of_the_log_ends_the_server_and_loses_nothing(
    full_log: tuple[Server, Disk], tmp_path: Path, durable: bool
) -> None:
    server, disk = full_log
    session = Session(tmp_path / "session", store_or_url=server.url(), patience=0.5)
    names = ["first"]
    session.add(Task(jobname="first"))
    filler = disk.place / "filler"
    filler.write_bytes(bytes(disk.free() - MIB // 2))
    failure, tasks = record_until_it_fails(session, names, durable)

    def again() -> object:
        return session.add_many(tasks) if durable else session.flush()

    # Some releases end at once, others refuse the transaction first.
    assert isinstance(failure, CommitUnknown | StoreFull)
    for _ in range(2):
        with pytest.raises((StoreUnreachable, CommitUnknown, StoreFull)):
            again()
    filler.unlink()
    server.stop()
    server.start(**SEGMENTS)
    again()
    assert [task.jobname for task in session] == [*names, *(task.jobname for task in tasks)]
    session.close()
    check(tmp_path / "session")


def test_transaction_that_lasts_on_a_server_with_little_memory_keeps_nobody_from_writing(
    servers: Path, tmp_path: Path
) -> None:
    """The server needn't remember what was read and written beside it."""
    server = Server.made(servers / secrets.token_hex(4))
    try:
        server.start(max_connections="10", max_pred_locks_per_transaction="10", shared_buffers="16MB")
        with (
            make_store(server.url(), patience=0.1) as store,
            Session(tmp_path / "s", store_or_url=store) as session,
        ):
            session.add(Task())
            with server.connect() as connection:
                connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                connection.execute("SELECT FROM gc3session.meta")
                for _ in range(2000):
                    session.add(Task())
        assert len(check(tmp_path / "s")) == 2001
    finally:
        server.delete()
