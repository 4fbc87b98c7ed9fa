"""Measure the table 'Speed' of the design: each row as a ratio to the raw limit in the same run.

The raw limit is py-lmdb and msgpack called by hand for the same 11-field tasks: two tables, no
checks (see bench_stores.py).  sqlite3 with a JSON row a task, and a pickle file a task, are
measured beside it.  All take turns of a few thousand tasks, in changing order, so that what else
the machine does falls on all of them; of several repetitions the median ratio counts.  Tasks to be
recorded are built outside of the measured time.  Garbage collection is left on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import select
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import attrs
from bench_stores import AnyJob, Contender, Job, Ours, OursMany, Pickles, Raw, RawJob, Sqlite, build

from gc3session import Session
from gc3session.system.filesystem import filesystem_of

CHUNK: Final = 5_000  # tasks a turn
SMALL: Final = 1_000  # tasks in the small stores
LOADS: Final = 20_000
PATIENCE: Final = 4.0  # seconds after which work that takes long isn't done more than three times
MIB: Final = 1 << 20
BATCH_BYTES: Final = 64 * MIB

OTHERS: Final[tuple[type[Contender], ...]] = (Sqlite, Pickles)
CONTENDERS: Final[tuple[type[Contender], ...]] = (Ours, Raw, *OTHERS)
FILLED: Final[tuple[type[Contender], ...]] = (OursMany, Raw, *OTHERS)


@attrs.define
class Row:
    """One row of the table.

    Attributes:
        key: its name on the command line.
        work: what is done.
        allowed: the greatest ratio (or MiB) that the design allows; None if it says nothing.
        unit: of the absolute figures.
        ratio: contender -> ratio.
        absolute: contender -> figures, two where large and small stores are compared.
    """

    key: str
    work: str
    allowed: float | None
    unit: str = "us a task"
    ratio: dict[str, float] = attrs.Factory(dict)
    absolute: dict[str, list[float]] = attrs.Factory(dict)


class Times(NamedTuple):
    """How long a number of tasks took."""

    seconds: float
    tasks: int

    def __add__(self, other: object) -> Times:
        if not isinstance(other, Times):
            return NotImplemented
        return Times(self.seconds + other.seconds, self.tasks + other.tasks)

    @property
    def each(self) -> float:
        """Microseconds a task."""
        return self.seconds / self.tasks * 1e6


def timed(function: Callable[..., object], *args: Any) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def in_turn(things: Sequence[Any], turn: int) -> Sequence[Any]:
    """Return the things, the other way round in every second turn."""
    return things[::-1] if turn % 2 else things


def all_in_turns(steps: dict[str, Iterator[Times]]) -> dict[str, Times]:
    """Run the steps of all contenders in turns until each has come to its end; return the sums."""
    sums = dict.fromkeys(steps, Times(0.0, 0))
    left, turn = list(steps), 0
    while left:
        for name in list(in_turn(left, turn)):
            took = next(steps[name], None)
            if took is None:
                left.remove(name)
            else:
                sums[name] += took
        turn += 1
    return sums


class Bench:
    """The measurements, and the stores that they share.

    Attributes:
        batch: tasks in a transaction: as many as gc3session takes of its own accord.
    """

    def __init__(self, directory: str, args: argparse.Namespace) -> None:
        self.directory = directory
        self.tasks: int = args.tasks
        self.memory_tasks: int = args.memory_tasks
        self.repeat: int = args.repeat
        self.operations: int = args.operations
        self.most_pickles: int = args.pickles
        self._made = 0
        self._filled: dict[int, dict[str, Contender]] = {}
        self._disk: dict[str, float] = {}
        self._memory_session = ""
        self.batch = self._tasks_in_a_batch()

    # -- stores

    def fresh(self) -> str:
        """Return a path that is not in use."""
        self._made += 1
        return os.path.join(self.directory, f"store-{self._made}")

    def _tasks_in_a_batch(self) -> int:
        path = self.fresh()
        tasks = 0
        with Session(path) as session:
            session.add(Job())
            data = os.path.join(path, "jobs", "data.mdb")
            before = os.stat(data).st_size
            while os.stat(data).st_size < before + MIB and tasks < 1_000_000:
                for task in build(Job, 1000, tasks):
                    session.add(task, flush=False)
                tasks += 1000
        shutil.rmtree(path)
        return tasks

    def share(self, name: str, tasks: int) -> int:
        """Return how many of some tasks a contender gets: files take too long."""
        return min(tasks, self.most_pickles) if name == Pickles.name else tasks

    def chunks(self, name: str, tasks: int) -> Iterator[tuple[int, int]]:
        """Give first and number of the tasks of each turn."""
        share = self.share(name, tasks)
        for first in range(0, share, CHUNK):
            yield first, min(CHUNK, share - first)

    def filled(self, tasks: int) -> dict[str, Contender]:
        """Return stores of all kinds with that many tasks."""
        if tasks not in self._filled:
            stores = self._filled[tasks] = {}
            for kind in FILLED:
                store = stores[kind.name] = kind(self.fresh(), self.batch)
                for first, number in self.chunks(kind.name, tasks):
                    store.record(build(kind.job, number, first))
                store.finish()
                store.close()
                if tasks == self.tasks:
                    blocks = (file.stat().st_blocks for file in Path(store.directory).rglob("*"))
                    self._disk[kind.name] = 512 * sum(blocks) / self.share(kind.name, tasks)
                store.open()
        return self._filled[tasks]

    def close(self) -> None:
        """Close the shared stores."""
        for stores in self._filled.values():
            for store in stores.values():
                store.close()

    # -- ways of comparing

    def repeated(self, row: Row, once: Callable[[], dict[str, Times]]) -> None:
        """Fill a row in with the medians of several runs."""
        runs = [once() for _ in range(self.repeat)]
        for name in runs[0]:
            row.ratio[name] = median(run[name].each / run[Raw.name].each for run in runs)
            row.absolute[name] = [median(run[name].each for run in runs)]

    def growth(
        self,
        row: Row,
        work: Callable[[Contender, Any], object],
        prepare: Callable[[Contender, int], Any] = lambda store, turn: None,
        *,
        linear: bool = False,
    ) -> None:
        """Fill a row in: how much longer *work* takes in the large stores than in the small ones.

        Args:
            row: the row.
            work: takes the store and what *prepare* returned.
            prepare: what is done before, and not measured.
            linear: *work* looks at each file of pickles; what it takes is scaled to all tasks.
        """
        large, small = self.filled(self.tasks), self.filled(SMALL)
        for kind in CONTENDERS:
            both: tuple[list[float], list[float]] = ([], [])
            begun = time.monotonic()
            for turn in range(self.operations):
                if turn >= 3 and time.monotonic() - begun > PATIENCE:
                    break
                for store, times in in_turn(((large[kind.name], both[0]), (small[kind.name], both[1])), turn):
                    prepared = prepare(store, turn)
                    times.append(timed(work, store, prepared))
            scale = self.tasks / self.share(kind.name, self.tasks) if linear else 1.0
            row.ratio[kind.name] = scale * median(a / b for a, b in zip(*both, strict=True))
            row.absolute[kind.name] = [scale * median(both[0]) * 1e6, median(both[1]) * 1e6]
        row.unit = f"us at {self.tasks:,} / {SMALL:,}"

    # -- the rows

    def record(self, row: Row, ours: type[Contender]) -> None:
        """Record all tasks.  What the death of an object takes beyond that of a plain one counts, too."""

        def steps(store: Contender, deaths: list[float]) -> Iterator[Times]:
            for first, number in self.chunks(store.name, self.tasks):
                tasks = build(store.job, number, first)
                recorded = timed(store.record, tasks)
                deaths.append(timed(tasks.clear))
                yield Times(recorded, number)
            yield Times(timed(store.finish), 0)

        def once() -> dict[str, Times]:
            kinds: tuple[type[Contender], ...] = (ours, Raw, *OTHERS)
            stores = [kind(self.fresh(), self.batch) for kind in kinds]
            deaths: dict[str, list[float]] = {store.name: [] for store in stores}
            sums = all_in_turns({store.name: steps(store, deaths[store.name]) for store in stores})
            sums[Ours.name] += Times(max(0.0, sum(deaths[Ours.name]) - sum(deaths[Raw.name])), 0)
            for store in stores:
                store.close()
                shutil.rmtree(store.directory)
            return sums

        self.repeated(row, once)

    def build(self, row: Row) -> None:
        """Build the objects, which no other row counts."""

        def steps(job: type[AnyJob]) -> Iterator[Times]:
            for first, number in self.chunks(Raw.name, min(self.tasks, 100_000)):
                yield Times(timed(build, job, number, first), number)

        self.repeated(row, lambda: all_in_turns({Ours.name: steps(Job), Raw.name: steps(RawJob)}))

    def add(self, row: Row) -> None:
        """Record one task."""
        stores = [kind(self.fresh(), self.batch) for kind in CONTENDERS]
        times: dict[str, list[float]] = {store.name: [] for store in stores}
        for turn in range(self.operations):
            for store in in_turn(stores, turn):
                (task,) = build(store.job, 1, turn)
                times[store.name].append(timed(store.add, task))
        for name, own in times.items():
            row.ratio[name] = median(a / b for a, b in zip(own, times[Raw.name], strict=True))
            row.absolute[name] = [median(own) * 1e6]
        for store in stores:
            store.close()

    def iterate(self, row: Row) -> None:
        """Read all tasks in order."""
        stores = self.filled(self.tasks)

        def steps(store: Contender) -> Iterator[Times]:
            scan = store.scan()
            for _, number in self.chunks(store.name, self.tasks):
                yield Times(timed(store.advance, scan, number), number)

        self.repeated(row, lambda: all_in_turns({name: steps(store) for name, store in stores.items()}))

    def load(self, row: Row) -> None:
        """Read tasks one by one."""
        stores = self.filled(self.tasks)
        keys = {name: random.Random(1).choices(store.keys(), k=LOADS) for name, store in stores.items()}

        def steps(name: str) -> Iterator[Times]:
            for first in range(0, LOADS, 1000):
                yield Times(timed(stores[name].load, keys[name][first : first + 1000]), 1000)

        self.repeated(row, lambda: all_in_turns({name: steps(name) for name in stores}))

    def change(self, row: Row) -> None:
        """Read each task, change it and save it."""
        stores = self.filled(self.tasks)
        run = count()

        def once() -> dict[str, Times]:
            turn = next(run)
            return {
                name: Times(timed(stores[name].change_all, f"STATE{turn}"), self.share(name, self.tasks))
                for name in in_turn(list(stores), turn)
            }

        self.repeated(row, once)

    def disk(self, row: Row) -> None:
        """Look at the files right after recording with the default batch."""
        self.filled(self.tasks)
        row.absolute = {name: [size] for name, size in self._disk.items()}
        row.ratio = {name: size / self._disk[Raw.name] for name, size in self._disk.items()}

    def open(self, row: Row) -> None:
        """Open, count, close."""
        stores = [store for size in (self.tasks, SMALL) for store in self.filled(size).values()]
        for store in stores:
            store.close()
        self.growth(row, lambda store, _: store.count_anew(), linear=True)
        for store in stores:
            store.open()

    def add_remove(self, row: Row) -> None:
        """Add a task, and remove one at random."""
        keys: dict[str, list[Any]] = {}

        def prepare(store: Contender, turn: int) -> AnyJob:
            if store.directory not in keys:
                keys[store.directory] = store.keys()
                random.Random(2).shuffle(keys[store.directory])
            return build(store.job, 1, self.tasks + turn)[0]

        def work(store: Contender, task: AnyJob) -> None:
            store.add(task)
            store.remove(keys[store.directory].pop())

        self.growth(row, work, prepare)

    def stats(self, row: Row) -> None:
        """Count the tasks in each state."""
        self.growth(row, lambda store, _: store.stats(), linear=True)

    def memory(self, row: Row, action: str) -> None:
        """Record or iterate in a process of its own, and watch its memory."""
        if not self._memory_session:
            self._memory_session = self.fresh()
            if action != "record":
                self._peak("record")
        peak = self._peak(action) / MIB
        row.ratio[Ours.name] = peak - (BATCH_BYTES / MIB if action == "record" else 0)
        row.absolute[Ours.name] = [peak]

    def _peak(self, action: str) -> int:
        """Return by how many bytes the memory grew.

        That is anonymous memory: pages of the data file that are mapped belong to the system's
        cache, which takes them back when it likes.
        """
        command = [sys.executable, __file__, "--child", action, self._memory_session, str(self.memory_tasks)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            if child.stdout.readline() != b"ready\n":
                raise SystemExit("bench.py: the process whose memory is measured has failed")
            before = peak = anonymous_memory(child.pid)
            child.stdin.write(b"go\n")
            child.stdin.flush()
            while not select.select([child.stdout], [], [], 0.01)[0]:
                peak = max(peak, anonymous_memory(child.pid))
            if child.stdout.readline() != b"done\n":
                raise SystemExit("bench.py: the process whose memory is measured has failed")
        return peak - before


def anonymous_memory(pid: int) -> int:
    """Return how many bytes of a process's memory are in no file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def child(action: str, path: str, tasks: int) -> None:
    """Do the work whose memory `Bench.memory` measures."""
    with Session(path) as session:
        if action == "record":
            session.add(build(Job, 1)[0])
        for _ in zip(range(1000), session, strict=False):
            pass
        print("ready", flush=True)
        sys.stdin.readline()
        if action == "record":
            for i in range(1, tasks):
                session.add(build(Job, 1, i)[0], flush=False)
            session.flush()
        else:
            seen = sum(1 for _ in session)
            if seen != tasks:
                raise SystemExit(f"bench.py: there are {tasks:,} tasks, but iterating gave {seen:,}")
    print("done", flush=True)


