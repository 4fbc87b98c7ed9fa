"""What a list shows of a task in a column: what every task has, and any of its fields."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import click

from .. import InvalidArgument, StoredTask
from ..query.field_path import MISSING, FieldPath, last_event
from .console import escaped, in_zone, state_colour, time_of
from .fields_text import one_line
from .table import Cell

NONE: Final = Cell("-", "dim")
DEFAULT: Final = "ID,NAME,STATE,LAST EVENT"


def columns_of(text: str) -> list[FieldPath]:
    """Return the columns that a text names, with commas between them. Raise UsageError if one is no field."""
    try:
        return [FieldPath.parse(part) for part in text.split(",")]
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error


def text_in(column: FieldPath, task: StoredTask) -> str:
    """Return what CSV has of a task in a column, '' for nothing; times are in ISO 8601."""
    value = column.of(task)
    if isinstance(value, datetime):
        local = None if value.tzinfo is None else in_zone(value)
        return (local or value).isoformat()
    return "" if value is MISSING or value is None else _text(value)


def cell_in(column: FieldPath, task: StoredTask) -> Cell:
    """Return the cell that a table has of a task in a column."""
    if column.text == "STATE":
        state = task.fields.get("state")
        return _name(state, state_colour(state, task.fields.get("returncode")))
    if column.text == "NAME":
        return _name(task.fields.get("jobname"))
    if column.text == "LAST EVENT":
        return _last_event(task)
    value = column.of(task)
    return NONE if value is MISSING or value is None else Cell(_text(value) or "-")


def _text(value: Any) -> str:
    return escaped(value) if type(value) is str else one_line(value)


def _name(value: Any, style: str = "") -> Cell:
    """Return the cell of what should be a text; of another value only its type is shown."""
    if isinstance(value, str):
        return Cell(escaped(value), style) if value else NONE
    return NONE if value is None else Cell(f"({type(value).__name__})", "dim")


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
