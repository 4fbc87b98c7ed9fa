"""A writer killed at any instant: what had returned is there whole, and the session is consistent."""

from __future__ import annotations

import os
import random
import time
import warnings
from itertools import islice
from pathlib import Path

import pytest
from children import Child, Died
from consistency import check
from examples import Simulation
from killed_writer import Holds, held, plans, told, write

from gc3session import Error, MirrorWarning, Session, Task

KILLS, KILLS_IN_LONG_FORM = 200, 5000
LIVES = 25
"""Writers that follow one another in one session."""

PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_writer_leaves_all_that_had_returned_whole_and_a_consistent_session(
    tmp_path: Path, part: int, long_form: bool
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    kills = (KILLS_IN_LONG_FORM if long_form else KILLS) // PARTS
    print(f"seed {seed}")
    killed, life = 0, 0
    while killed < kills:
        path = tmp_path / f"session {life // LIVES}"
        if life % LIVES == 0:
            holds: Holds = {}
        killed_now, holds = one_life(path, seed + life, holds)
        killed += killed_now
        life += 1


def one_life(path: Path, seed: int, holds: Holds) -> tuple[bool, Holds]:
    """Run a writer, kill it, and check; return whether it was killed at work, and what its session holds."""
    lines, was_killed = run_and_kill(path, seed, holds, random.Random(f"{seed}/wait").uniform(0, 0.1))
    assert was_killed, f"seed {seed}: the writer had ended by itself"
    done, tried = lines.count("done"), lines.count("try")
    steps = [holds, *(after for _, after in islice(plans(seed, holds), tried))]
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)  # nobody has edited it: it is mended without a word
        with Session(path) as session:
            found = held(session)
    assert found in steps[done : tried + 1], (
        f"seed {seed}: {len(found)} tasks are no state between {done} and {tried}"
    )
    check(path)
    return was_killed, found


def run_and_kill(path: Path, seed: int, holds: Holds, seconds: float) -> tuple[list[str], bool]:
    """Return what a writer told until it was killed, *seconds* after its birth, and whether that ended it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    child = Child(write, path, seed, holds, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        time.sleep(seconds)  # the instant is random on purpose; nothing is expected to have happened by then
        child.kill()
        lines = told(pipe.read())
    try:
        child.result()
    except Died as died:
        return lines, died.status == -9
    return lines, False


def test_writer_killed_while_it_makes_the_session_leaves_one_that_opens(tmp_path: Path, long_form: bool) -> None:
    for i in range(400 if long_form else 60):
        path = tmp_path / str(i)
        child = Child(make_and_add, path)
        time.sleep(random.uniform(0, 0.012))
        child.kill()
        with pytest.raises(Died):
            child.result()
        left = os.listdir(path) if path.exists() else []
        try:
            with Session(path) as session:
                assert len(session) == len(list(session))
                session.add(Task())
        except Error as error:
            error.add_note(f"what the writer has left: {left}")
            raise
        check(path)


def make_and_add(path: Path) -> None:
    """Make a session and add to it until killed."""
    session = Session(path)
    while True:
        session.add(Simulation(mesh="m"))
        session.close()
        session = Session(path)


def test_killed_writer_does_not_stop_another_one(tmp_path: Path, long_form: bool) -> None:
    path = tmp_path / "session"
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


def test_batch_is_lost_whole_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "session"
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
            if i == 100:
                os.write(tell, b"reading\n")
