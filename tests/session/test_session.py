"""Sessions: the seed's whole API, and what people expect on top of it."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from children import run_python
from consistency import check, number_of, read_mirror
from examples import Note, Simulation, Sweep
from gc3session import (
    ClosedError,
    ConflictError,
    DamagedSession,
    Error,
    InvalidArgument,
    LoadError,
    MirrorWarning,
    NotASession,
    NotFound,
    NotInSession,
    Persistable,
    ReadOnlyError,
    Session,
    Store,
    Task,
    TaskCollection,
    TemporarySession,
    UnsavedWarning,
    UnstorableValue,
    check_session,
    make_store,
)

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True

FILES = ["created", "session_ids.txt", "store.url"]


def simulations(count: int) -> Iterator[Simulation]:
    return (Simulation(mesh=f"m{i}", jobname=f"job {i}") for i in range(count))


def contents(directory: Path | str) -> dict[str, tuple[bytes, int]]:
    """Return bytes and mtime of each file in a directory; of LMDB's lock file neither."""
    found = {}
    for file in sorted(Path(directory).rglob("*")):
        if file.is_file() and file.name != "lock.mdb":
            found[os.fspath(file)] = (file.read_bytes(), file.stat().st_mtime_ns)
    return found


# -- opening ------------------------------------------------------------------


def test_new_session_holds_exactly_three_files(session: Session) -> None:
    assert sorted(os.listdir(session.path)) == FILES
    assert len(session) == 0
    assert session.list_ids() == set()
    assert list(session) == []
    assert session.stats() == {}
    assert sorted(os.listdir(session.path)) == FILES, "reading has made something"


@pytest.mark.lmdb
def test_jobs_directory_is_made_by_the_first_write(session: Session) -> None:
    session.add(Task())
    assert sorted(os.listdir(session.path)) == sorted([*FILES, "jobs"])
    assert "data.mdb" in os.listdir(os.path.join(session.path, "jobs"))


def test_constants_are_those_of_gc3pie() -> None:
    assert Session.INDEX_FILENAME == "session_ids.txt"
    assert Session.STORE_URL_FILENAME == "store.url"
    assert Session.TIMESTAMP_FILES == {"start": "created", "end": "finished"}
    assert Session.DEFAULT_JOBS_DIR == "jobs"


def test_attributes_tell_where_and_what(session: Session, tmp_path: Path) -> None:
    assert os.fspath(session.path) == os.fspath(tmp_path / "session")
    assert session.name == "session"
    assert isinstance(session.store, Store)
    assert session.store_url == session.store.url
    assert isinstance(session.created, float)
    assert session.finished is None


@pytest.mark.parametrize("inside", [True, False])
def test_path_that_is_not_utf8_works(tmp_path: Path, inside: bool) -> None:
    path, store, copy = (Path(os.fsdecode(os.fsencode(tmp_path / name) + b"\xff")) for name in "abc")
    with Session(path, store_or_url=None if inside else store) as session:
        session.add(Task(jobname="first"))
    with Session(path) as session:
        session.add(Task())
        session.compact()
        session.backup(copy)
        assert session.info().inside == inside
        assert session.list_names() == {"first", ""}
    assert check(path) == check(copy) == ["Task.1", "Task.2"]
    assert not [*check_session(path)]


def test_path_may_be_relative_and_survives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Session("relative") as session:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        session.add(Task())
        session.set_end_timestamp()
    assert check(tmp_path / "relative") == ["Task.1"]
    assert (tmp_path / "relative" / "finished").exists()
    assert os.listdir(tmp_path / "elsewhere") == []


def test_existing_session_is_opened_with_its_tasks(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = list(session.add_many(simulations(5)))
    with make_session() as session:
        assert list(session.tasks) == ids
        assert [task.mesh for task in session] == [f"m{i}" for i in range(5)]


def test_parents_of_a_new_session_are_made(make_session: MakeSession) -> None:
    make_session("a/b/c").add(Task())


def test_empty_directory_becomes_a_session(make_session: MakeSession, tmp_path: Path) -> None:
    (tmp_path / "session").mkdir()
    make_session().add(Task())


def test_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises((NotASession, DamagedSession), match="not empty"):
        Session(tmp_path)
    assert contents(tmp_path) == before


def test_path_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for create in (True, False):
        with pytest.raises(Error):
            Session(tmp_path / "file", create=create)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "options", [{"create": False}, {"read_only": True}, {"create": False, "read_only": True}], ids=str
)
def test_no_session_is_made_where_none_is_to_be_made(tmp_path: Path, options: dict[str, bool]) -> None:
    with pytest.raises(NotASession) as caught:
        Session(tmp_path / "missing", **options)
    assert str(tmp_path / "missing") in str(caught.value)
    assert isinstance(caught.value, InvalidArgument)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotASession):
        Session(tmp_path / "empty", **options)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_unknown_argument_is_refused(tmp_path: Path) -> None:
    for options in ({"readonly": True}, {"flush": False}, {"storeurl": "x"}):
        with pytest.raises((TypeError, InvalidArgument)):
            Session(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("path", ["", None, 3, "nul\0byte"], ids=repr)
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError)):
        Session(path)


