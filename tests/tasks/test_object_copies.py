"""Copies of objects: by copy, attrs and pickle, within a program and through a pool of processes."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
import pytest

from children import in_child, run_python, run_script
from examples import Note, Simulation, Sweep
from gc3session import (
    ConflictError,
    GenericCollection,
    GenericPersistable,
    GenericTask,
    InvalidArgument,
    NotFound,
    Persistable,
    Session,
    Task,
    TaskCollection,
    UnstorableValue,
)

ON_EVERY_STORE = True

MakeSession = Callable[..., Session]

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@attrs.frozen
class Fixed(Persistable):
    size: int
    names: tuple[str, ...] = ()


@attrs.define(slots=False)
class Loose(Task):
    size: int = 0


@attrs.define(getstate_setstate=True)
class WithState(Task):
    size: int = 0


@attrs.define
class Own(Task):
    """A class with hooks, and a pickle of its own."""

    size: int = attrs.field(default=0, converter=int, validator=attrs.validators.ge(0))
    _secret: str = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "version": 2}

    def __setstate__(self, state: dict[str, Any]) -> None:
        assert state.pop("version") == 2
        super().__setstate__(state)


OBJECTS: dict[str, Callable[[], Any]] = {
    "task": lambda: Task(jobname="j", state="RUNNING", extra={"a": [1]}),
    "simulation": lambda: Simulation(mesh="m", inputs={"a": {1, 2}}, steps=3),
    "persistable": lambda: Note(text="t", about=[1]),
    "frozen": lambda: Fixed(3, ("a", "b")),
    "with a dict": lambda: Loose(size=2, extra={"k": 1}),
    "getstate_setstate": lambda: WithState(size=5),
    "own pickle": lambda: Own(size=7, secret="s"),
}

COPIERS: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy, "evolve": attrs.evolve}


def pickled(obj: Any, protocol: int | None = None) -> Any:
    return pickle.loads(pickle.dumps(obj, protocol))


def fields_of(obj: Any) -> dict[str, Any]:
    return {field.name: getattr(obj, field.name) for field in attrs.fields(type(obj))}


def stored(session: Session, id_: str) -> Any:
    """Return what is on disk of an object, as another program has it."""
    with Session(session.path, read_only=True) as other:
        return other.load(id_)


# -- copy, deepcopy, evolve, asdict --------------------------------------------


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_copy_is_a_new_object_with_the_same_fields(session: Session, kind: str, copier: str) -> None:
    obj = OBJECTS[kind]()
    before = COPIERS[copier](obj)
    id_ = session.add(obj)
    for new in (before, COPIERS[copier](obj)):
        assert type(new) is type(obj)
        assert new.persistent_id is None
        assert new.changed
        assert new != obj
        assert new not in session
        assert fields_of(new) == fields_of(obj)
        new_id = session.add(new)
        assert new_id != id_
        assert fields_of(stored(session, new_id)) == fields_of(obj)
    assert not obj.changed
    assert len(session) == 3


@pytest.mark.parametrize("copier", COPIERS)
def test_change_of_a_copy_is_saved_for_the_copy_alone(session: Session, copier: str) -> None:
    task = Simulation(mesh="m", inputs={"a": 1})
    id_ = session.add(task)
    new = COPIERS[copier](task)
    new_id = session.add(new)
    new.mesh = "other"
    session.save_all()
    assert (stored(session, id_).mesh, stored(session, new_id).mesh) == ("m", "other")
    task.state = "RUNNING"
    session.save_all()
    assert (stored(session, id_).state, stored(session, new_id).state) == ("RUNNING", "NEW")


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, attrs.evolve, attrs.asdict])
def test_copying_stages_and_writes_nothing(session: Session, copier: Callable[[Any], Any]) -> None:
    task = Simulation(mesh="m")
    id_ = session.add(task, flush=False)
    copier(task)
    assert stored_ids(session) == []
    task.mesh = "n"
    assert copier(task) is not None
    assert task.changed
    session.save_all()
    assert stored(session, id_).mesh == "n"


def stored_ids(session: Session) -> list[str]:
    with Session(session.path, read_only=True) as other:
        return list(other.ids())


def test_evolve_changes_a_field(session: Session) -> None:
    for obj, change, expected in (
        (Simulation(mesh="m"), {"mesh": "n"}, "n"),
        (Note(text="t"), {"text": "u"}, "u"),
    ):
        session.save(obj)
        new = attrs.evolve(obj, **change)
        assert new.persistent_id is None
        assert getattr(stored(session, session.save(new)), *change) == expected
        assert getattr(obj, *change) != expected
    fixed = Fixed(3)
    session.save(fixed)
    assert attrs.evolve(fixed, size=4) != fixed
    assert stored(session, session.save(attrs.evolve(fixed, size=4))).size == 4
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        fixed.size = 4


@pytest.mark.parametrize("kind", OBJECTS)
def test_asdict_and_astuple_have_the_fields_and_nothing_else(session: Session, kind: str) -> None:
    obj = OBJECTS[kind]()
    session.save(obj)
    names = [field.name for field in attrs.fields(type(obj))]
    assert attrs.asdict(obj, recurse=False) == fields_of(obj)
    assert list(attrs.asdict(obj)) == names
    assert attrs.astuple(obj, recurse=False) == tuple(fields_of(obj).values())


def test_deep_copy_copies_members_and_shallow_copy_shares_them(session: Session) -> None:
    sweep = Sweep(tasks=[Simulation(mesh="m"), Sweep(tasks=[Task(jobname="deep")])], parameter="p")
    session.add(sweep)
    shallow, deep = copy.copy(sweep), copy.deepcopy(sweep)
    assert shallow.tasks[0] is sweep.tasks[0]
    assert type(deep) is Sweep
    assert deep.tasks[0].persistent_id is None
    assert type(deep.tasks[0]) is Simulation
    assert deep.tasks[1].tasks[0] is not sweep.tasks[1].tasks[0]
    ids = session.add(shallow), session.add(deep)
    shallow_members, deep_members = (stored(session, id_).tasks for id_ in ids)
    assert shallow_members[0].persistent_id == sweep.tasks[0].persistent_id
    assert deep_members[0].persistent_id != sweep.tasks[0].persistent_id
    assert deep_members[1].tasks[0].jobname == "deep"


def test_deep_copy_of_a_cycle_is_a_cycle(session: Session) -> None:
    sweep = Sweep()
    sweep.tasks = [sweep, Note(text="t", about=sweep)]
    session.add(sweep)
    new = copy.deepcopy(sweep)
    assert new.tasks[0] is new
    assert new.tasks[1].about is new
    back = stored(session, session.add(new))
    assert back.tasks[0] is back
    assert back.tasks[1].about is back


def test_copy_of_a_changed_object_has_its_changes(session: Session) -> None:
    task = Simulation()
    session.add(task)
    task.mesh = "assigned"
    task.inputs["inside"] = 1
    for copier in COPIERS.values():
        new = copier(task)
        assert (new.mesh, new.inputs) == ("assigned", {"inside": 1})
    assert task.changed


def test_copy_of_an_object_whose_field_is_not_set_lacks_it_too() -> None:
    task = Simulation(mesh="m")
    del task.steps
    for new in (copy.copy(task), copy.deepcopy(task), pickled(task)):
        assert new.mesh == "m"
        assert not hasattr(new, "steps")


# -- placeholders, and fields that the class no longer has ----------------------


PLACEHOLDERS = {Task: GenericTask, TaskCollection: GenericCollection, Persistable: GenericPersistable}


@pytest.fixture(params=PLACEHOLDERS, ids=lambda base: base.__name__)
def placeholder(request: pytest.FixtureRequest, session: Session) -> Any:
    """An object of a class that the program no longer has: Gone(size=3, sizes=[1])."""
    base = request.param
    gone = attrs.make_class(
        "Gone",
        {"size": attrs.field(default=3), "sizes": attrs.field(factory=lambda: [1])},
        bases=(base,),
        slots=True,
        eq=False,
        repr=False,
        kw_only=True,
        class_body={"class_tag": "tests:Gone"},
    )
    obj = gone(jobname="j", state="RUNNING") if issubclass(base, Task) else gone()
    with Session(session.path) as other:
        id_ = other.add(obj)
    del gone, obj, other
    gc.collect()
    back = session.load(id_)
    assert type(back) is PLACEHOLDERS[base]
    return back


def check_gone(obj: Any, cls: type, size: int = 3) -> None:
    assert type(obj) is cls
    assert obj.class_name == "tests:Gone"
    assert (obj.size, obj.sizes) == (size, [1])
    assert obj.fields["size"] == size
    if cls is not GenericPersistable:
        assert (obj.jobname, obj.state) == ("j", "RUNNING")


@pytest.mark.parametrize("copier", COPIERS)
def test_copy_of_a_placeholder_has_all_its_fields_and_its_class(
    session: Session, placeholder: Any, copier: str
) -> None:
    new = COPIERS[copier](placeholder)
    assert new.persistent_id is None
    check_gone(new, type(placeholder))
    id_ = session.add(new)
    assert id_.startswith("Gone.")
    assert id_ != placeholder.persistent_id
    check_gone(stored(session, id_), type(placeholder))


def test_pickled_placeholder_is_a_copy_of_its_record(session: Session, placeholder: Any) -> None:
    for protocol in PROTOCOLS:
        new = pickled(placeholder, protocol)
        check_gone(new, type(placeholder), size=3 + protocol)
        new.size = 4 + protocol
        assert session.save(new) == placeholder.persistent_id
        check_gone(placeholder, type(placeholder), size=4 + protocol)
        check_gone(stored(session, new.persistent_id), type(placeholder), size=4 + protocol)
    assert len(session) == 1


def test_fields_of_a_placeholder_can_be_assigned_and_changed_inside(session: Session, placeholder: Any) -> None:
    id_ = placeholder.persistent_id
    placeholder.size = 4
    assert placeholder.changed
    session.save_all()
    assert not placeholder.changed
    check_gone(stored(session, id_), type(placeholder), size=4)
    placeholder.sizes.append(2)
    session.save_all()
    assert stored(session, id_).sizes == [1, 2]
    with pytest.raises(AttributeError, match="nothing"):
        placeholder.nothing = 1


def test_change_of_a_copied_placeholder_is_its_own(session: Session, placeholder: Any) -> None:
    new = copy.copy(placeholder)
    new.size = 9
    check_gone(placeholder, type(placeholder))
    assert not placeholder.changed
    assert stored(session, session.add(new)).size == 9


def test_asdict_of_a_placeholder_has_its_fields(placeholder: Any) -> None:
    told = attrs.asdict(placeholder)
    assert told["_others"] | told != {}
    assert {**told, **told["_others"]}["size"] == 3
    assert attrs.evolve(placeholder, others={**placeholder._others, "size": 5}).size == 5


def test_placeholder_in_another_store_keeps_all_its_fields(make_session: MakeSession, placeholder: Any) -> None:
    other = make_session("other", store_or_url=None)
    for new in (copy.copy(placeholder), pickled(placeholder)):
        check_gone(stored(other, other.add(new)), type(placeholder))


def test_field_that_the_class_no_longer_has_stays_with_the_record_of_a_pickled_copy(session: Session) -> None:
    def define(**fields: Any) -> Any:
        return attrs.make_class("Shrunk", fields, bases=(Task,), class_body={"class_tag": "Shrunk"}, slots=True,
                                eq=False, repr=False)  # fmt: skip

    former = define(kept=attrs.field(default=1), dropped=attrs.field(default=2))
    with Session(session.path) as other:
        id_ = other.add(former())
    module = sys.modules[__name__]
    latter = module.Shrunk = define(kept=attrs.field(default=1))  # type: ignore[attr-defined]
    latter.__module__ = __name__
    try:
        task = session.load(id_)
        assert type(task) is latter
        new = pickled(task)
        new.kept = 5
        assert session.save(new) == id_
        assert (task.kept, not task.changed) == (5, True)
        for evolved in (copy.copy(task), copy.deepcopy(task), attrs.evolve(task)):
            assert (evolved.kept, evolved.persistent_id) == (5, None)
    finally:
        del module.Shrunk  # type: ignore[attr-defined]
    former = define(kept=attrs.field(default=1), dropped=attrs.field(default=0))
    back = stored(session, id_)
    assert type(back) is former
    assert (back.kept, back.dropped) == (5, 2)


# -- pickle ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", OBJECTS)
def test_pickle_of_a_new_object_is_a_new_object(session: Session, kind: str) -> None:
    obj = OBJECTS[kind]()
    for protocol in PROTOCOLS:
        new = pickled(obj, protocol)
        assert type(new) is type(obj)
        assert new.persistent_id is None
        assert fields_of(new) == fields_of(obj)
    assert session.save(obj) != session.save(new)


@pytest.mark.parametrize("kind", OBJECTS)
def test_pickle_of_a_saved_object_is_a_copy_of_its_record(session: Session, kind: str) -> None:
    obj = OBJECTS[kind]()
    id_ = session.add(obj)
    for protocol in PROTOCOLS:
        new = pickled(obj, protocol)
        assert new is not obj
        assert type(new) is type(obj)
        assert new.persistent_id == id_
        assert id_ in repr(new)
        assert fields_of(new) == fields_of(obj)
        assert not obj.changed
        assert session.save(new) == id_
        assert session.load(id_) is obj
        assert not obj.changed
        assert fields_of(stored(session, id_)) == fields_of(obj)
        assert session.list_ids() == {id_}
        assert list(session.store.list()) == [id_]


def test_cloudpickle_and_a_copy_of_a_copy_are_copies_of_the_record_too(session: Session) -> None:
    task = Simulation(mesh="m")
    id_ = session.add(task)
    new = pickled(pickle.loads(cloudpickle.dumps(task)))
    assert new.persistent_id == id_
    new.mesh = "n"
    session.save(new)
    assert (task.mesh, stored(session, id_).mesh) == ("n", "n")
    again = copy.copy(new)
    assert again.persistent_id is None
    assert session.save(again) != id_


def test_pickling_an_object_of_the_batch_writes_the_batch_first(session: Session) -> None:
    task = Simulation(mesh="m")
    id_ = session.add(task, flush=False)
    new = pickled(task)
    assert stored(session, id_).mesh == "m"
    new.steps = 3
    assert session.save(new) == id_
    assert (task.steps, stored(session, id_).steps) == (3, 3)
    task.steps = 4
    session.save(task, flush=False)
    new = pickled(task)
    assert stored(session, id_).steps == 4
    new.steps = 5
    session.save(new, flush=False)
    assert task.steps == 5
    session.flush()
    assert stored(session, id_).steps == 5


def test_pickling_an_object_of_a_transaction_is_refused(session: Session) -> None:
    saved, task = Task(), Simulation()
    session.add(saved)
    with session.transaction():
        session.add(task)
        with pytest.raises(InvalidArgument, match="inside a transaction"):
            pickle.dumps(task)
        assert pickled(saved).persistent_id == saved.persistent_id
        assert copy.copy(task).persistent_id is None
    assert pickled(task).persistent_id == task.persistent_id


def test_object_outlives_its_session_in_a_pickle(make_session: MakeSession) -> None:
    session = make_session()
    task = Simulation(mesh="m")
    id_ = session.add(task)
    session.close()
    data = pickle.dumps(task)
    session = make_session()
    new = pickle.loads(data)
    new.mesh = "n"
    assert session.save(new) == id_
    assert session.load(id_) is new
    assert stored(session, id_).mesh == "n"


# -- saving a copy that came through pickle -------------------------------------


@pytest.fixture
def task(session: Session) -> Simulation:
    task = Simulation(mesh="m", inputs={"a": [1]})
    session.add(task)
    return task


def test_saved_copy_is_taken_over_by_the_living_object(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    new.mesh, new.state = "n", "TERMINATED"
    new.inputs["a"].append(2)
    assert session.save(new) == id_
    assert session.load(id_) is task
    assert (task.mesh, task.state, task.inputs) == ("n", "TERMINATED", {"a": [1, 2]})
    assert task.history == new.history
    assert not task.changed
    assert session.stats() == {"TERMINATED": 1}
    back = stored(session, id_)
    assert (back.mesh, back.state, back.inputs, back.history) == ("n", "TERMINATED", {"a": [1, 2]}, new.history)
    session.save_all()
    task.inputs["a"].append(3)  # it is held, and looked at
    session.save_all()
    assert stored(session, id_).inputs == {"a": [1, 2, 3]}


def test_values_of_a_saved_copy_and_of_the_living_object_are_not_shared(
    session: Session, task: Simulation
) -> None:
    new = pickled(task)
    session.save(new)
    new.inputs["a"].append(9)
    assert task.inputs == {"a": [1]}


def test_copy_can_be_saved_again_and_again(session: Session, task: Simulation) -> None:
    new = pickled(task)
    for step in range(3):
        new.steps = step
        session.save(new)
        assert (task.steps, stored(session, str(task.persistent_id)).steps) == (step, step)
    assert len(session) == 1


def change(task: Simulation, how: str) -> None:
    if how == "assigned":
        task.mesh = "mine"
    else:
        task.inputs["a"].append("mine")


@pytest.mark.parametrize("how", ["assigned", "inside a value"])
def test_copy_conflicts_with_unsaved_changes_of_the_living_object(
    session: Session, task: Simulation, how: str
) -> None:
    new = pickled(task)
    change(task, how)
    mine = fields_of(task)
    new.mesh = "copy's"
    with pytest.raises(ConflictError, match="changed here since") as raised:
        session.save(new)
    assert raised.value.ids == (task.persistent_id,)
    assert fields_of(task) == mine
    assert task.changed
    assert stored(session, str(task.persistent_id)).mesh == "m"
    with pytest.raises(ConflictError):
        session.add(new)
    session.save(new, force=True)
    assert (task.mesh, task.changed) == ("copy's", False)
    assert stored(session, str(task.persistent_id)).mesh == "copy's"


@pytest.mark.parametrize("how", ["assigned", "inside a value"])
def test_copy_conflicts_with_what_was_saved_meanwhile(session: Session, task: Simulation, how: str) -> None:
    new = pickled(task)
    change(task, how)
    session.save(task)
    mine = fields_of(task)
    new.mesh = "copy's"
    with pytest.raises(ConflictError):
        session.save(new)
    assert fields_of(task) == mine
    assert not task.changed
    assert fields_of(stored(session, str(task.persistent_id))) == mine
    session.refresh(new)
    assert fields_of(new) == mine
    new.steps = 7
    session.save(new)
    assert (task.steps, stored(session, str(task.persistent_id)).steps) == (7, 7)


def test_copy_conflicts_with_what_another_program_saved_meanwhile(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    with Session(session.path) as other:
        other.load(id_).mesh = "theirs"
        other.save_all()
    new.mesh = "copy's"
    with pytest.raises(ConflictError):
        session.save(new)
    assert task.mesh == "m"
    assert not task.changed
    session.save_all()
    assert stored(session, id_).mesh == "theirs"
    session.save(new, force=True)
    assert (task.mesh, stored(session, id_).mesh) == ("copy's", "copy's")


def test_second_copy_of_the_same_state_conflicts_with_the_first(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    for keep in (True, False):
        first, second = pickled(task), pickled(task)
        first.steps, second.steps = 1, 2
        if not keep:
            session.store.invalidate_cache()  # as if nobody held the object
        session.save(first)
        with pytest.raises(ConflictError):
            session.save(second)
        assert stored(session, id_).steps == 1


def test_copy_becomes_the_object_if_nobody_holds_the_original(make_session: MakeSession) -> None:
    session = make_session()
    id_ = session.add(Simulation(mesh="m"))
    new = pickled(session.load(id_))
    session.close()
    session = make_session()
    new.mesh = "n"
    inputs = new.inputs
    assert session.save(new) == id_
    assert session.load(id_) is new
    assert new in session
    assert not new.changed
    assert inputs is new.inputs
    new.state = "RUNNING"
    session.save_all()
    new.inputs["inside"] = 1
    session.save_all()
    back = stored(session, id_)
    assert (back.mesh, back.state, back.inputs) == ("n", "RUNNING", {"inside": 1})


def test_copy_of_which_nobody_holds_the_original_is_not_the_object_if_it_was_not_saved(
    make_session: MakeSession,
) -> None:
    session = make_session()
    id_ = session.add(Simulation(mesh="m"))
    new = pickled(session.load(id_))
    session.close()
    session = make_session()
    new.mesh = "n"
    with Session(session.path) as other:
        other.load(id_).mesh = "theirs"
        other.save_all()
    with pytest.raises(ConflictError):
        session.save(new)
    with pytest.raises(RuntimeError), session.transaction():
        session.save(new, force=True)
        raise RuntimeError
    task = session.load(id_)
    assert task is not new
    assert task.mesh == "theirs"
    task.extra["x"] = 1
    session.save_all()
    assert (stored(session, id_).mesh, stored(session, id_).extra) == ("theirs", {"x": 1})


def test_changes_kept_as_a_record_conflict_with_a_copy(session: Session) -> None:
    ids = session.add_many(Simulation(mesh="m") for _ in range(5000))
    new = pickled(stored(session, ids[0]))
    for task in session:
        task.steps = 1  # far more than are held as objects
    del task
    gc.collect()
    assert session.store.loader.living(1) is None
    new.mesh = "copy's"
    with pytest.raises(ConflictError, match="changed here since"):
        session.save(new)
    session.save_all()
    back = stored(session, ids[0])
    assert (back.mesh, back.steps) == ("m", 1)


def test_copy_of_a_removed_object_conflicts(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    session.remove(id_)
    for save in (session.save, session.add):
        with pytest.raises(ConflictError, match="removed"):
            save(new)
    with pytest.raises(NotFound):
        session.load(id_)
    assert len(session) == 0
    with pytest.raises(NotFound):
        session.refresh(new)
    assert new.persistent_id is None
    new_id = session.add(new)
    assert new_id != id_
    assert session.load(new_id) is new


def test_copy_of_a_removed_object_is_written_when_forced(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    session.remove(id_)
    assert session.save(new, force=True) == id_
    assert stored(session, id_).mesh == "m"
    assert session.load(id_) is new
    assert task.persistent_id is None
    assert id_ not in session
    assert session.add(new) == id_
    assert list(session.ids()) == [id_]


def test_copy_in_another_store_is_a_new_object(
    make_session: MakeSession, session: Session, task: Simulation
) -> None:
    other = make_session("other", store_or_url=None)
    other.add_many([Task(), Task()])
    for save in (other.add, other.save):
        new = pickled(task)
        assert new not in other
        id_ = save(new)
        assert id_ != task.persistent_id
        assert (other.load(id_) is new, new.persistent_id) == (True, id_)
        assert stored(other, id_).mesh == "m"
        new.mesh = "n"
        other.save(new)
        assert task.mesh == stored(session, str(task.persistent_id)).mesh == "m"


def test_copy_that_is_added_is_saved_and_in_the_session(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    new.mesh = "n"
    assert new in session
    assert session.add(new) == id_
    assert (len(session), task.mesh, stored(session, id_).mesh) == (1, "n", "n")
    session.forget(id_)
    again = pickled(task)
    assert again not in session
    assert session.add(again) == id_
    assert list(session.ids()) == [id_]
    assert session.add_many([pickled(task), pickled(task)][:1]) == [id_]
    assert len(session) == 1


def test_copies_can_be_added_many_at_a_time(session: Session) -> None:
    tasks = [Simulation(steps=n) for n in range(300)]
    ids = list(session.add_many(tasks))
    new = [pickled(task) for task in tasks]
    for one in new:
        one.steps += 1000
    assert list(session.add_many(new)) == ids
    assert [task.steps for task in tasks] == list(range(1000, 1300))
    assert len(session) == 300
    with Session(session.path, read_only=True) as other:
        assert [task.steps for task in other] == list(range(1000, 1300))


def test_copy_that_can_not_be_stored_changes_nothing(session: Session, task: Simulation) -> None:
    new = pickled(task)
    new.mesh = "n"
    new.extra["bad"] = print
    with pytest.raises(UnstorableValue):
        session.save(new)
    assert task.mesh == "m"
    assert not task.changed
    assert new.persistent_id == task.persistent_id
    del new.extra["bad"]
    session.save(new)
    assert task.mesh == "n"


def test_copy_saved_in_a_failed_transaction_changes_nothing(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)
    new = pickled(task)
    new.mesh = "n"
    with pytest.raises(RuntimeError), session.transaction():
        session.save(new)
        assert task.mesh == "n"
        raise RuntimeError
    assert stored(session, id_).mesh == "m"
    assert task.mesh == "m"
    assert not task.changed
    session.save(new)
    assert (task.mesh, stored(session, id_).mesh) == ("n", "n")


# -- collections of copies --------------------------------------------------------


def test_copied_collection_is_taken_over_with_its_members(session: Session) -> None:
    member = Simulation(mesh="m")
    sweep = Sweep(tasks=[member, Task(jobname="other")], parameter="p")
    id_ = session.add(sweep)
    new = pickled(sweep)
    assert new.tasks[0].persistent_id == member.persistent_id
    new.parameter = "q"
    new.tasks[0].mesh = "n"
    new.tasks[1].extra["x"] = 1
    new.tasks.append(Task(jobname="third"))
    assert session.save(new) == id_
    assert sweep.parameter == "q"
    assert sweep.tasks[0] is member
    assert member.mesh == "n"
    assert [task.jobname for task in sweep.tasks] == ["", "other", "third"]
    back = stored(session, id_)
    assert (back.tasks[0].mesh, back.tasks[1].extra, len(back.tasks)) == ("n", {"x": 1}, 3)
    for task in sweep.tasks:  # they are the session's objects: no change of them is lost
        task.extra["later"] = True
    session.save_all()
    assert all(task.extra["later"] for task in stored(session, id_).tasks)
    assert len(list(session.store.list())) == 4


def test_copied_cycle_is_taken_over(session: Session) -> None:
    sweep = Sweep()
    note = Note(text="t", about=sweep)
    sweep.tasks = [sweep, note]
    id_ = session.add(sweep)
    new = pickled(sweep)
    assert new.tasks[0] is new
    new.tasks[1].text = "u"
    session.save(new)
    assert sweep.tasks == [sweep, note]
    assert note.about is sweep
    assert note.text == "u"
    back = stored(session, id_)
    assert (back.tasks[0] is back, back.tasks[1].about is back, back.tasks[1].text) == (True, True, "u")
    assert len(list(session.store.list())) == 2


def test_collection_that_is_given_copies_of_its_members_has_the_session_s_objects(session: Session) -> None:
    members = [Simulation(steps=n) for n in range(3)]
    sweep = Sweep(tasks=list(members))
    id_ = session.add(sweep)
    for assign in (True, False):
        copies = [pickled(member) for member in members]
        for one in copies:
            one.steps += 10
        if assign:
            sweep.tasks = copies
        else:
            sweep.tasks[:] = copies
        session.save_all()
        assert all(a is b for a, b in zip(sweep.tasks, members, strict=True))
        sweep.tasks[0].extra["x"] = assign
        session.save_all()
        back = stored(session, id_)
        assert [task.steps for task in back.tasks] == [task.steps for task in members]
        assert back.tasks[0].extra == {"x": assign}
    assert [task.steps for task in members] == [20, 21, 22]
    assert len(list(session.store.list())) == 4


def test_new_collection_of_copies_has_the_session_s_objects(session: Session, task: Simulation) -> None:
    new = pickled(task)
    new.steps = 5
    sweep = Sweep(tasks=[new, Task()])
    id_ = session.add(sweep)
    assert sweep.tasks[0] is task
    assert task.steps == 5
    sweep.tasks[0].inputs["a"].append(2)
    session.save_all()
    assert stored(session, id_).tasks[0].inputs == {"a": [1, 2]}
    assert len(session) == 2


def test_copies_refer_to_one_another_once_nobody_holds_the_originals(make_session: MakeSession) -> None:
    session = make_session()
    member = Simulation()
    id_ = session.add(Sweep(tasks=[member, member]))
    data = pickle.dumps(session.load(id_))
    del member
    session.close()
    session = make_session()
    new = pickle.loads(data)
    new.tasks[0].steps = 3
    session.save(new)
    assert session.load(id_) is new
    assert session.load(new.tasks[0].persistent_id) is new.tasks[0]
    assert new.tasks[0] is new.tasks[1]
    new.tasks[0].extra["x"] = 1
    session.save_all()
    back = stored(session, id_)
    assert (back.tasks[0].steps, back.tasks[0].extra) == (3, {"x": 1})


# -- through a pool of processes ---------------------------------------------------


def work(task: Any) -> Any:
    task.state = "TERMINATED"
    task.returncode = 0
    task.extra["result"] = [task.jobname]
    return task


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_results_of_a_pool_are_saved_as_the_tasks_that_they_are(session: Session, start: str) -> None:
    tasks = [Simulation(jobname=str(n)) for n in range(20)]
    ids = [session.add(task, flush=False) for task in tasks]
    with ProcessPoolExecutor(2, mp_context=get_context(start)) as executor:
        results = list(executor.map(work, tasks))
    for each in results:
        session.save(each)
    assert session.stats() == {"TERMINATED": 20}
    assert [task.extra for task in tasks] == [{"result": [str(n)]} for n in range(20)]
    with Session(session.path, read_only=True) as other:
        assert list(other.ids()) == ids
        assert [task.extra["result"] for task in other] == [[str(n)] for n in range(20)]
        assert list(other.store.list()) == ids


def test_results_of_a_loop_over_the_session_are_saved(session: Session) -> None:
    ids = session.add_many(Simulation(jobname=str(n)) for n in range(20))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        for each in executor.map(work, session):
            session.save(each, flush=False)
    session.flush()
    assert session.stats() == {"TERMINATED": 20}
    with Session(session.path, read_only=True) as other:
        assert list(other.store.list()) == list(ids)


def test_pool_that_a_transaction_waits_for_does_not_wait_for_the_transaction(session: Session) -> None:
    tasks = [Simulation(jobname=str(n)) for n in range(3)]
    session.add_many(tasks)
    new = Simulation()
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        with session.transaction():
            for result in [executor.submit(work, task) for task in tasks]:  # pickled by another thread
                session.save(result.result(timeout=60))
            session.add(new)
            refused = executor.submit(work, new)
            with pytest.raises(InvalidArgument, match="inside a transaction"):
                refused.result(timeout=60)
        session.save(executor.submit(work, new).result(timeout=60))
    assert session.stats() == {"TERMINATED": 4}
    assert [task.state for task in (*tasks, new)] == ["TERMINATED"] * 4


def test_worker_that_has_saved_its_result_may_send_it_back(session: Session) -> None:
    task = Simulation(jobname="j")
    id_ = session.add(task)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        result = executor.submit(save_in_a_session, session.path, task).result()
        assert stored(session, id_).state == "TERMINATED"
        result.steps = 5
        assert session.save(result) == id_
        assert (task.state, task.steps, task.changed) == ("TERMINATED", 5, False)
        assert stored(session, id_).steps == 5
        result = executor.submit(save_in_a_session, session.path, task).result()
        task.mesh = "changed here meanwhile"
        with pytest.raises(ConflictError):
            session.save(result)
        session.refresh(task)
        session.save(result)
    assert session.stats() == {"TERMINATED": 1}


def save_in_a_session(path: Path, task: Task) -> Task:
    with Session(path) as session:
        session.save(work(task))
    return task


def test_collection_goes_through_a_pool(session: Session) -> None:
    sweep = Sweep(tasks=[Simulation(jobname="a"), Simulation(jobname="b")], parameter="p")
    id_ = session.add(sweep)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        sweep.tasks = list(executor.map(work, sweep.tasks))
        session.save(sweep)
        result = executor.submit(work, sweep).result()
    session.save(result)
    assert sweep.state == "TERMINATED"
    back = stored(session, id_)
    assert [task.state for task in (back, *back.tasks)] == ["TERMINATED"] * 3
    assert len(list(session.store.list())) == 3


def test_child_saves_in_a_session_of_its_own_what_it_was_sent(session: Session, task: Simulation) -> None:
    id_ = str(task.persistent_id)

    def save_there(data: bytes) -> None:
        with Session(session.path) as mine:
            new = pickle.loads(data)
            new.mesh = "child's"
            mine.save(new)

    in_child(save_there, pickle.dumps(task))
    assert stored(session, id_).mesh == "child's"
    with pytest.raises(ConflictError):
        session.save(task)
    session.refresh(task)
    assert task.mesh == "child's"


# -- classes of a program, elsewhere -------------------------------------------------


RECEIVER = """
import pickle, sys
function, args = pickle.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(pickle.dumps(function(*args)))
"""

SENDER = """
import pickle, subprocess, sys
import attrs, cloudpickle
from gc3session import Session, Task

