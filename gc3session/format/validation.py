"""Schemas and records as FORMAT.md describes them: the reading half of the check.

Nothing here is shared with the codec, whose work is being checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

import attrs
import msgpack

_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, msgpack.Timestamp))
_DAMAGE: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
_PATHS: Final = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_ARRAYS: Final = (1, 2, 3)
_INT, _UUID, _ATTRS, _REFERENCE = 4, 12, 15, 16


class Fault(Exception):
    """What is being read is not as FORMAT.md says; the message says how."""


@attrs.frozen
class Finding:
    """A fault.

    Attributes:
        kind: which check has found it: 'directory', 'structure', 'format', 'schema', 'session', 'record',
            'index', 'late', 'state', 'sequence', 'mirror' or 'reference'.
        where: what is at fault: a file, a table's entry, a task's ID.
        message: how it is at fault.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


class SchemaFound(NamedTuple):
    """A schema that could be read."""

    tag: str
    name: str
    kind: int
    fields: tuple[str, ...]


class RecordFound(NamedTuple):
    """A record that could be read; *state* is None if it has none."""

    schema: int
    revision: int
    values: list[Any]


def unframed(number: int, data: bytes) -> Any:
    """Return what stands in a frame whose checksum begins with *number*.  Raise Fault if it is damaged."""
    if len(data) < 5:
        raise Fault("it is cut")
    if zlib.crc32(data[4:], number % 2**32) != int.from_bytes(data[:4], "big"):
        raise Fault("its checksum is wrong")
    return unpacked(data[4:])


def unpacked(data: bytes) -> Any:
    """Return the value that *data* are, extensions left as they are.  Raise Fault if they are none."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")
    except _DAMAGE as error:
        raise Fault(f"it is not msgpack ({error or type(error).__name__})") from error


def schema_found(key: bytes, data: bytes) -> SchemaFound:
    """Return the schema in an item of the table.  Raise Fault if there is none."""
    number = int.from_bytes(key, "big")
    if len(key) != 4 or not 0 < number < 1 << 31:
        raise Fault("its number is none")
    body = unframed(number, data)
    if not (isinstance(body, list) and len(body) == 4):
        raise Fault("it has not the four parts of a schema")
    tag, name, kind, fields = body
    if not (isinstance(tag, str) and isinstance(name, str) and name and type(kind) is int and 0 <= kind <= 2):
        raise Fault("its class, name or kind is none")
    if not (isinstance(fields, list) and all(isinstance(field, str) for field in fields)):
        raise Fault("its fields have no names")
    if len(set(fields)) < len(fields):
        raise Fault("it has two fields of one name")
    needed = ("state", "tasks")[:kind]
    if not set(needed) <= set(fields):
        raise Fault(
            f"it has no field {' and '.join(needed)!r}, though it is one of a {('', 'task', 'collection')[kind]}"
        )
    return SchemaFound(tag, name, kind, tuple(fields))


def record_found(number: int, data: bytes) -> RecordFound:
    """Return the record N.  Raise Fault if it can't be one; its values are not looked at."""
    body = unframed(number, data)
    if not (isinstance(body, list) and len(body) == 3):
        raise Fault("it has not the three parts of a record")
    schema, revision, values = body
    if type(schema) is not int or type(revision) is not int or revision < 1 or not isinstance(values, list):
        raise Fault("its schema, revision or values are none")
    return RecordFound(schema, revision, values)


def state_in(record: RecordFound, schema: SchemaFound) -> str:
    """Return the state of a record, '' if it has none.  Raise Fault if it doesn't fit its schema."""
    if len(record.values) != len(schema.fields):
        raise Fault(f"it has {len(record.values)} values for the {len(schema.fields)} fields of its schema")
    if schema.kind == 0:
        return ""
    state = record.values[schema.fields.index("state")]
    if not isinstance(state, str):
        raise Fault("its state is no text")
    if schema.kind == 2 and not isinstance(record.values[schema.fields.index("tasks")], list):
        raise Fault("its tasks are no list")
    return state


