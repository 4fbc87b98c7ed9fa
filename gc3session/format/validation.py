"""Schemas and records, read strictly by FORMAT.md for the check.

This shares no code with the codec, because it is the codec's work that is checked.
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
_ARRAYS: Final = (1, 2, 3)  # types of extension: tuple, set, frozenset
_INT, _UUID, _ATTRS, _REFERENCE = 4, 12, 15, 16


class Fault(Exception):
    """What is read is not as FORMAT.md says. The message says what is wrong with it."""


@attrs.frozen
class Finding:
    """Something that is wrong with a session.

    Attributes:
        kind: the check that has found it: 'directory', 'structure', 'format', 'schema', 'session', 'record',
            'index', 'late', 'state', 'sequence', 'mirror' or 'reference'.
        where: the file, table entry or task concerned.
        message: what is wrong with it.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


class ParsedSchema(NamedTuple):
    """A schema that could be read."""

    tag: str
    name: str
    kind: int
    fields: tuple[str, ...]


class ParsedRecord(NamedTuple):
    """A record that could be read; its values are still packed where they are extensions."""

    schema: int
    revision: int
    values: list[Any]


def unframe(number: int, data: bytes) -> Any:
    """Return the value in a frame whose checksum begins with *number*. Raise Fault if it is damaged."""
    if len(data) < 5:
        raise Fault("it is cut")
    if zlib.crc32(data[4:], number % 2**32) != int.from_bytes(data[:4], "big"):
        raise Fault("its checksum is wrong")
    return _unpack(data[4:])


def _unpack(data: bytes) -> Any:
    """Return the value of some msgpack, with extensions left packed. Raise Fault if it isn't msgpack."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")
    except _DAMAGE as error:
        raise Fault(f"it is not msgpack ({error or type(error).__name__})") from error


def parse_schema(key: bytes, data: bytes) -> ParsedSchema:
    """Return the schema in an item of the table `schemas`. Raise Fault if there is none."""
    number = int.from_bytes(key, "big")
    if len(key) != 4 or not 0 < number < 1 << 31:
        raise Fault("its key is no schema number")
    body = unframe(number, data)
    if not (isinstance(body, list) and len(body) == 4):
        raise Fault("it doesn't have the four parts of a schema")
    tag, name, kind, fields = body
    if not (isinstance(tag, str) and isinstance(name, str) and name and type(kind) is int and 0 <= kind <= 2):
        raise Fault("its class, name or kind can't be one")
    if not (isinstance(fields, list) and all(isinstance(field, str) for field in fields)):
        raise Fault("the names of its fields aren't text")
    if len(set(fields)) < len(fields):
        raise Fault("two of its fields have the same name")
    needed = ("state", "tasks")[:kind]
    if not set(needed) <= set(fields):
        raise Fault(
            f"it is the schema of a {('', 'task', 'collection')[kind]}, but lacks the field {' or '.join(needed)}"
        )
    return ParsedSchema(tag, name, kind, tuple(fields))


def parse_record(number: int, data: bytes) -> ParsedRecord:
    """Return the record N. Raise Fault if it can't be one. Its values are not checked."""
    body = unframe(number, data)
    if not (isinstance(body, list) and len(body) == 3):
        raise Fault("it doesn't have the three parts of a record")
    schema, revision, values = body
    if type(schema) is not int or type(revision) is not int or revision < 1 or not isinstance(values, list):
        raise Fault("its schema, revision or values can't be right")
    return ParsedRecord(schema, revision, values)


def state_in(record: ParsedRecord, schema: ParsedSchema) -> str:
    """Return the state of a record, '' if its kind has none. Raise Fault if it doesn't fit its schema."""
    if len(record.values) != len(schema.fields):
        raise Fault(f"it has {len(record.values)} values for the {len(schema.fields)} fields of its schema")
    if schema.kind == 0:
        return ""
    state = record.values[schema.fields.index("state")]
    if not isinstance(state, str):
        raise Fault("its state isn't text")
    if schema.kind == 2 and not isinstance(record.values[schema.fields.index("tasks")], list):
        raise Fault("its tasks aren't a list")
    return state


