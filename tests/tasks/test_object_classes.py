"""Classes of all kinds: what is assigned and what is changed inside a value reaches the disk, and user code meets its own class only."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import pickle
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import attr
import attrs
import pytest

from gc3session import Error, InvalidArgument, Persistable, Session, Task, UnstorableValue
from gc3session.tasks import note_class
from object_cases import CASES, SEEN, Case, see
from sameness import picture

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A class that has met no store, whose objects can be pickled; its code must have met no other class."""
    SEEN.clear()
    made = CASES[request.param]()
    cls = made.cls
    for name, value in {"__qualname__": cls.__name__, "__module__": __name__}.items():
        type.__setattr__(cls, name, value)
    setattr(sys.modules[__name__], cls.__name__, cls)
    note_class(cls)
    yield made
    gc.collect()
    for what, seen in SEEN:
        assert not is_twin(seen), f"{what} met {seen}"
    SEEN.clear()
    delattr(sys.modules[__name__], cls.__name__)


def is_twin(cls: type) -> bool:
    """Return whether *cls* is the hidden class of another: it is made with no name of its own to be found by."""
    return vars(cls).get("__gc3session_twin__", cls) is None


def stored(make_session: MakeSession, id_: str) -> Any:
    """Return the object as another program reads it."""
    with make_session(read_only=True) as other:
        obj = other.load(id_)
        picture(obj)
        return obj


def test_what_is_done_to_an_object_reaches_the_disk(make_session: MakeSession, case: Case) -> None:
    session = make_session()
    obj = case.make()
    assert type(obj) is case.cls
    id_ = session.add(obj)
    assert type(obj) is case.cls
    assert not obj.changed
    assert same_fields(stored(make_session, id_), obj)
    assert type(stored(make_session, id_)) is case.cls

    for field, (value, expected) in case.assign.items():
        setattr(obj, field, value)
        assert obj.changed, field
        session.save_all()
        assert not obj.changed
        assert getattr(stored(make_session, id_), field) == expected, field

    getattr(obj, case.box)["deep"] = {"list": []}
    assert obj.changed
    session.save_all()
    getattr(obj, case.box)["deep"]["list"].append(1)
    assert obj.changed
    session.save_all()
    assert getattr(stored(make_session, id_), case.box) == {"deep": {"list": [1]}}
    assert same_fields(stored(make_session, id_), obj)

    if isinstance(obj, Task) and case.assign:
        for state in ("STOPPED", "TERMINATED"):
            obj.state = state
            assert obj.history[-1][1] == obj.state == state
        session.save_all()
        assert stored(make_session, id_).history == obj.history
        assert [*session.select(state="TERMINATED").ids()] == [id_]

    for field, (value, expected) in case.assign.items():
        obj = case.make()
        id_ = session.add(obj)
        setattr(obj, field, value)
        del obj
        gc.collect()
        session.save_all()
        assert getattr(stored(make_session, id_), field) == expected, f"{field} of an object that nobody loaded"
    session.close()


def test_what_is_done_to_an_object_that_was_loaded_and_dropped_reaches_the_disk(
    make_session: MakeSession, case: Case
) -> None:
    with make_session() as session:
        id_ = session.add(case.make())
    session = make_session()
    for field, (value, expected) in case.assign.items():
        obj = session.load(id_)
        assert type(obj) is case.cls
        setattr(obj, field, value)
        del obj
        gc.collect()
        assert getattr(session.load(id_), field) == expected, field
        gc.collect()
        session.save_all()
        assert getattr(stored(make_session, id_), field) == expected, field
    for obj in session:
        assert type(obj) is case.cls
        getattr(obj, case.box)["seen"] = True
        del obj
    gc.collect()
    session.save_all()
    assert getattr(stored(make_session, id_), case.box) == {"seen": True}
    session.close()


