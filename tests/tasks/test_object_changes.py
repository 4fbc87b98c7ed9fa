"""What a program does to its tasks reaches the disk by `save_all`, however it got them and whether it keeps them."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import socket
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import attrs
import pytest

from examples import Colour, Grid, Note, Point, Simulation, Sweep
from gc3session import (
    ConflictError,
    GenericTask,
    NotFound,
    NotInSession,
    Persistable,
    Session,
    Task,
    TaskCollection,
    UnsavedWarning,
    UnstorableValue,
)
from gc3session import tasks as tasks_module
from gc3session.format.frame import RECORD_KEY, seal, unseal
from gc3session.store.changes import HELD
from gc3session.tables.interface import RECORDS
from gc3session.tasks import note_class
from sameness import picture
from test_values import ONE_OF_EACH

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True

MANY = 3 * HELD
"""Tasks of which most are let go before they are saved."""


def extras(make_session: MakeSession) -> list[Any]:
    """Return the `extra` of each task, as another program reads it."""
    with make_session(read_only=True) as other:
        return [task.extra for task in other]


def records_of(session: Session) -> dict[bytes, bytes]:
    """Return all committed records of the session's store."""
    with session.store.reading() as reader:
        return {bytes(key): bytes(record) for key, record in reader.scan(RECORDS, b"")}


# -- however a program got them ------------------------------------------------


def by_load(session: Session) -> None:
    for id_ in [*session.ids()]:
        change(session.load(id_))


def by_subscript(session: Session) -> None:
    for id_ in [*session.ids()]:
        change(session[id_])


def by_get(session: Session) -> None:
    for id_ in [*session.ids()]:
        change(session.get(id_))


def by_mapping(session: Session) -> None:
    for id_ in session.tasks:
        change(session.tasks[id_])


def by_load_many(session: Session) -> None:
    for task in session.load_many(session.ids()):
        change(task)


def by_loop(session: Session) -> None:
    for task in session:
        change(task)


def by_selection(session: Session) -> None:
    for task in session.select(state="NEW"):
        change(task)


def by_selection_of_fields(session: Session) -> None:
    for task in session.select(kind=Simulation, mesh="m"):
        change(task)


def by_loops_that_are_broken_off(session: Session) -> None:
    for n, _ in enumerate(session.ids()):
        for i, task in enumerate(session):
            if i == n:
                change(task)
                break


def by_loops_that_raise(session: Session) -> None:
    for n, _ in enumerate(session.ids()):
        with contextlib.suppress(ZeroDivisionError):
            for i, task in enumerate(session):
                if i == n:
                    change(task)
                    raise ZeroDivisionError


def by_next(session: Session) -> None:
    for id_ in [*session.ids()]:
        change(next(task for task in session if task.persistent_id == id_))


def by_nested_loops(session: Session) -> None:
    for outer in session:
        for inner in session:
            if inner is outer:
                change(inner)
        del outer


def by_two_loops_at_once(session: Session) -> None:
    for a, b in zip(session, session, strict=True):
        assert a is b
        change(a)


def by_list(session: Session) -> None:
    for task in [*session]:
        change(task)


def by_sorting(session: Session) -> None:
    for task in sorted(session, key=lambda task: task.jobname, reverse=True):
        change(task)


def by_comprehension(session: Session) -> None:
    [change(task) for task in session]


def by_max(session: Session) -> None:
    for n, _ in enumerate(session.ids()):
        change(max(session, key=lambda task, n=n: task.jobname == f"j{n}"))


def by_workflow(session: Session) -> None:
    for task in session.iter_workflow():
        change(task)


def by_values_of_a_mapping(session: Session) -> None:
    for task in session.tasks.values():
        change(task)


def by_generator(session: Session) -> None:
    def generator() -> Iterator[Any]:
        yield from session

    for task in generator():
        change(task)


def by_queue(session: Session) -> None:
    waiting = [*session]
    while waiting:
        change(waiting.pop())


def change(task: Any) -> None:
    task.extra["seen"] = task.extra.get("seen", 0) + 1


WAYS = [
    by_load, by_subscript, by_get, by_mapping, by_load_many, by_loop, by_selection, by_selection_of_fields,
    by_loops_that_are_broken_off, by_loops_that_raise, by_next, by_nested_loops, by_two_loops_at_once, by_list,
    by_sorting, by_comprehension, by_max, by_workflow, by_values_of_a_mapping, by_generator, by_queue,
]  # fmt: skip


