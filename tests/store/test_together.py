"""Processes, threads and forks that use one session at the same time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from children import Child, in_child, run_python
from consistency import check, number_of, read_mirror
from examples import Simulation, Sweep
from gc3session import ConflictError, Session, Task

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True

PROCESSES, TASKS = 4, 10_000


def whole(process: int, number: int) -> Simulation:
    """Return a task whose fields all say the same, so that a torn one would show."""
    return Simulation(
        jobname=f"{process}/{number}",
        steps=number,
        mesh=f"m{number}" * 5,
        inputs={"n": [number] * 5, "p": process},
    )


def is_whole(task: Simulation) -> bool:
    process, number = map(int, task.jobname.split("/"))
    return (task.steps, task.mesh) == (number, f"m{number}" * 5) and task.inputs == {
        "n": [number] * 5,
        "p": process,
    }


def add_in_every_way(path: Path, process: int, count: int) -> list[str]:
    """Add *count* tasks: some durably one by one, most in batches of different sizes."""
    ids: list[str] = []
    with Session(path) as session:
        tasks = (whole(process, number) for number in range(count))
        for number, task in enumerate(tasks):
            ids.append(session.add(task, flush=number % 500 < 10))
            if number % (97 + process) == 0:
                session.flush()
            if number % 2000 == 1999:
                ids += session.add_many(task for _, task in zip(range(1000), tasks, strict=False))
    return ids


def test_four_processes_add_to_one_session_and_a_reader_sees_no_torn_task(path: Path, long_form: bool) -> None:
    tasks = TASKS if long_form else TASKS // 4
    writers = [Child(add_in_every_way, path, process, tasks) for process in range(PROCESSES)]
    results: list[list[str]] = []
    collector = threading.Thread(target=lambda: results.extend(writer.result() for writer in writers))
    collector.start()
    seen: list[int] = []
    with Session(path, read_only=True) as reader:
        while collector.is_alive():
            count = 0
            for task in reader:
                assert is_whole(task)
                count += 1
            seen.append(count)
            stats = reader.stats()
            assert set(stats) <= {"NEW"}
        collector.join()
        assert seen == sorted(seen), "a task that had been there was not seen again"
        assert len(reader) == PROCESSES * tasks
    ids = [id_ for result in results for id_ in result]
    assert len(results) == PROCESSES
    assert len(set(ids)) == len(ids) == PROCESSES * tasks
    assert set(read_mirror(path)) == set(ids)
    assert set(check(path)) == set(ids)
    with Session(path, read_only=True) as session:
        names = Counter(task.jobname for task in session)
        assert set(names.values()) == {1}
        assert len(names) == PROCESSES * tasks
        order = list(session.tasks)
    for result in results:
        mine = set(result)
        assert [id_ for id_ in order if id_ in mine] == result, "the order of adding"


def test_processes_that_make_the_session_at_once_share_it(tmp_path: Path, store_options: dict[str, str]) -> None:
    for attempt in range(5):
        path = tmp_path / str(attempt)
        children = [Child(add_few, path, process, store_options) for process in range(4)]
        ids = [id_ for child in children for id_ in child.result()]
        assert len(set(ids)) == 40
        assert set(check(path)) == set(ids)


def add_few(path: Path, process: int, options: dict[str, str] | None = None) -> list[str]:
    with Session(path, **(options or {})) as session:
        return [session.add(whole(process, number)) for number in range(10)]


def test_processes_change_and_remove_while_others_add(path: Path) -> None:
    with Session(path) as session:
        groups = [list(session.add_many(whole(9, n) for n in range(200))) for _ in range(3)]
    children = [
        Child(change_all, path, groups[0]),
        Child(remove_all, path, groups[1]),
        Child(add_few, path, 1),
        Child(forget_all, path, groups[2]),
    ]
    results = [child.result() for child in children]
    left = check(path)
    assert left == [*groups[0], *results[2]]
    with Session(path) as session:
        assert session.stats() == {"DONE": 200, "NEW": 10}
        assert set(session.store.list()) == {*left, *groups[2]}


def change_all(path: Path, ids: list[str]) -> None:
    with Session(path) as session:
        for id_ in ids:
            task = session.load(id_)
            task.state = "DONE"
            session.save(task)


def remove_all(path: Path, ids: list[str]) -> None:
    with Session(path) as session:
        for id_ in ids:
            session.remove(id_)


def forget_all(path: Path, ids: list[str]) -> None:
    with Session(path) as session:
        for i, id_ in enumerate(ids):
            session.forget(id_, flush=i % 20 == 0)


def test_of_two_processes_that_save_one_object_exactly_one_gets_a_conflict(path: Path) -> None:
    with Session(path) as session:
        id_ = session.add(Simulation())
    ready, go = os.pipe(), os.pipe()
    children = [Child(load_wait_and_save, path, id_, str(i), ready[1], go[0]) for i in range(2)]
    for _ in children:  # both have loaded it before either saves it
        assert os.read(ready[0], 1) == b"r"
    os.write(go[1], b"gg")
    results = sorted(child.result() for child in children)
    for end in (*ready, *go):
        os.close(end)
    assert [result for result in results if result == "conflict"] == ["conflict"]
    with Session(path) as session:
        assert session.load(id_).mesh in results
        assert session.load(id_).mesh != "conflict"
    check(path)


def load_wait_and_save(path: Path, id_: str, mesh: str, ready: int, go: int) -> str:
    with Session(path) as session:
        task = session.load(id_)
        os.write(ready, b"r")
        os.read(go, 1)
        task.mesh = mesh
        try:
            session.save(task)
        except ConflictError:
            return "conflict"
        return mesh


def test_no_increment_is_lost_when_conflicts_are_tried_again(path: Path) -> None:
    with Session(path) as session:
        id_ = session.add(Simulation(steps=0))
    children = [Child(increment, path, id_, 100) for _ in range(3)]
    for child in children:
        child.result()
    with Session(path) as session:
        assert session.load(id_).steps == 300
    check(path)


def increment(path: Path, id_: str, times: int) -> None:
    with Session(path) as session:
        task = session.load(id_)
        for _ in range(times):
            while True:
                task.steps += 1
                try:
                    session.save(task)
                except ConflictError:
                    session.refresh(task)
                else:
                    break


# -- threads ------------------------------------------------------------------


def in_threads(*functions: Callable[[], object]) -> None:
    """Run the functions at the same time; raise what one of them raised."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_share_one_session(session: Session) -> None:
    ids: list[str] = []

    def add(process: int) -> None:
        for number in range(300):
            ids.append(session.add(whole(process, number), flush=number % 10 == 0))
            if number % 50 == 0:
                session.flush()

    def read() -> None:
        for _ in range(10):
            assert all(is_whole(task) for task in session)
            assert len(session) >= 0
            assert sum(session.stats().values()) >= 0

    in_threads(lambda: add(0), lambda: add(1), lambda: add(2), read, read)
    session.flush()
    assert len(set(ids)) == 900
    assert session.list_ids() == set(ids)
    assert session.stats() == {"NEW": 900}


