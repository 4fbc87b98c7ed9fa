"""How the objects of a class are built fast, and how an assignment to one is noted.

This is done to a class when one of its objects first meets a store:

- its `__setattr__`, whoever wrote it, is wrapped in one that tells the store;
- it gets a *twin*: a subclass of the same layout whose `__setattr__` is that of `object`.  An object
  that is built from a record belongs to it while its fields are set, in code that is generated
  here, and so does one in the `__init__` of attrs, if that runs no code of the user's.  No code of
  the user's ever has an object of the twin in hand, and no hook of the class hears of the twin.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from typing import Any, Final

import attrs

from ..tasks import STATE, STATE_SLOT, Persistable, Stamp, Task, checked_state, field_names, first_event, stamp_of

_assign = object.__setattr__
_set = type.__setattr__  # past a metaclass that has its own

TWIN: Final = "__gc3session_twin__"
"""The attribute of a class that holds its twin; of a twin it is None."""

_TRACKED: Final = "__gc3session_tracked__"


class _Twin:
    """Holds the twin of a class; it stays behind when the class goes to another process by value.

    Attributes:
        twin: the twin.
        is_plain: assignments to objects of the class run no code of attrs or the user's.
    """

    def __init__(self, cls: type[Any], twin: type[Any] | None) -> None:
        self.cls = cls
        self.twin = twin
        self.is_plain = False

    def __reduce__(self) -> Any:
        return _twin_there, (self.cls,)


def _twin_there(cls: type[Any]) -> _Twin:
    return cls.__dict__.get(TWIN) or _Twin(cls, None)


class _Guard:
    """A base of twins: `__init_subclass__` of the class must not hear of one."""

    __slots__ = ()

    def __init_subclass__(cls, **_: object) -> None:
        """Do nothing."""


def twin_of(cls: type[Persistable]) -> type[Any]:
    """Return the twin of *cls*; the first time it is made, and *cls* is tracked from then on."""
    noted = cls.__dict__.get(TWIN)
    twin: type[Any] | None = None if noted is None else noted.twin
    if twin is None:
        namespace = {
            "__slots__": (),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            TWIN: None,
            "__setattr__": _assign,
            "__new__": staticmethod(lambda _, *args, **kwargs: cls(*args, **kwargs)),
        }
        if _has_own_state(cls):
            namespace["state"] = STATE_SLOT
        # Past the metaclass of the class, which might keep a list of its classes.
        twin = type.__new__(type(cls), cls.__name__, (_Guard, cls), namespace)
        noted = _Twin(cls, twin)
        _set(cls, TWIN, noted)
        _track(cls)
        noted.is_plain = cls.__setattr__ in (note_assignment, note_declared)
    return twin


def _has_own_state(cls: type[Persistable]) -> bool:
    """Return whether the state of the objects of *cls* is in the slot of Task, under its property."""
    return issubclass(cls, Task) and getattr(cls, "state", None) is STATE


# -- noting of assignments ----------------------------------------------------


def _track(cls: type[Any]) -> None:
    """Have the assignments to objects of *cls* noted by their stores."""
    setter: Any = cls.__setattr__
    if _TRACKED in cls.__dict__ and cls.__dict__.get("__setattr__") is not None:
        return  # it has come from another process with its __setattr__ wrapped
    if setter in (note_assignment, note_declared):  # of a base class
        setter = _assign
    if setter is _assign and not hasattr(cls, "__getattr__"):
        initialise = _fast_init(cls)
        _set(cls, "__setattr__", note_declared if _takes_any(cls) else note_assignment)
        if initialise is not None:
            _set(cls, "__init__", initialise)
    else:
        _set(cls, "__setattr__", _noting(setter, takes_any=_takes_any(cls)))
    _set(cls, _TRACKED, True)


def _takes_any(cls: type) -> bool:
    """Return whether objects of *cls* have a `__dict__`, which takes any attribute."""
    return any("__dict__" in base.__dict__ for base in cls.__mro__)


def note_assignment(self: Any, name: str, value: Any) -> None:
    """The `__setattr__` of classes that have none of their own."""
    _assign(self, name, value)
    if _TRACKED in type(self).__dict__:  # else no store has the object, and a `__getattr__` may not be ready
        stamp = getattr(self, "_stamp", None)
        if type(stamp) is Stamp and name != "changed":
            stamp.store.note_changed(self)


def note_declared(self: Any, name: str, value: Any) -> None:
    """The same of classes whose objects take any attribute: one that isn't declared would be lost."""
    _assign(self, name, value)
    if _TRACKED in type(self).__dict__:
        stamp = getattr(self, "_stamp", None)
        if type(stamp) is Stamp and name != "changed":
            refuse_undeclared(self, name)
            stamp.store.note_changed(self)


