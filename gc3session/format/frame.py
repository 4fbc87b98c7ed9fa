"""The frame of a record: a msgpack array, and a checksum behind it.

::

    +------------------------------------------------------------------+-----------+
    | [ schema number, revision, home session, [ value, value, ... ] ] | ce CRC-32 |
    | msgpack                                                          | 5 bytes   |
    +------------------------------------------------------------------+-----------+

- The schema (schema.py) says what the values are.
- The revision is 1 for a new object and grows by 1 with each save.
- The home session is the number of a session that holds the record; 0 if none does.  Other sessions
  that hold it, too, stand in the table `holders`.  It changes without a new revision.
- The values stand in the order of the schema's fields; records/values.py has their types.
- The CRC-32 (zlib's) covers all before it and starts from N modulo 2**32, so that a record in the
  place of another one is found, too.  With the byte ce before it, it is an integer of msgpack's: a
  run of records is one stream for one Unpacker.

Schemas, names of states and the rows of sessions have the same checksum behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from ..errors import CorruptRecord

FORMAT: Final = 2
"""The format version of a store."""

RECORD_KEY: Final = struct.Struct(">Q")
"""N as bytes: the key of a record, and what a reference holds."""

TAIL: Final = 5
"""Bytes of the checksum, with the byte before it."""

_TAIL: Final = struct.Struct(">BI")
_UINT32: Final = 0xCE
_ARRAY_OF_4: Final = 0x94
_unpack_plain: Final = partial(msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass")


class Header(NamedTuple):
    """What stands before the values of a record.

    Attributes:
        schema: number of the schema.
        revision: of the record.
        home: number of a session that holds it; 0 if none does.
        end: the place where the values begin.
    """

    schema: int
    revision: int
    home: int
    end: int


def seal(number: int, body: bytes) -> bytes:
    """Return *body* with its checksum behind it."""
    return body + _TAIL.pack(_UINT32, crc32(body, number & 0xFFFFFFFF))


def unseal(number: int, sealed: bytes) -> bytes:
    """Return the body that `seal` was given. Raise CorruptRecord if the checksum is wrong."""
    body = sealed[:-TAIL]
    if _TAIL.pack(_UINT32, crc32(body, number & 0xFFFFFFFF)) != sealed[-TAIL:]:
        raise CorruptRecord("its checksum is wrong: the bytes on the disk are damaged")
    return body


def checksum_of(record: bytes) -> int:
    """Return the checksum that a record ends with."""
    return int.from_bytes(record[-4:], "big")


@lru_cache(4096)
def head(schema: int, revision: int, home: int) -> bytes:
    """Return the bytes that stand before the values of a record."""
    return bytes([_ARRAY_OF_4]) + msgpack.packb(schema) + msgpack.packb(revision) + msgpack.packb(home)  # type: ignore[no-any-return]


@lru_cache(4096)
def _short_header(start: bytes) -> Header | None:
    """Return the header of a record that begins with *start*, if each of its numbers is one byte."""
    is_short = len(start) == 4 and start[0] == _ARRAY_OF_4 and start[1:].isascii()
    return Header(start[1], start[2], start[3], 4) if is_short else None


def header_of(record: bytes) -> Header:
    """Return the header of a record. Raise CorruptRecord if there is none. The checksum is not verified."""
    header = _short_header(record[:4])
    if header is not None:
        return header
    if record[:1] != bytes([_ARRAY_OF_4]):
        raise CorruptRecord("it has no header")
    parts = []
    at = 1
    for _ in range(3):
        first = record[at] if at < len(record) else 0xFF
        size = 0 if first < 0x80 else 1 << (first - 0xCC) if 0xCC <= first <= 0xCF else -1
        at += 1 + size
        if size < 0 or at > len(record):
            raise CorruptRecord("it has no header")
        parts.append(int.from_bytes(record[at - size : at], "big") if size else first)
    if parts[0] >> 31 or parts[1] >> 63 or parts[2] >> 32:
        raise CorruptRecord("its header has impossible numbers")
    return Header(parts[0], parts[1], parts[2], at)


def with_home(number: int, record: bytes, home: int) -> bytes:
    """Return record N with another home session."""
    schema, revision, _, end = header_of(record)
    return seal(number, head(schema, revision, home) + record[end:-TAIL])


def schema_number(record: bytes) -> int:
    """Return the schema number of a record.  Raise CorruptRecord if it can't be read."""
    return header_of(record).schema


def schema_number_or_0(record: bytes) -> int:
    """Return the schema number of a record, 0 if it can't be read."""
    try:
        return header_of(record).schema
    except CorruptRecord:
        return 0


def revision_of(record: bytes) -> int:
    """Return a record's revision, -1 if it can't be read."""
    try:
        return header_of(record).revision
    except CorruptRecord:
        return -1


def values_of(
    number: int, record: bytes, unpack: Callable[[bytes], Any] = _unpack_plain
) -> tuple[int, int, list[Any]]:
    """Return a record's schema number, revision and values. Raise CorruptRecord if it is damaged.

    *unpack* decodes the body; by default values of msgpack's extension types stay undecoded.
    """
    try:
        schema, revision, home, values = unpack(unseal(number, record))
        if not (type(schema) is type(revision) is type(home) is int and type(values) is list):
            raise ValueError("its parts have the wrong types")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"it is not a record: {error}") from error
    return schema, revision, values
