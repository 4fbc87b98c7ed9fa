"""Try to break sessions on this machine's disk: power cuts, kills, failing I/O, hostile files.

Each suite also tries something that is broken on purpose, its control: where that is not found to be
broken the suite proves nothing, and fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import attrs

from suite import KIT, CannotRun, Outcome, Plan, Suite

SUITES = {  # those that take longest first: at the end some processors have nothing to do
    "states": "states:PowerLossStates",
    "hostile": "hostile:HostileDirectories",
    "model": "model:Model",
    "decoder": "decoder:Decoder",
    "power": "power:PowerCuts",
    "faults": "faults:Faults",
    "kills": "kills:Kills",
    "together": "together:Together",
    "space": "space:Space",
}
"""Module and class of each suite; a suite is imported when it is to run."""

CONTROL_SHARE = 50
"""A control tries one case for each so many of its suite, ..."""

CONTROL_CASES = range(20, 400)
"""... but no fewer and no more than these."""

SHOWN = 10
"""Failures of a suite that are printed; all are kept."""


@attrs.frozen
class Result:
    """A line of the summary."""

    name: str
    verdict: str
    text: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.verdict == "FAILED"


def suite_named(name: str) -> Suite:
    """Return the suite of that name. Raise CannotRun if what it needs can't be imported."""
    module, _, class_ = SUITES[name].partition(":")
    try:
        suite: Suite = getattr(importlib.import_module(module), class_)()
    except ModuleNotFoundError as error:
        raise CannotRun(f"the Python module {error.name} is missing") from error
    return suite


