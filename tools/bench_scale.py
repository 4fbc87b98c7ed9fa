"""A session of very many tasks, for `tools/bench.py --scale`: each step in a process of its own, part by part."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

from bench_rows import CHUNK, bytes_on_disk
from bench_targets import STATES, Job, build

from gc3session import Session

LARGEST_PART: Final = 1_000_000
EDITED: Final = "EDITED"
LOOK_EVERY: Final = 0.02  # seconds, at the memory

Step = Callable[[Session[Any], list[range]], Iterator[None]]
"""Does something with the tasks of each part, and yields after it."""


Took = tuple[str, list[float], list[float], float, float]
"""What was done; microseconds a task in each part, by the clock and of CPU; the MiB by which the anonymous memory of a
process grew at most; bytes on disk a task afterwards."""


def record(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """Record the tasks, which are built meanwhile."""
    for part in parts:
        session.add_many(build(Job, 1, n)[0] for n in part)
        yield


def iterate(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """Read all tasks as objects, and see that they are those that were recorded."""
    yield from summing(iter(session), parts, lambda task: task.cores)


def read_stored(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """Do it without objects."""
    yield from summing(session.select().stored(), parts, lambda task: task.fields["cores"])


def summing(tasks: Iterator[Any], parts: list[range], value: Callable[[Any], int]) -> Iterator[None]:
    """Add up a field of all tasks; processes that recorded together have mixed the parts."""
    number = total = 0
    for part in parts:
        for task in islice(tasks, len(part)):
            number += 1
            total += value(task)
        yield
    cycles, rest = divmod(parts[-1].stop, 64)  # of `cores` in what `build` makes
    expect((number, total), (parts[-1].stop, cycles * sum(range(64)) + sum(range(rest))))


def edit(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """Change all tasks."""
    with session.edit() as tasks:
        each = iter(tasks)
        for part in parts:
            for task in islice(each, len(part)):
                task.state = EDITED
            yield


def remove(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """Remove all tasks, in transactions of some thousands."""
    ids = session.ids()
    for part in parts:
        for first in part[::CHUNK]:
            session.remove_many(list(islice(ids, min(CHUNK, part.stop - first))))
        yield


def check(session: Session[Any], parts: list[range]) -> Iterator[None]:
    """See that nothing is wrong."""
    expect(list(session.check()), [])
    yield


def expect(found: object, right: object) -> None:
    """Raise RuntimeError if an answer isn't right."""
    if found != right:
        raise RuntimeError(f"the session has answered {found!r} instead of {right!r}")


def in_process(step: Step, path: str, parts: list[range]) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Do a step in this process; return the seconds that each part took, those of CPU, and the MiB of memory."""

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def work() -> None:
        ends.extend(now() for _ in step(session, parts))
        ends[-1] = now()  # what the step does in the end is in its last part

    with Session(path) as session, ThreadPoolExecutor(1) as thread:
        before = peak = anonymous_memory()
        ends = [now()]
        worker = thread.submit(work)
        while not worker.done():
            peak = max(peak, anonymous_memory())
            time.sleep(LOOK_EVERY)
        worker.result()  # raises what was raised
    wall, cpu = (tuple(end - start for start, end in pairwise(clock)) for clock in zip(*ends, strict=True))
    return wall, cpu, peak - before


def anonymous_memory() -> float:
    """Return how many MiB of this process are in no file: mapped pages of the data file are the system's cache."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def steps(path: str, tasks: int, processes: int, between: Callable[[], None]) -> Iterator[Took]:
    """Record so many tasks, by several processes, and do all with them that one can; raise if an answer is wrong.

    *between* is called while all tasks are there.
    """
    size = min(-(-tasks // 10), LARGEST_PART)
    parts = [range(first, min(first + size, tasks)) for first in range(0, tasks, size)]
    whole = [range(tasks)]

    def do(title: str, step: Step, *shares: list[range]) -> Took:
        with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
            walls, cpus, memory = zip(*pool.map(partial(in_process, step, path), shares), strict=True)
        numbers = [sum(map(len, some)) for some in zip(*shares, strict=True)]
        wall = [max(each) / number * 1e6 for *each, number in zip(*walls, numbers, strict=True)]
        cpu = [sum(each) / number * 1e6 for *each, number in zip(*cpus, numbers, strict=True)]
        return title, wall, cpu, max(memory), bytes_on_disk(path) / tasks

    ways = range(processes)
    yield do("build and `add_many`", record, *([part[way::processes] for part in parts] for way in ways))
    counts = {state: len(range(n, tasks, len(STATES))) for n, state in enumerate(STATES)}
    with Session(path, read_only=True) as session:
        expect((len(session), session.stats()), (tasks, counts))
    yield do("iterate as objects", iterate, parts)
    yield do("read without objects, `select().stored()`", read_stored, parts)
    between()
    yield do("change the state of every task in `edit`", edit, parts)
    with Session(path, read_only=True) as session:
        expect((len(session), session.stats()), (tasks, {EDITED: tasks}))
    yield do("`check`, which finds nothing", check, whole)
    yield do("`remove_many` of all", remove, parts)
    with Session(path, read_only=True) as session:
        expect((len(session), session.stats()), (0, {}))
    yield do("`check` of what is left", check, whole)