WAYS_TO_LOOP = [
    by_loop, by_loops_that_are_broken_off, by_loops_that_raise, by_next, by_nested_loops, by_two_loops_at_once, by_list,
    by_sorting, by_comprehension, by_max, by_workflow, by_generator, by_queue,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_change_inside_a_value_is_saved_however_the_task_was_reached(
    make_session: MakeSession, way: Callable[[Session], None]
) -> None:
    with make_session() as session:
        session.add_many(Simulation(jobname=f"j{n}", mesh="m") for n in range(7))
    with make_session() as session:
        for again in (1, 2):
            way(session)
            gc.collect()
            session.save_all()
            assert extras(make_session) == [{"seen": again}] * 7


@pytest.mark.lmdb
@pytest.mark.parametrize(
    "way", [by_load, by_mapping, by_loop, by_selection, by_two_loops_at_once, by_comprehension, by_workflow]
)
def test_change_inside_a_value_is_saved_of_any_number_of_tasks(
    make_session: MakeSession, way: Callable[[Session], None]
) -> None:
    with make_session() as session:
        session.add_many(Simulation(mesh="m") for _ in range(MANY))
    with make_session() as session:
        way(session)
        gc.collect()
        alive = [obj for ref in session.store.loader.live.values() if (obj := ref()) is not None]
        assert len(alive) < MANY - HELD / 2
        del alive
        session.save_all()
    assert extras(make_session) == [{"seen": 1}] * MANY


@pytest.mark.parametrize("way", WAYS_TO_LOOP)
def test_change_inside_a_value_is_saved_however_an_edit_is_looped_over(
    make_session: MakeSession, way: Callable[[Any], None]
) -> None:
    class Edited:
        """An edit with what the ways ask of a session."""

        def __init__(self, session: Session, edit: Any) -> None:
            self.ids, self.iter_workflow, self.edit = session.ids, edit.__iter__, edit

        def __iter__(self) -> Iterator[Any]:
            return iter(self.edit)

    with make_session() as session:
        session.add_many(Simulation(jobname=f"j{n}", mesh="m") for n in range(7))
    with make_session() as session:
        with session.edit() as tasks:
            way(Edited(session, tasks))
            gc.collect()
        assert extras(make_session) == [{"seen": 1}] * 7
        with pytest.raises(ZeroDivisionError), session.edit() as tasks:
            way(Edited(session, tasks))
            raise ZeroDivisionError
        session.save_all()
        assert extras(make_session) == [{"seen": 1}] * 7, "what was given up was saved"


def test_loop_that_ends_by_the_collection_of_a_cycle_saves_what_it_changed(make_session: MakeSession) -> None:
    with make_session() as session:
        session.add_many(Task() for _ in range(3))
    with make_session() as session:
        holder: list[Any] = [iter(session)]
        holder.append(holder)
        holder.append(next(holder[0]))
        change(holder[-1])
        del holder
        gc.collect()
        session.save_all()
    assert extras(make_session) == [{"seen": 1}, {}, {}]


def test_loop_that_is_left_is_gone_at_once(session: Session) -> None:
    session.add_many(Task() for _ in range(3))
    for loop in (lambda: iter(session), lambda: session.select(state="NEW"), lambda: iter(session.tasks.values())):
        tasks = loop()
        next(tasks)
        gone = weakref.ref(tasks)
        del tasks
        assert gone() is None


def test_broken_off_loop_saves_what_it_changed_and_nothing_else(make_session: MakeSession) -> None:
    with make_session() as session:
        session.add_many(Task() for _ in range(600))
        before = records_of(session)
    with make_session() as session:
        for n, task in enumerate(session):
            change(task)
            if n == 530:
                break
        del task
        session.save_all()
        after = records_of(session)
    assert sum(before[key] != after[key] for key in before) == 531
    assert extras(make_session) == [{"seen": 1}] * 531 + [{}] * 69


def test_each_session_saves_what_its_own_loop_changed(make_session: MakeSession) -> None:
    with make_session() as session:
        session.add_many(Task() for _ in range(6))
    with make_session() as one, make_session() as two:
        for n, (a, b) in enumerate(zip(one, two, strict=True)):
            (a if n % 2 else b).extra["by"] = n
            del a, b
        one.save_all()
        assert extras(make_session) == [{}, {"by": 1}, {}, {"by": 3}, {}, {"by": 5}]
        two.save_all()
        assert extras(make_session) == [{"by": n} for n in range(6)]


# -- whatever is changed inside ------------------------------------------------


def _with(**extra: Any) -> Callable[[], Task]:
    return lambda: Simulation(extra=copy.deepcopy(extra))


INSIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "item of a dict": (_with(), lambda task: task.extra.update(x=1)),
    "item that goes": (_with(x=1), lambda task: task.extra.pop("x")),
    "order of a dict": (_with(x=1, y=2), lambda task: task.extra.update(x=task.extra.pop("x"))),
    "item of another type": (_with(x=1), lambda task: task.extra.update(x=True)),
    "sign of a zero": (_with(x=0.0), lambda task: task.extra.update(x=-0.0)),
    "list in a dict": (_with(x=[1]), lambda task: task.extra["x"].append(2)),
    "order of a list": (_with(x=[1, 2]), lambda task: task.extra["x"].reverse()),
    "dict in a list in a dict": (_with(x=[{}]), lambda task: task.extra["x"][0].update(y=1)),
    "list in a tuple": (_with(x=([],)), lambda task: task.extra["x"][0].append(1)),
    "set": (_with(x={1}), lambda task: task.extra["x"].add(2)),
    "list that is a key's value": (_with(x={(1, 2): []}), lambda task: task.extra["x"][1, 2].append(0)),
    "attrs object": (_with(x=Grid("g")), lambda task: setattr(task.extra["x"], "name", "h")),
    "list in an attrs object": (_with(x=Grid("g")), lambda task: task.extra["x"].points.append(Point(1))),
    "history": (_with(), lambda task: task.history.append([1.0, "NEW"])),
    "time of an event": (_with(), lambda task: task.history[0].__setitem__(0, 1.0)),
    "field of one's own": (_with(), lambda task: task.inputs.update(a=[1])),
    "deep": (_with(x=[[[[[[[[[[]]]]]]]]]]), lambda task: _deepest(task.extra["x"]).append(1)),
    "member of a collection": (lambda: Sweep(tasks=[Task()]), lambda sweep: sweep.tasks.append(sweep.tasks[0])),
    "member that goes": (lambda: Sweep(tasks=[Task(), Task()]), lambda sweep: sweep.tasks.pop()),
    "order of members": (lambda: Sweep(tasks=[Task(), Task()]), lambda sweep: sweep.tasks.reverse()),
    "new member": (lambda: Sweep(), lambda sweep: sweep.tasks.append(Task(jobname="new"))),
    "added member": (lambda: Sweep(), lambda sweep: sweep.add(Task(jobname="new"))),
    "reference": (_with(x=[]), lambda task: task.extra["x"].append(Note(text="new"))),
    "reference to itself": (_with(x=[]), lambda task: task.extra["x"].append(task)),
    "field of a persistable": (lambda: Note(about=[]), lambda note: note.about.append(1)),
}  # fmt: skip

