"""How far a session has come, at a cost that doesn't depend on how many tasks it has.

Counts are those of the index.  Which tasks have failed only their records tell; of these some
thousand are read at each look:

- those that were under way at the last look and no longer are, and those that are new;
- those in UNKNOWN, and the next ones of those that have TERMINATED, all of them in turn.

So what fails is seen at once in all but huge sessions, where what nobody saw running (it was in
the state for less than the interval, or among too many) is found when its turn comes.
"""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ..index.entries import Entry
from ..tasks import State
from .event_log import UNKNOWN_TIME, event_parts
from .histories import Histories, History

if TYPE_CHECKING:
    from ..session.base import SessionBase

_READ: Final = 5000  # records of each kind that are read at a look, at most
_KEPT: Final = 50  # failures
_SECONDS: Final = 60.0  # over which the rate is measured, or over _LOOKS looks if that is longer
_LOOKS: Final = 10
_UNDER_WAY: Final = (State.RUNNING, State.TERMINATING, State.SUBMITTED, State.STOPPED)


class FailedTask(NamedTuple):
    """A task that is UNKNOWN, or TERMINATED with a return code that isn't 0.

    Attributes:
        time: of its last event (UTC); None if that isn't known.
        id: its ID.
        name: its jobname; None if it has none.
        state: the state.
        returncode: the return code, None if it has none.
    """

    time: datetime | None
    id: str
    name: str | None
    state: str
    returncode: int | None


class Progress(NamedTuple):
    """How far a session has come; tasks inside collections don't count.

    Attributes:
        time: when (UTC).
        counts: how many tasks are in each state.
        total: how many there are.
        rate: how many have TERMINATED a minute, over the last minute or so; None at the first look.
        left: seconds until the last one has TERMINATED if it goes on so; None if that can't be told.
        failures: the latest ones that are known, the last one first.
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
    """Looks at a session, again and again."""

    def __init__(self, session: SessionBase) -> None:
        self._session = session
        self._order = 0  # the greatest that has been read
        self._turn = 0  # order up to which those that have TERMINATED have been read
        self._under_way: set[int] = set()
        self._failures: dict[int, tuple[float, FailedTask]] = {}
        self._ended: deque[tuple[float, int]] = deque()  # when, and how many had TERMINATED

    def look(self) -> Progress:
        """Return how far the session has come now."""
        now = clock.monotonic()
        counts = self._session.stats()
        total, ended = sum(counts.values()), counts.get(State.TERMINATED, 0)
        self._find_failures()
        self._ended.append((now, ended))
        while len(self._ended) > _LOOKS and now - self._ended[1][0] > _SECONDS:
            self._ended.popleft()
        begin, before = self._ended[0]
        rate = max(0.0, (ended - before) / (now - begin) * 60) if now > begin else None
        left = (total - ended) / rate * 60 if rate else 0.0 if total == ended else None
        latest = sorted(self._failures.values(), key=lambda kept: kept[0], reverse=True)
        return Progress(datetime.now(UTC), counts, total, rate, left, [failure for _, failure in latest])

    def _find_failures(self) -> None:
        under_way = {number for state in _UNDER_WAY for _, number, _ in self._in_state(state, 0)}
        ended = list(self._in_state(State.TERMINATED, self._turn))
        self._turn = ended[-1][0] if len(ended) == _READ else 0
        numbers = {*self._failures, *(self._under_way - under_way), *self._new()}
        numbers.update(number for _, number, _ in [*self._in_state(State.UNKNOWN, 0), *ended])
        self._under_way = under_way
        found = sorted(numbers)
        histories = Histories(self._session, lambda number: True)
        failures = {}
        for history in histories.of(found[i : i + 512] for i in range(0, len(found), 512)):
            if (failure := _failure(history)) is not None:
                failures[history.number] = failure
        latest = sorted(failures.items(), key=lambda item: item[1][0], reverse=True)
        self._failures = dict(latest[:_KEPT])

    def _in_state(self, state: str, after: int) -> Iterator[Entry]:
        """Give the next entries in a state, not too many."""
        session = self._session

        def entries() -> Iterator[Entry]:
            place = after
            while True:
                session._ensure_open()
                with session.store.lock, session.store.reading() as reader:
                    chunk = session._index.chunk_in_state(reader, state, place)
                if not chunk:
                    return
                yield from chunk
                place = chunk[-1][0]

        return islice(entries(), _READ)

    def _new(self) -> Iterable[int]:
        """Return the Ns of what has been added since the last look; if that is very much, of the last ones."""
        session = self._session
        session._ensure_open()
        with session.store.lock, session.store.reading() as reader:
            after = max(self._order, session._index.last(reader) - _READ)
            found = []
            while chunk := session._index.chunk(reader, after):
                found += [number for _, number, _ in chunk]
                after = chunk[-1][0]
        self._order = after
        return found


def _failure(history: History) -> tuple[float, FailedTask] | None:
    """Return what is to be told of a task that has failed, with the time to sort by; None if it hasn't."""
    state = history.state
    failed = state == State.TERMINATED and history.returncode not in (None, 0)
    if state is None or not (failed or state == State.UNKNOWN):
        return None
    seconds = event_parts(history.events[-1])[0] if history.events else UNKNOWN_TIME
    time = datetime.fromtimestamp(seconds, UTC) if seconds > UNKNOWN_TIME else None
    return seconds, FailedTask(time, history.id, history.name, state, history.returncode)


def watch(session: SessionBase, interval: float) -> Iterator[Progress]:
    """Give the progress of a session; see `SessionBase.watch`."""
    looking = Watch(session)
    while True:
        progress = looking.look()
        yield progress
        if progress.is_done or not session._is_there():
            return
        clock.sleep(interval)