@attrs.define
class Mine(Task):
    size: int = attrs.field(default=0, validator=attrs.validators.instance_of(int))
    sizes: list = attrs.Factory(list)

@attrs.define
class Plain(Task):
    size: int = 0
    sizes: list = attrs.Factory(list)

def work(path, id_, given):
    from gc3session import Session
    with Session(path) as session:
        for task in (session.load(id_), type(given)(jobname="made there")):
            assert type(task) is type(given), (type(task), type(given))
            session.add(task)
            task.size = 5
            assert task.changed
            session.save_all()
            task.sizes.append(6)
            session.save_all()
    given.size = 9
    return given.size, cloudpickle.dumps(given)

if __name__ == "__main__":
    path = sys.argv[1]
    for cls in (Mine, Plain):
        with Session(path) as session:
            before = cls(jobname="before")  # the class has met a store, or not
            ids = session.add(cls()), session.add(cls(jobname="sent"))
            sent = session.load(ids[1])
            data = cloudpickle.dumps((work, (path, ids[0], sent)))
            done = subprocess.run([sys.executable, sys.argv[2]], input=data, stdout=subprocess.PIPE, check=True)
            size, back = pickle.loads(done.stdout)
            assert size == 9
            back = pickle.loads(back)
            assert type(back) is cls and back.size == 9, back
            session.save(back)
            assert sent.size == 9 and session.load(ids[1]) is sent
            task = session.load(ids[0])
            session.refresh(task)
            assert (task.size, task.sizes) == (5, [6]), task
            assert type(session.load(session.add(cls()))) is cls
            made = [t for t in session.select(name="made there", kind=cls)]
            assert [(type(t), t.size, t.sizes) for t in made] == [(cls, 5, [6])], made
            print(session.info().schemas[-1].tag)
