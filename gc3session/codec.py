"""Records: attrs object <-> bytes.

A record is a checksum and a msgpack array::

    +---------+----------------------------------------------------+
    | CRC-32  | [ schema number, revision, [ value, value, ... ] ] |
    | 4 bytes | msgpack                                            |
    +---------+----------------------------------------------------+

- The CRC-32 (zlib's, big-endian) is of the msgpack bytes and starts from N modulo 2**32, so
  that a record in another's place is found, too.
- The schema says what the values are: the class's tag, the name that its IDs begin with, its
  kind, and the field names.  It is stored once, so that a record is readable without its class.
- The revision is 1 for a new object and grows by 1 with each save.
- The values stand in the order of the schema's fields; values.py has their types.

A schema's own bytes have the same frame (with the schema's number for N), around
`[ tag, name, kind, [ field name, ... ] ]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import attrs
import msgpack

from .errors import CorruptRecord, LoadError
from .tasks import (
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
from .values import ATTRS, FROZENSET, RECORD_KEY, REFERENCE, SET, TUPLE

PERSISTABLE, TASK, COLLECTION = range(3)
"""The kinds of a schema: which of the three the class is, for those who don't have it."""

_GENERIC = (GenericPersistable, GenericTask, GenericCollection)


def seal(number: int, body: bytes) -> bytes:
    """Return *body* with its checksum in front."""
    return crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") + body


def unseal(number: int, sealed: bytes) -> bytes:
    """Return what `seal` was given.  Raise CorruptRecord if it is damaged."""
    body = sealed[4:]
    if crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") != sealed[:4]:
        raise CorruptRecord("its checksum is wrong: the bytes on the disk are damaged")
    return body


@attrs.frozen
class Schema:
    """What the values of a record are.

    Attributes:
        number: by which records refer to it; 0 before it is stored.
        tag: the class, as `tasks.class_tag` gives it.
        name: what the IDs of its objects begin with.
        kind: PERSISTABLE, TASK or COLLECTION.
        fields: the field names, in the order of the values.
    """

    number: int = attrs.field(eq=False)
    tag: str
    name: str
    kind: int
    fields: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return what is stored of the schema."""
        return seal(self.number, msgpack.packb([self.tag, self.name, self.kind, list(self.fields)]))

    @classmethod
    def from_bytes(cls, number: int, data: bytes) -> Schema:
        """Return the schema of that *number*.  Raise CorruptRecord if *data* is not one."""
        try:
            tag, name, kind, fields = msgpack.unpackb(unseal(number, data))
            if not (isinstance(tag, str) and isinstance(name, str) and kind in range(3)):
                raise ValueError("its parts have the wrong types")
            return cls(number, tag, name, kind, tuple(map(str, fields)))
        except (ValueError, TypeError, msgpack.UnpackException, CorruptRecord) as error:
            raise CorruptRecord(f"schema {number} is damaged: {error}") from error


def read_header(record: bytes) -> tuple[int, int, int]:
    """Return a record's schema number and revision, and where its values begin.

    Raise CorruptRecord if there is no such header.  The checksum is not looked at.
    """
    unpacker = msgpack.Unpacker()
    unpacker.feed(record[4:26])
    try:
        length, number, revision = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise CorruptRecord("it has no header") from error
    if length != 3 or type(number) is not int or type(revision) is not int:
        raise CorruptRecord("it has no header")
    return number, revision, 4 + unpacker.tell()


def schema_number(record: bytes) -> int:
    """Return the schema number of a record: the short way for the numbers below 128."""
    number = record[5] if len(record) > 5 else 0x80
    return number if number < 0x80 and record[4] == 0x93 else read_header(record)[0]


def revision_of(record: bytes) -> int:
    """Return a record's revision, -1 if it can't be told: the short way for the numbers below 128."""
    if len(record) > 6 and record[5] < 0x80 and record[6] < 0x80:
        return record[6]
    try:
        return read_header(record)[1]
    except CorruptRecord:
        return -1


def values_of(number: int, record: bytes) -> tuple[int, int, list[Any]]:
    """Return a record's schema number, revision and values, extensions left as they are.

    Raise CorruptRecord if it is damaged.
    """
    try:
        schema, revision, values = msgpack.unpackb(
            unseal(number, record), strict_map_key=False, unicode_errors="surrogatepass"
        )
        if type(schema) is not int or type(revision) is not int or type(values) is not list:
            raise ValueError("its parts have the wrong types")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"it is not a record: {error}") from error
    return schema, revision, values


def references(value: Any) -> list[int]:
    """Return the Ns of the references in one field's value (as of `values_of`)."""
    found: list[int] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, msgpack.ExtType):
            if item.code == REFERENCE and len(item.data) == 8:
                found.append(RECORD_KEY.unpack(item.data)[0])
            elif item.code in (TUPLE, SET, FROZENSET, ATTRS):
                try:
                    inner = msgpack.unpackb(item.data, strict_map_key=False, unicode_errors="surrogatepass")
                except (ValueError, TypeError, msgpack.UnpackException):
                    continue  # it isn't what its code says, and refers to nothing
                pending.append(inner)
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += item
            pending += item.values()
    return found


# -- classes ------------------------------------------------------------------


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
    layout = cls._layout
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


def parse_id(id_: object) -> tuple[str, int] | None:
    """Return the class name and N of an ID, or None if it can't be one."""
    if not isinstance(id_, str):
        return None
    name, dot, digits = id_.rpartition(".")
    if not (dot and name and digits.isascii() and digits.isdigit() and digits[0] != "0" and len(digits) < 20):
        return None
    number = int(digits)
    return (name, number) if number < 1 << 63 else None
