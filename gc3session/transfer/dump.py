"""Dumps: all of a session as lines of JSON, from which it can be made again exactly.

A dump is ASCII text, one JSON object a line, without blanks::

    {"dump":2,"first":F,"next":X,"records":R,"created":T,"command":C,"finished":T}
    {"schema":S,"tag":...,"name":...,"kind":...,"fields":[...]}          of each schema, by number
    {"id":"Task.1","schema":S,"revision":1,"member":true,"fields":{...}} of each record, by N
    {"end":{"records":R,"members":M}}

The times T are those of the files `created` and `finished` in ns since 1970, C is the text of
`created`. `member` says whether the session holds the record. A value that has no JSON
(json_values.py), a record that can't be read and a damaged schema are there as base64; FORMAT.md
has them, and all else, exactly.

If no other session uses the store, all of its records are dumped, also those that were forgotten
or never added; else the session's records and all that they refer to.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import CorruptRecord
from ..format.frame import TAIL, header_of, values_of
from ..format.schema import Schema
from ..records.json_values import FieldsEncoder, NotJSON
from ..session.base import SessionBase
from ..snapshots.snapshot import HeldRecord, Snapshot, snapshot
from ..tables.interface import OnProgress, no_progress
from .dump_files import written

DUMP_VERSION: Final = 2
"""The version of the format of dumps."""

_LINES_AT_ONCE: Final = 256  # lines that are written by one call


class Dumped(NamedTuple):
    """What a dump holds.

    Attributes:
        records: how many records there are.
        members: how many of them the session holds.
        unreadable: the IDs of those that can't be read; the dump has their bytes.
        missing: Ns that are in the session's index but have no record, and so are not in the dump.
    """

    records: int
    members: int
    unreadable: list[str]
    missing: list[int]


def dump_session(
    session: SessionBase, file: str | os.PathLike[str] | IO[bytes], *, progress: OnProgress = no_progress
) -> Dumped:
    """Write all of a session to a file, from which `load_dump` makes it again exactly.

    Args:
        session: the session; its batch is written first.
        file: a path, or a binary file that is open. At a path there is a whole dump or none at any
            moment; it is compressed if it ends with `.gz` or `.zst` (by the package zstandard).
        progress: called with the number of records written, and of all.

    The dump is one state of the session, even if others write to it meanwhile; the classes are not
    needed. The records are read first, into a temporary file; other threads of the program wait
    for that.
    """
    if not session.store.read_only:
        session.flush()
    with written(file) as out, snapshot(session._index, progress) as (state, records):
        lines = DumpLines(state, records, session._directory)
        source = iter(lines)
        while some := list(islice(source, _LINES_AT_ONCE)):
            out.write(b"".join(some))
    return Dumped(lines.records, lines.members, lines.unreadable, state.missing)


class DumpLines:
    """The lines of a dump.

    Args:
        state, records: a snapshot.
        directory: where the session is; None if it has no directory.

    Attributes:
        records, members, unreadable: of the lines that have been given, as in `Dumped`.
    """

    def __init__(self, state: Snapshot, records: Iterator[HeldRecord], directory: SessionDirectory | None) -> None:
        self._state = state
        self._records = records
        self._directory = directory
        self._lines = RecordLines()
        self.records = self.members = 0
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        yield _json_line(self._header()).encode()
        for number, schema in self._state.schemas.items():
            yield _json_line(_schema(number, schema)).encode()
        for record in self._records:
            self.records += 1
            self.members += record.state is not None
            yield self._line(record).encode()
        yield _json_line({"end": {"records": self.records, "members": self.members}}).encode()

    def _line(self, held: HeldRecord) -> str:
        number, schema_number, is_readable, state, record = held
        schema = self._state.schemas.get(schema_number)
        if is_readable and isinstance(schema, Schema):
            try:
                return self._lines.of(schema, number, state is not None, record)
            except CorruptRecord:
                pass
        id_ = f"{schema.name if isinstance(schema, Schema) else 'Unreadable'}.{number}"
        self.unreadable.append(id_)
        return self._lines.raw(id_, state is not None, state or "", record)

    def _header(self) -> dict[str, Any]:
        state, directory = self._state, self._directory
        return {
            "dump": DUMP_VERSION,
            "first": state.first,
            "next": state.next,
            "records": state.count,
            "created": directory and directory.timestamp_ns("start"),
            "command": directory and directory.command(),
            "finished": directory and directory.timestamp_ns("end"),
        }


def _schema(number: int, schema: Schema | bytes) -> dict[str, Any]:
    if isinstance(schema, bytes):
        return {"schema": number, "bytes": b64encode(schema).decode()}
    parts = {"tag": schema.tag, "name": schema.name, "kind": schema.kind, "fields": list(schema.fields)}
    return {"schema": number, **parts}


class RecordLines:
    """Writes records as lines of a dump."""

    def __init__(self) -> None:
        self._encoder = FieldsEncoder()
        self._starts: dict[int, tuple[str, str]] = {}  # schema number -> what stands before and after the N

    def of(self, schema: Schema, number: int, member: bool, record: bytes) -> str:
        """Return the line of a record whose checksum is right, and whether the session holds it.

        Raise CorruptRecord if it isn't what its schema says.
        """
        start = self._starts.get(schema.number)
        if start is None:
            start = f'{{"id":{json.dumps(schema.name)[:-1]}.', f'","schema":{schema.number},"revision":'
            self._starts[schema.number] = start
        _, revision, _, end = header_of(record)
        packed = record[end:-TAIL]
        try:
            content = f'"fields":{self._encoder.encode(schema, packed)}'
        except NotJSON:
            schema.check(values_of(number, record)[2])
            content = f'"values":"{b64encode(packed).decode()}"'
        return f'{start[0]}{number}{start[1]}{revision},"member":{"true" if member else "false"},{content}}}\n'

    @staticmethod
    def raw(id_: str, member: bool, state: str, record: bytes) -> str:
        """Return the line of a record that can't be read, with the state that the index has for it."""
        return _json_line({"id": id_, "member": member, "state": state, "record": b64encode(record).decode()})


def _json_line(value: dict[str, Any]) -> str:
    """Return an object as a line of a dump."""
    return json.dumps(value, separators=(",", ":")) + "\n"
