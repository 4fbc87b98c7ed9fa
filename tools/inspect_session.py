#!/usr/bin/env python3
"""Look into a session on a machine where gc3session is not installed.

One file, which needs only lmdb and msgpack, and is written from FORMAT.md; it never writes to the session.

    inspect_session.py SESSION              how many tasks are in which state
    inspect_session.py SESSION list         a line for each task: ID, state, name
    inspect_session.py SESSION show ID...   some records, whole
    inspect_session.py SESSION dump         the lines of `gc3session dump`, for `gc3session load`
"""

import argparse
import contextlib
import fcntl
import functools
import json
import os
import re
import struct
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zlib import crc32

import lmdb
import msgpack

LATE, MAX_NESTED, SETS, TIMES = 1 << 31, 200, ("members", "states"), ("created", "finished")
MEMBER = struct.Struct(">QIQ")
SURROGATE = re.compile("[\ud800-\udfff]").search
NO_VALUE = (ValueError, TypeError, RecursionError, LookupError, msgpack.UnpackException)
TAGS = dict(enumerate("tuple set frozenset - complex datetime date time timedelta decimal fraction".split(), 1))
TAGS |= {4: "", 13: "path", 14: "enum", 15: "attrs", 17: "numpy_scalar", 18: "numpy_array"}
number_of = functools.partial(int.from_bytes, byteorder="big")
key_of = struct.Struct(">Q").pack
NOT_FINITE = {"7ff0000000000000": "inf", "fff0000000000000": "-inf", "7ff8000000000000": "nan"}


def b64(data: bytes) -> str:  # noqa: D103
    return b64encode(data).decode()


class Ext:
    """A msgpack extension; each is equal to itself alone, so that all keys of a map differ."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data


LOSSLESS: Any = {"strict_map_key": False, "unicode_errors": "surrogatepass", "ext_hook": Ext}
unpack = functools.partial(msgpack.unpackb, **LOSSLESS)


def unframed(number: int, data: bytes) -> Any:
    """Return what stands in a frame; raise NO_VALUE if it is damaged."""
    if crc32(data[4:], number & 0xFFFFFFFF) != number_of(data[:4]):
        raise ValueError("its checksum is wrong")
    return unpack(data[4:])


def as_json(value: Any, depth: int = 0) -> Any:
    """Return what JSON has for a value in *depth* arrays and objects; raise NO_VALUE if nothing."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return value if not SURROGATE(value) else {"$str": b64(value.encode("utf-8", "surrogatepass"))}
    if type(value) is float:
        bits = struct.pack(">d", value).hex()
        return value if value - value == 0 else {"$float": NOT_FINITE.get(bits, bits)}
    if depth >= MAX_NESTED:
        raise ValueError("it is nested too deep")
    if type(value) is bytes:
        return {"$bytes": b64(value)}
    if type(value) is list:
        return [as_json(item, depth + 1) for item in value]
    if type(value) is dict:
        tag = len(value) == 1 and str(next(iter(value))).startswith("$")
        if not tag and all(type(key) is str and not SURROGATE(key) for key in value):
            return {key: as_json(item, depth + 1) for key, item in value.items()}
        return {"$dict": [[as_json(part, depth + 3) for part in pair] for pair in value.items()]}
    if type(value) is msgpack.Timestamp:
        return {"$ext": [-1, b64(value.to_bytes())]}
    number = int.from_bytes(value.data, "big", signed=True)
    if value.code == 16 and len(value.data) == 8:
        return {"$ref": number_of(value.data)}
    if value.code == 12 and len(value.data) == 16:
        return {"$uuid": value.data.hex()}
    if value.code == 4 and len(value.data) == number.bit_length() // 8 + 1:
        return {"$int": str(number)}
    try:
        inner = unpack(value.data if TAGS.get(value.code) else b"")
    except NO_VALUE:
        return {"$ext": [value.code, b64(value.data)]}
    return {f"${TAGS[value.code]}": as_json(inner, depth + 1)}


def references(value: Any) -> Iterator[int]:
    """Give the Ns of the references in a value."""
    if isinstance(value, Ext) and value.code == 16:
        yield number_of(value.data)
    elif isinstance(value, Ext) and value.code in (1, 2, 3, 15):
        yield from references(unpack(value.data))
    elif isinstance(value, (list, dict)):
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from references(item)


