"""What was done with `flush=False` is written when the program, or a worker of multiprocessing, ends of its own accord."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Protocol


class Unfinished(Protocol):
    """A store, as the end of a program has to do with it."""

    def finish(self) -> list[str]:
        """Write the batch, but for what can't be written; return lines for people on that."""


_stores: Callable[[], list[Unfinished]] = list
_is_expecting = False  # whether multiprocessing has been told


def finish_at_end(stores: Callable[[], list[Unfinished]]) -> None:
    """Have the stores that *stores* returns then finished when the program ends."""
    global _stores
    _stores = stores
    atexit.register(_finish)


def expect_workers() -> None:
    """Have stores finished in workers of multiprocessing, too, which end without calling what atexit knows.

    To be called before each fork, and when a store is opened.
    """
    global _is_expecting
    util = sys.modules.get("multiprocessing.util")
    if util is None or _is_expecting:
        return
    _is_expecting = True
    util.register_after_fork(_finish, _finish_at_end_of_worker)
    if sys.modules["multiprocessing.process"].parent_process() is not None:  # this is one
        _finish_at_end_of_worker(_finish)


def _finish_at_end_of_worker(finish: Callable[[], None]) -> None:
    from multiprocessing import util  # it is there

    util.Finalize(None, finish, exitpriority=0)


def _finish() -> None:
    for store in _stores():
        for line in store.finish():
            print(f"gc3session: {line}", file=sys.stderr)
