"""What a store can keep: `Persistable`, `Task` and `TaskCollection`, all attrs classes.

A class of one's own is an ordinary attrs class derived from one of them::

    @attrs.define
    class Simulation(Task):
        mesh: str = ''

Assigning a field sets `changed`, and the store then keeps the object alive until it is
saved.  To make that cost nothing while an object is built, every class has a *quiet*
twin: a subclass of the same layout whose `__setattr__` is that of `object`.  An instance
belongs to it during `__init__` and while a record is being filled in, and at no other time.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

import attrs

from .errors import InvalidArgument
from .text import escaped

if TYPE_CHECKING:
    from .format.schema import Schema

_assign = object.__setattr__


class Keeper(Protocol):
    """What a persistable knows of the store that keeps it.

    Attributes:
        changed: id() of an object -> the object, which has unsaved changes.
    """

    changed: dict[int, Persistable]

    @property
    def url(self) -> str:
        """The URL of the store."""

    def is_same(self, other: object) -> bool:
        """Return whether *other* is a store at the same place."""

    def note_changed(self, obj: Persistable) -> None:
        """Hold *obj* while it has unsaved changes."""


# What of a class is not stored: the slots below, which are the store's own.
_SLOTS = ("_store", "_number", "_revision", "_stored_state", "_schema", "_leftover", "changed", "_hash")
_RESERVED = frozenset((*_SLOTS, "persistent_id", "class_tag", "upgrade_record"))

# Methods that attrs would write anew for each class, unless the class has them already.
_KEPT = ("__eq__", "__hash__", "__getstate__", "__setstate__")

_classes: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()
_adoption = itertools.count(1)
_adopted = 0


class State:
    """The states of GC3Pie; a task's `state` may be any other non-empty str, too."""

    NEW: Final = "NEW"
    SUBMITTED: Final = "SUBMITTED"
    RUNNING: Final = "RUNNING"
    STOPPED: Final = "STOPPED"
    TERMINATING: Final = "TERMINATING"
    TERMINATED: Final = "TERMINATED"
    UNKNOWN: Final = "UNKNOWN"

    ALL: Final = (NEW, SUBMITTED, RUNNING, STOPPED, TERMINATING, TERMINATED, UNKNOWN)


class Event(NamedTuple):
    """One entry of a task's history: since when (UTC) it has been in which state."""

    time: datetime
    state: str


def importable_name(module: str) -> str:
    """Return the name under which a program would import *module*.

    A class of a script keeps its records readable when the script is imported, or runs in
    a child process: `__main__` and `__mp_main__` stand for the script's own name.
    """
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def class_tag(cls: type) -> str:
    """Return the name by which records refer to *cls*: `module:qualified.name`, or its own."""
    own = cls.__dict__.get("class_tag")
    return own if type(own) is str else f"{importable_name(cls.__module__)}:{cls.__qualname__}"


def known_class(tag: str) -> type[Persistable] | None:
    """Return the persistable class of that *tag* that this program has defined, or None."""
    return _classes.get(tag)


def adoptions() -> int:
    """Return a number that grows with each persistable class that the program defines."""
    return _adopted


