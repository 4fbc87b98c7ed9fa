"""Classes as users write them, each with what attrs or the user makes of `__setattr__`, `__init__`, copies or lists of classes.

A case makes its class anew, so that each test has one that has met no store yet.  Whatever code of
the user's a class has tells `see` of the object or class that it gets.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import attr
import attrs

from gc3session import Persistable, Task, TaskCollection

SEEN: list[tuple[str, type]] = []
"""What code of the user's was called, and the class of the object that it got."""


def see(what: str, obj: Any) -> None:
    """Note that the user's code *what* has *obj* in hand: an object, or a class itself."""
    SEEN.append((what, obj if isinstance(obj, type) else type(obj)))


@attrs.frozen
class Case:
    """One class.

    Attributes:
        cls: the class.
        make: returns a new object.
        assign: field -> what is assigned and what the field has then; empty if it is frozen.
        box: a field that holds a dict, which is changed from inside.
    """

    cls: type[Any]
    make: Callable[[], Any]
    assign: dict[str, tuple[Any, Any]] = attrs.Factory(lambda: {"x": (2, 2)})
    box: str = "extra"


CASES: dict[str, Callable[[], Case]] = {}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__] = function
    return function


# -- hooks --------------------------------------------------------------------


def _checked(obj: Any, field: Any, value: Any) -> None:
    see("validator", obj)
    if not isinstance(value, int):
        raise TypeError(f"{field.name} must be an int")


def _hook(obj: Any, field: Any, value: Any) -> Any:
    see("on_setattr", obj)
    return value


@case
def plain() -> Case:
    @attrs.define
    class Plain(Task):
        x: int = 1

    return Case(Plain, Plain)


@case
def mandatory_and_keyword_only() -> Case:
    @attrs.define(kw_only=True)
    class Mandatory(Task):
        x: int
        _hidden: int = attrs.field(alias="shown")

    return Case(Mandatory, lambda: Mandatory(x=1, shown=4), {"x": (2, 2), "_hidden": (5, 5)})


@case
def validator() -> Case:
    @attrs.define
    class Validated(Task):
        x: int = attrs.field(default=1, validator=_checked)

    return Case(Validated, Validated)


@case
def default_of_a_validated_field_overridden() -> Case:
    @attrs.define
    class First(Task):
        x: int = attrs.field(default=0, validator=_checked)
        y: int = 0

    @attrs.define
    class Second(First):
        x: int = 1

    return Case(Second, Second, {"x": (9, 9), "y": (8, 8)})


@case
def converter() -> Case:
    @attrs.define
    class Converted(Task):
        x: int = attrs.field(default="1", converter=int)

    return Case(Converted, Converted, {"x": ("2", 2)})


@case
def converter_that_takes_self() -> Case:
    def convert(value: Any, obj: Any) -> int:
        see("converter", obj)
        return int(value)

    @attrs.define
    class Converted(Task):
        x: int = attrs.field(default="1", converter=attrs.Converter(convert, takes_self=True))

    return Case(Converted, Converted, {"x": ("2", 2)})


@case
def hook_of_a_field() -> Case:
    @attrs.define
    class Hooked(Task):
        x: int = attrs.field(default=1, on_setattr=_hook)
        y: int = 0

    return Case(Hooked, Hooked, {"x": (2, 2), "y": (3, 3)})


@case
def hooks_of_a_class() -> Case:
    @attrs.define(on_setattr=[attrs.setters.validate, _hook])
    class Hooked(Task):
        x: int = 1

    return Case(Hooked, Hooked, {"x": (2, 2), "jobname": ("j", "j"), "state": ("RUNNING", "RUNNING")})


@case
def no_hooks_at_all() -> Case:
    @attrs.define(on_setattr=attrs.setters.NO_OP)
    class Unhooked(Task):
        x: int = attrs.field(default=1, validator=_checked)

    return Case(Unhooked, Unhooked)


@case
def frozen_field() -> Case:
    @attrs.define
    class Partly(Task):
        fixed: int = attrs.field(default=1, on_setattr=attrs.setters.frozen)
        x: int = 1

    return Case(Partly, Partly)


@case
def frozen_persistable() -> Case:
    @attrs.frozen
    class Fixed(Persistable):
        x: int = 1
        box: dict[str, Any] = attrs.Factory(dict)

    return Case(Fixed, Fixed, {}, "box")


@case
def frozen_task() -> Case:
    @attrs.frozen
    class Fixed(Task):
        x: int = attrs.field(default=1, converter=int)

    return Case(Fixed, Fixed, {})


