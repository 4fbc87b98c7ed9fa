"""The mirror of a session on a server: no commit waits for it, and it is right after a flush."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gc3session.index.server_mirror
from children import Child, in_child, run_python
from consistency import check, read_mirror
from gc3session import CorruptStore, MirrorWarning, Session, Task


@pytest.fixture
def path(postgresql_url: str, tmp_path: Path) -> Path:
    """The directory of a session on the server with one task."""
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        session.add(Task())
    return tmp_path / "session"


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with Session(path) as session:
        yield session


def test_durable_calls_leave_it_as_it_is_until_a_flush(session: Session) -> None:
    ids = [*session.ids(), *(session.add(Task()) for _ in range(3))]
    assert read_mirror(session.path) == ids[:1]
    session.flush()
    assert read_mirror(session.path) == ids
    session.remove(ids.pop(1))
    session.add_many([Task(), Task()])
    session.forget(ids.pop(0))
    session.flush()
    assert read_mirror(session.path) == list(session.ids())
    check(session.path)


def test_closing_and_leaving_with_write_it(path: Path) -> None:
    session = Session(path)
    session.add(Task())
    session.close()
    assert len(read_mirror(path)) == 2
    with Session(path) as session:
        session.add(Task(), flush=False)
    assert len(check(path)) == 3


def test_durable_call_writes_it_when_the_pause_is_over(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror: Any = session._mirror
    mirror._not_before = 0.0
    session.add(Task())
    assert read_mirror(session.path) == list(session.ids())
    session.add(Task())
    assert len(read_mirror(session.path)) == 2
    monkeypatch.setattr(gc3session.index.server_mirror, "_PAUSE", 0.0)
    monkeypatch.setattr(gc3session.index.server_mirror, "_SHARE", 0)
    session.flush()
    for _ in range(3):
        session.add(Task())
        assert read_mirror(session.path) == list(session.ids())


def test_what_changes_no_line_leaves_the_file(session: Session) -> None:
    session.flush()
    before = os.stat(session._directory.mirror)
    for task in session:
        task.state = "CHANGED"
    session.save_all()
    session.flush()
    session.flush()
    after = os.stat(session._directory.mirror)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_program_that_ends_without_closing_writes_it(path: Path) -> None:
    script = """
        import sys
        from gc3session import Session, Task
        session = Session(sys.argv[1])
        session.add(Task())
    """
    run_python(script, path)
    assert len(read_mirror(path)) == 2
    check(path)


def test_killed_program_leaves_it_to_the_next_flush_and_opening_reads_no_index(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_and_die() -> None:
        Session(path).add(Task())
        os._exit(0)

    with pytest.raises(Exception, match="the child ended"):
        in_child(add_and_die)
    assert len(read_mirror(path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(gc3session.index.mirror, "next_block", None)
        session = Session(path)
        session.add(Task())
    session.close()
    assert len(check(path)) == 3


def lock_and_tell(path: Path, tell: int, end: int) -> None:
    descriptor = os.open(path / "store.url", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(tell, b"x")
    os.read(end, 1)


def test_no_commit_waits_for_who_writes_it(session: Session) -> None:
    (told, tell), (wait, go) = os.pipe(), os.pipe()
    child = Child(lock_and_tell, Path(session.path), tell, wait)
    os.read(told, 1)
    session.add(Task())
    session.add_many([Task(), Task()])
    os.write(go, b"x")
    child.result()
    session.flush()
    assert len(check(session.path)) == 4


def test_row_says_nothing_of_a_file_that_was_written_before_another_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(path) as session, Session(path) as other:
        store_write = session.store.write

        def write_after_other(*args: Any, **options: Any) -> None:
            monkeypatch.setattr(session.store, "write", store_write)
            other.add(Task())
            store_write(*args, **options)

        session.add(Task())
        monkeypatch.setattr(session.store, "write", write_after_other)
        session.flush()
        assert len(read_mirror(path)) == 2
        session.flush()
        assert len(read_mirror(path)) == 3
    check(path)


def test_two_directories_of_one_session_follow_by_turns(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy")
    with Session(path) as one, Session(tmp_path / "copy") as two:
        for _ in range(3):
            for mine in (one, two):
                mine.add(Task())
                mine.flush()
                assert read_mirror(mine.path) == list(mine.ids())
    for each in (path, tmp_path / "copy"):
        Session(each).close()
        check(each)


def test_durable_call_is_done_whatever_becomes_of_the_mirror(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror: Any = session._mirror
    mirror._not_before = 0.0
    os.mkdir(f"{session._directory.mirror}.tmp")
    with pytest.warns(MirrorWarning, match="the tasks are stored"):
        id_ = session.add(Task())
    assert id_ in session
    os.rmdir(f"{session._directory.mirror}.tmp")
    mirror._not_before = 0.0

    def fail(*_: object) -> None:
        raise CorruptStore("the index can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(gc3session.index.mirror, "next_block", fail)
        other = session.add(Task())
        with pytest.raises(CorruptStore):
            session.flush()
    assert other in session
    session.flush()
    assert len(check(session.path)) == 3
