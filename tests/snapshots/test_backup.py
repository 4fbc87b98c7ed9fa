"""A backup is a session: a state that the session had, whole or not there, and nothing of the source changes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from children import Child, Died, in_child, let_others_in
from consistency import check, check_tables, data_file, read_mirror, read_tables
from examples import Simulation, Sweep
from gc3session import (
    Error,
    InvalidArgument,
    LoadError,
    MirrorWarning,
    ReadOnlyError,
    Session,
    StoreFull,
    Task,
    diff,
    make_store,
)
from test_cli import one_error, run

MakeSession = Callable[..., Session]


@pytest.fixture(autouse=True)
def mirror_is_never_warned_of() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)
        yield


def fill(session: Session) -> None:
    """Give a session of everything that there can be: gaps, collections, what was forgotten, and added again."""
    ids = list(session.add_many(Simulation(jobname=f"job {n}", mesh="m" * n, steps=n) for n in range(60)))
    session.remove_many(ids[10:20])
    session.add(Sweep(jobname="sweep", tasks=[session[ids[0]], Task(jobname="inner", state="RUNNING")]))
    forgotten = session.add(Task(jobname="forgotten"))
    session.forget(forgotten)
    again = session.add(Task(jobname="again"))
    session.forget(again)
    session.add(Task(jobname="after that"))
    session.load(again, add=True)
    session.set_end_timestamp(1234567890.125)


def state_of(path: Path) -> dict[str, Any]:
    """Return bytes and mtime of each file, and mtime of each directory; not of LMDB's lock file."""
    files = [file for file in sorted(path.rglob("*")) if file.name != "lock.mdb"]
    return {str(file): (file.stat().st_mtime_ns, file.is_file() and file.read_bytes()) for file in [path, *files]}


