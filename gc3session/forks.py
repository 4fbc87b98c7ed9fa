"""What is done around a fork, in an order that doesn't depend on the order of imports.

A fork waits until no lock of a store or an environment is held by another thread, and holds them
all while it lasts: the child then finds everything at rest.  Several threads may fork at once, and
may hold locks of their own then, in any order.  So nobody waits for ever with locks in his hands:
who doesn't get the next one in time gives back what he has, and waits for that one.  A transaction
is waited for to its end: two threads that fork, each inside a transaction of its own store, wait
for each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

STORES: Final = 1
ENVIRONMENTS: Final = 2

_PATIENCE: Final = 0.05  # seconds to wait for a lock while others are held; it doubles, ...
_LONGEST_PATIENCE: Final = 1.0  # ... so that locks which are hardly ever free at once are got, too


class Lock(Protocol):
    """What `threading.Lock` and `threading.RLock` have in common."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class _Layer(NamedTuple):
    number: int
    locks: Callable[[], Iterable[Lock]]
    before: Callable[[], None]
    after_in_child: Callable[[], None]


_layers: list[_Layer] = []
_forking: Lock = threading.Lock()  # held by the thread that forks, from before until after
_held: list[Lock] = []


def at_fork(
    number: int,
    after_in_child: Callable[[], None],
    *,
    locks: Callable[[], Iterable[Lock]] = tuple,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Have functions called around each fork, those of lower numbers first before it and last after it.

    Args:
        number: STORES or ENVIRONMENTS.
        after_in_child: called in the child, where it makes the locks anew.
        locks: gives the locks that are to be held during the fork.
        before: called once all locks are held.
    """
    _layers.append(_Layer(number, locks, before, after_in_child))
    _layers.sort(key=lambda layer: layer.number)


def _before() -> None:
    patience = _PATIENCE
    while True:
        _forking.acquire()  # first of all: so no two forks wait for what the other one has
        taken = [_forking]
        blocked = _take_others(taken, patience)
        if blocked is None:
            break
        _release(taken)
        blocked.acquire()
        blocked.release()
        patience = min(2 * patience, _LONGEST_PATIENCE)
    _held[:] = taken
    for layer in _layers:
        layer.before()


def _take_others(taken: list[Lock], patience: float) -> Lock | None:
    """Add the locks that are still missing to *taken*; return the one that can't be got in time, if any."""
    while missing := [lock for lock in _all_locks() if lock not in taken]:
        for lock in missing:
            if not lock.acquire(timeout=patience):
                return lock
            taken.append(lock)
    return None


def _all_locks() -> list[Lock]:
    return [lock for layer in _layers for lock in layer.locks()]


def _release(locks: list[Lock]) -> None:
    while locks:
        locks.pop().release()


def _after_in_parent() -> None:
    locks = _held[:]
    _held.clear()  # before the next thread may fork
    _release(locks)


def _after_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    _held.clear()
    for layer in reversed(_layers):
        layer.after_in_child()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
