#!/usr/bin/env python3
"""Look into a session on a machine where gc3session is not installed.

One file, which needs only lmdb and msgpack; it is written from FORMAT.md, and never writes to the session.
What it shows is one state; until it ends, each commit makes the data file grow, unless it reads a --copy.
    inspect_session.py SESSION              how many tasks are in which state
    inspect_session.py SESSION list         a line for each task: ID, state, name
    inspect_session.py SESSION show ID...   some records, whole
    inspect_session.py SESSION dump         the lines of `gc3session dump`, for `gc3session load`
"""

import argparse
import fcntl
import json
import os
import re
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from heapq import merge
from itertools import compress, groupby
from pathlib import Path
from struct import Struct, pack
from typing import Any
from urllib.parse import unquote
from zlib import crc32

import lmdb
import msgpack


class Ext:
    """A msgpack extension; each is equal to itself alone, so that all keys of a map differ."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data


SETS, TABLES = {"members", "states"}, "records schemas meta sessions late late_members members states".split()
SCHEMA, TIMES, LATE, MAX_NESTED = ("tag", "name", "kind", "fields"), ("created", "finished"), 1 << 31, 200
MEMBER, SURROGATE = Struct(">QIQ"), re.compile("[\ud800-\udfff]").search
URL = re.compile(r"lmdb:([^#]+)#([0-9a-f]{32})\n?").fullmatch
NO_VALUE = (ValueError, TypeError, RecursionError, LookupError, msgpack.UnpackException)
TYPES = "tuple set frozenset int complex datetime date time timedelta decimal fraction uuid path enum attrs ref"
TAGS = dict(enumerate(map("${}".format, f"{TYPES} numpy_scalar numpy_array".split()), 1))
NOT_FINITE = {"7ff0000000000000": "inf", "fff0000000000000": "-inf", "7ff8000000000000": "nan"}
number_of, key_of = partial(int.from_bytes, byteorder="big"), Struct(">Q").pack
unpack = partial(msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=Ext)


def unframed(number: int, data: bytes) -> Any:
    """Return what stands in a frame; raise NO_VALUE if it is damaged."""
    if crc32(data[4:], number & 0xFFFFFFFF) != number_of(data[:4]):
        raise ValueError("its checksum is wrong")
    return unpack(data[4:])


def written_schema(data: bytes) -> int:
    """Return the number of the schema in a record, damaged or not; 0 if there is none."""
    found = re.match(rb"....\x93(?:([\0-\x7f])|\xcc(.)|\xcd(..)|\xce(....))", data, re.DOTALL)
    return number_of(found[found.lastindex or 0]) if found else 0


def as_json(value: Any, depth: int = 0) -> Any:
    """Return what JSON has for a value in *depth* arrays and objects; raise NO_VALUE if nothing."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return value if not SURROGATE(value) else {"$str": value.encode("utf-8", "surrogatepass")}
    if type(value) is float:
        return value if value - value == 0 else {"$float": NOT_FINITE.get(bits := pack(">d", value).hex(), bits)}
    if depth >= MAX_NESTED:
        raise ValueError("it is nested too deep")
    if type(value) is bytes:
        return {"$bytes": value}
    if type(value) is list:
        return [as_json(item, depth + 1) for item in value]
    if type(value) is dict:
        tag = len(value) == 1 and str(next(iter(value))).startswith("$")
        if not tag and all(type(key) is str and not SURROGATE(key) for key in value):
            return {key: as_json(item, depth + 1) for key, item in value.items()}
        return {"$dict": [[as_json(part, depth + 3) for part in pair] for pair in value.items()]}
    code, data = (-1, value.to_bytes()) if type(value) is msgpack.Timestamp else (value.code, value.data)
    number = int.from_bytes(data, "big", signed=True)
    if (code, len(data)) in ((4, number.bit_length() // 8 + 1), (12, 16), (16, 8)):
        return {TAGS[code]: str(number) if code == 4 else data.hex() if code == 12 else number_of(data)}
    try:
        inner = unpack(data if code in TAGS and code not in (4, 12, 16) else b"")
    except NO_VALUE:
        return {"$ext": [code, data]}
    return {TAGS[code]: as_json(inner, depth + 1)}


class Session:
    """The session in the directory *path*, in a read transaction of the store."""

    def __init__(self, path: Path, env: lmdb.Environment, identity: bytes, *, new: bool = False) -> None:
        self.path, self.identity = path, identity
        self.tables = {name: env.open_db(name.encode(), create=new, dupsort=name in SETS) for name in TABLES}
        self.txn: Any = env.begin()
        if not new and self.get("meta", b"format") != b"\1":
            sys.exit(f"{path}: the store has format {self.get('meta', b'format')!r}; only 1 is known here")
        self.key = unframed(0, row)[0].to_bytes(4, "big") if (row := self.get("sessions", identity)) else b"none"
        self.schemas: dict[int, dict[str, Any]] = {}
        for key, data in self.items("schemas"):
            self.schemas[number_of(key)] = {"bytes": data}
            with suppress(*NO_VALUE):
                self.schemas[number_of(key)] = dict(zip(SCHEMA, unframed(number_of(key), data), strict=True))

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.txn.get(key, db=self.tables[table])  # type: ignore[no-any-return]

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.txn.cursor(self.tables[table]))

    def members(self) -> Iterator[tuple[int, int, int]]:  # order, N and schema number of each entry
        cursor = self.txn.cursor(self.tables["members"])
        for order, schema, _ in map(MEMBER.unpack, cursor.iternext_dup()) if cursor.set_key(self.key) else ():
            late = self.get("late", key_of(order)) if schema & LATE else None
            yield order, order if late is None else number_of(late), schema & ~LATE

    def states(self) -> Iterator[tuple[str, int, Any]]:  # each, how many tasks are in it, a cursor at its key
        cursor = self.txn.cursor(self.tables["states"])
        for key in [key for key in cursor.iternext_nodup() if key[:4] == self.key]:
            cursor.set_key(key)
            yield key[4:].decode("utf-8", "surrogatepass" if len(key) < 404 else "replace"), cursor.count(), cursor

    def record(self, number: int, entry: int = -1) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """Return how the line of a record begins and ends, and whether the record can be read."""
        data = self.get("records", key_of(number)) or b""
        try:
            written, revision, values = unframed(number, data)
            head = {"id": f"{self.schemas[written]['name']}.{number}"}
        except NO_VALUE:
            schema = self.schemas.get(written_schema(data) if entry < 0 else entry, {})
            return {"id": f"{schema.get('name', 'Unreadable')}.{number}"}, {"record": data}, False
        try:
            told = zip(self.schemas[written]["fields"], map(as_json, values), strict=True)
            return head | {"schema": written, "revision": revision}, {"fields": dict(told)}, True
        except NO_VALUE:
            return head, {"record": data}, True

    def reached(self, end: int) -> tuple[bytearray, set[int]]:
        """Return for each N below *end* 1 if the dump of a shared store has it, or 0; and the schemas that it has."""
        reached, schemas = bytearray(end), {entry for _, _, entry in self.members()}
        for _, member, _ in self.members():
            pending: list[Any] = [Ext(16, key_of(member))]  # values whose references are to be followed
            while pending:
                value = pending.pop()
                code, number = (value.code, number_of(value.data)) if isinstance(value, Ext) else (0, 0)
                with suppress(*NO_VALUE):
                    if isinstance(value, (list, dict)):
                        pending += [*value, *value.values()] if isinstance(value, dict) else value
                    elif code in (1, 2, 3, 15):
                        pending.append(unpack(value.data))
                    elif code == 16 and len(value.data) == 8 and not reached[number]:
                        reached[number] = (data := self.get("records", value.data) or b"") != b""
                        schemas.add(written_schema(data))
                        pending.append(unframed(number, data))
        return reached, schemas

    def dump(self) -> Iterator[dict[str, Any]]:
        end = number_of(self.get("meta", b"next N") or b"\1")
        dumped, schemas = bytearray(end), set(self.schemas)  # 1 for each N whose record the dump has
        for key, _ in self.items("records"):
            dumped[number_of(key)] = 1
        if any(identity != self.identity for identity, _ in self.items("sessions")):
            dumped, schemas = self.reached(end)
        count, first, members = dumped.count(1), dumped.find(1), 0
        late = sum(key[8:] == self.key for key, _ in self.items("late_members"))
        times = {file.name: file.stat().st_mtime_ns for file in self.path.iterdir() if file.name in TIMES}
        text = (self.path / "created").read_bytes() if "created" in times else None
        yield {
            "dump": 1, "first": end if first < 0 else first, "next": end, "records": count, "late": late,
            "created": times.get("created"), "command": text and text.decode("utf-8", "surrogateescape"), "finished": times.get("finished"),
        }  # fmt: skip
        yield from ({"schema": number} | schema for number, schema in self.schemas.items() if number in schemas)
        # Each record at its N unless it is late, and each entry at its order, where it comes after its own record.
        own = (n for n in compress(range(end), dumped) if not self.get("late_members", key_of(n) + self.key))
        places = merge(((n, n, -1) for n in own), self.members())
        for order, (*_, (_, number, entry)) in groupby(places, lambda place: place[0]):
            if dumped[number]:
                head, body, readable = self.record(number, entry)
                head["order"] = None if entry < 0 else order
                if not readable:
                    states = (name for name, _, at in self.states() if at.set_key_dup(at.key(), key_of(order)))
                    head["state"] = next(states, "")
                members += entry >= 0
                yield head | body
        yield {"end": {"records": count, "members": members}}

    def stats(self) -> Iterator[str]:
        return (f"{count:9,}  {ascii(state)[1:-1] or '(not a task)'}" for state, count, _ in self.states())

    def list(self) -> Iterator[str]:
        for head, body, _ in (self.record(number, entry) for _, number, entry in self.members()):
            fields = body.get("fields", {"state": "(unreadable)"})
            yield "\t".join([head["id"], *(ascii(fields.get(name, "-"))[1:-1] for name in ("state", "jobname"))])

    def show(self, *ids: str) -> Iterator[dict[str, Any]]:
        for id_ in ids:
            head, body, _ = self.record(int("0" + re.sub("[^0-9]|.*[.]", "", id_)[:18]))
            found = head["id"] == id_ and body.get("record") != b""
            yield head | body if found else sys.exit(f"there is no record {id_}")


def opened(path: Path, scratch: str, *, copied: bool) -> Session:
    """Return the session in a directory; exit if there is none."""
    try:
        url = URL(line := (path / "store.url").read_text()) or sys.exit(
            f"{line!r} is not the URL of an LMDB store"
        )
        store, identity = path / unquote(url[1].removeprefix("//")), bytes.fromhex(url[2])
        data, lock = store / "data.mdb", store / "lock.mdb"
        if not os.path.lexists(store):
            return Session(path, lmdb.open(scratch, max_dbs=16), identity, new=True)
        if data.is_symlink() or not data.is_file() or not data.stat().st_size:
            sys.exit(f"{data} is missing, empty, or not a file; restore it from a backup")
        with suppress(PermissionError):  # held until the end: meanwhile the data file isn't replaced
            fcntl.flock(os.open(store, os.O_RDONLY), fcntl.LOCK_SH)
        read: Any = partial(lmdb.open, map_size=max(1 << 30, 2 * data.stat().st_size), readonly=True, max_dbs=16)
        env = read(str(store), lock=lock.is_file() and not lock.is_symlink() and os.access(lock, os.W_OK))
        if copied:
            env.copy(scratch)
        return Session(path, read(scratch, lock=False) if copied else env, identity)
    except (OSError, lmdb.Error, *NO_VALUE) as error:
        sys.exit(f"the session {path} can't be read: {error}")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path)
    parser.add_argument("command", nargs="?", choices=["stats", "list", "show", "dump"], default="stats")
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--copy", action="store_true", help="read from a copy of the store, made in TMPDIR")
    args = parser.parse_args()
    sys.set_int_max_str_digits(0)
    dumps = partial(json.dumps, default=lambda data: b64encode(data).decode(), separators=(",", ":"))
    with tempfile.TemporaryDirectory() as scratch:
        for line in getattr(opened(args.session, scratch, copied=args.copy), args.command)(*args.ids):
            print(line if type(line) is str else dumps(line, indent=2 if args.command == "show" else None))


if __name__ == "__main__":
    main()