def test_backup_is_the_same_session(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session()
    fill(session)
    session.flush()
    made = session.backup(tmp_path / "copy")
    assert made.tasks == len(session)
    assert made.missing == []
    assert list(diff(session.path, tmp_path / "copy")) == []
    with Session(tmp_path / "copy", create=False) as copy:
        assert list(copy.ids()) == list(session.ids())
        assert copy.stats() == session.stats()
        assert (copy.created, copy.finished) == (session.created, session.finished)
        assert copy._index.identity == session._index.identity
        assert copy.store.identity == session.store.identity
        assert copy.info().last_write == session.info().last_write
        assert copy.info().per_minute == session.info().per_minute
        assert set(copy.store.list()) == set(session.store.list())
        assert not copy.store.is_same(session.store)
    for name in ("created", "finished"):
        old, new = (Path(at, name) for at in (session.path, tmp_path / "copy"))
        assert new.read_bytes() == old.read_bytes()
        assert new.stat().st_mtime_ns == old.stat().st_mtime_ns
    assert check(tmp_path / "copy") == list(session.ids())


def test_backup_and_session_go_their_own_ways(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session()
    fill(session)
    session.backup(tmp_path / "copy")
    before = list(session.ids())
    with Session(tmp_path / "copy") as copy:
        theirs = copy.add(Task(jobname="of the copy"))
        copy.remove(before[0])
        assert list(session.ids()) == before
        assert session.add(Task()) not in before
        assert list(copy.ids()) == [*before[1:], theirs]
    check(tmp_path / "copy")


def test_opening_a_backup_gives_no_warning_and_finds_its_mirror_intact(
    make_session: MakeSession, tmp_path: Path
) -> None:
    session = make_session()
    fill(session)
    session.backup(tmp_path / "copy")
    before = state_of(tmp_path / "copy")
    with Session(tmp_path / "copy", read_only=True) as copy:
        assert list(copy.check()) == []
        assert copy.info().mirror
    assert state_of(tmp_path / "copy") == before
    with Session(tmp_path / "copy") as copy:
        assert read_mirror(copy.path) == list(copy.ids())


def test_batch_is_in_the_backup_and_a_session_without_tasks_has_one(
    make_session: MakeSession, tmp_path: Path
) -> None:
    session = make_session()
    assert session.backup(tmp_path / "empty").tasks == 0
    assert sorted(os.listdir(tmp_path / "empty")) == ["created", "session_ids.txt", "store.url"]
    check(tmp_path / "empty")
    id_ = session.add(Task(), flush=False)
    assert session.backup(tmp_path / "one").tasks == 1
    assert check(tmp_path / "one") == [id_]
    with pytest.raises(InvalidArgument, match="inside a transaction"), session.transaction():
        session.backup(tmp_path / "never")


def test_store_in_a_subdirectory_and_odd_names_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a session ü%41"
    with Session(path, store_or_url=path / "deep" / "in it") as session:
        id_ = session.add(Task())
        session.backup(tmp_path / "other" / "b %20 ß")
    assert (tmp_path / "other" / "b %20 ß" / "deep" / "in it" / "data.mdb").exists()
    with Session(tmp_path / "other" / "b %20 ß", create=False) as copy:
        assert list(copy.ids()) == [id_]
        assert copy._directory.holds(copy.store_url)


def test_damaged_record_is_in_the_backup_as_it_is(session: Session, tmp_path: Path) -> None:
    ids = list(session.add_many(Task(jobname=f"{n} xyzzy") for n in range(3)))
    session.close()
    file = data_file(session.path)
    assert file is not None
    file.write_bytes(file.read_bytes().replace(b"1 xyzzy", b"1 xyzzz"))
    with Session(session.path, read_only=True) as source:
        source.backup(tmp_path / "copy")
    with Session(tmp_path / "copy") as copy, pytest.raises(LoadError):
        copy.load(ids[1])
    assert check(tmp_path / "copy", damaged=[ids[1]]) == ids
    file.write_bytes(file.read_bytes().replace(b"1 xyzzz", b"1 xyzzy"))


# -- from a store elsewhere


def test_session_of_a_shared_store_gets_its_own_records_in_a_store_of_its_own(tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store, Session(tmp_path / "other", store_or_url=store) as other:
        shared = other.add(Task(jobname="of both"))
        theirs = list(other.add_many(Task(jobname="theirs") for _ in range(50)))
        with Session(tmp_path / "s", store_or_url=store) as session:
            fill(session)
            session.load(shared, add=True)
            ids = list(session.ids())
            made = session.backup(tmp_path / "copy")
            assert made.tasks == len(ids)
            assert list(diff(session.path, tmp_path / "copy")) == []
            with Session(tmp_path / "copy", create=False) as copy:
                assert copy._index.identity == session._index.identity
                assert not set(theirs) & set(copy.store.list())
                assert copy._directory.holds(copy.store_url)
                assert {task.jobname for task in copy.iter_workflow()} >= {"inner", "of both", "again"}
                assert (copy.created, copy.finished) == (session.created, session.finished)
                new = copy.add(Task())
                assert int(new.rpartition(".")[2]) > max(int(id_.rpartition(".")[2]) for id_ in store.list())
    assert check(tmp_path / "copy") == [*ids, new]


def test_damaged_record_of_a_shared_store_is_taken_over(tmp_path: Path) -> None:
    with Session(tmp_path / "s", store_or_url=tmp_path / "store") as session:
        ids = list(session.add_many(Task(jobname=f"{n} xyzzy", state="RUNNING") for n in range(3)))
    file = tmp_path / "store" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"1 xyzzy", b"1 xyzzz"))
    with Session(tmp_path / "s", read_only=True) as source:
        source.backup(tmp_path / "copy")
    assert check(tmp_path / "copy", damaged=[ids[1]]) == ids
    with Session(tmp_path / "copy") as copy:
        assert copy.stats() == {"RUNNING": 3}


def test_backup_from_a_server_is_a_session_on_a_local_disk(tmp_path: Path, postgresql_url: str) -> None:
    with Session(tmp_path / "s", store_or_url=postgresql_url) as session:
        fill(session)
        session.flush()  # which brings the mirror up to date
        ids = list(session.ids())
        info = session.info(scan=True)
        assert (info.tasks, info.inside, info.mirror) == (len(ids), False, True)
        assert (
            info.scanned == session.backup(tmp_path / "copy").tasks + 2
        )  # that in the collection, that forgotten
        assert list(diff(session.path, tmp_path / "copy")) == []
        with pytest.raises(InvalidArgument, match="isn't compacted from here"):
            session.compact()
    assert check(tmp_path / "copy") == ids


# -- beside a writer


def add_in_twos(path: Path, tell: int) -> None:
    """Add two tasks in each transaction until killed, change the first one with it, and tell of each."""
    session = Session(path)
    first = session["Simulation.1"]
    n = 0
    while True:
        n += 1
        with session.transaction():
            for part in "ab":
                session.add(Task(jobname=f"{n} {part}", state="RUNNING" if n % 3 else "NEW"))
            first.steps = n
            session.save(first)
        os.write(tell, b"%d\n" % n)


@pytest.mark.parametrize("place", ["inside", "elsewhere"])
@pytest.mark.parametrize("read_only", [False, True])
def test_backup_beside_a_busy_writer_is_a_state_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, read_only: bool
) -> None:
    monkeypatch.setattr("gc3session.tables.lmdb.copying._PIECE", 1 << 16)
    path = tmp_path / "s"
    with Session(path, store_or_url=None if place == "inside" else tmp_path / "store") as session:
        session.add(Simulation(extra={"pad": bytes(100_000)}))
    ready, tell = os.pipe()
    child = Child(add_in_twos, path, tell)
    os.close(tell)
    try:
        with open(ready, "rb") as counts, Session(path, read_only=read_only) as session:
            for n in range(6):
                before = int(counts.readline())
                waited = 0

                def commits_come_in_between(done: int, total: int) -> None:
                    nonlocal waited
                    while waited < 30 and waited < 30 * done / total:
                        waited += len(counts.readline()) > 0

                session.backup(tmp_path / f"copy {n}", progress=commits_come_in_between)
                ids = check(tmp_path / f"copy {n}")
                with Session(tmp_path / f"copy {n}", read_only=True) as copy:
                    steps = copy["Simulation.1"].steps
                    names = [task.jobname for task in copy][1:]
                assert steps >= before
                assert names == [f"{i} {part}" for i in range(1, steps + 1) for part in "ab"], (
                    "a prefix of what was added"
                )
                assert len(ids) == 1 + 2 * steps
            child.kill()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        with pytest.raises(Died):
            child.result()
    Session(path).close()  # which rewrites the mirror: the writer was killed
    check(path)


