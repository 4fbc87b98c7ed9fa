"""The event log of a session: the events of all its tasks, in the order of time.

An *event* is an entry of a task's history: the time at which the task came into a state, and the state.
"""

from __future__ import annotations

import heapq
import time as clock
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from ..errors import Error, InvalidArgument, LoadError
from ..system.external_sort import Sortable, in_order
from ..system.number_set import Numbers
from ..tasks import State
from .histories import History, TaskHistories
from .selection import Filters

if TYPE_CHECKING:
    from ..store.index import Index

UNKNOWN_TIME: Final = float("-inf")
"""The time of an event that has none; it comes before all others."""

_FIRST: Final = datetime.min.replace(tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_COUNTS_A_PAGE: Final = 1 << 12
_LARGE: Final = 255  # in a byte: this count or a greater one, which is kept elsewhere
_MOST_IN_MEMORY: Final = 10_000  # last events that are kept in memory while all are read
_LOOK_SPACING: Final = 4  # the time between the beginnings of two looks, at least: so many times that of a look
_WHOLE_SPACING: Final = 20  # the same for two looks at all tasks


class LogEntry(NamedTuple):
    """One event of one task, as `Session.log` gives it.

    Attributes:
        time: when the task came into the state (UTC); None if that isn't known.
        id: the task's ID.
        name: its jobname; None if it has none.
        state: the state; None if the history has something else in its place.
    """

    time: datetime | None
    id: str
    name: str | None
    state: str | None


def log(
    index: Index,
    wanted: Filters,
    last: int | None = None,
    interval: float | None = None,
    alive: Callable[[], bool] = lambda: True,
    wait: Callable[[float], None] = clock.sleep,
) -> Iterator[LogEntry]:
    """Give the events of a session's tasks; see `SessionBase.log`.

    Args:
        index: of the session.
        wanted: states, a name, and times; its other parts are ignored.
        last: how many events to give at first, the last ones; None for all.
        interval: seconds between two looks at the session; None to look once.
        alive: returns whether the session is still where it was opened.
        wait: called with the seconds to wait until the next look.

    Raise InvalidArgument if *last* or *interval* is out of range.
    """
    if last is not None and (type(last) is not int or last < 0):
        raise InvalidArgument(f"last must be how many events, not {last!r}")
    if interval is not None and not interval > 0:
        raise InvalidArgument(f"interval must be seconds between two looks, more than 0, not {interval!r}")
    return _Log(index, wanted, last, interval, alive, wait)


def _wanted(wanted: Filters, history: History, passed: int | None) -> list[tuple[float, str | None]]:
    """Return the times and states of those events of a task that are wanted.

    *passed* is how many of its events have been given; None if the task wasn't seen before. A task
    without a history has one event when it is first seen: its state, at an unknown time.
    """
    if wanted.name is not None and not wanted.name.search(history.name or ""):
        return []
    events = history.events or ([[None, history.state]] if passed is None else [])
    found = list(map(event_parts, events[passed:] if passed else events))
    if wanted.states is not None:
        found = [event for event in found if event[1] in wanted.states]
    if wanted.since is not None:
        found = [event for event in found if event[0] >= wanted.since]
    if wanted.before is not None:
        found = [event for event in found if UNKNOWN_TIME < event[0] < wanted.before]
    return found


def event_time(seconds: float) -> datetime | None:
    """Return the time of `event_parts` in UTC; None for UNKNOWN_TIME."""
    return datetime.fromtimestamp(seconds, UTC) if seconds > UNKNOWN_TIME else None


def event_parts(event: Any) -> tuple[float, str | None]:
    """Return the time, in seconds since 1970, and the state of an entry of a history, whatever it is."""
    if not isinstance(event, (list, tuple)) or len(event) != 2:
        return UNKNOWN_TIME, None
    seconds, state = event
    known = type(seconds) in (float, int) and _FIRST <= seconds < _LAST
    return float(seconds) if known else UNKNOWN_TIME, state if type(state) is str else None


def _latest(events: Iterator[Sortable], last: int | None) -> Iterator[Sortable]:
    """Return events in order: the *last* ones, or all if that is None."""
    if last is None:
        return in_order(events)
    if last <= _MOST_IN_MEMORY:
        return reversed(heapq.nlargest(last, events))
    numbers = count()
    entries = in_order(event for event, _ in zip(events, numbers, strict=False))
    return islice(entries, max(0, next(numbers) - last), None)


@attrs.define(eq=False)
class _Log(Iterator[LogEntry]):
    """The events of all tasks as they are now, after a LoadError for each task that can't be read.

    With an interval, those that are added come then; it ends when the session is gone. Each further look
    reads the tasks that are new and those that were not TERMINATED when they were last read. A task that
    had TERMINATED may go on, too, so now and then all tasks are read. A byte a task holds how many of its
    events have been given, so none is given twice and none is left out.
    """

    _index: Index
    _wanted: Filters
    _last: int | None
    _interval: float | None
    _alive: Callable[[], bool]
    _wait: Callable[[float], None]
    _entries: Iterator[Sortable] = attrs.Factory(lambda: iter(()))
    _failures: deque[LoadError] = attrs.Factory(deque)
    _given: _Counts = attrs.Factory(lambda: _Counts())  # of each task: how many of its events were given, plus 1
    _active: Numbers = attrs.Factory(Numbers)  # the tasks that were not TERMINATED when they were last read
    _read_to: int = 0  # the greatest N that has been read
    _reported: Numbers = attrs.Factory(Numbers)  # the unreadable tasks for which an exception was raised
    _version: tuple[int, int] | None = None  # of the session, at the last look
    _whole_version: tuple[int, int] | None = None  # of the session, at the last look at all tasks
    _whole_begin: float = 0.0  # when that look began
    _whole_duration: float = 0.0  # seconds that it took
    _duration: float = 0.0  # seconds that the last look took
    _ended: bool = False

    def __next__(self) -> LogEntry:
        while True:
            if self._failures:
                raise self._failures.popleft()
            for seconds, _, id_, name, state in self._entries:
                return LogEntry(event_time(seconds), id_, name, state)
            if self._ended:
                raise StopIteration
            self._ended = True  # if the look fails, or if it is the only one
            self._entries = self._next_look()

    def _next_look(self) -> Iterator[Sortable]:
        """Wait until something has changed, or until the session is gone, and look; at first without waiting."""
        if self._version is None:
            entries = self._look(self._newest_version(), whole=True, last=self._last)
            self._ended = self._interval is None
            return entries
        while True:
            self._wait(max(self._interval or 0, (_LOOK_SPACING - 1) * self._duration))
            if not self._alive():
                try:  # to read what was written before the session was deleted, from the files that are still open
                    return self._look(self._newest_version(), whole=True)
                except Error:  # this program has closed them
                    return iter(())
            version = self._newest_version()
            since_whole = clock.monotonic() - self._whole_begin
            whole = version != self._whole_version and since_whole > (_WHOLE_SPACING - 1) * self._whole_duration
            if whole or version != self._version:
                entries = self._look(version, whole=whole)
                self._ended = False
                return entries

    def _newest_version(self) -> tuple[int, int]:
        """Return what is different after each change of the session, in the store or in the batch."""
        self._index.ensure_open()
        store = self._index.store
        with store.lock, store.reading() as reader:
            return reader.serial, store.batch.version

    def _look(self, version: tuple[int, int], *, whole: bool, last: int | None = None) -> Iterator[Sortable]:
        """Return the events that have not been given yet, in order.

        *version* is that of the session before the look, so what changes meanwhile is seen at the next one.
        """
        begin = clock.monotonic()
        self._version = version
        before, self._active = self._active, Numbers()
        if whole:
            self._whole_version, self._whole_begin = version, begin
            histories = TaskHistories(self._index)
            found = histories.members(0)
        else:
            histories = TaskHistories(self._index, lambda n: n not in before and self._given.get(n) > 0)
            found = chain(histories.of(before), histories.members(self._read_to))
        entries = _latest(self._events(found), last)
        self._read_to = histories.last
        self._duration = clock.monotonic() - begin
        if whole:
            self._whole_duration = self._duration
        for failure in histories.unreadable:
            number = self._index.store.number_of(failure.id)
            if number not in self._reported:
                self._reported.add(number)
                self._failures.append(failure)
        return entries

    def _events(self, histories: Iterable[History]) -> Iterator[Sortable]:
        """Give what is sorted of each event; events at the same time are sorted by a running number."""
        number = 0
        for history in histories:
            for seconds, state in _wanted(self._wanted, history, self._passed(history)):
                yield seconds, number, history.id, history.name, state
                number += 1

    def _passed(self, history: History) -> int | None:
        """Return how many events of a task have been given, and note its others; None if it wasn't seen before."""
        if self._interval is None:
            return None
        number = history.number
        passed = self._given.get(number) - 1
        self._given.set(number, len(history.events) + 1)
        if history.state != State.TERMINATED:
            self._active.add(number)
        return None if passed < 0 else passed


class _Counts:
    """A count for each N, 0 until it is set; it takes a byte for each number near one whose count is known."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(_COUNTS_A_PAGE))
        self._large: dict[int, int] = {}

    def get(self, number: int) -> int:
        """Return the count of N."""
        count = self._pages[number // _COUNTS_A_PAGE][number % _COUNTS_A_PAGE]
        return count if count < _LARGE else self._large[number]

    def set(self, number: int, count: int) -> None:
        """Set the count of N."""
        self._pages[number // _COUNTS_A_PAGE][number % _COUNTS_A_PAGE] = min(count, _LARGE)
        if count >= _LARGE:
            self._large[number] = count