def _noting(setter: Callable[[Any, str, Any], None], *, takes_any: bool) -> Callable[[Any, str, Any], None]:
    """Return the `__setattr__` *setter*, of attrs or of the user, with the noting added."""

    def __setattr__(self: Any, name: str, value: Any) -> None:
        setter(self, name, value)
        stamp = stamp_of(self)
        if stamp is not None and name != "changed":
            if takes_any:
                refuse_undeclared(self, name)
            stamp.store.note_changed(self)

    return __setattr__


def refuse_undeclared(obj: Any, name: str) -> None:
    """Raise AttributeError if *name*, just assigned, is not a field: it would be lost."""
    if name in obj.__dict__ and name not in field_names(type(obj)):
        del obj.__dict__[name]
        raise AttributeError(
            f"{type(obj).__qualname__!r} object has no field {name!r}: declare it in the"
            " class, decorated with @attrs.define, or use a task's `extra`"
        )


# -- building -----------------------------------------------------------------


def compiled(source: str, **names: Any) -> Any:
    """Return the one function that *source* defines.

    The source holds nothing but the field names of a class that the program has defined; attrs
    makes __init__ in the same way.
    """
    before = {*names, "__builtins__"}
    exec(source, names)
    return next(value for name, value in names.items() if name not in before)


def enter_twin(obj: Any) -> type[Any] | None:
    """Put an object that is being made into the twin of its class, if it has a plain one, and return the class."""
    cls = type(obj)
    noted = cls.__dict__.get(TWIN)
    if noted is None or not noted.is_plain:
        return None
    _assign(obj, "__class__", noted.twin)
    return cls


def _is_factory(default: Any) -> bool:
    return isinstance(default, attrs.Factory)  # type: ignore[arg-type]


_FACTORIES: Final = (dict, list, set, first_event)


def _fast_init(cls: type[Any]) -> Callable[..., None] | None:
    """Return an `__init__` that does what that of attrs does, in the twin; None if it would run the user's code."""
    generated = cls.__dict__.get("__init__")
    fields = attrs.fields(cls)
    if (
        generated is None
        or not getattr(generated, "__code__", _fast_init.__code__).co_filename.startswith("<attrs generated")
        or hasattr(cls, "__attrs_pre_init__")
        or hasattr(cls, "__attrs_post_init__")
        or any(field.validator or field.converter or field.on_setattr or not field.init for field in fields)
        or any(_is_factory(f.default) and f.default.factory not in _FACTORIES for f in fields)
        or (issubclass(cls, Task) and not _has_own_state(cls))
    ):
        return None
    # No field has a name that begins so, unless somebody wants it to.
    names: dict[str, Any] = {"__enter": enter_twin, "__NOTHING": attrs.NOTHING, "__now": clock.time}
    names["__checked"] = checked_state
    parameters: dict[bool, list[str]] = {False: [], True: []}
    checks, lines = [], []
    state = next((field.alias for field in fields if field.name == "state"), "None")
    for field in fields:
        argument = field.alias
        value = argument
        default = ""
        if field.default is not attrs.NOTHING:
            names[f"__default_{field.name}"] = field.default
            default = f"=__default_{field.name}"
        if _is_factory(field.default):
            default = "=__NOTHING"
            names[f"__make_{field.name}"] = field.default.factory
            made = f"[[__now(), {state}]]" if field.default.factory is first_event else f"__make_{field.name}()"
            value = f"{made} if {argument} is __NOTHING else {argument}"
        elif field.name == "state" and issubclass(cls, Task):
            checks.append(f"if type({argument}) is not str or not {argument}: {argument} = __checked({argument})")
        parameters[field.kw_only].append(argument + default)
        lines.append(f"self.{field.name} = {value}")
    star = ["*", *parameters[True]] if parameters[True] else []
    source = f"def __init__({', '.join(['self', *parameters[False], *star])}):\n    "
    body = [*checks, "__cls = __enter(self)", *lines, "if __cls is not None: self.__class__ = __cls"]
    initialise = compiled(source + "\n    ".join(body) + "\n", **names)
    for name in ("__doc__", "__qualname__", "__module__", "__annotations__"):
        setattr(initialise, name, getattr(generated, name))
    return initialise  # type: ignore[no-any-return]