"""


def test_class_of_the_program_that_a_worker_got_by_value_is_tracked_there(path: Path, tmp_path: Path) -> None:
    script, receiver = tmp_path / "campaign.py", tmp_path / "receiver.py"
    script.write_text(SENDER)
    receiver.write_text(RECEIVER)
    assert run_script(script, path, receiver).splitlines() == ["campaign:Mine", "campaign:Plain"]


BY_VALUE = """
import cloudpickle, pickle, sys
import attrs
from gc3session import Session, Task

@attrs.define
class Plain(Task):
    size: int = 0

class Undecorated(Plain):
    def hello(self):
        return self.size

with Session(sys.argv[1]) as session:
    for cls in (Plain, Undecorated):
        ids = list(session.add_many(cls(size=n) for n in range(100)))
        kept = {name: cls.__dict__[name] for name in ("__gc3session_layout__", "__gc3session_twin__")}
        for task in list(map(session.load, ids)):
            back = pickle.loads(cloudpickle.dumps(task))
            assert type(back) is cls
            back.size += 1
            session.save(back)
            assert task.size == back.size
        assert all(cls.__dict__[name] is value for name, value in kept.items()), "it was made anew each time"
        assert type(session.load(session.add(cls()))) is cls
    del task, back
    with Session(sys.argv[1]) as other:
        assert [type(task).__name__ for task in other] == ["Plain"] * 101 + ["Undecorated"] * 101
        assert {type(task) for task in other} == {Plain, Undecorated}
        assert sum(task.size for task in other) == 2 * 5050
