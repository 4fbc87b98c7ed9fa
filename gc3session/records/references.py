"""References in the msgpack bytes of a record's values: they are of one length, so they are changed where they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..format.frame import RECORD_KEY
from .values import ATTRS, FROZENSET, REFERENCE, SET, TUPLE

_MARK: Final = bytes([0xD7, REFERENCE])  # what stands before the N: an extension of 8 bytes, its code
_HOLDING: Final = (TUPLE, SET, FROZENSET, ATTRS)  # extensions whose data are msgpack in which references may be
_EXTENSIONS: Final = range(0xC7, 0xCA), range(0xD4, 0xD9)  # first bytes; with a length, and of a fixed size

# First byte, from c0 to df -> bytes of the length behind it, bytes of what follows.  What is in an array or a map
# stands behind it as any other value, so their lengths needn't be known.
_TOKENS: Final = [
    (0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (2, 0), (4, 0), (1, 0), (2, 0), (4, 0), (0, 4), (0, 8),
    (0, 1), (0, 2), (0, 4), (0, 8), (0, 1), (0, 2), (0, 4), (0, 8),
    (0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (1, 0), (2, 0), (4, 0), (0, 2), (0, 4), (0, 2), (0, 4),
]  # fmt: skip


def with_references(packed: bytes, moved: Callable[[int], int]) -> bytes:
    """Return msgpack bytes in which *moved* has been called with the N of each reference, for what is to be in its place."""
    if _MARK not in packed:
        return packed
    changed = bytearray(packed)
    for place in _places(packed):
        changed[place : place + 8] = RECORD_KEY.pack(moved(RECORD_KEY.unpack_from(packed, place)[0]))
    return bytes(changed)


def _places(packed: bytes) -> list[int]:
    """Return where the Ns of the references stand."""
    found: list[int] = []
    pending = [(0, len(packed))]
    while pending:
        at, end = pending.pop()
        places: list[int] = []
        inner: list[tuple[int, int]] = []
        while at < end:
            first = packed[at]
            at += 1
            if first < 0xA0 or first >= 0xE0:
                continue
            if first < 0xC0:
                at += first & 0x1F
                continue
            width, size = _TOKENS[first - 0xC0]
            if width:
                size = int.from_bytes(packed[at : at + width], "big")
                at += width
            if any(first in kind for kind in _EXTENSIONS):
                code, at = packed[at] if at < end else 0, at + 1
                if code == REFERENCE and size == 8:
                    places.append(at)
                elif code in _HOLDING:
                    inner.append((at, at + size))
            at += size
        if at == end:  # else it isn't what its code says, and refers to nothing
            found += places
            pending += inner
    return found