@case
def child_of_a_frozen_class() -> Case:
    @attrs.frozen
    class Fixed(Task):
        x: int = 1

    class Child(Fixed):
        pass

    return Case(Child, Child, {})


@case
def field_transformer() -> Case:
    def transform(cls: type, fields: list[Any]) -> list[Any]:
        see("field_transformer", cls)
        return [field.evolve(validator=_checked) if field.name == "x" else field for field in fields]

    @attrs.define(field_transformer=transform)
    class Transformed(Task):
        x: int = 1

    return Case(Transformed, Transformed)


@case
def grandchild_with_a_hook_on_top() -> Case:
    @attrs.define
    class A(Task):
        x: int = 1

    @attrs.define
    class B(A):
        y: int = attrs.field(default=2, validator=_checked)

    @attrs.define
    class C(B):
        z: int = attrs.field(default=3, on_setattr=_hook)

    return Case(C, C, {"x": (4, 4), "y": (5, 5), "z": (6, 6), "jobname": ("j", "j")})


@case
def grandchild_without_hooks() -> Case:
    @attrs.define
    class A(Task):
        x: int = attrs.field(default=1, validator=_checked)

    @attrs.define
    class B(A):
        y: int = 2

    @attrs.define
    class C(B):
        z: int = 3

    return Case(C, C, {"x": (4, 4), "y": (5, 5), "z": (6, 6)})


@case
def undecorated_child() -> Case:
    class Child(Task):
        pass

    return Case(Child, Child, {"jobname": ("j", "j"), "state": ("RUNNING", "RUNNING")})


@case
def undecorated_child_of_a_class_with_hooks() -> Case:
    @attrs.define
    class Parent(Task):
        x: int = attrs.field(default=1, validator=_checked, on_setattr=_hook)

    class Child(Parent):
        __slots__ = ()

    return Case(Child, Child)


# -- other decorators ----------------------------------------------------------


@case
def without_slots() -> Case:
    @attrs.define(slots=False)
    class Loose(Task):
        x: int = 1

    return Case(Loose, Loose)


@case
def without_slots_with_hooks() -> Case:
    @attrs.define(slots=False)
    class Loose(Task):
        x: int = attrs.field(default="1", converter=int, validator=_checked)

    return Case(Loose, Loose, {"x": ("2", 2)})


@case
def slots_below_and_above_a_class_without() -> Case:
    @attrs.define(slots=False)
    class Loose(Task):
        x: int = attrs.field(default=1, validator=_checked)

    @attrs.define
    class Slotted(Loose):
        y: int = 2

    return Case(Slotted, Slotted, {"x": (3, 3), "y": (4, 4)})


@case
def old_decorator() -> Case:
    @attr.s(auto_attribs=True)
    class Old(Task):
        x: int = 1

    return Case(Old, lambda: Old(x=1))


@case
def old_decorator_with_slots() -> Case:
    @attr.s(slots=True)
    class Old(Task):
        x = attr.ib(default=1, validator=_checked)

    return Case(Old, Old)


@case
def old_decorator_with_hooks() -> Case:
    @attr.s(slots=True, kw_only=True, eq=False, on_setattr=[_hook])
    class Old(Task):
        x = attr.ib(default=1)

    return Case(Old, Old)


@case
def made_by_make_class() -> Case:
    made = attrs.make_class("Made", {"x": attrs.field(default=1)}, bases=(Task,))
    return Case(made, made)


@case
def odd_options() -> Case:
    @attrs.define(repr=True, str=True, order=False, weakref_slot=False, match_args=False, auto_detect=False)
    class Odd(Task):
        x: int = 1

    return Case(Odd, Odd)


# -- fields of the base declared again -----------------------------------------


@case
def own_state() -> Case:
    @attrs.define
    class Own(Task):
        state: str = "SUBMITTED"
        x: int = 1

    return Case(Own, Own, {"x": (2, 2), "state": ("RUNNING", "RUNNING")})


@case
def own_state_without_slots() -> Case:
    @attrs.define(slots=False)
    class Own(Task):
        x: int = 1
        state: str = "SUBMITTED"

    return Case(Own, Own, {"state": ("RUNNING", "RUNNING")})


@case
def own_state_with_hooks() -> Case:
    def known(obj: Any, field: Any, value: Any) -> None:
        see("validator", obj)

    @attrs.define
    class Own(Task):
        state: str = attrs.field(default="submitted", converter=str.upper, validator=known, on_setattr=None)
        x: int = 1

    return Case(Own, Own, {"state": ("running", "RUNNING")})


