"""What can be told of values whose class the program doesn't have.

An attrs object by value and an enum member are written with their class's tag and names, so
that their fields are readable without it; of a NumPy value NumPy itself is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from ..errors import LoadError
from .values import ATTRS, ENUM, NUMPY_ARRAY, NUMPY_SCALAR, Decoder, Opaque


class Reference(NamedTuple):
    """A reference to the record of that N."""

    number: int


class ForeignObject(NamedTuple):
    """An attrs object whose class the program doesn't have."""

    tag: str
    fields: dict[str, Any]


class ForeignMember(NamedTuple):
    """An enum member whose class the program doesn't have: its name, of a Flag its value."""

    tag: str
    told: Any


def built(value: Any, resolve: Callable[[int], Any] = Reference) -> Any:
    """Return what can be told of an opaque value; another value is returned as it is.

    *resolve* gives what stands for the N of a reference in it.
    """
    if type(value) is not Opaque:
        return value
    decoder = Decoder(resolve)
    try:
        if value.code in (NUMPY_SCALAR, NUMPY_ARRAY):
            import numpy  # noqa: F401 (not for the record, which names no module; the decoder uses it)

            return decoder.unpack(msgpack.packb(msgpack.ExtType(value.code, value.data)))
        if value.code == ENUM:
            return ForeignMember(*decoder.unpack(value.data))
        if value.code == ATTRS:
            tag, names, values = decoder.unpack(value.data)
            return ForeignObject(tag, dict(zip(names, values, strict=True)))
    except (ImportError, LoadError, ValueError, TypeError):
        pass
    return value