def _initialised(init: Callable[..., None]) -> Callable[..., None]:
    """Return the `__init__` *init*, after which an object is complete.

    One that attrs has made runs with the object in its quiet class.
    """
    generated = init.__code__.co_filename.startswith("<attrs generated")

    @functools.wraps(init)
    def __init__(self: Persistable, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        quiet = cls._quiet
        _assign(self, "__class__", quiet)
        try:
            self._store = self._schema = self._leftover = None
            self._number = self._revision = 0
            self._stored_state = ""
            self.changed = True
            if generated:
                init(self, *args, **kwargs)
        finally:
            if cls is not quiet:
                self.__class__ = cls
        if not generated:
            init(self, *args, **kwargs)
        if cls._open:
            for name in [*self.__dict__]:
                self._refuse_undeclared(name)

    return __init__


def _aloud(post_init: Callable[..., None]) -> Callable[..., None]:
    """Return the `__attrs_post_init__`, run with the object in its own class: it is the user's code."""

    @functools.wraps(post_init)
    def __attrs_post_init__(self: Persistable, *args: Any) -> None:
        cls = type(self)
        if cls is not cls._quiet:
            return post_init(self, *args)
        _assign(self, "__class__", cls.__base__)
        try:
            post_init(self, *args)
        finally:
            _assign(self, "__class__", cls)

    return __attrs_post_init__


def _tracking(setter: Callable[[Any, str, Any], None]) -> Callable[[Any, str, Any], None]:
    """Return the `__setattr__` *setter* with the tracking of changes added."""

    @functools.wraps(setter)
    def __setattr__(self: Persistable, name: str, value: Any) -> None:
        setter(self, name, value)
        if name != "changed":
            if self._open:
                self._refuse_undeclared(name)
            # It is noted again where a signal's handler may have kept it from that.
            if self.changed and (self._store is None or id(self) in self._store.changed):
                return
            set_changed(self, True)
        if self._store is not None:
            self._store.note_changed(self)

    return __setattr__


def _adopt(cls: type[_Tracked]) -> None:
    """Give *cls* its quiet twin, and make it the class of its tag."""
    if not cls.__name__.isidentifier():
        raise InvalidArgument(
            f"a persistable class can't be named {cls.__name__!r}: the IDs of its objects"
            " (ClassName.N) need an identifier"
        )
    namespace = {"__slots__": (), "__setattr__": _assign, "_quiet": None}
    namespace.update(__module__=cls.__module__, __qualname__=cls.__qualname__)
    metaclass: Any = type(cls)
    cls._quiet = metaclass(cls.__name__, (cls,), namespace)
    cls._quiet._quiet = cls._quiet
    cls._open = any("__dict__" in base.__dict__ for base in cls.__mro__)
    global _adopted
    _classes[class_tag(cls)] = cls
    _adopted = next(_adoption)


def field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields of the attrs class *cls*, in their order."""
    return tuple(field.name for field in attrs.fields(cls))


class _Tracked:
    """The slots of a persistable that are not fields, and the tracking of changes."""

    __slots__ = (*_SLOTS, "__weakref__")

    _quiet: ClassVar[type[Any]]
    _open: ClassVar[bool]  # instances have a __dict__, which takes any attribute
    _layout: ClassVar[Any] = None  # see codec.layout_of

    _store: Keeper | None  # where the object is kept; None until it is saved
    _number: int  # its N, the key of its record
    _revision: int  # of the record that it was last read from or written to
    _stored_state: str  # the state in that record; '' if it has none
    _schema: Schema | None  # of that record
    _leftover: dict[str, Any] | None  # fields of that record that the class doesn't have

    _hash: int  # once it has been hashed

    changed: bool
    """Whether a field was assigned since the object was last saved or loaded.

    Set it by hand after a change that no assignment shows: `task.extra['x'] = 1`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_quiet" in cls.__dict__:  # a quiet twin itself
            return
        for name in _KEPT:
            if name not in cls.__dict__ and hasattr(cls, name):
                setattr(cls, name, getattr(cls, name))
        _adopt(cls)

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        """Finish a class that attrs has made: its `__init__` untracked, its setter tracked."""
        for name in field_names(cls):
            if name in _RESERVED:
                raise InvalidArgument(
                    f"{cls.__qualname__}: a field can't be named {name!r}, which gc3session"
                    " needs itself; choose another name"
                )
        own = cls.__dict__
        for name in ("__init__", "__attrs_init__"):
            if name in own:
                setattr(cls, name, _initialised(own[name]))
        if "__attrs_post_init__" in own:
            cls.__attrs_post_init__ = _aloud(own["__attrs_post_init__"])  # type: ignore[attr-defined]
        if own.get("__attrs_own_setattr__"):
            cls.__setattr__ = _tracking(own["__setattr__"])  # type: ignore[assignment]
        _adopt(cls)

    __setattr__ = _tracking(_assign)

    def _refuse_undeclared(self, name: str) -> None:
        """Raise AttributeError if *name*, just assigned, is not a field: it would be lost."""
        if name in self.__dict__ and name not in field_names(type(self)):
            del self.__dict__[name]
            raise AttributeError(
                f"{type(self).__qualname__!r} object has no field {name!r}: declare it in the"
                " class, decorated with @attrs.define, or use a task's `extra`"
            )


# Past __setattr__, and so that no other thread sees the object in its quiet class:
set_changed = _Tracked.changed.__set__  # type: ignore[attr-defined]
SLOT_SETTERS: Final[tuple[Callable[[Any, Any], None], ...]] = tuple(
    getattr(_Tracked, name).__set__ for name in ("_store", "_number", "_revision", "_stored_state", "_schema")
)


@attrs.define(eq=False, repr=False)
class Persistable(_Tracked):
    """An object that a store can keep.

    Two persistables are equal if they have the same ID in the same store; before they have
    one, only if they are the same object.  They are hashable; an object that was hashed
    before it got its ID keeps that hash.  A copy (by `copy`, `pickle`, `attrs.evolve`) is a
    new object without an ID.

    A class may define:

    - `class_tag`, a ClassVar[str]: the name by which records refer to the class, which so
      survives a renaming.  It is `module:qualified.name` unless told.
    - `upgrade_record(fields)`, a classmethod: called when a record's fields are not those of
      the class, with a dict of them; it returns the dict to fill the object from.
    """

    @property
    def persistent_id(self) -> str | None:
        """The ID (`ClassName.N`) that the store gave the object; None before that."""
        return None if self._schema is None else f"{self._schema.name}.{self._number}"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Persistable):
            return NotImplemented
        return (
            self._store is not None
            and other._store is not None
            and self._number == other._number
            and self._store.is_same(other._store)
        )

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = id(self) >> 4 if self._store is None else hash(self._number)
            _assign(self, "_hash", value)
            return value

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in ("jobname", "state") if hasattr(self, name))
        return f"<{' '.join((type(self).__qualname__, escaped(self.persistent_id or '(not saved)'), *fields))}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in field_names(type(self))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        cls = type(self)
        _assign(self, "__class__", cls._quiet)
        self._store = self._schema = self._leftover = None
        self._number = self._revision = 0
        self._stored_state = ""
        self.changed = True
        for name, value in state.items():
            setattr(self, name, value)
        self.__class__ = cls


