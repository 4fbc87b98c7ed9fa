"""Ctrl-C: the call is done or not, KeyboardInterrupt is raised, nothing stays locked, and the session goes on.

A real signal comes at random instants of all kinds of calls; then at the instants that matter most, one by one.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from consistency import check, read_mirror
from gc3session import Session, Task, TaskCollection
from gc3session.index.index_writer import IndexWriter
from gc3session.store.loader import Loader
from gc3session.store.store import Store

ON_EVERY_STORE = True

pytestmark = [
    pytest.mark.filterwarnings("ignore::gc3session.UnsavedWarning"),
    # A fork goes on whatever is raised as it begins, which Python only prints.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def interrupted(seconds: float, function: Callable[[], object]) -> bool:
    """Call *function*, and have Ctrl-C come after some seconds unless it is faster; return whether it came."""
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGALRM, former)
    return False


def assert_goes_on(session: Session, tasks: list[Task]) -> None:
    """Assert that nothing is locked, and that those of the tasks that have an ID are on disk, each once."""
    for name in ("store.url", "jobs/writer.lock"):
        with suppress(FileNotFoundError), open(os.path.join(session.path, name), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as another process does it
    tasks += [Task(), Task()]
    thread = threading.Thread(target=session.add, args=(tasks[-1],), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for what the interrupted call holds"
    session.add(tasks[-2])
    session.flush()
    with Session(session.path, read_only=True) as other:
        assert sorted(other.ids()) == sorted(task.persistent_id for task in tasks if task.persistent_id)


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def in_transaction(session: Session, new: Callable[..., Task]) -> None:
    with session.transaction():
        session.add(new())
        session.add(new())


def change_first(session: Session, then: Callable[[Task], object]) -> None:
    task = next(iter(session))
    task.jobname += "+"
    then(task)


def stage_and_refresh(session: Session, task: Task) -> None:
    session.save(task, flush=False)
    session.refresh(task)


def open_another(session: Session) -> None:
    with Session(session.path) as other:
        len(other)


CALLS: dict[str, Callable[[Session, Callable[..., Task]], object]] = {
    "add": lambda session, new: session.add(new()),
    "add without flush": lambda session, new: session.add(new(), flush=False),
    "add a collection": lambda session, new: session.add(new(TaskCollection(tasks=[Task(), Task()]))),
    "add_many": lambda session, new: session.add_many([new() for _ in range(50)]),
    "add_many of a generator": lambda session, new: session.add_many(new() for _ in range(50)),
    "transaction": in_transaction,
    "remove": lambda session, new: session.remove(next(session.ids())),
    "save": lambda session, new: change_first(session, session.save),
    "save_all": lambda session, new: change_first(session, lambda task: session.save_all()),
    "refresh": lambda session, new: change_first(session, lambda task: stage_and_refresh(session, task)),
    "read": lambda session, new: (list(session), len(session), session.stats()),
    "open and close": lambda session, new: open_another(session),
    "fork": lambda session, new: fork(),
    "compact": lambda session, new: session.store_url.startswith("lmdb") and session.compact(),
    "info": lambda session, new: session.info(scan=True),
    "check": lambda session, new: list(session.check()),
}


def test_ctrl_c_at_random_instants(path: Path, store_kind: str, long_form: bool) -> None:
    chance = random.Random(17)
    tasks: list[Task] = []
    caught = 0

    def new(task: Task | None = None) -> Task:
        tasks.append(task or Task(extra={"text": "x" * 500}))
        return tasks[-1]

    with Session(path) as session:
        session.add_many(new() for _ in range(3))
        rounds = (200 if long_form else 12) // (1 if store_kind == "lmdb" else 3)
        for call in CALLS.values():
            begin = time.perf_counter()
            call(session, new)
            longest = 1.2 * (time.perf_counter() - begin)
            for _ in range(rounds):
                if interrupted(chance.uniform(0.00001, longest), lambda call=call: call(session, new)):  # type: ignore[misc]
                    caught += 1
                    session.refresh(next(iter(session)))  # as is to be done again if that was interrupted
                assert_goes_on(session, tasks)
    assert caught > rounds * len(CALLS) / 4
    check(path)


# -- the instants that matter most ------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Have Ctrl-C come as a method is called for the first time."""
    method = getattr(owner, name)
    errors = iter([KeyboardInterrupt])

    def interrupted_method(*args: Any, **kwargs: Any) -> Any:
        for error in errors:
            raise error
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted_method)


