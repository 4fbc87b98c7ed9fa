"""Reading the lines of a dump (dump.py), and checking that they are whole and in order."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import CorruptRecord, InvalidArgument
from ..format.frame import seal
from ..format.schema import Schema
from ..records.ids import parse_id
from .dump import DUMP_VERSION
from .dump_files import broken_compression

_NO_DUMP: Final = 'this is not a dump: the first line of one begins with {"dump":'


class DumpRecord(NamedTuple):
    """The line of a record.

    Attributes:
        text: the line.
        line: what it holds, decoded.
        id: the record's ID.
        name, number: the two parts of the ID.
        member: whether the session holds it.
    """

    text: str
    line: dict[str, Any]
    id: str
    name: str
    number: int
    member: bool


class DumpReader:
    """A dump that is being read. Each method raises ValueError, with what is wrong, for a bad line.

    Args:
        lines: a binary file, or its lines.
        decode: returns the value of a line of JSON, or raises ValueError.
        name: that of the dump in messages; it is that of the file unless it is given.

    Attributes:
        first, next, count: from its first line: the least N, the N after the greatest, the number of records.
        schemas: schema number -> the schema, or the bytes of a damaged one.
        records, members: how many records have been read, and how many of them the session holds.
    """

    def __init__(self, lines: Iterable[bytes], decode: Callable[[str], Any], name: str | None = None) -> None:
        file_name = getattr(lines, "name", None)
        self._name = name or (file_name if isinstance(file_name, str) else "the dump")
        self._number = 0  # of the line that was read last
        self._texts = self._decoded_lines(lines)
        self._decode = decode
        self._after_schemas = ""
        self.first = self.next = self.count = 0
        self.schemas: dict[int, Schema | bytes] = {}
        self.records = self.members = 0

    def broken(self, what: object) -> InvalidArgument:
        """Return the exception for a fault of the line that was read last."""
        return InvalidArgument(f"{self._name}, line {self._number}: {what}")

    def _decoded_lines(self, lines: Iterable[bytes]) -> Iterator[str]:
        try:
            for line in lines:
                self._number += 1
                if not line.endswith(b"\n"):
                    raise ValueError("the dump is cut: this line has no end")
                if not line.isascii():
                    raise ValueError("it has other characters than ASCII")
                yield line.decode("ascii")
        except Exception as error:
            if not isinstance(error, broken_compression()):
                raise
            raise ValueError(f"it is cut or damaged ({error})") from error

    def read_head(self) -> None:
        """Read the first line and the schemas."""
        try:
            self._header = header = self._decoded(next(self._texts, ""))
        except ValueError as error:
            raise ValueError(_NO_DUMP) from error
        if "dump" not in header:
            raise ValueError(_NO_DUMP)
        if header["dump"] != DUMP_VERSION:
            raise ValueError(f"the version of this dump is {header['dump']!r}; only {DUMP_VERSION} is known here")
        self.first, self.next, self.count = (number_in(header, name) for name in ("first", "next", "records"))
        text = next(self._texts, "")
        while text.startswith('{"schema":'):
            line = self._decoded(text)
            self.schemas[number_in(line, "schema")] = _schema(line)
            text = next(self._texts, "")
        self._after_schemas = text
        if not 0 < self.first <= self.next < 1 << 63:
            raise ValueError("its first line has impossible numbers")

    def read_records(self) -> Iterator[DumpRecord]:
        """Give the records, and at the end check that none is missing."""
        following = self.first
        line: dict[str, Any] = {}
        for text in chain(filter(None, [self._after_schemas]), self._texts):
            line = self._decoded(text)
            if "id" not in line:
                break
            record = _record(text, line)
            if not following <= record.number < self.next:
                raise ValueError(
                    f"{record.id} is not in its place: the lines of a dump are sorted by the numbers of the IDs"
                )
            following = record.number + 1
            self.records += 1
            self.members += record.member
            yield record
        else:
            raise ValueError("the dump is cut: its last line is missing")
        if line.get("end") != {"records": self.records, "members": self.members} or self.records != self.count:
            raise ValueError("lines were taken out of this dump, or put into it")
        if next(self._texts, ""):
            raise ValueError("there is more after the end of the dump")

    def schema_of(self, record: DumpRecord) -> Schema | bytes | None:
        """Return the schema that the line of a record names; None if there is none of that number."""
        number = record.line.get("schema")
        return self.schemas.get(number) if type(number) is int else None

    def times(self) -> tuple[str, dict[str, int]] | None:
        """Return the command line and the times ('start', 'end') of the session; None if it had no directory."""
        if self._header.get("created") is None:
            return None
        names = {"start": "created", "end": "finished"}
        times = {which: self._header[name] for which, name in names.items() if self._header.get(name) is not None}
        if not all(type(time) is int for time in times.values()):
            raise ValueError("its 'created' or 'finished' is not a time in ns")
        return str(self._header.get("command") or ""), times

    def _decoded(self, text: str) -> dict[str, Any]:
        line = self._decode(text)
        if type(line) is not dict:
            raise ValueError("it is not a line of a dump")
        return line


def number_in(line: dict[str, Any], name: str) -> int:
    """Return a number of a line. Raise ValueError if it isn't one."""
    value = line.get(name)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"its {name!r} is not a number")
    return value


def bytes_in(line: dict[str, Any], name: str) -> bytes:
    """Return the bytes that a line has as base64. Raise ValueError if it hasn't."""
    value = line.get(name)
    if type(value) is not str:
        raise ValueError(f"its {name!r} is not base64")
    return b64decode(value, validate=True)


def _record(text: str, line: dict[str, Any]) -> DumpRecord:
    parsed, member = parse_id(line["id"]), line.get("member")
    if parsed is None or type(member) is not bool:
        raise ValueError(f"{line['id']!r} is not an ID, or the line doesn't say whether the session has it")
    return DumpRecord(text, line, line["id"], *parsed, member)


def _schema(line: dict[str, Any]) -> Schema | bytes:
    """Return the schema of a line, or the bytes of a damaged one."""
    number = number_in(line, "schema")
    if not 0 < number < 1 << 31:
        raise ValueError(f"{number} is no schema number")
    if "bytes" in line:
        return bytes_in(line, "bytes")
    try:
        body = msgpack.packb([line.get(key) for key in ("tag", "name", "kind", "fields")])
        return Schema.from_bytes(number, seal(number, body))
    except (CorruptRecord, TypeError, ValueError) as error:
        raise ValueError(f"it is not a schema: {error}") from error