"""


def test_class_that_comes_back_by_value_stays_the_same(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "campaign.py"
    script.write_text(BY_VALUE)
    run_script(script, path)


def test_class_of_a_module_that_a_worker_has_not_got_is_the_one_that_came_first(session: Session) -> None:
    namespace = {"__name__": "not_imported", "attrs": attrs, "Task": Task}
    exec("@attrs.define\nclass Sent(Task):\n    size: int = 0", namespace)
    data = cloudpickle.dumps(namespace["Sent"](size=3))
    del namespace
    for _ in range(3):  # each makes the class anew, and gives it up if it is there
        task = pickle.loads(data)
        id_ = session.add(task)
        session.store.invalidate_cache()
        back = session.load(id_)
        assert type(back) is type(task)
        assert back.size == 3


PROGRAM = """
import enum, sys
import attrs
from gc3session import Session, Task

class Colour(enum.Enum):
    RED = 1

@attrs.define
class Mine(Task):
    colour: Colour = Colour.RED

if __name__ == "__main__":
    with Session(sys.argv[1]) as session:
        if len(session) == 0:  # else this process only reads
            session.add(Mine())
    with Session(sys.argv[1]) as session:
        for task in session:
            assert type(task) is Mine and task.colour is Colour.RED, task.colour
        print({schema.tag for schema in session.info().schemas})