def check_values(record: ParsedRecord, refer: Callable[[int], None]) -> None:
    """Decode all values of a record, however deep; call *refer* with the N of each reference.

    Raise Fault if one of them can't be decoded.
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
                raise Fault("it has a reference that isn't a number of 8 bytes")
            refer(int.from_bytes(value.data, "big"))
        elif value.code in (_INT, _UUID):
            if len(value.data) != 16 if value.code == _UUID else not value.data:
                raise Fault(f"it has {'a UUID' if value.code == _UUID else 'an int'} of {len(value.data)} bytes")
        elif value.code in _CHECKS or value.code in _ARRAYS:
            inner = _unpack(value.data)
            try:
                pending += inner if value.code in _ARRAYS and type(inner) is list else _CHECKS[value.code](inner)
            except (*_DAMAGE, InvalidOperation, KeyError) as error:
                raise Fault(f"it has an extension of type {value.code} that can't be decoded ({error})") from error
        # Every reader keeps an extension of another type as it is, so there is nothing to check.


def _zone(zone: Any) -> None:
    """Raise ValueError or TypeError if *zone* can't be a time zone."""
    if zone is None or isinstance(zone, str):
        return
    offset = zone[0] if isinstance(zone, list) and len(zone) == 2 and isinstance(zone[1], str) else zone
    if type(offset) is not int or not abs(timedelta(microseconds=offset)) < timedelta(days=1):
        raise ValueError("a time zone")


def _exactly(parts: Any, count: int) -> list[Any]:
    if type(parts) is not list or len(parts) != count:
        raise ValueError(f"{count} parts are needed")
    return parts


def _built(cls: Callable[..., object], count: int) -> Callable[[Any], list[Any]]:
    """Return the check of what *cls* makes of *count* parts."""

    def check(parts: Any) -> list[Any]:
        cls(*_exactly(parts, count))
        return []

    return check


def _clock(cls: Callable[..., object], count: int) -> Callable[[Any], list[Any]]:
    """Return the check of what *cls* makes of *count* parts, a fold and a time zone."""

    def check(parts: Any) -> list[Any]:
        *fields, fold, zone = _exactly(parts, count + 2)
        cls(*fields, fold=fold)
        _zone(zone)
        return []

    return check


def _decimal(text: Any) -> list[Any]:
    if not isinstance(text, str):
        raise TypeError("text is needed")
    Decimal(text)
    return []


def _fraction(parts: Any) -> list[Any]:
    numerator, denominator = (
        int.from_bytes(p.data, "big", signed=True) if type(p) is msgpack.ExtType else p for p in _exactly(parts, 2)
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
    tag, value = parts
    if not isinstance(tag, str):
        raise TypeError("the tag of a class is needed")
    return [value]


def _attrs(parts: Any) -> list[Any]:
    tag, names, values = parts
    if not isinstance(tag, str) or not all(isinstance(name, str) for name in names) or len(names) != len(values):
        raise ValueError("a tag, names and as many values are needed")
    return list(values)


def _scalar(parts: Any) -> list[Any]:
    dtype, data = parts
    sound = isinstance(data, (bytes, str)) if dtype is None else isinstance(data, bytes)
    if not sound or not isinstance(dtype, (str, list, type(None))):
        raise TypeError("a dtype and bytes are needed")
    return []


def _array(parts: Any) -> list[Any]:
    dtype, shape, data = parts
    sizes = all(type(n) is int and n >= 0 for n in shape)
    if not (sizes and isinstance(dtype, (str, list)) and isinstance(data, bytes)):
        raise TypeError("a dtype, a shape and bytes are needed")
    return []


_CHECKS: Final[dict[int, Callable[[Any], list[Any]]]] = {
    5: _built(complex, 2),
    6: _clock(datetime, 7),
    7: _built(date, 3),
    8: _clock(time, 4),
    9: _built(timedelta, 3),
    10: _decimal,
    11: _fraction,
    13: _path,
    14: _enum,
    _ATTRS: _attrs,
    17: _scalar,
    18: _array,
}
"""Checks of the contents of extensions, by their types; each returns the values inside that need a check, too."""
