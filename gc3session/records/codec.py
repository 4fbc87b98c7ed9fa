"""Records: attrs object <-> the values of a record.

A *layout* knows, for one class, how its objects are taken apart and built; format/frame.py draws
the bytes that the values stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from ..errors import LoadError, UnstorableValue
from ..format.schema import COLLECTION, PERSISTABLE, TASK, Schema
from ..tasks import (
    GenericCollection,
    GenericPersistable,
    GenericTask,
    Persistable,
    Placeholder,
    Stamp,
    Task,
    TaskCollection,
    check_class,
    class_tag,
    field_names,
    get_stamp,
    known_class,
    mark_of,
    set_stamp,
)
from .tracking import compiled, twin_of

_GENERIC = (GenericPersistable, GenericTask, GenericCollection)


class Layout:
    """How the objects of one class are taken apart and built; one for each class.

    Attributes:
        cls: the class.
        twin: its twin (tracking.py).
        fields: the names of its fields.
        kind: PERSISTABLE, TASK or COLLECTION.
        generic: the class stands in for one that the program doesn't have.
        name: what the IDs of its objects begin with.
        values: object -> list of the values; AttributeError if one isn't set.
        build: (values, store, N, revision, schema, home, checksum) -> a new object, saved and unchanged.
    """

    def __init__(self, cls: type[Persistable]) -> None:
        check_class(cls)
        self.cls = cls
        self.twin = twin_of(cls)
        self.generic = issubclass(cls, Placeholder)
        self.fields = tuple(name for name in field_names(cls) if name != "_schema" or not self.generic)
        self.kind = (
            COLLECTION if issubclass(cls, TaskCollection) else TASK if issubclass(cls, Task) else PERSISTABLE
        )
        self.name = cls.__name__
        self.values = _reader(self.fields)
        self.build = _builder(self)
        self._beside = _beside(cls, self.fields)

    def __reduce__(self) -> Any:
        return _layout_there, (self.cls,)  # the class goes to another process by value: there it is made again

    def schema(self, name: str | None = None) -> Schema:
        """Return the schema of the class as it is now, not yet stored."""
        fields = tuple(field for field in self.fields if field != "_others" or not self.generic)
        return Schema(0, class_tag(self.cls), name or self.cls.__name__, self.kind, fields)

    def checked_values(self, obj: Persistable) -> list[Any]:
        """Return the values of an object.  Raise UnstorableValue if it lacks one, or has more than its fields."""
        for name in self._beside:
            found = (
                vars(obj).keys() - {*self.fields} if name == "__dict__" else {name} if hasattr(obj, name) else ()
            )
            # A cached property stands there, too: it can be computed again.
            extra = [
                one
                for one in found
                if not (one.startswith("__") or hasattr(getattr(self.cls, one, None), "__set_name__"))
            ]
            if extra:
                raise UnstorableValue(
                    f"{self.cls.__qualname__}.{min(extra)} is not a field and would be lost: declare it in the class,"
                    " decorated with @attrs.define, or use a task's `extra`; nothing was written"
                )
        try:
            return self.values(obj)
        except AttributeError as error:
            raise UnstorableValue(
                f"{self.cls.__qualname__}: a field isn't set ({error}); nothing was written"
            ) from error


def _beside(cls: type, fields: tuple[str, ...]) -> tuple[str, ...]:
    """Return where an object of *cls* may have what is no field: `__dict__`, and slots that a class declares by hand."""
    found = {"__dict__"} if any("__dict__" in base.__dict__ for base in cls.__mro__) else set()
    for base in cls.__mro__[: cls.__mro__.index(Persistable)]:
        props = base.__dict__.get(
            "__attrs_props__"
        )  # since attrs 25.4; whoever decorates has attrs write the slots
        if "__attrs_attrs__" not in base.__dict__ or (props is not None and not props.is_slotted):
            slots = base.__dict__.get("__slots__", ())
            found |= {*([slots] if isinstance(slots, str) else slots)}
    return tuple(found - {*fields, "__weakref__"})


def _reader(fields: tuple[str, ...]) -> Callable[[Any], list[Any]]:
    """Return the function that takes an object apart; compiled, as `_builder` is."""
    parts = ", ".join(f"obj.{field}" for field in fields)
    return compiled(f"def values(obj):\n    return [{parts}]\n")  # type: ignore[no-any-return]


def _builder(layout: Layout) -> Callable[[list[Any], Any, int, int, Schema, int, int], Persistable]:
    """Return the function that builds an object."""
    kinds = [("state", "str"), ("tasks", "list")][: layout.kind]
    wrong = " or ".join(f"obj.{field}.__class__ is not {kind}" for field, kind in kinds) or "False"
    state = "obj.state" if layout.kind != PERSISTABLE else "''"
    targets = "".join(f"obj.{field}, " for field in layout.fields)
    source = f"""def build(values, store, number, revision, schema, home, checksum):
    obj = new(twin)
    {f"{targets} = values" if targets else "[] = values"}
    if {wrong}:
        raise TypeError
    obj._stamp = make(Stamp, (store, number, revision, {state}, schema, home, checksum, None))
    obj.__class__ = cls
    return obj