def test_backup_does_not_make_a_writer_wait_or_fail(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(extra={"pad": bytes(1000)}) for _ in range(2000))
        added = []

        def add(done: int, total: int) -> None:
            added.append(in_child(add_one, path))

        with Session(path, read_only=True) as source:
            count = source.backup(tmp_path / "copy", progress=add).tasks
        assert count == 2000
        assert added
        assert len(session) == 2000 + len(added)
    check(tmp_path / "copy")


def add_one(path: Path) -> str:
    with Session(path) as session:
        return session.add(Task())


# -- nothing of the source changes


def test_info_and_backup_change_no_byte_nor_time_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "s ü"
    with Session(path) as session:
        fill(session)
    before = state_of(path)
    assert run("info", path).status == 0
    assert run("info", path, "--json", "--scan").status == 0
    assert run("backup", path, tmp_path / "copy").status == 0
    assert state_of(path) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_who_may_only_read_gets_information_and_a_backup(tmp_path: Path) -> None:
    path, place = tmp_path / "s", tmp_path / "theirs"
    with Session(path) as session:
        fill(session)
        ids = list(session.ids())
    place.mkdir()
    os.chown(place, 65534, 65534)
    let_others_in(tmp_path)
    for file in path.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    path.chmod(0o555)
    before = state_of(path)

    def look() -> tuple[int, bool, list[str]]:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with Session(path, read_only=True) as source:
            info = source.info(scan=True)
            source.backup(place / "copy")
        with Session(place / "copy") as copy:
            return info.tasks, info.mirror, list(copy.ids())

    assert in_child(look) == (len(ids), True, ids)
    assert state_of(path) == before
    assert "lock.mdb" in os.listdir(path / "jobs")
    check(place / "copy")


# -- whole or not at all


def back_up(path: Path, dest: Path) -> None:
    with Session(path, read_only=True) as session:
        session.backup(dest)
    while True:
        time.sleep(60)