@case
def own_history() -> Case:
    @attrs.define
    class Own(Task):
        history: list[Any] = attrs.Factory(list)
        x: int = 1

    return Case(Own, Own, {"state": ("RUNNING", "RUNNING")})


@case
def own_state_and_history() -> Case:
    @attrs.define
    class Own(Task):
        history: list[Any] = attrs.Factory(list)
        state: str = "SUBMITTED"
        x: int = 1

    return Case(Own, Own, {"state": ("RUNNING", "RUNNING")})


@case
def own_state_in_a_grandchild_of_the_old_decorator() -> Case:
    @attr.s(slots=True, auto_attribs=True, kw_only=True)
    class Old(Task):
        x: int = 1
        state: str = "SUBMITTED"

    @attrs.define
    class Grandchild(Old):
        state: str = "RUNNING"
        extra: dict[Any, Any] = attrs.Factory(dict)

    return Case(Grandchild, Grandchild, {"x": (2, 2), "state": ("NEW", "NEW")})


# -- methods of the user's ------------------------------------------------------


@case
def own_setattr() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __setattr__(self, name: str, value: Any) -> None:
            see("__setattr__", self)
            super().__setattr__(name, value)

    return Case(Own, Own)


@case
def own_setattr_past_its_base() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __setattr__(self, name: str, value: Any) -> None:
            see("__setattr__", self)
            object.__setattr__(self, name, value + 1 if name == "x" else value)

    return Case(Own, Own, {"x": (2, 3)})


@case
def own_setattr_of_a_base() -> Case:
    @attrs.define
    class Base(Task):
        x: int = 1

        def __setattr__(self, name: str, value: Any) -> None:
            see("__setattr__", self)
            super().__setattr__(name, value)

    @attrs.define
    class Child(Base):
        y: int = 2

    return Case(Child, Child, {"x": (2, 2), "y": (3, 3)})


@case
def own_setattr_of_a_child_that_calls_init() -> Case:
    @attrs.define
    class Parent(Task):
        x: int = 1

    class Child(Parent):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()

        def __setattr__(self, name: str, value: Any) -> None:
            see("__setattr__", self)
            super().__setattr__(name, value + 1 if name == "x" else value)

    return Case(Child, Child, {"x": (2, 3)})


@case
def own_setattr_of_a_mixin() -> Case:
    class Mixin:
        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            see("__setattr__", self)
            super().__setattr__(name, value)

    @attrs.define
    class Mixed(Mixin, Task):
        x: int = 1

    return Case(Mixed, Mixed)


@case
def own_eq_without_hash() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __eq__(self, other: object) -> bool:
            see("__eq__", self)
            return isinstance(other, Own) and self.x == other.x

    return Case(Own, Own)


@case
def own_eq_that_says_no_to_all() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __eq__(self, other: object) -> bool:
            see("__eq__", self)
            raise TypeError("not to be compared")

        __hash__ = None  # type: ignore[assignment]

    return Case(Own, Own)


@case
def equality_of_attrs() -> Case:
    @attrs.define(eq=True, order=True)
    class Own(Task):
        x: int = 1

    return Case(Own, Own)


@case
def hash_of_attrs() -> Case:
    @attrs.define(unsafe_hash=True, eq=True)
    class Own(Persistable):
        x: int = 1
        box: dict[str, Any] = attrs.field(factory=dict, eq=False)

    return Case(Own, Own, box="box")


@case
def own_getstate_and_setstate() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __getstate__(self) -> tuple[Any, ...]:
            see("__getstate__", self)
            return self.x, self.jobname, self.state, self.returncode, self.history, self.extra

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            see("__setstate__", self)
            self.x, self.jobname, self.state, self.returncode, self.history, self.extra = state

    return Case(Own, Own)


@case
def getstate_and_setstate_of_attrs() -> Case:
    @attrs.define(getstate_setstate=True)
    class Own(Task):
        x: int = 1

    return Case(Own, Own)


@case
def own_reduce() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __reduce__(self) -> Any:
            see("__reduce__", self)
            return type(self), (), {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}

    return Case(Own, Own)


@case
def own_bool_that_is_false() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __bool__(self) -> bool:
            see("__bool__", self)
            return False

    return Case(Own, Own)


@case
def own_len_of_nothing() -> Case:
    @attrs.define
    class Own(Task):
        x: list[int] = attrs.Factory(list)

        def __len__(self) -> int:
            see("__len__", self)
            return len(self.x)

    return Case(Own, Own, {"x": ([1], [1])})