def rows(bench: Bench) -> list[tuple[Row, Callable[[Row], None]]]:
    """Return all rows, and what fills each in."""
    tasks = f"{bench.tasks:,} tasks"
    against = f"{bench.tasks:,} tasks against {SMALL:,}"
    memory = f"peak memory, {{}} {bench.memory_tasks:,} tasks"
    return [
        (Row("record", f"record {tasks}, `add(flush=False)`", 2.0), lambda row: bench.record(row, Ours)),
        (Row("record-many", f"record {tasks}, `add_many`", 1.6), lambda row: bench.record(row, OursMany)),
        (Row("add", "one durable `add`", 1.15), bench.add),
        (Row("iterate", f"iterate {tasks} as objects", 1.8), bench.iterate),
        (Row("load", "load at random", 2.5), bench.load),
        (Row("disk", "bytes on disk a task", 1.3, "bytes"), bench.disk),
        (Row("open", f"open + `len`, {against}", 1.5), bench.open),
        (Row("add-remove", f"durable `add` and `remove`, {against}", 1.5), bench.add_remove),
        (Row("stats", f"`stats()`, {against}", 2.0), bench.stats),
        (Row("change", f"change the state of {tasks}, `save_all`", 2.5), bench.change),
        (Row("build", "build a task (in no other row)", None), bench.build),
        (
            Row("memory-record", memory.format("recording") + ", above the batch", 100, "MiB with the batch"),
            lambda row: bench.memory(row, "record"),
        ),
        (
            Row("memory-iterate", memory.format("iterating"), 100, "MiB"),
            lambda row: bench.memory(row, "iterate"),
        ),
    ]


