"""A process killed while it makes, writes or reads a session.  tools/crashkit kills many at once, at random."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmdb
from children import Child, Died, in_child
from consistency import check
from examples import Simulation
from gc3session import Error, Session, Task, check_session

ON_EVERY_STORE = True


def test_writer_killed_while_it_makes_the_session_leaves_one_that_opens(
    tmp_path: Path, store_kind: str, request: pytest.FixtureRequest, long_form: bool
) -> None:
    distant = store_kind != "lmdb"
    urls: Iterator[str | None] = request.getfixturevalue("postgresql_urls") if distant else itertools.repeat(None)
    for i in range(400 if long_form else 8 if distant else 60):
        path, url = tmp_path / str(i), next(urls)
        child = Child(make_and_add, path, url)
        time.sleep(random.uniform(0, 0.2 if distant else 0.012))
        child.kill()
        with pytest.raises(Died):
            child.result()
        left = os.listdir(path) if path.exists() else []
        try:
            with Session(path, store_or_url=url) as session:
                assert len(session) == len(list(session))
                session.add(Task())
        except Error as error:
            error.add_note(f"what the writer has left: {left}")
            raise
        check(path)


def make_and_add(path: Path, url: str | None) -> None:
    """Make a session and add to it until killed."""
    session = Session(path, store_or_url=url)
    while True:
        session.add(Simulation(mesh="m"))
        session.close()
        session = Session(path)


def test_killed_writer_does_not_stop_another_one(path: Path, long_form: bool) -> None:
    with Session(path) as session:
        ids = [session.add(Task())]
        for _ in range(200 if long_form else 20):
            reader, writer = os.pipe()
            child = Child(add_and_tell, path, writer)
            os.close(writer)
            with open(reader, "rb") as pipe:
                pipe.readline()
                ids.append(session.add(Task()))
                child.kill()
                ids.append(session.add(Task()))
                theirs = [
                    line.decode().strip() for line in pipe.read().splitlines(keepends=True) if line.endswith(b"\n")
                ]
            with pytest.raises(Died):
                child.result()
            assert len(set(ids)) == len(ids)
            assert {*ids, *theirs} <= session.list_ids()
    check(path)


def add_and_tell(path: Path, tell: int) -> None:
    """Add tasks until killed, and tell the ID of each that was added."""
    session = Session(path)
    while True:
        os.write(tell, session.add(Simulation()).encode() + b"\n")


def test_batch_is_lost_whole_and_nothing_else(path: Path) -> None:
    reader, writer = os.pipe()
    child = Child(add_and_wait, path, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        kept = pipe.readline().decode().strip()
        assert pipe.readline() == b"the batch is full of tasks\n"
        child.kill()
    with pytest.raises(Died):
        child.result()
    with Session(path) as session:
        assert list(session.tasks) == [kept] == list(session.store.list())
        assert session.stats() == {"NEW": 1}
        assert session.add(Task()) != kept
    check(path)


def add_and_wait(path: Path, tell: int) -> None:
    """Add a task durably and others in the batch, then wait to be killed."""
    session = Session(path)
    kept = session.add(Task())
    for _ in range(1000):
        session.add(Task(), flush=False)
    os.write(tell, f"{kept}\nthe batch is full of tasks\n".encode())
    while True:
        time.sleep(60)


def test_killed_reader_does_not_make_the_file_grow(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add_many(Simulation() for _ in range(2000))
        for _ in range(20):
            reader, writer = os.pipe()
            child = Child(read_and_tell, path, writer)
            os.close(writer)
            with open(reader, "rb") as pipe:
                pipe.readline()
                child.kill()
            with pytest.raises(Died):
                child.result()
    with Session(path) as session:
        [task, *_] = session
        session.save(task, force=True)
        size = (path / "jobs" / "data.mdb").stat().st_size
        for i in range(600):
            task.state = f"state {i}"
            session.save(task)
        grown = (path / "jobs" / "data.mdb").stat().st_size - size
    assert grown < 400_000, "free pages were not used again"
    check(path)


def read_and_tell(path: Path, tell: int) -> None:
    """Read without end."""
    session = Session(path)
    while True:
        for i, _ in enumerate(session):
            if i == 3:
                os.write(tell, b"reading\n")


def test_check_reads_what_readers_see_when_a_writer_was_killed_before_it_had_told_them_of_its_commit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add_many(Task() for _ in range(3))
        session.add(Task())
    reader, writer = os.pipe()
    holder = Child(read_and_tell, path, writer)  # as long as it reads nobody sets lock.mdb right
    os.close(writer)
    with open(reader, "rb") as pipe:
        pipe.readline()
        try:
            in_child(take_back_the_last_commit, path / "jobs")
            assert in_child(kinds_of_findings, path) <= {"mirror"}, "it is newer than what readers see"
        finally:
            holder.kill()
    with pytest.raises(Died):
        holder.result()
    assert in_child(kinds_of_findings, path) == set()


def take_back_the_last_commit(jobs: Path) -> None:
    """Write lock.mdb as it is when a writer is killed after the meta page, before it tells of it there."""
    with lmdb.open(os.fspath(jobs), readonly=True, max_dbs=16) as env:
        newest = env.info()["last_txnid"]
    with open(jobs / "lock.mdb", "r+b") as lock:
        place = lock.read(64).index(newest.to_bytes(8, sys.byteorder))
        lock.seek(place)
        lock.write((newest - 1).to_bytes(8, sys.byteorder))


def kinds_of_findings(path: Path) -> set[str]:
    return {finding.kind for finding in check_session(path)}
