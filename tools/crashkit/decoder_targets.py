"""What reads bytes: each target takes bytes, and returns how it ended; it raises what isn't documented."""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import msgpack
import numpy  # noqa: F401  so that the decoder builds arrays

import gc3session
from gc3session import Error, Session, Task
from gc3session.cli.fields_text import object_lines
from gc3session.format.frame import header_of, seal, values_of
from gc3session.format.schema import PERSISTABLE, Schema
from gc3session.index.entries import INDEX_KEY, Row, numbers_of, unpack_members
from gc3session.index.states import unpack_state
from gc3session.records import json_values
from gc3session.records.values import Decoder, references
from gc3session.upkeep.check_index import check_lease
from hostile_values import hostile_body, hostile_members, hostile_value

Target = Callable[[bytes], str]


def _ended(read: Callable[[], object]) -> str:
    """Return 'read', or 'refused' if a documented error says that it can't be."""
    try:
        read()
    except Error:
        return "refused"
    return "read"


def value(data: bytes) -> str:
    """Decode a value, and show it."""
    decoder = Decoder(lambda number: number)
    return _ended(lambda: decoder.unpack(data))


def record(data: bytes) -> str:
    """Read a record's header, values and references."""

    def read() -> None:
        sealed = seal(7, data)
        header_of(sealed)
        _, _, values = values_of(7, sealed)
        for item in values if isinstance(values, list) else ():
            references(item)

    return _ended(read)


def schema(data: bytes) -> str:
    """Read a schema."""
    return _ended(lambda: Schema.from_bytes(3, seal(3, data)))


def row(data: bytes) -> str:
    """Read a session's row."""
    return _ended(lambda: Row.from_bytes(b"x" * 16, seal(0, data)))


def state(data: bytes) -> str:
    """Read the name of a state."""
    return _ended(lambda: unpack_state(3, seal(3, data)))


def members(data: bytes) -> str:
    """Read an entry of the index, in a block that the data choose, too."""
    key = INDEX_KEY.pack(1, zlib.crc32(data) << (data[0] if data else 0) % 33, 1, 1)

    def read() -> None:
        bits = unpack_members(key, data + zlib.crc32(data, zlib.crc32(key)).to_bytes(4, "big"))
        numbers = numbers_of(INDEX_KEY.unpack(key)[1], bits)
        if len(numbers) != bits.bit_count() or numbers != sorted(numbers):
            raise AssertionError(f"{bits:x} has the members {numbers}")

    return _ended(read)


def lease(data: bytes) -> str:
    """Check a lease."""
    return _ended(lambda: check_lease(3, seal(3, data)))