def test_threads_load_one_object(session: Session) -> None:
    ids = list(session.add_many(whole(0, number) for number in range(50)))
    for _ in range(20):
        loaded: list[list[Task]] = []

        def load(loaded: list[list[Task]] = loaded) -> None:
            loaded.append([session.load(id_) for id_ in ids])

        in_threads(*[load] * 4)
        for same in zip(*loaded, strict=True):
            assert len({id(task) for task in same}) == 1


def test_threads_with_sessions_of_their_own_add_to_one_directory(make_session: MakeSession) -> None:
    sessions = [make_session() for _ in range(4)]

    def add(session: Session, process: int) -> None:
        for number in range(100):
            session.add(whole(process, number), flush=number % 3 == 0)
        session.flush()

    in_threads(*(lambda s=s, i=i: add(s, i) for i, s in enumerate(sessions)))  # type: ignore[misc]
    assert {len(session) for session in sessions} == {400}


def test_thread_in_a_transaction_does_not_take_others_along(session: Session) -> None:
    started, ended = threading.Event(), threading.Event()
    ids: list[str] = []

    def fails() -> None:
        with pytest.raises(RuntimeError), session.transaction():
            session.add(Task(jobname="rolled back"))
            started.set()
            ended.wait(0.2)
            raise RuntimeError

    def adds() -> None:
        started.wait()
        ids.append(session.add(Task(jobname="kept")))
        ended.set()

    in_threads(fails, adds)
    assert list(session.tasks) == ids
    assert [task.jobname for task in session] == ["kept"]


def test_session_can_be_closed_in_another_thread(session: Session) -> None:
    session.add(Task(), flush=False)
    in_threads(session.close)
    assert len(read_mirror(session.path)) == 1


# -- fork ---------------------------------------------------------------------


def test_child_of_a_fork_uses_the_open_session(session: Session) -> None:
    first = session.add(Simulation(mesh="parent"))

    def child() -> list[str]:
        assert session.load(first).mesh == "parent"
        return [session.add(Simulation(mesh="child")) for _ in range(30)]

    theirs = in_child(child)
    mine = [session.add(Simulation(mesh="parent")) for _ in range(30)]
    assert list(session.tasks) == sorted([first, *theirs, *mine], key=number_of)
    assert {task.persistent_id for task in session if task.mesh == "child"} == {*theirs}


def test_unflushed_batch_stays_the_parents(session: Session) -> None:
    first = session.add(Task())
    batch = [session.add(Task(jobname="batch"), flush=False) for _ in range(10)]
    session.remove(first, flush=False)

    def child() -> tuple[list[str], list[str]]:
        seen = list(session.tasks)
        new = [session.add(Task(jobname="child"), flush=False)]
        session.close()
        return seen, new

    seen, theirs = in_child(child)
    assert seen == [first]
    assert not set(theirs) & set(batch)
    assert read_mirror(session.path) == [first, *theirs]
    session.flush()
    assert session.list_ids() == {*batch, *theirs}