@pytest.mark.lmdb
def test_what_attrs_or_the_user_wrote_works_for_loaded_objects(make_session: MakeSession, case: Case) -> None:
    def uses(obj: Any) -> list[Any]:
        found: list[Any] = [attrs.asdict(obj), len(attrs.astuple(obj)), str(obj), bool(obj)]
        for use in (hash, lambda obj: obj == obj, lambda obj: obj < obj, lambda obj: attrs.evolve(obj).changed):
            try:
                found.append(type(use(obj)))
            except Exception as error:
                found.append(repr(error))
        return found

    with make_session() as session:
        obj = case.make()
        id_ = session.add(obj)
        with make_session() as other:
            loaded = other.load(id_)
            session.save(Task(extra={"before it": obj}))
            by_reference = [*other.store.list()][-1]
            other.store.invalidate_cache()
            shell = other.load(by_reference).extra["before it"]
            assert shell is not loaded
            for one in (loaded, shell):
                assert uses(one) == uses(obj)


def same_fields(a: Any, b: Any) -> bool:
    """Return whether two objects have the same class and values."""
    return type(a) is type(b) and values_of(a) == values_of(b)


def values_of(obj: Any) -> dict[str, Any]:
    return {field.name: picture(getattr(obj, field.name)) for field in attrs.fields(type(obj))}


@pytest.mark.lmdb
def test_objects_are_made_and_changed_after_the_first_store_as_before(session: Session, case: Case) -> None:
    def made() -> tuple[Any, list[Any]]:
        SEEN.clear()
        obj = case.make()
        before = values_of(obj)
        for field, (value, _) in case.assign.items():
            setattr(obj, field, value)
        called = [what for what, _ in SEEN if what not in ("__getattr__", "__del__")]
        SEEN.clear()
        return [without_times(before), without_times(values_of(obj))], called

    before = made()
    session.add(case.make())
    for base in case.cls.__mro__[1:]:
        if issubclass(base, Task) and not inspect.isabstract(base):
            with contextlib.suppress(TypeError):  # it takes arguments
                session.add(base())
    assert made() == before
    refused = []
    if not case.assign:
        obj = case.make()
        for _ in range(2):
            with pytest.raises(attrs.exceptions.FrozenInstanceError) as caught:
                obj.x = 2
            refused.append(repr(caught.value))
            session.add(obj)
            assert not obj.changed
        assert refused[0] == refused[1]


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """Return pictures of values without the times of a history."""
    history = values.get("history")
    if history is None:
        return values
    return {**values, "history": [event[1][1] for event in history[1]]}


@pytest.mark.lmdb
def test_copies_are_objects_of_the_class_and_tracked(
    session: Session, make_session: MakeSession, case: Case
) -> None:
    obj = case.make()
    for stage in ("new", "stored"):
        for copier in (copy.copy, copy.deepcopy, by_pickle):
            new = copier(obj)
            assert type(new) is case.cls, (stage, copier)
            assert values_of(new) == values_of(obj)
            assert new.persistent_id == (obj.persistent_id if copier is by_pickle else None)
            assert new.changed
            if stage == "stored" and copier is not by_pickle:
                assert session.add(new) != obj.persistent_id
                assert not new.changed
                getattr(new, case.box)[1] = 2
                assert new.changed
                for field, (value, _) in case.assign.items():
                    new.changed = False
                    setattr(new, field, value)
                    assert new.changed
                getattr(obj, case.box).pop(1, None)
        if stage == "new":
            session.add(obj)
    assert not obj.changed
    session.save_all()


def test_pickled_copy_is_saved_as_the_record(make_session: MakeSession, case: Case) -> None:
    session = make_session()
    obj = case.make()
    id_ = session.add(obj)
    new = by_pickle(obj)
    getattr(new, case.box)["by"] = "worker"
    for field, (value, _) in case.assign.items():
        setattr(new, field, value)
    assert session.save(new) == id_
    assert type(obj) is type(new) is case.cls
    assert values_of(obj) == values_of(new)
    assert not obj.changed
    assert same_fields(stored(make_session, id_), obj)
    assert session.load(id_) is obj
    assert len(session) == 1
    session.close()


def by_pickle(obj: Any) -> Any:
    return pickle.loads(pickle.dumps(obj))


