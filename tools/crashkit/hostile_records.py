"""Records, schemas and index entries that no encoder wrote, in a data file whose structure is sound.

Their checksums are right, as the person who makes a directory can compute them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any

import msgpack

import lmdb
from hostile_base import Target
from hostile_values import NUMBERS, TEXTS, hostile_body, hostile_value

Tables = dict[bytes, Any]


def sealed(number: int, body: bytes) -> bytes:
    """Return *body* with its checksum."""
    return struct.pack(">I", zlib.crc32(body, number & 0xFFFFFFFF)) + body


@contextlib.contextmanager
def _writing(target: Target) -> Iterator[tuple[Any, Tables]]:
    """Give a transaction on the hostile store, and its tables."""
    env = lmdb.open(
        os.fspath(target.case / "jobs"), map_size=1 << 26, max_dbs=16, sync=False, metasync=False, max_readers=1022
    )
    plain = (b"records", b"schemas", b"meta", b"sessions", b"late", b"late_members")
    tables: Tables = {name: env.open_db(name, create=False) for name in plain}
    tables |= {
        name: env.open_db(name, create=False, dupsort=True, dupfixed=True) for name in (b"members", b"states")
    }
    with env.begin(write=True) as txn:
        yield txn, tables
    env.close()


def spoilt_records(target: Target) -> None:
    """A few entries of the tables are replaced."""
    rng = target.rng
    with _writing(target) as (txn, tables):
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice((_records, _records, _records, _schema, _schema, _row, _entry, _entry, _meta))(
                txn, tables, rng
            )


def note_of_moving(target: Target, url: bytes) -> None:
    """The store says that its session has moved to *url*, or is coming from elsewhere."""
    with _writing(target) as (txn, tables):
        identity = _key(txn, tables[b"sessions"], target.rng)
        numbers = struct.pack(">QQ", *sorted((target.rng.choice((0, 1, 5, 1 << 40)), 9)))
        key, value = target.rng.choice(((b"moved ", url), (b"moved ", url), (b"coming ", numbers + identity)))
        txn.put(key + identity, value, db=tables[b"meta"])


def _key(txn: Any, table: Any, rng: Random) -> bytes:
    keys = [key for key, _ in txn.cursor(table)]
    return rng.choice(keys) if keys else b"\0" * 8


def _records(txn: Any, tables: Tables, rng: Random) -> None:
    table = tables[b"records"]
    key = _key(txn, table, rng)
    number = int.from_bytes(key, "big")
    record = txn.get(key, db=table) or b""
    body = record[4:]
    kind = rng.randrange(4)
    if kind == 0:
        schema, revision, values = 1, 1, [None] * 8
        with contextlib.suppress(ValueError, TypeError):  # it has been spoilt before
            schema, revision, values = msgpack.unpackb(body, strict_map_key=False)
        packed = [msgpack.packb(value, default=repr) for value in values] or [b"\xc0"]
        for _ in range(rng.choice((1, 2, len(packed)))):
            packed[rng.randrange(len(packed))] = hostile_value(rng)
        body = b"\x93" + msgpack.packb(schema) + msgpack.packb(revision)
        body += struct.pack(">BH", 0xDC, len(packed)) + b"".join(packed)
    elif kind == 1:
        body = hostile_body(rng)
    elif kind == 2:
        mutated = bytearray(body or b"x")
        for _ in range(rng.choice((1, 2, 8))):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        body = bytes(mutated)
    else:
        body = body[: rng.randrange(len(body) + 1)]
    txn.put(
        key, (b"" if rng.random() < 0.05 else sealed(number, body))[: rng.choice((3, None, None, None))], db=table
    )


def _schema(txn: Any, tables: Tables, rng: Random) -> None:
    table = tables[b"schemas"]
    key = _key(txn, table, rng)
    number = int.from_bytes(key, "big")
    tag: str = "x:Task"
    name, kind, fields = "Task", 1, ["jobname"]  # type: str, Any, Any
    with contextlib.suppress(ValueError, TypeError):
        tag, name, kind, fields = msgpack.unpackb((txn.get(key, db=table) or b"")[4:])
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
    txn.put(key, sealed(number, body), db=table)


def _row(txn: Any, tables: Tables, rng: Random) -> None:
    table = tables[b"sessions"]
    key = _key(txn, table, rng)
    row: list[Any] = [1, 0, 0, None]
    with contextlib.suppress(ValueError, TypeError):  # it has been spoilt before
        row = list(msgpack.unpackb((txn.get(key, db=table) or b"")[4:], strict_map_key=False))[:4]
    at = rng.randrange(len(row) + 1)
    if at < len(row):
        row[at] = rng.choice((*NUMBERS, None, "x", [], [0, "", 0, 0], [1, "x", 1 << 60, 0], [None] * 4, -1))
    body = hostile_body(rng) if at == len(row) else msgpack.packb(row)
    txn.put(key, sealed(0, body), db=table)


def _entry(txn: Any, tables: Tables, rng: Random) -> None:
    kind = rng.randrange(5)
    numbers = (*(n for n in NUMBERS if 0 <= n < 1 << 64), 1, 2, 3)
    number, other = (struct.pack(">Q", rng.choice(numbers)) for _ in range(2))
    schema = struct.pack(">I", rng.choice((0, 1, 2, 1 << 31, (1 << 31) + 1, (1 << 32) - 1)))
    if kind == 0:
        txn.put(_key(txn, tables[b"members"], rng), number + schema + other, db=tables[b"members"])
    elif kind == 1:
        txn.put(_key(txn, tables[b"states"], rng), number, db=tables[b"states"])
    elif kind == 2:
        name = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:400]
        txn.put(_key(txn, tables[b"members"], rng)[:4] + name, number, db=tables[b"states"])
    elif kind == 3:
        txn.put(number, other[: rng.choice((8, 8, 3, 0))], db=tables[b"late"])
    else:
        session = _key(txn, tables[b"members"], rng)[:4]
        txn.put(number + session, other[: rng.choice((8, 8, 3, 0))], db=tables[b"late_members"])


def _meta(txn: Any, tables: Tables, rng: Random) -> None:
    def value(size: int) -> bytes:
        return rng.choice((b"\0" * size, b"\xff" * size, b"", rng.randbytes(size)))

    name = rng.choice((b"format", b"store", b"next N", b"next session"))
    size = {b"format": 1, b"store": 16, b"next N": 8, b"next session": 4}[name]
    if rng.random() < 0.2:
        txn.delete(name, db=tables[b"meta"])
    else:
        txn.put(name, value(rng.choice((size, size, size + 1, 1))), db=tables[b"meta"])