def test_ids_of_parent_and_children_never_meet(session: Session) -> None:
    session.add(Task())
    children = [
        Child(lambda: [session.add(Task(), flush=False) for _ in range(200)] + [session.flush()]) for _ in range(3)
    ]
    mine = [session.add(Task(), flush=False) for _ in range(200)]
    session.flush()
    theirs = [id_ for child in children for id_ in child.result() if id_ is not None]
    assert len({*mine, *theirs}) == 800
    assert len(session) == 801


def test_fork_beside_a_live_writer_thread_is_safe(session: Session) -> None:
    stop, ids = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            ids.append(session.add(Task(jobname="thread")))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        theirs = []
        for i in range(15):
            theirs += in_child(add_after_fork, session, i)
    finally:
        stop.set()
        thread.join()
    assert len({*ids, *theirs}) == len(ids) + 15 * 5
    assert session.list_ids() == {*ids, *theirs}


def add_after_fork(session: Session, i: int) -> list[str]:
    assert len(list(session)) > 0 or len(session) == 0
    return [session.add(Task(jobname=f"child {i}")) for _ in range(5)]


def test_fork_inside_a_transaction_writes_nothing_in_the_child(session: Session) -> None:
    with session.transaction():
        mine = session.add(Task())
        assert in_child(lambda: list(session.tasks)) == []
    assert list(session.tasks) == [mine]


def test_fork_during_iteration_lets_both_go_on(session: Session) -> None:
    session.add_many(whole(0, number) for number in range(1000))

    def rest(tasks: Iterator[Task]) -> int:
        return sum(1 for _ in tasks)

    tasks = iter(session)
    next(tasks)
    assert in_child(rest, tasks) == 999
    assert rest(tasks) == 999


def test_pool_of_processes_records_into_one_session(path: Path) -> None:
    script = """
        import multiprocessing, sys
        from gc3session import Session, Task

        def work(number):
            with Session(sys.argv[1]) as session:
                return session.add(Task(jobname=str(number), state="TERMINATED", returncode=0))

        session = Session(sys.argv[1])
        with multiprocessing.get_context("fork").Pool(3) as pool:
            ids = pool.map(work, range(60))
        assert session.list_ids() == set(ids) and len(ids) == 60
        assert session.stats() == {"TERMINATED": 60}
    """
    run_python(script, path)
    check(path)


# -- growth -------------------------------------------------------------------


@pytest.mark.lmdb
def test_map_grows_with_its_contents(make_session: MakeSession) -> None:
    session = make_session(map_size=1 << 16)
    ids = [session.add(Task(extra={"bytes": bytes([i]) * 300_000})) for i in range(100)]
    assert [task.extra["bytes"][0] for task in session] == list(range(100))
    assert list(session.tasks) == ids


@pytest.mark.lmdb
def test_map_that_another_process_has_grown_is_taken_over(make_session: MakeSession) -> None:
    session = make_session(map_size=1 << 16)
    session.add(Task())
    theirs = in_child(add_large, session.path)
    assert session.load(theirs[-1]).extra["bytes"] == bytes(500_000)
    session.add(Task())
    theirs += in_child(add_large, session.path)
    session.add(Task())
    assert set(theirs) <= session.list_ids()


def add_large(path: Path) -> list[str]:
    with Session(path, map_size=1 << 16) as session:
        return [session.add(Task(extra={"bytes": bytes(500_000)})) for _ in range(80)]


@pytest.mark.lmdb
def test_iteration_goes_on_while_the_map_grows(make_session: MakeSession) -> None:
    session = make_session(map_size=1 << 16)
    session.add_many(whole(0, number) for number in range(600))
    count = 0
    for task in session:
        assert is_whole(task)
        if count % 100 == 0:
            session.save(Task(extra={"bytes": bytes(3_000_000)}))
        count += 1
    assert count == 600


@pytest.mark.lmdb
def test_open_iterators_do_not_make_the_file_grow(session: Session) -> None:
    session.add_many(whole(0, number) for number in range(1000))
    iterators = [iter(session) for _ in range(3)]
    for tasks in iterators:
        next(tasks)
    [task, *_] = session
    data = Path(session.path, "jobs", "data.mdb")
    session.save(task, force=True)
    size = data.stat().st_size
    for i in range(500):
        task.state = f"state {i}"
        session.save(task)
    assert data.stat().st_size - size < 400_000, "a transaction was held open"
    assert [sum(1 for _ in tasks) for tasks in iterators] == [999] * 3


def test_sweep_saved_by_one_process_is_read_by_another_with_its_tasks(make_session: MakeSession) -> None:
    session = make_session()
    id_ = session.add(Sweep(tasks=[whole(0, number) for number in range(50)]))

    def child() -> int:
        return sum(is_whole(task) for task in Session(session.path, read_only=True).load(id_))

    assert in_child(child) == 50