@pytest.mark.lmdb
def test_objects_of_the_class_can_be_referred_to_and_removed(make_session: MakeSession, case: Case) -> None:
    session = make_session()
    member, holder = case.make(), Task()
    holder.extra["them"] = [member, member]
    id_ = session.add(holder)
    session.add(member)
    assert list(session.iter_workflow())
    with make_session() as other:
        living = other.load(member.persistent_id)
        back = other.load(id_)
        assert back.extra["them"][0] is living
        assert back.extra["them"][0] is back.extra["them"][1]
        assert type(back.extra["them"][0]) is case.cls
        assert back.extra["them"][0] is other.load(member.persistent_id)
        getattr(back.extra["them"][0], case.box)["x"] = 1
        other.save_all()
    assert back.extra["them"][0] in [back.extra["them"][0]]
    session.refresh(member)
    assert getattr(member, case.box) == {"x": 1}
    session.remove(member.persistent_id)
    assert member.persistent_id is None
    holder.extra.clear()
    session.save_all()
    session.close()


@pytest.mark.lmdb
def test_class_looks_after_the_first_store_as_before(session: Session, case: Case) -> None:
    def looks() -> list[Any]:
        cls = case.cls
        return [
            str(inspect.signature(cls)),
            [(field.name, field.type) for field in attrs.fields(cls)],
            cls.__init__.__qualname__,
            cls.__init__.__doc__,
            cls.__mro__,
            [child for base in cls.__mro__[:-1] for child in base.__subclasses__()],
            getattr(cls, "__match_args__", None),
            getattr(cls, "__abstractmethods__", None),
        ]

    before = looks()
    session.add(case.make())
    after = looks()
    for one in (*before[5], *after[5]):
        assert not is_twin(one)
    assert after[:5] == before[:5]
    assert set(after[5]) >= set(before[5])
    assert after[6:] == before[6:]


@pytest.mark.lmdb
def test_types_of_the_class_can_be_resolved(session: Session) -> None:
    @attrs.define
    class Mine(Task):
        x: int = 1
        other: Task | None = None

    for cls in (Mine, Task, Persistable):
        attrs.resolve_types(cls, include_extras=True)
        assert typing.get_type_hints(cls).keys() >= {field.name for field in attrs.fields(cls)}
    assert attrs.fields(Mine).x.type is int
    assert attrs.fields(Mine).state.type is str
    assert attrs.fields(Mine).other.type == Task | None
    session.add(Mine())
    assert typing.get_type_hints(Mine)["x"] is int
    attrs.resolve_types(Mine)


@pytest.mark.lmdb
def test_plain_decorator_keeps_the_repr_and_equality(session: Session) -> None:
    def decorators() -> Iterator[Callable[[type], type]]:
        yield from (attrs.define, attrs.mutable, attrs.define(slots=False), attrs.define(kw_only=True))
        yield from (attr.s(auto_attribs=True, auto_detect=True), attrs.frozen)

    for decorator in decorators():

        class Simulation(Task):
            mesh: str = "m"

        cls = decorator(Simulation)
        a, b = cls(jobname="my job"), cls(jobname="my job")
        id_ = session.add(a)
        assert id_ in repr(a)
        assert "my job" in repr(a)
        assert a != b
        assert len({a, b}) == 2


@pytest.mark.lmdb
def test_child_of_a_class_with_methods_of_attrs_gets_its_own() -> None:
    @attrs.define(eq=True, repr=True, kw_only=True)
    class Parent(Task):
        x: int = 1

    @attrs.define(kw_only=True)
    class Child(Parent):
        y: int = 1

    history = [[1.0, "NEW"]]
    assert Child(y=2, history=history) == Child(y=2, history=history)
    assert Child(y=2, history=history) != Child(y=3, history=history)
    assert "y=3" in repr(Child(y=3))


# -- what is refused, with the reason -----------------------------------------------


