"""What happens around a session while it is used: forks, threads, copies, moves, full disks."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from children import Died, in_child, run_python
from consistency import check, read_mirror
from gc3session import (
    ConflictError,
    InvalidArgument,
    MirrorWarning,
    NotFound,
    Session,
    StoreFull,
    Task,
    TaskCollection,
    WriteError,
    make_store,
)
from mounts import mount, unmount

# -- threads ------------------------------------------------------------------


def test_change_by_another_thread_during_save_all_is_not_lost(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        tasks = [Task(extra={n: n for n in range(200)}) for _ in range(100)]
        session.add_many(tasks)

        def change() -> None:
            for n in range(40):
                for task in tasks:
                    task.returncode = n

        thread = threading.Thread(target=change)
        thread.start()
        while thread.is_alive():
            session.save_all(flush=False)
        thread.join()
        session.save_all()
        with Session(tmp_path / "s", read_only=True) as other:
            assert [task.returncode for task in other] == [39] * len(tasks)


def test_threads_that_make_one_session_at_once_share_it(tmp_path: Path) -> None:
    for n in range(10):
        path = tmp_path / str(n)
        failures: list[BaseException] = []
        barrier = threading.Barrier(5)

        def make(path: Path = path, failures: list[BaseException] = failures, barrier: Any = barrier) -> None:
            barrier.wait()
            try:
                with Session(path) as session:
                    session.add(Task())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=make) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(check(path)) == 5


# -- fork ---------------------------------------------------------------------


def test_forks_beside_threads_that_read_and_write_disturb_neither(tmp_path: Path) -> None:
    def attempt() -> list[str]:
        failures: list[str] = []
        stop = threading.Event()
        session = Session(tmp_path / "s")
        session.add_many(Task(state="A") for _ in range(5000))

        def work(write: bool) -> None:
            while not stop.is_set():
                try:
                    if write:
                        session.add_many([Task(state="B") for _ in range(20)])
                    else:
                        assert len(list(session.ids())) >= 5000
                        assert session.stats()["A"] == 5000
                except BaseException as error:
                    failures.append(repr(error))
                    return

        threads = [threading.Thread(target=work, args=(write,)) for write in (False, True, True)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        stop.set()
        for thread in threads:
            thread.join()
        session.close()
        return failures

    assert in_child(attempt) == []
    check(tmp_path / "s")


def test_fork_while_another_thread_makes_stores_leaves_no_lock_held(tmp_path: Path) -> None:
    def attempt() -> bool:
        session = Session(tmp_path / "s")
        session.add(Task())
        made: list[Any] = []
        entered, forking = threading.Event(), threading.Event()

        def hold() -> None:
            with session.transaction():
                entered.set()
                forking.wait()
                made.extend(make_store(tmp_path / f"store{n}") for n in range(20))

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait()
        threading.Timer(0.05, forking.set).start()  # the fork waits for the transaction, however early it comes
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        thread.join()
        adder = threading.Thread(target=session.add, args=(Task(),), daemon=True)
        adder.start()
        adder.join(60)
        return not adder.is_alive()

    assert in_child(attempt)


def test_child_sees_what_its_parent_has_not_flushed_as_not_stored(tmp_path: Path) -> None:
    session = Session(tmp_path / "s")
    old, new = Task(jobname="old"), Task(jobname="new")
    session.add(old)
    old.jobname = "older"
    session.save_all(flush=False)
    session.add(new, flush=False)

    def attempt() -> tuple[Any, ...]:
        return new.persistent_id, old.changed, len(session), session.save(old)

    assert in_child(attempt) == (None, True, 1, "Task.1")
    with pytest.raises(ConflictError):
        session.flush()  # the child was faster
    session.refresh(old)
    session.close()
    assert len(check(tmp_path / "s")) == 2


# -- copies and moves ---------------------------------------------------------


def test_copy_of_a_session_is_another_session(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session:
        session.add(Task(jobname="both"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Session(tmp_path / "a") as a, Session(tmp_path / "b") as b:
        ta, tb = Task(jobname="a"), Task(jobname="b")
        assert a.add(ta) == b.add(tb)
        assert ta != tb
        assert ta not in b
        with pytest.raises(InvalidArgument):
            b.add(ta)
        assert [task.jobname for task in b] == ["both", "b"]
    check(tmp_path / "a")
    check(tmp_path / "b")


@pytest.mark.parametrize("remade", [False, True])
def test_session_that_was_moved_while_open_refuses_to_add(tmp_path: Path, remade: bool) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add(Task(jobname="old"))
    path.rename(tmp_path / "moved")
    if remade:
        with Session(path) as other:
            other.add(Task(jobname="new"))
    task = Task()
    with pytest.raises(WriteError, match="moved, destroyed or made anew"):
        session.add(task)
    assert task.persistent_id is None
    session.store.discard()
    assert len(check(tmp_path / "moved")) == 1
    if remade:
        assert len(check(path)) == 1


def test_session_that_another_process_destroyed_and_made_again_is_not_written_by_the_old_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add(Task())
    script = """
        import sys
        from gc3session import Session, Task

        Session(sys.argv[1]).destroy()
        with Session(sys.argv[1]) as session:
            session.add_many(Task(jobname="x") for _ in range(5))
    """
    run_python(script, path)
    with pytest.raises(WriteError, match="moved, destroyed or made anew"):
        session.add(Task())
    with Session(path) as again:
        assert len(again) == 5
        again.add(Task())
    session.store.discard()
    assert len(check(path)) == 6


def test_session_made_anew_elsewhere_is_not_written_by_the_old_one(tmp_path: Path) -> None:
    old = Session(tmp_path / "s")
    old.add(Task())
    with Session(tmp_path / "s", load=False) as new:
        with pytest.raises(WriteError, match="made anew"):
            old.add(Task())
        new.add(Task())
        assert len(new) == 1
    old.close()
    assert len(check(tmp_path / "s")) == 1


def test_session_reached_by_a_symbolic_link_is_destroyed_whole(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    session = Session(tmp_path / "link")
    session.add(Task())
    session.destroy()
    assert os.listdir(tmp_path) == []


def test_session_with_its_store_elsewhere_leaves_nothing_there_when_destroyed(tmp_path: Path) -> None:
    session = Session(tmp_path / "s", store_or_url=tmp_path / "store")
    session.add(TaskCollection(tasks=[Task()]))
    with pytest.raises(InvalidArgument), session.transaction():
        session.destroy()
    session.destroy()
    with make_store(tmp_path / "store") as store, store.reading() as reader:
        assert list(store.list()) == []
        assert reader.scan("sessions", b"") == []


# -- objects that others have changed -----------------------------------------


def test_forced_save_of_a_removed_record_is_a_conflict_for_those_who_loaded_it_before(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as a, Session(tmp_path / "s") as b, Session(tmp_path / "s") as c:
        id_ = a.add(Task())
        ta, tb = a.load(id_), b.load(id_)
        c.remove(id_)
        ta.jobname = "forced"
        a.save(ta, force=True)
        tb.jobname = "other"
        with pytest.raises(ConflictError):
            b.save(tb)


def test_refresh_of_a_removed_record_frees_the_session_of_it(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session, Session(tmp_path / "a") as other:
        id_ = session.add(Task())
        task = session.load(id_)
        other.remove(id_)
        task.jobname = "changed"
        for flush in (True, False):
            with pytest.raises(ConflictError):
                session.save_all(flush=flush)
                session.flush()
        with pytest.raises(NotFound):
            session.refresh(task)
        assert task.persistent_id is None
        session.save_all()
        assert session.add(task) != id_


def test_two_objects_of_one_record_never_overwrite_each_other(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        id_ = session.add(Task())
        first = session.load(id_)
        session.store.invalidate_cache()
        second = session.load(id_)
        first.jobname, second.jobname = "first", "second"
        with pytest.raises(ConflictError):
            session.save_all()
        session.save(first)
        with pytest.raises(ConflictError):
            session.save(second)
        session.refresh(second)
        assert second.jobname == "first"


def test_change_of_a_task_whose_removal_is_undone_is_kept(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        task = Task()
        id_ = session.add(task)
        with pytest.raises(ZeroDivisionError), session.transaction():
            session.remove(id_)
            task.jobname = "changed"
            raise ZeroDivisionError
        session.save_all()
        with Session(tmp_path / "s", read_only=True) as other:
            assert other[id_].jobname == "changed"


def test_forced_save_over_a_damaged_record_leaves_one_state(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        task = Task(state="RUNNING")
        id_ = session.add(task)
        session.store.tables.write(lambda writer: writer.put("records", [((1).to_bytes(8, "big"), b"damaged")]))
        task.state = "DONE"
        assert session.save(task, force=True) == id_
        assert session.stats() == {"DONE": 1}
    check(tmp_path / "s")


def test_batch_of_a_failed_transaction_takes_no_room(tmp_path: Path) -> None:
    with Session(tmp_path / "s", batch_bytes=100_000) as session:
        with pytest.raises(ZeroDivisionError), session.transaction():
            session.add(Task(extra={"big": "x" * 400_000}))
            raise ZeroDivisionError
        for _ in range(3):
            session.add(Task(), flush=False)
        with Session(tmp_path / "s", read_only=True) as other:
            assert len(other) == 0


# -- warnings and full disks --------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_warning_that_is_an_error_comes_when_all_is_done(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        ids = session.add_many(Task() for _ in range(3))
    (path / "session_ids.txt").write_text("edited\n")
    with pytest.raises(MirrorWarning):
        Session(path)
    with Session(path) as session:
        assert read_mirror(path) == list(session.tasks) == list(ids)
        (path / "session_ids.txt").write_text("edited\n")
        task = Task()
        with pytest.raises(MirrorWarning):
            session.add(task)
        assert task in session
    check(path)


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB, of which some 100 KiB are left."""
    place = tmp_path / "small"
    mount(place, "size=1m")
    try:
        yield place
    finally:
        unmount(place)


