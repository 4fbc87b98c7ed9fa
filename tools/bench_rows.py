"""The rows of the tables of `tools/bench.py`: what each does with a store, turn by turn, and how it is measured."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs
from bench_targets import BATCH, ON_LMDB, ON_POSTGRESQL, Gc3session, RawLimit, Sqlite, Target, build
from bench_workers import durable_adds

CHUNK: Final = 5_000  # tasks that are recorded, built or iterated over in a turn
SMALL: Final = 1_000  # tasks in the small stores
LOADS: Final = 1_000  # tasks that are loaded in a turn
LOADING_TURNS: Final = 20
RUNS: Final = 3  # of each row whose turns add up
REWRITES: Final = 2  # of all tasks, after which the files are looked at
OPERATIONS: Final = 100  # that write, each by itself
SCANS: Final = 20  # operations that may read a whole store
THREADS: Final = 8  # that add at the same time
SECONDS: Final = 0.5  # for which they do


Amounts = tuple[float, ...]
"""What something took: microseconds by the clock and of CPU, or instructions, or bytes."""


class Turn(NamedTuple):
    """What a turn took, and for how many tasks."""

    amounts: Amounts
    tasks: int = 1


def timed(function: Callable[..., object], *args: Any) -> Amounts:
    """Return how many microseconds a call takes, by the clock and of this process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return (time.perf_counter() - wall) * 1e6, (time.process_time() - cpu) * 1e6


class Counting:
    """Counts the instructions of calls, in a process that valgrind runs with `options`.

    Callgrind counts while a certain function of CPython runs, and writes a file whenever that is left.  The function
    is that of the operator @, which nothing else here uses.

    Args:
        file: what the names of callgrind's files begin with.
    """

    function: Final = "PyNumber_MatrixMultiply"
    options: Final = (
        *("-q", "--tool=callgrind", "--collect-atstart=no"),
        *(f"--toggle-collect={function}", f"--dump-after={function}"),
    )

    def __init__(self, file: str) -> None:
        self._files = (Path(f"{file}.{n}") for n in count(1))
        self._overhead = 0.0
        (self._overhead,) = self(int)

    def __call__(self, function: Callable[..., object], *args: Any) -> Amounts:
        """Return how many instructions a call takes in user space."""
        self @ partial(function, *args)
        file = next(self._files)
        if not file.exists():
            raise RuntimeError(
                f"callgrind doesn't see the function {self.function} in {sys.executable}; use another Python"
            )
        lines = file.read_text().splitlines()
        file.unlink()
        return (next(int(line.split()[1]) for line in lines if line.startswith("totals:")) - self._overhead,)

    def __matmul__(self, work: Callable[[], object]) -> None:
        work()


Work = Callable[["Stores", type[Target], int], Iterator[Turn]]
"""Measures a target with a number of tasks, turn by turn; between the turns it may do what does not count."""


@attrs.frozen
class Row:
    """A row of the tables.

    Attributes:
        title: what is done.
        at_most: the ratio, or the bytes, that is aimed at.
        work: what does it.
        tasks: how many tasks there are.
        targets: what is measured.
        baseline: the target that all are compared with; None compares each with itself in a store of SMALL tasks.
        runs: how often it is done, with the turns of each run added up; if once, each turn is compared by itself.
        unit: of the amounts; bytes are shown instead of a ratio.
    """

    title: str
    at_most: str
    work: Work
    tasks: int
    targets: Sequence[type[Target]] = ON_LMDB
    baseline: type[Target] | None = RawLimit
    runs: int = RUNS
    unit: str = "us a task"

    def per_task(self, turns: list[Turn]) -> list[Amounts]:
        """Return what the turns of a run took for each task."""
        if self.runs > 1:
            amounts, tasks = zip(*turns, strict=True)
            turns = [Turn(tuple(map(sum, zip(*amounts, strict=True))), sum(tasks))]
        return [tuple(amount / turn.tasks for amount in turn.amounts) for turn in turns]


