"""What differs between two sessions or dumps: tasks added, removed, and changed in which fields.

Both are read as the lines of a dump, side by side: they are sorted by N.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, NamedTuple

from ..format.schema import Schema
from ..session.base import SessionBase
from ..session.session import Session
from ..snapshots.snapshot import snapshot
from .dump import DumpLines
from .dump_files import opened_lines
from .dump_reader import DumpReader, DumpRecord

Side = SessionBase | str | os.PathLike[str] | IO[bytes]
"""A session, the path of one or of a dump, or a binary file with a dump."""


class Difference(NamedTuple):
    """A task that differs.

    Attributes:
        kind: 'added' (only the second side has it), 'removed' (only the first) or 'changed'.
        id: the task's ID.
        fields: for 'changed' the fields that differ, in the order of the record. `<class>` is
            its class, `<in the session>` whether the session holds it, and `<bytes>` stands for all
            if one of the records can't be read, or has a value that JSON doesn't have.
    """

    kind: str
    id: str
    fields: tuple[str, ...] = ()


def diff(first: Side, second: Side) -> Iterator[Difference]:
    """Give what differs from one session or dump to another.

    Tasks inside collections count, too, and whatever else a dump has. How often a record was
    saved is no difference. Raise InvalidArgument for a file that isn't a whole dump, OpenError
    for a directory that isn't a session.
    """
    with ExitStack() as stack:
        a, b = (_reader(side, stack) for side in (first, second))
        before, after = _records(a), _records(b)
        x, y = next(before, None), next(after, None)
        same_schemas = a.schemas == b.schemas
        while x is not None or y is not None:
            if x is not None and y is not None and x.id == y.id:
                if x.text != y.text or not same_schemas:
                    yield from _changed(x.id, _fields(a, x), _fields(b, y))
                x, y = next(before, None), next(after, None)
            elif x is not None and (y is None or x.number <= y.number):
                yield Difference("removed", x.id)
                x = next(before, None)
            elif y is not None:
                yield Difference("added", y.id)
                y = next(after, None)


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def _reader(side: Side, stack: ExitStack) -> DumpReader:
    """Return the reader of a dump, or of the lines that a session would have if it were dumped."""
    if isinstance(side, (str, os.PathLike)) and not os.path.isfile(side):
        side = stack.enter_context(Session(side, create=False, read_only=True))
    if not isinstance(side, SessionBase):
        return DumpReader(stack.enter_context(opened_lines(side)), _decode)
    if not side.store.read_only:
        side.flush()
    state, records = stack.enter_context(snapshot(side._index))
    return DumpReader(DumpLines(state, records, side._directory), _decode, side.name)


def _records(dump: DumpReader) -> Iterator[DumpRecord]:
    try:
        dump.read_head()
        yield from dump.read_records()
    except ValueError as error:
        raise dump.broken(error) from error


def _fields(dump: DumpReader, record: DumpRecord) -> dict[str, Any]:
    """Return what is compared of a record, by the names that `Difference.fields` has."""
    schema, fields = dump.schema_of(record), record.line.get("fields")
    found = {"<in the session>": record.member, "<class>": schema.tag if isinstance(schema, Schema) else ""}
    if type(fields) is not dict:
        return found | {"<bytes>": record.line.get("values") or record.line.get("record")}
    return found | {name: json.dumps(value) for name, value in fields.items()}


def _changed(id_: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Difference]:
    missing = object()
    names = [*before, *(name for name in after if name not in before)]
    changed = tuple(name for name in names if before.get(name, missing) != after.get(name, missing))
    if changed:
        yield Difference("changed", id_, changed)
