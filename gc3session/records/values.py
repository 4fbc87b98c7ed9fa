"""The values that msgpack has no type for: Python value <-> msgpack extension.

None, bool, int of 64 bits, float, str, bytes, list and dict are msgpack's own.  Every other
type has an extension code; its data are msgpack again, unless the table says otherwise::

    code  type         data
       1  tuple        array of the items
       2  set          array of the items, sorted by their packed bytes
       3  frozenset    the same
       4  int          two's complement, big-endian, as few bytes as it needs (not msgpack)
       5  complex      array: real, imaginary
       6  datetime     array: year, month, day, hour, minute, second, microsecond, fold, zone
       7  date         array: year, month, day
       8  time         array: hour, minute, second, microsecond, fold, zone
       9  timedelta    array: days, seconds, microseconds
      10  Decimal      str
      11  Fraction     array: numerator, denominator
      12  UUID         its 16 bytes (not msgpack)
      13  path         array: class name, str
      14  enum member  array: class tag, name (of a Flag: class tag, value)
      15  attrs object array: class tag, array of the field names, array of the values
      16  reference    N of the record, 8 bytes, big-endian (not msgpack)
      17  NumPy scalar array: dtype, bytes (of a NumPy str or bytes: nil, the str or bytes)
      18  NumPy array  array: dtype, shape, bytes in C order

A zone is nil, or the offset from UTC in microseconds, or an array of that and a name, or the
key of a `zoneinfo.ZoneInfo`.  A dtype is as `numpy.lib.format.dtype_to_descr` gives it, with
lists for tuples.  Strings are UTF-8 in which lone surrogates may stand.

Nothing is imported or called on behalf of a record: an enum or attrs class is used only if
the program has defined it, NumPy only if the program has imported it.  What can't be built is
given as an `Opaque` value, which is written back as the same bytes.
"""

from __future__ import annotations

import enum
import functools
import math
import os
import pathlib
import re
import reprlib
import struct
import sys
import zoneinfo
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NoReturn
from uuid import UUID
from weakref import WeakValueDictionary

import attrs
import msgpack

from ..errors import CorruptRecord, Error, UnstorableValue
from ..format.frame import RECORD_KEY
from ..tasks import Persistable, class_of_module, class_tag, field_names

MAX_DEPTH = 100
"""How deep values other than lists and dicts may be nested; of those msgpack takes some 1,000."""

(TUPLE, SET, FROZENSET, INT, COMPLEX, DATETIME, DATE, TIME, TIMEDELTA) = range(1, 10)
(DECIMAL, FRACTION, UUID_, PATH, ENUM, ATTRS, REFERENCE, NUMPY_SCALAR, NUMPY_ARRAY) = range(10, 19)

