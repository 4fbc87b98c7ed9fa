"""What a store can keep: `Persistable`, `Task` and `TaskCollection`, all attrs classes.

A class of one's own is an ordinary attrs class derived from one of them::

    @attrs.define
    class Simulation(Task):
        mesh: str = ''

Nothing of such a class is touched until one of its objects meets a store; from then on an
assignment is noted there (records/tracking.py).  What the store knows of an object stands in one
slot beside its fields, its *stamp*.
"""

from __future__ import annotations

import copy
import os
import sys
import time as clock
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

import attrs

from .errors import InvalidArgument
from .format.schema import Schema
from .text import escaped

if TYPE_CHECKING:  # a default, so that `Session` means `Session[Any]`, is new in Python 3.13
    import typing_extensions

    T = typing_extensions.TypeVar("T", default=Any)
    T_co = typing_extensions.TypeVar("T_co", default=Any, covariant=True)
else:
    T, T_co = TypeVar("T"), TypeVar("T_co", covariant=True)

_assign = object.__setattr__

# What of a class is not stored.
_RESERVED = frozenset(("_stamp", "changed", "persistent_id", "class_tag", "upgrade_record"))

_classes: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()
_defined = 0  # how many classes have been defined


class Keeper(Protocol):
    """What a persistable knows of the store that keeps it."""

    @property
    def url(self) -> str:
        """The URL of the store."""

    def is_same(self, other: object) -> bool:
        """Return whether *other* is a store at the same place."""

    def note_changed(self, obj: Persistable) -> None:
        """Hold *obj* until it is saved: it has been changed."""

    def is_changed(self, obj: Persistable) -> bool:
        """Return whether *obj* differs from what was last loaded or saved of it."""

    def forget_changes(self, obj: Persistable) -> None:
        """Take *obj* as it is now for what is stored."""

    def origin_of(self, obj: Persistable) -> Origin:
        """Return what a copy of *obj* in another process is to know of its record."""


class Stamp(NamedTuple):
    """What a store knows of one of its objects.

    Attributes:
        store: which store.
        number: N of the object's record.
        revision: of the record that the object was last read from or written to; 0 if there is none yet.
        state: in that record; '' if it has none.
        schema: of that record.
        home: number of the session that the record says holds it; 0 if none.
        checksum: of what the object packed to then.
        leftover: fields of that record that the class doesn't have.
    """

    store: Any  # a Keeper
    number: int
    revision: int
    state: str
    schema: Schema
    home: int
    checksum: int
    leftover: dict[str, Any] | None


class Origin(NamedTuple):
    """What a copy that came through pickle knows of the record that it is a copy of.

    Attributes:
        identity: of the store, 16 bytes.
        number, revision, state, schema, leftover: as in a `Stamp`.
    """

    identity: bytes
    number: int
    revision: int
    state: str
    schema: Schema
    leftover: dict[str, Any] | None


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

    @classmethod
    def at(cls, seconds: float, state: str) -> Event:
        """Return the event of a time in seconds since 1970."""
        return cls(datetime.fromtimestamp(seconds, UTC), state)


# -- classes and their tags ---------------------------------------------------


def importable_name(module: str) -> str:
    """Return the name under which a program would import *module*.

    A class of a script keeps its records readable when the script is imported, or runs in
    a child process: `__main__` and `__mp_main__` stand for the script's own name.
    """
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    script = sys.argv[0] if sys.argv else ""
    if spec is not None and file is not None and script.endswith(".py") and not _same_file(script, file):
        return Path(script).stem  # a program that runs the script, such as `python -m cProfile`
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return Path(file).stem if file else "__main__"


