"""Tasks in the order of a field: what is held of each is the field and its place, not the task."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime, time
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from ..conditions import comparable
from ..entries import Entry
from ..field_path import MISSING, FieldPath
from ..stored import StoredTask, StoredTasks, UnreadableTask

_CHUNK: Final = 256
_KINDS: Final = (
    "number",
    "text",
    "datetime",
    "date",
    "time",
    "timedelta",
    "bool",
    "bytes",
)  # in this order, where a field holds several


def sorted_by(
    path: FieldPath,
    found: Iterable[StoredTask | UnreadableTask],
    tasks: StoredTasks,
    *,
    descending: bool,
    limit: int | None,
) -> Iterator[StoredTask | UnreadableTask]:
    """Give tasks in the order of what *path* leads to; those without it, or with what has no order, last.

    Tasks that are equal in it stay in the order of adding.  With a *limit* no more than that many
    are held at any time.  Each is read once more when its turn comes, and is as it is then.
    """
    keyed = ((_key(path, task, descending), _entry(task)) for task in found)
    first = itemgetter(0)
    if limit is None:
        ordered = sorted(keyed, key=first, reverse=descending)
    elif descending:
        ordered = heapq.nlargest(limit, keyed, key=first)
    else:
        ordered = heapq.nsmallest(limit, keyed, key=first)
    entries = map(itemgetter(1), ordered)
    while some := list(islice(entries, _CHUNK)):
        yield from tasks.at(some)


def _entry(task: StoredTask | UnreadableTask) -> Entry:
    return task.order, task.number, task.schema.number if isinstance(task, StoredTask) else 0


def _key(path: FieldPath, task: StoredTask | UnreadableTask, descending: bool) -> tuple[bool, int, Any]:
    """Return what a task is sorted by; what has no order comes last in both directions."""
    last = (not descending, 0, 0)
    value = MISSING if isinstance(task, UnreadableTask) else path.of(task)
    if value is MISSING:
        return last
    kind, value = comparable(value)
    if kind not in _KINDS:
        return last
    try:
        value = _ordered(value)
    except (ValueError, ArithmeticError, OSError):
        return last
    return last if value != value else (descending, _KINDS.index(kind), value)


def _ordered(value: Any) -> Any:
    """Return what is compared of a value: one type for each kind."""
    if isinstance(value, (Decimal, Fraction)):
        return float(value)
    if type(value) is datetime:
        return value.timestamp()
    if type(value) is time:
        return value.isoformat()
    return value
