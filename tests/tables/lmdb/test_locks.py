"""Who writes, who has the store open, and who is dead: the locks of a store's files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gc3session
import gc3session.tables.lmdb.locks as locks
from children import Child, Died, in_child, run_python
from consistency import check, read_mirror
from gc3session import Error, ReadOnlyError, Session, StoreInUse, Task, WaitingWarning
from gc3session.index.mirror import Mirror
from gc3session.tables.lmdb import environment
from test_damage import NOBODY
from test_signals import interrupted

MakeSession = Callable[..., Session]

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or have another namespace")
SECONDS = 5  # after which something waits that must not


def alarmed(function: Callable[..., Any], *args: Any) -> Any:
    """Run *function* in a process that ends by SIGALRM if it waits for ever."""

    def run() -> Any:
        signal.alarm(SECONDS)
        return function(*args)

    return in_child(run)


def told(function: Callable[..., Any], *args: Any) -> Child:
    """Return a child that runs *function* with these arguments and a pipe, to which it has written."""
    reader, writer = os.pipe()
    child = Child(function, *args, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read(1), "it has ended"
    return child


def wait_in_transaction(path: Path, tell: int) -> None:
    def unit(_: object) -> None:
        os.write(tell, b"x")
        time.sleep(1000)

    Session(path).store.tables.write(unit)


def wait_before_the_mirror(path: Path, tell: int) -> None:
    def write(_: object) -> None:
        os.write(tell, b"x")
        time.sleep(1000)

    session = Session(path)
    Mirror.write = write  # type: ignore[method-assign]
    session.add(Task())


def wait_as_reader(path: Path, tell: int) -> None:
    with Session(path, read_only=True).store.tables.read():
        os.write(tell, b"x")
        time.sleep(1000)


@contextlib.contextmanager
def ended(child: Child) -> Iterator[Child]:
    """Give a child, and end it."""
    try:
        yield child
    finally:
        child.kill()
        with pytest.raises(Died):
            child.result()


def in_container(script: str, *args: object) -> list[str]:
    """Return the command that runs a Python script where the processes of this system aren't seen."""
    python = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return ["unshare", "--pid", "--fork", "--mount-proc", *python]


def stop(child: Child) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)


def only_read(path: Path) -> int:
    for read_only in (False, True):
        with Session(path, read_only=read_only) as session:
            count = len(list(session))
            assert session.stats() == {"NEW": count}
    return count


# -- who writes


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warn at once of whoever is waited for."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("stopped", [False, True])
def test_who_waits_to_write_is_told_for_whom_and_what_helps(
    session: Session, impatient: None, stopped: bool
) -> None:
    session.add(Task())
    task = Task()
    with ended(told(wait_in_transaction, session.path)) as child:
        if stopped:
            stop(child)
        remedy = rf"stopped.*kill -CONT {child.pid}" if stopped else "Ctrl-C"
        with pytest.raises(WaitingWarning, match=rf"process {child.pid}\b.*{remedy}"):
            session.add(task)
        assert task.persistent_id is None
    session.add(task)
    assert len(session) == 2


