"""References in the msgpack bytes of a record's values: they are of one length, so they are changed where they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..format.frame import RECORD_KEY
from .values import ATTRS, FROZENSET, REFERENCE, SET, TUPLE

_MARK: Final = bytes([0xD7, REFERENCE])  # what stands before the N: an extension of 8 bytes, its code
_HOLDING: Final = (TUPLE, SET, FROZENSET, ATTRS)  # extensions whose data are msgpack in which references may be
_EXTENSIONS: Final = frozenset((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))  # the first bytes of extensions

# For each first byte from c0 to df: bytes of the length behind it, and bytes of what follows.  What is in an array
# or a map stands behind it as any other value, so their lengths needn't be known.
_LENGTHS: Final = bytes.fromhex("00000000 010204 010204 0000 00000000 00000000 0000000000 010204 0000 0000")
_SIZES: Final = bytes.fromhex("00000000 000000 000000 0408 01020408 01020408 0102040810 000000 0204 0204")


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
            width, size = _LENGTHS[first - 0xC0], _SIZES[first - 0xC0]
            if width:
                size = int.from_bytes(packed[at : at + width], "big")
                at += width
            if first in _EXTENSIONS:
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
