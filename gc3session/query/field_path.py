"""Paths to values inside a task: `extra.runtimeInSeconds`, `history.-1.1`, `LAST EVENT`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

from ..errors import InvalidArgument, LoadError
from ..records.codec import extras_of
from ..records.unbuilt import UnknownObject, built
from ..records.values import Opaque
from ..store.record_view import StoredReference, StoredTask
from ..tasks import Persistable, class_tag, field_names

MISSING: Final = object()
"""What a path leads to if the task has no such field."""

_PART: Final = r""""[^"]*"|'[^']*'|[^\s.,=<>!~'"]+"""
PATTERN: Final = rf"LAST EVENT|(?:{_PART})(?:\.(?:{_PART}))*"
"""A regular expression for a path."""

_START: Final = datetime(1970, 1, 1, tzinfo=UTC)

Root = Persistable | StoredTask


@attrs.frozen
class FieldPath:
    """A path from a task to a value inside it.

    Its parts are separated by dots.  The first one is the name of a field; each other one is a key
    of a dict, a field of an object, or the number of an item of a list or tuple (0 is the first one,
    -1 the last).  A part may be quoted, as in `extra."a.b"`.  ID, CLASS, NAME, STATE and LAST EVENT,
    in capitals, are the task's ID, the tag of its class, its `jobname`, its `state`, and the time of
    its last event.

    Attributes:
        text: the path as it was written.
        parts: each part, and whether it was quoted.
    """

    text: str = attrs.field(eq=False)
    parts: tuple[tuple[str, bool], ...]

    @classmethod
    def parse(cls, text: str) -> FieldPath:
        """Return the path of a text.  Raise InvalidArgument if it isn't one."""
        text = text.strip()
        if not re.fullmatch(PATTERN, text):
            raise InvalidArgument(
                f"{text!r} is not the path of a field: write such as state, extra.node, history.0.1 or"
                " extra.\"a b\".c, or one of ID, CLASS, NAME, STATE, 'LAST EVENT'"
            )
        if text in _SPECIAL:
            return cls(text, ((text, False),))
        parts = (match[0] for match in re.finditer(_PART, text))
        return cls(text, tuple((p[1:-1], True) if p[0] in "'\"" else (p, False) for p in parts))

    def of(self, task: Root) -> Any:
        """Return the value that the path leads to from a task, or MISSING."""
        first, quoted = self.parts[0]
        if not quoted and first in _SPECIAL:
            return _SPECIAL[first](task) if len(self.parts) == 1 else MISSING
        value = field_of(task, first)
        for part, quoted in self.parts[1:]:
            if value is MISSING:
                break
            value = _inside(value, part, quoted)
        return value


def field_of(task: Any, name: str) -> Any:
    """Return the value of a field of a task or an attrs object, or MISSING."""
    if type(task) is StoredTask:
        return task.fields.get(name, MISSING)
    if name in field_names(type(task)):
        return getattr(task, name, MISSING)
    return extras_of(task)[1].get(name, MISSING) if isinstance(task, Persistable) else MISSING


def _inside(value: Any, part: str, quoted: bool) -> Any:
    """Return the value inside *value* that one part of a path leads to, or MISSING."""
    if type(value) is Opaque:
        value = built(value)
    cls = type(value)
    if cls is dict:
        found = value.get(part, MISSING)
        number = None if quoted or found is not MISSING else _number(part)
        return found if number is None else value.get(number, MISSING)
    if cls is list or cls is tuple:
        number = None if quoted else _number(part)
        return value[number] if number is not None and -len(value) <= number < len(value) else MISSING
    if cls is UnknownObject:
        return value.fields.get(part, MISSING)
    if cls is StoredReference:
        try:
            value = value.read()
        except LoadError:
            return MISSING
    if isinstance(value, (Persistable, StoredTask)) or attrs.has(cls):
        return field_of(value, part)
    return MISSING


def _number(part: str) -> int | None:
    return int(part) if re.fullmatch(r"-?[0-9]{1,18}", part) else None


# -- what every task has ------------------------------------------------------


def last_event(task: Root) -> float | None:
    """Return the time of a task's last event, in seconds since 1970; None if it has none."""
    history = field_of(task, "history")
    try:
        seconds = history[-1][0]
    except (TypeError, LookupError):
        return None
    return seconds if type(seconds) is float or type(seconds) is int else None


def tag_of(task: Root) -> str:
    """Return the tag of the class in a task's record, or of its class if it was never stored."""
    if isinstance(task, StoredTask):
        return task.schema.tag
    schema = extras_of(task)[0]
    return class_tag(type(task)) if schema is None else schema.tag


def _last_event(task: Root) -> Any:
    seconds = last_event(task)
    try:
        return MISSING if seconds is None else _START + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return MISSING


_SPECIAL: Final = {
    "ID": lambda task: task.persistent_id,
    "CLASS": tag_of,
    "NAME": lambda task: field_of(task, "jobname"),
    "STATE": lambda task: field_of(task, "state"),
    "LAST EVENT": _last_event,
}