def written_schema(data: bytes) -> int:
    """Return the number of the schema in a record, damaged or not; 0 if there is none."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data[4:26])
    with contextlib.suppress(*NO_VALUE):
        return int(unpacker.unpack()) if unpacker.read_array_header() == 3 else 0
    return 0


class Session:
    """The session in the directory *path*, in a read transaction; *env* is None before the first write."""

    def __init__(self, path: Path, env: lmdb.Environment | None, identity: bytes) -> None:
        self.path, self.identity = path, identity
        self.txn: Any = env and env.begin()
        self.tables: dict[str, Any] = {}
        for name in ("records", "schemas", "meta", "sessions", "members", "states", "late") if env else ():
            options = {"create": False, "dupsort": name in SETS, "dupfixed": name in SETS}
            self.tables[name] = env and env.open_db(name.encode(), self.txn, **options)
        if env and self.get("meta", b"format") != b"\1":
            sys.exit(f"{path}: the store has format {self.get('meta', b'format')!r}; only 1 is known here")
        row = self.get("sessions", identity)
        self.key = b"" if row is None else unframed(0, row)[0].to_bytes(4, "big")
        self.schemas: dict[int, dict[str, Any]] = {}
        for number, data in ((number_of(key), data) for key, data in self.items("schemas")):
            try:
                self.schemas[number] = dict(
                    zip(("tag", "name", "kind", "fields"), unframed(number, data), strict=True)
                )
            except NO_VALUE:
                self.schemas[number] = {"bytes": b64(data)}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.txn.get(key, db=self.tables[table]) if self.txn and key else None

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.txn.cursor(self.tables[table])) if self.txn else iter(())

    def members(self, start: int = 0) -> Iterator[tuple[int, int, int]]:
        cursor = self.txn.cursor(self.tables["members"]) if self.key else None
        found = cursor and cursor.set_range_dup(self.key, MEMBER.pack(start, 0, 0))
        for order, schema, _ in map(MEMBER.unpack, cursor.iternext_dup()) if cursor and found else ():
            late = self.get("late", key_of(order)) if schema & LATE else None
            yield order, order if late is None else number_of(late), schema & ~LATE

    def states(self) -> Iterator[tuple[str, int, Any]]:
        """Give each state, how many tasks are in it, and a cursor at its key."""
        cursor = self.txn and self.txn.cursor(self.tables["states"])
        for key in [key for key in cursor.iternext_nodup() if key[:4] == self.key] if cursor else ():
            cursor.set_key(key)
            yield key[4:].decode("utf-8", "surrogatepass" if len(key) < 404 else "replace"), cursor.count(), cursor

    def record(self, number: int, entry: int | None = None) -> dict[str, Any]:
        """Return what the dump has of a record, without its order; `damaged` if it can't be read."""
        data = self.get("records", key_of(number)) or b""
        try:
            written, revision, values = unframed(number, data)
            name, fields = self.schemas[written]["name"], self.schemas[written]["fields"]
        except NO_VALUE:
            name = self.schemas.get(written_schema(data) if entry is None else entry, {}).get("name", "Unreadable")
            return {"id": f"{name}.{number}", "damaged": True, "record": b64(data)}
        try:
            told = {field: as_json(value) for field, value in zip(fields, values, strict=True)}
        except NO_VALUE:
            return {"id": f"{name}.{number}", "record": b64(data)}
        return {"id": f"{name}.{number}", "schema": written, "revision": revision, "fields": told}

    def reached(self) -> tuple[set[int], set[int]]:
        """Return the Ns of the session's records and of all that they refer to, and of their schemas."""
        numbers, schemas = set(), {entry for _, _, entry in self.members()}
        pending = [number for _, number, _ in self.members()]
        while pending:
            number = pending.pop()
            data = None if number in numbers else self.get("records", key_of(number))
            if data is not None:
                numbers.add(number)
                schemas.add(written_schema(data))
                with contextlib.suppress(*NO_VALUE):
                    pending += references(unframed(number, data))
        return numbers, schemas

    def dump(self) -> Iterator[dict[str, Any]]:
        numbers, schemas = {number_of(key) for key, _ in self.items("records")}, set(self.schemas)
        if any(identity != self.identity for identity, _ in self.items("sessions")):
            numbers, schemas = self.reached()
        late = {number: order for order, number, _ in self.members() if number != order}
        next_ = number_of(self.get("meta", b"next N") or b"\1")
        times = {file.name: file.stat().st_mtime_ns for file in self.path.iterdir() if file.name in TIMES}
        text = (
            (self.path / "created").read_bytes().decode("utf-8", "surrogateescape") if "created" in times else None
        )
        yield {
            "dump": 1, "first": min(numbers, default=next_), "next": next_, "records": len(numbers), "late": len(late),
            "created": times.get("created"), "command": text, "finished": times.get("finished"),
        }  # fmt: skip
        yield from ({"schema": number} | schema for number, schema in self.schemas.items() if number in schemas)
        members = 0
        for position in sorted([*numbers - late.keys(), *late.values()]):
            place = next(self.members(position), None)
            order, number, entry = place if place and place[0] == position else (0, position, None)
            if number not in numbers:
                continue
            members += order > 0
            line = self.record(number, entry)
            values = {name: line.pop(name) for name in ("fields", "record") if name in line}
            line["order"] = order or None
            if line.pop("damaged", False):
                found = (state for state, _, at in self.states() if at.set_key_dup(at.key(), key_of(order)))
                line["state"] = next(found, "")
            yield line | values
        yield {"end": {"records": len(numbers), "members": members}}


