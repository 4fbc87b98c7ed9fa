"""What is done around a fork, in an order that doesn't depend on the order of imports.

A fork waits until no other thread holds a lock of a store or an environment, and holds all these locks while
it lasts, so that the child finds everything at rest. Several threads may fork at once, and each may
already hold some of the locks, in any order. To avoid deadlock, a thread that can't get the next lock in time
releases all that it has taken for the fork, and waits for that one lock first. It waits for a transaction to its
end; so two threads that fork, each inside a transaction of its own store, wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import methodcaller
from typing import Any, Final, NamedTuple, Protocol

STORES: Final = 1
ENVIRONMENTS: Final = 2

_PATIENCE: Final = 0.05  # seconds to wait for a lock while others are held; it doubles, ...
_LONGEST_PATIENCE: Final = 1.0  # ... so that locks which are rarely free at the same time are taken in the end


class Lock(Protocol):
    """What `threading.Lock` and `threading.RLock` have in common."""

    def __enter__(self) -> bool: ...

    def __exit__(self, *error: Any) -> None: ...

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class _Layer(NamedTuple):
    number: int
    locks: Callable[[], Iterable[Lock]]
    before: Callable[[], None]
    after_in_child: Callable[[], None]


_layers: list[_Layer] = []
_forking: Lock = threading.Lock()  # held by the thread that forks, from before the fork until after it


class _Held(threading.local):
    """The locks that a thread has taken for its fork."""

    def __init__(self) -> None:
        self.locks: list[Lock] = []


_held = _Held()


def at_fork(
    number: int,
    after_in_child: Callable[[], None],
    *,
    locks: Callable[[], Iterable[Lock]] = tuple,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Have functions called around each fork: before it in the order of *number*, after it in the reverse order.

    Args:
        number: STORES or ENVIRONMENTS.
        after_in_child: called in the child, where it makes new locks.
        locks: returns the locks that are to be held during the fork.
        before: called once all locks are held.
    """
    _layers.append(_Layer(number, locks, before, after_in_child))
    _layers.sort(key=lambda layer: layer.number)


def _before() -> None:
    try:
        _take_all()
        for layer in _layers:
            layer.before()
    except (KeyboardInterrupt, SystemExit):
        _before()
        raise  # which Python prints; it forks all the same


def _take_all() -> None:
    patience = _PATIENCE
    while True:
        if _forking not in _held.locks:
            _take(_forking)  # the first lock, so that two forks never wait for each other's locks
        blocked = _take_others(patience)
        if blocked is None:
            return
        _release()
        with blocked:
            pass
        patience = min(2 * patience, _LONGEST_PATIENCE)


def _take_others(patience: float) -> Lock | None:
    """Take the locks that are still missing. Return the one that wasn't free in time, or None."""
    while missing := [lock for layer in _layers for lock in layer.locks() if lock not in _held.locks]:
        for lock in missing:
            if not _take(lock, timeout=patience):
                return lock
    return None


def _take(lock: Lock, timeout: float = -1) -> bool:
    """Acquire a lock and note it, in one call of C: no Ctrl-C comes in between, after which all would wait for ever."""
    _held.locks.extend(filter(methodcaller("acquire", timeout=timeout), [lock]))
    return _held.locks[-1:] == [lock]


def _release() -> None:
    """Release all locks of this thread, the last one first, in one call of C."""
    with suppress(IndexError):  # raised when the list is empty
        deque(map(methodcaller("release"), iter(_held.locks.pop, None)), maxlen=0)


def _after_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    _held.locks.clear()
    for layer in reversed(_layers):
        layer.after_in_child()


os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_after_in_child)
os.register_at_fork(after_in_parent=_release)  # again: Ctrl-C during the fork raises as the first call begins
