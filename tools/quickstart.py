"""Check the files of Python's own standard library, in several processes that all record into one session.

Each file is a task: it is read, hashed and, if it is Python source, compiled. What came of that is recorded, also
where it failed: Python's tests have some files that are not meant to compile.

Press Ctrl-C, or kill it, whenever you like: nothing that was recorded is lost, and the same command with `--session`
does the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import signal
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from heapq import nlargest
from pathlib import Path
from typing import Final

import attrs

from gc3session import Error, Session, State, Task

LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
BATCH: Final = 16  # tasks that a worker process loads, runs and saves at once
SHOWN: Final = 8  # failures that are listed


@attrs.define
class FileCheck(Task):
    """The check of one file; `jobname` is its path inside the standard library.

    A task is an attrs class: its fields are what is recorded, beside those that every Task has.
    """

    size: int = 0
    lines: int = 0  # of source code
    digest: str = ""  # SHA-256
    warnings: list[str] = attrs.Factory(list)  # of the compiler
    error: str = ""  # why the check failed
    seconds: float = 0.0  # that it took

    def run(self) -> None:
        """Check the file. Each new state is noted in the task's history, with its time."""
        self.state = State.RUNNING
        start = time.perf_counter()
        try:
            self.check(LIBRARY / self.jobname)
        except (SyntaxError, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            self.error = f"{type(error).__name__}: {error}"
        self.seconds = time.perf_counter() - start
        self.returncode = 1 if self.error else 0
        self.state = State.TERMINATED

    def check(self, path: Path) -> None:
        """Read, hash and compile the file; raise what is wrong with it."""
        data = path.read_bytes()
        self.size = len(data)
        self.digest = hashlib.sha256(data).hexdigest()
        if path.suffix == ".py":
            self.lines = data.count(b"\n")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                compile(data, self.jobname, "exec", dont_inherit=True)
            self.warnings = [f"line {warning.lineno}: {warning.message}" for warning in caught]


def files_of_library() -> Iterator[str]:
    """Give the path of each file inside the standard library."""
    for directory, subdirectories, files in os.walk(LIBRARY):
        subdirectories[:] = sorted({*subdirectories} - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(files):
            yield os.path.relpath(os.path.join(directory, name), LIBRARY)


def check_files(path: str, ids: list[str]) -> None:
    """Run some tasks of the session; this is what the worker processes do."""
    with Session(path, create=False) as session:
        for task in session.load_many(ids):
            task.run()
        session.save_all()  # all that has changed, in one transaction; it is on disk when this returns


def run_tasks(path: str, ids: list[str], processes: int | None) -> None:
    """Run tasks of the session in worker processes, until all are done or Ctrl-C is pressed."""
    # Ctrl-C also reaches the workers, which ignore it: they finish what is under way, and the rest is called off.
    with ProcessPoolExecutor(
        processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        batches = [pool.submit(check_files, path, ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
        try:
            for done, batch in enumerate(as_completed(batches), 1):
                batch.result()  # raises what the worker has raised
                if done % 20 == 0:
                    print(f"  {done * BATCH:,} of {len(ids):,} files", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)


def print_summary(path: str) -> None:
    """Print what is in the session."""
    with Session(path, create=False) as session:
        states = session.stats()  # counted by the session's index: no task is read
        failed = list(session.select(returncode=1))
        slowest = nlargest(3, session, key=lambda task: task.seconds)
        lines, size = sum(task.lines for task in session), sum(task.size for task in session)

    print(f"\n{sum(states.values()):,} tasks:", ", ".join(f"{count:,} {state}" for state, count in states.items()))
    print(f"{lines:,} lines of source code, {size / 1e6:,.1f} MB")
    print(f"\n{len(failed):,} failed")
    for task in failed[:SHOWN]:
        print(f"{task.persistent_id:<15} {task.jobname:<44} {task.error:.54}")
    if len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN:,} more")
    print("\nThe slowest, with the last event of each")
    for task in slowest:
        event = task.events[-1]
        when = f"{event.time.astimezone():%H:%M:%S} {event.state}"
        print(f"{task.persistent_id:<15} {task.seconds:.3f} s  {when:<20} {task.jobname}")

    print(f"\nThe session is in {path}. Look at it with")
    print_command("gc3session", "list", path)
    print_command("gc3session", "show", path, (failed or slowest)[0].persistent_id)
    if State.NEW in states:
        print("and check the rest with")
        print_command(Path(sys.executable).name, sys.argv[0], "--session", path)


def print_command(program: str, *args: str) -> None:
    """Print a command line for a program that is beside this Python."""
    path = os.path.join(os.path.dirname(sys.executable), program)
    print(" ", shlex.join([min(path, os.path.relpath(path), key=len), *args]))


def main() -> None:
    """Make a session or open one, run what it has not run yet, and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--session", metavar="DIR", help="go on with this session (default: a new one, here)")
    parser.add_argument("--processes", metavar="N", type=int, help="(default: one for each CPU)")
    parser.set_defaults(session=f"quickstart-{datetime.now():%Y%m%d-%H%M%S}")
    args = parser.parse_args()
    try:
        with Session(args.session) as session:  # made if it isn't there
            if len(session) == 0:
                session.add_many(FileCheck(jobname=name) for name in files_of_library())
            ids = list(session.select(state=State.NEW).ids())
        print(f"{len(ids):,} files of {LIBRARY} to check, recording into {args.session}", flush=True)
        start = time.monotonic()
        run_tasks(args.session, ids, args.processes)
        print(f"  ended after {time.monotonic() - start:.1f} s")
        print_summary(args.session)
    except Error as error:
        sys.exit(f"quickstart.py: {error}")


if __name__ == "__main__":
    main()
