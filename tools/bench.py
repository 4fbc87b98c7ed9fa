"""Measure how fast gc3session is, beside other ways of keeping the same tasks (bench_targets.py has each).

All take turns of a few thousand tasks, in one order and the other, so that whatever else the machine does slows all of
them alike. Of several runs the median ratio counts. The tasks that are recorded are built outside of the measured
time. Python's garbage collection stays on, as in a user's program.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import attrs
from bench_targets import BATCH, ON_LMDB, ON_POSTGRESQL, Gc3session, Job, PlainJob, RawLimit, Target, build

from gc3session import Session

CHUNK: Final = 5_000  # tasks that are recorded, built or iterated over in a turn
SMALL: Final = 1_000  # tasks in the small stores
LOADS: Final = 1_000  # tasks that are loaded in a turn
LOADING_TURNS: Final = 20
RUNS: Final = 3  # of each row whose turns add up
OPERATIONS: Final = 100  # that write, each by itself
SCANS: Final = 20  # operations that may read a whole store
BATCH_MIB: Final = 64  # memory that gc3session uses, before it writes, for what was recorded

NOTES_ON_LMDB: Final = (
    "Ratios are to the raw limit; in rows with 'against', to the same work in the small store.  Transactions of"
    f" {BATCH:,} tasks.  Pickle files: {ON_LMDB[-1].most:,} at most, scaled to the number of tasks, and only the durable"
    " rows flush them to disk.  The raw limit has no index of states: it counts them by reading all records."
)
NOTES_ON_POSTGRESQL: Final = f"Ratios are to the column that has 1.00 x.  Transactions of {BATCH:,} tasks."


class Turn(NamedTuple):
    """What a turn took: microseconds (or bytes, or MiB), and for how many tasks."""

    amount: float
    tasks: float = 1


Work = Callable[["Stores", type[Target], int], Iterator[Turn]]
"""Measures a target with a number of tasks, turn by turn; between the turns it may do what does not count."""


@attrs.frozen
class Row:
    """A row of the tables.

    Attributes:
        title: what is done.
        at_most: the ratio, or the MiB, that is aimed at.
        work: what does it.
        tasks: how many tasks there are.
        targets: what is measured.
        baseline: the target that all are compared with; None compares each with itself in a store of SMALL tasks.
        single: whether each turn is an operation that is compared by itself; else the turns of a run are added up.
        unit: of the amounts; those in MiB are shown instead of a ratio.
    """

    title: str
    at_most: float | None
    work: Work
    tasks: int
    targets: Sequence[type[Target]] = ON_LMDB
    baseline: type[Target] | None = RawLimit
    single: bool = False
    unit: str = "us a task"


class Stores(ExitStack):
    """Makes the stores that are measured, in a directory or on the server at *url*; deletes them in the end."""

    def __init__(self, directory: str, url: str) -> None:
        super().__init__()
        self.directory = directory
        self.url = url
        self._numbers = count(1)
        self._filled: dict[tuple[type[Target], int], Target] = {}

    def new_path(self) -> str:
        """Return a path that is not in use."""
        return os.path.join(self.directory, f"store-{next(self._numbers)}")

    @contextmanager
    def new(self, target: type[Target]) -> Iterator[Target]:
        """Give an empty store, and delete it afterwards."""
        store = target(self.new_path(), self.url)
        try:
            yield store
        finally:
            store.close()
            store.delete()

    def filled(self, target: type[Target], tasks: int) -> Target:
        """Return the store with so many tasks, which several rows share."""
        if (target, tasks) not in self._filled:
            store = self._filled[target, tasks] = self.enter_context(self.new(target))
            deque(recording(self, store, tasks, many=True), 0)
        return self._filled[target, tasks]

    def turns(self, target: type[Target] | Target, tasks: int) -> Iterator[tuple[int, int]]:
        """Give the first task and the number of tasks of each turn."""
        tasks = min(tasks, target.most)
        return ((first, min(CHUNK, tasks - first)) for first in range(0, tasks, CHUNK))


def timed(function: Callable[..., object], *args: Any) -> float:
    """Return how many microseconds a call takes."""
    start = time.perf_counter()
    function(*args)
    return (time.perf_counter() - start) * 1e6


def recording(stores: Stores, store: Target, tasks: int, *, many: bool) -> Iterator[Turn]:
    """Record tasks. What the death of a Job takes beyond that of a plain object counts, too."""
    for first, number in stores.turns(store, tasks):
        recorded = store.prepare(build(store.job, number, first))
        took = timed(store.record_many if many else store.record, recorded)
        if isinstance(recorded[0], Job):
            took += timed(recorded.clear) - timed(build(PlainJob, number, first).clear)
        if (first + number) % BATCH == 0 or first + number == min(tasks, store.most):
            took += timed(store.commit)
        yield Turn(took, number)


def record(stores: Stores, target: type[Target], tasks: int, *, many: bool) -> Iterator[Turn]:
    """Record tasks in an empty store."""
    with stores.new(target) as store:
        yield from recording(stores, store, tasks, many=many)


def build_only(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Build tasks, which no other row counts."""
    for first, number in stores.turns(target, min(tasks, BATCH)):
        yield Turn(timed(build, target.job, number, first), number)


