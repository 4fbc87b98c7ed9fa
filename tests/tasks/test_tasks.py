"""Tasks: their fields, states and history, the tracking of changes, equality, and a user's own classes."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any, ClassVar

import attr
import attrs
import pytest

from examples import Note, Simulation, Sweep
from gc3session import (
    Event,
    InvalidArgument,
    Persistable,
    Session,
    State,
    Task,
    TaskCollection,
    UnstorableValue,
)

# -- fields -------------------------------------------------------------------


def test_new_task_has_the_defaults() -> None:
    task = Task()
    assert (task.jobname, task.state, task.returncode, task.extra) == ("", "NEW", None, {})
    assert task.persistent_id is None
    assert task.changed


def test_defaults_are_not_shared_between_tasks() -> None:
    a, b = Task(), Task()
    a.extra["x"] = 1
    a.history.append([0.0, "x"])
    assert b.extra == {}
    assert len(b.history) == 1
    assert TaskCollection().tasks is not TaskCollection().tasks


def test_states_are_those_of_gc3pie() -> None:
    names = ["NEW", "SUBMITTED", "RUNNING", "STOPPED", "TERMINATING", "TERMINATED", "UNKNOWN"]
    assert [getattr(State, name) for name in names] == names


def test_any_other_state_that_is_a_non_empty_str_is_allowed() -> None:
    task = Task(state="waiting for Godot")
    task.state = "\N{SNOWMAN}"
    assert task.state == "\N{SNOWMAN}"


@pytest.mark.parametrize("state", ["", None, 3, b"NEW", ["NEW"]], ids=repr)
def test_what_can_not_be_a_state_is_refused(state: Any) -> None:
    with pytest.raises(InvalidArgument):
        Task(state=state)
    task = Task()
    with pytest.raises(InvalidArgument):
        task.state = state
    assert task.state == "NEW"
    assert len(task.history) == 1


def test_state_of_a_str_enum_is_kept_as_its_str(session: Session) -> None:
    class Phase(enum.StrEnum):
        RUNNING = "RUNNING"

    task = Task(state=Phase.RUNNING)
    assert type(task.state) is str
    task.state = Phase.RUNNING
    session.add(task)
    assert session.stats() == {"RUNNING": 1}


def test_undeclared_attribute_raises_instead_of_being_lost(session: Session) -> None:
    for obj in (Task(), Simulation(), Sweep(), Note(), Persistable()):
        assert_not_assignable(obj)
    for obj in (Plain(), WithDict(), FromMixin()):  # an object with a `__dict__` takes any attribute ...
        if not hasattr(obj, "__dict__"):
            assert_not_assignable(obj)
            continue
        obj.undeclared = 1
        with pytest.raises(UnstorableValue, match="undeclared is not a field"):
            session.save(obj)
        assert obj.persistent_id is None
        del obj.undeclared
        session.save(obj)
        assert_not_assignable(obj)  # ... until it is stored
        assert not obj.changed


def assert_not_assignable(obj: Any) -> None:
    with pytest.raises(AttributeError):
        obj.undeclared = 1
    assert not hasattr(obj, "undeclared")
    with pytest.raises(AttributeError):
        _ = obj.undeclared


class Plain(Task):
    """A subclass that is not decorated."""


@attrs.define(slots=False)
class WithDict(Task):
    size: int = 0


class Mixin:
    def double(self) -> int:
        return 2 * self.size  # type: ignore[attr-defined]


@attrs.define
class FromMixin(Mixin, Task):
    size: int = 0


def test_undeclared_argument_raises() -> None:
    with pytest.raises(TypeError):
        Task(undeclared=1)
    with pytest.raises(TypeError):
        Simulation(undeclared=1)


def test_undeclared_attribute_set_in_init_raises_instead_of_being_lost(session: Session) -> None:
    @attrs.define(slots=False, init=False)
    class Careless(Task):
        def __init__(self) -> None:
            self.__attrs_init__()
            self.undeclared = 1

    class NotDecorated(Task):
        def __init__(self) -> None:
            super().__init__()
            self.undeclared = 1

    for cls in (Careless, NotDecorated):
        with pytest.raises(UnstorableValue, match="undeclared is not a field"):
            session.add(cls())
    assert len(session) == 0


@pytest.mark.parametrize("name", ["persistent_id", "changed", "_stamp", "class_tag", "upgrade_record"])
def test_field_with_a_reserved_name_is_refused_at_the_class(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        attrs.make_class("Taken", {name: attrs.field(default=0)}, bases=(Task,), kw_only=True)


# -- history ------------------------------------------------------------------


def test_start_and_each_change_of_state_append_their_time_and_state() -> None:
    before = time.time()
    task = Task()
    task.state = "SUBMITTED"
    task.state = "RUNNING"
    after = time.time()
    assert [state for _, state in task.history] == ["NEW", "SUBMITTED", "RUNNING"]
    times = [seconds for seconds, _ in task.history]
    assert all(type(seconds) is float for seconds in times)
    assert before <= times[0] <= times[1] <= times[2] <= after


def test_assigning_the_same_state_again_appends_nothing() -> None:
    task = Task(state="RUNNING")
    task.state = "RUNNING"
    assert [state for _, state in task.history] == ["RUNNING"]


def test_returning_to_a_state_appends_it_again() -> None:
    task = Task()
    for state in ("RUNNING", "NEW", "RUNNING"):
        task.state = state
    assert [state for _, state in task.history] == ["NEW", "RUNNING", "NEW", "RUNNING"]


def test_events_are_the_history_with_aware_times() -> None:
    task = Task()
    task.state = "RUNNING"
    assert [type(event) for event in task.events] == [Event, Event]
    assert [event.state for event in task.events] == ["NEW", "RUNNING"]
    assert all(event.time.tzinfo is UTC for event in task.events)
    assert [event.time.timestamp() for event in task.events] == pytest.approx(
        [s for s, _ in task.history], abs=1e-5
    )


def test_history_can_be_given() -> None:
    task = Task(state="RUNNING", history=[[1.0, "NEW"], [2.0, "RUNNING"]])
    assert task.history == [[1.0, "NEW"], [2.0, "RUNNING"]]


def test_history_is_stored_and_goes_on_after_loading(make_session: Callable[..., Session]) -> None:
    with make_session() as session:
        task = Task()
        task.state = "RUNNING"
        id_, history = session.add(task), [*map(list, task.history)]
    with make_session() as session:
        task = session.load(id_)
        assert task.history == history
        task.state = "TERMINATED"
        session.save(task)
    with make_session() as session:
        assert [state for _, state in session.load(id_).history] == ["NEW", "RUNNING", "TERMINATED"]


def test_state_set_while_a_task_is_being_made_is_in_its_history() -> None:
    @attrs.define
    class Prompt(Task):
        def __attrs_post_init__(self) -> None:
            self.state = "SUBMITTED"

    task = Prompt()
    assert task.state == "SUBMITTED"
    assert task.history[-1][1] == "SUBMITTED"


# -- tracking -----------------------------------------------------------------


def test_assigning_any_field_sets_changed(session: Session) -> None:
    values = {
        "jobname": "j",
        "state": "RUNNING",
        "returncode": 0,
        "history": [],
        "extra": {},
        "mesh": "m",
        "steps": 1,
    }
    task = Simulation()
    session.add(task)
    for name, value in values.items():
        assert not task.changed
        setattr(task, name, value)
        assert task.changed, name
        session.save(task)
    assert not task.changed


def test_assigning_an_equal_value_sets_changed(session: Session) -> None:
    task = Simulation()
    session.add(task)
    task.mesh = ""
    assert task.changed


def test_loading_and_reading_set_nothing(make_session: Callable[..., Session]) -> None:
    with make_session() as session:
        id_ = session.add(Simulation(inputs={"a": [1]}))
    with make_session() as session:
        task = session.load(id_)
        assert task.inputs["a"][0] == 1
        assert (task.events, str(task), repr(task), hash(task), task == task) is not None
        assert not task.changed


def test_change_inside_a_value_is_seen_and_saved(make_session: Callable[..., Session]) -> None:
    with make_session() as session:
        task = Simulation()
        id_ = session.add(task)
        task.extra["x"] = 1
        assert task.changed
        session.save_all()
        assert not task.changed
    with make_session() as session:
        assert session.load(id_).extra == {"x": 1}


def test_changed_can_be_set(make_session: Callable[..., Session]) -> None:
    with make_session() as session:
        task = Simulation()
        id_ = session.add(task)
        task.mesh = "given up"
        task.changed = False
        assert not task.changed
        session.save_all()
        with make_session(read_only=True) as other:
            assert other.load(id_).mesh == ""
        task.changed = True
        assert task.changed
        session.save_all()
        assert not task.changed
        with make_session(read_only=True) as other:
            assert other.load(id_).mesh == "given up"


def test_collection_tracks_add_and_discard(session: Session) -> None:
    a, b = Task(), Task()
    sweep = Sweep(tasks=[a])
    session.add(sweep)
    sweep.add(b)
    assert sweep.changed
    assert (sweep.tasks, len(sweep), list(sweep)) == ([a, b], 2, [a, b])
    session.save(sweep)
    sweep.discard(a)
    assert sweep.changed
    assert sweep.tasks == [b]
    sweep.discard(a)
    assert sweep.tasks == [b]


def test_empty_collection_is_true() -> None:
    assert TaskCollection()
    assert len(TaskCollection()) == 0


def test_refused_assignment_changes_nothing(session: Session) -> None:
    task = Careful(size=1)
    session.add(task)
    with pytest.raises(ValueError, match="negative"):
        task.size = -1
    with pytest.raises((ValueError, TypeError)):
        task.size = "no number"  # type: ignore[assignment]
    assert task.size == 1
    assert not task.changed


def _not_negative(task: object, field: Any, value: int) -> None:
    if value < 0:
        raise ValueError("negative")


@attrs.define
class Careful(Task):
    size: int = attrs.field(default=0, converter=int, validator=_not_negative)


def test_converters_and_validators_run_on_assignment_as_attrs_has_them(session: Session) -> None:
    task = Careful(size="3")  # type: ignore[arg-type]
    assert task.size == 3
    session.add(task)
    task.size = "4"  # type: ignore[assignment]
    assert task.size == 4
    assert task.changed


def test_validators_and_converters_do_not_run_on_loading(make_session: Callable[..., Session]) -> None:
    calls: list[int] = []

    @attrs.define
    class Counted(Task):
        size: int = attrs.field(default=0, validator=lambda *_: calls.append(1))

        def __attrs_post_init__(self) -> None:
            calls.append(2)

    with make_session() as session:
        id_ = session.add(Counted(size=5))
    del calls[:]
    with make_session() as session:
        assert session.load(id_).size == 5
    assert calls == []


# -- equality -----------------------------------------------------------------


def test_tasks_without_an_id_are_equal_only_to_themselves() -> None:
    a, b = Simulation(mesh="m"), Simulation(mesh="m")
    assert a == a
    assert a != b
    assert len({a, b}) == 2
    assert a != "a"


def test_id_gives_the_same_object_while_one_is_alive(make_session: Callable[..., Session]) -> None:
    with make_session() as one, make_session(read_only=True) as two:
        id_ = one.add(Simulation(mesh="m"))
        a, b = one.load(id_), two.load(id_)
        assert a is one.load(id_) is one[id_] is next(iter(one))
        assert b is two.load(id_)
        assert a is not b
        assert a != b
        assert a != one.load(one.add(Simulation(mesh="m")))


def test_task_of_a_closed_or_destroyed_session_can_be_compared(make_session: Callable[..., Session]) -> None:
    session = make_session()
    task, other = Task(), Task()
    session.add_many([task, other])
    session.destroy()
    assert task == task
    assert task != other
    assert task in {task}
    assert task in [other, task]


def test_tasks_of_one_id_in_two_stores_are_not_equal(make_session: Callable[..., Session]) -> None:
    a, b = Task(), Task()
    assert make_session("a").add(a) == make_session("b").add(b)
    assert a != b


def test_hash_stays_when_a_task_is_saved(session: Session) -> None:
    task = Task()
    held = {task}
    session.add(task)
    assert task in held


def test_equality_does_not_look_at_fields(session: Session) -> None:
    a, b = Simulation(inputs={"x": [float("nan")]}), Simulation(inputs={"x": [float("nan")]})
    session.add(a)
    session.add(b)
    assert a != b


def test_repr_shows_class_id_name_and_state(session: Session) -> None:
    task = Task(jobname="my job")
    assert "Task" in repr(task)
    id_ = session.add(task)
    for part in (id_, "my job", "NEW"):
        assert part in repr(task)


# -- a user's own classes -----------------------------------------------------


def there_and_back(make_session: Callable[..., Session], obj: Any) -> Any:
    """Return *obj* as another session reads it."""
    with make_session() as session:
        id_ = session.save(obj)
    with make_session(read_only=True) as session:
        return session.load(id_)


def test_attrs_subclass_is_saved_loaded_and_tracked(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Local(Task):
        mesh: str = ""

    back = there_and_back(make_session, Local("m", jobname="j"))
    assert type(back) is Local
    assert (back.mesh, back.jobname, back.changed) == ("m", "j", False)
    back.mesh = "n"
    assert back.changed


def test_plain_attrs_subclass_of_persistable_has_only_its_fields(make_session: Callable[..., Session]) -> None:
    back = there_and_back(make_session, Note("t", about=[1]))
    assert type(back) is Note
    assert (back.text, back.about) == ("t", [1])
    assert [field.name for field in attrs.fields(Note)] == ["text", "about"]
    assert not hasattr(back, "state")


def test_undecorated_subclass_is_saved_and_loaded_as_itself(make_session: Callable[..., Session]) -> None:
    back = there_and_back(make_session, Plain(jobname="p"))
    assert type(back) is Plain
    assert back.jobname == "p"


def test_class_without_slots_is_saved_and_loaded(make_session: Callable[..., Session]) -> None:
    back = there_and_back(make_session, WithDict(size=4, jobname="d"))
    assert type(back) is WithDict
    assert (back.size, back.jobname) == (4, "d")
    back.size = 5
    assert back.changed


def test_slots_of_an_attrs_class_leave_no_dict() -> None:
    for cls in (Task, TaskCollection, Persistable, Simulation, Note):
        assert not hasattr(cls(), "__dict__"), cls


def test_mixin_works(make_session: Callable[..., Session]) -> None:
    back = there_and_back(make_session, FromMixin(size=4))
    assert type(back) is FromMixin
    assert back.double() == 8


def test_own_init_works(make_session: Callable[..., Session]) -> None:
    back = there_and_back(make_session, OwnInit("a b"))
    assert type(back) is OwnInit
    assert (back.words, back.jobname, back.state) == (["a", "b"], "own", "NEW")
    assert [state for _, state in back.history] == ["NEW"]


@attrs.define
class OwnInit(Task):
    words: list[str] = attrs.Factory(list)

    def __init__(self, text: str) -> None:
        self.__attrs_init__(words=text.split(), jobname="own")


def test_init_of_the_base_can_be_called(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class CallsSuper(Task):
        size: int = 0

        def __init__(self, size: int) -> None:
            super().__init__(jobname="super")
            self.size = size

    task = CallsSuper(3)
    assert type(task) is CallsSuper
    assert task.changed
    back = there_and_back(make_session, task)
    assert (back.size, back.jobname) == (3, "super")


def test_post_init_works(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Post(Task):
        size: int = 0
        twice: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            self.twice = 2 * self.size

    task = Post(4)
    assert type(task) is Post
    assert there_and_back(make_session, task).twice == 8


def test_converter_runs_for_an_assignment_in_post_init() -> None:
    @attrs.define
    class Post(Task):
        size: int = attrs.field(default=0, converter=int)

        def __attrs_post_init__(self) -> None:
            self.size = "7"  # type: ignore[assignment]

    assert Post().size == 7


def test_init_that_raises_leaves_nothing_behind(session: Session) -> None:
    @attrs.define
    class Fails(Task):
        def __attrs_post_init__(self) -> None:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        Fails()
    session.flush()
    assert len(session) == 0


def test_frozen_class_is_saved_and_loaded_and_stays_frozen(make_session: Callable[..., Session]) -> None:
    task = Fixed(3, name="f")
    assert (task.size, task.name, task.changed) == (3, "f", True)
    back = there_and_back(make_session, task)
    assert (back.size, back.name) == (3, "f")
    for obj in (task, back):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            obj.size = 4  # type: ignore[misc]
        assert not obj.changed


@attrs.frozen
class Fixed(Persistable):
    size: int
    name: str = ""


def test_frozen_field_is_saved_and_loaded_and_stays_frozen(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Partly(Task):
        size: int = attrs.field(default=0, on_setattr=attrs.setters.frozen)
        free: int = 0

    back = there_and_back(make_session, Partly(3))
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        back.size = 4
    assert not back.changed
    back.free = 1
    assert back.changed
    assert back.size == 3


def test_mandatory_fields_work(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Mandatory(Task):
        first: int
        second: str

    back = there_and_back(make_session, Mandatory(1, "two"))
    assert (back.first, back.second) == (1, "two")
    with pytest.raises(TypeError):
        Mandatory(1)  # type: ignore[call-arg]


def test_kw_only_and_private_fields_work(make_session: Callable[..., Session]) -> None:
    @attrs.define(kw_only=True)
    class Private(Task):
        _secret: int = 0
        tagged: str = attrs.field(default="", alias="tag")

    task = Private(secret=4, tag="t")
    back = there_and_back(make_session, task)
    assert (back._secret, back.tagged) == (4, "t")


def test_default_factories_that_take_self_work(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Factory(Task):
        size: int = 2
        twice: int = attrs.field()

        @twice.default
        def _twice(self) -> int:
            return 2 * self.size

    back = there_and_back(make_session, Factory(5))
    assert (back.size, back.twice) == (5, 10)


def test_inheritance_over_several_classes_works(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class A(Task):
        a: int = 1
        both: str = "a"

    @attrs.define
    class B(A):
        b: int = 2
        both: str = "b"

    back = there_and_back(make_session, B(a=5))
    assert type(back) is B
    assert (back.a, back.b, back.both) == (5, 2, "b")
    assert isinstance(back, A)
    assert type(there_and_back(make_session, A())) is A


def test_class_variables_properties_and_methods_are_not_stored(make_session: Callable[..., Session]) -> None:
    @attrs.define
    class Rich(Task):
        limit: ClassVar[int] = 10
        size: int = 4

        @property
        def half(self) -> int:
            return self.size // 2

        @half.setter
        def half(self, value: int) -> None:
            self.size = 2 * value

    back = there_and_back(make_session, Rich(8))
    assert (back.half, back.limit) == (4, 10)
    back.half = 5
    assert (back.size, back.changed) == (10, True)


def test_abstract_base_class_can_be_used(make_session: Callable[..., Session]) -> None:
    import abc

    @attrs.define
    class Abstract(Task, abc.ABC):
        @abc.abstractmethod
        def run(self) -> int: ...

    @attrs.define
    class Concrete(Abstract):
        def run(self) -> int:
            return 3

    with pytest.raises(TypeError):
        Abstract()  # type: ignore[abstract]
    assert there_and_back(make_session, Concrete()).run() == 3


def test_generic_class_can_be_used(make_session: Callable[..., Session]) -> None:
    from typing import Generic, TypeVar

    T = TypeVar("T")

    @attrs.define
    class Holder(Task, Generic[T]):
        value: T | None = None

    assert there_and_back(make_session, Holder[int](3)).value == 3


@attr.s(auto_attribs=True, slots=True, eq=False, kw_only=True)
class OldDecorator(Task):
    size: int = 0


@attrs.define(on_setattr=attrs.setters.NO_OP)
class NoHooks(Task):
    size: int = 0


@pytest.mark.parametrize("cls", [OldDecorator, NoHooks])
def test_class_whose_fields_have_no_hooks_is_tracked_too(make_session: Callable[..., Session], cls: Any) -> None:
    back = there_and_back(make_session, cls(size=2))
    assert (type(back), back.size) == (cls, 2)
    back.size = 3
    assert back.changed
    back.changed = False
    back.state = "RUNNING"
    assert back.changed
    assert back.history[-1][1] == "RUNNING"


def test_class_that_is_defined_again_replaces_the_former_one(make_session: Callable[..., Session]) -> None:
    def define() -> type[Task]:
        @attrs.define
        class Again(Task):
            size: int = 0

        return Again

    former = define()
    with make_session() as session:
        id_ = session.add(former(size=4))
    latter = define()
    with make_session(read_only=True) as session:
        assert type(session.load(id_)) is latter


# -- attrs -------------------------------------------------------------------


def test_attrs_functions_see_only_the_fields() -> None:
    task = Simulation(mesh="m")
    names = {"jobname", "state", "returncode", "history", "extra", "mesh", "inputs", "steps"}
    assert {field.name for field in attrs.fields(Simulation)} == names
    assert attrs.asdict(task).keys() == names
