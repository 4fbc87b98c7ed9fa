"""Lists of keys, values and numbers, as the server reads arrays: psycopg takes five times as long to pack them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from struct import Struct, pack

from psycopg import pq
from psycopg.adapt import Dumper

_HEAD = Struct(">iiIii")  # dimensions, whether there are nulls, type of the items, their number, the first's index
_SIZE = Struct(">i").pack


class ByteaArray(list[bytes]):
    """Is sent as bytea[]."""


class BigintArray(list[int]):
    """Is sent as bigint[]."""


class ByteaArrayDumper(Dumper):
    """Packs a ByteaArray."""

    format = pq.Format.BINARY
    oid = 1001

    def dump(self, obj: Sequence[bytes]) -> bytes:
        """Return it as the server reads it."""
        return _HEAD.pack(1, 0, 17, len(obj), 1) + b"".join(
            chain.from_iterable([(_SIZE(len(item)), item) for item in obj])
        )


class BigintArrayDumper(Dumper):
    """Packs a BigintArray."""

    format = pq.Format.BINARY
    oid = 1016

    def dump(self, obj: Sequence[int]) -> bytes:
        """Return it as the server reads it."""
        return _HEAD.pack(1, 0, 20, len(obj), 1) + b"".join([pack(">iq", 8, number) for number in obj])
