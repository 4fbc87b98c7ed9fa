"""Check Python's own standard library with a pool of processes that all record into one session.

Each file is read, hashed and, if it is Python source, compiled.  A task records that: when it was
in which state, how long it took, and the error if there was one (Python's tests have some files
that must not compile).  Every worker opens the session by itself and records its tasks durably, a
small batch at a time.  Press Ctrl-C whenever you like: what was recorded stays, and the same
command with `--session` does the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import attrs

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

    from gc3session import Error, Session, State, Task
except ImportError as error:
    sys.exit(f"quickstart.py: {error}; run  pip install '.[cli]'  in the checkout, and use that Python")

BATCH: Final = 16  # files that a worker takes, and records, at once
SKIPPED: Final = ("site-packages", "dist-packages", "__pycache__")
SHOWN: Final = 8  # rows of each list in the summary
PLAIN_WIDTH: Final = 140  # columns where there is no terminal
PLAIN_INTERVAL: Final = 1.0  # seconds between lines of progress where there is no terminal


@attrs.define
class FileCheck(Task):
    """The check of one file; `jobname` is its path inside the standard library.

    Attributes:
        path: where it is.
        size: in bytes.
        lines: of text; 0 for a file that isn't Python source.
        digest: SHA-256, as hexadecimal digits.
        seconds: that the check took.
        error: why it failed, or ''.
        warnings: what the compiler had to say.
    """

    path: str = ""
    size: int = 0
    lines: int = 0
    digest: str = ""
    seconds: float = 0.0
    error: str = ""
    warnings: list[str] = attrs.Factory(list)

    def run(self) -> None:
        """Check the file and fill in the result."""
        start = time.perf_counter()
        self.state = State.RUNNING
        self.error = ""
        try:
            data = Path(self.path).read_bytes()
            self.size = len(data)
            self.digest = hashlib.sha256(data).hexdigest()
            if self.path.endswith(".py"):
                self.lines = data.count(b"\n")
                self.check_source(data)
        except SyntaxError as error:
            where = f", line {error.lineno}" if error.lineno else ""
            self.error = f"{type(error).__name__}: {error.msg}{where}"
        except (OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            self.error = f"{type(error).__name__}: {error}"
        self.returncode = 1 if self.error else 0
        self.seconds = time.perf_counter() - start
        self.state = State.TERMINATED

    def check_source(self, source: bytes) -> None:
        """Compile *source* and note the compiler's warnings; raise what the compiler raises."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compile(source, self.path, "exec", dont_inherit=True)
        self.warnings = [f"line {found.lineno}: {found.message}" for found in caught]


# -- a worker -----------------------------------------------------------------


class Work(NamedTuple):
    """A file to check, and the ID of its task if an earlier run has left one."""

    path: str
    name: str
    task_id: str | None


class Done(NamedTuple):
    """What a worker did with its files."""

    checked: int
    failed: int


_session: Session
"""A worker's own view of the session."""


def open_in_worker(path: str) -> None:
    """Prepare a worker: it opens the session.  Ctrl-C is the main process's affair."""
    global _session
    _session = Session(path, create=False)


def check_files(batch: list[Work]) -> Done:
    """Check some files, recording their tasks before and after."""
    tasks: list[FileCheck] = []
    for work in batch:
        if work.task_id is None:
            task = FileCheck(jobname=work.name, path=work.path)
        else:
            task = _session.load(work.task_id)
        task.state = State.SUBMITTED
        tasks.append(task)
    _session.add_many(tasks)  # on disk, and seen by everybody, when it returns
    for task in tasks:
        task.run()
    _session.save_all()
    return Done(len(tasks), sum(bool(task.error) for task in tasks))


# -- the main process ---------------------------------------------------------


def standard_library() -> Iterator[tuple[str, str]]:
    """Give path and name of each file of the standard library, in the order of their names."""
    top = sysconfig.get_path("stdlib")
    for directory, subdirectories, files in os.walk(top):
        subdirectories[:] = sorted(name for name in subdirectories if name not in SKIPPED)
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                yield path, os.path.relpath(path, top)


def work_left(session: Session, limit: int | None) -> list[Work]:
    """Return the files that the session has no finished task for."""
    known = {task.path: task for task in session if isinstance(task, FileCheck)}
    left = []
    for path, name in islice(standard_library(), limit):
        task = known.get(path)
        if task is None or task.state != State.TERMINATED:
            left.append(Work(path, name, None if task is None else task.persistent_id))
    return left


def new_session() -> Session:
    """Return a session in a fresh directory: in the current directory or, if need be, a temporary one."""
    name = f"quickstart-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        return Session(name)
    except (Error, OSError) as error:
        print(f"quickstart.py: not in the current directory: {error}", file=sys.stderr)
        return Session(os.path.join(tempfile.gettempdir(), name))


