"""The order of a list: that of a field, or the tree of the collections."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any, Final

import attrs

from .. import StoredTask, UnreadableTask
from ..query.conditions import comparable
from ..query.field_path import MISSING, FieldPath
from ..query.selection import Filters
from ..store.record_view import StoredTasks
from ..system.external_sort import Sortable, in_order
from ..system.number_set import Numbers

FoundTask = StoredTask | UnreadableTask

# -- by a field ---------------------------------------------------------------

_TASKS_AT_ONCE: Final = 256  # tasks read together
_HEAP_TASKS: Final = 10_000  # the greatest limit for which a heap is used
_KEY_LENGTH: Final = 1000  # characters of a text, or bytes, that are compared
_KINDS: Final = ("number", "text", "datetime", "date", "time", "timedelta", "bool", "bytes")
"""The order of the kinds of values, where the field holds several."""


def sorted_by(
    path: FieldPath, found: Iterable[FoundTask], tasks: StoredTasks, *, descending: bool, limit: int | None
) -> Iterator[FoundTask]:
    """Give tasks in the order of the field that *path* leads to; those without it, or without an order in it, last.

    Tasks that are equal in it stay in the order of adding. What is kept of each is the field and
    its place, not the task: of the *limit* first ones in memory, if these are few, else of all of
    them, in a temporary file if they are many. Each task is read once more when its turn comes,
    and is as it is then.
    """
    keys = (_key(path, task, place, descending) for place, task in enumerate(found))
    ordered: Iterable[Sortable]
    if limit is None or limit > _HEAP_TASKS:
        ordered = in_order(keys, reverse=descending)
    else:
        ordered = (heapq.nlargest if descending else heapq.nsmallest)(limit, keys)
    entries = ((number, schema) for *_, number, schema in ordered)
    while some := list(islice(entries, _TASKS_AT_ONCE)):
        yield from tasks.at(some)


def _key(path: FieldPath, task: FoundTask, place: int, descending: bool) -> Sortable:
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
    return *what, -place if descending else place, task.number, schema


def _ordered(value: Any) -> Any:
    """Return what is compared of a value: of one type for each kind, and a type that msgpack has."""
    if isinstance(value, (bool, str, bytes)):
        return value if isinstance(value, bool) else value[:_KEY_LENGTH]
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


# -- as a tree ----------------------------------------------------------------


@attrs.define
class ListedTask:
    """A task in a list.

    Attributes:
        task: the task.
        depth: how many collections it stands in.
        fits: whether it was asked for; if not, it is shown because a task that was is inside.
    """

    task: FoundTask
    depth: int = 0
    fits: bool = True


def in_tree(
    roots: Iterable[FoundTask], tasks: StoredTasks, filters: Filters, *, flat: bool
) -> Iterator[ListedTask]:
    """Give the tasks that fit, and those inside them, each after the collection that it is in.

    The tree is read as it is walked through; a collection is entered once, so cycles end.
    Collections that don't fit come before the first task inside that does. With *flat* they are
    left out, and each task comes once.
    """
    entered: set[int] = set()
    given = Numbers()
    above: list[ListedTask] = []  # the collections that lead to this point
    waiting: list[ListedTask] = []  # those of them that don't fit and have not been given
    levels = [iter(roots)]
    while levels:
        task = next(levels[-1], None)
        if task is None:
            levels.pop()
            if above:
                left = above.pop()
                if waiting and waiting[-1] is left:
                    waiting.pop()
            continue
        listed = ListedTask(task, len(above), isinstance(task, UnreadableTask) or filters.fit(task))
        if listed.fits and not (flat and task.number in given):
            if not flat:
                yield from waiting
            waiting.clear()
            yield listed
            if flat:
                given.add(task.number)
        if isinstance(task, StoredTask) and task.parts and task.number not in entered:
            entered.add(task.number)
            above.append(listed)
            if not listed.fits:
                waiting.append(listed)
            levels.append(tasks.parts_of(task))
