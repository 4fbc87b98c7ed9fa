#!/usr/bin/env python3
"""Look into a session on a machine where gc3session is not installed.

This file needs only lmdb and msgpack. It was written from FORMAT.md, shares no code with gc3session, and never writes
to the session. It shows the session as it was when it began. Until it ends, each commit of another program makes
the data file grow, since LMDB keeps what may still be read; with --copy it makes a copy first, and reads that.

    inspect_session.py SESSION              how many tasks are in which state
    inspect_session.py SESSION list         a line for each task: ID, state, name
    inspect_session.py SESSION show ID...   some records, whole
    inspect_session.py SESSION dump         the lines of `gc3session dump`, for `gc3session load`
"""

import argparse
import json
import os
import re
import sys
import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from heapq import merge
from itertools import compress, groupby
from pathlib import Path
from struct import iter_unpack, pack, unpack_from
from typing import Any
from urllib.parse import unquote
from zlib import crc32

import msgpack

import lmdb


class Ext:
    """A msgpack extension: a type that msgpack lacks. It equals only itself, so that no two keys of a map are equal."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data


TABLES = "meta schemas states sessions counts index holders unique metadata leases records".split()
RANGES = {name: bytes([place]) for place, name in enumerate(TABLES, 1)}  # with which the keys of a table begin
SCHEMA_PARTS = ("tag", "name", "kind", "fields")
TIME_FILES = ("created", "finished")  # their times of change are those of the session's start and end
BLOCK = 4096  # Ns in an entry of the index
MAX_DEPTH = 200  # of arrays and objects inside one another in JSON
DAMAGED = (ValueError, TypeError, RecursionError, LookupError, msgpack.UnpackException)  # what decoding may raise
TYPES = "tuple set frozenset int complex datetime date time timedelta decimal fraction uuid path enum attrs ref"
# the code of an Ext -> the key that JSON has for it
TAGS = dict(enumerate(map("${}".format, f"{TYPES} numpy_scalar numpy_array".split()), 1))
NOT_FINITE = {"7ff0000000000000": "inf", "fff0000000000000": "-inf", "7ff8000000000000": "nan"}
match_url = re.compile(r"lmdb:([^#]+)#([0-9a-f]{32})\n?").fullmatch
find_surrogate = re.compile("[\ud800-\udfff]").search
match_header = re.compile(rb"\x94" + 3 * rb"([\0-\x7f]|\xcc.|\xcd..|\xce.{4}|\xcf.{8})", re.DOTALL).match
number_of, key_of = partial(int.from_bytes, byteorder="big"), partial(int.to_bytes, length=8, byteorder="big")
unpack = partial(msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=Ext)


def unsealed(number: int, data: bytes) -> Any:
    """Return what is sealed, with a checksum that starts with *number*; raise one of DAMAGED if it is damaged."""
    if data[-5:] != b"\xce" + crc32(data[:-5], number & 0xFFFFFFFF).to_bytes(4, "big"):
        raise ValueError("its checksum is wrong")
    return unpack(data[:-5])


def schema_number_in(data: bytes) -> int:
    """Return the schema number that a record begins with, even if the record is damaged; 0 if it has none."""
    header = match_header(data)
    return int(unpack(header[1])) if header else 0


def places_in(key: bytes, value: bytes) -> list[int]:
    """Return the members that an entry of the index lists, by their places in the block."""
    if crc32(value[:-4], crc32(key)) != number_of(value[-4:]):
        sys.exit(f"the entry {key.hex()} of the index is damaged")
    if len(value) == BLOCK // 8 + 4:
        return [place for place in range(BLOCK) if value[place // 8] >> place % 8 & 1]
    return [place for (place,) in iter_unpack(">H", value[:-4])]


def as_json(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON, where it is inside *depth* arrays and objects; raise one of DAMAGED if that can't be."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return value if not find_surrogate(value) else {"$str": value.encode("utf-8", "surrogatepass")}
    if type(value) is float:
        return value if value - value == 0 else {"$float": NOT_FINITE.get(bits := pack(">d", value).hex(), bits)}
    if depth >= MAX_DEPTH:
        raise ValueError("it is nested too deep")
    if type(value) is bytes:
        return {"$bytes": value}
    if type(value) is list:
        return [as_json(item, depth + 1) for item in value]
    if type(value) is dict:
        looks_tagged = len(value) == 1 and str(next(iter(value))).startswith("$")
        if not looks_tagged and all(type(key) is str and not find_surrogate(key) for key in value):
            return {key: as_json(item, depth + 1) for key, item in value.items()}
        return {"$dict": [[as_json(part, depth + 3) for part in pair] for pair in value.items()]}
    code, data = (-1, value.to_bytes()) if type(value) is msgpack.Timestamp else (value.code, value.data)
    number = int.from_bytes(data, "big", signed=True)
    if (code, len(data)) in ((4, number.bit_length() // 8 + 1), (12, 16), (16, 8)):
        return {TAGS[code]: str(number) if code == 4 else data.hex() if code == 12 else number_of(data)}
    try:
        inner = unpack(data if code in TAGS and code not in (4, 12, 16) else b"")
    except DAMAGED:
        return {"$ext": [code, data]}
    return {TAGS[code]: as_json(inner, depth + 1)}


class Session:
    """The session in the directory *path*, as one read transaction of its store sees it."""

    def __init__(self, path: Path, env: lmdb.Environment, identity: bytes, *, new: bool = False) -> None:
        self.path, self.identity = path, identity
        self.txn: Any = env.begin()
        if not new and self.get("meta", b"format") != b"\2":
            sys.exit(f"{path}: the store has format {self.get('meta', b'format')!r}; this program reads format 2")
        row = self.get("sessions", identity)
        self.key = unsealed(0, row)[0].to_bytes(4, "big") if row else b"none"
        self.schemas: dict[int, dict[str, Any]] = {}
        for key, data in self.items("schemas"):
            self.schemas[number_of(key)] = {"bytes": data}
            with suppress(*DAMAGED):
                self.schemas[number_of(key)] = dict(zip(SCHEMA_PARTS, unsealed(number_of(key), data), strict=True))

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.txn.get(RANGES[table] + key)  # type: ignore[no-any-return]

    def items(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Give the items of a table whose keys begin with *prefix*."""
        cursor, prefix = self.txn.cursor(), RANGES[table] + prefix
        for key, value in cursor.iternext() if cursor.set_range(prefix) else ():
            if not key.startswith(prefix):
                return
            yield key[1:], value

    def state(self, number: int) -> str:
        """Return the name of a state."""
        with suppress(*DAMAGED):
            return str(unsealed(number, self.get("states", number.to_bytes(4, "big")) or b"") if number else "")
        return f"unreadable state {number}"

    def members(self) -> Iterator[tuple[int, int, str]]:
        """Give N, schema number and state of each member of the session, in the order of N."""
        for prefix, entries in groupby(self.items("index", self.key), key=lambda item: item[0][:12]):
            first, found = number_of(prefix[4:]) * BLOCK, list[tuple[int, int, str]]()
            for key, value in entries:
                schema, state = unpack_from(">II", key, 12)
                found += ((first + place, schema, self.state(state)) for place in places_in(key, value))
            yield from sorted(found)

    def record(self, number: int, indexed_schema: int = -1) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """Return how the dump's line for a record begins and ends; and whether it can be read, else *indexed_schema* counts."""
        data = self.get("records", key_of(number)) or b""
        try:
            schema_number, revision, _, values = unsealed(number, data)
            schema = self.schemas[schema_number]
            fields = dict(zip(schema["fields"], values, strict=True))
            if not all(map(isinstance, map(fields.get, ("state", "tasks")[: schema["kind"]]), (str, list))):
                raise ValueError("it isn't what its schema says")
        except DAMAGED:
            schema = self.schemas.get(schema_number_in(data) if indexed_schema < 0 else indexed_schema, {})
            return {"id": f"{schema.get('name', 'Unreadable')}.{number}"}, {"record": data}, False
        head = {"id": f"{schema['name']}.{number}", "schema": schema_number, "revision": revision}
        try:
            return head, {"fields": {name: as_json(value) for name, value in fields.items()}}, True
        except DAMAGED:
            return head, {"values": data[match_header(data).end() : -5]}, True  # type: ignore[union-attr]

    def reached(self, end: int) -> tuple[bytearray, set[int]]:
        """Return for each N below *end* 1 if a member is that record or refers to it, else 0; and the schemas of these."""
        reached, schemas = bytearray(end), {schema for _, schema, _ in self.members()}
        for member, _, _ in self.members():
            pending: list[Any] = [Ext(16, key_of(member))]  # values whose references have not been followed yet
            while pending:
                value = pending.pop()
                code, number = (value.code, number_of(value.data)) if isinstance(value, Ext) else (0, 0)
                with suppress(*DAMAGED):
                    if isinstance(value, (list, dict)):
                        pending += [*value, *value.values()] if isinstance(value, dict) else value
                    elif code in (1, 2, 3, 15):
                        pending.append(unpack(value.data))
                    elif code == 16 and len(value.data) == 8 and not reached[number]:
                        reached[number] = (data := self.get("records", value.data) or b"") != b""
                        schemas.add(schema_number_in(data))
                        pending.append(unsealed(number, data))
        return reached, schemas

    def dump(self) -> Iterator[dict[str, Any]]:
        """Give the lines of `gc3session dump`."""
        end = number_of(self.get("meta", b"next N") or b"\1")
        dumped, schemas = bytearray(end), set(self.schemas)  # at N: 1 if its record belongs in the dump, else 0
        for key, _ in self.items("records"):
            dumped[number_of(key)] = 1
        if any(identity != self.identity for identity, _ in self.items("sessions")):
            dumped, schemas = self.reached(end)
        count, first, members = dumped.count(1), dumped.find(1), 0
        times = {file.name: file.stat().st_mtime_ns for file in self.path.iterdir() if file.name in TIME_FILES}
        text = (self.path / "created").read_bytes() if "created" in times else None
        yield {
            "dump": 2, "first": end if first < 0 else first, "next": end, "records": count, "created": times.get("created"),
            "command": text and text.decode("utf-8", "surrogateescape"), "finished": times.get("finished"),
        }  # fmt: skip
        yield from ({"schema": number} | schema for number, schema in self.schemas.items() if number in schemas)
        # A record stands in the first of these, and if it is a member in the second, too, which comes after it.
        places = merge(((n, -1, "") for n in compress(range(end), dumped)), self.members())
        for number, (*_, (_, schema, state)) in groupby(places, lambda place: place[0]):
            if dumped[number]:
                head, body, readable = self.record(number, schema)
                members += schema >= 0
                yield head | {"member": schema >= 0} | ({} if readable else {"state": state}) | body
        yield {"end": {"records": count, "members": members}}

    def stats(self) -> Iterator[str]:
        """Give a line for each state."""
        counts = Counter[str]()
        for key, count in self.items("counts", self.key):
            counts[self.state(number_of(key[8:]))] += number_of(count)
        return (f"{count:9,}  {ascii(state)[1:-1] or '(not a task)'}" for state, count in sorted(counts.items()))

    def list(self) -> Iterator[str]:
        """Give a line for each member: ID, state and name."""
        for head, body, readable in (self.record(number, schema) for number, schema, _ in self.members()):
            fields = body.get("fields", {"state": "(no JSON)" if readable else "(unreadable)"})
            yield "\t".join([head["id"], *(ascii(fields.get(name, "-"))[1:-1] for name in ("state", "jobname"))])

    def show(self, *ids: str) -> Iterator[dict[str, Any]]:
        """Give the records with these IDs; exit at one that is not there."""
        for id_ in ids:
            head, body, _ = self.record(int("0" + re.sub("[^0-9]|.*[.]", "", id_)[:18]))
            found = head["id"] == id_ and body.get("record") != b""
            yield head | body if found else sys.exit(f"there is no record {id_}")