class Meter:
    """Shows how far the work is: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.checked = self.failed = 0
        self.start = self.shown = time.monotonic()
        self.progress = Progress(
            TextColumn("checking"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f}/s  [red]{task.fields[failed]} failed[/red]"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("", total=total, rate=0.0, failed=0)

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self.start

    def advance(self, done: Done) -> None:
        """Take note of some work that was done."""
        self.checked += done.checked
        self.failed += done.failed
        rate = self.checked / self.seconds
        self.progress.update(self.bar, completed=self.checked, rate=rate, failed=self.failed)
        if not self.console.is_terminal and time.monotonic() - self.shown >= PLAIN_INTERVAL:
            self.shown = time.monotonic()
            print(f"  {self.checked:5,} of {self.total:,} files, {rate:,.0f}/s, {self.failed} failed", flush=True)


def check_all(session: Session, work: list[Work], args: argparse.Namespace, meter: Meter) -> str:
    """Check all files; return '' if that came to its end, else why it did not."""
    batches = [work[i : i + BATCH] for i in range(0, len(work), BATCH)]
    stopped = ""
    executor = ProcessPoolExecutor(
        args.jobs,
        multiprocessing.get_context(args.start_method),
        open_in_worker,
        (os.path.abspath(session.path),),
    )
    # The workers start now: before there are threads, and deaf to Ctrl-C from their first moment.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    futures: set[Future[Done]] = {executor.submit(check_files, batch) for batch in batches}
    try:
        signal.signal(signal.SIGINT, handler)
        with meter.progress:
            for future in as_completed(tuple(futures)):
                meter.advance(future.result())
                futures.remove(future)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is under way takes less than a second
        stopped = "interrupted"
    except BrokenProcessPool:
        stopped = "a worker process was killed"
    except Error as error:
        stopped = f"a worker process could not record its tasks ({error})"
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    for future in futures:  # what came in after an interruption
        if not future.cancelled() and future.exception() is None:
            meter.advance(future.result())
    return stopped


# -- the summary --------------------------------------------------------------


def command(name: str, *args: str) -> str:
    """Return a command line for `gc3session`, found where this Python's programs are."""
    program = "gc3session"
    beside = os.path.join(os.path.dirname(sys.executable), program)
    if shutil.which(program) is None and os.path.exists(beside):
        program = os.path.relpath(beside) if sys.executable.startswith(os.getcwd() + os.sep) else beside
    return shlex.join((program, name, *args))


def table(console: Console, title: str, *columns: str) -> Table:
    """Print the title and return an empty table; its last column takes what is left of the line."""
    console.print(f"\n[bold]{title}[/bold]")
    made = Table(box=None, pad_edge=False)
    for column in columns[:-1]:
        numeric = column in ("seconds", "lines", "bytes")
        made.add_column(column, no_wrap=True, justify="right" if numeric else "left")
    made.add_column(columns[-1])  # the one that may shrink; its cells are `one_line`
    return made


def one_line(text: str) -> Text:
    """Return a cell that is cut, not wrapped, where there is no room."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def print_summary(console: Console, session: Session, meter: Meter) -> None:
    """Print what is in the session: states, failures, the slowest tasks."""
    seconds = meter.seconds
    failures: list[FileCheck] = []
    slowest: list[FileCheck] = []
    size = lines = warned = 0
    for task in session:
        if isinstance(task, FileCheck):
            size, lines, warned = size + task.size, lines + task.lines, warned + bool(task.warnings)
            if task.error:
                failures.append(task)
            slowest = sorted([*slowest, task], key=lambda each: -each.seconds)[:3]

    states = ", ".join(f"{count:,} {state}" for state, count in session.stats().items()) or "no tasks"
    console.print(f"\n[bold]{len(session):,} tasks[/bold]: {states}")
    console.print(
        f"{meter.checked:,} checked in {seconds:.1f} s, {meter.checked / max(seconds, 1e-9):,.0f} tasks per"
        f" second; {lines:,} lines, {size / 1e6:,.1f} MB; {warned:,} with compiler warnings",
        soft_wrap=True,
    )
    if failures:
        found = table(console, f"{len(failures):,} failed", "ID", "name", "error")
        for task in failures[:SHOWN]:
            found.add_row(task.persistent_id, Text(task.jobname), one_line(task.error))
        console.print(found)
        if len(failures) > SHOWN:
            console.print(f"... and {len(failures) - SHOWN:,} more")
    else:
        console.print("none failed")
    if slowest:
        found = table(console, "the slowest", "ID", "seconds", "lines", "last event", "name")
        for task in slowest:
            event = task.events[-1]
            found.add_row(
                task.persistent_id,
                f"{task.seconds:.3f}",
                f"{task.lines:,}",
                f"{event.time.astimezone():%H:%M:%S} {event.state}",
                one_line(task.jobname),
            )
        console.print(found)
    example = next(iter(failures or slowest), None)
    path = shown(session.path)
    console.print(f"\nThe session is in [bold]{escape(path)}[/bold]. Look at it with", soft_wrap=True)
    print(f"  {command('list', path)}")
    if example is not None:
        print(f"  {command('show', path, str(example.persistent_id))}")


def shown(path: str) -> str:
    """Return a path as a person would write it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def positive(text: str) -> int:
        if (value := int(text)) < 1:
            raise ValueError
        return value

    parser.add_argument("--session", metavar="DIR", help="the session (default: a new one in this directory)")
    parser.add_argument("--jobs", metavar="N", type=positive, help="worker processes (default: one a CPU)")
    parser.add_argument("--limit", metavar="N", type=positive, help="check the first N files only")
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        help="how the workers are started (default: Python's own)",
    )
    args = parser.parse_args()
    if args.jobs is None:
        args.jobs = len(os.sched_getaffinity(0))
    return args


def main() -> int:
    """Run the checks and print the summary; return the exit status."""
    args = parse_arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    try:
        session = Session(args.session) if args.session else new_session()
    except (Error, OSError) as error:
        print(f"quickstart.py: {error}", file=sys.stderr)
        return 2
    with session:
        work = work_left(session, args.limit)
        print(f"Python {sys.version.split()[0]}: {sysconfig.get_path('stdlib')}")
        print(
            f"{len(work):,} files to check, {args.jobs} processes, recording into {shown(session.path)}",
            flush=True,
        )
        meter = Meter(console, len(work))
        stopped = check_all(session, work, args, meter)
        print_summary(console, session, meter)
        if stopped:
            script = shlex.join((sys.executable, sys.argv[0], "--session", shown(session.path)))
            print(f"\n{stopped} after {meter.checked:,} of {len(work):,} files; to do the rest:\n  {script}")
    return 130 if stopped == "interrupted" else 1 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
