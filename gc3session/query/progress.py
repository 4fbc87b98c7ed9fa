"""How far a session has come, at a cost that doesn't depend on how many tasks it has.

The counts are those of the index. Which tasks have failed is known from their records only; each look
reads the records of some thousand tasks:

- those that were under way at the last look and no longer are, and those that are new;
- those that are UNKNOWN, and the next ones of those that have TERMINATED, all of them in turn.

So in all but huge sessions a failure is seen at the next look. In a huge one, a failed task that no look
has seen under way (it ran for less than the interval, or among too many others) is found when its turn comes.
"""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ..index.entries import Entry
from ..store.pages import Pages
from ..tasks import State
from .event_log import UNKNOWN_TIME, event_parts, event_time
from .histories import History, TaskHistories

if TYPE_CHECKING:
    from ..store.index import Index
    from ..tables.interface import Reader

_RECORDS_A_LOOK: Final = 5000  # of each kind of task, at most
_FAILURES: Final = 50  # the latest ones, which are kept
_RATE_SECONDS: Final = 60.0  # the rate is measured over so much time, or over _RATE_LOOKS looks if that is longer
_RATE_LOOKS: Final = 10
_UNDER_WAY: Final = (State.RUNNING, State.TERMINATING, State.SUBMITTED, State.STOPPED)


class FailedTask(NamedTuple):
    """A task that is UNKNOWN, or TERMINATED with a return code that isn't 0.

    Attributes:
        time: of its last event (UTC); None if that isn't known.
        id: its ID.
        name: its jobname; None if it has none.
        state: 'UNKNOWN' or 'TERMINATED'.
        returncode: the return code; None if it has none.
    """

    time: datetime | None
    id: str
    name: str | None
    state: str
    returncode: int | None


class Progress(NamedTuple):
    """How far a session has come, as `Session.watch` gives it; tasks inside collections don't count.

    Attributes:
        time: when this was found out (UTC).
        counts: how many tasks are in each state, by the names of the states.
        total: how many tasks there are.
        rate: how many tasks have TERMINATED a minute, over the last minute or so; None at the first look.
        left: seconds until the last task has TERMINATED at this rate; None if that can't be estimated.
        failures: the failed tasks that are known, at most 50, the latest one first.
    """

    time: datetime
    counts: dict[str, int]
    total: int
    rate: float | None
    left: float | None
    failures: list[FailedTask]

    @property
    def is_done(self) -> bool:
        """Whether there are tasks, and all of them have TERMINATED."""
        return self.total > 0 and self.counts.get(State.TERMINATED, 0) == self.total


class Watch:
    """Looks at a session again and again; each look begins with what the one before has found."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._last = 0  # the greatest that has been read
        self._turn = 0  # N up to which the tasks that have TERMINATED have been read, in this turn
        self._under_way: set[int] = set()
        self._failures: dict[int, tuple[float, FailedTask]] = {}
        self._ended: deque[tuple[float, int]] = deque()  # when a look was, and how many had TERMINATED

    def look(self) -> Progress:
        """Return how far the session has come now."""
        now = clock.monotonic()
        self._index.ensure_open()
        store = self._index.store
        with store.lock, store.reading() as reader:
            counts = self._index.counts(reader)
            last = self._index.last(reader)
        total, ended = sum(counts.values()), counts.get(State.TERMINATED, 0)
        self._find_failures(last)
        self._ended.append((now, ended))
        while len(self._ended) > _RATE_LOOKS and now - self._ended[1][0] > _RATE_SECONDS:
            self._ended.popleft()
        begin, before = self._ended[0]
        rate = max(0.0, (ended - before) / (now - begin) * 60) if now > begin else None
        left = (total - ended) / rate * 60 if rate else 0.0 if total == ended else None
        latest = sorted(self._failures.values(), key=lambda pair: pair[0], reverse=True)
        return Progress(datetime.now(UTC), counts, total, rate, left, [failure for _, failure in latest])

    def _find_failures(self, last: int) -> None:
        """Read the records of some tasks, and keep the latest failures; *last* is the greatest N in the session."""
        under_way = {number for state in _UNDER_WAY for number, _ in self._in_state(state, 0)}
        ended = list(self._in_state(State.TERMINATED, self._turn))
        self._turn = ended[-1][0] if len(ended) == _RECORDS_A_LOOK else 0
        unknown = self._in_state(State.UNKNOWN, 0)
        # The new ones, and if there are very many the latest of them.
        new = Pages(self._index, _entries, after=max(self._last, last - _RECORDS_A_LOOK))
        numbers = {*self._failures, *(self._under_way - under_way)}
        numbers.update(number for number, _ in chain(unknown, ended, chain.from_iterable(new)))
        self._last = new.after
        self._under_way = under_way
        histories = TaskHistories(self._index, lambda number: True)
        failures = {}
        for history in histories.of(sorted(numbers)):
            if (failure := _failure(history)) is not None:
                failures[history.number] = failure
        latest = sorted(failures.items(), key=lambda item: item[1][0], reverse=True)
        self._failures = dict(latest[:_FAILURES])

    def _in_state(self, state: str, after: int) -> Iterator[Entry]:
        """Give the next entries in a state, not too many."""
        pages = Pages(self._index, _entries, states=[state], after=after)
        return islice(chain.from_iterable(pages), _RECORDS_A_LOOK)


def _entries(reader: Reader, entries: list[Entry]) -> list[Entry]:
    return entries


def _failure(history: History) -> tuple[float, FailedTask] | None:
    """Return a task as a failed one, with the time to sort by; None if it hasn't failed."""
    state = history.state
    failed = state == State.TERMINATED and history.returncode not in (None, 0)
    if state is None or not (failed or state == State.UNKNOWN):
        return None
    seconds = event_parts(history.events[-1])[0] if history.events else UNKNOWN_TIME
    return seconds, FailedTask(event_time(seconds), history.id, history.name, state, history.returncode)


def watch(
    index: Index, interval: float, alive: Callable[[], bool], wait: Callable[[float], None] = clock.sleep
) -> Iterator[Progress]:
    """Give the progress of a session; see `SessionBase.watch`.

    Args:
        index: of the session.
        interval: seconds between two looks.
        alive: returns whether the session is still where it was opened.
        wait: called with the seconds to wait until the next look.
    """
    looking = Watch(index)
    while True:
        progress = looking.look()
        yield progress
        if progress.is_done or not alive():
            return
        wait(interval)
