"""What differs between two sessions or dumps: tasks added, removed, and changed in which fields.

Both are read as the lines of a dump, side by side: they are sorted by N.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, Final, NamedTuple

from ..records.ids import parse_id
from ..session.base import SessionBase
from ..session.session import Session
from ..snapshots.snapshot import snapshot
from .dump import DUMP_VERSION, DumpLines
from .dump_files import DumpText, opened_lines

Side = SessionBase | str | os.PathLike[str] | IO[bytes]
"""A session, the path of one or of a dump, or a binary file with a dump."""

_CLASS: Final = "<class>"
_MEMBER: Final = "<in the session>"
_BYTES: Final = "<bytes>"


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
        yield from _compared(_Lines(_text(first, stack)), _Lines(_text(second, stack)))


class _Line(NamedTuple):
    number: int
    id: str
    text: str


class _Lines:
    """The records of one side, one after another."""

    def __init__(self, text: DumpText) -> None:
        self._text = text
        self._lines = self._records()
        self.tags: dict[int, str] = {}

    def next(self) -> _Line | None:
        """Return the next record, or None after the last."""
        try:
            return next(self._lines, None)
        except ValueError as error:
            raise self._text.broken(error) from error

    def fields(self, line: _Line) -> dict[str, Any]:
        """Return what is compared of a record, by the names that `Difference.fields` has."""
        record = json.loads(line.text)
        found = {_MEMBER: record["member"], _CLASS: self.tags.get(record.get("schema"), "")}
        if "fields" not in record:
            return found | {_BYTES: record.get("values") or record["record"]}
        return found | {name: json.dumps(value) for name, value in record["fields"].items()}

    def _records(self) -> Iterator[_Line]:
        line: dict[str, Any] = {}
        number = 0
        for count, text in enumerate(self._text):
            if count and text.startswith('{"id":'):
                record = _record(text)
                if record.number <= number:
                    raise ValueError(f"{record.id} is not in its place: this is not a dump")
                number = record.number
                yield record
                continue
            line = _decoded(text)
            if not count and line.get("dump") != DUMP_VERSION:
                raise ValueError(f"this is not a dump of version {DUMP_VERSION}")
            if "schema" in line:
                self.tags[line["schema"]] = line.get("tag", "")
        if "end" not in line:
            raise ValueError("this is not a dump, or it is cut")


def _record(text: str) -> _Line:
    id_ = text[7 : text.find('","', 7)]
    if "\\" in id_:
        id_ = str(_decoded(text)["id"])
    parsed = parse_id(id_)
    if parsed is None:
        raise ValueError("it has no ID")
    return _Line(parsed[1], id_, text)


def _decoded(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not a line of a dump ({error})") from error
    if type(line) is not dict:
        raise ValueError("this is not a line of a dump")
    return line


def _text(side: Side, stack: ExitStack) -> DumpText:
    """Return the lines of a dump, or those that a session would have if it were dumped."""
    if isinstance(side, (str, os.PathLike)) and not os.path.isfile(side):
        side = stack.enter_context(Session(side, create=False, read_only=True))
    if not isinstance(side, SessionBase):
        return DumpText(stack.enter_context(opened_lines(side)))
    if not side.store.read_only:
        side.flush()
    # At once: the caller's code runs between two differences, and may write to the session.
    state, records = stack.enter_context(snapshot(side._index, at_once=True))
    return DumpText(DumpLines(state, records, side._directory).encoded(), name=side.name)


def _compared(first: _Lines, second: _Lines) -> Iterator[Difference]:
    a, b = first.next(), second.next()
    while a is not None or b is not None:
        before = a if a is not None and (b is None or a.number <= b.number) else None
        after = b if b is not None and (a is None or b.number <= a.number) else None
        if before is not None and after is not None and before.id == after.id:
            changed = _changed(first, second, before, after)
            if changed:
                yield Difference("changed", before.id, changed)
        else:
            if before is not None:
                yield Difference("removed", before.id)
            if after is not None:
                yield Difference("added", after.id)
        a = a if before is None else first.next()
        b = b if after is None else second.next()


def _changed(first: _Lines, second: _Lines, a: _Line, b: _Line) -> tuple[str, ...]:
    """Return the names of the fields in which two records differ."""
    if a.text == b.text and first.tags == second.tags:
        return ()
    before, after = first.fields(a), second.fields(b)
    missing = object()
    names = [*before, *(name for name in after if name not in before)]
    return tuple(name for name in names if before.get(name, missing) != after.get(name, missing))
