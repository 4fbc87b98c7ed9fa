"""What a signal's handler may raise, between any two instructions, while its exception is kept."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gc3session
from consistency import check
from gc3session import Session, Task, TaskCollection, repair_session
from gc3session.system.signals import signal_safe

OURS = (os.path.dirname(gc3session.__file__), contextlib.__file__)

ON_EVERY_STORE = True


class Interrupted(BaseException):
    """What the handler raises."""


def all_interrupted(function: Callable[[], object], step: int = 1) -> Iterator[Interrupted | None]:
    """Call *function* again and again, and raise in it where a handler would run for the n-th time, for each *step*-th n until it ends.

    Python looks for signals as a function of its own begins, or goes on after it has yielded, and
    after a call of one in C: these are the events of a profiler. (Not of generators: CPython 3.11 skips
    the handlers of one that is closed if its profiler raises, which a signal's handler can't bring about.)
    Give the exceptions; None for one that Python has swallowed, as it does while a generator is collected.
    """
    left = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        code = frame.f_code
        looks = event == "c_return" or (event == "call" and not code.co_flags & inspect.CO_GENERATOR)
        if looks and code.co_filename.startswith(OURS):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupted

    for n in itertools.count(step=step):
        left = n
        kept = None
        try:
            sys.setprofile(profile)
            try:
                function()
            finally:
                sys.setprofile(None)
        except Interrupted as error:
            kept = error
        if left >= 0:
            return
        yield kept


def in_transaction(session: Session) -> None:
    with session.transaction():
        session.add(Task(jobname="of the transaction"))
        session.add(Task(jobname="of the transaction"))


def refresh_what_is_staged(session: Session) -> None:
    task = session.load("Task.1")
    session.refresh(task)
    task.jobname += "+"
    session.save_all(flush=False)
    session.refresh(task)


def open_and_close_another(session: Session) -> None:
    with Session(session.path) as other:
        len(other)


def fork(session: Session) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


OPERATIONS: dict[str, Callable[[Session], object]] = {
    "add": lambda session: session.add(Task()),
    "add without flush": lambda session: session.add(Task(), flush=False),
    "add a collection": lambda session: session.add(TaskCollection(tasks=[Task(), Task()]), flush=False),
    "add_many": lambda session: session.add_many([Task(), Task()]),
    "add_many of a generator": lambda session: session.add_many(Task() for _ in range(2)),
    "remove": lambda session: session.remove(session.add(Task(), flush=False)),
    "forget": lambda session: session.forget(session.add(Task(), flush=False)),
    "save": lambda session: session.save(session.load("Task.1"), force=True),
    "save_all": lambda session: session.save_all(),
    "transaction": in_transaction,
    "load": lambda session: session.load("Task.1"),
    "len": len,
    "in": lambda session: "Task.1" in session,
    "stats": lambda session: session.stats(),
    "refresh": refresh_what_is_staged,
    "open and close": open_and_close_another,
    "fork": fork,
    "compact": lambda session: session.compact(),
    "info": lambda session: session.info(scan=True),
    "check": lambda session: list(session.check()),
}


def in_another_thread(function: Callable[[], object]) -> None:
    """Call *function* in a thread of its own; nothing may keep it waiting."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for what the interrupted call holds"
    assert failures == []


def lock_of_mirror_is_free(path: Path) -> bool:
    with open(path / "store.url") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


STEPS = {"check": 11, "info": 5, "compact": 3, "open and close": 2}
"""Every which place is tried in the short form; of other operations each."""