class Stores(ExitStack):
    """Makes the stores that are measured, in a directory or on the server at *url*; deletes them in the end.

    Attributes:
        timed: measures a call.
        shared: the stores with so many tasks, which several rows share.
    """

    def __init__(self, directory: str, url: str, timed: Callable[..., Amounts] = timed) -> None:
        super().__init__()
        self.directory = directory
        self.url = url
        self.timed = timed
        self._numbers = count(1)
        self.shared: dict[tuple[type[Target], int], Target] = {}

    @contextmanager
    def new(self, target: type[Target]) -> Iterator[Target]:
        """Give an empty store, and delete it afterwards."""
        store = target(os.path.join(self.directory, f"store-{next(self._numbers)}"), self.url)
        try:
            yield store
        finally:
            store.close()
            store.delete()

    def filled(self, target: type[Target], tasks: int, *, read_only: bool = False) -> Target:
        """Return the store with so many tasks."""
        if (target, tasks) not in self.shared:
            store = self.shared[target, tasks] = self.enter_context(self.new(target))
            for first, number in in_chunks(tasks):
                store.record_many(store.prepare(build(store.job, number, first)))
                if is_last(first + number, tasks):
                    store.commit()
        store = self.shared[target, tasks]
        store.reopen(read_only=read_only)
        return store


def in_chunks(tasks: int) -> Iterator[tuple[int, int]]:
    """Give the first task and the number of tasks of each turn."""
    return ((first, min(CHUNK, tasks - first)) for first in range(0, tasks, CHUNK))


def is_last(number: int, tasks: int) -> bool:
    """Return whether a transaction ends when so many of the tasks are recorded."""
    return number % BATCH == 0 or number == tasks


def some_keys(store: Target, tasks: int, number: int) -> list[Any]:
    """Return the keys of some tasks, in random order; they are the same in all stores."""
    places = random.Random(1).sample(range(tasks), number)
    wanted = set(places)
    found = {place: key for place, key in enumerate(store.keys()) if place in wanted}
    return [found[place] for place in places]


def record(stores: Stores, target: type[Target], tasks: int, *, many: bool) -> Iterator[Turn]:
    """Record tasks in an empty store, and let go of the objects."""

    def work(recorded: list[Any], commit: bool) -> None:
        (store.record_many if many else store.record)(recorded)
        recorded.clear()
        if commit:
            store.commit()

    with stores.new(target) as store:
        for first, number in in_chunks(tasks):
            recorded = store.prepare(build(store.job, number, first))
            yield Turn(stores.timed(work, recorded, is_last(first + number, tasks)), number)