@pytest.mark.parametrize("place", ["inside", "elsewhere"])
def test_killed_at_any_instant_it_leaves_a_whole_backup_or_none(
    tmp_path: Path, place: str, long_form: bool
) -> None:
    path = tmp_path / "s"
    with Session(path, store_or_url=None if place == "inside" else tmp_path / "store") as session:
        ids = list(session.add_many(Simulation(mesh="m" * 100) for _ in range(2000)))
    (tmp_path / "backups").mkdir()
    seen = set()
    for n in range(300 if long_form else 15):
        child = Child(back_up, path, tmp_path / "backups" / "copy")
        time.sleep(random.uniform(0, 0.08))  # the instant is random on purpose
        child.kill()
        with pytest.raises(Died):
            child.result()
        there = (tmp_path / "backups" / "copy").exists()
        seen.add(there)
        if there:
            assert check(tmp_path / "backups" / "copy") == ids
            os.rename(tmp_path / "backups" / "copy", tmp_path / f"done {n}")
    with Session(path, read_only=True) as session:
        session.backup(tmp_path / "backups" / "copy")
    assert os.listdir(tmp_path / "backups") == ["copy"], "the leftovers of the dead are deleted"
    assert check(tmp_path / "backups" / "copy") == ids


@pytest.mark.parametrize("call", ["sendfile", "truncate", "fsync", "rename", "mkdir", "pwrite"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failure_of_any_step_leaves_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    session.add_many(Simulation(mesh="m" * 100) for _ in range(100))

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        warnings.simplefilter("ignore", MirrorWarning)  # that of the backup, which is not made then
        with pytest.raises(Error, match=os.strerror(number) if call != "rename" else "be written|be made"):
            session.backup(tmp_path / "backups" / "copy")
    assert not (tmp_path / "backups").exists() or os.listdir(tmp_path / "backups") == []
    session.backup(tmp_path / "backups" / "copy")
    check(tmp_path / "backups" / "copy")


def test_too_little_room_is_told_before_it_starts(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add_many(Simulation(mesh="m" * 100) for _ in range(100))
    status = os.statvfs(tmp_path)
    few = os.statvfs_result([*status[:3], 3, 3, *status[5:]])
    monkeypatch.setattr("gc3session.system.filesystem.os.statvfs", lambda path: few)
    with pytest.raises(StoreFull, match=r"takes .* free: make room"):
        session.backup(tmp_path / "copy")
    assert not any(name.startswith("copy") for name in os.listdir(tmp_path))


def test_nothing_that_is_there_is_overwritten(session: Session, tmp_path: Path) -> None:
    session.add(Task())
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "full", "link"):
        with pytest.raises(InvalidArgument, match="not an empty directory"):
            session.backup(tmp_path / name)
    with pytest.raises(InvalidArgument, match="inside the session"):
        session.backup(Path(session.path, "copy"))
    (tmp_path / "empty").mkdir()
    session.backup(tmp_path / "empty")
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "file").read_text() == "kept"
    with pytest.raises(InvalidArgument, match="not an empty directory"):
        session.backup(tmp_path / "empty")
    check(tmp_path / "empty")


# -- the command


def test_command_tells_what_it_backed_up(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task() for _ in range(1000))
    ran = run("backup", path, tmp_path / "b ü")
    assert ran.status == 0
    assert ran.out.startswith(f"backed up 1,000 tasks of {path} to {tmp_path / 'b ü'}, ")
    assert ran.err == ""
    assert "not an empty directory" in one_error(run("backup", path, tmp_path / "b ü"), 1)
    assert "no session" in one_error(run("backup", tmp_path / "none", tmp_path / "c"), 2)
    assert not (tmp_path / "c").exists()


def test_store_of_a_backup_is_as_the_judge_of_tables_wants_it(session: Session, tmp_path: Path) -> None:
    fill(session)
    session.backup(tmp_path / "copy")
    theirs, ours = (check_tables(read_tables(Path(path, "jobs"))) for path in (tmp_path / "copy", session.path))
    assert theirs.records == ours.records
    with pytest.raises(ReadOnlyError), Session(tmp_path / "copy", read_only=True) as copy:
        copy.compact()
