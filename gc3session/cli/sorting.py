"""Tasks in the order of a field: what is kept of each is the field and its place, not the task."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any, Final

from ..query.conditions import comparable
from ..query.field_path import MISSING, FieldPath
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from ..system.external_sort import Sortable, in_order

_CHUNK: Final = 256  # tasks that are read at once
_FEW: Final = 10_000  # tasks for which a heap does
_LONGEST: Final = 1000  # characters of a text, or bytes, that count
_KINDS: Final = ("number", "text", "datetime", "date", "time", "timedelta", "bool", "bytes")
"""In this order, where the field holds several."""

Found = StoredTask | UnreadableTask


def sorted_by(
    path: FieldPath, found: Iterable[Found], tasks: StoredTasks, *, descending: bool, limit: int | None
) -> Iterator[Found]:
    """Give tasks in the order of what *path* leads to; those without it, or with what has no order, last.

    Tasks that are equal in it stay in the order of adding.  Of the first *limit* ones, if these
    are few, no more are kept at any time; of more tasks than memory should hold the keys go to a
    temporary file.  Each task is read once more when its turn comes, and is as it is then.
    """
    keys = (_key(path, task, place, descending) for place, task in enumerate(found))
    ordered: Iterable[Sortable]
    if limit is None or limit > _FEW:
        ordered = in_order(keys, reverse=descending)
    else:
        ordered = (heapq.nlargest if descending else heapq.nsmallest)(limit, keys)
    entries = ((order, number, schema) for *_, order, number, schema in ordered)
    while some := list(islice(entries, _CHUNK)):
        yield from tasks.at(some)


def _key(path: FieldPath, task: Found, place: int, descending: bool) -> Sortable:
    """Return what a task is sorted by, from the greatest if *descending*, and what it is found by."""
    value = MISSING if isinstance(task, UnreadableTask) else path.of(task)
    kind, value = ("", None) if value is MISSING else comparable(value)
    try:
        value = _ordered(value) if kind in _KINDS else None
    except (ValueError, ArithmeticError, OSError):  # such as a time at the end of the calendar
        value = None
    lacking = value is None or value != value
    what = (lacking != descending, 0, 0) if lacking else (descending, _KINDS.index(kind), value)
    schema = task.schema.number if isinstance(task, StoredTask) else task.name_schema
    return *what, -place if descending else place, task.order, task.number, schema


def _ordered(value: Any) -> Any:
    """Return what is compared of a value: of one type for its kind, and one that msgpack has."""
    if isinstance(value, (bool, str, bytes)):
        return value if isinstance(value, bool) else value[:_LONGEST]
    if type(value) is datetime:
        return value.timestamp()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if type(value) is timedelta:
        return value.total_seconds()
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