@pytest.mark.parametrize("left", [4096 * n for n in (4, 8, 12, 16, 20, 24, 28, 40)])
def test_first_write_on_a_full_disk_is_an_error_and_can_be_done_again(small_filesystem: Path, left: int) -> None:
    path, filler = small_filesystem / "s", small_filesystem / "filler"

    def attempt() -> str:
        with Session(path) as session:
            filler.write_bytes(b"")
            with open(filler, "r+b") as file:
                file.truncate(0)
                room = os.statvfs(small_filesystem)
                file.write(b"x" * max(0, room.f_bavail * room.f_frsize - left))
                file.flush()
            task = Task()
            try:
                session.add(task)
            except StoreFull:
                assert task.persistent_id is None
                filler.unlink()
                session.add(task)
                return "full"
            filler.unlink()
            return "enough"

    try:
        assert in_child(attempt) in ("full", "enough")
    except Died as death:
        pytest.fail(f"the process died: {death}")
    assert len(check(path)) == 1


def test_without_a_lock_nothing_is_written_however_often_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with Session(tmp_path / "s") as session:
        session.add(Task())
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", flock)
            for _ in range(3):
                with pytest.raises(WriteError, match="can't be locked"):
                    session.add(Task())
        assert len(session) == 1
        session.add(Task())
    assert len(check(tmp_path / "s")) == 2
