"""A session that is moved to another store is whole in one of the two at every moment."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gc3session.snapshots.copying
from children import Child, Died, in_child, run_script
from consistency import check
from examples import Simulation
from gc3session import (
    Error,
    InvalidArgument,
    Session,
    Task,
    TaskCollection,
    WriteError,
    diff,
    dump_session,
    migrate_session,
)
from gc3session.store.store import Store
from raw_tables import Raw, n4


def filled(path: Path, count: int = 300) -> Session:
    """Return a session with tasks, a collection, a removed and a forgotten task."""
    session = Session(path)
    ids = session.add_many(Task(jobname=f"task-{n}", extra={"n": n}) for n in range(count))
    session.add(TaskCollection(jobname="both", tasks=[Task(jobname="inner")]))
    session.remove(ids[3])
    session.forget(ids[5])
    return session


def dumped(path: Path) -> bytes:
    """Return the dump of a session but for its next N, of which a kill may have taken some."""
    with Session(path, read_only=True) as session:
        file = io.BytesIO()
        dump_session(session, file)
    return re.sub(rb'"next":\d+', b"", file.getvalue(), count=1)


def migrate(path: Path, url: object) -> None:
    session = Session(path, create=False)
    try:
        migrate_session(session, str(url))
    finally:
        session.close()


def test_a_moved_session_dumps_the_same_bytes_and_can_be_moved_back(tmp_path: Path) -> None:
    path = tmp_path / "a session"
    filled(path).close()
    before, mirror = dumped(path), (path / "session_ids.txt").read_text().split()
    migrate(path, tmp_path / "elsewhere")
    assert dumped(path) == before
    assert sorted(os.listdir(path)) == ["created", "session_ids.txt", "store.url"]
    check(path)
    migrate(path, path / "jobs")
    assert dumped(path) == before
    assert (path / "store.url").read_text().startswith("lmdb:jobs#")
    assert (path / "session_ids.txt").read_text().split() == mirror
    check(path)


def test_a_moved_session_goes_on_with_fresh_numbers(tmp_path: Path) -> None:
    path = tmp_path / "session"
    filled(path).close()
    used = {int(id_.rpartition(".")[2]) for id_ in Session(path, read_only=True).store.list()}
    migrate(path, tmp_path / "elsewhere")
    with Session(path) as session:
        assert int(session.add(Task()).rpartition(".")[2]) > max(used)
    check(path)


def test_a_session_without_tasks_can_be_moved(tmp_path: Path) -> None:
    Session(tmp_path / "session").close()
    migrate(tmp_path / "session", tmp_path / "elsewhere")
    with Session(tmp_path / "session") as session:
        assert len(session) == 0
        session.add(Task())
    assert not (tmp_path / "session" / "jobs").exists()
    check(tmp_path / "session")


def test_of_a_shared_store_the_own_tasks_are_moved_and_all_stay_where_they_were(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    one, two = (Session(tmp_path / name, store_or_url=shared) for name in ("one", "two"))
    for n in range(20):
        one.add(Task(jobname=f"one-{n}"))
        two.add(Task(jobname=f"two-{n}"))
    names = one.list_names()
    one.close()
    migrate(tmp_path / "one", tmp_path / "one" / "jobs")
    with Session(tmp_path / "one") as session:
        assert session.list_names() == names
        assert len(list(session.store.list())) == 20
    assert len(two) == 20
    assert len(list(two.store.list())) == 40
    two.add(Task())
    two.close()
    check(tmp_path / "one")


def test_in_a_store_that_has_given_out_the_numbers_the_same_is_added_to_each_and_that_is_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "session"
    filled(path).close()
    with Session(path, read_only=True) as session:
        before = {task.persistent_id: task.jobname for task in session.iter_workflow()}
    with Session(tmp_path / "other", store_or_url=tmp_path / "elsewhere") as other:
        mine = other.add(Task(jobname="mine"))
    with Session(path) as session:
        moved = migrate_session(session, tmp_path / "elsewhere")
    assert moved.members == 299
    assert moved.records == 301
    assert moved.shift > 0
    with Session(path, read_only=True) as session:
        after = {task.persistent_id: task.jobname for task in session.iter_workflow()}
        [both] = session.select(name="both")
        assert [task.jobname for task in both.tasks] == ["inner"]

    def renumbered(id_: str) -> str:
        name, _, number = id_.rpartition(".")
        return f"{name}.{int(number) + moved.shift}"

    assert after == {renumbered(id_): name for id_, name in before.items()}
    with Session(tmp_path / "other") as other:
        assert [(task.persistent_id, task.jobname) for task in other] == [(mine, "mine")]
    check(path)
    check(tmp_path / "other")


def test_a_reference_whose_record_is_gone_leads_to_none_in_the_new_store(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        gone = Task()
        session.add(gone)
        session.add(Task(extra={"see": gone}))
        session.remove(str(gone.persistent_id))
    with Session(tmp_path / "other", store_or_url=tmp_path / "elsewhere") as other:
        other.add_many(Task(jobname="a stranger") for _ in range(9))
    migrate(path, tmp_path / "elsewhere")
    with Session(path) as session:
        [task] = session
        assert type(task.extra["see"]).__name__ == "Unreadable"
    check(path)


def test_a_record_of_a_damaged_schema_is_moved_to_a_new_store_only(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add_many([Task(), Simulation(state="RUNNING")])
    with Raw(path) as raw:
        raw.put("schemas", n4(2), raw.get("schemas", n4(2))[:-1])
    before = dumped(path)
    with Session(tmp_path / "other", store_or_url=tmp_path / "used") as other:
        other.add(Task())
    with pytest.raises(WriteError, match=r"record 2 can't be read: its schema is damaged.*repair it first"):
        migrate(path, tmp_path / "used")
    assert dumped(path) == before
    migrate(path, tmp_path / "new")
    assert dumped(path) == before
    with Session(path) as session:
        assert session.stats() == {"NEW": 1, "RUNNING": 1}
        assert "Unreadable.2" in session


def test_where_it_is_already_and_a_transaction_are_refused(tmp_path: Path) -> None:
    with filled(tmp_path / "session") as session:
        with pytest.raises(InvalidArgument, match="already"):
            migrate_session(session, tmp_path / "session" / "jobs")
        with pytest.raises(InvalidArgument, match="transaction"), session.transaction():
            migrate_session(session, tmp_path / "elsewhere")
        assert len(session) == 299
    assert not (tmp_path / "elsewhere").exists()


def test_who_has_the_session_open_loses_no_change_to_the_old_store(tmp_path: Path) -> None:
    """A change of a state touches no mirror, so that the lock of that would not tell."""
    path = tmp_path / "session"
    filled(path).close()
    ready, tell = os.pipe()
    back, go = os.pipe()

    def other() -> list[str]:
        session = Session(path)
        task = session.load("Task.1")
        os.write(tell, b"x")
        os.read(back, 1)
        refused = []
        for change in (lambda: session.save(task), lambda: session.add(Task()), lambda: session.forget("Task.2")):
            task.state = "RUNNING"
            try:
                change()
            except WriteError as error:
                refused.append(str(error))
            session.store.batch.clear()
        return refused

    child = Child(other)
    os.read(ready, 1)
    migrate(path, tmp_path / "elsewhere")
    os.write(go, b"x")
    refused = child.result()
    assert len(refused) == 3
    assert all("moved" in message and re.search("[Oo]pen (it|the session) again", message) for message in refused)
    with Session(path) as session:
        assert session.load("Task.1").state == "NEW"
    check(path)


def _killed_at(n: int, path: Path, url: Path) -> None:
    """Move the session; be killed at the n-th step, before or after it is done."""
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == n:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **options)
            steps += 1
            if steps == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step

    Store.write = counted(Store.write)  # type: ignore[method-assign]
    for module, name in ((os, "replace"), (os, "rename"), (os, "rmdir"), (os, "unlink"), (shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))
    gc3session.snapshots.copying.BATCH_BYTES = 20_000  # type: ignore[misc]
    migrate(path, url)


def _status(function: Callable[..., Any], *args: Any) -> int:
    """Run *function* in a child; return 0, or how it died."""
    try:
        in_child(function, *args)
    except Died as died:
        return died.status
    return 0


@pytest.mark.parametrize("inside", [True, False])
def test_killed_at_any_step_the_session_is_whole_and_the_move_can_be_completed(
    tmp_path: Path, inside: bool
) -> None:
    """Forth and back: from the store in the directory to one outside, or the other way."""
    original = tmp_path / "original"
    filled(original).close()
    if not inside:
        migrate(original, tmp_path / "before")
    before = dumped(original)
    places: set[str] = set()
    for n in range(1, 200):
        work = tmp_path / str(n)
        path, url = work / "session", (work / "elsewhere" if inside else work / "session" / "jobs")
        shutil.copytree(original, path)
        if not inside:
            shutil.copytree(tmp_path / "before", work / "before")
            line = (path / "store.url").read_text().replace(str(tmp_path), str(work))
            (path / "store.url").write_text(line)
        status = _status(_killed_at, n, path, url)
        assert status in (0, -signal.SIGKILL)
        assert dumped(path) == before, n
        places.add((path / "store.url").read_text().partition("#")[0])
        with Session(path) as session:
            session.add(Task(jobname="afterwards"))
            session.remove("Task.10")
            here = session.store.url == Session(path, read_only=True).store.url
            assert here
            there = session.store.url.endswith(str(url))
        check(path)
        after = dumped(path)
        if not there:
            migrate(path, url)
            assert dumped(path) == after, n
            check(path)
        assert (path / "jobs").exists() is not inside
        shutil.rmtree(work)
        if status == 0:
            break
    else:
        pytest.fail("it never ended")
    assert n > 20
    assert len(places) > 1


def test_killed_on_its_way_into_a_store_that_is_used_it_is_whole_and_leaves_nothing_there(tmp_path: Path) -> None:
    path, used = tmp_path / "session", tmp_path / "used"
    filled(path).close()
    with Session(path, read_only=True) as session:
        names = [task.jobname for task in session]
        records = len(list(session.store.list()))
    with Session(tmp_path / "other", store_or_url=used) as other:
        other.add_many(Task(jobname="mine") for _ in range(20))
    former = (path / "store.url").read_text()
    for n in range(1, 200):
        status = _status(_killed_at, n, path, used)
        assert status in (0, -signal.SIGKILL)
        with Session(path, create=False) as session:
            assert [task.jobname for task in session] == names, n
            [both] = session.select(name="both")
            assert [task.jobname for task in both.tasks] == ["inner"]
        if (path / "store.url").read_text() != former:
            break
    assert n > 10
    check(path)
    check(tmp_path / "other")
    with Session(tmp_path / "other") as other:
        assert [task.jobname for task in other] == ["mine"] * 20
        assert len(list(other.store.list())) == records + 20


def test_a_session_moves_to_postgresql_and_back_however_often_that_is_killed(
    tmp_path: Path, postgresql_url: str
) -> None:
    """Each attempt is killed a step later than the one before, until one has moved the session."""
    path = tmp_path / "session"
    filled(path).close()
    before = dumped(path)
    for url in (postgresql_url, path / "jobs"):
        former = (path / "store.url").read_text()
        for n in range(1, 200):
            status = _status(_killed_at, n, path, url)
            assert status in (0, -signal.SIGKILL)
            assert dumped(path) == before, n
            with Session(path, create=False) as session:
                assert len(session) == 299
            if (path / "store.url").read_text() != former:
                break
        assert n > 10
        check(path)
    assert sorted(os.listdir(path)) == ["created", "jobs", "session_ids.txt", "store.url"]
    migrate(path, postgresql_url)
    with Session(path, create=False) as session:
        assert len(session) == 299
    check(path)


def test_who_has_the_session_open_on_postgresql_loses_no_change(tmp_path: Path, postgresql_url: str) -> None:
    path = tmp_path / "session"
    with Session(path, store_or_url=postgresql_url) as session:
        session.add_many(Task(jobname=f"task-{n}") for n in range(100))
    other = Session(path)
    task = other.load("Task.1")
    migrate(path, tmp_path / "elsewhere")
    task.state = "RUNNING"
    with pytest.raises(WriteError, match="moved"):
        other.save(task)
    other.store.batch.clear()
    with pytest.raises(WriteError, match="moved"):
        other.add(Task())
    other.store.discard()
    with Session(path) as session:
        assert session.stats() == {"NEW": 100}
    check(path)


def test_a_session_whose_moving_was_killed_is_read_without_a_write(tmp_path: Path) -> None:
    path = tmp_path / "session"
    filled(path).close()

    def moved_but_for_the_url() -> None:
        gc3session.directory.SessionDirectory.write_line = lambda *_, **__: os._exit(0)  # type: ignore[method-assign]
        migrate(path, tmp_path / "elsewhere")

    with pytest.raises(Died):
        in_child(moved_but_for_the_url)
    line = (path / "store.url").read_bytes()
    assert line.startswith(b"lmdb:jobs#")
    with Session(path, read_only=True) as session:
        assert session.store.url.endswith("elsewhere")
        assert len(session) == 299
    assert (path / "store.url").read_bytes() == line
    with Session(path) as session:
        assert session.store.url.endswith("elsewhere")
    assert (path / "store.url").read_bytes() != line
    check(path)


def test_a_directory_that_is_no_store_does_not_keep_a_session_from_being_opened(tmp_path: Path) -> None:
    path = tmp_path / "session"
    filled(path).close()
    migrate(path, tmp_path / "elsewhere")
    (path / "jobs").mkdir()
    (path / "jobs" / "output.txt").write_text("mine")
    with Session(path) as session:
        assert len(session) == 299
    assert (path / "jobs" / "output.txt").read_text() == "mine"
    check(path)


def test_the_command_moves_a_session_and_says_how_many_tasks(tmp_path: Path) -> None:
    filled(tmp_path / "s p ä").close()
    shutil.copytree(tmp_path / "s p ä", tmp_path / "copy")
    output = run_script("-m", "gc3session", "migrate", tmp_path / "s p ä", tmp_path / "else where")
    assert output == f"moved 299 tasks of {tmp_path}/s p ä to {tmp_path}/else where"
    assert list(diff(tmp_path / "copy", tmp_path / "s p ä")) == []
    output = run_script("-m", "gc3session", "migrate", tmp_path / "copy", tmp_path / "else where")
    message = f"moved 299 tasks of {tmp_path}/copy to {tmp_path}/else where, each with "
    assert re.fullmatch(rf"{re.escape(message)}[0-9,]+ added to its number", output)
    with pytest.raises(Died) as died:
        run_script("-m", "gc3session", "migrate", tmp_path / "none", tmp_path / "x")
    assert died.value.status == 2
    assert not (tmp_path / "none").exists()


def test_the_command_shows_no_password_and_where_the_store_is(tmp_path: Path, postgresql_url: str) -> None:
    filled(tmp_path / "session").close()
    url = f"{postgresql_url}&password=correct%20horse"
    output = run_script("-m", "gc3session", "migrate", tmp_path / "session", url)
    assert output == f"moved 299 tasks of {tmp_path}/session to {postgresql_url}"
    assert "horse" not in (tmp_path / "session" / "store.url").read_text()
    with pytest.raises(Died, match="already") as died:
        run_script("-m", "gc3session", "migrate", tmp_path / "session", url)
    assert "horse" not in str(died.value)


def test_progress_is_told(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    with filled(tmp_path / "session", 2000) as session:
        migrate_session(
            session, tmp_path / "elsewhere", progress=lambda done, total: reported.append((done, total))
        )
    assert reported[-1] == (2001, 2001)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_a_damaged_index_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with filled(path) as session:
        session.store.tables.write(lambda writer: writer.delete("records", [(20).to_bytes(8, "big")]))
        with pytest.raises(Error, match="repair"):
            migrate_session(session, tmp_path / "elsewhere")
        assert len(session) == 299
    assert (path / "store.url").read_text().startswith("lmdb:jobs#")