def _state(value: str) -> str:
    """Return *value* as a plain str, if it can be a state.  Raise InvalidArgument if not."""
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"a task's state must be a non-empty str, such as 'RUNNING', not {value!r}")
    return str.__str__(value)


def _new_state(task: Task, _: object, value: str) -> str:
    """Return the state to assign, and note when; called for each assignment of `state`."""
    if type(value) is not str or not value:
        value = _state(value)
    if not (task.history and task.history[-1][1] == value):
        task.history.append([time.time(), value])
    return value


def _first_event(task: Task) -> list[list[Any]]:
    return [[time.time(), task.state]]


@attrs.define(eq=False, repr=False, kw_only=True)
class Task(Persistable):
    """Something that runs: what a session is a collection of.

    Attributes:
        jobname: a name to show and to select by; it need not be unique.
        state: one of `State.ALL`, or any other non-empty str.
        returncode: the exit status, once there is one.
        history: a list `[seconds since 1970 UTC (float), state]` for each state that the task
            has been in, the first one included.  Assigning `state` appends to it.
        extra: whatever has no field of its own.
    """

    class_tag: ClassVar[str] = "Task"

    jobname: str = ""
    state: str = attrs.field(default=State.NEW, converter=_state, on_setattr=_new_state)
    returncode: int | None = None
    history: list[list[Any]] = attrs.Factory(_first_event, takes_self=True)
    extra: dict[Any, Any] = attrs.Factory(dict)

    @property
    def events(self) -> list[Event]:
        """The history with its times as aware datetimes."""
        return [Event(datetime.fromtimestamp(seconds, UTC), state) for seconds, state in self.history]


@attrs.define(eq=False, repr=False, kw_only=True)
class TaskCollection(Task):
    """A task made of other tasks.

    Attributes:
        tasks: the tasks, in order; each is a record of its own.  Use `add` and `discard`, or
            set `changed` after changing the list by hand.
    """

    class_tag: ClassVar[str] = "TaskCollection"

    tasks: list[Persistable] = attrs.Factory(list)

    def add(self, task: Persistable) -> None:
        """Append *task* to the collection."""
        self.tasks.append(task)
        self.changed = True

    def discard(self, task: Persistable) -> None:
        """Take *task* out of the collection, if it is there; its record stays."""
        self.tasks = [other for other in self.tasks if other is not task and other != task]

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Persistable]:
        return iter(self.tasks)


class Generic:
    """What makes a class stand in for one that the program doesn't have.

    The fields of the record are readable as attributes; they are written back unchanged.
    """

    __slots__ = ()

    _leftover: dict[str, Any] | None
    _schema: Schema | None

    @property
    def fields(self) -> dict[str, Any]:
        """The record's fields by name, in the record's order."""
        own, leftover = field_names(type(self)), self._leftover or {}
        names = own if self._schema is None else self._schema.fields
        return {name: getattr(self, name) if name in own else leftover[name] for name in names}

    @property
    def class_name(self) -> str:
        """The tag of the class that wrote the record."""
        return "" if self._schema is None else self._schema.tag

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            leftover = self._leftover
            if leftover and name in leftover:
                return leftover[name]
        raise AttributeError(f"this {type(self).__qualname__} has no field {name!r}")


@attrs.define(eq=False, repr=False)
class GenericPersistable(Generic, Persistable):
    """A persistable whose class the program has not defined."""


@attrs.define(eq=False, repr=False, kw_only=True)
class GenericTask(Generic, Task):
    """A task whose class the program has not defined."""


@attrs.define(eq=False, repr=False, kw_only=True)
class GenericCollection(Generic, TaskCollection):
    """A task collection whose class the program has not defined."""


@attrs.define(eq=False, repr=False)
class Unreadable(Persistable):
    """What a reference gives whose record is missing or damaged.

    It has the ID of the record and the `reason`.  It can't be saved; an object that refers
    to it can, and then still refers to the same record.
    """

    reason: str = ""

    def __repr__(self) -> str:
        return escaped(f"<Unreadable {self.persistent_id}: {self.reason}>")
