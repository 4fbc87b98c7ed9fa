"""The frame of a record: a checksum and a msgpack array.

::

    +---------+----------------------------------------------------+
    | CRC-32  | [ schema number, revision, [ value, value, ... ] ] |
    | 4 bytes | msgpack                                            |
    +---------+----------------------------------------------------+

- The CRC-32 (zlib's, big-endian) covers the msgpack bytes and starts from N modulo 2**32, so
  that a record in the place of another one is found, too.
- The schema (schema.py) says what the values are.
- The revision is 1 for a new object and grows by 1 with each save.
- The values stand in the order of the schema's fields; records/values.py has their types.

The bytes of a schema and the row of a session have the same checksum in front.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from zlib import crc32

import msgpack

from ..errors import CorruptRecord

FORMAT: Final = 1
"""The format version of a store."""

RECORD_KEY: Final = struct.Struct(">Q")
"""N as bytes: the key of a record, and what a reference holds."""

_unpack_plain: Final = partial(msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass")


def seal(number: int, body: bytes) -> bytes:
    """Return *body* with its checksum in front."""
    return crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") + body


def unseal(number: int, sealed: bytes) -> bytes:
    """Return the body that `seal` was given. Raise CorruptRecord if the checksum is wrong."""
    body = sealed[4:]
    if crc32(body, number & 0xFFFFFFFF).to_bytes(4, "big") != sealed[:4]:
        raise CorruptRecord("its checksum is wrong: the bytes on the disk are damaged")
    return body


def read_header(record: bytes) -> tuple[int, int, int]:
    """Return a record's schema number and revision, and the place where its values begin.

    Raise CorruptRecord if there is no such header. The checksum is not verified.
    """
    unpacker = msgpack.Unpacker()
    unpacker.feed(record[4:26])
    try:
        length, number, revision = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise CorruptRecord("it has no header") from error
    if length != 3 or type(number) is not int or type(revision) is not int:
        raise CorruptRecord("it has no header")
    return number, revision, 4 + unpacker.tell()


def schema_number(record: bytes) -> int:
    """Return the schema number of a record; numbers below 128 are read without msgpack, for speed."""
    number = record[5] if len(record) > 5 else 0x80
    return number if number < 0x80 and record[4] == 0x93 else read_header(record)[0]


def revision_of(record: bytes) -> int:
    """Return a record's revision, -1 if it can't be read; small numbers are read without msgpack, for speed."""
    if len(record) > 6 and record[5] < 0x80 and record[6] < 0x80:
        return record[6]
    try:
        return read_header(record)[1]
    except CorruptRecord:
        return -1


def values_of(
    number: int, record: bytes, unpack: Callable[[bytes], Any] = _unpack_plain
) -> tuple[int, int, list[Any]]:
    """Return a record's schema number, revision and values. Raise CorruptRecord if it is damaged.

    *unpack* decodes the body; by default values of msgpack's extension types stay undecoded.
    """
    try:
        schema, revision, values = unpack(unseal(number, record))
        if type(schema) is not int or type(revision) is not int or type(values) is not list:
            raise ValueError("its parts have the wrong types")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"it is not a record: {error}") from error
    return schema, revision, values


def schema_number_or_0(record: bytes) -> int:
    """Return the schema number of a record, 0 if it can't be read."""
    try:
        return schema_number(record)
    except CorruptRecord:
        return 0
