"""Records: attrs object <-> the values of a record.

A *layout* knows, for one class, how its objects are taken apart and built; format/frame.py draws
the bytes that the values stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ..errors import LoadError
from ..format.schema import COLLECTION, PERSISTABLE, TASK, Schema
from ..tasks import (
    SLOT_SETTERS,
    Generic,
    GenericCollection,
    GenericPersistable,
    GenericTask,
    Persistable,
    Task,
    TaskCollection,
    class_tag,
    field_names,
    known_class,
)

_GENERIC = (GenericPersistable, GenericTask, GenericCollection)


class Layout:
    """How the objects of one class are taken apart and built; one for each class.

    Attributes:
        cls, quiet: the class and its quiet twin (see tasks.py).
        fields: the names of its fields.
        kind: PERSISTABLE, TASK or COLLECTION.
        generic: the class stands in for one that the program doesn't have.
        values: object -> list of the values.
        build: (values, store, N, revision, schema) -> a new object, saved and unchanged.
        name: what the IDs of its objects begin with.
    """

    def __init__(self, cls: type[Persistable]) -> None:
        self.cls = cls
        self.quiet = cls._quiet
        self.fields = field_names(cls)
        self.kind = (
            COLLECTION if issubclass(cls, TaskCollection) else TASK if issubclass(cls, Task) else PERSISTABLE
        )
        self.generic = issubclass(cls, Generic)
        self.name = cls.__name__
        self.values = _reader(self.fields)
        self.build = _builder(self)

    def schema(self, name: str | None = None) -> Schema:
        """Return the schema of the class as it is now, not yet stored."""
        return Schema(0, class_tag(self.cls), name or self.cls.__name__, self.kind, self.fields)


def _reader(fields: tuple[str, ...]) -> Callable[[Any], list[Any]]:
    """Return the function that takes an object apart; compiled, as `_builder` is."""
    parts = ", ".join(f"obj.{field}" for field in fields)
    return _compiled(f"def values(obj):\n    return [{parts}]\n")  # type: ignore[no-any-return]


def _compiled(source: str, **names: Any) -> Any:
    """Return the one function that *source* defines.

    The source holds nothing but the field names of a class that the program has defined; attrs
    makes __init__ in the same way.
    """
    before = {*names, "__builtins__"}
    exec(source, names)
    return next(value for name, value in names.items() if name not in before)


def _builder(layout: Layout) -> Callable[[list[Any], Any, int, int, Schema], Persistable]:
    """Return the function that builds an object."""
    state = "obj.state" if layout.kind != PERSISTABLE else "''"
    targets = "".join(f"obj.{field}, " for field in layout.fields)
    source = f"""def build(values, store, number, revision, schema):
    obj = new(quiet)
    {f"{targets} = values" if targets else "[] = values"}
    obj._store = store
    obj._number = number
    obj._revision = revision
    obj._stored_state = {state}
    obj._schema = schema
    obj._leftover = None
    obj.changed = False
    obj.__class__ = cls
    return obj
"""
    return _compiled(source, new=object.__new__, quiet=layout.quiet, cls=layout.cls)  # type: ignore[no-any-return]


def note_stored(obj: Persistable, store: Any, number: int, state: str, schema: Schema) -> None:
    """Note that an object, which was new, is stored."""
    set_store(obj, store)
    set_number(obj, number)
    set_revision(obj, 1)
    set_stored_state(obj, state)
    set_schema(obj, schema)


set_store, set_number, set_revision, set_stored_state, set_schema = SLOT_SETTERS


def layout_of(cls: type[Persistable]) -> Layout:
    """Return the layout of *cls*."""
    layout: Layout | None = cls._layout
    if layout is None or layout.cls is not cls:  # not inherited
        layout = cls._layout = Layout(cls)
    return layout


def field_values(obj: Persistable) -> list[Any]:
    """Return the values of an object's fields; None for one that isn't set."""
    return [getattr(obj, name, None) for name in layout_of(type(obj)).fields]


def layout_for(schema: Schema) -> Layout:
    """Return the layout of the class that *schema* names, or of the generic class in its place."""
    cls = known_class(schema.tag)
    if cls is None or layout_of(cls).kind != schema.kind:
        cls = _GENERIC[schema.kind]
    return layout_of(cls)


def fill(obj: Persistable, schema: Schema, values: list[Any], revision: int) -> None:
    """Set the fields of *obj* from a record's values.

    Fields that the class doesn't have are kept with the object, new ones take their default.
    Raise LoadError if a new one has no default or the class's `upgrade_record` fails.
    """
    cls = type(obj)
    layout = layout_of(cls)
    own = layout.fields
    fields = dict(zip(schema.fields, values, strict=True))
    if own != schema.fields:
        fields = _upgraded(cls, fields)
    object.__setattr__(obj, "__class__", layout.quiet)
    try:
        obj._schema = schema
        obj._leftover = {name: fields[name] for name in fields if name not in own} or None
        missing = [name for name in own if name not in fields]
        for name in own:
            if name in fields:
                setattr(obj, name, fields[name])
        for name in missing:
            setattr(obj, name, _default(cls, name, obj))
        obj._revision = revision
        obj._stored_state = obj.state if layout.kind != PERSISTABLE else ""  # type: ignore[attr-defined]
        obj.changed = False
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