@pytest.mark.parametrize("name", ["persistent_id", "changed", "_stamp", "class_tag", "upgrade_record"])
@pytest.mark.parametrize("base", [Task, Persistable])
def test_field_that_the_library_needs_itself_is_refused_at_the_class(name: str, base: type) -> None:
    with pytest.raises(InvalidArgument, match=f"Taken: a field can't be named '{name}'"):
        attrs.make_class("Taken", {name: attrs.field(default=0)}, bases=(base,))


def test_class_whose_name_can_not_be_in_an_id_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="identifier"):
        attrs.make_class("Not Good", {"x": attrs.field(default=0)}, bases=(Task,))


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"slots": False}], ids=str)
def test_hash_that_is_kept_beside_the_fields_is_refused_at_the_class(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="Hashed: cache_hash=True"):

        @attrs.define(unsafe_hash=True, cache_hash=True, **options)
        class Hashed(Persistable):
            x: int = 1


@pytest.mark.parametrize("base", [Task, Persistable])
@pytest.mark.parametrize("options", [{}, {"frozen": False, "eq": False}, {"kw_only": True}], ids=str)
def test_dataclass_decorator_on_a_task_says_what_to_use(
    session: Session, base: type, options: dict[str, Any]
) -> None:
    @dataclasses.dataclass(**options)
    class Wrong(base):  # type: ignore[misc,valid-type]
        mesh: str = "m"

    class Child(Wrong):
        pass

    for cls in (Wrong, Child):
        with pytest.raises(InvalidArgument, match=r"(Wrong|Child).*@dataclass.*@attrs\.define"):
            session.add(cls())
        with pytest.raises(InvalidArgument, match=r"@attrs\.define"):
            session.add_many([cls()])
    assert len(session) == 0
    assert list(session.store.list()) == []


def slots_by_hand() -> Any:
    class Slotted(Task):
        __slots__ = ("beside",)

    return Slotted


def one_slot_by_hand() -> Any:
    class Slotted(Task):
        __slots__ = "beside"

    return Slotted


def slots_of_a_decorated_class() -> Any:
    class Loose(Task):
        pass

    @attr.s(auto_attribs=True)
    class Slotted(Loose):
        __slots__ = ("beside",)
        x: int = 1

    return Slotted


def attribute_set_in_init() -> Any:
    class Loose(Task):
        def __init__(self) -> None:
            super().__init__()
            self.beside = 1

    return Loose


def attribute_set_in_post_init() -> Any:
    @attrs.define(slots=False)
    class Loose(Task):
        def __attrs_post_init__(self) -> None:
            self.beside = 1

    return Loose


def attribute_set_past_setattr() -> Any:
    @attrs.frozen(slots=False)
    class Loose(Persistable):
        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "beside", 1)

    return Loose


def attribute_of_a_property() -> Any:
    @attrs.define(slots=False)
    class Loose(Task):
        @property
        def beside_it(self) -> int:
            return self._beside  # type: ignore[no-any-return,attr-defined]

        def __attrs_post_init__(self) -> None:
            self._beside = 1

    return Loose


@pytest.mark.parametrize("way", ["add", "save", "add_many", "unflushed", "transaction", "inside another", "later"])
@pytest.mark.parametrize(
    "define",
    [
        slots_by_hand,
        one_slot_by_hand,
        slots_of_a_decorated_class,
        attribute_set_in_init,
        attribute_set_in_post_init,
        attribute_set_past_setattr,
        attribute_of_a_property,
    ],
)
def test_what_an_object_has_beside_its_fields_is_refused(
    session: Session, define: Callable[[], Any], way: str
) -> None:
    cls = define()
    if way == "later":  # the class has been stored without it
        first = cls()
        for name in ("beside", "_beside"):
            if hasattr(first, name):
                object.__delattr__(first, name)
        session.add(first)
    obj = cls()
    if not hasattr(obj, "beside") and not hasattr(obj, "_beside"):
        obj.beside = 1
    before = list(session.store.list())
    with pytest.raises((UnstorableValue, AttributeError), match=r"beside.*is not a field|has no field '_?beside'"):
        if way == "save":
            session.save(obj)
        elif way == "add_many":
            session.add_many([Task(), obj])
        elif way == "unflushed":
            session.add(obj, flush=False)
        elif way == "transaction":
            with session.transaction():
                session.add(Task())
                session.add(obj)
        elif way == "inside another":
            session.add(Task(extra={"it": [obj]}))
        else:
            session.add(obj)
    assert obj.persistent_id is None
    session.flush()
    assert len(list(session.store.list())) == len(before) + (way == "add_many")


