"""Measure how fast gc3session is: against py-lmdb and msgpack called by hand, and beside sqlite3.

All take turns of a few thousand tasks, in one order and the other, so that whatever else the machine does slows all of
them alike.  Of several runs the median ratio counts.  The tasks that are recorded are built outside of the measured
time.  Python's garbage collection stays on, as in a user's program.  (bench_rows.py says what is done, bench_targets.py
has what it is done with.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench_rows import (
    SMALL,
    Amounts,
    Counting,
    Row,
    Stores,
    Turn,
    rows_of_growth,
    rows_on_lmdb,
    rows_on_postgresql,
    timed,
)
from bench_scale import steps
from bench_targets import BATCH, ON_LMDB, ON_POSTGRESQL, Gc3session, RawLimit, Target
from bench_workers import rates

MEASURES: Final = ("", "CPU", "instructions")
COUNTED: Final = 4_000  # tasks when instructions are counted

NOTES: Final = (
    "The time by the clock comes first.  Ratios are to the raw limit (py-lmdb and msgpack by hand), or to what the row"
    f" says; in rows with two numbers of tasks, to the same work in the small store.  Transactions of {BATCH:,} tasks."
)
NOTES_ON_POSTGRESQL: Final = f"Ratios are to the column that has 1.00 x.  Transactions of {BATCH:,} tasks."
NOTES_ON_SCALE: Final = (
    "Times are those a task of each tenth, or million, in turn.  Each step is a process of its own; the memory is by how"
    " much its own grew, without pages of files.  Recording has a batch of 64 MiB."
)


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


def medians(vectors: Sequence[Amounts]) -> list[float]:
    """Return the median of each component."""
    return [median(column) for column in zip(*vectors, strict=True)]


class Figures:
    """What a row came to, for each target: ratios, and amounts, also those of the small store if there is one."""

    def __init__(self, row: Row, stores: Stores) -> None:
        self.row = row
        sizes = [row.tasks] if row.baseline else [row.tasks, SMALL]
        together = [row.targets] if row.baseline else [[target] for target in row.targets]
        each: dict[tuple[type[Target], int], list[Amounts]] = defaultdict(list)
        for targets in together:
            for run in range(row.runs):
                works = {(target, size): row.work(stores, target, size) for target in targets for size in sizes}
                for key, turns in in_turns(works, run).items():
                    each[key] += row.per_task(turns)
        self.amounts = {target: [medians(each[target, size]) for size in sizes] for target in row.targets}
        self.ratios = {}
        for target in row.targets:
            other = (row.baseline, row.tasks) if row.baseline else (target, SMALL)
            pairs = zip(each[target, row.tasks], each[other], strict=True)
            self.ratios[target] = medians([tuple(a / b for a, b in zip(*pair, strict=True)) for pair in pairs])

    def add_instructions(self, counts: dict[type[Target], dict[str, float]]) -> None:
        """Put beside the times how many instructions were counted."""
        for target in self.row.targets:
            if self.row.title in counts.get(target, ()):
                count = counts[target][self.row.title]
                self.amounts[target][0].append(count)
                self.ratios[target].append(count / counts[RawLimit][self.row.title])

    def cells(self, target: type[Target], measures: int, *, ratios: bool) -> list[str]:
        """Return a cell for each measure; bytes are shown instead of their ratio."""
        if ratios and self.row.unit != "bytes":
            cells = [f"{text_of(value)} x" for value in self.ratios.get(target, ())]
        else:
            columns = zip(*self.amounts.get(target, ()), strict=True)
            cells = [" / ".join(map(text_of, column)) for column in columns]
        return cells + [""] * (measures - len(cells))


def tables(figures: Sequence[Figures], targets: Sequence[type[Target]], measures: int) -> str:
    """Return a table of ratios and one of amounts."""
    texts = []
    for ratios in (True, False):
        shown = [target for target in targets if not (ratios and target is RawLimit)]
        titles = ["ratio", "at most"] if ratios else ["absolute", "unit"]
        titles += [title for target in shown for title in (target.name, *MEASURES[1:measures])]
        lines = []
        for each in figures:
            cells = (cell for target in shown for cell in each.cells(target, measures, ratios=ratios))
            lines.append([each.row.title, each.row.at_most if ratios else each.row.unit, *cells])
        texts.append(markdown(titles, lines))
    return "\n".join(texts)


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


def count_instructions(rows: Sequence[Row], only: str, directory: str) -> dict[type[Target], dict[str, float]]:
    """Return how many instructions a task the rows take, counted by valgrind in a process for each target."""
    counts: dict[type[Target], dict[str, float]] = {}
    for target in {target: None for row in rows for target in row.targets}:
        progress(f"counting the instructions of {target.name}")
        file = os.path.join(directory, "callgrind")
        valgrind = ["valgrind", *Counting.options, f"--callgrind-out-file={file}"]
        script = [sys.executable, __file__, f"--tasks={COUNTED}", f"--only={only}", "--counted", target.name, file]
        counts[target] = json.loads(subprocess.check_output(valgrind + script))
    return counts


def counted(rows: Sequence[Row], name: str, stores: Stores) -> dict[str, float]:
    """Return how many instructions a task the rows take, in a process of valgrind."""
    counts = {}
    for row in rows:
        for target in row.targets:
            if target.name == name and row.baseline is RawLimit and row.unit != "bytes":
                turns = list(row.work(stores, target, row.tasks))
                (counts[row.title],) = medians(row.per_task(turns))
    return counts


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
    parser.add_argument("--quick", action="store_true", help="30,000 tasks; takes about a minute")
    parser.add_argument("--tasks", type=int, metavar="N", help="(default: 1,000,000, some ten minutes)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose first cell has this text")
    parser.add_argument("--instructions", action="store_true", help="count them, too; needs valgrind")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--store", metavar="URL", help="measure this PostgreSQL server; URL without 'schema='")
    what.add_argument("--scale", type=int, metavar="N", help="do everything with a session of N tasks")
    what.add_argument("--workers", action="store_true", help="add durably by 1 to 8 processes and threads")
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="with --scale: record by so many")
    parser.add_argument("--counted", nargs=2, metavar=("TARGET", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tasks = args.scale or args.tasks or (30_000 if args.quick else 1_000_000)
    args.filesystem = subprocess.check_output(["df", "--output=fstype", "."], text=True).split()[1]
    if args.tasks < 2 * SMALL:
        parser.error(f"there must be at least {2 * SMALL:,} tasks")
    if not 1 <= args.processes <= SMALL // 10:
        parser.error(f"--processes must be from 1 to {SMALL // 10}")
    if args.filesystem in ("tmpfs", "ramfs"):
        parser.error("this directory is in memory, where durability costs nothing; call it in one on a disk")
    if args.instructions and (args.store or args.scale or args.workers or not shutil.which("valgrind")):
        parser.error("--instructions needs valgrind, and goes with none of --store, --scale and --workers")
    return args


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Return the rows that are asked for."""
    rows = rows_on_postgresql(args.tasks) if args.store else rows_on_lmdb(args.tasks)
    return [row for row in rows if args.only in row.title]


