"""What differs between two sessions or dumps: tasks added, removed, and changed in which fields.

Both are read as the lines of a dump, side by side. The lines are sorted by position; except for
tasks that were added late, that is the order of the Ns. So a line waits in memory only until the
other side has passed its N, or until the last late task if the other side has any.
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
from .dump import DumpLines
from .dump_files import DumpText, opened_lines

Side = SessionBase | str | os.PathLike[str] | IO[bytes]
"""A session, the path of one or of a dump, or a binary file with a dump."""

_CLASS: Final = "<class>"
_PLACE: Final = "<place in the session>"
_BYTES: Final = "<bytes>"


class Difference(NamedTuple):
    """A task that differs.

    Attributes:
        kind: 'added' (only the second side has it), 'removed' (only the first) or 'changed'.
        id: the task's ID.
        fields: for 'changed' the fields that differ, in the order of the record. `<class>` is
            its class, `<place in the session>` its order there, or whether it is there at all, and
            `<bytes>` stands for all if one of the records can't be read.
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
    id: str
    number: int
    text: str


class _Lines:
    """The records of one side, one after another.

    Attributes:
        waiting: ID -> line; the other side has not had these yet.
        passed: all lines with an N up to this have been given, except those of late tasks.
    """

    def __init__(self, text: DumpText) -> None:
        self._text = text
        self._tags: dict[int, str] = {}
        self._late = 0
        self.waiting: dict[str, _Line] = {}
        self.passed = 0
        self._lines = self._records()

    def next(self) -> _Line | None:
        """Return the next record, or None after the last."""
        try:
            return next(self._lines, None)
        except ValueError as error:
            raise self._text.broken(error) from error

    def gone(self, until: int, *, late: bool) -> list[_Line]:
        """Return the waiting lines with an N up to *until*, sorted: the other side has passed that N without them."""
        if late or not self.waiting or next(iter(self.waiting.values())).number > until:
            return []
        found = sorted(
            (line for line in self.waiting.values() if line.number <= until), key=lambda line: line.number
        )
        for line in found:
            del self.waiting[line.id]
        return found

    @property
    def late(self) -> bool:
        """Whether tasks may follow whose N has been passed."""
        return self._late > 0

    def fields(self, line: _Line) -> dict[str, Any]:
        """Return what is compared of a record, by the names that `Difference.fields` has."""
        record = json.loads(line.text)
        found: dict[str, Any] = {_PLACE: record["order"]}
        if "record" in record:
            return found | {_BYTES: record["record"]}
        found[_CLASS] = self._tags.get(record["schema"], "")
        return found | {name: json.dumps(value) for name, value in record["fields"].items()}

    def _records(self) -> Iterator[_Line]:
        end = False
        for number, text in enumerate(self._text, 1):
            if text.startswith('{"id":'):
                yield self._record(text)
                continue
            line = _decoded(text)
            if number == 1:
                if "dump" not in line:
                    raise ValueError("this is not a dump")
                self._late = line["late"] if type(line.get("late")) is int else 0
            elif "schema" in line:
                self._tags[line["schema"]] = line.get("tag", "")
            end = "end" in line
        if not end:
            raise ValueError("this is not a dump, or it is cut")
        self.passed, self._late = 1 << 64, 0

    def _record(self, text: str) -> _Line:
        id_ = text[7 : text.find('","', 7)]
        if "\\" in id_:
            id_ = str(_decoded(text)["id"])
        parsed = parse_id(id_)
        if parsed is None:
            raise ValueError("it has no ID")
        if parsed[1] < self.passed or (self._late and _is_late(text, parsed[1])):
            self._late -= 1
        else:
            self.passed = parsed[1]
        return _Line(id_, parsed[1], text)


def _is_late(text: str, number: int) -> bool:
    order = json.loads(text).get("order")
    return order is not None and order != number


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
    ends: set[str] = set()
    while len(ends) < 2:
        # The side that is behind is read on, so that both stay near the same N.
        behind = first if "second" in ends or (first.passed <= second.passed and "first" not in ends) else second
        ahead = second if behind is first else first
        line = behind.next()
        if line is None:
            ends.add("first" if behind is first else "second")
        elif line.id in ahead.waiting:
            other = ahead.waiting.pop(line.id)
            pair = (line, other) if behind is first else (other, line)
            changed = _changed(first, second, *pair)
            if changed:
                yield Difference("changed", line.id, changed)
        else:
            behind.waiting[line.id] = line
        yield from (Difference("removed", line.id) for line in first.gone(second.passed - 1, late=second.late))
        yield from (Difference("added", line.id) for line in second.gone(first.passed - 1, late=first.late))


def _changed(first: _Lines, second: _Lines, a: _Line, b: _Line) -> tuple[str, ...]:
    """Return the names of the fields in which two records differ."""
    if a.text == b.text and first._tags == second._tags:
        return ()
    before, after = first.fields(a), second.fields(b)
    missing = object()
    names = [*before, *(name for name in after if name not in before)]
    return tuple(name for name in names if before.get(name, missing) != after.get(name, missing))