# -- output -------------------------------------------------------------------


def markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table that reads well as it is, and in Markdown."""
    widths = [max(len(line[i]) for line in (titles, *body)) for i in range(len(titles))]
    lines = [titles, [("-" if i == 0 else "-:").rjust(width, "-") for i, width in enumerate(widths)], *body]
    return "\n".join(
        f"| {line[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in lines
    )


def figure(value: float) -> str:
    """Return a number with some three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio_line(row: Row) -> list[str]:
    """Return the row's line in the first table."""
    times = "MiB" if row.key.startswith("memory") else "x"
    cells = [f"{figure(row.ratio[name.name])} {times}" if name.name in row.ratio else "" for name in CONTENDERS]
    allowed = "" if row.allowed is None else f"{row.allowed:g} {times}"
    return [row.work, cells[0], allowed, *cells[1:]]


def absolute_line(row: Row) -> list[str]:
    """Return the row's line in the second table."""
    cells = [" / ".join(map(figure, row.absolute.get(kind.name, ()))) for kind in CONTENDERS]
    return [row.work, row.unit, *cells]


def report(done: Sequence[Row], bench: Bench, machine: dict[str, str]) -> str:
    """Return both tables, and what they were measured on."""
    names = [kind.name for kind in CONTENDERS]
    ratios = markdown(
        ["ratio", names[0], "at most", *names[1:]],
        [ratio_line(row) for row in done],
    )
    absolutes = markdown(["absolute", "unit", *names], [absolute_line(row) for row in done])
    notes = (
        "Ratios are to the raw limit; in rows with 'against', to the same work in the small store."
        f"  Transactions of {bench.batch:,} tasks.  Pickle files: {bench.most_pickles:,} at most, scaled"
        " to the number of tasks, and only the durable rows flush them to disk.  The raw limit has no"
        " index of states: it counts them by reading all records."
    )
    about = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return f"{ratios}\n\n{absolutes}\n\n{notes}\n\n{about}"


