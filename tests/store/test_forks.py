"""What parent and child of a fork must not share."""

from __future__ import annotations

import fcntl
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from children import Child, in_child
from consistency import check
from gc3session import Session, Task


def test_child_locks_the_store_for_itself(session: Session) -> None:
    # One open file shared by both would let both write at once.
    session.add(Task())
    environment = session.store.tables._env
    parents = os.dup(environment._files.writer.fd)

    def child() -> bool:
        session.add(Task())
        fcntl.flock(environment._files.writer.fd, fcntl.LOCK_EX)
        try:
            fcntl.flock(parents, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    try:
        assert in_child(child)
    finally:
        os.close(parents)


def test_child_opens_the_environment_anew(session: Session) -> None:
    # LMDB forbids the use of an environment in a child of the process that opened it.
    id_ = session.add(Task())
    environment = session.store.tables._env
    parents = environment.opened()

    def child() -> bool:
        closed = not environment.is_open
        assert id_ in session
        return closed and environment.opened() is not parents

    assert in_child(child)
    assert id_ in session


def test_child_begins_afresh_where_a_new_task_was_changed_before_it_was_written(session: Session) -> None:
    # The numbers that the parent has reserved stay its own: what the child adds gets others.
    task = Task()
    session.add(task, flush=False)
    task.jobname = "changed"

    def child() -> tuple[str | None, str]:
        return task.persistent_id, session.add(Task(jobname="the child's"))

    without, id_ = in_child(child)
    assert without is None
    session.save_all()
    assert session.add(Task()) != id_
    assert session[id_].jobname == "the child's"
    assert session[task.persistent_id].jobname == "changed"
    assert len(session) == 3


def fork_in_threads(path: Path) -> int:
    """Fork from several threads at once, each with sessions of its own; return how many have come to an end."""
    done = []

    def fork(session: Session) -> None:
        for _ in range(20):
            with Session(path) as another:  # so that the forks have not all the same stores
                another.add(Task())
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
        session.add(Task())
        done.append(session)

    sessions = [Session(path) for _ in range(4)]
    threads = [threading.Thread(target=fork, args=(session,), daemon=True) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(done)


def test_threads_that_fork_at_the_same_time_all_go_on(tmp_path: Path) -> None:
    assert in_child(fork_in_threads, tmp_path / "session") == 4
    assert len(check(tmp_path / "session")) == 4 * 21


def test_fork_lets_a_thread_take_the_store_that_it_waits_for_in_a_transaction_of_another(tmp_path: Path) -> None:
    def attempt() -> bool:
        one, other = Session(tmp_path / "one"), Session(tmp_path / "other")
        entered, forking = threading.Event(), threading.Event()

        def write_to_both(outer: Session, inner: Session) -> None:
            with outer.transaction():
                entered.set()
                forking.wait()
                inner.add(Task())

        ended = True
        for outer, inner in ((one, other), (other, one)):  # one of the two is not the order of the fork
            entered.clear()
            forking.clear()
            thread = threading.Thread(target=write_to_both, args=(outer, inner), daemon=True)
            thread.start()
            entered.wait()
            threading.Timer(0.1, forking.set).start()  # when the fork has begun, or not yet: it is right in both
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            thread.join(60)
            ended = ended and not thread.is_alive()
        return ended

    child = Child(attempt)
    watch = threading.Timer(60, child.kill)
    watch.start()
    try:
        assert child.result()
    finally:
        watch.cancel()


def test_child_that_is_forked_while_nothing_is_collected_collects_again(session: Session) -> None:
    """`add_many` pauses the collection of cycles; another thread may fork meanwhile."""
    tasks = [Task() for _ in range(30_000)]
    assert gc.isenabled()
    enabled: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(session.add_many, tasks)
        while not adding.done():
            enabled.append(in_child(gc.isenabled))
        adding.result()
    assert all(enabled)
    assert gc.isenabled()