@pytest.mark.filterwarnings("error")
def test_holder_that_the_system_does_not_show_is_one_of_another_container(
    session: Session, impatient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session.add(Task())
    (tmp_path / "locks").touch()
    monkeypatch.setattr(locks, "_LOCKS", tmp_path / "locks")
    with ended(told(wait_in_transaction, session.path)), pytest.raises(WaitingWarning, match="another container"):
        session.add(Task())


@ROOT
def test_writer_in_another_container_waits_for_this_one(session: Session, impatient: None) -> None:
    session.add(Task())
    script = """
        import sys, warnings
        import gc3session.tables.lmdb.locks as locks
        from gc3session import Session, Task, WaitingWarning
        locks._PATIENCE = 0.0
        warnings.simplefilter("error")
        try:
            Session(sys.argv[1]).add(Task())
        except WaitingWarning as warning:
            print(warning)
    """

    def write_in_a_container(_: object) -> str:
        done = subprocess.run(in_container(script, session.path), capture_output=True, text=True, check=False)
        if "unshare:" in done.stderr:
            pytest.skip("NOT RUN: no namespace can be made here")
        return done.stdout + done.stderr

    assert "another container" in session.store.tables.write(write_in_a_container)
    assert len(session) == 1


def test_ctrl_c_ends_the_wait_for_another_writer(session: Session, impatient: None) -> None:
    session.add(Task())
    tasks = [Task() for _ in range(3)]
    with ended(told(wait_in_transaction, session.path)) as child:
        stop(child)
        with pytest.warns(WaitingWarning):
            assert interrupted(0.2, lambda: session.add_many(tasks))
        assert len(session) == 1
    session.add_many(tasks)
    assert sorted(session.ids()) == sorted(check(session.path))


@pytest.mark.parametrize("wait", [wait_in_transaction, wait_before_the_mirror])
def test_stopped_writer_keeps_nobody_from_opening_and_reading(
    make_session: MakeSession, wait: Callable[[Path, int], None]
) -> None:
    with make_session() as session:
        session.add_many(Task() for _ in range(5))
    with ended(told(wait, session.path)) as child:
        stop(child)
        assert alarmed(only_read, session.path) == 5 + (wait is wait_before_the_mirror)
    with make_session():  # which mends the mirror
        pass
    assert read_mirror(session.path) == check(session.path)


def test_call_that_wrote_nothing_waits_for_no_writer(session: Session) -> None:
    session.add(Task())

    def only_flush() -> int:
        with Session(session.path) as other:
            other.save_all()
            other.flush()
            return len(other)

    with ended(told(wait_in_transaction, session.path)):
        assert alarmed(only_flush) == 1


def open_files(path: str) -> Iterator[int]:
    for file in [path, *(os.path.join(at, name) for at, names, files in os.walk(path) for name in names + files)]:
        with contextlib.suppress(PermissionError):
            yield os.open(file, os.O_RDONLY)


def lock_what_may_be_read(path: str, tell: int) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    for fd in open_files(path):
        fcntl.flock(fd, fcntl.LOCK_EX)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.lockf(fd, fcntl.LOCK_SH)  # each of its bytes
    os.write(tell, b"x")
    time.sleep(1000)


def use(path: str) -> None:
    with Session(path) as session:
        session.add(Task())
        session.compact()
        session.add(Task())
        assert list(session.check()) == []


@ROOT
@pytest.mark.parametrize("locks_are_there", [True, False])
def test_who_may_only_read_stops_nobody_by_locks(tmp_path: Path, locks_are_there: bool) -> None:
    path = os.fspath(tmp_path / "s")
    for directory in (tmp_path, *list(tmp_path.parents)[:3]):
        directory.chmod(0o755)
    use(path)
    if not locks_are_there:  # as after a copy of what matters
        for file in Path(path, "jobs").iterdir():
            if file.name != "data.mdb":
                file.unlink()
        use(path)
    else:
        Path(path, "jobs", "lock.mdb").chmod(0o644)  # as LMDB alone makes it
        use(path)
    with ended(told(lock_what_may_be_read, path)):
        alarmed(use, path)
    assert len(check(path)) == 6


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o600), (0o002, 0o660), (0o000, 0o666), (0o077, 0o600)])
def test_lock_files_can_be_opened_by_those_who_may_write_the_store(
    tmp_path: Path, umask: int, expected: int
) -> None:
    former = os.umask(umask)
    try:
        jobs = tmp_path / "s" / "jobs"
        with Session(tmp_path / "s") as session:
            session.add(Task())
        modes = [{name: stat.S_IMODE((jobs / name).stat().st_mode) for name in ("lock.mdb", "writer.lock")}]
        for name in modes[0]:
            (jobs / name).unlink()
        os.umask(0o077)  # of another user of the store
        with Session(tmp_path / "s") as session:
            session.add(Task())
        modes.append({name: stat.S_IMODE((jobs / name).stat().st_mode) for name in ("lock.mdb", "writer.lock")})
        assert modes == [{"lock.mdb": expected, "writer.lock": expected}] * 2
    finally:
        os.umask(former)


@ROOT
def test_lock_files_that_root_makes_are_those_of_the_store_s_owner(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task())
    jobs = tmp_path / "s" / "jobs"
    for file in (jobs, *jobs.iterdir()):
        os.chown(file, NOBODY, NOBODY)
    for name in ("lock.mdb", "writer.lock"):
        (jobs / name).unlink()
    with Session(tmp_path / "s") as session:
        session.add(Task())
    assert {(jobs / name).stat().st_uid for name in ("lock.mdb", "writer.lock")} == {NOBODY}


