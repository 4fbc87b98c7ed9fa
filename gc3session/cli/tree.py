"""The tree of the collections of a session, read as it is walked through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from ..query.selection import Filters
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from ..system.number_set import Numbers


def in_tree(
    roots: Iterable[StoredTask | UnreadableTask], tasks: StoredTasks, filters: Filters, *, flat: bool
) -> Iterator[Place]:
    """Give tasks, and those in them, that fit, each after the collection that it is in.

    A collection is entered once, so cycles end.  Those that don't fit come before the first one
    in them that does.  With *flat* they are left out, and each task comes once.
    """
    entered: set[int] = set()
    given = Numbers()
    above: list[Place] = []  # those that lead to where we are
    waiting: list[Place] = []  # those of them that have not been given, as they don't fit
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
        place = Place(task, len(above), isinstance(task, UnreadableTask) or filters.fit(task))
        if place.fits and not (flat and task.number in given):
            if not flat:
                yield from waiting
            waiting.clear()
            yield place
            if flat:
                given.add(task.number)
        if isinstance(task, StoredTask) and task.parts and task.number not in entered:
            entered.add(task.number)
            above.append(place)
            if not place.fits:
                waiting.append(place)
            levels.append(tasks.parts_of(task))


@attrs.define
class Place:
    """A task in a list.

    Attributes:
        depth: in how many collections it stands.
        fits: whether it was asked for; if not, it is shown as it leads to one that was.
    """

    task: StoredTask | UnreadableTask
    depth: int = 0
    fits: bool = True