if numpy is not None:
    INSIDE |= {
        "array": (_with(x=numpy.zeros(3)), lambda task: task.extra["x"].__setitem__(1, 7)),
        "array of two dimensions": (_with(x=numpy.zeros((3, 3))), lambda task: task.extra["x"].fill(1)),
        "array by an operator": (_with(x=numpy.arange(5)), lambda task: task.extra["x"].__iadd__(1)),
        "array by its view": (_with(x=numpy.arange(9)), lambda task: task.extra["x"][::3].__setitem__(2, 1)),
        "array by a ufunc": (
            _with(x=numpy.ones(2)),
            lambda task: numpy.negative(task.extra["x"], out=task.extra["x"]),
        ),
        "shape of an array": (_with(x=numpy.zeros(4)), lambda task: setattr(task.extra["x"], "shape", (2, 2))),
        "field of a structured array": (
            _with(x=numpy.zeros(2, "i4,f8")),
            lambda task: task.extra["x"]["f1"].__setitem__(0, 1),
        ),
        "array in a list": (_with(x=[numpy.zeros(3)]), lambda task: task.extra["x"][0].sort()
                            or task.extra["x"][0].__setitem__(0, 1)),
        "array of another type": (_with(x=numpy.zeros(3)), lambda task: task.extra.update(x=numpy.zeros(3, "f4"))),
    }  # fmt: skip


def _deepest(value: list[Any]) -> list[Any]:
    while value:
        value = value[0]
    return value


@pytest.mark.parametrize("held", ["held", "dropped", "in a loop"])
@pytest.mark.parametrize("what", INSIDE)
def test_every_change_inside_a_value_is_seen_and_saved(make_session: MakeSession, what: str, held: str) -> None:
    make, change_inside = INSIDE[what]
    session = make_session()
    obj = make()
    id_ = session.add(obj)
    assert not obj.changed
    if held != "held":
        del obj
        gc.collect()
        session.close()
        session = make_session()
        obj = session.load(id_) if held == "dropped" else next(iter(session))
        assert not obj.changed
    change_inside(obj)
    assert obj.changed
    expected = picture(obj)
    if held != "held":
        del obj
        gc.collect()
    session.save_all()
    assert picture(session.load(id_)) == expected
    assert not session.load(id_).changed
    with make_session(read_only=True) as other:
        assert picture(other.load(id_)) == expected
    session.close()


def test_change_of_a_member_deep_in_collections_is_saved(make_session: MakeSession) -> None:
    with make_session() as session:
        deep = Sweep(tasks=[TaskCollection(tasks=[Sweep(tasks=[Task(), Task()])])])
        id_ = session.add(deep)
        deep.tasks[0].tasks[0].tasks[1].extra["x"] = 1
        assert not deep.changed
        session.save_all()
    with make_session() as session:
        inner = session.load(id_).tasks[0].tasks[0]
        assert inner.tasks[1].extra == {"x": 1}
        inner.tasks[0].extra["y"] = 2
        inner.tasks[1].state = "RUNNING"
        del inner
        gc.collect()
        session.save_all()
    with make_session() as session:
        for task in session:
            for member in task.tasks[0].tasks[0].tasks:
                member.extra["z"] = 3
        del task, member
        session.save_all()
    with make_session(read_only=True) as other:
        members = other.load(id_).tasks[0].tasks[0].tasks
        assert [member.extra for member in members] == [{"y": 2, "z": 3}, {"x": 1, "z": 3}]
        assert members[1].state == "RUNNING"


def test_save_looks_at_the_object_itself(make_session: MakeSession) -> None:
    with make_session() as session:
        task = Task()
        id_ = session.add(task)
        task.extra["x"] = 1
        session.save(task)
        assert extras(make_session) == [{"x": 1}]
        task.extra["x"] = 2
        session.add(task)
        assert extras(make_session) == [{"x": 2}]
        assert session.load(id_) is task


# -- a read-only session ---------------------------------------------------------


