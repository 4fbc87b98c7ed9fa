"""The columns of a list: what every task has, and any of its fields."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import attrs
import click

from .. import InvalidArgument, StoredTask
from ..query.field_path import MISSING, FieldPath, last_event
from .console import escaped, in_zone, state_colour, time_of
from .table import Cell

NONE: Final = Cell("-", "dim")
DEFAULT: Final = "ID,NAME,STATE,LAST EVENT"


@attrs.frozen
class ListColumn:
    """A column of a list.

    Attributes:
        path: leads to what it shows.
        cell: returns its cell in a table for a task.
    """

    path: FieldPath
    cell: Callable[[StoredTask], Cell]

    def text(self, task: StoredTask) -> str:
        """Return what CSV has of a task in this column, '' for nothing; times are in ISO 8601."""
        value = self.path.of(task)
        if value is MISSING or value is None:
            return ""
        if isinstance(value, datetime):
            local = None if value.tzinfo is None else in_zone(value)
            return (local or value).isoformat()
        return _text(value)


def list_columns(text: str) -> list[ListColumn]:
    """Return the columns that a text names, with commas between them. Raise UsageError if one is no field."""
    try:
        paths = [FieldPath.parse(part) for part in text.split(",")]
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error
    return [_column(path) for path in paths]


def _column(path: FieldPath) -> ListColumn:
    cells = {"STATE": _state, "NAME": lambda task: _name(task.fields.get("jobname")), "LAST EVENT": _last_event}
    return ListColumn(path, cells.get(path.text, lambda task: _value(path.of(task))))


def _value(value: Any) -> Cell:
    return Cell(_text(value) or "-") if value is not MISSING and value is not None else NONE


def _text(value: Any) -> str:
    if type(value) is str:
        return escaped(value)
    from .fields_text import one_line

    return " ".join(one_line(value).split("\n"))


def _name(value: Any, style: str = "") -> Cell:
    """Return the cell of what should be a text; of another value only its type is shown."""
    if isinstance(value, str):
        return Cell(escaped(value), style) if value else NONE
    return NONE if value is None else Cell(f"({type(value).__name__})", "dim")


def _state(task: StoredTask) -> Cell:
    state = task.fields.get("state")
    return _name(state, state_colour(state, task.fields.get("returncode")))


def _last_event(task: StoredTask) -> Cell:
    """Return when the last event was, and which it was unless it is the task's state."""
    time = time_of(last_event(task))
    if time is None:
        return NONE
    text = time.isoformat(" ", "seconds")
    try:
        _, last = task.fields["history"][-1]
    except (TypeError, ValueError, LookupError):
        return Cell(text)
    return Cell(text if last == task.fields.get("state") else f"{text} {_name(last).text}")
