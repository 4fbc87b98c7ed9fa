"""Whether two values are the same in type and value, all the way down, nan and references included."""

from __future__ import annotations

import enum
from datetime import datetime, time, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import attrs

from gc3session import Persistable

try:
    import numpy
except ImportError:  # then no value is of its types
    numpy = None  # type: ignore[assignment]


def same(a: Any, b: Any) -> bool:
    """Return whether *a* and *b* are the same in type and value.

    The order of a dict counts, too, and which of the objects in them are one object.
    """
    return picture(a) == picture(b)


def picture(value: Any) -> Any:
    """Return nested tuples of str and bytes, which are equal for values that are the same."""
    return _picture(value, {})


def _picture(value: Any, seen: dict[int, int]) -> Any:
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(value, enum.Flag):
        return name, str(int(value.value))
    if isinstance(value, enum.Enum):
        return name, value.name
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return name, _dtype(value.dtype), repr(value.shape), _contents(value)
    if isinstance(value, Persistable):
        if id(value) in seen:
            return name, f"object {seen[id(value)]}"
        seen[id(value)] = len(seen)
    if hasattr(cls, "__attrs_attrs__"):
        fields = tuple((f.name, _picture(getattr(value, f.name), seen)) for f in attrs.fields(cls))
        return name, fields
    if cls in (list, tuple):
        return name, tuple(_picture(item, seen) for item in value)
    if cls in (set, frozenset):
        return name, tuple(sorted((_picture(item, seen) for item in value), key=repr))
    if cls is dict:
        return name, tuple((_picture(key, seen), _picture(item, seen)) for key, item in value.items())
    if cls is int:
        return name, hex(value)
    if cls is complex:
        return name, _picture(value.real, seen), _picture(value.imag, seen)
    if cls is Decimal:
        return name, repr(value.as_tuple())
    if cls in (datetime, time):
        naive = value.replace(tzinfo=None)
        return name, repr(naive), repr(value.fold), _zone(value.tzinfo)
    return name, repr(value)


def _dtype(dtype: Any) -> Any:
    if dtype.fields is None:
        return repr(dtype)
    return dtype.itemsize, tuple((name, repr(dtype.fields[name])) for name in dtype.names)


def _contents(value: Any) -> Any:
    """Return the bytes of an array, field by field: what pads them is no part of the value."""
    if value.dtype.names is None:
        return value.tobytes()
    return tuple(_contents(value[field]) for field in value.dtype.names)


def _zone(zone: tzinfo | None) -> Any:
    if isinstance(zone, timezone):
        return "timezone", repr(zone.utcoffset(None)), zone.tzname(None)
    if isinstance(zone, ZoneInfo):
        return "ZoneInfo", repr(zone.key)
    return repr(zone)