def control(suite: Suite, plan: Plan, counted: int) -> str:
    """Run the control of *suite*; return what is wrong with it, or ''."""
    cases = min(max(counted // CONTROL_SHARE, CONTROL_CASES.start), CONTROL_CASES.stop)
    with tempfile.TemporaryDirectory(dir=plan.work, prefix="control-log-") as log:
        outcome = suite.control(attrs.evolve(plan.part("control"), count=cases, log=Path(log)))
    found = f"{len(outcome.failures)} failures in {outcome.tried:,} {suite.unit}"
    print(f"   control: {found}, as it must" if outcome.failures else f"   control PASSED: {found}")
    print_notes(outcome)
    return "" if outcome.failures else "its control, which is broken on purpose, was not found to be broken"


def print_notes(outcome: Outcome) -> None:
    """Print the notes of an outcome, one a line."""
    for key, value in outcome.notes.items():
        print(f"     {key}: {value:,}" if isinstance(value, int) else f"     {key}: {value}")


def print_failures(outcome: Outcome) -> None:
    """Print the first failures of an outcome."""
    for line in outcome.failures[:SHOWN]:
        print(f"   FAILED {line}")
    if len(outcome.failures) > SHOWN:
        print(f"   ... and {len(outcome.failures) - SHOWN:,} more failures")


def run(name: str, plan: Plan, options: argparse.Namespace) -> Result:
    """Run the suite *name*, or replay one case of it, and print what came of it."""
    start = time.monotonic()

    def result(verdict: str, text: str) -> Result:
        sys.stdout.flush()
        return Result(name, verdict, text, time.monotonic() - start)

    try:
        suite = suite_named(name)
        print(f"\n== {name}: {suite.summary}; seed {plan.seed}", flush=True)
        if options.replay is not None:
            outcome, wrong = suite.replay(plan, options.replay), ""
        else:
            count = options.count or (suite.long if options.long else suite.short)
            wrong = control(suite, plan, count)
            sys.stdout.flush()
            outcome = suite.run(attrs.evolve(plan.part("run"), count=count))
    except CannotRun as reason:
        print(f"\n!! {name}: NOT RUN: {reason}")
        return result("NOT RUN", str(reason))
    except Exception:  # noqa: BLE001  a suite that breaks must not keep the others from running
        traceback.print_exc()
        return result("FAILED", "the suite itself broke; see the traceback above")
    print_failures(outcome)
    print(f"   {outcome.tried:,} {suite.unit}, {len(outcome.failures):,} failures")
    print_notes(outcome)
    text = f"{outcome.tried:,} {suite.unit}, {len(outcome.failures):,} failures"
    if wrong:
        print(f"   FAILED {wrong}")
        text += f"; {wrong}"
    return result("FAILED" if outcome.failures or wrong else "passed", text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="crashkit", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"all by default: {' '.join(SUITES)}")
    parser.add_argument("--long", action="store_true", help="the long forms, which take hours")
    parser.add_argument("--count", type=int, metavar="N", help="how many cases, whatever the form")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is random; a new one by default")
    parser.add_argument(
        "--at", type=Path, metavar="DIRECTORY", help="a directory on the disk under test; the temporary one"
    )
    parser.add_argument(
        "--log",
        type=Path,
        default=Path("crashkit-log"),
        metavar="DIRECTORY",
        help="where failures are kept (crashkit-log); it is made for the first one",
    )
    parser.add_argument("--replay", type=Path, metavar="CASE", help="try a failure again, which was kept there")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that work at a time (one for each core)",
    )
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # where to write what came of a suite
    return parser


def main() -> int:
    """Run what is asked for; return the exit status: 1 if anything failed."""
    parsing = parser()
    options = parsing.parse_args()
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parsing.error(f"no suite {' '.join(sorted(unknown))}; there are {' '.join(SUITES)}")
    if options.replay is not None and len(options.suites) != 1:
        parsing.error("--replay needs the one suite whose case it is")
    if options.replay is not None and not options.replay.is_dir():
        parsing.error(f"{options.replay} is not the directory of a failure that was kept")
    if min(options.jobs, 1 if options.count is None else options.count) < 1:
        parsing.error("--count and --jobs must be 1 or more")
    options.seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    options.log = options.log.absolute()
    names = list(dict.fromkeys(options.suites or SUITES))
    results = in_parallel(names, options) if len(names) > 1 else [alone(names[0], options)]
    if options.result is None:
        return summary(sorted(results, key=lambda result: names.index(result.name)))
    options.result.write_text(json.dumps([attrs.asdict(result) for result in results]))
    return 0


def alone(name: str, options: argparse.Namespace) -> Result:
    """Run one suite in this process."""
    work = Path(tempfile.mkdtemp(prefix=f"crashkit-{name}-", dir=options.at))
    try:
        return run(name, Plan(options.seed, 0, work, options.log, options.jobs), options)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def in_parallel(names: list[str], options: argparse.Namespace) -> list[Result]:
    """Run several suites, some at a time, each in a process of its own; what each prints comes when it ends."""
    lanes = min(options.jobs, len(names))
    results: list[Result] = []
    waiting, running = names[::-1], dict[int, tuple[str, float, Path, subprocess.Popen[bytes]]]()
    with tempfile.TemporaryDirectory(prefix="crashkit-") as results_at:
        while waiting or running:
            while waiting and len(running) < lanes:
                name = waiting.pop()
                place = Path(results_at, name)
                with open(f"{place}.out", "wb") as out:
                    process = subprocess.Popen(command(name, options, place, lanes), stdout=out)
                running[process.pid] = name, time.monotonic(), place, process
                print(f"-- {name} begins", flush=True)
            pid = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid  # type: ignore[union-attr]
            name, start, place, process = running.pop(pid)
            status = process.wait()
            print(Path(f"{place}.out").read_text(), end="", flush=True)
            try:
                results += [Result(**result) for result in json.loads(place.read_text())]
            except FileNotFoundError:
                text = f"its process ended with the status {status}"
                results.append(Result(name, "FAILED", text, time.monotonic() - start))
    return results


def command(name: str, options: argparse.Namespace, result: Path, lanes: int) -> list[str]:
    """Return the command line that runs one of several suites, of which *lanes* run at a time."""
    given = {"seed": options.seed, "count": options.count, "at": options.at, "log": options.log, "result": result}
    line = [sys.executable, str(KIT), name, f"--jobs={-(-options.jobs // lanes)}"]
    line += [f"--{option}={value}" for option, value in given.items() if value is not None]
    return [*line, "--long"] if options.long else line


def summary(results: list[Result]) -> int:
    """Print a line for each suite; return the exit status."""
    print()
    for result in results:
        print(f"{result.name:<9} {result.seconds:6.0f} s  {result.verdict:<7}  {result.text}")
    missing = [result.name for result in results if result.verdict == "NOT RUN"]
    if missing:
        print(f"!! NOT RUN, and so not proven here: {', '.join(missing)}")
    failed = [result.name for result in results if result.failed]
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
