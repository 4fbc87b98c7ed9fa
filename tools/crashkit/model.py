"""The model: random walks of calls (walk.py), each compared with a plain model after every step."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
import traceback
from pathlib import Path
from typing import Final

import attrs
import hypothesis
import hypothesis.configuration
from hypothesis.stateful import run_state_machine_as_test

from breakages import BROKEN
from processes import Died, Process
from suite import Outcome, Plan, Suite
from walk import Walk

STEPS: Final = 30
RUNS_TOGETHER: Final = 25
ENOUGH: Final = 5  # failures
LOST_UPDATES: Final = "saved without a look at what others have saved"


class Model(Suite):
    """See the module."""

    name = "model"
    summary = f"random walks of {STEPS} steps over four sessions and two processes against a plain model"
    unit = "runs"
    short = 1_000
    long = 100_000

    def run(self, plan: Plan) -> Outcome:
        return self._walks(plan, "")

    def control(self, plan: Plan) -> Outcome:
        return self._walks(plan, LOST_UPDATES)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        told = json.loads((case / "case.json").read_text())
        walks = _Walks("again", told["seed"], told["runs"], told["broken"], plan.work, shortest=True)
        process = Process(plan.work, walks.name, walks.run)
        process.wait()  # which takes minutes
        failure = _failure(process)
        return Outcome(walks.runs, [failure] if failure else [])

    def _walks(self, plan: Plan, broken: str) -> Outcome:
        """Make plan.count walks, some together in a process, as many processes at a time as the plan allows."""
        waiting = [
            _Walks(f"{plan.seed}.{n}", plan.seed * 1000 + n, min(RUNS_TOGETHER, plan.count - n), broken, plan.work)
            for n in range(0, plan.count, RUNS_TOGETHER)
        ]
        working: list[tuple[Process, _Walks]] = []
        failures: list[str] = []
        tried = 0
        try:
            while (waiting or working) and len(failures) < ENOUGH:
                while waiting and len(working) < plan.jobs:
                    walks = waiting.pop(0)
                    working.append((Process(plan.work, walks.name, walks.run), walks))
                ended = [each for each in working if each[0].ended()]
                for process, walks in ended:
                    working.remove((process, walks))
                    tried += walks.runs
                    failure = _failure(process)
                    if failure:
                        failures.append(self._kept(plan, failure, walks))
                if not ended:
                    time.sleep(0.005)
        finally:
            for process, _ in working:
                process.kill()
        return Outcome(tried, failures)

    def _kept(self, plan: Plan, failure: str, walks: _Walks) -> str:
        case = self.new_case(plan)
        if walks.image.exists():
            shutil.copytree(walks.image, case / "sessions")
        (case / "log").write_text(failure)
        told = {"seed": walks.seed, "runs": walks.runs, "broken": walks.broken}
        (case / "case.json").write_text(json.dumps(told))
        last = [line for line in failure.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
        return self.failure(f"{last[-1][:300] if last else failure}; the steps are in {case / 'log'}", case)


def _failure(process: Process) -> str:
    try:
        return str(process.result())
    except Died as died:
        return str(died)


@attrs.frozen
class _Walks:
    """Some walks, all from one seed, in one process.

    Attributes:
        name: of their process and directories.
        seed: of all of them.
        runs: how many.
        broken: what is broken on purpose, or ''.
        work: where their directories are made.
        shortest: whether to look for the shortest walk that fails, too.
    """

    name: str
    seed: int
    runs: int
    broken: str
    work: Path
    shortest: bool = False

    @property
    def image(self) -> Path:
        """Where the sessions are kept if a walk fails."""
        return self.work / f"image {self.name}"

    def run(self) -> str:
        """Make the walks; return how one failed, with its steps, or ''."""
        if self.broken:
            BROKEN[self.broken]()
        hypothesis.configuration.set_hypothesis_home_dir(self.work / "hypothesis")
        Walk.below = self.work / self.name
        Walk.below.mkdir()
        Walk.image = self.image
        phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if self.shortest else [])]
        settings = hypothesis.settings(
            max_examples=self.runs,
            stateful_step_count=STEPS,
            phases=phases,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        steps = io.StringIO()
        try:
            with contextlib.redirect_stdout(steps):
                run_state_machine_as_test(hypothesis.seed(self.seed)(Walk), settings=settings)
        except Exception:  # noqa: BLE001  whatever it is, the walk has failed
            return steps.getvalue() + traceback.format_exc()
        return ""
