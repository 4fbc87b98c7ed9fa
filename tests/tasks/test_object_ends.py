"""What ends with something unwritten or unsaved: workers, coroutines, dropped and closed sessions, programs."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import signal
import textwrap
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from children import start_python
from examples import Simulation
from gc3session import (
    ClosedError,
    InvalidArgument,
    Session,
    Task,
    UnsavedWarning,
    UnstorableValue,
    make_store,
)

ON_EVERY_STORE = True

MakeSession = Callable[..., Session]


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """A function that runs a program in a file of its own; it returns what that wrote to stdout and stderr."""

    def run(source: str, *args: object, status: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
        script = tmp_path / "campaign.py"
        script.write_text(textwrap.dedent(source))
        process = start_python(script, *args, env=env or {})
        out, err = process.communicate()
        assert process.returncode == status, err
        return out, err

    return run


Program = Callable[..., tuple[str, str]]


def names(path: Path) -> list[str]:
    with Session(path, read_only=True) as session:
        return sorted(task.jobname for task in session)


# -- workers ------------------------------------------------------------------

WORKERS = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from gc3session import Session, Task

path, kind, start = sys.argv[1:4]
session = None

def open_session():
    global session
    session = Session(path)

def record(first):
    if session is None:
        open_session()
    for n in range(first, first + 7):
        session.add(Task(jobname=f"{n:03}"), flush=False)
    return [os.getpid()]

def fails(first):
    record(first)
    raise RuntimeError("on purpose")

if __name__ == "__main__":
    context = multiprocessing.get_context(start)
    firsts = range(0, 70, 7)
    if kind == "inherited":  # by fork
        open_session()
        session.add(Task(jobname="parent's"), flush=False)
    if kind in ("process", "inherited", "fails"):
        target = fails if kind == "fails" else record
        processes = [context.Process(target=target, args=(first,)) for first in firsts]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} == {1 if kind == "fails" else 0}
    elif kind == "executor":
        with ProcessPoolExecutor(3, mp_context=context) as executor:
            list(executor.map(record, firsts))
    elif kind == "initializer":
        with ProcessPoolExecutor(3, mp_context=context, initializer=open_session) as executor:
            list(executor.map(record, firsts))
    elif kind == "pool":
        pool = context.Pool(3)
        pool.map(record, firsts)
        pool.close()
        pool.join()
    elif kind == "one task a worker":
        pool = context.Pool(3, open_session, maxtasksperchild=1)
        pool.map(record, firsts)
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        *[(kind, start) for kind in ("process", "executor", "pool") for start in ("fork", "forkserver", "spawn")],
        ("inherited", "fork"),
        ("initializer", "fork"),
        ("one task a worker", "fork"),
        ("fails", "fork"),
    ],
)
def test_batch_of_a_worker_is_written_when_the_worker_ends(
    path: Path, program: Program, kind: str, start: str
) -> None:
    _, err = program(WORKERS, path, kind, start)
    expected = [f"{n:03}" for n in range(70)]
    assert names(path) == expected + ["parent's"] * (kind == "inherited")
    if kind != "fails":
        assert err == ""


def test_worker_that_exits_or_forks_itself_writes_its_batch_once(path: Path, program: Program) -> None:
    source = """
        import multiprocessing, os, sys
        from gc3session import Session, Task

        def grandchild(session):
            session.add(Task(jobname="grandchild"), flush=False)

        def child():
            session = Session(sys.argv[1])
            session.add(Task(jobname="child"), flush=False)
            process = multiprocessing.get_context("fork").Process(target=grandchild, args=(session,))
            process.start()
            process.join()
            sys.exit(3)

        if __name__ == "__main__":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 3
            if os.fork() == 0:  # ends as a program does
                session = Session(sys.argv[1])
                session.add(Task(jobname="forked"), flush=False)
                sys.exit()
            os.wait()
    """
    program(source, path)
    assert names(path) == ["child", "forked", "grandchild"]


def test_worker_is_told_of_its_own_unsaved_changes_and_not_of_its_parent_s(path: Path, program: Program) -> None:
    source = """
        import multiprocessing, sys
        from gc3session import Session, Task

        def quiet(n):
            return len(session)

        def forgets(n):
            session.load(ids[n]).jobname = "child's"

        if __name__ == "__main__":
            session = Session(sys.argv[1])
            ids = list(session.add_many(Task(extra={}) for _ in range(10)))
            tasks = list(session)
            tasks[0].state = "RUNNING"
            tasks[1].extra["inside"] = 1
            for target in (quiet, forgets):
                process = multiprocessing.get_context("fork").Process(target=target, args=(5,))
                process.start()
                process.join()
                print(target.__name__, file=sys.stderr, flush=True)
            session.save_all()
    """
    _, err = program(source, path)
    before, _, rest = err.partition("quiet\n")
    assert before == ""
    told, _, after = rest.partition("forgets\n")
    assert "changes of 1 object" in told
    assert after == ""


# -- coroutines, threads, generators ------------------------------------------


def test_coroutine_is_refused_while_another_one_is_inside_a_transaction(session: Session) -> None:
    task = Task(jobname="before")
    kept: list[str] = []

    async def transacts(entered: asyncio.Event, tried: asyncio.Event) -> None:
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="on purpose"), session.transaction():
            session.add(Task(jobname="rolled back"))
            entered.set()
            await tried.wait()
            session.add(Task(jobname="rolled back, too"))
            raise RuntimeError("on purpose")

    async def adds(entered: asyncio.Event, tried: asyncio.Event) -> None:
        kept.append(session.add(task))
        kept.append(session.add(Task(jobname="batch"), flush=False))
        await entered.wait()
        task.jobname = "changed"
        writes: list[Callable[[], object]] = [
            lambda: session.add(Task()),
            lambda: session.add(Task(), flush=False),
            lambda: session.add_many([Task()]),
            lambda: session.save(task),
            lambda: session.save(task, flush=False),
            session.save_all,
            lambda: session.remove(kept[0]),
            lambda: session.forget(kept[0]),
            session.flush,
            lambda: session.update(session.select(id=f"^{kept[0]}$"), jobname="other"),
            lambda: session.transaction().__enter__(),
        ]
        for write in writes:
            with pytest.raises(InvalidArgument, match="transaction"):
                write()
        assert session.load(kept[0]) is task  # who reads isn't refused
        tried.set()
        await asyncio.sleep(0)
        kept.append(session.add(Task(jobname="afterwards")))

    async def main() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(transacts(*events), adds(*events))

    asyncio.run(main())
    task.jobname = "before"
    session.save_all()
    assert list(session.ids()) == kept
    assert [task.jobname for task in session] == ["before", "batch", "afterwards"]
    with Session(session.path, read_only=True) as other:
        assert [task.jobname for task in other] == ["before", "batch", "afterwards"]


def test_coroutines_that_do_not_wait_inside_their_transactions_take_turns(session: Session) -> None:
    async def add(n: int) -> None:
        for _ in range(3):
            with session.transaction():
                session.add(Task(jobname=str(n)))
                session.add(Task(jobname=str(n)), flush=False)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*map(add, range(5)))

    asyncio.run(main())
    assert len(session) == 30


def test_coroutine_of_a_transaction_may_wait_inside_it(session: Session) -> None:
    async def main() -> None:
        with session.transaction():
            session.add(Task(jobname="one"))
            await asyncio.sleep(0)
            session.add(Task(jobname="two"))

    asyncio.run(main())
    with session.transaction():  # of a program that then runs coroutines: it is theirs, too
        asyncio.run(main())
    assert names(session.path) == ["one", "one", "two", "two"]


def test_thread_waits_for_the_transaction_of_another(session: Session) -> None:
    entered, order = threading.Event(), []

    def transacts() -> None:
        with session.transaction():
            session.add(Task(jobname="a"))
            entered.set()
            threading.Event().wait(0.2)
            session.add(Task(jobname="a"))
            order.append("transaction")

    def adds() -> None:
        entered.wait()
        session.add(Task(jobname="b"))
        order.append("add")

    threads = [threading.Thread(target=target) for target in (transacts, adds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["transaction", "add"]
    assert [task.jobname for task in session] == ["a", "a", "b"]


def test_thread_of_a_coroutine_waits_for_the_transaction(session: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with session.transaction():
            session.add(Task(jobname="a"))
            added = loop.run_in_executor(None, session.add, Task(jobname="b"))
            await asyncio.sleep(0.1)
            assert not added.done()
            session.add(Task(jobname="a"))
        await added

    asyncio.run(main())
    assert [task.jobname for task in session] == ["a", "a", "b"]


def test_generator_shares_its_transaction_with_its_caller(session: Session) -> None:
    def steps(fail: bool) -> Generator[None]:
        with session.transaction():
            session.add(Task(jobname="generator's"))
            yield
            if fail:
                raise RuntimeError("on purpose")

    for _ in steps(fail=False):
        session.add(Task(jobname="caller's"))
        assert names(session.path) == []
    assert names(session.path) == ["caller's", "generator's"]
    with pytest.raises(RuntimeError, match="on purpose"):
        for _ in steps(fail=True):
            session.add(Task(jobname="given up"))
    assert len(session) == 2
    generator = steps(fail=False)
    next(generator)
    session.add(Task(jobname="given up"))
    generator.close()
    assert names(session.path) == ["caller's", "generator's"]
    session.add(Task())
    assert len(session) == 3


# -- a session that is dropped ------------------------------------------------


def test_dropped_session_warns_and_its_batch_is_on_disk_after_the_program(path: Path, program: Program) -> None:
    source = """
        import gc, sys
        from gc3session import Session, Task

        def record():
            session = Session(sys.argv[1])
            for n in range(10):
                session.add(Task(jobname=str(n)), flush=False)

        record()
        gc.collect()
        print("dropped", file=sys.stderr)
    """
    for option in ({}, {"PYTHONWARNINGS": "error"}, {"PYTHONWARNINGS": "ignore"}):
        with Session(path) as session:
            session.remove_many(list(session.ids()))
        _, err = program(source, path, env=option)
        warned, _, after = err.partition("dropped\n")
        if option != {"PYTHONWARNINGS": "ignore"}:
            assert "UnsavedWarning" in warned
            assert "of 10 objects" in warned
        assert after == ""
        assert names(path) == [str(n) for n in range(10)]


def test_session_that_is_dropped_with_a_batch_warns_and_can_be_written_at_the_end(
    make_session: MakeSession, program: Program, path: Path
) -> None:
    source = """
        import gc, sys, warnings
        from gc3session import Session, Task, UnsavedWarning

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session = Session(sys.argv[1])
            session.cycle = session  # which only the garbage collection finds
            session.add(Task(jobname="batch"), flush=False)
            del session
            gc.collect()
            caught[:] = [warning for warning in caught if warning.category is not ResourceWarning]  # of psycopg
            assert [warning.category for warning in caught] == [UnsavedWarning], caught
            session = Session(sys.argv[1])
            session.add(Task(jobname="other"))
            session.close()
            session = Session(sys.argv[1])
            del session
            gc.collect()
            assert [warning.category for warning in caught if warning.category is not ResourceWarning] == [UnsavedWarning]
    """
    program(source, path)
    assert names(path) == ["batch", "other"]


# -- close with unsaved changes -----------------------------------------------


def assign(session: Session) -> object:
    task = next(iter(session))
    task.jobname = "other"
    return task


def change_inside(session: Session) -> object:
    task = next(iter(session))
    task.extra["x"] = 1
    return task


def change_and_let_go(session: Session) -> None:
    session.load(next(session.ids())).extra["x"] = 1
    gc.collect()


def change_members(session: Session) -> object:
    task = Simulation(inputs={"member": Task()})
    session.add(task)
    task.inputs["member"].extra["x"] = 1
    return task


@pytest.mark.parametrize("change", [assign, change_inside, change_and_let_go, change_members])
def test_closing_with_unsaved_changes_warns(
    make_session: MakeSession, change: Callable[[Session], object]
) -> None:
    session = make_session()
    session.add_many(Task() for _ in range(3))
    held = change(session)
    with pytest.warns(
        UnsavedWarning, match=r"'session' is closed: changes of 1 object were never saved"
    ) as caught:
        session.close()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.close()
        with make_session() as session:
            held = change(session)
            session.save_all()
        with make_session() as session:
            held = list(session), session.load(next(session.ids()))
    del held


def test_closing_with_changes_that_are_kept_as_records_says_how_many(make_session: MakeSession) -> None:
    session = make_session()
    session.add_many(Task() for _ in range(5000))
    for task in session:
        task.extra["x"] = 1
    del task
    assert session.store.changes.records
    with pytest.warns(UnsavedWarning, match="changes of 5000 objects were never saved"):
        session.close()
    with Session(session.path, read_only=True) as other:
        assert all(task.extra == {} for task in other)


def leave(session: Session) -> None:
    with session:
        pass


def test_leaving_with_warns_and_a_read_only_session_does_not(make_session: MakeSession) -> None:
    session = make_session()
    session.add(Task())
    held = assign(session)
    with pytest.warns(UnsavedWarning) as caught:
        leave(session)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Session(session.path, read_only=True) as other:
            held = assign(other), change_inside(other)
    del held


def test_closing_a_store_with_unsaved_changes_warns(tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store:
        session = Session(tmp_path / "s", store_or_url=store)
        session.add(Task())
        task = assign(session)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.close()  # the store goes on, and the change may yet be saved
        store.save(task)
        task.extra["x"] = 1
        with pytest.warns(UnsavedWarning, match="changes of 1 object were never saved") as caught:
            store.close()
        assert len(caught) == 1


# -- the end of a program -----------------------------------------------------


def test_program_that_ends_with_unsaved_changes_says_so(path: Path, program: Program) -> None:
    source = """
        import sys
        from gc3session import Session, Task

        session = Session(sys.argv[1])
        ids = session.add_many(Task(jobname=str(n)) for n in range(3))
        task = session.load(ids[0])
        task.extra["x"] = 1
        session.load(ids[1]).state = "RUNNING"
        session.add(Task(jobname="batch"), flush=False)
    """
    _, err = program(source, path)
    assert err.count("\n") == 1
    assert err.startswith("gc3session: changes of 2 objects in ")
    assert "were never saved" in err
    assert "save_all()" in err
    assert names(path) == ["0", "1", "2", "batch"]
    with Session(path, read_only=True) as session:
        assert session.stats() == {"NEW": 4}


def test_record_that_conflicts_at_the_end_of_a_program_does_not_take_the_others_along(
    path: Path, program: Program
) -> None:
    source = """
        import sys
        from gc3session import Session, Task

        session = Session(sys.argv[1])
        tasks = [Task(jobname=str(n)) for n in range(4)]
        ids = session.add_many(tasks)
        for task in tasks:
            task.jobname += " mine"
            session.save(task, flush=False)
        session.add(Task(jobname="new"), flush=False)
        with Session(sys.argv[1]) as other:
            other.load(ids[1]).jobname = "theirs"
            other.save_all()
            other.remove(ids[2])
    """
    _, err = program(source, path)
    assert "Task.2" in err
    assert "Task.3" in err
    assert "Task.1" not in err
    assert "can't be written" in err
    assert "Traceback" not in err
    assert names(path) == ["0 mine", "3 mine", "new", "theirs"]


@pytest.mark.parametrize("forgotten", [True, False])
def test_task_that_was_removed_while_it_was_added_does_not_keep_a_program_from_ending(
    path: Path, program: Program, forgotten: bool
) -> None:
    source = f"""
        import sys
        from gc3session import ConflictError, Session, Task

        session = Session(sys.argv[1])
        ids = session.add_many([Task(), Task(jobname="kept")])
        session.forget(ids[0])
        session.load(ids[0], add=True, flush=False)
        session.add(Task(jobname="new"), flush=False)
        session.store.invalidate_cache()
        with Session(sys.argv[1]) as other:
            other.store.remove(ids[0])
        if {forgotten}:
            try:
                session.flush()
            except ConflictError as error:
                session.forget(*error.ids)
    """
    _, err = program(source, path)
    assert ("can't be written" in err) is not forgotten
    assert "Traceback" not in err
    assert names(path) == ["kept", "new"]


@pytest.mark.parametrize("dropped", [True, False])
def test_what_joins_and_leaves_is_written_at_the_end_of_a_program_without_any_record(
    path: Path, program: Program, dropped: bool
) -> None:
    source = f"""
        import sys, warnings
        from gc3session import Session, Task

        warnings.simplefilter("ignore")
        session = Session(sys.argv[1])
        ids = session.add_many(Task(jobname=str(n)) for n in range(3))
        session.forget(ids[0])
        session.load(ids[0], add=True, flush=False)
        session.forget(ids[1], flush=False)
        if {dropped}:
            del session
    """
    program(source, path)
    assert names(path) == ["0", "2"]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("sys.exit(3)", 3),
        ("raise RuntimeError", 1),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("", 0),
    ],
)
def test_batch_is_written_however_the_program_ends_of_its_own_accord(
    path: Path, program: Program, ending: str, status: int, not_ignored: None
) -> None:
    source = f"""
        import os, signal, sys
        from gc3session import Session, Task

        signal.signal(signal.SIGINT, signal.default_int_handler)
        session = Session(sys.argv[1])
        session.add(Task(jobname="batch"), flush=False)
        {ending}
    """
    program(source, path, status=status)
    assert names(path) == ["batch"]


@pytest.mark.lmdb
def test_batch_that_can_not_be_written_at_the_end_is_told_of(path: Path, program: Program) -> None:
    source = """
        import shutil, sys
        from gc3session import Session, Task

        session = Session(sys.argv[1])
        session.add(Task(jobname="there"))
        session.add(Task(jobname="batch"), flush=False)
        session.add(Task(jobname="batch"), flush=False)
        shutil.rmtree(sys.argv[1])
    """
    _, err = program(source, path)
    assert "of 2 objects, is lost" in err
    assert "Traceback" not in err
    assert not os.path.exists(path)


# -- destroyed, and made again ------------------------------------------------


@pytest.mark.parametrize("write_first", [True, False])
def test_tasks_of_a_destroyed_session_can_be_compared_and_copied_to_a_new_one(
    make_session: MakeSession, write_first: bool
) -> None:
    session = make_session()
    old, changed = Simulation(mesh="m"), Simulation(mesh="c")
    session.add_many([old, changed])
    changed.mesh = "changed"
    session.destroy()
    session = make_session()
    new = Simulation()
    if write_first:
        session.add(new)
    assert old != new
    assert old not in session
    assert changed not in session
    assert len({old, new, changed}) == 3
    assert [task for task in session if task in (old, changed)] == []
    assert new in [old, new]
    repr(old)
    old.steps = 3
    for task in (old, changed):
        if task.persistent_id is not None:  # else its record was removed from a store that stays
            with pytest.raises(InvalidArgument, match=r"which was destroyed or replaced; store a copy"):
                session.add(task)
            task = copy.copy(task)
        id_ = session.add(task)
        with Session(session.path, read_only=True) as other:
            assert (other.load(id_).mesh, other.load(id_).steps) == (task.mesh, task.steps)


def test_tasks_of_a_closed_session_are_those_of_the_session_that_is_opened_again(
    make_session: MakeSession,
) -> None:
    session = make_session()
    task = Simulation(mesh="m")
    id_ = session.add(task)
    session.close()
    with pytest.raises(ClosedError):
        session.save(task)
    session = make_session()
    assert task in session
    task.mesh = "n"
    assert session.add(task) == id_
    with Session(session.path, read_only=True) as other:
        assert other.load(id_).mesh == "n"


# -- add_many -----------------------------------------------------------------


class Stop(BaseException):
    pass


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
def test_what_a_generator_gave_before_it_raised_is_in_the_session(
    session: Session, count: int, error: type[BaseException], flush: bool
) -> None:
    def tasks() -> Iterator[Task]:
        for n in range(count):
            yield Task(jobname=f"{n:03}")
        raise error

    with pytest.raises(error):
        session.add_many(tasks(), flush=flush)
    expected = [f"{n:03}" for n in range(count)]
    assert [task.jobname for task in session] == expected
    session.flush()
    assert names(session.path) == expected


def test_what_came_before_a_task_that_can_not_be_stored_is_in_the_session(session: Session) -> None:
    def tasks() -> Iterator[Task]:
        for n in range(250):
            yield Task(jobname=f"{n:03}", extra={"bad": print} if n == 130 else {})

    with pytest.raises(UnstorableValue):
        session.add_many(tasks())
    assert names(session.path) == [f"{n:03}" for n in range(130)]


def test_generator_that_raises_inside_a_transaction_takes_it_along(session: Session) -> None:
    def tasks() -> Iterator[Task]:
        for n in range(150):
            yield Task(jobname=f"{n:03}")
        raise RuntimeError

    with pytest.raises(RuntimeError), session.transaction():
        session.add_many(tasks())
    assert len(session) == 0
    with session.transaction():
        with pytest.raises(RuntimeError):
            session.add_many(tasks())
        assert len(session) == 150
    assert names(session.path) == [f"{n:03}" for n in range(150)]
