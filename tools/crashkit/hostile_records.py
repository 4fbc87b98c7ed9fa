"""Records, schemas, rows and index entries that no encoder wrote, in a data file whose structure is sound.

Their checksums are right, as the person who makes a directory can compute them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import msgpack

import lmdb
from gc3session.tables.interface import (
    COUNTS,
    HOLDERS,
    INDEX,
    LEASES,
    META,
    METADATA,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    UNIQUE,
)
from gc3session.tables.lmdb.ranges import RANGES
from hostile_base import Target
from hostile_values import NUMBERS, TEXTS, hostile_body, hostile_members, hostile_value, text

NEXT: Final = {b"next N": 8, b"next session": 4, b"records": 8}
"""What `meta` counts, and in how many bytes."""


def sealed(number: int, body: bytes) -> bytes:
    """Return *body* with its checksum."""
    return body + struct.pack(">BI", 0xCE, zlib.crc32(body, number & 0xFFFFFFFF))


class _Tables:
    """The tables of a store, in a transaction that writes."""

    def __init__(self, txn: Any) -> None:
        self._txn = txn

    def keys(self, table: str) -> list[bytes]:
        """Return all keys of a table."""
        cursor, range_ = self._txn.cursor(), RANGES[table]
        keys = cursor.iternext(values=False) if cursor.set_range(range_) else ()
        return [key[1:] for key in keys if key[:1] == range_]

    def any_key(self, table: str, rng: Random, size: int = 8) -> bytes:
        """Return a key that is there; one of so many zero bytes if there is none."""
        return rng.choice(self.keys(table) or [bytes(size)])

    def get(self, table: str, key: bytes) -> bytes:
        """Return a value, b'' if there is none."""
        return self._txn.get(RANGES[table] + key) or b""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        self._txn.put(RANGES[table] + key, value)

    def delete(self, table: str, key: bytes) -> None:
        """Delete a key."""
        self._txn.delete(RANGES[table] + key)


@contextlib.contextmanager
def _writing(target: Target) -> Iterator[_Tables]:
    """Give the tables of the hostile store, to be changed in one transaction."""
    env = lmdb.open(
        os.fspath(target.case / "jobs"), map_size=1 << 26, sync=False, metasync=False, max_readers=1022
    )
    with env.begin(write=True) as txn:
        yield _Tables(txn)
    env.close()


def spoilt_records(target: Target) -> None:
    """A few items of the tables are replaced."""
    with _writing(target) as tables:
        for _ in range(target.rng.choice((1, 1, 2, 4))):
            target.rng.choices([*_SPOILING], [*_SPOILING.values()])[0](tables, target.rng)


def note_of_moving(target: Target, url: bytes) -> None:
    """The store says that its session has moved to *url*, or is coming from elsewhere."""
    with _writing(target) as tables:
        identity = tables.any_key(SESSIONS, target.rng, 16)
        numbers = struct.pack(">QQ", *sorted((target.rng.choice((0, 1, 5, 1 << 40)), 9)))
        key, value = target.rng.choice(((b"moved ", url), (b"moved ", url), (b"coming ", numbers + identity)))
        tables.put(META, key + identity, value)


def _record(tables: _Tables, rng: Random) -> None:
    key = tables.any_key(RECORDS, rng)
    number = int.from_bytes(key, "big")
    body = tables.get(RECORDS, key)[:-5]
    kind = rng.randrange(5)
    if kind == 0:
        schema, revision, home, values = 1, 1, 1, [None] * 8
        with contextlib.suppress(ValueError, TypeError):  # it has been spoilt before
            schema, revision, home, values = msgpack.unpackb(body, strict_map_key=False)
        packed = [msgpack.packb(value, default=repr) for value in values] or [b"\xc0"]
        for _ in range(rng.choice((1, 2, len(packed)))):
            packed[rng.randrange(len(packed))] = hostile_value(rng)
        body = b"\x94" + msgpack.packb(schema) + msgpack.packb(revision) + msgpack.packb(home)
        body += struct.pack(">BH", 0xDC, len(packed)) + b"".join(packed)
    elif kind == 1:
        body = hostile_body(rng)
    elif kind == 2:
        mutated = bytearray(body or b"x")
        for _ in range(rng.choice((1, 2, 8))):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        body = bytes(mutated)
    elif kind == 3 and len(body) > 4:  # small numbers before the values: schema, revision, home
        at = rng.randrange(1, 4)
        body = body[:at] + msgpack.packb(rng.choice([n for n in NUMBERS if n >= 0])) + body[at + 1 :]
    else:
        body = body[: rng.randrange(len(body) + 1)]
    value = b"" if rng.random() < 0.05 else sealed(number, body)
    tables.put(RECORDS, key, value[: rng.choice((3, None, None, None))])


def _schema(tables: _Tables, rng: Random) -> None:
    key = tables.any_key(SCHEMAS, rng, 4)
    number = int.from_bytes(key, "big")
    tag: str = "x:Task"
    name, kind, fields = "Task", 1, ["jobname"]  # type: str, Any, Any
    with contextlib.suppress(ValueError, TypeError):
        tag, name, kind, fields = msgpack.unpackb(tables.get(SCHEMAS, key)[:-5])
    fields = fields if type(fields) is list else []
    change = rng.randrange(6)
    if change == 0:
        tag = rng.choice(TEXTS)
    elif change == 1:
        name = rng.choice(TEXTS)
    elif change == 2:
        kind = rng.choice((0, 1, 2, 3, -1, None, "1", [], 1 << 40))
    elif change == 3:
        fields = rng.choice(
            ([], fields * 2, [*fields[1:]], [rng.choice(TEXTS), *fields[1:]], None, {}, [None] * len(fields))
        )
    elif change == 4:
        fields = ["".join(rng.choice(TEXTS) for _ in range(2)) for _ in fields]
    body = msgpack.packb([tag, name, kind, fields], unicode_errors="surrogatepass", default=repr)
    if change == 5:
        body = hostile_body(rng)
    tables.put(SCHEMAS, key, sealed(number, body))


def _state(tables: _Tables, rng: Random) -> None:
    key = rng.choice((tables.any_key(STATES, rng, 4), _number(4, rng)))
    body = rng.choice((text(rng), hostile_body(rng), hostile_value(rng)))
    tables.put(STATES, key, sealed(int.from_bytes(key, "big"), body))


def _row(tables: _Tables, rng: Random) -> None:
    key = tables.any_key(SESSIONS, rng, 16)
    row: list[Any] = [1, 0, None]
    with contextlib.suppress(ValueError, TypeError):  # it has been spoilt before
        row = list(msgpack.unpackb(tables.get(SESSIONS, key)[:-5], strict_map_key=False))[:3]
    odd = (*NUMBERS, None, "x", b"x", [], [1, 2], [[0, 1]], [[1 << 40, 1 << 40]], [[0, -1]], [[1 << 63, 1]], -1)
    note = row[2] if len(row) == 3 and isinstance(row[2], list) else []
    if note and rng.random() < 0.5:  # what it says of the mirror
        note[rng.randrange(len(note))] = rng.choice(odd)
    elif row:
        row[rng.randrange(len(row))] = rng.choice((*odd, [None] * 7))
    body = hostile_body(rng) if rng.random() < 0.2 else msgpack.packb(row)
    if rng.random() < 0.1:  # it is another session's
        key = rng.randbytes(rng.choice((16, 16, 3)))
    tables.put(SESSIONS, key, sealed(0, body))


def _number(size: int, rng: Random) -> bytes:
    """Return a number as some bytes of a key: one that may be there, or one at a limit."""
    numbers = (1, 2, 3, *(n for n in NUMBERS if 0 <= n < 1 << 8 * size))
    return rng.choice(numbers).to_bytes(size, "big")


def _key_like(tables: _Tables, table: str, sizes: tuple[int, ...], rng: Random) -> bytes:
    """Return a key of numbers of these sizes: one that is there, in which one of them is perhaps another."""
    key = tables.any_key(table, rng, sum(sizes))
    at = rng.randrange(len(sizes) + 1)
    if at < len(sizes):
        begin = sum(sizes[:at])
        key = key[:begin] + _number(sizes[at], rng) + key[begin + sizes[at] :]
    return key if rng.random() < 0.95 else key[: rng.randrange(1, len(key) + 1)]


def _entry(tables: _Tables, rng: Random) -> None:
    key = _key_like(tables, INDEX, (4, 8, 4, 4), rng)
    if rng.random() < 0.2:
        tables.delete(INDEX, key)
        return
    members = rng.choice((hostile_members(rng), tables.get(INDEX, tables.any_key(INDEX, rng))[:-4]))
    tables.put(INDEX, key, members + zlib.crc32(members, zlib.crc32(key)).to_bytes(4, "big"))


def _count(tables: _Tables, rng: Random) -> None:
    tables.put(COUNTS, _key_like(tables, COUNTS, (4, 4, 4), rng), _number(rng.choice((8, 8, 8, 3)), rng))


def _holder(tables: _Tables, rng: Random) -> None:
    tables.put(HOLDERS, _key_like(tables, HOLDERS, (8, 4), rng), rng.choice((b"", b"", b"x")))


def _unwritten(tables: _Tables, rng: Random) -> None:
    """An item of a table that no call of the library writes yet."""
    session, number = _number(4, rng), _number(8, rng)
    value = rng.choice((text(rng), hostile_value(rng), b"\x93\xa1x\xc0\x01"))
    table = rng.choice((UNIQUE, METADATA, LEASES))
    if table == UNIQUE:
        tables.put(table, session + b"key", number[: rng.choice((8, 8, 3, 0))])
    elif table == METADATA:
        tables.put(table, session + rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:400], sealed(0, value))
    else:
        tables.put(table, number + session, sealed(int.from_bytes(number, "big"), value))


def _meta(tables: _Tables, rng: Random) -> None:
    def value(size: int) -> bytes:
        return rng.choice((b"\0" * size, b"\xff" * size, b"", rng.randbytes(size)))

    name = rng.choice((b"format", b"store", *NEXT, b"session " + _number(4, rng)))
    size = {b"format": 1, **NEXT}.get(name, 16)
    if rng.random() < 0.2:
        tables.delete(META, name)
    else:
        tables.put(META, name, value(rng.choice((size, size, size + 1, 1))))


_SPOILING: Final[dict[Callable[[_Tables, Random], None], int]] = {
    _record: 6,
    _schema: 4,
    _row: 3,
    _entry: 4,
    _state: 2,
    _count: 1,
    _holder: 1,
    _unwritten: 1,
    _meta: 2,
}
"""How often each is chosen, of their sum."""