@pytest.mark.parametrize("name", ["lock.mdb", "writer.lock"])
def test_what_stands_in_the_place_of_a_lock_file_is_told_and_not_touched(tmp_path: Path, name: str) -> None:
    path, precious = tmp_path / "s", tmp_path / "precious"
    with Session(path) as session:
        session.add(Task())
    lock = path / "jobs" / name
    precious.write_bytes(b"precious")
    precious.chmod(0o644)
    for plant in (
        lambda: lock.symlink_to(precious),
        lambda: lock.hardlink_to(precious),
        lambda: os.mkfifo(lock),
        lambda: lock.mkdir(),
    ):
        lock.unlink()
        plant()
        with pytest.raises(Error, match=re.escape(os.fspath(lock))):
            alarmed(use, path)
        assert precious.read_bytes() == b"precious"
        assert precious.stat().st_mode & 0o777 == 0o644
    lock.rmdir()
    use(path)


# -- who has the store open


def copy_tree(path: str) -> None:
    shutil.copytree(path, f"{path} copy")


def hash_files(path: str) -> None:
    for file in sorted(Path(path).rglob("*")):
        if file.is_file():
            hashlib.sha256(file.read_bytes()).hexdigest()


def change_modes(path: str) -> None:
    for fd in open_files(path):
        os.close(fd)


USES = [copy_tree, hash_files, change_modes]


