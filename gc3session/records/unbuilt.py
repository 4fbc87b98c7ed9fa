"""What is readable of values whose class the program hasn't defined.

A record holds the tag of the class and the names of the fields with an attrs object, and the name
with an enum member, so these are readable without the class.  A NumPy value needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from ..errors import LoadError
from .values import ATTRS, ENUM, NUMPY_ARRAY, NUMPY_SCALAR, Decoder, Opaque


class Reference(NamedTuple):
    """A reference to record N."""

    number: int


class UnknownObject(NamedTuple):
    """An attrs object whose class the program hasn't defined.

    Attributes:
        tag: of the class, 'module:ClassName'.
        fields: the values by the names of the fields.
    """

    tag: str
    fields: dict[str, Any]


class UnknownMember(NamedTuple):
    """An enum member whose class the program hasn't defined.

    Attributes:
        tag: of the class, 'module:ClassName'.
        value: the name of the member (str), or the value of a Flag (int).
    """

    tag: str
    value: Any


def built(value: Any, resolve: Callable[[int], Any] = Reference) -> Any:
    """Return an opaque value as far as it is readable, and any other value as it is.

    *resolve* returns what stands for a reference to N in it.
    """
    if type(value) is not Opaque:
        return value
    decoder = Decoder(resolve)
    try:
        if value.code in (NUMPY_SCALAR, NUMPY_ARRAY):
            import numpy  # noqa: F401 (not for the record, which names no module; the decoder uses it)

            return decoder.unpack(msgpack.packb(msgpack.ExtType(value.code, value.data)))
        if value.code == ENUM:
            return UnknownMember(*decoder.unpack(value.data))
        if value.code == ATTRS:
            tag, names, values = decoder.unpack(value.data)
            return UnknownObject(tag, dict(zip(names, values, strict=True)))
    except (ImportError, LoadError, ValueError, TypeError):
        pass
    return value
