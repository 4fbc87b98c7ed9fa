"""The pausing of Python's collection of cycles while very many objects are made or written, but no cycles.

It would look through all that the program has for every quarter that there is more: half of the
time of saving 100,000 tasks.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

from .forks import ENVIRONMENTS, at_fork
from .signals import signal_safe

_lock = threading.RLock()
_pauses = 0  # how many last; while there are some it is switched off


@signal_safe
def no_collection() -> Iterator[None]:
    """`with` this, nothing is collected, in no thread; a forked child collects again."""
    global _pauses
    paused = False
    try:
        with _lock:
            if _pauses or gc.isenabled():
                _pauses += 1
                paused = True
                gc.disable()
        yield
    finally:
        with _lock:
            if paused and _pauses:  # else this is a child that was forked meanwhile
                _pauses -= 1
                if not _pauses:
                    gc.enable()


def _after_in_child() -> None:
    global _lock, _pauses
    _lock = threading.RLock()
    if _pauses:
        _pauses = 0
        gc.enable()


at_fork(ENVIRONMENTS, _after_in_child, locks=lambda: (_lock,))