def has_locked(lock: Path, byte: int) -> bool:
    """Return whether another process can't lock a byte of `lock.mdb`, as LMDB does to see whether anybody is there."""

    def attempt() -> bool:
        with open(lock, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except BlockingIOError:
                return True
            return False

    return bool(in_child(attempt))


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("look", USES)
def test_program_that_reads_the_files_of_its_own_session_keeps_its_locks(
    make_session: MakeSession, look: Callable[[str], None], read_only: bool
) -> None:
    with make_session() as session:
        session.add(Task())
    path = os.fspath(session.path)
    ready, tell = os.pipe()
    go_on, may = os.pipe()

    def look_and_wait() -> int:
        with Session(path, read_only=read_only) as session, session.store.tables.read():
            look(path)
            os.write(tell, str(os.getpid()).encode().ljust(10))
            os.read(go_on, 1)
        with Session(path, read_only=read_only) as session:
            return len(session)

    child = Child(look_and_wait)
    pid = int(os.read(ready, 10))
    assert has_locked(Path(path, "jobs", "lock.mdb"), 0), "the next opener takes itself for the first"
    assert has_locked(Path(path, "jobs", "lock.mdb"), pid), "its slots are taken for those of a dead process"
    with Session(path) as writer:
        with pytest.raises(StoreInUse):
            writer.compact()
        writer.add(Task())
    os.write(may, b"x")
    assert child.result() == 2
    for fd in (ready, tell, go_on, may):
        os.close(fd)


CHANGE_ALL = """
    import sys
    from gc3session import Session
    for n in range(5):
        with Session(sys.argv[1]) as session:
            for task in session:
                task.jobname = f"changed {n}"
            session.save_all()
"""


def test_state_that_a_program_reads_stays_though_it_has_read_its_files(make_session: MakeSession) -> None:
    session = make_session()
    session.add_many(Task(jobname=str(n), extra={"pad": "x" * 1000}) for n in range(50))
    tables = session.store.tables
    with tables.read() as reader:
        before = list(reader.walk("records"))
        hash_files(session.path)
        run_python(CHANGE_ALL, session.path)
        assert list(reader.walk("records")) == before
    with Session(session.path, read_only=True) as other:
        assert {task.jobname for task in other} == {"changed 4"}


# -- who is dead


def slots(session: Session) -> int:
    """Return how many slots of other processes there are in `lock.mdb`."""
    readers = next(figure for figure in session.store.tables.figures() if figure.name == "reader slots")
    return len(readers.values["readers"])


def leave_a_slot(session: Session) -> None:
    with ended(told(wait_as_reader, session.path)):
        len(session)  # opens the files again after the fork
    assert slots(session) == 1


def test_slot_of_a_killed_reader_is_freed_by_a_writer_within_a_minute(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add(Task())
    leave_a_slot(session)
    session.add(Task())
    now = time.monotonic()
    monkeypatch.setattr(environment, "monotonic", lambda: now + 61)
    session.add(Task())
    assert slots(session) == 0


def test_slot_of_a_killed_reader_is_freed_when_the_file_has_grown_by_a_tenth(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "monotonic", lambda: 0.0)  # no time passes
    tasks = [Task(extra={"pad": "x" * 2000}) for _ in range(300)]
    session.add_many(tasks)
    leave_a_slot(session)
    data = Path(session.path, "jobs", "data.mdb")
    size = data.stat().st_size
    for n in range(120):
        for task in tasks[:50]:
            task.jobname = str(n)
        session.save_all()
    assert slots(session) == 0
    assert data.stat().st_size < 1.5 * size


def test_slot_of_a_living_reader_is_kept_and_not_called_stale(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add(Task())
    with ended(told(wait_as_reader, session.path)):
        now = time.monotonic()
        for minute in range(3):
            monkeypatch.setattr(environment, "monotonic", lambda minute=minute: now + 61 * minute)
            session.add(Task())
        readers = next(figure for figure in session.store.tables.figures() if figure.name == "reader slots")
        assert [slot["stale"] for slot in readers.values["readers"]] == [False]


def lock_the_byte_of(pid: int, path: Path, tell: int) -> None:
    """Hold what a process with that number holds in `lock.mdb`."""
    with open(path / "jobs" / "lock.mdb", "r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, pid, 1, 0))
        os.write(tell, b"x")
        time.sleep(1000)


@pytest.mark.parametrize("read_only", [False, True])
def test_program_of_the_same_number_in_another_container_is_an_error_that_names_a_remedy(
    tmp_path: Path, read_only: bool
) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task())
    with ended(told(lock_the_byte_of, os.getpid(), tmp_path / "s")), pytest.raises(Error) as caught:
        Session(tmp_path / "s", read_only=read_only)
    assert f"number {os.getpid()}" in str(caught.value)
    assert "--pid=host" in str(caught.value)
    with Session(tmp_path / "s") as session:
        session.add(Task())
    assert len(check(tmp_path / "s")) == 2


@ROOT
def test_leftovers_of_another_container_are_not_deleted_while_it_may_be_at_work(tmp_path: Path) -> None:
    # Its processes aren't seen here, so that they look like dead ones.
    script = """
        import sys
        from gc3session.system.temporary import made_whole
        with made_whole(sys.argv[1]) as path:
            print(path, flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        in_container(script, tmp_path / "jobs"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    made = process.stdout.readline().strip()
    if not made:
        pytest.skip("NOT RUN: no namespace can be made here")
    with Session(tmp_path / "jobs") as session:
        session.add(Task())
    gc3session.system.temporary.delete_leftovers(str(tmp_path / "jobs"))
    assert os.path.isdir(made)
    process.communicate("x")


# -- the lock table of another data file


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("transactions", [1, 2, 3])
def test_file_that_was_put_in_place_while_others_have_the_former_open_is_not_used_with_their_lock_table(
    tmp_path: Path, older: bool, transactions: int
) -> None:
    # LMDB would take the number of the last transaction from `lock.mdb`, and read and write by that.
    path, kept = tmp_path / "s", tmp_path / "kept.mdb"
    data = path / "jobs" / "data.mdb"

    def add(count: int) -> list[str]:
        with Session(path) as session:
            return [session.add(Task()) for _ in range(count)]

    ids = add(4)
    shutil.copy(data, tmp_path / "older.mdb")
    add(transactions)
    shutil.copy(data, tmp_path / "newer.mdb")
    if not older:
        shutil.copy(tmp_path / "older.mdb", data)
    with ended(told(wait_as_reader, path)) as child:
        shutil.copy(tmp_path / ("older.mdb" if older else "newer.mdb"), kept)
        kept.rename(data)
        with pytest.raises(Error, match=rf"lock\.mdb.*process {child.pid}\b"):
            add(1)
    with Session(path) as session:
        assert list(session.ids())[:4] == ids
        assert len(session) == 4 + (0 if older else transactions)
    (path / "session_ids.txt").unlink()
    with contextlib.suppress(ReadOnlyError), pytest.warns(gc3session.MirrorWarning):
        Session(path).close()
    assert len(check(path)) == 4 + (0 if older else transactions)