"""


@pytest.mark.lmdb
@pytest.mark.parametrize(
    "runner",
    [
        ["campaign.py"],
        ["-m", "campaign"],
        ["-m", "cProfile", "-o", "profile", "campaign.py"],
        ["-m", "profile", "-o", "profile", "campaign.py"],
        ["-m", "trace", "--count", "-C", "counts", "campaign.py"],
        ["-c", "import runpy, sys; runpy.run_path('campaign.py', run_name='__main__')"],
    ],
    ids=" ".join,
)
def test_tag_of_a_class_of_a_script_is_that_of_the_script_whatever_runs_it(
    tmp_path: Path, runner: list[str]
) -> None:
    Path(tmp_path / "campaign.py").write_text(PROGRAM)
    for _ in range(2):  # the second one only reads
        out = run_script(*runner, tmp_path / "s", cwd=tmp_path)
        assert "{'campaign:Mine'}" in out.splitlines()


@pytest.mark.lmdb
def test_tag_of_a_class_of_a_package_that_is_run_is_that_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "campaign"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (package / "inner.py").write_text(PROGRAM)
    assert run_script("-m", "campaign", tmp_path / "a", cwd=tmp_path) == "{'campaign:Mine'}"
    assert run_script("-m", "campaign.inner", tmp_path / "b", cwd=tmp_path) == "{'campaign.inner:Mine'}"


# -- values whose class is defined again ------------------------------------------


VALUES = """
import enum
import attrs