_PATHS = {
    cls.__name__: cls
    for cls in (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
}
# Enum and attrs classes that were packed here: a class inside a function is found no other way.
_packed: WeakValueDictionary[str, type] = WeakValueDictionary()
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


@attrs.frozen
class Opaque:
    """A value that this program can't build; it is written back as it was read.

    Attributes:
        code: the msgpack extension code.
        data: its bytes.
        why: what is missing.
    """

    code: int
    data: bytes = attrs.field(repr=False)
    why: str = attrs.field(default="", eq=False)


class _Unpackable(Exception):
    """Raised inside the packer for a value that can't be packed."""


UNPACKABLE: Final = (_Unpackable, ValueError, OverflowError, RecursionError, TypeError)


# -- Python value -> bytes ----------------------------------------------------


class Encoder:
    """Packs values.  *refer* gives the N of a Persistable inside another.

    One encoder is used by one thread at a time.

    Attributes:
        packer: packs any value that `pack` does, but explains nothing; raises UNPACKABLE.
    """

    def __init__(self, refer: Callable[[Persistable], int]) -> None:
        self._refer = refer
        self._depth = 0
        self._packers = [self._new_packer(1 << 16)]
        self.packer = self._packers[0]

    def _new_packer(self, size: int, unicode_errors: str | None = None) -> msgpack.Packer:
        return msgpack.Packer(
            default=self._extension,
            strict_types=True,
            use_bin_type=True,
            unicode_errors=unicode_errors,
            buf_size=size,
        )

    def quick_pack(self, value: Any) -> bytes:
        """Return the bytes of *value*; raise one of UNPACKABLE, which explains nothing, if it can't be packed."""
        self._depth = 0
        return self._packers[0].pack(value)  # type: ignore[no-any-return]

    def pack(self, value: Any, parts: Callable[[], Iterable[tuple[str, Any]]]) -> bytes:
        """Return the bytes of *value*.

        Raise UnstorableValue if it holds something that can't be stored, naming the place:
        *parts* gives the names of the parts of *value*, and the parts.
        """
        self._depth = 0
        try:
            packed: bytes = self._packers[0].pack(value)
        except UnicodeEncodeError:
            packed = self._pack_surrogates(value, parts)
        except UNPACKABLE as error:
            self._explain(parts, error)

        if may_hold_bytes(packed) and holds_bytearray(value):
            self._find_unstorable(parts)
        return packed

    def _pack_surrogates(self, value: Any, parts: Callable[[], Iterable[tuple[str, Any]]]) -> bytes:
        # Slower for every str, so it is done only for values that need it.
        self._packers = [self._new_packer(256, "surrogatepass") for _ in range(MAX_DEPTH + 1)]
        self._depth = 0
        try:
            return self._packers[0].pack(value)  # type: ignore[no-any-return]
        except UNPACKABLE as error:
            self._explain(parts, error)
        finally:
            self._packers = [self.packer]

    def _explain(self, parts: Callable[[], Iterable[tuple[str, Any]]], error: Exception) -> NoReturn:
        self._depth = 0
        self._packers = [self._new_packer(1 << 16)]  # whatever the failure left in them
        self.packer = self._packers[0]
        if isinstance(error, Error):
            raise error
        self._find_unstorable(parts)
        raise UnstorableValue(f"{error}; nothing was written") from error

    @staticmethod
    def _find_unstorable(parts: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Raise UnstorableValue if one of *parts* can't be stored."""
        for where, part in parts():
            problem = _find_problem(part, where, 0, set())
            if problem:
                raise UnstorableValue(f"{problem[0]}: {problem[1]}; nothing was written") from None

    def _inner(self, value: Any) -> bytes:
        """Pack *value* while an outer value is being packed."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unpackable
        if self._depth == len(self._packers):
            self._packers.append(self._new_packer(256))
        packed = self._packers[self._depth].pack(value)
        self._depth -= 1
        return packed  # type: ignore[no-any-return]

    def _extension(self, value: Any) -> msgpack.ExtType:
        """Called by msgpack for whatever has no type of its own there."""
        cls = type(value)
        convert = _CONVERT.get(cls)
        if convert is not None:
            code, data = convert(value)
            return msgpack.ExtType(code, data if type(data) is bytes else self._inner(data))
        if cls is set or cls is frozenset:
            items = sorted(self._inner(item) for item in value)
            return msgpack.ExtType(SET if cls is set else FROZENSET, self._array_of(items))
        if isinstance(value, Persistable):
            return msgpack.ExtType(REFERENCE, RECORD_KEY.pack(self._refer(value)))
        if isinstance(value, enum.Enum):
            told = value.value if isinstance(value, enum.Flag) else value.name
            return msgpack.ExtType(ENUM, self._inner([_tag(cls), told]))
        numpy = sys.modules.get("numpy")
        if numpy is not None and (cls is numpy.ndarray or isinstance(value, numpy.generic)):
            return msgpack.ExtType(*self._numpy(numpy, value))
        if _is_attrs(cls):
            names = field_names(cls)
            try:
                values = [getattr(value, name) for name in names]
            except AttributeError as error:  # one isn't set
                raise _Unpackable from error
            return msgpack.ExtType(ATTRS, self._inner([_tag(cls), list(names), values]))
        raise _Unpackable

    def _array_of(self, items: list[bytes]) -> bytes:
        header = msgpack.Packer(autoreset=False)
        header.pack_array_header(len(items))
        return header.bytes() + b"".join(items)  # type: ignore[no-any-return]

    def _numpy(self, numpy: Any, value: Any) -> tuple[int, bytes]:
        if type(value) is numpy.str_:  # as bytes these two would lose NULs at the end
            return NUMPY_SCALAR, self._inner([None, "".join(value)])
        if type(value) is numpy.bytes_:
            return NUMPY_SCALAR, self._inner([None, b"".join([value])])
        dtype = value.dtype
        listed = None if dtype.hasobject else _listed(numpy.lib.format.dtype_to_descr(dtype))
        scalar = isinstance(value, numpy.generic)
        if listed is None or _dtype(numpy, listed).type is not (type(value) if scalar else dtype.type):
            raise _Unpackable  # such as a numpy.record, whose type its dtype alone doesn't tell
        if scalar:
            return NUMPY_SCALAR, self._inner([listed, value.tobytes()])
        return NUMPY_ARRAY, self._inner([listed, list(value.shape), value.tobytes()])


def may_hold_bytes(packed: bytes) -> bool:
    """Return whether packed bytes may have a `bytes` in them: msgpack packs a bytearray as one."""
    return 0xC4 in packed or 0xC5 in packed or 0xC6 in packed  # three times as fast as with bytes


def holds_bytearray(value: Any) -> bool:
    """Return whether a value that msgpack has packed holds a bytearray or memoryview."""
    pending = [value]  # no recursion: lists may be nested deeper than Python calls
    while pending:
        item = pending.pop()
        cls = type(item)
        if cls in _PLAIN:
            continue
        if cls is dict:
            pending += item
            pending += item.values()
        elif cls in (list, tuple, set, frozenset):
            pending += item
        elif cls in (bytearray, memoryview):
            return True
        elif _is_attrs(cls) and not issubclass(cls, Persistable):
            pending += [getattr(item, name) for name in field_names(cls)]
    return False


def _is_attrs(cls: type) -> bool:
    """Return whether the objects of *cls* are the values of its attrs fields and nothing else."""
    heap_type = 1 << 9  # of a class that Python code has made
    return "__attrs_attrs__" in cls.__dict__ and all(
        base is object or base.__flags__ & heap_type for base in cls.__mro__
    )


def _tag(cls: type) -> str:
    tag = class_tag(cls)
    _packed[tag] = cls
    return tag


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None) // timedelta(microseconds=1)
        name = zone.tzname(None)
        return offset if name == timezone(zone.utcoffset(None)).tzname(None) else [offset, name]
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return zone.key
    raise _Unpackable


_CONVERT: dict[type, Callable[[Any], tuple[int, Any]]] = {
    tuple: lambda v: (TUPLE, [*v]),
    int: lambda v: (INT, v.to_bytes((v.bit_length() + 8) // 8, "big", signed=True)),
    complex: lambda v: (COMPLEX, [v.real, v.imag]),
    datetime: lambda v: (
        DATETIME,
        [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.fold, _zone(v.tzinfo)],
    ),
    date: lambda v: (DATE, [v.year, v.month, v.day]),
    time: lambda v: (TIME, [v.hour, v.minute, v.second, v.microsecond, v.fold, _zone(v.tzinfo)]),
    timedelta: lambda v: (TIMEDELTA, [v.days, v.seconds, v.microseconds]),
    Decimal: lambda v: (DECIMAL, str(v)),
    Fraction: lambda v: (FRACTION, [v.numerator, v.denominator]),
    UUID: lambda v: (UUID_, v.bytes),
    Opaque: lambda v: (v.code, v.data),
    **dict.fromkeys(_PATHS.values(), lambda v: (PATH, [type(v).__name__, str(v)])),
}


def _find_problem(value: Any, where: str, depth: int, above: set[int]) -> tuple[str, str] | None:
    """Return the place of the first part of *value* that can't be stored, and what it is."""
    cls = type(value)
    if cls in _PLAIN or isinstance(value, Persistable):
        return None
    if id(value) in above:
        return where, f"a {cls.__name__} that contains itself can't be stored"
    if depth > MAX_DEPTH:
        return where, "values nested as deep as this can't be stored"
    parts: list[tuple[str, Any]] = []
    if cls in (list, tuple):
        parts = [(f"{where}[{i}]", item) for i, item in enumerate(value)]
    elif cls in (set, frozenset):
        parts = [(f"{where}{{{reprlib.repr(item)}}}", item) for item in value]
    elif cls is dict:
        parts = [(f"{where} key {reprlib.repr(key)}", key) for key in value]
        parts += [(f"{where}[{reprlib.repr(key)}]", item) for key, item in value.items()]
    elif _is_attrs(cls):
        unset = [name for name in field_names(cls) if not hasattr(value, name)]
        if unset:
            return f"{where}.{unset[0]}", "a field that isn't set can't be stored"
        parts = [(f"{where}.{name}", getattr(value, name)) for name in field_names(cls)]
    for place, part in parts:
        problem = _find_problem(part, place, depth + 1, above | {id(value)})
        if problem:
            return problem
    if parts or (cls not in (bytearray, memoryview) and _packs(value)):
        return None
    if cls in (datetime, time):
        return where, f"a {cls.__name__} with the time zone {value.tzinfo!r} can't be stored; use zoneinfo"
    article = "an" if cls.__name__[0].lower() in "aeiou" else "a"
    return where, f"{article} {cls.__name__} can't be stored"


def _packs(value: Any) -> bool:
    try:
        Encoder(lambda obj: 0).packer.pack(value)
    except UnicodeEncodeError:
        return True  # a surrogate: see Encoder.pack
    except UNPACKABLE:
        return False
    return True


# -- bytes -> Python value ----------------------------------------------------


class Decoder:
    """Unpacks values.  *resolve* gives the object for the N of a reference.

    With *checking* a value that needs the program (its classes, NumPy) or more time than its bytes is
    `Opaque` once its parts have been found right: so a check finds the same whoever runs it.
    One decoder is used by one thread at a time.
    """

    def __init__(self, resolve: Callable[[int], Any], *, checking: bool = False) -> None:
        self._resolve = resolve
        self._checking = checking
        self._depth = 0

    def unpack(self, data: bytes) -> Any:
        """Return the value that *data* are the bytes of.  Raise CorruptRecord if none."""
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH + 1:  # each takes 40 KB of the C stack, whose end would end the process
                raise CorruptRecord("its values are nested too deeply")
            try:
                return _unpackb(data, ext_hook=self.build)
            except UnicodeDecodeError:
                return _unpackb(data, ext_hook=self.build, unicode_errors="surrogatepass")
        except DAMAGE as error:
            raise CorruptRecord(f"its value can't be built: {error}") from error
        finally:
            self._depth -= 1

    def build(self, code: int, data: bytes) -> Any:
        """Return the value of an extension; called by msgpack.  Raise CorruptRecord if it can't be built."""
        try:
            if code == REFERENCE:
                return self._resolve(RECORD_KEY.unpack(data)[0])
            if code == INT and data:
                return int.from_bytes(data, "big", signed=True)
            if code == UUID_:
                return UUID(bytes=data)
            build = _BUILD.get(code)
            if build is None:
                if code < 0 or code == INT:
                    raise ValueError(f"it can't have these {len(data)} bytes")
                return Opaque(code, data, "a type that this version doesn't know")
            parts = self.unpack(data)
            if type(parts) is not list and code != DECIMAL:
                raise TypeError("an array is needed")
            if code in _CHECKS:
                count, check = _CHECKS[code]
                if len(parts) != count or not check(*parts):
                    raise ValueError("its parts can't be these")
                if self._checking:
                    return Opaque(code, data)
            value = build(parts)
        except DAMAGE as error:
            raise CorruptRecord(f"its value of the type {code} can't be built: {error}") from error
        return Opaque(code, data, value.why) if type(value) is _Missing else value


DAMAGE: Final = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    SyntaxError,
    struct.error,
    msgpack.UnpackException,
)
_unpackb = functools.partial(msgpack.unpackb, strict_map_key=False)


@attrs.frozen
class _Missing:
    why: str


_available_zones = functools.cache(zoneinfo.available_timezones)  # it reads a whole directory


@functools.lru_cache(1024)
def _known_zone(key: str) -> bool:
    """Return whether there is a file for a time zone; `ZoneInfo` would import a module to look for it."""
    if not re.fullmatch(r"[\w+-]+(/[\w+-]+)*", key):
        return False
    places = (os.path.join(place, key) for place in zoneinfo.TZPATH)
    return any(map(os.path.isfile, places)) or key in _available_zones()


def _unzone(zone: Any) -> Any:
    if zone is None:
        return None
    if isinstance(zone, str):
        if not _known_zone(zone):
            return _Missing(f"this machine does not know the time zone {zone!r}; install tzdata")
        return zoneinfo.ZoneInfo(zone)
    offset, *name = zone if isinstance(zone, list) and len(zone) == 2 else (zone,)
    if type(offset) is not int:
        raise TypeError("a time zone is needed")
    return timezone(timedelta(microseconds=offset), *name)


def _undatetime(v: list[Any]) -> Any:
    year, month, day, hour, minute, second, microsecond, fold, zone = v
    tz = _unzone(zone)
    known = type(tz) is not _Missing
    value = datetime(year, month, day, hour, minute, second, microsecond, tz if known else None, fold=fold)
    return value if known else tz


def _untime(v: list[Any]) -> Any:
    hour, minute, second, microsecond, fold, zone = v
    tz = _unzone(zone)
    known = type(tz) is not _Missing
    value = time(hour, minute, second, microsecond, tz if known else None, fold=fold)
    return value if known else tz


def _exactly(parts: Any, count: int) -> Any:
    if len(parts) != count:
        raise ValueError(f"{count} parts are needed")
    return parts


def _unpath(parts: list[str]) -> pathlib.PurePath:
    name, text = parts
    cls = _PATHS[name]
    native = type(pathlib.Path())
    if issubclass(cls, pathlib.Path) and name != native.__name__:  # the other system's
        cls = pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
    return cls(text)


def _defined_class(tag: str) -> type | None:
    """Return the class of that *tag* if this program defines it; nothing is imported."""
    return class_of_module(tag) or _packed.get(tag)


def _unenum(parts: list[Any]) -> Any:
    tag, told = parts
    cls = _defined_class(tag)
    if cls is None or not issubclass(cls, enum.Enum):
        return _Missing(f"the program has not defined the enum {tag}")
    if issubclass(cls, enum.Flag):
        return cls(told)
    member = cls.__members__.get(told)
    return _Missing(f"the enum {tag} has no member {told}") if member is None else member


def _unattrs(parts: list[Any]) -> Any:
    tag, names, values = parts
    cls = _defined_class(tag)
    if cls is None or not _is_attrs(cls) or field_names(cls) != tuple(names):
        return _Missing(f"the program has not defined the attrs class {tag} with these fields")
    value: Any = object.__new__(cls)
    for name, item in zip(names, values, strict=True):
        object.__setattr__(value, name, item)
    if "_attrs_cached_hash" in getattr(getattr(cls.__hash__, "__code__", None), "co_names", ()):
        object.__setattr__(value, "_attrs_cached_hash", None)
    return value


_PLAIN_DTYPE: Final = re.compile(r"[<>|][A-Za-z][0-9]*(\[[0-9]*[A-Za-z]+\])?").fullmatch


def _dtype(numpy: Any, listed: Any) -> Any:
    """Return the dtype that `_listed` was given; structured ones are lists of fields."""

    def field(parts: list[Any]) -> tuple[Any, ...]:
        name, inner, *shape = parts
        return (
            tuple(name) if isinstance(name, list) else name,
            inner_of(inner),
            *(tuple(s) for s in shape),
        )

    def inner_of(inner: Any) -> Any:
        if isinstance(inner, list):
            return [field(p) for p in inner]
        if not _PLAIN_DTYPE(inner):  # NumPy would also take a text of fields, parts of which it compiles
            raise ValueError(f"not a dtype: {inner!r:.50}")
        return inner

    dtype = numpy.lib.format.descr_to_dtype(inner_of(listed))
    if dtype.hasobject:
        raise ValueError("a dtype that holds objects")
    return dtype


def _numpy() -> Any:
    return sys.modules.get("numpy") or _Missing("import numpy before loading it")


def _unscalar(parts: list[Any]) -> Any:
    numpy = _numpy()
    if type(numpy) is _Missing:
        return numpy
    dtype, data = parts
    if dtype is None:
        return numpy.str_(data) if isinstance(data, str) else numpy.bytes_(data)
    return _filled(numpy, _dtype(numpy, dtype), (1,), data)[0]


def _unarray(parts: list[Any]) -> Any:
    numpy = _numpy()
    if type(numpy) is _Missing:
        return numpy
    dtype, shape, data = parts
    return _filled(numpy, _dtype(numpy, dtype), shape, data)


def _filled(numpy: Any, dtype: Any, shape: Any, data: bytes) -> Any:
    if dtype.itemsize == 0 or 0 in shape:
        # Not `zeros`, which gives items of no bytes one: an array of 2**60 of them would take all memory.
        return numpy.ndarray(shape, dtype=dtype, buffer=bytearray())
    return numpy.frombuffer(data, dtype=dtype).reshape(shape).copy()


_BUILD: dict[int, Callable[[Any], Any]] = {
    TUPLE: tuple,
    SET: set,
    FROZENSET: frozenset,
    COMPLEX: lambda v: complex(*_exactly(v, 2)),
    DATETIME: _undatetime,
    DATE: lambda v: date(*v),
    TIME: _untime,
    TIMEDELTA: lambda v: timedelta(*_exactly(v, 3)),
    DECIMAL: lambda v: Decimal(str.strip(v)),  # of text alone
    FRACTION: lambda v: Fraction(*v),
    PATH: _unpath,
    ENUM: _unenum,
    ATTRS: _unattrs,
    NUMPY_SCALAR: _unscalar,
    NUMPY_ARRAY: _unarray,
}


_CHECKS: Final[dict[int, tuple[int, Callable[..., bool]]]] = {
    FRACTION: (2, lambda above, below: type(above) is type(below) is int and below != 0),
    ENUM: (2, lambda tag, value: type(tag) is str),
    ATTRS: (3, lambda tag, names, values: (
        all(type(text) is str for text in (tag, *names)) and type(values) is list and len(names) == len(values)
    )),
    NUMPY_SCALAR: (2, lambda dtype, data: (
        type(data) in (bytes, str) if dtype is None else type(dtype) in (str, list) and type(data) is bytes
    )),
    # NumPy takes -1 for 'whatever fits', and with items of no bytes divides by zero for it.
    NUMPY_ARRAY: (3, lambda dtype, shape, data: (
        type(dtype) in (str, list) and type(data) is bytes
        and all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) <= sys.maxsize
    )),
}  # fmt: skip
"""How many parts a value has, and whether they can be right; a decoder that is `checking` builds none of these."""


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
