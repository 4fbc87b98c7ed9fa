"""Dumps: all of a session as lines of JSON, from which it can be made again exactly.

A dump is ASCII text, one JSON object a line, without blanks::

    {"dump":1,"first":F,"next":X,"records":R,"late":L,"created":T,"command":C,"finished":T}
    {"schema":S,"tag":...,"name":...,"kind":...,"fields":[...]}      of each schema, by number
    {"id":"Task.1","schema":S,"revision":1,"order":1,"fields":{...}} of each record
    {"end":{"records":R,"members":M}}

- F is the least N of the records, X the store's next N, R how many records there are, M how
  many of them are in the session, L how many of those have another order than their N.  Times
  are those of the files `created` and `finished` in ns since 1970, or null; C is the text of
  `created`, its bytes that are not UTF-8 as surrogates (U+DC80 to U+DCFF), or null.
- A record's `order` is its place in the session, null if it isn't in it.  The lines are sorted
  by order, those of records without one by N among them: no order is also another record's N.
- The values in `fields` are told in json_values.py.
- A record that can't be read, or whose values are nested too deep for JSON, has
  `"record":base64` of its bytes instead of schema, revision and fields.  If it can't be read,
  `state` is what the index has for it.  A damaged schema is `{"schema":S,"bytes":base64}`.

A store that no other session uses is dumped whole, with what was forgotten or never added; of
a shared one, the session's records and all that these refer to.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from ..directory import SessionDirectory
from ..format.schema import Schema
from ..snapshots.snapshot import Kept, Snapshot, snapshot
from ..system.filesystem import opened_regular
from ..tables.interface import OnProgress
from .dump_files import written
from .record_lines import RecordLines, json_line

if TYPE_CHECKING:
    from ..session.base import SessionBase

DUMP_VERSION: Final = 1
"""The version of the format of dumps."""

_LONGEST_COMMAND: Final = 1 << 24  # bytes of `created`; Linux runs no longer command line
_LINES: Final = 256  # written at once


class Dumped(NamedTuple):
    """What a dump holds.

    Attributes:
        records: how many records.
        members: how many of them are in the session.
        unreadable: IDs of those that can't be read; the dump has their bytes.
        missing: Ns that are in the session's index but have no record; the dump lacks them.
    """

    records: int
    members: int
    unreadable: list[str]
    missing: list[int]


def dump_session(
    session: SessionBase, file: str | os.PathLike[str] | IO[bytes], *, progress: OnProgress | None = None
) -> Dumped:
    """Write all of a session to a file, from which `load_dump` makes it again exactly.

    Args:
        session: its unsaved batch is written first.
        file: a path, which names a whole dump or none at any moment and is compressed if it ends
            with `.gz` or `.zst` (by the package zstandard); or a binary file.
        progress: called with the number of records written, and of all.

    The dump is one state of the session, whoever writes to it meanwhile; the classes are not
    needed.  Other threads of the program wait for it if the session is read-only, and otherwise
    for as long as it takes to read the records.
    """
    if not session.store.read_only:
        session.flush()
    with written(file) as out, snapshot(session) as (state, kept):
        lines = DumpLines(session, state, kept)
        source = iter(lines)
        while some := list(islice(source, _LINES)):
            out.write("".join(some).encode("ascii"))
            if progress is not None:
                progress(lines.records, state.count)
    return Dumped(lines.records, lines.members, lines.unreadable, state.missing)


class DumpLines:
    """The lines of a dump.

    Attributes:
        records, members, unreadable: of the lines that have been given, as in `Dumped`.
    """

    def __init__(self, session: SessionBase, state: Snapshot, kept: Iterator[Kept]) -> None:
        self._path: str | None = getattr(session, "path", None)
        self._state = state
        self._kept = kept
        self._lines = RecordLines()
        self.records = self.members = 0
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[str]:
        yield json_line(self._header())
        for number, schema in self._state.schemas.items():
            yield json_line(_schema(number, schema))
        line_of, schemas = self._lines.of, self._state.schemas
        for number, order, schema_number, state, record in self._kept:
            self.records += 1
            self.members += order > 0
            written = schemas.get(schema_number)
            if state is None and isinstance(written, Schema):
                yield line_of(written, number, order, record)
            else:
                id_ = f"{written.name if isinstance(written, Schema) else 'Unreadable'}.{number}"
                self.unreadable.append(id_)
                yield self._lines.raw(id_, order, state, record)
        yield json_line({"end": {"records": self.records, "members": self.members}})

    def _header(self) -> dict[str, Any]:
        state = self._state
        told: dict[str, Any] = {"dump": DUMP_VERSION, "first": state.first, "next": state.next}
        told |= {"records": state.count, "late": state.late}
        created, finished = (None, None) if self._path is None else timestamp_files(self._path)
        return told | {
            "created": _time(created),
            "command": None if _time(created) is None else _text(created),
            "finished": _time(finished),
        }


def timestamp_files(path: str) -> tuple[Path, Path]:
    """Return the files `created` and `finished` of a session directory."""
    names = SessionDirectory.TIMESTAMP_FILES
    return Path(path, names["start"]), Path(path, names["end"])


def _time(file: Path | None) -> int | None:
    try:
        return None if file is None else file.lstat().st_mtime_ns
    except OSError:
        return None


def _text(file: Path | None) -> str | None:
    try:
        if file is None:
            return None
        with opened_regular(file) as opened:
            return opened.read(_LONGEST_COMMAND).decode("utf-8", "surrogateescape")
    except OSError:
        return None


def _schema(number: int, schema: Schema | bytes) -> dict[str, Any]:
    if isinstance(schema, bytes):
        return {"schema": number, "bytes": b64encode(schema).decode()}
    told: dict[str, Any] = {"schema": number, "tag": schema.tag, "name": schema.name, "kind": schema.kind}
    return told | {"fields": list(schema.fields)}