class Colour(enum.Enum):
    RED = 1

@attrs.frozen
class Point:
    x: int

@attrs.define
class Grid:
    point: Point
"""


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "values_of_a_user.py").write_text(VALUES)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("values_of_a_user")
    del sys.modules["values_of_a_user"]


def test_values_of_a_reloaded_module_come_back_as_the_new_classes(session: Session, values: Any) -> None:
    extra = {
        "colour": values.Colour.RED,
        "grid": values.Grid(values.Point(1)),
        values.Point(2): {values.Colour.RED},
    }
    id_ = session.add(Task(extra=extra))
    gc.collect()
    for _ in range(2):
        importlib.reload(values)
        for task in (session.load(id_), stored(session, id_)):
            assert task.extra["colour"] is values.Colour.RED
            assert type(task.extra["grid"]) is values.Grid
            assert type(task.extra["grid"].point) is values.Point
            assert {type(key) for key in task.extra} == {str, values.Point}
            assert task.extra[values.Point(2)] == {values.Colour.RED}
            assert not task.changed
        session.save(task)


def test_values_of_a_cell_that_is_run_again_come_back_as_the_new_classes(path: Path) -> None:
    script = """
        import sys
        from gc3session import Session, Task
        cell = "import attrs, enum\\nclass Colour(enum.Enum):\\n  RED = 1\\n@attrs.define\\nclass Grid:\\n  size: int"

        def main():
            exec(cell, globals())
            session = Session(sys.argv[1])
            held = Task(extra={"colour": Colour.RED, "grid": Grid(3)})
            session.add(held)
            other = session.add(Task(extra={"colour": Colour.RED, "grid": Grid(3)}))
            exec(cell, globals())
            task = session.load(other)
            assert task.extra["colour"] is Colour.RED and task.extra["grid"] == Grid(3), task.extra
            session.save(task)
            held.extra["again"] = 1  # its values are of the former classes, still
            session.save_all()
            del held, task
            for task in session:
                assert task.extra["colour"] is Colour.RED and task.extra["grid"] == Grid(3), task.extra
            session.close()

        main()
    """
    run_python(script, path)


def test_class_of_a_cell_that_is_run_again_is_the_new_one_decorated_or_not(path: Path) -> None:
    script = """
        import sys, attrs
        from gc3session import Session, Task
        decorated = "@attrs.define\\nclass Mine(Task):\\n  size: int = 0"
        plain = "class Mine(Task):\\n  def hello(self):\\n    return 'hello'"

        def main(first, second):
            exec(first, globals())
            former = Mine
            with Session(sys.argv[1]) as session:
                id_ = session.add(Mine())
            exec(second, globals())
            assert former is not Mine
            with Session(sys.argv[1]) as session:
                assert type(session.load(id_)) is Mine, session.load(id_)

        for first, second in ((decorated, plain), (plain, decorated), (plain, plain), (decorated, decorated)):
            main(first, second)
    """
    run_python(script, path)