def _same_file(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def class_tag(cls: type) -> str:
    """Return the name by which records refer to *cls*: `module:qualified.name`, or its own."""
    own = cls.__dict__.get("class_tag")
    if type(own) is str:
        return own
    # A class of a script is defined where the script's name is known; another process may get it by value.
    noted = cls.__dict__.get("__gc3session_tag__")
    return noted if type(noted) is str else f"{importable_name(cls.__module__)}:{cls.__qualname__}"


def class_of_module(tag: str) -> type | None:
    """Return the class of that *tag* that its module has now, or None; nothing is imported.

    It comes before any other one of the same tag: a module may have been reloaded, or a cell run again.
    """
    module, _, qualified = tag.partition(":")
    first, *inner = qualified.split(".")
    for namespace in _namespaces(module):
        place = namespace.get(first)
        for name in inner:
            place = getattr(place, "__dict__", {}).get(name)
        if isinstance(place, type) and class_tag(place) == tag:
            return place
    return None


def _namespaces(module: str) -> Iterator[dict[str, Any]]:
    """Give what *module* defines.  A script that another program runs, such as cProfile, is in no module."""
    is_main = module == importable_name("__main__")
    yield getattr(sys.modules.get("__main__" if is_main else module), "__dict__", {})
    frame = sys._getframe() if is_main else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "__main__":
            yield frame.f_globals
        frame = frame.f_back


def known_class(tag: str) -> type[Persistable] | None:
    """Return the persistable class of that *tag* that this program has defined, or None."""
    cls: type[Any] | None = class_of_module(tag)
    if cls is not None and issubclass(cls, Persistable):
        return cls
    if tag not in _classes:  # its own `__init_subclass__` may have kept it from being noted
        for found in _subclasses(Persistable):
            _note(found)
    return _classes.get(tag)


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def note_class(cls: type[Persistable]) -> None:
    """Make *cls* the class of its tag."""
    global _defined
    _note(cls)
    _defined += 1


def _note(cls: type[Any]) -> None:
    tag = class_tag(cls)
    former = _classes.get(tag)
    # While it is unpickled by value a class is made anew, empty, and given up if it is there already.
    if former is None or "__attrs_attrs__" in cls.__dict__ or "__attrs_attrs__" not in former.__dict__:
        _classes[tag] = cls


def classes_defined() -> int:
    """Return a number that grows with each persistable class that the program defines."""
    return _defined


def check_class(cls: type[Persistable]) -> None:
    """Raise InvalidArgument if objects of *cls* can't be stored."""
    if not cls.__name__.isidentifier():
        raise InvalidArgument(
            f"a persistable class can't be named {cls.__name__!r}: the IDs of its objects"
            " (ClassName.N) need an identifier"
        )
    if any("__dataclass_fields__" in base.__dict__ for base in cls.__mro__):
        raise InvalidArgument(
            f"{cls.__qualname__} is decorated with @dataclass, which knows nothing of the fields of a task:"
            " use @attrs.define"
        )
    if "_attrs_cached_hash" in getattr(getattr(cls.__hash__, "__code__", None), "co_names", ()):
        raise InvalidArgument(
            f"{cls.__qualname__}: cache_hash=True keeps a hash beside the fields, which would not be stored; leave it out"
        )
    for name in field_names(cls):
        if name in _RESERVED:
            raise InvalidArgument(
                f"{cls.__qualname__}: a field can't be named {name!r}, which gc3session"
                " needs itself; choose another name"
            )


def field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields of the attrs class *cls*, in their order."""
    return tuple(field.name for field in attrs.fields(cls))


# -- persistables -------------------------------------------------------------


class _Stamped:
    """The slot that is not a field."""

    __slots__ = ("__weakref__", "_stamp")


get_stamp: Callable[[Any], Stamp] = _Stamped._stamp.__get__  # type: ignore[attr-defined]
set_stamp: Callable[[Any, Stamp | Origin], None] = _Stamped._stamp.__set__  # type: ignore[attr-defined]
_delete_stamp: Callable[[Any], None] = _Stamped._stamp.__delete__  # type: ignore[attr-defined]


def mark_of(obj: Persistable) -> Stamp | Origin | None:
    """Return what stands in the slot of an object; a `__getattr__` of its class isn't asked."""
    try:
        return get_stamp(obj)
    except AttributeError:
        return None


def stamp_of(obj: Persistable) -> Stamp | None:
    """Return the stamp of an object; None if no store has it."""
    stamp = mark_of(obj)
    return stamp if type(stamp) is Stamp else None


def restamp(obj: Persistable, stamp: Stamp | Origin | None) -> None:
    """Set the stamp of an object, or take it away; nothing is noted."""
    if stamp is not None:
        set_stamp(obj, stamp)
    elif mark_of(obj) is not None:
        _delete_stamp(obj)


def _restored(origin: Origin, make: Callable[..., Any], *args: Any) -> Any:
    """Return a copy that comes through pickle; its fields are set afterwards."""
    obj = make(*args)
    restamp(obj, origin)
    return obj


@attrs.define(eq=False, repr=False)
class Persistable(_Stamped):
    """An object that a store can keep.

    Two persistables are equal if they are the same object, and a store gives the same object
    for the same ID as long as one is alive.  A copy by `copy` or `attrs.evolve` is a new object
    without an ID.  One that comes through `pickle` is a copy of the same record: saving it in
    the same store writes that record, and the object there takes its values over.

    A class may define:

    - `class_tag`, a ClassVar[str]: the name by which records refer to the class, which so
      survives a renaming.  It is `module:qualified.name` unless told.
    - `upgrade_record(fields)`, a classmethod: called when a record's fields are not those of
      the class, with a dict of them; it returns the dict to fill the object from.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _KEPT:
            found = getattr(cls, name, None)
            # What attrs has made for a base class to copy it by knows nothing of the fields of this one.
            if name not in cls.__dict__ and (
                found is _KEPT[name] or getattr(found, "__module__", "") == "attr._make"
            ):
                type.__setattr__(cls, name, _KEPT[name])
        if cls.__module__ in ("__main__", "__mp_main__") and "__gc3session_tag__" not in cls.__dict__:
            cls.__gc3session_tag__ = f"{importable_name(cls.__module__)}:{cls.__qualname__}"  # type: ignore[attr-defined]
        note_class(cls)

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        check_class(cls)
        note_class(cls)

    @classmethod
    def __subclasses__(cls) -> list[type[Any]]:
        # Without twins: a program that looks for its classes must not find them.
        return [c for c in type.__subclasses__(cls) if c.__dict__.get("__gc3session_twin__", cls) is not None]

    @property
    def persistent_id(self) -> str | None:
        """The ID (`ClassName.N`) that the store gave the object; None before that."""
        stamp = mark_of(self)
        return None if stamp is None else f"{stamp.schema.name}.{stamp.number}"

    @property
    def changed(self) -> bool:
        """Whether the object differs from what was last loaded or saved of it; True if it was never saved.

        Setting it to True has `save_all` save the object in any case, to False takes it for saved.
        """
        stamp = stamp_of(self)
        return stamp is None or stamp.store.is_changed(self)

    @changed.setter
    def changed(self, value: bool) -> None:
        stamp = stamp_of(self)
        if stamp is not None:
            if value:
                stamp.store.note_changed(self)
            else:
                stamp.store.forget_changes(self)

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in ("jobname", "state") if hasattr(self, name))
        return f"<{' '.join((type(self).__qualname__, escaped(self.persistent_id or '(not saved)'), *fields))}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in field_names(type(self)) if hasattr(self, name)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            _assign(self, name, value)

    def __copy__(self) -> Any:
        return _copied(self, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _copied(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = object.__reduce_ex__(self, max(2, int(protocol)))
        stamp = mark_of(self)
        if stamp is None or not isinstance(reduced, tuple):
            return reduced
        origin = stamp if isinstance(stamp, Origin) else stamp.store.origin_of(self)
        make, args, *rest = reduced
        return (_restored, (origin, make, *args), *rest)


# Methods of Persistable that attrs would replace in each class, unless it has them already.
_KEPT: Final = {
    name: getattr(Persistable, name) for name in "__eq__ __hash__ __repr__ __getstate__ __setstate__".split()
}

note_class(Persistable)


def _copied(obj: Persistable, memo: dict[int, Any] | None) -> Any:
    """Return a copy of an object that no store has, a deep one with *memo*; as copy.py does it, but for the stamp."""
    reduced = object.__reduce_ex__(obj, 4)
    if isinstance(reduced, str):
        return obj
    make, args, state = (*reduced, None)[:3]
    if memo is None:
        new = make(*args)
    else:
        new = memo[id(obj)] = make(*copy.deepcopy(args, memo))
        state = copy.deepcopy(state, memo)
    if state is not None:
        new.__setstate__(state)
    return new


# -- tasks --------------------------------------------------------------------


def checked_state(value: str) -> str:
    """Return *value* as a plain str, if it can be a state.  Raise InvalidArgument if not."""
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"a task's state must be a non-empty str, such as 'RUNNING', not {value!r}")
    return str.__str__(value)


def first_event(task: Task) -> list[list[Any]]:
    """Return the history of a new task.  The state may be set later, if a class has that field again."""
    try:
        state = STATE_SLOT.__get__(task)  # a `__getattr__` of the class isn't asked
    except AttributeError:
        state = None
    return [[clock.time(), state]]


def _noting(state: Any, history: Any) -> property:
    """Return a property over the slot *state* that notes each new state in that of the *history*.

    It takes the slot's place in the class, so that it works whatever hooks a derived class has, and
    also in one that declares the field again: attrs uses what the base class has.
    """
    get, assign = state.__get__, state.__set__

    def note(task: Task, value: str) -> None:
        if type(value) is not str or not value:
            value = checked_state(value)
        is_made = True
        try:
            get(task)
        except AttributeError:
            is_made = False
        assign(task, value)
        try:
            events = history.__get__(task)
        except AttributeError:
            return
        if type(events) is not list:
            return
        if not is_made and events and events[-1][1] is None:
            events[-1][1] = value
        elif is_made and not (events and events[-1][1] == value):
            history.__set__(task, [*events, [clock.time(), value]])  # a copy of the task may have the same list

    return property(get, note, doc="The state that the task is in.")


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
    state: str = State.NEW
    returncode: int | None = None
    history: list[list[Any]] = attrs.Factory(first_event, takes_self=True)
    extra: dict[Any, Any] = attrs.Factory(dict)

    def set_state(self, state: str, time: datetime | float | None = None) -> None:
        """Set the state, and note that the task has been in it since *time*.

        Args:
            state: the new state; it is noted also if it is the one that the task is in.
            time: a datetime (a naive one is local time), or seconds since 1970; now unless told.

        Raise InvalidArgument for what can't be a state or a time.
        """
        state = checked_state(state)
        if isinstance(time, datetime):
            time = time.timestamp()
        seconds = clock.time() if time is None else time
        try:
            if isinstance(time, bool):
                raise TypeError("a bool is neither")
            Event.at(seconds, state)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise InvalidArgument(
                f"a time is a datetime or a number of seconds since 1970, not {time!r}: {error}"
            ) from error
        self.history = [*self.history, [float(seconds), state]]
        self.state = state

    @property
    def events(self) -> list[Event]:
        """The history with its times as aware datetimes."""
        return [Event.at(seconds, state) for seconds, state in self.history]


STATE_SLOT: Final[Any] = vars(Task)["state"]
"""The descriptor of the slot in which a task's state stands; setting it notes nothing."""

STATE: Final = _noting(STATE_SLOT, vars(Task)["history"])
type.__setattr__(Task, "state", STATE)


@attrs.define(eq=False, repr=False, kw_only=True)
class TaskCollection(Task, Generic[T]):
    """A task made of other tasks; `TaskCollection[Simulation]` tells a type checker of which.

    Attributes:
        tasks: the tasks, in order; each is a record of its own.
    """

    class_tag: ClassVar[str] = "TaskCollection"

    tasks: list[T] = attrs.Factory(list)

    def add(self, task: T) -> None:
        """Append *task* to the collection."""
        self.tasks.append(task)
        self.changed = True

    def discard(self, task: T) -> None:
        """Take *task* out of the collection, if it is there; its record stays."""
        self.tasks = [other for other in self.tasks if other is not task]

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[T]:
        return iter(self.tasks)


# -- placeholders -------------------------------------------------------------


class Placeholder:
    """What makes a class stand in for one that the program doesn't have.

    The fields of the record can be read and assigned as attributes, and are written back.
    """

    __slots__ = ()

    _schema: Schema | None
    _others: dict[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """The record's fields by name, in the record's order."""
        own, others = field_names(type(self)), self._others
        names = [name for name in own if name not in _PLACEHOLDER] if self._schema is None else self._schema.fields
        return {name: others[name] if name in others else getattr(self, name) for name in names}

    @property
    def class_name(self) -> str:
        """The tag of the class that wrote the record."""
        return "" if self._schema is None else self._schema.tag

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._others:
            return self._others[name]
        raise AttributeError(f"this {type(self).__qualname__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        others = {} if name.startswith("_") else getattr(self, "_others", {})  # which `__init__` sets last
        if name in others:
            self._others = {**others, name: value}
        else:
            _assign(self, name, value)


_PLACEHOLDER = ("_schema", "_others")


@attrs.define(eq=False, repr=False, kw_only=True)
class GenericPersistable(Placeholder, Persistable):
    """A persistable whose class the program has not defined."""

    _schema: Schema | None = None
    _others: dict[str, Any] = attrs.Factory(dict)


@attrs.define(eq=False, repr=False, kw_only=True)
class GenericTask(Placeholder, Task):
    """A task whose class the program has not defined."""

    _schema: Schema | None = None
    _others: dict[str, Any] = attrs.Factory(dict)


@attrs.define(eq=False, repr=False, kw_only=True)
class GenericCollection(Placeholder, TaskCollection):
    """A task collection whose class the program has not defined."""

    _schema: Schema | None = None
    _others: dict[str, Any] = attrs.Factory(dict)


@attrs.define(eq=False, repr=False)
class Unreadable(Persistable):
    """What a reference gives whose record is missing or damaged.

    It has the ID of the record and the `reason`.  It can't be saved; an object that refers
    to it can, and then still refers to the same record.
    """

    reason: str = ""

    def __repr__(self) -> str:
        return escaped(f"<Unreadable {self.persistent_id}: {self.reason}>")