def add(stores: Stores, target: type[Target], _: int) -> Iterator[Turn]:
    """Record one task at a time."""
    with stores.new(target) as store:
        for n in range(OPERATIONS):
            yield Turn(timed(store.add, *build(target.job, 1, n)))


def iterate(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Read all tasks in order."""
    jobs = stores.filled(target, tasks).iterate()
    for _, number in stores.turns(target, tasks):
        yield Turn(timed(deque, islice(jobs, number), 0), number)


def load(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Read tasks one by one."""
    store = stores.filled(target, tasks)
    keys, choose = list(store.keys()), random.Random(1).choices
    for _ in range(LOADING_TURNS):
        yield Turn(timed(store.load, choose(keys, k=LOADS)), LOADS)


def change(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Read each task, change it and save it."""
    store = stores.filled(target, tasks)
    yield Turn(timed(store.change_all, f"STATE{time.monotonic_ns()}"), min(tasks, target.most))


def disk_usage(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Look at the files."""
    store = stores.filled(target, tasks)
    store.close()
    blocks = sum(file.stat().st_blocks for file in Path(store.directory).rglob("*"))  # of 512 bytes
    yield Turn(blocks * 512, min(tasks, target.most))
    store.open()


def open_and_count(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Open, count, close."""
    store = stores.filled(target, tasks)

    def work() -> None:
        store.open()
        store.count()
        store.close()

    store.close()
    for _ in range(SCANS):
        yield Turn(timed(work), min(tasks, target.most) / tasks)  # of a part of the tasks: scaled up
    store.open()


def add_and_remove(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Add a task, and remove one at random."""
    store = stores.filled(target, tasks)

    def work(job: Any, key: Any) -> None:
        store.add(job)
        store.remove(key)

    for n, key in enumerate(random.Random(2).sample(list(store.keys()), OPERATIONS)):
        yield Turn(timed(work, *build(target.job, 1, n), key))


def stats(stores: Stores, target: type[Target], tasks: int) -> Iterator[Turn]:
    """Count the tasks in each state."""
    store = stores.filled(target, tasks)
    for _ in range(SCANS):
        yield Turn(timed(store.stats), min(tasks, target.most) / tasks)  # of a part of the tasks: scaled up


def memory(stores: Stores, target: type[Target], tasks: int, *, is_recording: bool) -> Iterator[Turn]:
    """Record or iterate in a process of its own, and watch its memory."""
    path = stores.new_path() if is_recording else stores.filled(target, tasks).directory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield Turn(pool.submit(growth_of_memory, path, tasks, is_recording).result())


def growth_of_memory(path: str, tasks: int, is_recording: bool) -> float:
    """Record or iterate, and return by how many MiB at most the memory grew meanwhile, without the batch."""
    with Session(path) as session, ThreadPoolExecutor(1) as thread:
        deque(
            islice(session, SMALL), 0
        )  # so that what the first tasks need, whatever their number, is not counted
        before = peak = anonymous_memory()
        if is_recording:
            work = thread.submit(session.add_many, (build(Job, 1, n)[0] for n in range(1, tasks)))
        else:
            work = thread.submit(deque, session, 0)
        while not work.done():
            peak = max(peak, anonymous_memory())
            time.sleep(0.01)
        work.result()  # raises what was raised
        return peak - before - (BATCH_MIB if is_recording else 0)


def anonymous_memory() -> float:
    """Return how many MiB of this process are in no file: mapped pages of the data file are the system's cache."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def in_turns(works: dict[Any, Iterator[Turn]], run: int) -> dict[Any, list[Turn]]:
    """Let all work turn by turn, in one order and the other, until each has come to its end."""
    turns: dict[Any, list[Turn]] = {key: [] for key in works}
    going = list(works)
    while going:
        run += 1
        for key in going[:: 1 if run % 2 else -1]:
            turn = next(works[key], None)
            if turn is None:
                going.remove(key)
            else:
                turns[key].append(turn)
    return turns


def measure(row: Row, stores: Stores) -> tuple[dict[type[Target], float], dict[type[Target], list[float]]]:
    """Return the ratio of each target, and its amounts: for all tasks, and for SMALL ones if these are compared."""
    sizes = [row.tasks] if row.baseline else [row.tasks, SMALL]
    together = [row.targets] if row.baseline else [[target] for target in row.targets]
    each: dict[tuple[type[Target], int], list[float]] = defaultdict(list)
    for targets in together:
        for run in range(1 if row.single else RUNS):
            works = {(target, size): row.work(stores, target, size) for target in targets for size in sizes}
            for key, turns in in_turns(works, run).items():
                for turn in turns if row.single else [Turn(*map(sum, zip(*turns, strict=True)))]:
                    each[key].append(turn.amount / turn.tasks)
    ratios = {}
    for target in row.targets:
        other = (row.baseline, row.tasks) if row.baseline else (target, SMALL)
        ratios[target] = median(a / b for a, b in zip(each[target, row.tasks], each[other], strict=True))
    return ratios, {target: [median(each[target, size]) for size in sizes] for target in row.targets}


def rows_on_lmdb(tasks: int, memory_tasks: int) -> list[Row]:
    """Return the rows that need no server."""
    sizes, unit = f"{tasks:,} tasks against {SMALL:,}", f"us at {tasks:,} / {SMALL:,}"
    growth = partial(Row, tasks=tasks, baseline=None, single=True, unit=unit)
    peak = partial(Row, tasks=memory_tasks, targets=[Gc3session], baseline=Gc3session, single=True, unit="MiB")
    recording, iterating = partial(memory, is_recording=True), partial(memory, is_recording=False)
    return [
        Row(f"record {tasks:,} tasks, `add(flush=False)`", 2.0, partial(record, many=False), tasks),
        Row(f"record {tasks:,} tasks, `add_many`", 1.6, partial(record, many=True), tasks),
        Row("one durable `add`", 1.15, add, tasks, single=True),
        Row(f"iterate {tasks:,} tasks as objects", 1.8, iterate, tasks),
        Row("load at random", 2.5, load, tasks),
        Row("bytes on disk a task", 1.3, disk_usage, tasks, unit="bytes"),
        growth(f"open + `len`, {sizes}", 1.5, open_and_count),
        growth(f"durable `add` and `remove`, {sizes}", 1.5, add_and_remove),
        growth(f"`stats()`, {sizes}", 2.0, stats),
        Row(f"change the state of {tasks:,} tasks, `save_all`", 2.5, change, tasks),
        Row("build a task (in no other row)", None, build_only, tasks, [Gc3session, RawLimit]),
        peak(f"peak memory, recording {memory_tasks:,} tasks, above the batch", 100, recording),
        peak(f"peak memory, iterating {memory_tasks:,} tasks", 100, iterating),
    ]


def rows_on_postgresql(tasks: int) -> list[Row]:
    """Return the rows that need a server."""
    on_server, copy, _, on_lmdb = ON_POSTGRESQL
    row = partial(Row, at_most=None, tasks=tasks, targets=[on_server, on_lmdb], baseline=on_lmdb)
    many = partial(record, many=True)
    return [
        Row(f"record {tasks:,} tasks, `add_many`", 2.5, many, tasks, ON_POSTGRESQL, copy),
        row("one durable `add`", work=add, single=True),
        row(f"iterate {tasks:,} tasks as objects", work=iterate),
        row("load at random", work=load),
        row("`stats()`", work=stats, single=True),
    ]


def markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table that reads well as it is, and in Markdown."""
    widths = [max(map(len, column)) for column in zip(titles, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(
        f"| {first:<{widths[0]}} | {' | '.join(map(str.rjust, others, widths[1:]))} |\n"
        for first, *others in (titles, rule, *body)
    )


def text_of(value: float) -> str:
    """Return a number with some three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def machine(filesystem: str, load_before: float) -> str:
    """Return what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in cpuinfo if line.startswith("model name")), platform.machine())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("lmdb", "msgpack", "attrs"))
    return (
        f"- processor: {model}, {len(os.sched_getaffinity(0))} CPUs; load average before: {load_before:.2f}\n"
        f"- system: {platform.system()} {platform.release()}, filesystem {filesystem}\n"
        f"- Python: {platform.python_version()}\n"
        f"- libraries: {libraries}, SQLite {sqlite3.sqlite_version}"
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="30,000 tasks; takes about a minute")
    size.add_argument("--full", action="store_true", help="measure memory with 10,000,000 tasks")
    parser.add_argument("--tasks", type=int, metavar="N", help="(default: 1,000,000, some ten minutes)")
    parser.add_argument("--store", metavar="URL", help="measure this PostgreSQL server; URL without 'schema='")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose first cell has this text")
    args = parser.parse_args()
    args.tasks = args.tasks or (30_000 if args.quick else 1_000_000)
    args.memory_tasks = 10_000_000 if args.full else max(args.tasks, 200_000)
    args.filesystem = subprocess.check_output(["df", "--output=fstype", "."], text=True).split()[1]
    if args.tasks < 2 * SMALL:
        parser.error(f"--tasks must be at least {2 * SMALL:,}")
    if args.filesystem in ("tmpfs", "ramfs"):
        parser.error("this directory is in memory, where durability costs nothing; call it in one on a disk")
    return args


def main() -> None:
    """Measure, and print the tables."""
    args = parse_arguments()
    load_before = os.getloadavg()[0]
    targets: Sequence[type[Target]] = ON_POSTGRESQL if args.store else ON_LMDB
    rows = rows_on_postgresql(args.tasks) if args.store else rows_on_lmdb(args.tasks, args.memory_tasks)
    ratio_lines, amount_lines = [], []
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=".") as directory,
        Stores(directory, args.store or "") as stores,
    ):
        for row in rows:
            if args.only not in row.title:
                continue
            ratios, amounts = measure(row, stores)
            shown, unit = ratios, "x"
            if row.unit == "MiB":
                shown, unit = {target: amount for target, (amount,) in amounts.items()}, "MiB"
            first, *others = (f"{text_of(shown[target])} {unit}" if target in shown else "" for target in targets)
            ratio_lines.append([row.title, first, f"{row.at_most:g} {unit}" if row.at_most else "", *others])
            cells = (" / ".join(map(text_of, amounts.get(target, ()))) for target in targets)
            amount_lines.append([row.title, row.unit, *cells])
            print(f"{row.title}: {first}", file=sys.stderr, flush=True)
    first, *others = (target.name for target in targets)
    print(markdown(["ratio", first, "at most", *others], ratio_lines))
    print(markdown(["absolute", "unit", first, *others], amount_lines))
    print(NOTES_ON_POSTGRESQL if args.store else NOTES_ON_LMDB, end="\n\n")
    print(machine(args.filesystem, load_before))


if __name__ == "__main__":
    main()