@case
def own_getattr() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __getattr__(self, name: str) -> Any:
            see("__getattr__", self)
            try:
                return self.extra[name]
            except KeyError:
                raise AttributeError(name) from None

    return Case(Own, Own)


@case
def own_getattr_and_own_state() -> Case:
    @attrs.define
    class Own(Task):
        state: str = "SUBMITTED"
        x: int = 1

        def __getattr__(self, name: str) -> Any:
            return self.extra[name]

    return Case(Own, Own, {"x": (2, 2), "state": ("NEW", "NEW")})


@case
def below_a_class_with_all_methods_of_attrs() -> Case:
    @attr.s(slots=True, auto_attribs=True)
    class Old(Task):
        y: int = 2

    @attrs.define
    class Own(Old):
        x: int = 1

    return Case(Own, Own, {"x": (2, 2), "y": (3, 3)})


@case
def without_slots_below_a_class_with_all_methods_of_attrs() -> Case:
    @attr.s(slots=True, auto_attribs=True)
    class Old(Task):
        y: int = 2

    @attr.s(auto_attribs=True)
    class Own(Old):
        x: int = 1

    return Case(Own, Own, {"x": (2, 2), "y": (3, 3)})


@case
def own_getattr_that_answers_anything() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return 42

    return Case(Own, Own)


@case
def own_new() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            see("__new__", cls)
            return super().__new__(cls)

    return Case(Own, Own)


@case
def own_repr_and_del() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        def __repr__(self) -> str:
            see("__repr__", self)
            return f"<my own {self.x}>"

        def __del__(self) -> None:
            see("__del__", self)

    return Case(Own, Own)


@case
def property_that_sets_a_field() -> Case:
    @attrs.define
    class Own(Task):
        x: int = 1

        @property
        def double(self) -> int:
            return 2 * self.x

        @double.setter
        def double(self, value: int) -> None:
            see("setter", self)
            self.x = value // 2

    return Case(Own, Own)


# -- making ---------------------------------------------------------------------


@case
def init_hooks() -> Case:
    @attrs.define
    class Made(Task):
        x: int = 1
        twice: int = attrs.field(init=False)
        given: int = attrs.field(init=False, default=7)

        def __attrs_pre_init__(self) -> None:
            see("__attrs_pre_init__", self)

        def __attrs_post_init__(self) -> None:
            see("__attrs_post_init__", self)
            self.twice = 2 * self.x

    return Case(Made, Made, {"x": (2, 2), "twice": (5, 5)})


@case
def own_init() -> Case:
    @attrs.define(init=False)
    class Made(Task):
        x: int

        def __init__(self, text: str) -> None:
            see("__init__", self)
            self.__attrs_init__(x=int(text), jobname=text)

    return Case(Made, lambda: Made("1"))


@case
def own_init_that_calls_that_of_a_base() -> Case:
    @attrs.define
    class Base(Task):
        y: int = 0

    @attrs.define
    class Made(Base):
        x: int = 1

        def __init__(self) -> None:
            see("__init__", self)
            super().__init__(y=4, jobname="j")
            self.x = 1

    return Case(Made, Made, {"x": (2, 2), "y": (3, 3)})


@case
def defaults_that_look_at_the_object() -> Case:
    @attrs.define
    class Made(Task):
        kind: str = attrs.Factory(lambda self: (see("default", self), type(self).__name__)[1], takes_self=True)
        x: int = attrs.field()
        own: Any = attrs.Factory(lambda: [1])

        @x.default
        def _x(self) -> int:
            see("default", self)
            return 1

        @x.validator
        def _check(self, field: Any, value: int) -> None:
            see("validator", self)
            if type(self).__name__ != "Made":
                raise TypeError(type(self))

    return Case(Made, Made)


@case
def names_that_generated_code_might_use() -> Case:
    names = (
        "cls enter assign now checked obj values new make twin store number revision schema checksum"
        " default_x make_extra name fields build layout Stamp ref time attrs"
    ).split()
    made = attrs.make_class("Named", {name: attrs.field(default=name) for name in ("x", *names)}, bases=(Task,))
    return Case(made, made, {name: (name + "!", name + "!") for name in ("x", *names)})


@case
def private_names() -> Case:
    @attrs.define
    class Private(Task):
        _x: int = 1
        __very: int = 2
        ünïcode: int = 3

    return Case(Private, Private, {"_x": (2, 2), "_Private__very": (3, 3), "ünïcode": (4, 4)})


# -- lists of classes and class keywords -------------------------------------------