def opened(path: Path) -> Session:
    """Return the session in a directory; exit if there is none."""
    try:
        url = re.fullmatch(r"lmdb:([^#]+)#([0-9a-f]{32})\n?", (path / "store.url").read_text())
        if url is None:
            raise ValueError("store.url is not the URL of an LMDB store and 32 hexadecimal digits")
        store, identity = path / unquote(url[1].removeprefix("//")), bytes.fromhex(url[2])
        data, lock = store / "data.mdb", store / "lock.mdb"
        if not os.path.lexists(store):
            return Session(path, None, identity)
        if data.is_symlink() or not data.is_file() or not data.stat().st_size:
            sys.exit(f"{data} is missing, empty, or not a file; restore it from a backup")
        locked = lock.is_file() and not lock.is_symlink() and os.access(lock, os.W_OK)
        with contextlib.suppress(
            PermissionError
        ):  # held until the program ends: the file isn't replaced meanwhile
            fcntl.flock(os.open(store, os.O_RDONLY), fcntl.LOCK_SH)
        size = max(1 << 30, 2 * data.stat().st_size)
        return Session(
            path, lmdb.open(str(store), size, readonly=True, lock=locked, create=False, max_dbs=16), identity
        )
    except (OSError, lmdb.Error, *NO_VALUE) as error:
        sys.exit(f"the session {path} can't be read: {error}")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path)
    parser.add_argument("command", nargs="?", choices=["stats", "list", "show", "dump"], default="stats")
    parser.add_argument("ids", nargs="*", metavar="ID")
    arguments = parser.parse_args()
    sys.set_int_max_str_digits(0)
    session = opened(arguments.session)
    if arguments.command == "stats":
        for state, count, _ in session.states():
            print(f"{count:9,}  {ascii(state)[1:-1] or '(not a task)'}")
    elif arguments.command == "list":
        for line in (session.record(number, entry) for _, number, entry in session.members()):
            fields = line.get("fields", {"state": "(unreadable)"})
            print(line["id"], *(ascii(fields.get(name, "-"))[1:-1] for name in ("state", "jobname")), sep="\t")
    elif arguments.command == "dump":
        for line in session.dump():
            print(json.dumps(line, separators=(",", ":")))
    for id_ in arguments.ids if arguments.command == "show" else ():
        line = session.record(int("0" + re.sub("[^0-9]|.*[.]", "", id_)[:18]))
        if line["id"] != id_ or line.get("record") == "":
            sys.exit(f"there is no record {id_}")
        print(json.dumps(line, indent=2))


if __name__ == "__main__":
    main()
