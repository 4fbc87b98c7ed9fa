"""Faults: the n-th I/O call fails, for every n of a script of all operations."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from errno import EIO, ENOSPC
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import attrs

from recorder import Recorder
from suite import KIT, Outcome, Plan, Suite, in_memory

STEPS = 26
"""Steps of a script: each kind of step at least once."""

ENOUGH = 5
"""Failures after which the control is known to be broken."""

FAULTS = (
    ("kill", False),
    (str(ENOSPC), False),
    (str(ENOSPC), True),
    (str(EIO), False),
    (str(EIO), True),
    (f"done-{EIO}", False),
    (f"done-{EIO}", True),
    ("short", False),
    ("short", True),
)
"""What goes wrong, and whether it does so for good."""

EVERY = 1000
"""More faults than a script has calls."""

_AT_ONCE = 20  # faults that are under way before what came of them is looked at

NAMES = {
    "kill": "kill",
    str(ENOSPC): "ENOSPC",
    str(EIO): "EIO",
    f"done-{EIO}": "EIO after doing it",
    "short": "short",
}

Job = dict[str, Any]


class Driver:
    """A process that runs jobs; see faulty.py."""

    def __init__(self, work: Path, scratch: Path, recorder: Recorder, broken: str) -> None:
        scratch.mkdir()
        more = [broken] if broken else []
        self._process = subprocess.Popen(
            [sys.executable, str(KIT / "faulty.py"), str(scratch), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=recorder.environment(log=False),
            cwd=work,
            text=True,
        )

    def run(self, job: Job) -> dict[str, Any]:
        """Return the answer to a job."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended with status {self._process.wait()} at {job}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Faults(Suite):
    """Makes each I/O call of a script fail, in each of several ways."""

    name = "faults"
    summary = "the n-th I/O call fails or is the last one, for every n of a script of all operations"
    unit = "faults"
    short = 1_500
    long = 60_000

    def run(self, plan: Plan) -> Outcome:
        return self._run(plan, "", 1 << 30)

    def _run(self, plan: Plan, broken: str, enough: int) -> Outcome:
        failures: list[str] = []
        notes: Counter[str] = Counter()
        raised: Counter[str] = Counter()
        tried = scripts = calls = 0
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(in_memory(plan.work)))
            recorder = Recorder(plan.work, scratch)
            free: SimpleQueue[Driver] = SimpleQueue()
            for number in range(plan.jobs):
                driver = Driver(plan.work, scratch / str(number), recorder, broken)
                stack.callback(driver.close)
                free.put(driver)

            def run(job: Job) -> tuple[Job, dict[str, Any]]:
                driver = free.get()
                try:
                    return job, driver.run(job)
                finally:
                    free.put(driver)

            pool = stack.enter_context(ThreadPoolExecutor(plan.jobs))
            while tried < plan.count and len(failures) < enough:
                seed = plan.seed + scripts
                scripts += 1
                whole: Job = {"seed": seed, "steps": STEPS, "fault": [0, "", False]}
                answer = run(whole)[1]
                if answer["wrong"] or not answer["kinds"]:
                    raise RuntimeError(f"seed {seed}: without any fault: {answer}")
                calls += len(answer["kinds"])
                jobs = [
                    {**whole, "fault": list(fault)} for fault in chosen(answer["kinds"], seed, plan.count - tried)
                ]
                some = (jobs[at : at + _AT_ONCE] for at in range(0, len(jobs), _AT_ONCE))
                for job, answer in chain.from_iterable(pool.map(run, part) for part in some):
                    if len(failures) >= enough:
                        break
                    tried += 1
                    _, what, always = job["fault"]
                    notes[f"{NAMES[what]}{' for good' if always else ''}"] += 1
                    raised.update(set(answer["raised"]))
                    if answer["wrong"]:
                        failures.append(self._keep(plan, job, answer["wrong"], run))
        all_notes: dict[str, int | str] = {"scripts": scripts, "calls in them": calls, **notes}
        all_notes["raised"] = ", ".join(f"{name} {count:,}" for name, count in raised.most_common())
        return Outcome(tried, failures, all_notes)

    def _keep(self, plan: Plan, job: Job, wrong: str, run: Any) -> str:
        at, what, always = job["fault"]
        case = self.keep(plan, {**job, "wrong": wrong})
        run({**job, "keep": str(case)})
        return self.failure(f"{NAMES[what]}{' for good' if always else ''} at call {at}: {wrong}", case)

    def control(self, plan: Plan) -> Outcome:
        """Write the mirror before the index: failures, however many cases that takes."""
        return self._run(attrs.evolve(plan, count=EVERY), "mirror first", ENOUGH)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        job = self.facts(case)
        with in_memory(plan.work) as scratch:
            recorder = Recorder(plan.work, Path(scratch))
            driver = Driver(plan.work, Path(scratch, "0"), recorder, "")
            answer = driver.run({**job, "keep": ""})
            driver.close()
        return Outcome(1, [self.failure(answer["wrong"], case)] if answer["wrong"] else [])


def chosen(kinds: str, seed: int, count: int) -> Iterator[tuple[int, str, bool]]:
    """Give faults at every call, *count* or a few more: at each call as many kinds of them as that takes.

    With fewer faults than calls they are at some of the calls.
    """
    chance = random.Random(f"{seed}/faults")
    each = max(1, -(-count // len(kinds)))
    calls = list(enumerate(kinds, 1))
    for at, kind in chance.sample(calls, min(count, len(calls))):
        fitting = [fault for fault in FAULTS if fault[0] != "short" or kind == "w"]
        for what, always in chance.sample(fitting, min(each, len(fitting))):
            yield at, what, always