def test_load_false_makes_the_session_anew(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = list(session.add_many(simulations(3)))
    with make_session(load=False) as session:
        assert len(session) == 0
        assert session.list_ids() == set()
        new = session.add(Task())
        assert new not in ids
    with make_session() as session:
        assert list(session.tasks) == [new]


def test_start_time_is_kept_when_a_session_is_opened_again(make_session: MakeSession) -> None:
    with make_session() as session:
        os.utime(os.path.join(session.path, "created"), (1000, 1000))
    with make_session() as session:
        assert session.created == 1000.0
        session.add(Task())
        assert session.created == 1000.0


def test_created_holds_the_command_line(tmp_path: Path) -> None:
    run_python("import sys; from gc3session import Session; Session(sys.argv[1])", tmp_path / "s", "an argument")
    assert "an argument" in (tmp_path / "s" / "created").read_text()


def test_moved_session_opens(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        ids = list(session.add_many(simulations(3)))
        session.set_end_timestamp(5.0)
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "session", tmp_path / "new" / "place")
    with make_session("new/place") as session:
        assert list(session.tasks) == ids
        assert session.name == "place"
        assert session.finished == 5.0
        assert session.load(ids[1]).mesh == "m1"
        session.add(Task())
        session.remove(ids[0])
    assert not (tmp_path / "session").exists()


@pytest.mark.lmdb
def test_copied_session_is_a_session_of_its_own(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        ids = list(session.add_many(simulations(3)))
    shutil.copytree(tmp_path / "session", tmp_path / "copy")
    with make_session("copy") as copy, make_session() as session:
        copy.remove(ids[0])
        task = copy.load(ids[1])
        task.mesh = "changed"
        copy.save(task)
        assert list(session.tasks) == ids
        assert session.load(ids[1]).mesh == "m1"


def test_session_can_be_opened_through_a_symbolic_link(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        id_ = session.add(Task())
        (tmp_path / "link").symlink_to("session")
        with make_session("link") as link:
            assert list(link.tasks) == [id_]
            other = link.add(Task())
        assert list(session.tasks) == [id_, other]


# -- adding -------------------------------------------------------------------


def test_add_returns_the_id_and_stores_at_once(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation(mesh="m")
    id_ = session.add(task)
    assert id_ == task.persistent_id == "Simulation.1"
    with make_session(read_only=True) as other:
        assert other.load(id_).mesh == "m"
        assert list(other.tasks) == [id_]


def test_adding_again_is_ignored_and_gives_the_same_id(session: Session) -> None:
    task = Simulation()
    id_ = session.add(task)
    assert session.add(task) == id_
    assert list(session.add_many([task, task])) == [id_, id_]
    assert list(session.tasks) == [id_]


def test_adding_what_is_stored_and_changed_saves_it(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation()
    id_ = session.save(task)
    task.mesh = "m"
    assert session.add(task) == id_
    assert not task.changed
    task.mesh = "n"
    session.add(task)
    with make_session(read_only=True) as other:
        assert other.load(id_).mesh == "n"


def test_tasks_are_in_the_order_of_their_numbers(session: Session) -> None:
    tasks = [Task() for _ in range(6)]
    for task in tasks:
        session.save(task)
    order = [3, 0, 5, 1]
    ids = [session.add(tasks[i]) for i in order]
    new = session.add(Task())
    ids = sorted([*ids, new, session.add(tasks[2])], key=number_of)
    assert list(session.tasks) == ids
    assert [task.persistent_id for task in session] == ids
    session.remove(ids[0])
    assert list(session.tasks) == ids[1:]


def test_forgotten_task_that_is_added_again_is_where_it_was(session: Session) -> None:
    ids = [session.add(Task()) for _ in range(3)]
    session.forget(ids[0])
    session.add(session.load(ids[0]))
    assert list(session.tasks) == ids


def test_only_what_was_added_is_in_the_session(session: Session) -> None:
    child, note = Simulation(mesh="child"), Note()
    sweep = Sweep(tasks=[child])
    id_ = session.add(sweep)
    session.save(note)
    assert session.list_ids() == {id_}
    assert len(session) == 1
    assert session.stats() == {"NEW": 1}
    assert child.persistent_id in set(session.store.list())


def test_task_of_a_collection_can_be_added_too(session: Session) -> None:
    child = Simulation()
    sweep = Sweep(tasks=[child])
    ids = [session.add(sweep), session.add(child)]
    assert list(session.tasks) == ids
    assert len(list(session.store.list())) == 2


@pytest.mark.parametrize("value", [None, 3, "Task.1", object(), Task, {"jobname": "x"}], ids=type)
def test_adding_what_is_no_task_is_refused(session: Session, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        session.add(value)
    with pytest.raises(InvalidArgument):
        session.add_many([value])
    assert len(session) == 0


def test_add_many_gives_a_compact_sequence_of_ids(make_session: MakeSession) -> None:
    session = make_session()
    ids = session.add_many(simulations(1000))
    listed = list(ids)
    assert len(ids) == 1000 == len(set(listed))
    assert (ids[0], ids[-1], ids[500]) == (listed[0], listed[-1], listed[500])
    assert list(ids[10:13]) == listed[10:13]
    assert listed[7] in ids
    assert list(session.tasks) == listed
    with pytest.raises(IndexError):
        ids[1000]
    with make_session(read_only=True) as other:
        assert list(other.tasks) == listed


def test_add_many_of_nothing_adds_nothing(session: Session) -> None:
    assert list(session.add_many([])) == []
    assert len(session) == 0


def test_add_many_takes_tasks_of_several_classes_and_collections(session: Session) -> None:
    ids = session.add_many([Task(), Simulation(), Sweep(tasks=[Simulation()]), Simulation()])
    assert [id_.partition(".")[0] for id_ in ids] == ["Task", "Simulation", "Sweep", "Simulation"]
    assert len(list(session.store.list())) == 5


def test_add_many_streams_and_holds_no_task(session: Session) -> None:
    alive: list[weakref.ref[Task]] = []

    def tasks() -> Iterator[Task]:
        for _ in range(3000):
            task = Task()
            alive.append(weakref.ref(task))
            yield task
            del task

    session.add_many(tasks())
    assert len(session) == 3000
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 0


def test_add_many_commits_a_batch_when_it_is_full(make_session: MakeSession) -> None:
    session = make_session(batch_bytes=50_000)
    seen = []

    def tasks() -> Iterator[Task]:
        for _ in range(2000):
            yield Task()
        with make_session(read_only=True) as other:
            seen.append(len(other))

    session.add_many(tasks())
    assert 0 < seen[0] <= 2000
    with make_session(read_only=True) as other:
        assert len(other) == 2000


def test_iterator_that_fails_in_add_many_leaves_a_consistent_session(session: Session) -> None:
    def tasks() -> Iterator[Task]:
        yield from simulations(10)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        session.add_many(tasks())
    session.flush()
    assert len(session) == len(list(session)) == len(list(session.store.list()))


def test_add_many_inside_add_many_works(session: Session) -> None:
    inner: list[str] = []

    def tasks() -> Iterator[Task]:
        yield Task(jobname="a")
        inner.extend(session.add_many([Task(jobname="b")]))
        inner.append(session.add(Task(jobname="c")))
        yield Task(jobname="d")

    outer = list(session.add_many(tasks()))
    assert {session.load(id_).jobname for id_ in outer} == {"a", "d"}
    assert [session.load(id_).jobname for id_ in inner] == ["b", "c"]
    assert session.list_ids() == {*outer, *inner}


# -- reading ------------------------------------------------------------------


def test_len_in_iteration_and_index_agree(session: Session) -> None:
    tasks = [Simulation(mesh=str(i)) for i in range(3)]
    ids = [session.add(task) for task in tasks]
    assert len(session) == 3
    assert list(session) == tasks
    assert all(id_ in session for id_ in ids)
    assert all(task in session for task in tasks)
    assert [session[id_] for id_ in ids] == tasks


def test_what_is_not_in_the_session_is_not_in_it(session: Session) -> None:
    stored = Task()
    id_ = session.save(stored)
    session.add(Task())
    for other in (id_, stored, Task(), "Task.99", "", "Other.2", None, 3, object(), ("a",), [1]):
        assert other not in session
    for key in (id_, "Task.99", "", "Other.2"):
        with pytest.raises(KeyError):
            session[key]


def test_wrong_class_name_in_an_id_is_not_found(session: Session) -> None:
    session.add(Simulation())
    assert "Task.1" not in session
    assert "Simulation.01" not in session
    for attempt in (session.load, session.remove, session.forget, session.__getitem__):
        with pytest.raises(Error):
            attempt("Task.1")
    assert len(session) == 1


def test_tasks_is_a_lazy_mapping(session: Session) -> None:
    ids = list(session.add_many(simulations(5)))
    tasks = session.tasks
    assert list(tasks) == list(tasks.keys()) == ids
    assert len(tasks) == 5
    assert tasks[ids[2]].mesh == "m2"
    assert ids[0] in tasks
    assert "Task.77" not in tasks
    assert [task.mesh for task in tasks.values()] == [f"m{i}" for i in range(5)]
    assert [(id_, task.persistent_id) for id_, task in tasks.items()] == [(id_, id_) for id_ in ids]
    assert tasks.get("Task.77") is None
    with pytest.raises(KeyError):
        tasks["Task.77"]
    session.remove(ids[0])
    assert list(tasks) == ids[1:]


def test_list_ids_and_list_names_are_sets(session: Session) -> None:
    ids = set(session.add_many([Task(jobname="a"), Task(jobname="b"), Task(jobname="a")]))
    assert session.list_ids() == ids
    assert session.list_names() == {"a", "b"}
    assert type(session.list_ids()) is type(session.list_names()) is set


def test_load_returns_the_object_and_changes_nothing(session: Session) -> None:
    id_ = session.save(Simulation(mesh="m"))
    before = contents(session.path)
    assert session.load(id_).mesh == "m"
    assert len(session) == 0
    assert contents(session.path) == before


def test_load_adds_when_it_is_told_to(make_session: MakeSession) -> None:
    session = make_session()
    id_ = session.save(Simulation(mesh="m"))
    assert session.load(id_, add=True).mesh == "m"
    assert list(session.tasks) == [id_]
    with make_session(read_only=True) as other:
        assert list(other.tasks) == [id_]
    other_id = session.save(Simulation())
    session.load(other_id, add=True, flush=False)
    with make_session(read_only=True) as other:
        assert list(other.tasks) == [id_]
    assert list(session.tasks) == [id_, other_id]


def test_load_of_what_is_not_there_raises(session: Session) -> None:
    for id_ in ("Task.1", "", "nonsense", "Task.-1"):
        with pytest.raises(LoadError) as caught:
            session.load(id_)
        assert isinstance(caught.value, NotFound)
    assert sorted(os.listdir(session.path)) == FILES


def test_load_many_gives_objects_in_the_order_asked_for(session: Session) -> None:
    ids = list(session.add_many(simulations(600)))
    asked = ids[::-1] + ids[:3]
    loaded = session.load_many(asked)
    assert iter(loaded) is loaded
    assert [task.persistent_id for task in loaded] == asked
    assert list(session.load_many([])) == []


def test_load_many_raises_for_what_is_not_there(session: Session) -> None:
    id_ = session.add(Task())
    with pytest.raises(NotFound, match=r"Task\.99"):
        list(session.load_many([id_, "Task.99"]))


def test_iteration_bears_changes_while_it_runs(session: Session) -> None:
    ids = list(session.add_many(simulations(1000)))
    seen = []
    for i, task in enumerate(session):
        seen.append(task.persistent_id)
        if i == 0:
            session.remove(ids[-1])
            session.forget(ids[1])
            session.add(Task())
        if i % 100 == 0:
            task.state = "RUNNING"
            session.save(task)
    assert len(seen) == len(set(seen))
    assert set(ids[2:-1]) <= set(seen)


def test_iteration_goes_on_with_the_same_tasks_after_a_failure_to_read(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add_many(Task(jobname=str(n)) for n in range(1500))
    tasks = iter(session)
    found = [next(tasks).jobname]
    for owner, name in ((session.store, "reading"), (session.store, "objects")):
        found += [next(tasks).jobname for _ in range(512 - len(found) % 512)]  # those that have been read
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(tasks)
    assert found + [task.jobname for task in tasks] == [str(n) for n in range(1500)]


def test_iteration_and_load_are_the_same_object(session: Session) -> None:
    id_ = session.add(Simulation())
    [task] = session
    assert session.load(id_) is task is session[id_] is session.tasks[id_] is session.store.load(id_)


def test_iteration_keeps_few_tasks_alive_and_none_of_a_session_that_can_not_write(
    session: Session, make_session: MakeSession
) -> None:
    session.add_many(simulations(4000))
    refs = [weakref.ref(task) for task in session]
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 1024 + 512  # those may have changed; see store/changes.py
    with make_session(read_only=True) as reading:
        refs = [weakref.ref(task) for task in reading]
        gc.collect()
        assert sum(ref() is not None for ref in refs) <= 1


def test_reading_never_writes(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = list(session.add_many([*simulations(10), Sweep(tasks=list(simulations(2)))]))
    before = contents(session.path)
    with make_session() as session:
        assert len(session) == 11
        for id_ in ids:
            session.load(id_)
        assert len(list(session)) + len(list(session.iter_workflow())) + len(session.list_names())
        assert list(session.select(state="NEW")) and session.stats()  # noqa: PT018
        assert list(session.store.list())
        session.flush()
    after = contents(session.path)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}


def test_iter_workflow_goes_breadth_first_through_collections(session: Session) -> None:
    a1, b1, b2, c = (Simulation(jobname=name) for name in ("a1", "b1", "b2", "c"))
    deep = Sweep(jobname="deep", tasks=[c])
    first = Sweep(jobname="first", tasks=[a1, deep])
    second = TaskCollection(jobname="second", tasks=[b1, b2])
    single = Task(jobname="single")
    session.add_many([first, single, second])
    found = [task.jobname for task in session.iter_workflow()]
    assert found == ["first", "single", "second", "a1", "deep", "b1", "b2", "c"]


def test_iter_workflow_gives_each_task_once_and_ends_in_cycles(session: Session) -> None:
    shared = Simulation(jobname="shared")
    inner = TaskCollection(jobname="inner", tasks=[shared])
    outer = TaskCollection(jobname="outer", tasks=[inner, shared])
    inner.add(outer)
    session.add(outer)
    session.add(shared)
    assert sorted(task.jobname for task in session.iter_workflow()) == ["inner", "outer", "shared"]


# -- select and stats ---------------------------------------------------------


@pytest.fixture
def varied(session: Session) -> Session:
    for i in range(12):
        session.add(
            Simulation(jobname=f"job-{i}", state=("NEW", "RUNNING", "DONE")[i % 3], steps=i % 2, mesh=f"m{i}")
        )
    return session


def names(tasks: Iterator[Any]) -> list[str]:
    return [task.jobname for task in tasks]


def test_select_by_state(varied: Session) -> None:
    assert names(varied.select(state="RUNNING")) == ["job-1", "job-4", "job-7", "job-10"]
    assert names(varied.select(state="NO SUCH")) == []
    for several in (
        ("RUNNING", "NEW"),
        {"NEW", "RUNNING"},
        ["NEW", "RUNNING", "NO SUCH"],
        frozenset({"NEW", "RUNNING"}),
    ):
        assert names(varied.select(state=several)) == [f"job-{i}" for i in range(12) if i % 3 < 2]
    assert names(varied.select(state=[])) == []


def test_select_by_name_is_a_regular_expression(varied: Session) -> None:
    assert names(varied.select(name="job-1[01]")) == ["job-10", "job-11"]
    assert "job-3" in names(varied.select(name="3$"))
    with pytest.raises(InvalidArgument):
        list(varied.select(name="("))


def test_select_by_fields(varied: Session) -> None:
    assert names(varied.select(steps=1, state="NEW")) == ["job-3", "job-9"]
    assert names(varied.select(mesh="m4")) == ["job-4"]
    assert names(varied.select(mesh="m4", steps=1)) == []
    assert names(varied.select()) == [f"job-{i}" for i in range(12)]


def test_select_by_a_field_that_a_task_lacks_passes_it_over(varied: Session) -> None:
    varied.add(Task(jobname="plain"))
    assert names(varied.select(mesh="m4")) == ["job-4"]


def test_select_is_an_iterator(varied: Session) -> None:
    selected = varied.select(state="NEW")
    assert iter(selected) is selected


def test_select_bears_changes_of_state_while_it_runs(varied: Session) -> None:
    for task in varied.select(state="NEW"):
        task.state = "RUNNING"
        varied.save(task)
    assert varied.stats() == {"RUNNING": 8, "DONE": 4}
    assert names(varied.select(state="NEW")) == []


def test_select_sees_what_is_in_the_batch(varied: Session) -> None:
    varied.add(Task(jobname="unflushed", state="RUNNING"), flush=False)
    [task] = varied.select(name="job-1$")
    task.state = "NEW"
    varied.save_all(flush=False)
    assert names(varied.select(state="RUNNING")) == ["job-4", "job-7", "job-10", "unflushed"]
    assert "job-1" in names(varied.select(state="NEW"))
    varied.flush()
    assert names(varied.select(state="RUNNING")) == ["job-4", "job-7", "job-10", "unflushed"]


def test_stats_count_the_states_of_the_members_alone(varied: Session) -> None:
    assert varied.stats() == {"NEW": 4, "RUNNING": 4, "DONE": 4}
    varied.add(Sweep(tasks=[Task(state="STOPPED")], state="DONE"))
    varied.save(Task(state="STOPPED"))
    assert varied.stats() == {"NEW": 4, "RUNNING": 4, "DONE": 5}
    assert sum(varied.stats().values()) == len(varied)


@pytest.mark.parametrize("length", [1, 100, 399, 400, 401, 511, 512, 5000])
def test_states_of_any_length_and_script_are_counted_and_selected(make_session: MakeSession, length: int) -> None:
    states = ["x" * length, "x" * length + "y", "é" * length, "\ud800" * length, "\0" * length]
    session = make_session()
    for i, state in enumerate(states):
        for flush in (True, False):
            session.add(Task(state=state, jobname=str(i)), flush=flush)
    for _ in range(2):
        assert session.stats() == dict.fromkeys(states, 2)
        for i, state in enumerate(states):
            assert names(session.select(state=state)) == [str(i)] * 2
        session.flush()
    [first, _] = session.select(state=states[1])
    first.state = states[0]
    session.save(first)
    assert session.stats()[states[0]] == 3
    assert session.stats()[states[1]] == 1


# -- saving -------------------------------------------------------------------


def test_save_adds_nothing(session: Session) -> None:
    task = Task()
    id_ = session.save(task)
    assert id_ == task.persistent_id
    assert len(session) == 0
    assert session.load(id_) is task


def test_save_all_saves_all_modified_tasks(make_session: MakeSession) -> None:
    session = make_session()
    ids = list(session.add_many(simulations(10)))
    for task in session:
        task.state = "RUNNING"
        task.steps = 3
    assert session.stats() == {"NEW": 10}, "they are not saved yet"
    session.save_all()
    assert session.stats() == {"RUNNING": 10}
    assert not any(task.changed for task in session)
    with make_session(read_only=True) as other:
        assert [task.steps for task in other] == [3] * 10
        assert list(other.tasks) == ids


def test_save_all_without_flush_waits_for_the_flush(make_session: MakeSession) -> None:
    session = make_session()
    id_ = session.add(Simulation())
    task = session.load(id_)
    task.mesh = "m"
    session.save_all(flush=False)
    assert not task.changed
    with make_session(read_only=True) as other:
        assert other.load(id_).mesh == ""
        session.flush()
        assert other.load(id_).mesh == "m"


def test_save_all_of_nothing_writes_nothing(session: Session) -> None:
    session.add(Task())
    before = contents(session.path)
    session.save_all()
    assert contents(session.path) == before


def test_save_all_saves_tasks_inside_collections(make_session: MakeSession) -> None:
    session = make_session()
    child = Simulation()
    session.add(Sweep(tasks=[child]))
    child.mesh = "m"
    session.save_all()
    with make_session(read_only=True) as other:
        assert other.load(str(child.persistent_id)).mesh == "m"


@pytest.mark.parametrize("way", ["add", "add_many"])
@pytest.mark.parametrize("flush", [True, False])
def test_changed_task_is_saved_with_a_new_one_that_refers_to_it(
    make_session: MakeSession, way: str, flush: bool
) -> None:
    session = make_session()
    child = Simulation()
    id_ = session.add(child)
    child.state = "RUNNING"
    sweep = Sweep(tasks=[child])
    session.add(sweep, flush=flush) if way == "add" else session.add_many([sweep], flush=flush)
    assert not child.changed
    assert session.stats() == {"RUNNING": 1, "NEW": 1}
    session.flush()
    with make_session(read_only=True) as other:
        assert other.load(id_).state == "RUNNING"


def test_unsaved_changes_are_not_saved_by_closing(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation()
    id_ = session.add(task)
    task.mesh = "unsaved"
    with pytest.warns(UnsavedWarning, match="changes of 1 object were never saved"):
        session.close()
    with make_session() as session:
        assert session.load(id_).mesh == ""


# -- flush=False --------------------------------------------------------------


def test_unflushed_task_is_seen_by_its_session_at_once_and_by_others_after_the_flush(
    make_session: MakeSession,
) -> None:
    session, other = make_session(), make_session(read_only=True)
    first = session.add(Simulation(mesh="first"))
    id_ = session.add(Simulation(mesh="m", state="RUNNING"), flush=False)
    assert len(session) == 2
    assert id_ in session
    assert session.list_ids() == {first, id_}
    assert session.load(id_).mesh == "m" == session[id_].mesh == session.store.load(id_).mesh
    assert [task.mesh for task in session] == ["first", "m"]
    assert list(session.store.list()) == [first, id_]
    assert session.stats() == {"NEW": 1, "RUNNING": 1}
    assert other.list_ids() == {first}
    assert other.stats() == {"NEW": 1}
    if not session.store.tables.concurrent_writers:  # on a server it follows at the next flush
        assert read_mirror(session.path) == [first]
    session.flush()
    assert other.list_ids() == {first, id_}
    assert other.stats() == {"NEW": 1, "RUNNING": 1}
    assert read_mirror(session.path) == [first, id_]
    assert other.load(id_).mesh == "m"


def test_object_is_encoded_at_the_call(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation(mesh="at the call")
    id_ = session.add(task, flush=False)
    task.mesh = "later"
    task.extra["x"] = 1
    assert task.changed
    session.flush()
    with make_session(read_only=True) as other:
        assert (other.load(id_).mesh, other.load(id_).extra) == ("at the call", {})
    session.save_all()
    with make_session(read_only=True) as other:
        assert (other.load(id_).mesh, other.load(id_).extra) == ("later", {"x": 1})


def test_unflushed_task_needs_not_be_kept_alive(session: Session) -> None:
    ids = [session.add(Simulation(mesh=str(i)), flush=False) for i in range(500)]
    gc.collect()
    assert [task.mesh for task in session] == [str(i) for i in range(500)]
    assert [session.load(id_).mesh for id_ in ids] == [str(i) for i in range(500)]


def test_unflushed_removal_is_seen_by_its_session_at_once(make_session: MakeSession) -> None:
    session, other = make_session(), make_session(read_only=True)
    ids = list(session.add_many(simulations(4)))
    session.remove(ids[1], flush=False)
    session.forget(ids[2], flush=False)
    assert list(session.tasks) == [ids[0], ids[3]] == [task.persistent_id for task in session]
    assert session.stats() == {"NEW": 2}
    with pytest.raises(NotFound):
        session.load(ids[1])
    assert session.load(ids[2]).mesh == "m2"
    assert list(other.tasks) == ids
    session.flush()
    assert list(other.tasks) == [ids[0], ids[3]]
    with pytest.raises(NotFound):
        other.load(ids[1])
    assert other.load(ids[2]).mesh == "m2"


def test_unflushed_task_can_be_changed_removed_and_forgotten(session: Session) -> None:
    ids = [session.add(Simulation(mesh=str(i)), flush=False) for i in range(4)]
    session.remove(ids[0], flush=False)
    session.forget(ids[1], flush=False)
    task = session.load(ids[2])
    task.state = "RUNNING"
    session.save_all(flush=False)
    assert session.stats() == {"RUNNING": 1, "NEW": 1}
    session.flush()
    assert list(session.tasks) == ids[2:]
    assert session.stats() == {"RUNNING": 1, "NEW": 1}
    assert set(session.store.list()) == set(ids[1:])


def test_unflushed_task_that_is_forgotten_and_saved_again_has_left_the_session(session: Session) -> None:
    task = Task()
    id_ = session.add(task, flush=False)
    session.forget(id_, flush=False)
    task.jobname = "changed"
    session.save(task, flush=False)
    for _ in range(2):
        assert id_ not in session
        assert list(session.ids()) == []
        session.flush()
    assert session.load(id_).jobname == "changed"


def test_stored_task_that_is_added_forgotten_and_added_again_is_in_the_session(session: Session) -> None:
    task = Task()
    id_ = session.add(task)
    session.forget(id_)
    session.add(task, flush=False)
    session.forget(id_, flush=False)
    session.add(task, flush=False)
    for _ in range(2):
        assert id_ in session
        assert list(session.ids()) == [id_]
        assert (len(session), session.stats()) == (1, {"NEW": 1})
        session.flush()


@pytest.mark.parametrize("leave", ["close", "with", "exception"])
def test_batch_is_flushed_on_leaving(make_session: MakeSession, leave: str) -> None:
    session = make_session()
    if leave == "close":
        id_ = session.add(Task(), flush=False)
        session.close()
    else:
        try:
            with session:
                id_ = session.add(Task(), flush=False)
                if leave == "exception":
                    raise RuntimeError("on purpose")
        except RuntimeError as error:
            assert str(error) == "on purpose"  # noqa: PT017
    with make_session(read_only=True) as other:
        assert list(other.tasks) == [id_]


def test_batch_is_flushed_when_it_is_full(make_session: MakeSession) -> None:
    session, other = make_session(batch_bytes=100_000), make_session(read_only=True)
    counts = set()
    for _ in range(300):
        session.add(Task(extra={"bytes": bytes(1000)}), flush=False)
        counts.add(len(other))
    assert len(counts) > 1
    assert len(session) == 300


def test_one_large_task_is_larger_than_the_batch(make_session: MakeSession) -> None:
    session = make_session(batch_bytes=1000)
    ids = [session.add(Task(extra={"bytes": bytes(100_000)}), flush=False) for _ in range(3)]
    session.flush()
    assert list(session.tasks) == ids


def test_durable_call_takes_the_batch_along(make_session: MakeSession) -> None:
    session, other = make_session(), make_session(read_only=True)
    first = session.add(Task(), flush=False)
    second = session.add(Task())
    assert list(session.tasks) == [first, second]
    assert second in other
    session.flush()
    assert list(other.tasks) == [first, second]


@pytest.mark.parametrize("what", ["joins", "leaves"])
def test_durable_add_takes_along_what_joins_or_leaves(make_session: MakeSession, what: str) -> None:
    session, other = make_session(), make_session(read_only=True)
    id_ = session.add(Task())
    if what == "joins":
        session.forget(id_)
        session.load(id_, add=True, flush=False)
    else:
        session.forget(id_, flush=False)
    session.add(Task())
    assert (id_ in other) == (what == "joins")


def test_flush_of_nothing_writes_nothing(session: Session) -> None:
    session.flush()
    assert sorted(os.listdir(session.path)) == FILES
    session.add(Task())
    session.flush()
    before = contents(session.path)
    session.flush()
    session.flush()
    assert contents(session.path) == before


# -- removing -----------------------------------------------------------------


def test_removed_task_leaves_session_and_store(make_session: MakeSession) -> None:
    session = make_session()
    ids = list(session.add_many(simulations(3)))
    session.remove(ids[1])
    with make_session(read_only=True) as other:
        for each in (session, other):
            assert list(each.tasks) == [ids[0], ids[2]]
            assert list(each.store.list()) == [ids[0], ids[2]]
            with pytest.raises(NotFound):
                each.load(ids[1])


def test_forgotten_task_stays_in_the_store(make_session: MakeSession) -> None:
    session = make_session()
    ids = list(session.add_many(simulations(3)))
    session.forget(ids[1])
    with make_session(read_only=True) as other:
        for each in (session, other):
            assert list(each.tasks) == [ids[0], ids[2]]
            assert list(each.store.list()) == ids
            assert each.load(ids[1]).mesh == "m1"


@pytest.mark.parametrize("id_", ["Task.99", "", "nonsense", "Simulation.2"])
def test_removing_what_the_session_does_not_have_raises(session: Session, id_: str) -> None:
    first = session.add(Simulation())
    assert session.save(Simulation()) == "Simulation.2"
    for attempt in (session.remove, session.forget, lambda id_: session.remove_many([first, id_])):
        with pytest.raises(NotInSession) as caught:
            attempt(id_)
        assert isinstance(caught.value, InvalidArgument)
    session.flush()
    assert list(session.tasks) == [first]
    assert len(list(session.store.list())) == 2


def test_remove_many_removes_all_of_them(session: Session) -> None:
    ids = list(session.add_many(simulations(50)))
    session.remove_many(ids[5:45])
    assert list(session.tasks) == ids[:5] + ids[45:]
    session.remove_many(id_ for id_ in ids[:5])
    session.remove_many([])
    assert list(session.tasks) == ids[45:] == list(session.store.list())


def test_removing_a_collection_removes_the_tasks_in_it(session: Session) -> None:
    leaf, note = Simulation(), Note()
    inner = Sweep(tasks=[leaf])
    outer = TaskCollection(tasks=[inner, Simulation(inputs={"note": note})])
    id_ = session.add(outer)
    other = session.add(Task())
    session.remove(id_)
    assert list(session.tasks) == [other]
    assert set(session.store.list()) == {other, note.persistent_id}


def test_forgetting_a_collection_leaves_the_tasks_in_it(session: Session) -> None:
    child = Simulation()
    sweep = Sweep(tasks=[child])
    ids = [session.add(sweep), session.add(child)]
    session.forget(ids[0])
    assert list(session.tasks) == [ids[1]]
    assert set(session.store.list()) == set(ids)


def test_removing_a_collection_takes_its_tasks_out_of_the_index_too(session: Session) -> None:
    child = Simulation()
    sweep = Sweep(tasks=[child])
    session.add(sweep)
    session.add(child)
    session.remove(str(sweep.persistent_id))
    assert len(session) == 0
    assert list(session.store.list()) == []
    assert session.stats() == {}


def test_removing_a_collection_that_contains_itself_ends(session: Session) -> None:
    outer, inner = TaskCollection(), TaskCollection()
    outer.add(inner)
    inner.add(outer)
    session.remove(session.add(outer))
    assert list(session.store.list()) == []


def test_removing_a_collection_whose_task_is_gone_works(session: Session) -> None:
    child = Simulation()
    sweep = Sweep(tasks=[child, Simulation()])
    id_ = session.add(sweep)
    session.store.remove(str(child.persistent_id))
    session.remove(id_)
    assert list(session.store.list()) == []


def test_removing_a_deep_chain_of_collections_works(session: Session) -> None:
    task: Task = Task()
    for _ in range(3000):
        task = TaskCollection(tasks=[task])
    session.remove(session.add(task))
    assert list(session.store.list()) == []


def test_removed_object_can_be_added_anew_under_a_new_id(session: Session) -> None:
    task = Simulation(mesh="m")
    first = session.add(task)
    session.remove(first)
    assert task not in session
    second = session.add(task)
    assert second != first
    assert list(session.tasks) == [second]


def test_change_of_a_removed_object_is_not_saved(session: Session) -> None:
    task = Simulation()
    session.remove(session.add(task))
    task.mesh = "m"
    session.save_all()
    assert list(session.store.list()) == []


# -- transactions -------------------------------------------------------------


def test_transaction_writes_all_when_it_is_left(make_session: MakeSession) -> None:
    session, other = make_session(), make_session(read_only=True)
    ids = list(session.add_many(simulations(3)))
    with session.transaction():
        new = session.add(Task())
        session.remove(ids[0])
        task = session.load(ids[1])
        task.state = "RUNNING"
        session.save(task)
        session.save_all()
        assert list(session.tasks) == [ids[1], ids[2], new]
        assert session.stats() == {"NEW": 2, "RUNNING": 1}
        assert list(other.tasks) == ids, "others see nothing before the end"
    session.flush()
    assert list(other.tasks) == [ids[1], ids[2], new] == read_mirror(session.path)
    assert other.stats() == {"NEW": 2, "RUNNING": 1}


def test_failed_transaction_leaves_nothing_on_disk_and_in_memory(make_session: MakeSession) -> None:
    session, other = make_session(), make_session(read_only=True)
    ids = list(session.add_many(simulations(4)))
    kept = session.load(ids[1])
    new = Simulation(mesh="new", inputs={"note": Note()})
    before = (list(session.tasks), session.stats(), set(session.store.list()))
    with pytest.raises(RuntimeError, match="on purpose"), session.transaction():
        session.add(new)
        session.add_many(simulations(5))
        session.remove(ids[0])
        session.forget(ids[2])
        session.remove_many([ids[3]])
        kept.state = "RUNNING"
        session.save(kept)
        assert len(session) == 7
        raise RuntimeError("on purpose")
    for each in (session, other):
        assert (list(each.tasks), each.stats(), set(each.store.list())) == before
    assert new.persistent_id is None
    assert new.changed
    assert new.inputs["note"].persistent_id is None
    assert new not in session
    assert session.load(ids[0]).mesh == "m0"
    assert session.load(ids[3]).mesh == "m3"
    session.flush()
    assert list(other.tasks) == before[0] == read_mirror(session.path)


def test_object_saved_in_a_failed_transaction_is_changed_again(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation(mesh="before")
    id_ = session.add(task)
    with pytest.raises(RuntimeError), session.transaction():
        task.mesh = "after"
        session.save(task)
        raise RuntimeError
    with make_session(read_only=True) as other:
        assert other.load(id_).mesh == "before"
    assert task.changed or task.mesh == "before"
    task.mesh = "again"
    session.save(task)
    with make_session(read_only=True) as other:
        assert other.load(id_).mesh == "again"


def test_task_added_in_a_failed_transaction_can_be_added_afterwards(session: Session) -> None:
    task = Simulation(mesh="m")
    with pytest.raises(RuntimeError), session.transaction():
        lost = session.add(task)
        raise RuntimeError
    id_ = session.add(task)
    assert list(session.tasks) == [id_]
    assert lost == id_ or lost not in session


def test_batch_from_before_survives_a_failed_transaction(make_session: MakeSession) -> None:
    session = make_session()
    first = session.add(Simulation(mesh="first"), flush=False)
    with pytest.raises(RuntimeError), session.transaction():
        session.add(Task())
        session.remove(first)
        raise RuntimeError
    assert list(session.tasks) == [first]
    session.flush()
    with make_session(read_only=True) as other:
        assert list(other.tasks) == [first]
        assert other.load(first).mesh == "first"


def test_batch_after_a_failed_transaction_is_seen_and_flushed(session: Session) -> None:
    with pytest.raises(RuntimeError), session.transaction():
        session.add(Task())
        assert len(list(session)) == 1
        raise RuntimeError
    id_ = session.add(Task(), flush=False)
    assert list(session.tasks) == [id_]
    session.flush()
    assert list(session.tasks) == [id_]


def test_transactions_nest_and_the_outermost_writes(make_session: MakeSession) -> None:
    session, other = make_session(), make_session(read_only=True)
    with session.transaction():
        first = session.add(Task())
        with pytest.raises(RuntimeError), session.transaction():
            session.add(Task())
            raise RuntimeError
        with session.transaction():
            second = session.add(Task())
        assert len(other) == 0
    assert list(session.tasks) == [first, second] == list(other.tasks)


def test_refused_call_inside_a_transaction_leaves_the_rest_of_it(session: Session) -> None:
    with session.transaction():
        first = session.add(Task())
        with pytest.raises(UnstorableValue):
            session.add(Task(extra={"x": object()}))
        with pytest.raises(NotInSession):
            session.remove("Task.99")
        second = session.add(Task())
    assert list(session.tasks) == [first, second]


def test_transaction_of_nothing_writes_nothing(session: Session) -> None:
    with session.transaction():
        pass
    with pytest.raises(RuntimeError), session.transaction():
        raise RuntimeError
    assert sorted(os.listdir(session.path)) == FILES


def test_add_many_in_a_transaction_is_all_or_nothing_beyond_the_batch(make_session: MakeSession) -> None:
    session, other = make_session(batch_bytes=20_000), make_session(read_only=True)
    with pytest.raises(RuntimeError), session.transaction():
        session.add_many(simulations(500))
        assert len(other) == 0
        raise RuntimeError
    assert len(session) == len(other) == 0
    with session.transaction():
        session.add_many(simulations(500))
        assert len(other) == 0
    assert len(session) == len(other) == 500


# -- conflicts ----------------------------------------------------------------


def test_conflict_is_raised_and_can_be_settled(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    mine = Simulation(mesh="before")
    id_ = a.add(mine)
    theirs = b.load(id_)
    theirs.mesh, theirs.state = "theirs", "RUNNING"
    b.save(theirs)
    mine.mesh = "mine"
    for attempt in (lambda: a.save(mine), a.save_all, lambda: a.add(mine)):
        with pytest.raises(ConflictError) as caught:
            attempt()
        assert caught.value.ids == (id_,)
    assert (mine.mesh, mine.changed) == ("mine", True)
    assert b.load(id_).mesh == "theirs"
    a.refresh(mine)
    assert (mine.mesh, mine.state, mine.changed) == ("theirs", "RUNNING", False)
    mine.mesh = "settled"
    a.save(mine)
    assert b.load(id_).mesh == "settled"
    theirs.mesh = "once more"
    mine.mesh = "meanwhile"
    a.save(mine)
    b.save(theirs, force=True)
    assert a.load(id_).mesh == "once more"
    assert a.stats() == {"RUNNING": 1}


def test_conflict_in_save_all_names_all_concerned_and_writes_nothing(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    mine = list(simulations(4))
    ids = list(a.add_many(mine))
    for i in (1, 3):
        theirs = b.load(ids[i])
        theirs.mesh = "theirs"
        b.save(theirs)
    for task in mine:
        task.mesh = "mine"
    with pytest.raises(ConflictError) as caught:
        a.save_all()
    assert set(caught.value.ids) == {ids[1], ids[3]}
    assert [b.load(id_).mesh for id_ in ids] == ["m0", "theirs", "m2", "theirs"]
    assert all(task.changed for task in mine)
    for id_ in caught.value.ids:
        a.refresh(a.load(id_))
    a.save_all()
    assert [b.load(id_).mesh for id_ in ids] == ["mine", "theirs", "mine", "theirs"]


def test_conflict_found_at_the_flush_loses_neither_side(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    mine = Simulation(mesh="before")
    id_ = a.add(mine)
    theirs = b.load(id_)
    mine.mesh = "mine"
    a.save_all(flush=False)
    other = a.add(Task(jobname="unconcerned"), flush=False)
    theirs.mesh = "theirs"
    b.save(theirs)
    with pytest.raises(ConflictError) as caught:
        a.flush()
    assert caught.value.ids == (id_,)
    assert b.load(id_).mesh == "theirs"
    assert other not in b
    a.refresh(mine)
    assert mine.mesh == "theirs"
    a.flush()
    assert b.load(id_).mesh == "theirs"
    assert b.load(other).jobname == "unconcerned"


def test_conflict_in_a_transaction_leaves_nothing_of_it(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    mine = Simulation()
    id_ = a.add(mine)
    theirs = b.load(id_)
    new = Task()
    with pytest.raises(ConflictError), a.transaction():
        a.add(new)
        mine.mesh = "mine"
        a.save(mine)
        theirs.mesh = "theirs"
        b.save(theirs)
    assert list(a.tasks) == [id_] == list(b.tasks)
    assert new.persistent_id is None
    assert b.load(id_).mesh == "theirs"
    a.refresh(mine)
    assert mine.mesh == "theirs"


def test_removal_by_another_is_seen(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    task = Simulation()
    id_ = a.add(task)
    b.remove(id_)
    assert id_ not in a
    assert len(a) == 0
    with pytest.raises(NotInSession):
        a.remove(id_)
    with pytest.raises(NotFound):
        a.load(id_)
    with pytest.raises(NotFound):
        a.refresh(task)


# -- shared stores ------------------------------------------------------------


@pytest.fixture
def shared(make_session: MakeSession, tmp_path: Path) -> tuple[Session, Session]:
    """Two sessions on one store."""
    url = f"lmdb://{tmp_path}/store"
    return make_session("one", store_or_url=url), make_session("two", store_or_url=url)


def test_two_sessions_on_one_store_never_mix(shared: tuple[Session, Session], make_session: MakeSession) -> None:
    one, two = shared
    ids = [session.add(Simulation(mesh=session.name)) for session in (one, two, one, two)]
    assert list(one.tasks) == ids[::2]
    assert list(two.tasks) == ids[1::2]
    assert sorted(one.store.list()) == sorted(ids) == sorted(two.store.list())
    assert one.stats() == two.stats() == {"NEW": 2}
    assert two.load(ids[0]).mesh == "one"
    with pytest.raises(NotInSession):
        two.remove(ids[0])
    one.close()
    two.close()
    assert [list(make_session(name).tasks) for name in ("one", "two")] == [ids[::2], ids[1::2]]


def test_store_url_is_used_only_for_a_new_session(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session(store_or_url=f"lmdb://{tmp_path}/store") as session:
        id_ = session.add(Task())
    assert not (tmp_path / "session" / "jobs").exists()
    with make_session(store_or_url=f"lmdb://{tmp_path}/other") as session:
        assert list(session.tasks) == [id_]
    assert not (tmp_path / "other").exists()


def test_store_object_can_be_given(make_session: MakeSession, tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "store"))
    session = make_session(store_or_url=store)
    id_ = session.add(Task())
    assert list(store.list()) == [id_]
    assert session.store is store
    session.close()
    assert list(make_session().tasks) == [id_]
    store.close()


def test_path_of_a_store_can_be_given(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session(store_or_url=str(tmp_path / "by path")) as session:
        session.add(Task())
    assert (tmp_path / "by path" / "data.mdb").exists()
    assert len(make_session()) == 1


def test_task_can_be_in_two_sessions(shared: tuple[Session, Session]) -> None:
    one, two = shared
    first = one.add(Simulation(mesh="m"))
    second = two.add(Simulation())
    task = two.load(first, add=True)
    assert list(two.tasks) == [first, second]
    task.state = "RUNNING"
    two.save(task)
    assert one.stats() == {"RUNNING": 1}
    assert two.stats() == {"RUNNING": 1, "NEW": 1}
    assert names(one.select(state="RUNNING")) == names(two.select(state="RUNNING")) == [""]
    two.forget(first)
    assert list(one.tasks) == [first]
    assert two.stats() == {"NEW": 1}


def test_removed_task_leaves_every_index_that_held_it(shared: tuple[Session, Session]) -> None:
    one, two = shared
    child = Simulation()
    sweep = Sweep(tasks=[child])
    id_ = one.add(sweep)
    two.load(id_, add=True)
    two.load(str(child.persistent_id), add=True)
    other = two.add(Task())
    one.remove(id_)
    assert len(one) == 0
    assert list(two.tasks) == [other]
    assert two.stats() == {"NEW": 1}
    assert list(two.store.list()) == [other]
    assert [task.persistent_id for task in two] == [other]
    two.add(Task())
    assert read_mirror(two.path) == list(two.tasks)


def test_tasks_removed_by_another_session_leave_the_mirror_at_the_next_open(
    shared: tuple[Session, Session], make_session: MakeSession
) -> None:
    one, two = shared
    id_ = one.add(Task())
    two.load(id_, add=True)
    two.close()
    one.remove(id_)
    with make_session("two") as two:
        assert len(two) == 0
        assert read_mirror(two.path) == []


def test_store_remove_takes_the_task_out_of_the_session(session: Session) -> None:
    ids = list(session.add_many(simulations(3)))
    session.store.remove(ids[1])
    session.store.flush()
    assert list(session.tasks) == [ids[0], ids[2]]
    assert session.stats() == {"NEW": 2}


def test_session_in_a_directory_renamed_on_a_shared_store_loses_nothing(
    shared: tuple[Session, Session], make_session: MakeSession, tmp_path: Path
) -> None:
    one, two = shared
    ids = [session.add(Task()) for session in (one, two)]
    one.close()
    two.close()
    (tmp_path / "one").rename(tmp_path / "three")
    (tmp_path / "two").rename(tmp_path / "one")
    assert list(make_session("three").tasks) == [ids[0]]
    assert list(make_session("one").tasks) == [ids[1]]


# -- destroy ------------------------------------------------------------------


def test_destroy_deletes_the_directory_and_its_store(session: Session) -> None:
    session.add_many(simulations(3))
    session.set_end_timestamp()
    session.destroy()
    assert not os.path.exists(session.path)


def test_destroy_of_a_session_that_was_never_written_works(session: Session) -> None:
    session.destroy()
    assert not os.path.exists(session.path)


def test_destroy_leaves_a_shared_store_with_the_tasks_of_others(
    shared: tuple[Session, Session], tmp_path: Path
) -> None:
    one, two = shared
    one.add(Sweep(tasks=[Simulation()]))
    id_ = two.add(Task())
    one.destroy()
    assert not os.path.exists(one.path)
    assert (tmp_path / "store" / "data.mdb").exists()
    assert list(two.tasks) == [id_]
    assert list(two.store.list()) == [id_]
    two.add(Task())


def test_destroyed_session_can_be_made_anew_and_refuses_to_go_on(make_session: MakeSession) -> None:
    session = make_session()
    session.add(Task())
    session.destroy()
    for attempt in (lambda: session.add(Task()), lambda: len(session), session.list_ids):
        with pytest.raises(Error):
            attempt()
    again = make_session()
    assert len(again) == 0
    again.add(Task())


def test_destroy_leaves_what_was_not_the_sessions(session: Session, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("precious")
    os.symlink(tmp_path / "outside", os.path.join(session.path, "link"))
    session.add(Task())
    session.destroy()
    assert not os.path.exists(session.path)
    assert (tmp_path / "outside" / "precious.txt").read_text() == "precious"


# -- timestamps ---------------------------------------------------------------


def test_timestamps_are_the_mtimes_of_their_files(make_session: MakeSession) -> None:
    session = make_session()
    session.set_start_timestamp(1234.5)
    session.set_end_timestamp(2345.25)
    assert os.stat(os.path.join(session.path, "created")).st_mtime == 1234.5 == session.created
    assert os.stat(os.path.join(session.path, "finished")).st_mtime == 2345.25 == session.finished
    session.close()
    again = make_session()
    assert (again.created, again.finished) == (1234.5, 2345.25)


def test_timestamp_without_a_time_is_now(session: Session) -> None:
    session.set_start_timestamp(1.0)
    session.set_start_timestamp()
    assert session.created is not None
    assert session.created > 1e9
    session.set_end_timestamp()
    assert session.finished is not None
    assert session.finished >= session.created - 1


def test_end_timestamp_can_be_set_again(session: Session) -> None:
    session.set_end_timestamp(5.0)
    session.set_end_timestamp(6.0)
    assert session.finished == 6.0


# -- read-only ----------------------------------------------------------------


def test_read_only_session_reads_and_never_writes(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        ids = list(session.add_many(simulations(3)))
    before = contents(tmp_path)
    with make_session(read_only=True) as session:
        assert [task.mesh for task in session] == ["m0", "m1", "m2"]
        task = session.load(ids[0])
        task.mesh = "changed"
        for attempt in (
            lambda: session.add(Task()),
            lambda: session.add(Task(), flush=False),
            lambda: session.add_many([Task()]),
            lambda: session.save(task),
            session.save_all,
            lambda: session.remove(ids[0]),
            lambda: session.forget(ids[0]),
            lambda: session.remove_many(ids),
            lambda: session.load(ids[0], add=True),
            session.destroy,
            session.set_start_timestamp,
            session.set_end_timestamp,
        ):
            with pytest.raises(ReadOnlyError):
                attempt()
        session.flush()
        assert len(session) == 3
    assert contents(tmp_path) == before


def test_read_only_session_without_store_reads_nothing(make_session: MakeSession) -> None:
    make_session().close()
    before = contents(make_session().path)
    with make_session(read_only=True) as session:
        assert (len(session), list(session), session.stats()) == (0, [], {})
    assert contents(session.path) == before
    assert sorted(os.listdir(session.path)) == FILES


def test_read_only_session_sees_what_a_writer_commits(make_session: MakeSession) -> None:
    writer, reader = make_session(), make_session(read_only=True)
    assert len(reader) == 0
    ids = list(writer.add_many(simulations(3)))
    assert list(reader.tasks) == ids
    task = writer.load(ids[0])
    task.state = "RUNNING"
    writer.save(task)
    assert reader.stats() == {"NEW": 2, "RUNNING": 1}
    assert reader.load(ids[0]).state == "RUNNING"
    writer.remove(ids[1])
    assert list(reader.tasks) == [ids[0], ids[2]]


def test_read_only_session_leaves_a_stale_mirror_as_it_is(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(Task())
    mirror = Path(session.path, "session_ids.txt")
    mirror.write_text("edited by hand\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        with make_session(read_only=True) as session:
            assert list(session.tasks) == [id_]
    assert mirror.read_text() == "edited by hand\n"
    with warns_of_mirror(session):
        make_session().close()
    assert read_mirror(session.path) == [id_]


# -- closing ------------------------------------------------------------------


def test_closed_session_refuses_everything_and_closing_twice_does_nothing(session: Session) -> None:
    id_ = session.add(Task())
    session.close()
    session.close()
    for attempt in (
        lambda: session.add(Task()),
        lambda: session.load(id_),
        lambda: len(session),
        lambda: list(session),
        lambda: session.remove(id_),
        session.stats,
        session.list_ids,
        lambda: id_ in session,
        session.save_all,
        session.destroy,
        lambda: session.transaction().__enter__(),
    ):
        with pytest.raises(ClosedError):
            attempt()


def test_closing_one_of_two_sessions_leaves_the_other(make_session: MakeSession) -> None:
    a, b = make_session(), make_session()
    id_ = a.add(Task())
    a.close()
    assert list(b.tasks) == [id_]
    b.add(Task())


def test_with_gives_the_session(make_session: MakeSession) -> None:
    session = make_session()
    with session as same:
        assert same is session


def test_object_outlives_its_session(make_session: MakeSession) -> None:
    with make_session() as session:
        task = Simulation(mesh="m")
        id_ = session.add(task)
    assert task.persistent_id == id_
    task.mesh = "n"
    assert task.mesh == "n"
    assert task == task
    assert "Simulation" in repr(task)


def test_dropped_session_closes_its_environment(make_session: MakeSession, tmp_path: Path) -> None:
    session = Session(tmp_path / "session")
    id_ = session.add(Task())
    del session
    gc.collect()
    assert list(make_session().tasks) == [id_]


# -- the mirror ---------------------------------------------------------------


def warns_of_mirror(session: Session) -> contextlib.AbstractContextManager[Any]:
    """Expect that a user is warned of a changed mirror; on a server it isn't known who has changed it."""
    return contextlib.nullcontext() if session.store.tables.concurrent_writers else pytest.warns(MirrorWarning)


def test_mirror_has_a_line_for_each_id_in_the_order_of_adding(session: Session) -> None:
    ids = list(session.add_many(simulations(10)))
    session.flush()
    assert Path(session.path, "session_ids.txt").read_text() == "".join(f"{id_}\n" for id_ in ids)
    session.remove(ids[3])
    session.forget(ids[5])
    ids.append(session.add(Task()))
    session.flush()
    del ids[5], ids[3]
    assert read_mirror(session.path) == ids


@pytest.mark.slow_on_servers
def test_mirror_is_tidy_after_many_removals_and_closing(session: Session) -> None:
    ids = list(session.add_many(simulations(8000)))
    for begin in range(0, 7990, 799):
        session.remove_many(ids[begin : begin + 799])
    assert Path(session.path, "session_ids.txt").stat().st_size > 100_000
    session.close()
    assert Path(session.path, "session_ids.txt").read_text() == "".join(f"{id_}\n" for id_ in ids[7990:])


def test_mirror_is_right_after_each_of_many_changes(make_session: MakeSession) -> None:
    session, other = make_session(), make_session()
    ids = []
    for i in range(60):
        ids.append((session, other)[i % 2].add(Task()))
        if i % 5 == 4:
            (session, other)[i % 3 == 0].remove(ids.pop(i // 7))
        session.flush()
        assert sorted(read_mirror(session.path), key=number_of) == sorted(ids, key=number_of)
        assert list(other.tasks) == sorted(ids, key=number_of)


# -- TemporarySession ---------------------------------------------------------


def test_temporary_session_is_a_session_without_a_directory(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path}/store"
    session = TemporarySession(url)
    ids = list(session.add_many(simulations(4)))
    assert len(session) == 4
    assert list(session.tasks) == ids
    session.remove(ids[0])
    session.forget(ids[1])
    task = session.load(ids[2])
    task.state = "RUNNING"
    session.save_all()
    assert session.stats() == {"NEW": 1, "RUNNING": 1}
    assert [task.mesh for task in session] == ["m2", "m3"]
    assert ids[2] in session
    with pytest.raises(NotInSession):
        session.remove(ids[0])
    assert sorted(session.store.list()) == sorted(ids[1:])
    session.close()
    with contextlib.closing(make_store(url)) as store:
        assert store.load(ids[2]).state == "RUNNING"
    with TemporarySession(url) as again:
        assert len(again) == 0
        assert again.load(ids[3]).mesh == "m3"


def test_destroying_a_temporary_session_removes_its_tasks(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "store"))
    kept = store.save(Task())
    session = TemporarySession(store)
    session.add(Simulation())
    session.destroy()
    assert list(store.list()) == [kept]
    store.close()


def test_transactions_of_a_temporary_session_are_all_or_nothing(tmp_path: Path) -> None:
    with TemporarySession(str(tmp_path / "store")) as session:
        id_ = session.add(Task())
        with pytest.raises(RuntimeError), session.transaction():
            session.add(Task())
            session.remove(id_)
            raise RuntimeError
        assert list(session.tasks) == [id_]
        assert list(session.store.list()) == [id_]


def test_a_persistable_can_be_added(session: Session) -> None:
    ids = [session.add(Note(text="t")), session.add(Persistable()), session.add(Task())]
    assert list(session.tasks) == ids
    assert len(session) == 3
    assert session.list_names() == {""}


def test_program_that_ends_without_flush_loses_nothing(tmp_path: Path) -> None:
    script = """
        import sys
        from gc3session import Session, Task

        session = Session(sys.argv[1])
        for n in range(100):
            session.add(Task(jobname=str(n)), flush=False)
    """
    run_python(script, tmp_path / "s")
    with Session(tmp_path / "s", read_only=True) as session:
        assert [task.jobname for task in session] == [str(n) for n in range(100)]


def test_session_that_is_dropped_with_a_batch_warns(tmp_path: Path) -> None:
    def drop() -> None:
        Session(tmp_path / "s").add(Task(), flush=False)
        gc.collect()

    with pytest.warns(UnsavedWarning, match="to be written later, of 1 object, is written at the end"):
        drop()


@pytest.mark.parametrize("name", ["create", "load", "read_only", "store_or_url"])
def test_argument_of_the_wrong_type_is_refused_and_makes_no_session(
    tmp_path: Path, store_options: dict[str, str], name: str
) -> None:
    """The store's URL, and its password, came in the place of `create`: that made a session in a directory."""
    url = store_options.get("store_or_url", f"lmdb://{tmp_path}/store")
    wrong = 1 if name == "store_or_url" else url.replace("postgres@", "postgres:s3cret@")
    with pytest.raises(InvalidArgument, match=name) as caught:
        Session(tmp_path / "session", **{**store_options, name: wrong})  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "session").exists()
    if name == "create":
        with pytest.raises(InvalidArgument, match="store_or_url="):
            Session(tmp_path / "session", wrong)  # type: ignore[arg-type]
        assert not (tmp_path / "store").exists()