def test_attribute_beside_the_fields_of_a_stored_object_is_refused_at_the_assignment(session: Session) -> None:
    class Undecorated(Task):
        pass

    @attrs.define(slots=False)
    class Loose(Task):
        x: int = attrs.field(default=0, converter=int)

    for obj in (Undecorated(), Loose(), Task(), session.load(session.add(Undecorated()))):
        session.add(obj)
        with pytest.raises(AttributeError):
            obj.beside = 1
        assert not hasattr(obj, "beside")
        assert not obj.changed


def test_field_that_is_not_set_is_refused(session: Session) -> None:
    @attrs.define
    class Late(Task):
        x: int = attrs.field(init=False)

    task = Late()
    for store in (session.add, session.save, lambda task: session.add_many([task])):
        with pytest.raises(UnstorableValue, match=r"Late: a field isn't set .*x"):
            store(task)
    task.x = 1
    session.add(task)
    del task.x
    assert task.changed
    with pytest.raises(UnstorableValue, match=r"Late: a field isn't set .*x"):
        session.save_all()
    task.x = 2
    session.save_all()
    assert not task.changed


@pytest.mark.lmdb
def test_user_code_that_fails_leaves_the_object_in_its_class(session: Session) -> None:
    class Failure(Exception):
        pass

    fails = False

    def failing(*args: Any) -> Any:
        if fails:
            see("failing", args[0])
            raise Failure
        return args[-1] if args else 0

    @attrs.define
    class Fragile(Task):
        validated: int = attrs.field(default=0, validator=failing)
        converted: int = attrs.field(default=0, converter=lambda value: failing(value))
        hooked: int = attrs.field(default=0, on_setattr=failing)

    @attrs.define
    class Made(Task):
        x: int = attrs.Factory(failing)

    obj = Fragile()
    session.add_many([obj, Made()])
    fails = True
    for name in ("validated", "converted", "hooked"):
        with pytest.raises(Failure):
            setattr(obj, name, 1)
        assert type(obj) is Fragile
        assert not obj.changed
    SEEN.clear()
    with pytest.raises(Failure):
        Fragile()
    with pytest.raises((Failure, IndexError)):
        Made()
    for state in ("", 3, None):
        with pytest.raises(InvalidArgument):
            Task(state=state)
        with pytest.raises(InvalidArgument):
            obj.state = state  # type: ignore[assignment]
    assert not obj.changed
    fails = False
    session.save_all()


@pytest.mark.lmdb
def test_error_of_a_class_hook_is_said_at_the_class_and_stores_nothing(session: Session) -> None:
    @attrs.define
    class Base(Task):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            raise RuntimeError("no children")

    with pytest.raises(RuntimeError, match="no children"):

        class Child(Base):
            pass

    session.add(Base())  # its hidden class must not be refused, either
    assert type(session.load("Base.1")) is Base
    assert not issubclass(Error, Base)


@pytest.mark.lmdb
def test_walk_through_all_subclasses_finds_real_classes_only(session: Session) -> None:
    @attrs.define
    class Found(Task):
        x: int = 1

    @attrs.define
    class Below(Found):
        y: int = 1

    session.add_many([Found(), Below()])

    def walk(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            yield child
            yield from walk(child)

    assert Found.__subclasses__()[-1] is Below
    for cls in walk(Persistable):
        assert not is_twin(cls)
    registry = {cls.__name__: cls for cls in walk(Task)}
    assert registry["Found"] is Found
    assert functools.reduce(lambda cls, _: cls.__base__, range(3), Below) is Persistable  # type: ignore[arg-type,return-value]
