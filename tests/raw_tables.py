"""The tables of a session on LMDB, open to any change, as FORMAT.md has them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

import lmdb

TABLES = "meta schemas states sessions counts index holders unique metadata leases records".split()


class Raw:
    """The tables of a session, open to any change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Raw:
        self._env = lmdb.open(os.fspath(self.path / "jobs"), create=False, map_size=1 << 28)
        self._transaction = self._env.begin(write=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._transaction.commit()
        self._env.close()

    @staticmethod
    def _range(table: str) -> bytes:
        return bytes([TABLES.index(table) + 1])

    def items(self, table: str) -> list[tuple[bytes, bytes]]:
        return [(key[1:], data) for key, data in self._transaction.cursor() if key[:1] == self._range(table)]

    def get(self, table: str, key: bytes) -> bytes:
        return self._transaction.get(self._range(table) + key)  # type: ignore[no-any-return]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._transaction.put(self._range(table) + key, value)

    def delete(self, table: str, key: bytes) -> None:
        assert self._transaction.delete(self._range(table) + key)

    def put_members(self, *numbers: int, session: int = 1, schema: int = 1, state: int = 1) -> None:
        """Set an entry of the index to some Ns of the first block; without any delete it."""
        key = struct.pack(">IQII", session, 0, schema, state)
        if numbers:
            self.put("index", key, members(key, *numbers))
        else:
            self.delete("index", key)

    def put_count(self, count: int, schema: int = 1, state: int = 1) -> None:
        self.put("counts", struct.pack(">III", 1, schema, state), n8(count))

    def change_row(self, **parts: Any) -> None:
        key, data = self.items("sessions")[0]
        row = dict(zip(("number", "total", "mirror"), unsealed(data), strict=True))
        self.put("sessions", key, sealed(0, [*(row | parts).values()]))

    def change_note(self, at: int, value: Any) -> None:
        """Change one of the parts of what the row says of the mirror."""
        mirror = unsealed(self.items("sessions")[0][1])[2]
        self.change_row(mirror=[*mirror[:at], value, *mirror[at + 1 :]])

    def change_record(self, number: int, change: Callable[[list[Any]], Any]) -> None:
        """Change the body of a record, `[schema, revision, home, values]`; its checksum is right then."""
        self.put("records", n8(number), sealed(number, change(unsealed(self.get("records", n8(number))))))

    def change_schema(self, number: int, change: Callable[[list[Any]], Any]) -> None:
        self.put("schemas", n4(number), sealed(number, change(unsealed(self.get("schemas", n4(number))))))


def damage(path: str | os.PathLike[str], id_: str | int) -> None:
    """Turn a bit in the record of that ID or N."""
    key = n8(int(str(id_).rpartition(".")[2]))
    with Raw(Path(path)) as raw:
        record = raw.get("records", key)
        raw.put("records", key, record[:-1] + bytes([record[-1] ^ 1]))


def n8(number: int) -> bytes:
    return number.to_bytes(8, "big")


def n4(number: int) -> bytes:
    return number.to_bytes(4, "big")


def sealed(number: int, body: Any) -> bytes:
    data = msgpack.packb(body)
    return data + b"\xce" + zlib.crc32(data, number % 2**32).to_bytes(4, "big")


def unsealed(data: bytes) -> Any:
    return msgpack.unpackb(data[:-5], strict_map_key=False)


def members(key: bytes, *places: int) -> bytes:
    body = b"".join(place.to_bytes(2, "big") for place in places)
    return body + zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "big")