"""
    return compiled(  # type: ignore[no-any-return]
        source, new=object.__new__, make=tuple.__new__, Stamp=Stamp, twin=layout.twin, cls=layout.cls
    )


_LAYOUT: Final = "__gc3session_layout__"
"""The attribute of a class that holds its layout: so it lives as long as the class does."""


def _layout_there(cls: type[Persistable]) -> Layout | None:
    return cls.__dict__.get(_LAYOUT)


def layout_of(cls: type[Persistable]) -> Layout:
    """Return the layout of *cls*."""
    layout: Layout | None = cls.__dict__.get(_LAYOUT)
    if layout is None:
        layout = Layout(cls)
        type.__setattr__(cls, _LAYOUT, layout)
    return layout


def layout_for(schema: Schema) -> Layout:
    """Return the layout of the class that *schema* names, or of the generic class in its place."""
    cls = known_class(schema.tag)
    if cls is None or layout_of(cls).kind != schema.kind:
        cls = _GENERIC[schema.kind]
    return layout_of(cls)


def extras_of(obj: Persistable) -> tuple[Schema | None, dict[str, Any]]:
    """Return the schema that an object's record had, and those of its fields that the class doesn't have."""
    stamp = mark_of(obj)
    if isinstance(obj, Placeholder):
        return obj._schema, obj._others
    return (None, {}) if stamp is None else (stamp.schema, stamp.leftover or {})


def fill(obj: Persistable, schema: Schema, values: list[Any], revision: int, home: int) -> None:
    """Set the fields of *obj*, which has a stamp, from a record's values.

    Fields that the class doesn't have are kept with the object, new ones take their default.
    Raise LoadError if a new one has no default or the class's `upgrade_record` fails.
    """
    cls = type(obj)
    layout = layout_of(cls)
    own = layout.fields
    fields = dict(zip(schema.fields, values, strict=True))
    if own != schema.fields and not layout.generic:
        fields = _upgraded(cls, fields)
    leftover = {name: fields[name] for name in fields if name not in own} or None
    if layout.generic:
        fields |= {"_schema": schema, "_others": leftover or {}}
        own, leftover = (*own, "_schema"), None
    stamp = get_stamp(obj)
    set_fields(obj, {name: fields[name] for name in own if name in fields})
    for name in own:
        if name not in fields:
            object.__setattr__(obj, name, _default(cls, name, obj))
    state = obj.state if isinstance(obj, Task) else ""
    if isinstance(stamp, Stamp):
        stamp = stamp._replace(home=home)
    set_stamp(obj, stamp._replace(revision=revision, state=state, schema=schema, leftover=leftover))


def set_fields(obj: Persistable, fields: dict[str, Any]) -> None:
    """Set fields of *obj*; nothing is noted."""
    cls = type(obj)
    object.__setattr__(obj, "__class__", layout_of(cls).twin)
    try:
        for name, value in fields.items():
            setattr(obj, name, value)
    finally:
        obj.__class__ = cls


def _upgraded(cls: type[Persistable], fields: dict[str, Any]) -> dict[str, Any]:
    upgrade = getattr(cls, "upgrade_record", None)
    if upgrade is None:
        return fields
    try:
        upgraded = upgrade(dict(fields))
    except Exception as error:
        raise LoadError(f"{cls.__qualname__}.upgrade_record failed: {error!r}") from error
    if not isinstance(upgraded, dict):
        raise LoadError(f"{cls.__qualname__}.upgrade_record must return a dict, not {upgraded!r}")
    return upgraded


def _default(cls: type[Persistable], name: str, obj: Persistable) -> Any:
    default = getattr(attrs.fields(cls), name).default
    if default is attrs.NOTHING:
        raise LoadError(
            f"its record has no field {name!r}, which {cls.__qualname__} now has without a default:"
            " give it one, or write an upgrade_record"
        )
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return default.factory(obj) if default.takes_self else default.factory()
    return default