@pytest.mark.parametrize("name", ["add", "add a collection", "transaction"])
@pytest.mark.parametrize("committed", [False, True])
def test_call_that_is_interrupted_before_or_after_its_commit_is_not_done_or_done(
    session: Session, monkeypatch: pytest.MonkeyPatch, name: str, committed: bool
) -> None:
    tasks: list[Task] = []

    def new(task: Task | None = None) -> Task:
        tasks.append(task or Task())
        return tasks[-1]

    first = Task()
    session.add(first)  # so that the session is in the store
    interrupt(monkeypatch, *((Store, "_after_commit") if committed else (IndexWriter, "finish")))
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](session, new)
    assert {task.persistent_id is not None for task in tasks} == {committed}
    tasks.append(first)
    assert_goes_on(session, tasks)
    session.add_many(tasks)
    assert_goes_on(session, tasks)
    assert sorted(read_mirror(session.path)) == sorted(session.ids())


def test_transaction_whose_block_is_interrupted_is_not_done(session: Session) -> None:
    tasks = [Task(), Task()]
    with pytest.raises(KeyboardInterrupt), session.transaction():
        session.add_many(tasks)
        session.remove(str(tasks[0].persistent_id))
        raise KeyboardInterrupt
    assert [task.persistent_id for task in tasks] == [None, None]
    assert_goes_on(session, tasks)


def test_refresh_that_is_interrupted_keeps_what_was_staged(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task()
    session.add(task)
    task.jobname = "staged"
    session.save_all(flush=False)
    interrupt(monkeypatch, Loader, "refill")
    with pytest.raises(KeyboardInterrupt):
        session.refresh(task)
    assert_goes_on(session, [task])
    with Session(session.path, read_only=True) as other:
        assert other[str(task.persistent_id)].jobname == "staged"


@pytest.mark.lmdb
def test_compact_that_is_interrupted_leaves_the_store_as_it_was(session: Session) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    tasks = [Task()]
    session.add_many(tasks)
    files = sorted(os.listdir(os.path.join(session.path, "jobs")))
    with pytest.raises(KeyboardInterrupt):
        session.compact(progress=progress)
    assert sorted(os.listdir(os.path.join(session.path, "jobs"))) == files
    assert_goes_on(session, tasks)
    session.compact()
    assert_goes_on(session, tasks)


@pytest.mark.lmdb
def test_ctrl_c_while_another_program_writes(session: Session) -> None:
    tasks = [Task(), Task()]
    session.add(tasks[0])
    with open(os.path.join(session.path, "jobs", "writer.lock"), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert interrupted(0.1, lambda: session.add(tasks[1]))
    assert tasks[1].persistent_id is None
    assert_goes_on(session, tasks)


@pytest.mark.lmdb
def test_ctrl_c_as_the_store_has_just_been_locked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task()]
    session.add(tasks[0])
    flock, errors = fcntl.flock, iter([KeyboardInterrupt])

    def interrupted_flock(file: Any, operation: int) -> None:
        flock(file, operation)
        for error in errors:
            raise error

    monkeypatch.setattr(fcntl, "flock", interrupted_flock)
    with pytest.raises(KeyboardInterrupt):
        session.add(Task())
    assert_goes_on(session, tasks)


def test_ctrl_c_while_a_fork_waits_for_a_transaction_of_another_thread(session: Session) -> None:
    tasks = [Task(), Task()]
    began, end = threading.Event(), threading.Event()

    def transaction() -> None:
        with session.transaction():
            began.set()
            session.add_many(tasks)
            end.wait()

    thread = threading.Thread(target=transaction)
    thread.start()
    began.wait()
    threading.Timer(0.3, end.set).start()
    interrupted(0.1, fork)
    thread.join()
    assert_goes_on(session, tasks)


def test_session_whose_closing_was_interrupted_can_be_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(path)
    session.add(Task(), flush=False)
    interrupt(monkeypatch, type(session.store.tables), "close")
    with pytest.raises(KeyboardInterrupt):
        session.close()
    session.close()
    assert len(check(path)) == 1