def progress(*words: str) -> None:
    """Say how far the work has come."""
    print(*words, file=sys.stderr, flush=True)


def measure(rows: Sequence[Row], stores: Stores, measured: list[Figures]) -> None:
    """Measure rows, and add them to those that are *measured*."""
    for row in rows:
        measured.append(Figures(row, stores))
        progress(row.title, *measured[-1].cells(row.targets[0], 1, ratios=True))


def opponents(args: argparse.Namespace, stores: Stores) -> str:
    """Measure the rows, and return their tables."""
    rows = rows_of(args)
    counts = count_instructions(rows, args.only, stores.directory) if args.instructions else {}
    figures: list[Figures] = []
    measure(rows, stores, figures)
    for each in figures:
        each.add_instructions(counts)
    text = tables(figures, ON_POSTGRESQL if args.store else ON_LMDB, 3 if counts else 2)
    return f"{text}\n{NOTES_ON_POSTGRESQL if args.store else NOTES}"


def workers(args: argparse.Namespace, stores: Stores) -> str:
    """Have processes and threads add at the same time, and return the table."""
    lines = []
    rounds, seconds = (1, 0.2) if args.quick else (3, 2.0)
    for title, figures in rates(stores.new, rounds, seconds):
        lines.append([title, *map(text_of, figures)])
        progress(*lines[-1])
    titles = ["durable adds a second", "gc3session", "us of CPU", "sqlite3", "us of CPU", "ratio"]
    return f"{markdown(titles, lines)}\nMedians; rounds of {seconds:g} s: {rounds}."


def scale(args: argparse.Namespace, stores: Stores) -> str:
    """Do everything with a session of very many tasks, and return the tables."""
    growth: list[Figures] = []
    lines = []
    with stores.new(Gc3session) as store:
        stores.shared[Gc3session, args.scale] = store
        rows = rows_of_growth(args.scale, [Gc3session])
        meanwhile = partial(measure, rows, stores, growth)
        for title, wall, cpu, *others in steps(store.directory, args.scale, args.processes, meanwhile):
            by_parts = (" ".join(map(text_of, each)) for each in (wall, cpu))
            lines.append([title, *by_parts, *map(text_of, others)])
            progress(*lines[-1])
    titles = [f"{args.scale:,} tasks", "us a task", "us of CPU", "peak memory, MiB", "bytes on disk a task"]
    return f"{markdown(titles, lines)}\n{tables(growth, [Gc3session], 2)}\n{NOTES_ON_SCALE}"


def main() -> None:
    """Measure, and print the tables."""
    args = parse_arguments()
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=".") as directory,
        Stores(directory, args.store or "", Counting(args.counted[1]) if args.counted else timed) as stores,
    ):
        if args.counted:
            print(json.dumps(counted(rows_of(args), args.counted[0], stores)))
            return
        text = (workers if args.workers else scale if args.scale else opponents)(args, stores)
    print(text, machine(args.filesystem, load_before), sep="\n\n")


if __name__ == "__main__":
    main()