def test_read_only_session_holds_nothing_and_looks_at_nothing(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_session() as session:
        id_ = session.add(Task())
    with make_session(read_only=True) as session:

        def look(*args: Any) -> None:
            raise AssertionError("a read-only session has no changes to look for")

        monkeypatch.setattr(session.store.changes, "look_at", look)
        monkeypatch.setattr(session.store.changes, "remember", look)
        gone = []
        for task in session:
            gone.append(weakref.ref(task))
            task.jobname = "only here"
        del task
        gone += [weakref.ref(session.load(id_)), weakref.ref(session[id_])]
        assert [ref() for ref in gone] == [None] * 3
        assert len(session.store.changes) == 0


# -- more changed tasks than are held ----------------------------------------------


@pytest.fixture
def let_go(make_session: MakeSession) -> Session:
    """A session that has changed all of very many tasks and holds none of them."""
    with make_session() as session:
        session.add_many(Simulation(mesh=f"m{n}") for n in range(MANY))
    session = make_session()
    for n, task in enumerate(session):
        task.steps = n
        task.state = "RUNNING" if n % 2 else "NEW"
        task.extra["n"] = [n]
    del task
    gc.collect()
    assert len(session.store.changes.objects) <= HELD + 512
    assert len(session.store.changes.records) >= MANY - HELD - 512
    return session


def steps(make_session: MakeSession) -> list[Any]:
    """Return what another program reads of the tasks of `let_go`."""
    with make_session(read_only=True) as other:
        stats = other.stats()
        found = [(task.steps, task.state, task.extra) for task in other]
        assert stats == {"NEW": (MANY + 1) // 2, "RUNNING": MANY // 2} or not any(step[0] for step in found)
        return found


ALL = [(n, "RUNNING" if n % 2 else "NEW", {"n": [n]}) for n in range(MANY)]


def first_let_go(session: Session) -> tuple[str, int]:
    """Return the ID of a task that is kept as its record, and which one it is."""
    number = min(session.store.changes.records)
    return f"Simulation.{number}", [*session.ids()].index(f"Simulation.{number}")


def test_changed_tasks_that_were_let_go_are_saved(let_go: Session, make_session: MakeSession) -> None:
    let_go.save_all()
    assert steps(make_session) == ALL
    assert len(let_go.store.changes) == 0
    before = records_of(let_go)
    let_go.save_all()
    assert records_of(let_go) == before


def test_changed_tasks_that_were_let_go_are_read_as_they_were_changed(
    let_go: Session, make_session: MakeSession
) -> None:
    id_, n = first_let_go(let_go)
    assert let_go.load(id_).steps == n
    assert let_go.load(id_).changed
    assert [(task.steps, task.state, task.extra) for task in let_go] == ALL
    assert all(task.changed for task in let_go)
    assert [task.steps for task in let_go.select(kind=Simulation)] == [*range(MANY)]
    assert steps(make_session)[5] == (0, "NEW", {}), "reading has written it"
    let_go.save_all()
    assert steps(make_session) == ALL


def test_changed_task_that_was_let_go_is_changed_on(let_go: Session, make_session: MakeSession) -> None:
    id_, n = first_let_go(let_go)
    let_go.load(id_).extra["more"] = True
    let_go.load(id_).mesh = "other"
    gc.collect()
    let_go.save_all()
    with make_session(read_only=True) as other:
        task = other.load(id_)
        assert (task.steps, task.mesh, task.extra) == (n, "other", {"n": [n], "more": True})


@pytest.mark.parametrize("how", ["save", "add", "save force", "unflushed", "by a reference"])
def test_changed_task_that_was_let_go_is_saved_alone(let_go: Session, make_session: MakeSession, how: str) -> None:
    id_, n = first_let_go(let_go)
    task = let_go.load(id_)
    if how == "add":
        let_go.add(task)
    elif how == "unflushed":
        let_go.save(task, flush=False)
        let_go.flush()
    elif how == "by a reference":
        let_go.save(Note(about=task))
    else:
        let_go.save(task, force=how == "save force")
    del task
    with make_session(read_only=True) as other:
        assert other.load(id_).steps == n
        assert other.load(f"Simulation.{min(let_go.store.changes.records)}").steps == 0
    let_go.save_all()
    assert steps(make_session) == ALL


def test_changed_task_that_was_let_go_is_refreshed(let_go: Session, make_session: MakeSession) -> None:
    id_, n = first_let_go(let_go)
    task = let_go.load(id_)
    let_go.refresh(task)
    assert (task.steps, task.extra, task.changed) == (0, {}, False)
    del task
    assert let_go.load(id_).steps == 0
    let_go.save_all()
    with make_session(read_only=True) as other:
        assert [task.steps for task in other] == [*range(n), 0, *range(n + 1, MANY)]


@pytest.mark.parametrize("held", [True, False])
def test_changes_of_a_task_that_another_program_removed_can_be_given_up(
    make_session: MakeSession, held: bool
) -> None:
    with make_session() as session:
        ids = session.add_many(Task() for _ in range(2))
    with make_session() as session:
        tasks = [session.load(id_) for id_ in ids]
        for task in tasks:
            task.jobname = "changed"
        with make_session() as other:
            other.remove(ids[0])
        if not held:
            del task, tasks[0]
        with pytest.raises(ConflictError) as caught:
            session.save_all()
        assert caught.value.ids == (ids[0],)
        with pytest.raises(NotFound):
            session.load(ids[0])
        if held:
            assert tasks[0].persistent_id == ids[0]
            assert not tasks[0].changed
        session.save_all()
        assert not tasks[-1].changed
    with make_session(read_only=True) as session:
        assert [task.jobname for task in session] == ["changed"]


def test_removal_by_another_program_is_no_change_of_what_refers_to_the_task(make_session: MakeSession) -> None:
    part = Task()
    with make_session() as session:
        id_ = session.add(TaskCollection(tasks=[part]))
        part_id = part.persistent_id
        assert part_id is not None
    with make_session() as session:
        session.load(id_)
        with make_session() as other:
            other.remove(id_)
        with pytest.raises(NotFound):
            session.load(part_id)
        session.save_all()


@pytest.mark.parametrize("how", ["remove", "remove_many", "remove after loading", "in a transaction that fails"])
def test_changed_task_that_was_let_go_is_removed(let_go: Session, make_session: MakeSession, how: str) -> None:
    id_, n = first_let_go(let_go)
    if how == "remove_many":
        let_go.remove_many([id_])
    elif how == "in a transaction that fails":
        with pytest.raises(ZeroDivisionError), let_go.transaction():
            let_go.remove(id_)
            raise ZeroDivisionError
        let_go.save_all()
        assert steps(make_session) == ALL
        return
    else:
        task = let_go.load(id_) if "loading" in how else None
        let_go.remove(id_)
        del task
    assert len(let_go) == MANY - 1
    let_go.save_all()
    with make_session(read_only=True) as other:
        assert [task.steps for task in other] == [*range(n), *range(n + 1, MANY)]
    with pytest.raises(NotFound):
        let_go.load(id_)


def test_conflict_of_a_task_that_was_let_go_is_named_and_can_be_resolved(
    let_go: Session, make_session: MakeSession
) -> None:
    id_, n = first_let_go(let_go)
    with make_session() as other:
        task = other.load(id_)
        task.mesh = "theirs"
        other.save_all()
    with pytest.raises(ConflictError, match=id_) as caught:
        let_go.save_all()
    assert caught.value.ids == (id_,)
    with make_session(read_only=True) as other:
        assert {task.steps for task in other} == {0}, "something was written"
    with pytest.raises(ConflictError, match=id_):
        let_go.save_all()
    assert let_go.load(id_).steps == n
    let_go.refresh(let_go.load(id_))
    assert let_go.load(id_).mesh == "theirs"
    let_go.save_all()
    with make_session(read_only=True) as other:
        assert [task.steps for task in other] == [*range(n), 0, *range(n + 1, MANY)]


def test_conflict_of_a_task_that_was_let_go_is_overwritten_if_that_is_wanted(
    let_go: Session, make_session: MakeSession
) -> None:
    id_, n = first_let_go(let_go)
    with make_session() as other:
        other.load(id_).mesh = "theirs"
        other.save_all()
    with pytest.raises(ConflictError):
        let_go.save_all()
    let_go.save(let_go.load(id_), force=True)
    let_go.save_all()
    with make_session(read_only=True) as other:
        assert (other.load(id_).mesh, other.load(id_).steps) == (f"m{n}", n)
    assert steps(make_session) == ALL


def test_task_that_was_let_go_and_that_another_program_removed_can_be_given_up(
    let_go: Session, make_session: MakeSession
) -> None:
    id_, n = first_let_go(let_go)
    with make_session() as other:
        other.remove(id_)
    with pytest.raises(ConflictError) as caught:
        let_go.save_all()
    assert caught.value.ids == (id_,)
    with pytest.raises(NotInSession):
        let_go.remove(id_)
    with pytest.raises(NotFound):
        let_go.load(id_)
    let_go.save_all()
    with make_session(read_only=True) as other:
        assert [task.steps for task in other] == [*range(n), *range(n + 1, MANY)]


def test_removal_of_a_task_that_was_let_go_conflicts_with_what_another_program_wrote(
    let_go: Session, make_session: MakeSession
) -> None:
    id_, _ = first_let_go(let_go)
    with make_session() as other:
        other.load(id_).mesh = "theirs"
        other.save_all()
    with pytest.raises(ConflictError, match=id_):
        let_go.remove(id_)
    assert id_ in let_go
    let_go.refresh(let_go.load(id_))
    let_go.remove(id_)
    assert id_ not in let_go


def test_save_all_that_is_undone_leaves_what_was_let_go_to_the_next(
    let_go: Session, make_session: MakeSession
) -> None:
    with pytest.raises(ZeroDivisionError), let_go.transaction():
        let_go.save_all()
        raise ZeroDivisionError
    assert steps(make_session)[7] == (0, "NEW", {})
    let_go.save_all(flush=False)
    let_go.flush()
    assert steps(make_session) == ALL


@pytest.mark.parametrize("what", ["changed on", "changed", "assigned what it has"])
def test_living_object_wins_over_the_record_that_it_was_kept_as(make_session: MakeSession, what: str) -> None:
    session = make_session()
    tasks = [Simulation(steps=n if "has" in what else -1) for n in range(MANY)]
    session.add_many(tasks)
    for n, task in enumerate(tasks):
        task.steps = n
    assert session.store.changes.records
    for n, task in enumerate(tasks):
        if what == "changed on":
            task.extra["n"] = n
    assert session.load(tasks[0].persistent_id) is tasks[0]
    assert [*session] == tasks
    session.save_all()
    assert not any(task.changed for task in tasks)
    with make_session(read_only=True) as other:
        assert [(task.steps, task.extra) for task in other] == [
            (n, {"n": n} if what == "changed on" else {}) for n in range(MANY)
        ]
    tasks[0].steps = -2
    session.save_all()
    assert not tasks[0].changed
    session.close()


def test_end_says_how_many_changes_were_never_saved(let_go: Session) -> None:
    with pytest.warns(UnsavedWarning, match=f"changes of {MANY} objects were never saved"):
        let_go.close()


# -- conflicts ---------------------------------------------------------------------


def test_two_objects_of_one_record_are_both_looked_at(make_session: MakeSession) -> None:
    session = make_session()
    first = Task()
    id_ = session.add(first)
    session.store.invalidate_cache()
    second = session.load(id_)
    assert second is not first
    first.jobname = "first"
    assert not second.changed
    second.jobname = "second"
    for _ in range(2):
        with pytest.raises(ConflictError, match=id_):
            session.save_all()
    session.refresh(second)
    session.save_all()
    with make_session(read_only=True) as other:
        assert other.load(id_).jobname == "first"
    session.close()


def owner_of(*members: Any) -> Any:
    """Return an object of a class that is no TaskCollection and has a field `tasks`."""

    @attrs.define
    class Owner(Persistable):
        tasks: list[Any] = attrs.Factory(list)

    return Owner([*members])


HOLDERS: dict[str, Callable[..., Any]] = {
    "collection": lambda *members: TaskCollection(tasks=[*members]),
    "persistable": owner_of,
    "tuple": lambda *members: attrs.evolve(owner_of(), tasks=tuple(members)),
    "dict": lambda *members: attrs.evolve(owner_of(), tasks=dict(enumerate(members))),
    "nested": lambda *members: owner_of([TaskCollection(tasks=[*members])]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_remove_takes_what_is_in_tasks_of_any_class(make_session: MakeSession, holder: str) -> None:
    with make_session() as session:
        members = [Task(), Note(text="n"), TaskCollection(tasks=[Task()])]
        outside = Task()
        obj = HOLDERS[holder](*members)
        keeper = Task(extra={"other": outside})
        members[0].extra["outside"] = outside
        id_ = session.add(obj)
        session.add(keeper)
        assert len(list(session.store.list())) >= 6
        session.remove(id_)
        left = set(session.store.list())
        assert left == {keeper.persistent_id, outside.persistent_id}
        assert [one.persistent_id for one in (obj, *members)] == [None] * 4


@pytest.mark.parametrize("what", ["the task", "a member", "a member of a persistable"])
def test_remove_of_what_another_program_has_changed_is_a_conflict(make_session: MakeSession, what: str) -> None:
    session = make_session()
    member = Task()
    obj = member if what == "the task" else (owner_of if "persistable" in what else HOLDERS["collection"])(member)
    id_ = session.add(obj)
    with make_session() as other:
        other.load(str(member.persistent_id)).jobname = "theirs"
        other.save_all()
    before = records_of(session)
    for remove in (session.remove, lambda id_: session.remove_many([id_]), session.store.remove):
        with pytest.raises(ConflictError) as caught:
            remove(id_)
        assert caught.value.ids == (member.persistent_id,)
        assert obj.persistent_id == id_
        assert member.persistent_id is not None
        assert records_of(session) == before
        assert id_ in session
    session.remove(id_, flush=False)
    with pytest.raises(ConflictError):
        session.flush()
    session.store.batch.clear()


def test_remove_after_taking_over_what_another_program_has_changed(make_session: MakeSession) -> None:
    with make_session() as session:
        task = Task()
        id_ = session.add(task)
        with make_session() as other:
            other.load(id_).jobname = "theirs"
            other.save_all()
        with pytest.raises(ConflictError):
            session.remove(id_)
        session.refresh(task)
        session.remove(id_)
        assert len(session) == 0


def test_remove_of_what_this_program_never_had_in_hand(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = session.add_many(Task() for _ in range(3))
    with make_session() as session, make_session() as other:
        other.load(ids[1]).jobname = "theirs"
        other.save_all()
        session.remove(ids[1])
        assert len(other) == 2


# -- two sessions of one store ----------------------------------------------------


def test_save_all_saves_its_own_session_only(make_session: MakeSession) -> None:
    one = make_session("one")
    two = Session(os.path.join(os.path.dirname(one.path), "two"), store_or_url=one.store)
    a, b, both, neither = Task(), Task(), Task(), Task()
    one.add_many([a, both])
    two.add_many([b, both])
    one.save(neither)
    for way in ("assigned", "inside"):
        for task in (a, b, both, neither):
            if way == "assigned":
                task.jobname = way
            else:
                task.extra[way] = True
        one.save_all()
        assert [task.changed for task in (a, b, both, neither)] == [False, True, False, False]
        two.save_all()
        assert not b.changed
    two.close()
    one.close()


def test_conflict_in_another_session_of_the_store_does_not_block(make_session: MakeSession) -> None:
    one = make_session("one")
    two = Session(os.path.join(os.path.dirname(one.path), "two"), store_or_url=one.store)
    a, b = Task(), Task()
    one.add(a)
    id_ = two.add(b)
    with make_session("two") as other:
        other.load(id_).jobname = "theirs"
        other.save_all()
    a.jobname = b.jobname = "ours"
    one.save_all()
    assert not a.changed
    with pytest.raises(ConflictError, match=id_):
        two.save_all()
    two.refresh(b)
    two.close()
    one.close()


def test_save_all_saves_its_own_session_only_of_those_that_were_let_go(make_session: MakeSession) -> None:
    one = make_session("one")
    two = Session(os.path.join(os.path.dirname(one.path), "two"), store_or_url=one.store)
    for session in (one, two):
        session.add_many(Task() for _ in range(2 * HELD))
    for session in (one, two):
        for task in session:
            task.jobname = session.name
    del task
    gc.collect()
    assert one.store.changes.records
    one.save_all()
    with make_session("one", read_only=True) as a, make_session("two", read_only=True) as b:
        assert (a.list_names(), b.list_names()) == ({"one"}, {""})
        two.save_all()
        assert b.list_names() == {"two"}
    two.close()
    one.close()


# -- reading alone changes nothing --------------------------------------------------


def read_everything(session: Session) -> None:
    """Reach all tasks in all ways, and look at all that they hold."""
    for way in (by_load, by_subscript, by_mapping, by_loop, by_two_loops_at_once, by_list, by_workflow):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "change", look)
            way(session)
    for id_ in [*session.store.list()]:
        look(session.store.load(id_))
        assert not session.store.load(id_).changed, id_
    held = [*session, *map(session.store.load, session.store.list())]
    list(map(look, held))
    assert not any(obj.changed for obj in held)
    gc.collect()


def look(obj: Any) -> None:
    picture(obj)
    repr(obj)
    assert obj == obj
    for name in dir(obj):
        getattr(obj, name, None)


def assert_reading_writes_nothing(make_session: MakeSession) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnsavedWarning)
        session = make_session()
        before = records_of(session)
        read_everything(session)
        assert session.store.unsaved() == 0
        session.save_all()
        assert records_of(session) == before
        for task in session:
            session.add(task)  # of a task that is there: nothing to write
        assert records_of(session) == before
        session.close()


def test_reading_values_of_every_type_changes_nothing(make_session: MakeSession) -> None:
    with make_session() as session:
        for value in ONE_OF_EACH:
            session.add(Simulation(extra={"value": value}, inputs={"a": [value], "b": (value,)}))
        arrays = []
        if numpy is not None:
            arrays = [
                numpy.zeros((2, 3)),
                numpy.asfortranarray(numpy.eye(3)),
                numpy.arange(9)[::2],
                numpy.float32(1),
            ]
            arrays += [numpy.zeros(2, "i4,f8"), numpy.array([numpy.nan]), numpy.array("text"), numpy.zeros((0, 2))]
        session.add(Task(extra={"arrays": arrays}))
        member = Note(text="m", about=Colour.RED)
        session.add(Sweep(tasks=[member, member, Task(), TaskCollection(tasks=[Persistable()])]))
        cycle = Note(text="cycle")
        cycle.about = {"self": cycle, "list": [cycle, member]}
        session.add(cycle)
    assert_reading_writes_nothing(make_session)


def test_reading_records_of_older_classes_changes_nothing(make_session: MakeSession) -> None:
    def define(**fields: Any) -> Any:
        hook = fields.pop("upgrade_record", None)
        body = {"class_tag": "older", **({"upgrade_record": hook} if hook else {})}
        made = attrs.make_class("Older", {k: attrs.field(default=v) for k, v in fields.items()}, bases=(Task,))
        for name, value in body.items():
            setattr(made, name, value)
        note_class(made)
        return made

    old = define(a=1, b="b", gone=[1])
    with make_session() as session:
        session.add_many([old(), old(gone={"deep": [Point(1)]}), old(a=Note(text="x"))])
    # Fields that are gone, new ones, with defaults that the program computes, in another order.
    define(b="", a=0)
    assert_reading_writes_nothing(make_session)
    define(new=attrs.Factory(list), b="", a=0, self_made=attrs.Factory(lambda self: [self.a], takes_self=True))
    assert_reading_writes_nothing(make_session)
    define(new=attrs.Factory(Note), a=0)
    assert_reading_writes_nothing(make_session)

    def upgrade_record(cls: Any, fields: dict[str, Any]) -> dict[str, Any]:
        fields["b"] = [fields.get("b"), "upgraded"]
        fields["members"] = [Task(jobname="made by the hook")]
        return fields

    define(a=0, b=(), members=(), upgrade_record=classmethod(upgrade_record))
    assert_reading_writes_nothing(make_session)


def test_change_inside_what_an_upgrade_made_is_seen(make_session: MakeSession) -> None:
    old = attrs.make_class("Older2", {"a": attrs.field(default=1)}, bases=(Task,))
    with make_session() as session:
        ids = session.add_many([old() for _ in range(4)])
    new = attrs.make_class(
        "Older2",
        {
            "notes": attrs.field(factory=lambda: [Note(text="made"), Note(about=[])]),
            "listed": attrs.field(factory=list),
        },
        bases=(Task,),
    )
    assert type(new()).__module__ == old.__module__
    with make_session() as session:
        for id_ in ids:
            assert not session.load(id_).changed
        session.load(ids[0]).listed.append(1)
        session.load(ids[1]).notes[0].text = "changed"
        session.load(ids[2]).notes[1].about.append(5)
        assert [session.load(id_).changed for id_ in ids] == [True, True, True, False]
        gc.collect()
        session.save_all()
    with make_session(read_only=True) as session:
        tasks = [session.load(id_) for id_ in ids]
        assert tasks[0].listed == [1]
        assert tasks[1].notes[0].text == "changed"
        assert tasks[2].notes[1].about == [5]


def test_reading_placeholders_changes_nothing(make_session: MakeSession) -> None:
    @attrs.define
    class Unknown(Task):
        class_tag: ClassVar[str] = "of another program"
        deep: Any = None
        points: Any = None

    with make_session() as session:
        ids = session.add_many(
            [Unknown(deep=[1, {"x": (2,)}]), Unknown(points=[Point(1), Grid("g")]), Unknown(deep=Note())]
        )
        session.add(Sweep(tasks=[session.load(ids[0])]))
    Unknown.class_tag = "another one"
    gc.collect()  # the class as it was before it was decorated
    tasks_module._classes.pop("of another program")
    with make_session() as session:
        assert type(session.load(ids[0])) is GenericTask
    assert_reading_writes_nothing(make_session)
    with make_session() as session:
        session.load(ids[0]).deep[1]["y"] = 3
        session.load(ids[1]).points.append(1)
        session.load(ids[2]).extra["z"] = 1
        session.load(ids[2]).deep = None
        gc.collect()
        session.save_all()
    with make_session(read_only=True) as session:
        assert session.load(ids[0]).deep == [1, {"x": (2,), "y": 3}]
        assert session.load(ids[1]).points == [Point(1), Grid("g"), 1]
        assert (session.load(ids[2]).extra, session.load(ids[2]).deep) == ({"z": 1}, None)


@pytest.mark.lmdb
def test_reading_records_that_another_version_packed_otherwise_changes_nothing(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = session.add_many([Task(jobname="j", returncode=7), Task(jobname="j", extra={"j": 7})])
        short, long = b"\xa1j", b"\xd9\x01j"  # the same str, in a longer form that msgpack allows
        items = []
        for key, record in records_of(session).items():
            number = RECORD_KEY.unpack(key)[0]
            body = unseal(number, record)
            assert short in body
            items.append((key, seal(number, body.replace(short, long))))
        session.store.tables.write(lambda writer: writer.put(RECORDS, items))
    assert_reading_writes_nothing(make_session)
    with make_session() as session:
        for id_ in ids:
            assert session.load(id_).jobname == "j"
            session.load(id_).extra["x"] = 1
            assert session.load(id_).changed
        session.save_all()
    assert extras(make_session) == [{"x": 1}, {"j": 7, "x": 1}]


# -- what can't be stored -------------------------------------------------------------


def test_unstorable_change_inside_a_value_is_held_until_it_can_be_saved(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = session.add_many(Simulation() for _ in range(600))
    session = make_session()
    with socket.socket() as bad:
        for n, task in enumerate(session):
            task.inputs["n"] = bad if n == 5 else n
        del task
        gc.collect()
        before = records_of(session)
        for _ in range(2):
            with pytest.raises(UnstorableValue, match=r"Simulation\.inputs\['n'\]: a socket can't be stored"):
                session.save_all()
            assert records_of(session) == before
        assert session.load(ids[5]).inputs == {"n": bad}
        session.load(ids[5]).inputs["n"] = 5
        gc.collect()
        session.save_all()
    with make_session(read_only=True) as other:
        assert [task.inputs["n"] for task in other] == [*range(600)]
    session.close()


@pytest.mark.parametrize("why", ["unstorable", "in the batch", "new references"])
def test_changes_that_can_not_be_kept_as_records_are_not_tried_again_and_again(
    make_session: MakeSession, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    tasks = [Task() for _ in range(MANY)]
    session.add_many(tasks, flush=why != "in the batch")
    calls: list[Any] = []
    keep = session.store.changes._keep
    monkeypatch.setattr(session.store.changes, "_keep", lambda objs: (calls.extend(objs), keep(objs))[1])
    for n, task in enumerate(tasks):
        task.returncode = n
        if why == "unstorable":
            task.extra["bad"] = calls.append
        elif why == "new references":
            task.extra["note"] = Note(text=str(n))
    assert len(calls) <= 2 * MANY
    if why == "unstorable":
        with pytest.raises(UnstorableValue):
            session.save_all()
        for task in tasks:
            task.extra.clear()
    session.save_all()
    with make_session(read_only=True) as other:
        assert [task.returncode for task in other] == [*range(MANY)]
    session.close()


@pytest.mark.lmdb
def test_loop_of_assignments_takes_little_memory_for_each(make_session: MakeSession) -> None:
    count = 20_000
    with make_session() as session:
        session.add_many(Simulation(mesh="mesh", inputs={"a": 1}) for _ in range(count))
    session = make_session()
    for _ in session:
        pass  # so that what only the first loop takes is there
    tracemalloc.start()
    for n, task in enumerate(session):
        task.steps = n
    del task
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The record of some 110 bytes, a tuple and an entry of a dict; the objects would take 1,500 each.
    assert peak / count < 700
    session.save_all()
    assert [task.steps for task in session] == [*range(count)]
    session.close()


@pytest.mark.lmdb
def test_loop_that_changes_nothing_takes_no_memory_for_each(make_session: MakeSession) -> None:
    count = 20_000
    with make_session() as session:
        session.add_many(Simulation(mesh="mesh") for _ in range(count))
    session = make_session()
    for _ in session:
        pass
    for act in (
        lambda: [None for _ in session if False],
        lambda: [None for id_ in session.ids() if not session[id_]],
    ):
        tracemalloc.start()
        act()
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8e6
        assert held < 4e6
    session.close()