@case
def registry_in_init_subclass() -> Case:
    registry: list[type] = []

    class Registered(Task):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            see("__init_subclass__", cls)
            registry.append(cls)

    @attrs.define
    class Child(Registered):
        x: int = attrs.field(default=1, validator=_checked)

    return Case(registry[-1], lambda: registry[-1]())


@case
def init_subclass_without_super() -> Case:
    class Registered(Task):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            see("__init_subclass__", cls)

    @attrs.define
    class Child(Registered):
        x: int = 1

    return Case(Child, Child)


@case
def attrs_init_subclass_without_super() -> Case:
    @attrs.define
    class Base(Task):
        @classmethod
        def __attrs_init_subclass__(cls) -> None:
            see("__attrs_init_subclass__", cls)

    @attrs.define
    class Child(Base):
        x: int = 1

    return Case(Child, Child)


@case
def neither_calls_super() -> Case:
    @attrs.define
    class Base(Task):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            see("__init_subclass__", cls)

        @classmethod
        def __attrs_init_subclass__(cls) -> None:
            see("__attrs_init_subclass__", cls)

    @attrs.define
    class Child(Base):
        x: int = 1

    return Case(Child, Child)


@case
def class_keywords() -> Case:
    @attrs.define(slots=False)
    class Base(Task):
        label: ClassVar[str] = ""

        def __init_subclass__(cls, *, label: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            see("__init_subclass__", cls)
            cls.label = label

    @attrs.define(slots=False)
    class Child(Base, label="mine"):
        x: int = 1

    assert Child.label == "mine"
    return Case(Child, Child)


class _Registering(type):
    """A metaclass that keeps a list, has class keywords, counts calls and guards its classes' attributes."""

    def __new__(mcs, name: str, bases: Any, namespace: Any, **kwargs: Any) -> Any:
        cls = super().__new__(mcs, name, bases, namespace)
        see("metaclass.__new__", cls)
        return cls

    def __init__(cls, name: str, bases: Any, namespace: Any, **kwargs: Any) -> None:
        super().__init__(name, bases, namespace)
        see("metaclass.__init__", cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        see("metaclass.__call__", cls)
        return super().__call__(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        see("metaclass.__setattr__", cls)
        super().__setattr__(name, value)


@case
def metaclass() -> Case:
    @attrs.define
    class Meta(Task, metaclass=_Registering, label="mine"):
        x: int = 1

    return Case(Meta, Meta)


@case
def abstract_base() -> Case:
    @attrs.define
    class Abstract(Task, abc.ABC):
        x: int = 1

        @abc.abstractmethod
        def run(self) -> int: ...

    @attrs.define
    class Concrete(Abstract):
        def run(self) -> int:
            return 1

    return Case(Concrete, Concrete)


_V = TypeVar("_V")


@case
def generic() -> Case:
    @attrs.define
    class Holder(Task, Generic[_V]):
        x: _V | None = None

    return Case(Holder, lambda: Holder[int](x=1))


@case
def generic_without_slots() -> Case:
    @attrs.define(slots=False)
    class Holder(Task, Generic[_V]):
        x: _V | None = None

    return Case(Holder, lambda: Holder[int](x=1))


@case
def generic_collection() -> Case:
    @attrs.define
    class Sweep(TaskCollection[Task]):
        x: int = 1

        def __len__(self) -> int:
            see("__len__", self)
            return len(self.tasks)

    return Case(Sweep, lambda: Sweep(tasks=[Task(history=[[1.0, "NEW"]])]))


@case
def cached_property() -> Case:
    @attrs.define
    class Cached(Task):
        x: int = 1

        @functools.cached_property
        def costly(self) -> int:
            see("cached_property", self)
            return self.x + 1

    return Case(Cached, lambda: _looked_at(Cached()))


@case
def cached_property_without_slots() -> Case:
    @attrs.define(slots=False)
    class Cached(Task):
        x: int = 1

        @functools.cached_property
        def costly(self) -> int:
            see("cached_property", self)
            return self.x + 1

    return Case(Cached, lambda: _looked_at(Cached()))


def _looked_at(obj: Any) -> Any:
    assert obj.costly == obj.x + 1
    return obj


@case
def upgrade_hook_and_tag() -> Case:
    @attrs.define
    class Tagged(Task):
        class_tag: ClassVar[str] = "a tag of its own"
        x: int = 1

        @classmethod
        def upgrade_record(cls, fields: dict[str, Any]) -> dict[str, Any]:
            see("upgrade_record", cls)
            return fields

    return Case(Tagged, Tagged)