BRIEFLY_ON_SERVERS = {"add", "transaction", "len"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what Python has swallowed
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(name, marks=() if name in BRIEFLY_ON_SERVERS else pytest.mark.slow_on_servers)
        for name in OPERATIONS
    ],
)
def test_what_is_added_after_a_signal_is_written(
    path: Path, operation: str, store_kind: str, long_form: bool
) -> None:
    step = 1 if long_form else STEPS.get(operation, 1 if store_kind == "lmdb" else 5)
    after: list[str] = []
    with Session(path) as session:
        session.add_many(Task() for _ in range(5))

        def go_on() -> None:
            after.append(session.add(Task(jobname="after")))
            if len(after) > 20:
                session.remove(after.pop(0))

        for _ in all_interrupted(lambda: OPERATIONS[operation](session), step):
            assert lock_of_mirror_is_free(path)
            in_another_thread(go_on)
            go_on()
        assert after
        with Session(path, read_only=True) as other:
            names = [task.jobname for task in other]
            assert [task.persistent_id for task in other.select(name="^after$")] == after
        assert names.count("of the transaction") % 2 == 0
    check(path)


def stored(session: Session, id_: str) -> Task:
    with Session(session.path, read_only=True) as other:
        task = other.load(id_)
        assert isinstance(task, Task)
        return task


def test_assignment_that_is_repeated_after_a_signal_is_saved(session: Session) -> None:
    task = Task(returncode=0)
    id_ = session.add(task)
    values = [1]
    for _ in all_interrupted(lambda: setattr(task, "returncode", values[-1])):
        task.returncode = values[-1]
        session.save_all()
        assert stored(session, id_).returncode == values[-1]
        values.append(values[-1] + 1)
    assert len(values) > 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_refresh_that_a_signal_interrupts_gives_up_what_is_staged_or_keeps_it(session: Session) -> None:
    task = Task(jobname="")
    id_ = session.add(task)
    outcomes = set()

    def stage(jobname: str) -> None:
        session.refresh(task)
        task.jobname = jobname
        session.save_all(flush=False)

    stage("0")
    for n, _ in enumerate(all_interrupted(lambda: session.refresh(task))):
        session.flush()
        kept = stored(session, id_).jobname == str(n)
        assert kept or task.jobname == stored(session, id_).jobname
        outcomes.add(kept)
        stage(str(n + 1))
    assert outcomes == {True, False}


@pytest.mark.lmdb
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_session_whose_closing_was_interrupted_can_be_closed(path: Path) -> None:
    sessions = [Session(path)]
    sessions[0].add(Task())
    for _ in all_interrupted(lambda: sessions[-1].close()):
        sessions[-1].close()
        repair_session(path)  # which refuses while this process has the store open
        sessions.append(Session(path))
        sessions[-1].add(Task(), flush=False)
    assert len(check(path)) == len(sessions) > 1


# -- the context managers ---------------------------------------------------------------------------


@signal_safe
def noting(events: list[str]) -> Iterator[str]:
    events.append("entered")
    try:
        yield "value"
        events.append("went on")
    except ValueError:
        events.append("swallowed")
    finally:
        events.append("left")


def test_signal_safe_context_managers_are_left_as_those_of_contextlib_are() -> None:
    events: list[str] = []
    with noting(events) as value:
        events.append(value)
    assert events == ["entered", "value", "went on", "left"]
    events.clear()
    with noting(events):
        raise ValueError
    assert events == ["entered", "swallowed", "left"]
    for error in (KeyError("k"), StopIteration(1), RuntimeError("r"), GeneratorExit()):
        events.clear()
        with pytest.raises(type(error)) as caught, noting(events):
            raise error
        assert caught.value is error
        assert events == ["entered", "left"]


def test_signal_safe_context_managers_are_left_by_an_exit_stack() -> None:
    events: list[str] = []
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(noting(events)) == "value"
        events.append("in")
    assert events == ["entered", "in", "went on", "left"]
    events.clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(noting(events))
        raise ValueError
    assert events == ["entered", "swallowed", "left"]


def test_transaction_in_an_exit_stack_is_undone(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), contextlib.ExitStack() as stack:
        stack.enter_context(session.transaction())
        session.add(Task())
        raise ZeroDivisionError
    assert len(session) == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(session.transaction())
        session.add(Task())
    assert len(session) == 1


def test_stop_iteration_goes_through_a_transaction(session: Session) -> None:
    with pytest.raises(StopIteration), session.transaction():
        session.add(Task())
        next(iter(()))
    assert len(session) == 0
