"""What differs between two sessions or dumps: tasks added, removed, and changed in which fields.

Both are read as the lines of a dump, side by side.  The lines are sorted by position, which but
for tasks that were added late is the order of the Ns: so a line waits in memory only until the
other side has passed it, or, while late tasks may still come there, to the end of those.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any, Final, NamedTuple

from ..errors import InvalidArgument
from ..records.ids import parse_id
from ..session.base import SessionBase
from ..session.session import Session
from ..snapshots.snapshot import snapshot
from .dump import DumpLines
from .dump_files import broken_compression, opened_lines

Side = SessionBase | str | os.PathLike[str] | IO[bytes]
"""A session, the path of one or of a dump, or a binary file with a dump."""

_CLASS: Final = "<class>"
_PLACE: Final = "<place in the session>"
_BYTES: Final = "<bytes>"


class Difference(NamedTuple):
    """A task that differs.

    Attributes:
        kind: 'added' (only the second has it), 'removed' (only the first) or 'changed'.
        id: its ID.
        fields: of a changed one the fields that differ, in the order of the record; `<class>`
            for its class, `<place in the session>` if it is in one session only or in another
            order, `<bytes>` if one of the records can't be read.
    """

    kind: str
    id: str
    fields: tuple[str, ...] = ()


def diff(first: Side, second: Side) -> Iterator[Difference]:
    """Give what differs from one session, or dump, to another.

    Tasks inside collections count, too, and whatever else a dump has.  How often a record was
    saved is no difference.  Raise InvalidArgument for a file that is no whole dump, OpenError
    for a directory that is no session.
    """
    with ExitStack() as stack:
        yield from _compared(_Lines(first, stack), _Lines(second, stack))


class _Line(NamedTuple):
    id: str
    number: int
    text: str


class _Lines:
    """The records of one side, one after another.

    Attributes:
        waiting: ID -> line, of those that the other side has not had yet.
        passed: all lines with an N up to this have been given; but for late ones.
    """

    def __init__(self, side: Side, stack: ExitStack) -> None:
        self._name = str(getattr(side, "name", side))
        self._tags: dict[int, str] = {}
        self._late = 0
        self.waiting: dict[str, _Line] = {}
        self.passed = 0
        self._lines = self._records(_texts(side, stack))

    def next(self) -> _Line | None:
        """Return the next record, or None after the last."""
        return next(self._lines, None)

    def gone(self, until: int, *, late: bool) -> list[_Line]:
        """Return, sorted, the lines that wait in vain: the other side has passed *until*."""
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
        """Whether tasks may come whose N has been passed."""
        return self._late > 0

    def fields(self, line: _Line) -> dict[str, Any]:
        """Return what counts of a record, by the names that `Difference.fields` has."""
        told = json.loads(line.text)
        found: dict[str, Any] = {_PLACE: told["order"]}
        if "record" in told:
            return found | {_BYTES: told["record"]}
        found[_CLASS] = self._tags.get(told["schema"], "")
        return found | {name: json.dumps(value) for name, value in told["fields"].items()}

    def _records(self, texts: Iterable[str]) -> Iterator[_Line]:
        end = False
        for number, text in enumerate(texts, 1):
            if text.startswith('{"id":'):
                yield self._record(text, number)
                continue
            line = self._decoded(text, number)
            if number == 1:
                if "dump" not in line:
                    raise self._broken("this is not a dump", number)
                self._late = line["late"] if type(line.get("late")) is int else 0
            elif "schema" in line:
                self._tags[line["schema"]] = line.get("tag", "")
            end = "end" in line
        if not end:
            raise self._broken("this is not a dump, or it is cut", None)
        self.passed, self._late = 1 << 64, 0

    def _record(self, text: str, number: int) -> _Line:
        id_ = text[7 : text.find('","', 7)]
        if "\\" in id_:
            id_ = str(self._decoded(text, number)["id"])
        parsed = parse_id(id_)
        if parsed is None:
            raise self._broken("it has no ID", number)
        if parsed[1] < self.passed or (self._late and self._is_late(text, parsed[1])):
            self._late -= 1
        else:
            self.passed = parsed[1]
        return _Line(id_, parsed[1], text)

    @staticmethod
    def _is_late(text: str, number: int) -> bool:
        order = json.loads(text).get("order")
        return order is not None and order != number

    def _decoded(self, text: str, number: int) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"this is not a line of a dump ({error})", number) from error
        if type(line) is not dict:
            raise self._broken("this is not a line of a dump", number)
        return line

    def _broken(self, what: str, number: int | None) -> InvalidArgument:
        return InvalidArgument(f"{self._name}{'' if number is None else f', line {number}'}: {what}")


def _texts(side: Side, stack: ExitStack) -> Iterator[str]:
    """Give the lines of a dump, or of a session as if it were dumped."""
    if isinstance(side, (str, os.PathLike)) and not os.path.isfile(side):
        side = stack.enter_context(Session(side, create=False, read_only=True))
    if isinstance(side, SessionBase):
        if not side.store.read_only:
            side.flush()
        state, kept = stack.enter_context(
            snapshot(side, at_once=True)
        )  # the user's code runs between two differences
        yield from DumpLines(side, state, kept)
        return
    name = str(getattr(side, "name", side))
    file = stack.enter_context(opened_lines(side))
    try:
        for line in file:
            yield line.decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name}: this is not a dump") from error
    except broken_compression() as error:
        raise InvalidArgument(f"{name}: it is cut or damaged ({error})") from error


def _compared(first: _Lines, second: _Lines) -> Iterator[Difference]:
    ends: set[str] = set()
    while len(ends) < 2:
        # The side that is behind goes on, so that both are at the same N.
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