class _Fixture:
    """A session in a temporary directory, whose one task's record is replaced in memory."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.session = Session(self.place / "session")
        self.session.add(Task(jobname="x"))
        self.store = self.session.store
        with self.store.reading() as reader:
            record = reader.get("records", struct.pack(">Q", 1))
        assert record is not None
        schema, _, _, values = msgpack.unpackb(record[:-5])
        self.schema = schema
        self.fields = len(values)


_fixture: _Fixture | None = None


def fixture() -> _Fixture:
    """Return the session, which is made once a process."""
    global _fixture
    if _fixture is None:
        _fixture = _Fixture()
    return _fixture


def load(data: bytes) -> str:
    """Build the object of a record, and show each of its lines."""
    at = fixture()

    def read() -> None:
        at.store.loader.live.clear()
        for line in object_lines(at.store.loader.load(1, seal(1, data)), lambda text, style: text):
            if not line.isprintable():
                raise AssertionError(f"not escaped: {line!r}")

    return _ended(read)


def as_json(data: bytes) -> str:
    """Write the values of a record as JSON, and read that again."""
    schema = Schema(1, "x:X", "X", PERSISTABLE, ("f0", "f1", "f2"))

    def read() -> None:
        text = json_values.FieldsEncoder().encode(schema, data)
        decoder = json_values.FieldsDecoder()
        again = decoder.decode(text)
        for name in schema.fields:
            decoder.pack(again[name])

    try:
        return _ended(read)
    except json_values.NotJSON:
        return "refused"


def json_line(data: bytes) -> str:
    """Read a line of a dump."""
    decoder = json_values.FieldsDecoder()
    try:
        decoder.pack(decoder.decode(data.decode("ascii", "replace")))
    except ValueError:
        return "refused"
    return "read"


def dump(data: bytes) -> str:
    """Load a dump into a session whose store is never written: the dump is read to its end first."""
    at = fixture()
    lines = io.BytesIO(_header(data) + data + b"\n")
    target = at.place / "loaded"

    def read() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc3session.load_dump(target, lines)

    ended = _ended(read)
    if target.exists():
        Session(target).destroy()
    return ended


def _header(data: bytes) -> bytes:
    if data[:1] == b"!":
        return b""
    return (
        b'{"dump":2,"first":1,"next":9,"records":1,"created":1,"command":"x","finished":null}\n'
        b'{"schema":1,"tag":"Task","name":"Task","kind":1,"fields":["jobname","state"]}\n'
    )


def trusting(data: bytes) -> str:
    """Unpack with the limits that msgpack has: what the control is to find."""
    (claimed,) = struct.unpack_from(">I", data.ljust(4, b"\xff"))
    bytearray(claimed)
    return "read"


TARGETS: Final[dict[str, Target]] = {
    "value": value,
    "record": record,
    "schema": schema,
    "row": row,
    "state": state,
    "members": members,
    "lease": lease,
    "load": load,
    "as_json": as_json,
    "json_line": json_line,
    "dump": dump,
}


def instrument(atheris: Any) -> None:
    """Have atheris see which branches the readers take."""
    from gc3session.format import frame, schema
    from gc3session.index import entries, states
    from gc3session.records import codec, values
    from gc3session.store import loader

    for module in (codec, entries, frame, json_values, loader, schema, states, values):
        own = [found for found in vars(module).values() if getattr(found, "__module__", "") == module.__name__]
        for owner in (module, *(found for found in own if isinstance(found, type))):
            for name, found in list(vars(owner).items()):
                if hasattr(found, "__code__") and found.__module__ == module.__name__:
                    setattr(owner, name, atheris.instrument_func(found))


def choose(number: int, targets: dict[str, Target]) -> str:
    """Return the target that *number* chooses; a dump, for which a session is made on the disk, is rare."""
    names = [name for name in targets if name != "dump"]
    return "dump" if "dump" in targets and number % 256 == 255 else names[number % len(names)]


# -- inputs that know what is read


def generated(target: str, rng: Random) -> bytes:
    """Return an input for a target."""
    if target == "value" or target == "trusting":
        return hostile_value(rng)
    if target == "json_line":
        return _json(rng, 0).encode("ascii", "replace")
    if target == "dump":
        return _dump_lines(rng)
    if target == "load":
        at = fixture()
        fields = [hostile_value(rng) if rng.random() < 0.4 else b"\xc0" for _ in range(at.fields)]
        begin = b"\x94" + bytes(msgpack.packb(at.schema)) + b"\x01\x01"
        return begin + struct.pack(">BH", 0xDC, len(fields)) + b"".join(fields)
    if target == "as_json":
        return b"\x93" + b"".join(hostile_value(rng) for _ in range(3))
    if target == "members":
        return hostile_members(rng)
    if target in _SOUND and rng.random() < 0.7:
        parts = [hostile_value(rng) if rng.random() < 0.2 else msgpack.packb(part) for part in _SOUND[target]]
        return bytes([0x90 | len(parts)]) + b"".join(parts)
    return hostile_body(rng)


_SOUND: Final[dict[str, list[Any]]] = {
    "schema": ["x:X", "X", 1, ["state", "jobname"]],
    "row": [1, 5, [1 << 60, 3], [7, 90, 9, "boot 1 2 3", 40, b"Task.5\n", [[9, 6], [30, 6]]]],
    "lease": ["worker", 1 << 60, 1],
}
"""The parts of sound ones."""


def _dump_lines(rng: Random) -> bytes:
    """Return lines that may stand in a dump behind `_header`."""
    lines = []
    for n in range(rng.randrange(1, 3)):
        fields = f'{{"jobname":{_json(rng, 1)},"state":"NEW"}}'
        ids = (f"Task.{n + 1}", "Task.x", "../x.1", "Task.99999999999999999999", "\\u001b.1")
        id_ = rng.choice((ids[0], *ids))
        schema, revision = rng.choice((1, 1, 1, 2)), rng.choice((1, 1, 1, 0, -1, "null", 1 << 70))
        member = rng.choice(("true", "true", "false", "null", "1"))
        lines.append(
            f'{{"id":"{id_}","schema":{schema},"revision":{revision},"member":{member},"fields":{fields}}}'
        )
    lines.append(f'{{"end":{{"records":1,"members":{rng.choice((1, 1, 0))}}}}}')
    return "\n".join(lines).encode("ascii", "replace")


_SCALARS: Final = (
    "null", "true", "1", "-1", "1e999", "1" * 5000, '"x"', '"\\ud800"', "NaN", "[]", "{}", '""', "0.1", '"="', "1e-400",
    str(1 << 64), str(-(1 << 63) - 1),
)  # fmt: skip


def _json(rng: Random, depth: int) -> str:
    """Return JSON that resembles the values of a dump."""
    kind = rng.randrange(7)
    if depth > 4 or kind == 0:
        return rng.choice(_SCALARS)
    if kind == 1:
        deep = rng.choice((3, 190, 300, 3000))
        return rng.choice(
            ("[" * deep + "]" * deep, '{"$tuple":[' * deep + "]}" * deep, '{"a":' * deep + "1" + "}" * deep)
        )
    if kind == 2:
        return "[" + ",".join(_json(rng, depth + 1) for _ in range(rng.randrange(4))) + "]"
    if kind == 3:
        return "{" + ",".join(f'"k{n}":{_json(rng, depth + 1)}' for n in range(rng.randrange(3))) + "}"
    tags = (*json_values.TAGS.values(), *"$float $str $bytes $dict $ref $int $uuid $ext $ $x".split())
    return f'{{"{rng.choice(tags)}":{_json(rng, depth + 1)}}}'