def compared(directory: str, args: argparse.Namespace, load: float) -> str:
    """Return the table of a store on a server, beside psycopg by hand and LMDB (bench_postgresql.py)."""
    from bench_postgresql import CONTENDERS as NAMES
    from bench_postgresql import compare

    batch = Bench(directory, args).batch
    figures = compare(args.store, directory, args.tasks, batch, args.repeat, args.operations)
    lines = []
    for work, row in figures.items():
        copied = row.get("COPY")
        ratio = "" if copied is None else f"{figure(row[NAMES[0]] / copied)} x"
        lines.append([work, *(figure(row[name]) if name in row else "" for name in NAMES), ratio])
    titles = ["us a task", *NAMES, "against COPY"]
    facts = "\n".join(f"- {name}: {told}" for name, told in machine_facts(directory, load).items())
    return f"{markdown(titles, lines)}\n\nTransactions of {batch:,} tasks; at most 1.5 x is the aim.\n\n{facts}"


def machine_facts(directory: str, load: float) -> dict[str, str]:
    """Return what the figures were measured on; *load* is the load average before."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    libraries = ("gc3session", "lmdb", "psycopg", "msgpack", "attrs")
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} CPUs; load average before: {load:.2f}",
        "system": f"{platform.system()} {platform.release()}, filesystem {filesystem_of(directory)}",
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {library_version(name)}" for name in libraries)
        + f", SQLite {sqlite3.sqlite_version}",
    }


def library_version(name: str) -> str:
    """Return the version of an installed package, or 'not installed' (a checkout on the path)."""
    try:
        return version(name)
    except ImportError:
        return "not installed"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="30,000 tasks; takes less than a minute")
    size.add_argument("--full", action="store_true", help="measure memory with 10,000,000 tasks")
    parser.add_argument("--tasks", type=int, metavar="N", help="(default: 1,000,000, some ten minutes)")
    parser.add_argument("--store", metavar="URL", help="compare the store on this PostgreSQL server instead")
    parser.add_argument("--only", action="append", metavar="ROW", help="one row; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--dir", default=".", help="where to write; on a disk (default: here)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tasks is None:
        args.tasks = 30_000 if args.quick else 1_000_000
    if args.tasks < 2 * SMALL:
        parser.error(f"--tasks must be at least {2 * SMALL:,}")
    args.memory_tasks = 10_000_000 if args.full else 4 * args.tasks if args.quick else args.tasks
    args.pickles = min(args.tasks, 3_000 if args.quick else 20_000)
    args.operations = 60 if args.quick else 300
    args.repeat = 3
    return args


def main() -> int:
    """Measure, and print the tables."""
    args = parse_arguments()
    if args.child:
        action, path, tasks = args.child
        child(action, path, int(tasks))
        return 0
    if filesystem_of(args.dir) in ("tmpfs", "ramfs"):
        print(f"bench.py: {args.dir} is in memory, where durability costs nothing: give --dir", file=sys.stderr)
        return 2
    directory = tempfile.mkdtemp(prefix="bench-", dir=args.dir)
    load = os.getloadavg()[0]
    try:
        if args.store is not None:
            print(compared(directory, args, load))
            return 0
        bench = Bench(directory, args)
        every = rows(bench)
        known = [row.key for row, _ in every]
        if unknown := set(args.only or ()) - set(known):
            print(f"bench.py: no row {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        done: list[Row] = []
        for row, fill in every:
            if not args.only or row.key in args.only:
                start = time.monotonic()
                fill(row)
                done.append(row)
                took = time.monotonic() - start
                print(f"{row.key}: {figure(row.ratio[Ours.name])} ({took:.1f} s)", file=sys.stderr, flush=True)
        bench.close()
        machine = machine_facts(directory, load)
        print(report(done, bench, machine))
        if args.json:
            figures = {"machine": machine, "rows": [attrs.asdict(row) for row in done]}
            Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
