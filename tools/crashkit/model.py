"""The model: random walks of steps (walk.py), each compared with a plain model after every step."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from breakages import break_by
from processes import Died, in_parallel, in_process
from suite import Outcome, Plan, Suite
from walk import LENGTH, Walk

IN_A_PROCESS: Final = 25
ENOUGH: Final = 5  # failures
LOST_UPDATES: Final = "saved without a look at what others have saved"


class Model(Suite):
    """See the module."""

    name = "model"
    summary = f"random walks of {LENGTH} steps over four sessions and two processes against a plain model"
    unit = "runs"
    short = 1_000
    long = 100_000

    def run(self, plan: Plan) -> Outcome:
        return self._walks(plan, "")

    def control(self, plan: Plan) -> Outcome:
        return self._walks(plan, LOST_UPDATES)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        """Walk again, and look for the fewest steps that fail."""
        facts = self.facts(case)
        numbers, failure = list(range(LENGTH)), ""
        for left_out in (None, *reversed(range(LENGTH))):
            fewer = [number for number in numbers if number != left_out]
            wrong = failure_of(Walk(plan.work / "again", facts["seed"]), facts["broken"], fewer)
            if wrong:
                numbers, failure = fewer, wrong
            elif left_out is None:
                break
        return Outcome(1, [failure] if failure else [])

    def _walks(self, plan: Plan, broken: str) -> Outcome:
        """Make plan.count walks, until some have failed."""
        walks = (Walk(plan.work / f"walk {n}", f"{plan.seed}.{n}") for n in range(plan.count))
        tried, failures = 0, list[str]()
        for walk, wrong in in_parallel(lambda walk: walked(walk, broken), walks, plan.jobs, IN_A_PROCESS):
            tried += 1
            if wrong:
                facts = {"seed": walk.seed, "broken": broken}
                case = self.keep(plan, facts, {"log": str(wrong), "sessions": walk.directory})
                last = str(wrong).rstrip().rpartition("\n")[2][:300]
                failures.append(self.failure(f"{last}; the steps are in {case / 'log'}", case))
                if len(failures) >= ENOUGH:
                    break
        return Outcome(tried, failures)


def walked(walk: Walk, broken: str, numbers: Iterable[int] = range(LENGTH)) -> str:
    """Make a walk; return how it failed, with its steps, or ''."""
    break_by(broken)
    try:
        walk.run(numbers)
    except Exception:  # noqa: BLE001  whatever it is, the walk has failed
        return "\n".join([*walk.log, traceback.format_exc()])
    return ""


def failure_of(walk: Walk, broken: str, numbers: Iterable[int]) -> str:
    """Make a walk in a process of its own; return how it failed, or ''."""
    try:
        return str(in_process(walked, walk, broken, numbers))
    except Died as died:
        return str(died)
    finally:
        shutil.rmtree(walk.directory, ignore_errors=True)