def opened(path: Path, scratch: str, *, copied: bool) -> Session:
    """Return the session in a directory, read from a copy in *scratch* if *copied*; exit if it can't be read."""
    try:
        url = match_url(line := (path / "store.url").read_text()) or sys.exit(
            f"{line!r} is not the URL of an LMDB store"
        )
        store = path / unquote(url[1].removeprefix("//"), errors="surrogateescape")
        identity = bytes.fromhex(url[2])
        data, lock = store / "data.mdb", store / "lock.mdb"
        if not os.path.lexists(store):
            return Session(path, lmdb.open(scratch), identity, new=True)
        if data.is_symlink() or not data.is_file() or not data.stat().st_size:
            sys.exit(f"{data} is missing, empty, or not a file; restore it from a backup")
        read: Any = partial(lmdb.open, map_size=max(1 << 30, 2 * data.stat().st_size), readonly=True)
        env = read(os.fsencode(store), lock=lock.is_file() and not lock.is_symlink() and os.access(lock, os.W_OK))
        if copied:
            env.copy(scratch)
        return Session(path, read(scratch, lock=False) if copied else env, identity)
    except (OSError, lmdb.Error, *DAMAGED) as error:
        sys.exit(f"the session {path} can't be read: {error}")


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path)
    parser.add_argument("command", nargs="?", choices=["stats", "list", "show", "dump"], default="stats")
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--copy", action="store_true", help="read from a copy of the store, made in TMPDIR")
    args = parser.parse_args()
    sys.set_int_max_str_digits(0)
    dumps = partial(json.dumps, default=lambda data: b64encode(data).decode(), separators=(",", ":"))
    with (
        tempfile.TemporaryDirectory() as scratch,
        suppress(BrokenPipeError),
    ):  # as in `inspect_session.py ... | head`
        for line in getattr(opened(args.session, scratch, copied=args.copy), args.command)(*args.ids):
            print(line if type(line) is str else dumps(line, indent=2 if args.command == "show" else None))
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would write the rest as it ends


if __name__ == "__main__":
    main()
