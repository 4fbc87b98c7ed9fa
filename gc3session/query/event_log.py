"""What has happened in a session: the events of all its tasks, in the order of time.

An *event* is an entry of a task's history: since when it has been in which state.
"""

from __future__ import annotations

import heapq
import time as clock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from ..errors import CorruptRecord, Error, InvalidArgument
from ..records.values import TUPLE
from ..system.external_sort import Sortable, in_order
from ..system.number_set import Numbers
from ..tasks import State
from .histories import Histories, History
from .selection import Filters

if TYPE_CHECKING:
    from ..session.base import SessionBase

UNKNOWN_TIME: Final = float("-inf")
"""The time of an event that has none; it comes before all others."""

_FIRST: Final = datetime.min.replace(tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_PAGE: Final = 1 << 12  # counts
_GREAT: Final = 255  # stands for all counts that a byte can't hold
_FEW: Final = 10_000  # last events that are kept in memory while all are read
_SHARE: Final = 4  # looking takes at most one part in so many of the time
_RARELY: Final = 20  # looking at all tasks: at most one part in so many


class LogEntry(NamedTuple):
    """One event of one task.

    Attributes:
        time: since when the task has been in the state (UTC); None if that isn't known.
        id: the task's ID.
        name: its jobname; None if it has none.
        state: the state; None if the history has something else.
    """

    time: datetime | None
    id: str
    name: str | None
    state: str | None


def log(
    session: SessionBase,
    wanted: Filters,
    last: int | None = None,
    interval: float | None = None,
    wait: Callable[[float], None] = clock.sleep,
) -> Iterator[LogEntry]:
    """Give the events of a session's tasks; see `SessionBase.log`.

    Args:
        session: whose tasks.
        wanted: states, a name, and times; nothing else of it is looked at.
        last: how many events, the last ones; None for all.
        interval: seconds between two looks at the session; None to look once.
        wait: called with the seconds to wait until the next look.
    """
    if last is not None and (type(last) is not int or last < 0):
        raise InvalidArgument(f"last must be how many events, not {last!r}")
    if interval is None:
        return _Log(session, wanted, last)
    if not interval > 0:
        raise InvalidArgument(f"interval must be seconds between two looks, more than 0, not {interval!r}")
    return _Following(session, wanted, last, interval, wait)


def _wanted(wanted: Filters, history: History, passed: int | None) -> Iterator[tuple[float, str | None]]:
    """Give time and state of the wanted ones of a task's events.

    *passed* is how many of them have been given, None if the task hasn't been seen; only then does
    one without a history have an event, of unknown time: that it is in its state.
    """
    if wanted.name is not None and not wanted.name.search(history.name or ""):
        return
    events = history.events or ([[None, history.state]] if passed is None else [])
    for event in islice(events, passed, None):
        seconds, state = event_parts(event)
        if wanted.states is not None and state not in wanted.states:
            continue
        if wanted.since is not None and not seconds >= wanted.since:
            continue
        if wanted.before is not None and not UNKNOWN_TIME < seconds < wanted.before:
            continue
        yield seconds, state


def event_parts(event: Any) -> tuple[float, str | None]:
    """Return the seconds and the state of an entry of a history, whatever it is."""
    if type(event) is msgpack.ExtType and event.code == TUPLE:
        event = msgpack.unpackb(event.data, strict_map_key=False, unicode_errors="surrogatepass")
    if type(event) is not list or len(event) != 2:
        return UNKNOWN_TIME, None
    seconds, state = event
    known = type(seconds) in (float, int) and _FIRST <= seconds < _LAST
    return float(seconds) if known else UNKNOWN_TIME, state if type(state) is str else None


class _Log(Iterator[LogEntry]):
    """The events of all tasks as they are now; what can't be read is raised first."""

    def __init__(self, session: SessionBase, wanted: Filters, last: int | None) -> None:
        self._session = session
        self._wanted = wanted
        self._last = last
        self._entries: Iterator[Sortable] | None = None
        self._failures: deque[CorruptRecord] = deque()

    def __next__(self) -> LogEntry:
        if self._entries is None:
            self._entries = self._first_look()
        if self._failures:
            raise self._failures.popleft()
        seconds, _, id_, name, state = next(self._entries)
        return LogEntry(datetime.fromtimestamp(seconds, UTC) if seconds > UNKNOWN_TIME else None, id_, name, state)

    def _first_look(self) -> Iterator[Sortable]:
        histories = Histories(self._session)
        entries = _latest(self._events(histories.members(0)), self._last)
        self._failures.extend(histories.unreadable)
        return entries

    def _events(self, histories: Iterable[History]) -> Iterator[Sortable]:
        """Give what is to be sorted: of equal times, those of the task that was added first come first."""
        number = 0
        for history in histories:
            for seconds, state in _wanted(self._wanted, history, self._passed(history)):
                yield seconds, number, history.id, history.name, state
                number += 1

    def _passed(self, history: History) -> int | None:
        """Return how many events of a task have been given; None if it hasn't been seen."""
        return None


def _latest(events: Iterator[Sortable], last: int | None) -> Iterator[Sortable]:
    """Return events in order, only the *last* of them unless that is None."""
    if last is None:
        return in_order(events)
    if last <= _FEW:
        return reversed(heapq.nlargest(last, events))
    count = 0

    def counted() -> Iterator[Sortable]:
        nonlocal count
        for event in events:
            count += 1
            yield event

    entries = in_order(counted())
    return islice(entries, max(0, count - last), None)


class _Following(_Log):
    """The events of all tasks, and then those that come; it ends when the session is gone.

    Each look reads the tasks that are new and those that were not TERMINATED when they were last
    read, and now and then all tasks: one that had TERMINATED may go on.  How many events of each
    task have been given is kept in a byte for each, so none is given twice, and none left out.
    """

    def __init__(
        self,
        session: SessionBase,
        wanted: Filters,
        last: int | None,
        interval: float,
        wait: Callable[[float], None],
    ) -> None:
        super().__init__(session, wanted, last)
        self._interval = interval
        self._wait = wait
        self._given = _Counts()
        self._open = Numbers()  # those that were not TERMINATED when they were last read
        self._order = 0  # the greatest that has been read
        self._told = Numbers()  # the unreadable ones that have been told of
        self._state: tuple[int, int] | None = None  # of the store, at the last look
        self._whole: tuple[int, int] | None = None  # of the store, when all tasks were looked at
        self._whole_at = self._whole_took = self._took = 0.0
        self._ended = False

    def __next__(self) -> LogEntry:
        while True:
            try:
                return super().__next__()
            except StopIteration:
                if self._ended:
                    raise
            try:
                self._entries = self._next_look()
            except BaseException:
                self._entries, self._ended = iter(()), True
                raise

    def _first_look(self) -> Iterator[Sortable]:
        return self._look(self._state_now(), whole=True, last=self._last)

    def _next_look(self) -> Iterator[Sortable]:
        """Wait until something has changed, or until the session is gone, and look."""
        while True:
            self._wait(max(self._interval, (_SHARE - 1) * self._took))
            if not self._session._is_there():
                self._ended = True
                try:  # what was written before it went, from the files that are still open
                    return self._look(self._state_now(), whole=True)
                except Error:  # this program has closed them
                    return iter(())
            state = self._state_now()
            if state != self._whole and clock.monotonic() - self._whole_at > (_RARELY - 1) * self._whole_took:
                return self._look(state, whole=True)
            if state != self._state:
                return self._look(state, whole=False)

    def _state_now(self) -> tuple[int, int]:
        """Return what is different after each change of the session."""
        session, store = self._session, self._session.store
        session._ensure_open()
        with store.lock, store.reading() as reader:
            return reader.serial, store.batch.version

    def _look(self, state: tuple[int, int], *, whole: bool, last: int | None = None) -> Iterator[Sortable]:
        """Return the events that have not been given yet, in order; *state* is that of the store before."""
        begin = clock.monotonic()
        self._state = state
        before, self._open = self._open, Numbers()
        if whole:
            self._whole, self._whole_at = state, begin
            histories = Histories(self._session)
            found = histories.members(0)
        else:
            histories = Histories(self._session, lambda n: n not in before and self._given.get(n) > 0)
            found = self._changing(histories, before)
        entries = _latest(self._events(found), last)
        self._order = histories.last
        self._took = clock.monotonic() - begin
        if whole:
            self._whole_took = self._took
        for failure in histories.unreadable:
            number = self._session.store.number_of(failure.id)
            if number not in self._told:
                self._told.add(number)
                self._failures.append(failure)
        return entries

    def _changing(self, histories: Histories, numbers: Numbers) -> Iterator[History]:
        yield from histories.of(numbers.chunks(512))
        yield from histories.members(self._order)

    def _passed(self, history: History) -> int | None:
        number = history.number
        passed = self._given.get(number) - 1
        self._given.set(number, len(history.events) + 1)
        if history.state != State.TERMINATED:
            self._open.add(number)
        return None if passed < 0 else passed


class _Counts:
    """A count for each N, which takes a byte near those that have one; 0 for all others."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._great: dict[int, int] = {}

    def get(self, number: int) -> int:
        """Return the count of N."""
        page = self._pages.get(number // _PAGE)
        count = 0 if page is None else page[number % _PAGE]
        return count if count < _GREAT else self._great[number]

    def set(self, number: int, count: int) -> None:
        """Set the count of N."""
        page = self._pages.get(number // _PAGE)
        if page is None:
            page = self._pages[number // _PAGE] = bytearray(_PAGE)
        page[number % _PAGE] = min(count, _GREAT)
        if count >= _GREAT:
            self._great[number] = count