def build_only(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Build tasks, which no other row counts."""
    for first, number in in_chunks(min(tasks, BATCH)):
        yield Turn(stores.timed(build, target.job, number, first), number)


def add(stores: Stores, target: type[Target], _: int) -> Iterator[Turn]:
    """Record one task at a time."""
    with stores.new(target) as store:
        for n in range(OPERATIONS):
            yield Turn(stores.timed(store.add, *build(target.job, 1, n)))


def add_by_threads(stores: Stores, target: type[Target], _: int) -> Iterator[Turn]:
    """Record one task at a time, by several threads."""
    with stores.new(target) as store:
        tasks, wall, cpu = durable_adds(store, THREADS, SECONDS)
        yield Turn((wall * 1e6, cpu * 1e6), tasks)


def iterate(
    stores: Stores, target: type[Target], tasks: int, *, read_only: bool, objects: bool = True
) -> Iterator[Turn]:
    """Read all tasks in order."""
    store = stores.filled(target, tasks, read_only=read_only)
    read = store.iterate() if objects else store.iterate_stored()
    for _, number in in_chunks(tasks):
        yield Turn(stores.timed(deque, islice(read, number), 0), number)


def load(stores: Stores, target: type[Target], tasks: int, *, read_only: bool) -> Iterator[Turn]:
    """Read tasks one by one, each once."""
    store = stores.filled(target, tasks, read_only=read_only)
    keys = some_keys(store, tasks, LOADS * min(LOADING_TURNS, tasks // LOADS))
    for first in range(0, len(keys), LOADS):
        yield Turn(stores.timed(store.load, keys[first : first + LOADS]), LOADS)


def change(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Read each task, change it and save it."""
    store = stores.filled(target, tasks)
    store.rewrites += 1
    yield Turn(stores.timed(store.change_all, f"STATE{time.monotonic_ns()}"), tasks)


def disk_usage(stores: Stores, target: type[Target], tasks: int, *, rewrites: int = 0) -> Iterator[Turn]:
    """Look at the files, once all tasks have been rewritten so often."""
    store = stores.filled(target, tasks)
    while store.rewrites < rewrites:
        deque(change(stores, target, tasks), 0)
    store.close()
    yield Turn((bytes_on_disk(store.directory),), tasks)
    store.open()


def bytes_on_disk(directory: str) -> int:
    """Return how many bytes the files below a directory take."""
    return sum(file.stat().st_blocks for file in Path(directory).rglob("*")) * 512


def open_and_count(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Open, count, close."""
    store = stores.filled(target, tasks)

    def work() -> None:
        store.open()
        store.count()
        store.close()

    store.close()
    for _ in range(SCANS):
        yield Turn(stores.timed(work))
    store.open()


def add_and_remove(stores: Stores, target: type[Target], tasks: int, *, removing: bool) -> Iterator[Turn]:
    """Add a task and remove one at random, of which one counts."""
    store = stores.filled(target, tasks)
    for n, key in enumerate(some_keys(store, tasks, OPERATIONS)):
        added = stores.timed(store.add, *build(target.job, 1, n))
        removed = stores.timed(store.remove, key)
        yield Turn(removed if removing else added)


def stats(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Count the tasks in each state."""
    store = stores.filled(target, tasks)
    for _ in range(SCANS):
        yield Turn(stores.timed(store.stats))


def rows_on_lmdb(tasks: int) -> list[Row]:
    """Return the rows that need no server."""
    row = partial(Row, tasks=tasks)
    reading, writing = partial(iterate, read_only=True), partial(iterate, read_only=False)
    bytes_of = partial(Row, tasks=tasks, unit="bytes", runs=1)
    return [
        row("record, `add(flush=False)` in a loop", "2.3 x", partial(record, many=False)),
        row("record, `add_many`", "1.8 x", partial(record, many=True)),
        row("one durable `add`", "1.25 x (time)", add, runs=1),
        row(
            f"durable `add` by {THREADS} threads, against sqlite3",
            "0.67 x (time)",
            add_by_threads,
            targets=[Gc3session, Sqlite],
            baseline=Sqlite,
        ),
        row("iterate as objects, read-only", "2.1 x", reading),
        row("iterate as objects in a session that can write", "3.3 x", writing),
        row("read without objects, `select().stored()`", "1.5 x", partial(reading, objects=False)),
        row("load at random, read-only", "2.1 x", partial(load, read_only=True)),
        row("load at random in a session that can write", "3.0 x", partial(load, read_only=False)),
        bytes_of("bytes on disk a task, new", "155 bytes", disk_usage),
        row("change the state of every task and `save_all`", "2.2 x", change, runs=REWRITES),
        bytes_of("bytes on disk a task, all rewritten twice", "400 bytes", partial(disk_usage, rewrites=REWRITES)),
        row("build a task (in no other row)", "1.4 x", build_only, targets=[Gc3session, RawLimit]),
        *rows_of_growth(tasks, ON_LMDB),
    ]


def rows_of_growth(tasks: int, targets: Sequence[type[Target]]) -> list[Row]:
    """Return the rows that compare a large store with a small one."""
    sizes, unit = f"{tasks:,} tasks against {SMALL:,}", f"us at {tasks:,} / {SMALL:,}"
    growth = partial(Row, tasks=tasks, targets=targets, baseline=None, runs=1, unit=unit)
    return [
        growth(f"open + `len`, {sizes}", "1.5 x", open_and_count),
        growth(f"`stats()`, {sizes}", "1.5 x", stats),
        growth(f"durable `add`, {sizes}", "2 x", partial(add_and_remove, removing=False)),
        growth(f"durable `remove`, {sizes}", "10 x", partial(add_and_remove, removing=True)),
    ]


def rows_on_postgresql(tasks: int) -> list[Row]:
    """Return the rows that need a server."""
    on_server, copy, _, on_lmdb = ON_POSTGRESQL
    row = partial(Row, at_most="", tasks=tasks, targets=[on_server, on_lmdb], baseline=on_lmdb)
    many = partial(record, many=True)
    return [
        Row("record, `add_many`", "2.5 x", many, tasks, ON_POSTGRESQL, copy),
        row("one durable `add`", work=add, runs=1),
        row("iterate as objects", work=partial(iterate, read_only=False)),
        row("load at random", work=partial(load, read_only=False)),
        row("`stats()`", work=stats, runs=1),
    ]
