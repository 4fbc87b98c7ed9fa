"""Compaction gives room back, loses nothing whatever ends it, and refuses while others have the store open."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb.verify
import pytest

from children import Child, Died, in_child, let_others_in, run_python, start_python
from consistency import check, read_tables
from examples import Simulation, Sweep
from gc3session import (
    Compacted,
    MirrorWarning,
    ReadOnlyError,
    Session,
    StoreFull,
    StoreInUse,
    Task,
    TemporarySession,
    make_store,
)
from gc3session.tables.lmdb.data_file.meta import MetaPage, meta_pages_of, newest_meta_page
from test_cli import one_error, run

KILLS, KILLS_IN_LONG_FORM = 30, 1000

MakeSession = Callable[..., Session]


@pytest.fixture(autouse=True)
def mirror_is_never_warned_of() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)
        yield


def data_of(session: Session) -> Path:
    assert session.path is not None
    return Path(session.path, "jobs", "data.mdb")


def newest_transaction(path: Path) -> int:
    return max(meta.transaction for meta in meta_pages_of(os.fspath(path)))


def file_of(session: Session) -> tuple[int, int, int]:
    """Return what tells whether the data file is another or has been written."""
    status = data_of(session).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def fill(session: Session, count: int = 3000) -> list[str]:
    """Add tasks and remove most of them; return the IDs of those that are left."""
    ids = list(session.add_many(Simulation(jobname=f"job {n}", mesh="m" * 200, steps=n) for n in range(count)))
    session.remove_many(ids[: count * 2 // 3])
    return ids[count * 2 // 3 :]


def test_room_is_given_back_and_all_is_as_before(session: Session) -> None:
    ids = fill(session)
    session.add(Sweep(jobname="all", tasks=[session[ids[0]], Task(jobname="inner")]))
    forgotten = session.add(Task(jobname="forgotten"))
    session.forget(forgotten)
    session.load(forgotten, add=True)  # a late entry
    before = read_tables(data_of(session).parent)
    size = data_of(session).stat().st_size
    done = session.compact()
    assert done == Compacted(size, data_of(session).stat().st_size)
    assert done.after < size // 2
    assert read_tables(data_of(session).parent) == before
    assert lmdb.verify.verify(os.fspath(data_of(session))) == []
    assert list(session.check()) == []
    session.add(Task(jobname="after"))
    assert session.stats() == {"NEW": len(ids) + 3}
    assert sorted(os.listdir(data_of(session).parent)) == ["checked", "data.mdb", "lock.mdb", "writer.lock"]


def test_compacted_file_has_the_number_of_the_last_transaction_on_both_meta_pages(session: Session) -> None:
    # So `lock.mdb`, and what any program has noted for a transaction's number, stay right.
    for extra in range(3):
        fill(session, 300)
        for _ in range(extra):
            session.add(Task())
        before = newest_transaction(data_of(session))
        session.compact()
        pages = meta_pages_of(os.fspath(data_of(session)))
        assert pages[before & 1].transaction == before
        assert pages[~before & 1].transaction == before - 1
        assert pages[0]._replace(transaction=0) == pages[1]._replace(transaction=0)


def test_numbers_of_its_own_transactions_stay_below_that_which_the_file_gets(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the free list would have pages of transactions that are still to come.
    session.add_many(Task(extra={"pad": bytes(300)}) for _ in range(5000))
    given = newest_transaction(data_of(session))
    own: list[int] = []

    def noted(path: str, fd: int) -> MetaPage:
        own.append(newest_meta_page(path, fd).transaction)
        return newest_meta_page(path, fd)

    monkeypatch.setattr("gc3session.tables.lmdb.copying.newest_meta_page", noted)
    monkeypatch.setattr("gc3session.tables.lmdb.copying._TRANSACTION", 1000)  # bytes
    monkeypatch.setattr("gc3session.tables.lmdb.copying._ITEMS", 10)
    session.compact()
    assert 1 < own[-1] <= given


def test_items_larger_than_a_transaction_should_be_are_copied_whole(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add_many(Task(jobname=str(n), extra={"pad": bytes(n)}) for n in range(0, 60_000, 150))
    before = read_tables(data_of(session).parent)
    monkeypatch.setattr("gc3session.tables.lmdb.copying._TRANSACTION", 20_000)  # bytes
    session.compact()
    assert read_tables(data_of(session).parent) == before


def test_session_goes_on_with_its_objects_batch_and_iterators(session: Session) -> None:
    ids = fill(session, 1500)
    task, others = session[ids[0]], iter(session)
    next(others)
    task.steps = 77
    session.add(Task(jobname="in the batch"), flush=False)
    session.compact()
    assert session[ids[0]] is task
    session.save_all()
    assert len(list(others)) == len(ids)  # the rest, and the one of the batch
    with Session(session.path, read_only=True) as other:
        assert other[ids[0]].steps == 77
        assert other.stats()["NEW"] == len(ids) + 1


def test_other_sessions_of_this_process_see_the_new_file(make_session: MakeSession) -> None:
    session = make_session()
    ids = fill(session, 600)
    with Session(session.path) as second, Session(session.path, read_only=True) as third:
        assert len(second) == len(third) == len(ids)
        second.compact()
        session.add(Task())
        third_ids, second_ids = third.list_ids(), second.list_ids()
        assert third_ids == second_ids == session.list_ids()


def test_store_that_sessions_share_is_compacted_for_all(tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store:
        first, second = (Session(tmp_path / name, store_or_url=store) for name in ("first", "second"))
        ids = [fill(session, 600) for session in (first, second)]
        assert first.compact().after < 300_000
        assert [list(session.ids()) for session in (first, second)] == ids
        first.close()
        second.close()
    check(tmp_path / "first")
    check(tmp_path / "second")


def test_temporary_session_compacts_its_store(tmp_path: Path) -> None:
    with TemporarySession(tmp_path / "store") as session:
        session.add(Task())
        assert session.compact().after > 0


def test_session_without_a_store_has_nothing_to_compact(session: Session) -> None:
    assert session.compact() == (0, 0)
    assert "jobs" not in os.listdir(session.path)


def test_transaction_and_read_only_session_are_not_compacted(session: Session) -> None:
    session.add(Task())
    with pytest.raises(ValueError, match="inside a transaction"), session.transaction():
        session.compact()
    with Session(session.path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.compact()


def test_rights_and_owner_of_the_file_stay(session: Session) -> None:
    fill(session, 100)
    data_of(session).chmod(0o640)
    if os.getuid() == 0:
        os.chown(data_of(session), 1234, 4321)
    before = data_of(session).stat()
    session.compact()
    after = data_of(session).stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert after.st_mtime_ns == before.st_mtime_ns  # nothing has been written since


# -- beside others


def write_without_pause(path: Path, tell: int) -> None:
    """Add tasks until killed, and tell the ID of each."""
    session = Session(path)
    while True:
        os.write(tell, session.add(Task()).encode() + b"\n")


@pytest.mark.parametrize("read_only", [False, True])
def test_process_that_has_the_store_open_is_named_and_nothing_changes(
    make_session: MakeSession, read_only: bool
) -> None:
    session = make_session()
    ids = fill(session, 300)
    before = file_of(session)
    script = """
        import sys
        from gc3session import Session
        session = Session(sys.argv[1], read_only=sys.argv[2] == "True")
        print(len(session), flush=True)
        sys.stdin.read()
    """
    with opened_elsewhere(script, session.path, read_only) as pid:
        with pytest.raises(StoreInUse, match=f"open by process {pid};") as caught:
            session.compact()
        assert caught.value.pids == (pid,)
        assert list(session.ids()) == ids
        message = one_error(run("compact", session.path), 1)
        assert str(pid) in message
        assert str(os.getpid()) in message
        assert file_of(session) == before
    assert session.compact().after < before[1]


@contextlib.contextmanager
def opened_elsewhere(script: str, *args: object) -> Iterator[int]:
    """Give the pid of a program that has the store open until the end of the block."""
    process = start_python("-c", textwrap.dedent(script), *args, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process.pid
    finally:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_program_that_uses_lmdb_alone_is_named_too(make_session: MakeSession) -> None:
    session = make_session()
    fill(session, 300)
    script = """
        import sys, lmdb
        env = lmdb.open(sys.argv[1] + "/jobs", 1 << 30, max_dbs=16)
        print(env.stat(), flush=True)
        sys.stdin.read()
    """
    with opened_elsewhere(script, session.path) as pid:
        with pytest.raises(StoreInUse) as caught:
            session.compact()
        assert caught.value.pids == (pid,)
        session.add(Task())


def test_script_that_is_written_from_the_format_stands_in_the_way_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        fill(session, 30_000)
    process = start_python(Path(__file__).parents[3] / "tools" / "inspect_session.py", path, "dump")
    assert process.stdout is not None
    process.stdout.read(1)  # the rest waits in the pipe
    with Session(path) as session, pytest.raises(StoreInUse, match=str(process.pid)):
        session.compact()
    process.communicate()
    assert process.returncode == 0


def test_busy_writer_loses_nothing_to_attempts_at_compacting(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        kept = set(fill(session, 300))
    reader, writer = os.pipe()
    child = Child(write_without_pause, path, writer)
    os.close(writer)
    refused = 0
    with open(reader, "rb") as pipe:
        for _ in range(30):
            kept.add(pipe.readline().decode().strip())
            with Session(path) as session:
                try:
                    session.compact()
                except StoreInUse:
                    refused += 1
        child.kill()
        kept.update(
            line.decode().strip() for line in pipe.read().splitlines(keepends=True) if line.endswith(b"\n")
        )
    with pytest.raises(Died):
        child.result()
    assert refused == 30
    with Session(path) as session:
        assert kept <= session.list_ids()
    check(path)


def test_writers_that_come_and_go_while_the_store_is_compacted_lose_nothing(
    tmp_path: Path, long_form: bool
) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        kept = set(fill(session, 900))
    rounds = 200 if long_form else 25
    children = [Child(open_add_and_close, path, rounds) for _ in range(2)]
    compacted = in_child(open_compact_and_close, path, rounds)
    for child in children:
        kept.update(child.result())
    assert compacted > 0
    with Session(path) as session:
        assert session.list_ids() == kept
    check(path)


def open_add_and_close(path: Path, rounds: int) -> list[str]:
    ids = []
    for _ in range(rounds):
        with Session(path) as session:
            ids += [session.add(Task()), *session.add_many(Task() for _ in range(5))]
    return ids


def open_compact_and_close(path: Path, rounds: int) -> int:
    """Return how many of the attempts were not refused; at least one of them is made when nobody else is there."""
    done = 0
    for n in range(rounds):
        with Session(path) as session:
            try:
                session.compact()
                done += 1
            except StoreInUse:
                time.sleep(0.001 * n)
    while not done:
        with Session(path) as session:
            try:
                session.compact()
                done += 1
            except StoreInUse:
                time.sleep(0.01)
    return done


def test_reader_that_opens_the_store_while_it_is_compacted_gets_the_new_file(session: Session) -> None:
    # LMDB would have it open the old file, wait, and read that for ever.
    ids = fill(session, 300)
    script = """
        import sys
        from gc3session import Session
        with Session(sys.argv[1], read_only=True) as session:
            print(len(session), flush=True)
            sys.stdin.readline()
            print(len(session), flush=True)
    """
    process = None

    def open_it(done: int, total: int) -> None:
        nonlocal process
        if process is None:
            process = start_python("-c", textwrap.dedent(script), session.path, stdin=subprocess.PIPE)
            deadline = time.monotonic() + 60
            while not re.search(rf"-> \S+ +ADVISORY +READ +{process.pid} ", Path("/proc/locks").read_text()):
                assert time.monotonic() < deadline, "the reader does not wait"
                time.sleep(0.001)

    session.compact(progress=open_it)
    assert process is not None
    assert process.stdout is not None
    assert int(process.stdout.readline()) == len(ids)
    session.add(Task())
    out, _ = process.communicate("\n")
    assert int(out) == len(ids) + 1


def test_forked_child_does_not_stand_in_the_way_and_goes_on_with_the_new_file(make_session: MakeSession) -> None:
    session = make_session()
    ids = fill(session, 300)
    session.add(Task())
    ready, tell = os.pipe()
    go_on, may = os.pipe()

    def wait_and_add() -> tuple[int, str]:
        os.write(tell, b"x")
        os.read(go_on, 1)
        return len(session), session.add(Task())

    child = Child(wait_and_add)
    os.read(ready, 1)
    session.compact()
    os.write(may, b"x")
    seen, id_ = child.result()
    assert seen == len(ids) + 1
    assert id_ in session.list_ids()
    for fd in (ready, tell, go_on, may):
        os.close(fd)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_reader_who_may_lock_nothing_goes_on_with_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    let_others_in(tmp_path)
    with Session(path) as session:
        ids = fill(session, 300)
    (path / "jobs").chmod(0o711)  # not to be listed, and so not to be locked
    ready, tell = os.pipe()
    go_on, may = os.pipe()

    def read_twice() -> tuple[int, int]:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with Session(path, read_only=True) as reader:
            first = len(reader)
            os.write(tell, b"x")
            os.read(go_on, 1)
            return first, len(reader)

    child = Child(read_twice)
    os.read(ready, 1)
    with Session(path) as session:
        session.compact()
        session.add(Task())
    os.write(may, b"x")
    assert child.result() == (len(ids), len(ids) + 1)
    for fd in (ready, tell, go_on, may):
        os.close(fd)


# -- ends in the middle


def compact_and_tell(path: Path, tell: int) -> None:
    """Add tasks and compact, again and again, until killed; tell the ID of each task before compacting."""
    session = Session(path)
    while True:
        os.write(tell, session.add(Simulation(mesh="m" * 100)).encode() + b"\n")
        session.compact()


def test_killed_at_any_instant_it_leaves_all_tasks_and_a_session_that_opens(
    tmp_path: Path, long_form: bool
) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        kept = set(fill(session, 6000))
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    left_behind = 0
    for _ in range(KILLS_IN_LONG_FORM if long_form else KILLS):
        reader, writer = os.pipe()
        child = Child(compact_and_tell, path, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            lines = [pipe.readline()]
            time.sleep(chance.uniform(0, 0.08))  # the instant is random on purpose
            child.kill()
            lines += pipe.readlines()
        with pytest.raises(Died):
            child.result()
        left_behind += (path / "jobs" / "compacted.tmp").exists()
        kept.update(line.decode().strip() for line in lines if line.endswith(b"\n"))
        with Session(path) as session:
            assert kept <= session.list_ids()
            assert len(session) <= len(kept) + 1  # that of a call which had not returned
            kept = session.list_ids()
        assert sorted(os.listdir(path / "jobs")) == ["checked", "data.mdb", "lock.mdb", "writer.lock"], (
            "leftovers are deleted"
        )
    assert left_behind, "no kill came in the middle"
    check(path)
    assert lmdb.verify.verify(os.fspath(path / "jobs" / "data.mdb")) == []


STEPS = ("mkdir", "chown", "utime", "truncate", "fsync", "rename")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failure_of_any_step_changes_nothing_and_the_session_works_on(
    session: Session, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    ids = fill(session, 300)
    before = file_of(session)

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"gc3session.tables.lmdb.copying.os.{step}", fails)
        with pytest.raises(StoreFull if number == errno.ENOSPC else Exception, match="nothing was changed"):
            session.compact()
    assert file_of(session) == before
    assert sorted(os.listdir(data_of(session).parent)) == ["checked", "data.mdb", "lock.mdb", "writer.lock"]
    assert list(session.ids()) == ids
    session.add(Task())
    session.compact()


def test_interruption_changes_nothing(session: Session) -> None:
    ids = fill(session, 300)
    before = file_of(session)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.compact(progress=interrupt)
    assert file_of(session) == before
    assert list(session.ids()) == ids
    assert sorted(os.listdir(data_of(session).parent)) == ["checked", "data.mdb", "lock.mdb", "writer.lock"]
    session.add(Task())


def test_full_disk_is_told_before_it_starts_and_in_the_middle(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(session)
    status = os.statvfs(session.path)
    few = os.statvfs_result([*status[:3], 3, 3, *status[5:]])
    with monkeypatch.context() as patch:
        patch.setattr("gc3session.system.filesystem.os.statvfs", lambda path: few)
        with pytest.raises(StoreFull, match=r"takes .* free: make room"):
            session.compact()
    session.compact()


def test_full_disk_in_the_middle(tmp_path: Path) -> None:
    # A limit on the size of files fails a write as a full disk does, and LMDB tells no more of either.
    script = """
        import resource, signal, sys
        from gc3session import Session, StoreFull, Task
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Session(sys.argv[1]) as session:
            session.add_many(Task(extra={"pad": "x" * 500}) for _ in range(4000))
            count = len(session)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            try:
                session.compact()
            except StoreFull as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            session.add(Task())
            assert len(session) == count + 1
            session.compact()
    """
    assert "disk is full" in run_python(script, tmp_path / "s")
    assert sorted(os.listdir(tmp_path / "s" / "jobs")) == ["checked", "data.mdb", "lock.mdb", "writer.lock"]
    check(tmp_path / "s")


# -- the command


def test_command_tells_what_was_given_back(tmp_path: Path) -> None:
    path = tmp_path / "s ü"
    with Session(path) as session:
        fill(session)
    ran = run("compact", path)
    assert ran.status == 0
    assert "KiB given back" in ran.out or "MiB given back" in ran.out
    assert ran.err == ""
    check(path)
    assert "no session" in one_error(run("compact", tmp_path / "none"), 2)
    assert not (tmp_path / "none").exists()


def test_file_that_was_damaged_is_not_replaced(session: Session) -> None:
    fill(session, 3000)
    session.close()
    data = data_of(session)
    with open(data, "r+b") as file:
        file.truncate(data.stat().st_size // 2)
    copy = data.read_bytes()
    assert "truncated or damaged" in one_error(run("compact", session.path), 2)
    assert data.read_bytes() == copy
    shutil.rmtree(session.path)