def check_values(record: RecordFound, refer: Callable[[int], None]) -> None:
    """Decode all values of a record, however deep; call *refer* with the N of each reference.

    Raise Fault for a value that is none.
    """
    pending: list[Any] = [value for value in record.values if type(value) not in _PLAIN]
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is list:
            pending += value
        elif kind is dict:
            pending += value
            pending += value.values()
        elif kind is not msgpack.ExtType:
            raise Fault(f"it has a {kind.__name__}")
        elif value.code == _REFERENCE:
            if len(value.data) != 8:
                raise Fault("it has a reference to no number")
            refer(int.from_bytes(value.data, "big"))
        elif value.code in (_INT, _UUID):
            if len(value.data) != 16 if value.code == _UUID else not value.data:
                raise Fault(f"it has {'a UUID' if value.code == _UUID else 'an int'} of {len(value.data)} bytes")
        elif value.code in _CHECKS or value.code in _ARRAYS:
            inner = unpacked(value.data)
            try:
                pending += inner if value.code in _ARRAYS and type(inner) is list else _CHECKS[value.code](inner)
            except (*_DAMAGE, InvalidOperation, KeyError) as error:
                raise Fault(f"it has a value of type {value.code} that is none ({error})") from error
        # What has another code is kept by everybody as its code and bytes.


def _zone(zone: Any) -> None:
    """Raise ValueError or TypeError if *zone* is no time zone."""
    if zone is None or isinstance(zone, str):
        return
    offset = zone[0] if isinstance(zone, list) and len(zone) == 2 and isinstance(zone[1], str) else zone
    if type(offset) is not int or not abs(timedelta(microseconds=offset)) < timedelta(days=1):
        raise ValueError("a time zone")


def _datetime(parts: Any) -> list[Any]:
    *fields, fold, zone = parts
    datetime(*fields, fold=fold)
    _zone(zone)
    return _exactly(fields, 7)


def _time(parts: Any) -> list[Any]:
    *fields, fold, zone = parts
    time(*fields, fold=fold)
    _zone(zone)
    return _exactly(fields, 4)


def _exactly(parts: list[Any], count: int) -> list[Any]:
    if type(parts) is not list or len(parts) != count:
        raise ValueError(f"{count} parts are needed")
    return []


def _date(parts: Any) -> list[Any]:
    date(*parts)
    return []


def _timedelta(parts: Any) -> list[Any]:
    days, seconds, microseconds = parts
    timedelta(days, seconds, microseconds)
    return []


def _complex(parts: Any) -> list[Any]:
    _exactly(parts, 2)
    complex(*parts)
    return []


def _decimal(text: Any) -> list[Any]:
    if not isinstance(text, str):
        raise TypeError("text is needed")
    Decimal(text)
    return []


def _fraction(parts: Any) -> list[Any]:
    _exactly(parts, 2)
    numerator, denominator = (
        int.from_bytes(p.data, "big", signed=True) if type(p) is msgpack.ExtType else p for p in parts
    )
    if type(numerator) is not int or type(denominator) is not int or denominator == 0:
        raise ValueError("a numerator and a denominator are needed")
    return []


def _path(parts: Any) -> list[Any]:
    name, text = parts
    if name not in _PATHS or not isinstance(text, str):
        raise ValueError("a path's class and text are needed")
    return []


def _enum(parts: Any) -> list[Any]:
    tag, told = parts
    if not isinstance(tag, str):
        raise TypeError("the tag of a class is needed")
    return [told]


def _attrs(parts: Any) -> list[Any]:
    tag, names, values = parts
    if not isinstance(tag, str) or not all(isinstance(name, str) for name in names) or len(names) != len(values):
        raise ValueError("a tag, names and as many values are needed")
    return list(values)


def _scalar(parts: Any) -> list[Any]:
    dtype, data = parts
    if not isinstance(data, (bytes, str) if dtype is None else bytes) or not isinstance(
        dtype, (str, list, type(None))
    ):
        raise TypeError("a dtype and bytes are needed")
    return []


def _array(parts: Any) -> list[Any]:
    dtype, shape, data = parts
    sound = (
        isinstance(dtype, (str, list))
        and isinstance(data, bytes)
        and all(type(n) is int and n >= 0 for n in shape)
    )
    if not sound:
        raise TypeError("a dtype, a shape and bytes are needed")
    return []


_CHECKS: Final[dict[int, Callable[[Any], list[Any]]]] = {
    5: _complex,
    6: _datetime,
    7: _date,
    8: _time,
    9: _timedelta,
    10: _decimal,
    11: _fraction,
    13: _path,
    14: _enum,
    _ATTRS: _attrs,
    17: _scalar,
    18: _array,
}
"""What stands in an extension, by its code: each returns the values in it that are to be looked at."""
