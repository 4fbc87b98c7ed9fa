"""Durable adds by several threads or processes at the same time, for `tools/bench.py`."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.managers import SyncManager
from statistics import median
from typing import Any, Final

from bench_targets import Gc3session, Sqlite, Target, build

WORKERS: Final = (1, 2, 4, 8)
MOST_A_SECOND: Final = 10_000  # tasks that a worker has ready, so that none is built in the measured time
READY_WITHIN: Final = 60.0  # seconds; else a worker has failed


Adds = tuple[int, float, float]
"""How many tasks were added, and in how many seconds by the clock and of CPU."""


def add_for(open_store: Callable[[], Target], barrier: Any, seconds: float) -> Adds:
    """Add tasks one by one for so long, once all workers are ready."""
    store = open_store()
    tasks = build(store.job, int(seconds * MOST_A_SECOND))
    barrier.wait(READY_WITHIN)
    wall, cpu, done = time.perf_counter(), time.thread_time(), 0
    while done < len(tasks) and time.perf_counter() < wall + seconds:
        store.add(tasks[done])
        done += 1
    return done, time.perf_counter() - wall, time.thread_time() - cpu


def durable_adds(store: Target, workers: int, seconds: float, manager: SyncManager | None = None) -> Adds:
    """Add tasks by threads, or by processes if there is a *manager* of what they share."""
    pool: Executor
    if manager is None:
        pool, barrier = ThreadPoolExecutor(workers), threading.Barrier(workers)
    else:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        barrier = manager.Barrier(workers)
    is_shared = manager is None and store.is_for_all_threads
    open_store = (lambda: store) if is_shared else partial(type(store), store.directory, "")
    with pool:
        work = [pool.submit(add_for, open_store, barrier, seconds) for _ in range(workers)]
        tasks, wall, cpu = zip(*(each.result() for each in work), strict=True)
    return sum(tasks), max(wall), sum(cpu)


def rates(
    new_store: Callable[[type[Target]], AbstractContextManager[Target]], rounds: int, seconds: float
) -> Iterator[tuple[str, list[float]]]:
    """Give, for so many processes and threads, the figures of both opponents and their ratio.

    The figures are durable adds a second and microseconds of CPU for each.
    """
    with multiprocessing.get_context("spawn").Manager() as manager:
        for kind, shared in {"process": manager, "thread": None}.items():
            for workers in WORKERS:
                each_round = []
                for n in range(rounds):
                    figures: dict[type[Target], list[float]] = {}
                    for target in (Gc3session, Sqlite)[:: 1 if n % 2 else -1]:
                        with new_store(target) as store:
                            tasks, wall, cpu = durable_adds(store, workers, seconds, shared)
                        figures[target] = [tasks / wall, cpu / tasks * 1e6]
                    ours, theirs = figures[Gc3session], figures[Sqlite]
                    each_round.append([*ours, *theirs, ours[0] / theirs[0]])
                plural = "" if workers == 1 else "es" if shared else "s"
                yield f"{workers} {kind}{plural}", [median(column) for column in zip(*each_round, strict=True)]
