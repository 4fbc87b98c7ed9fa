"""The suite `decoder`: bytes that no encoder wrote, given to all that reads records, schemas and dumps.

Half of the inputs are mutated by atheris, which looks for inputs that reach other code; the others
are made by hostile_values.py, which knows where the limits of each type are. What reads them
may raise documented errors only, within SECONDS and BYTES.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import ClassVar, Final

import attrs

import decoder_targets
from processes import Died, fail, finish, in_parallel
from suite import CannotRun, Outcome, Plan, Suite, each_fails

SECONDS: Final = 10
"""That one input may take; the slowest takes some milliseconds, but the machine may be busy."""

BYTES: Final = 256 << 20
"""Of address space beyond what the process has when it begins; no input has more than some 20 KB."""

PART: Final = 5000
"""Inputs of one process; a new one begins where the last one ended."""


class Decoder(Suite):
    """Each process tries some inputs, and writes each down before, so that the one that ends it is known."""

    name: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "records, schemas and dumps that no encoder wrote"
    unit: ClassVar[str] = "inputs"
    short: ClassVar[int] = 300_000
    long: ClassVar[int] = 50_000_000

    def run(self, plan: Plan) -> Outcome:
        generated = plan.count // 2
        outcome = self._generated(plan, generated, decoder_targets.TARGETS)
        if outcome.failures:  # not to be lost where the other half can't run
            return outcome
        return outcome + self._mutated(plan, plan.count - generated)

    def control(self, plan: Plan) -> Outcome:
        """Without the limit of nesting, the C stack ends; and with a target that trusts its input."""
        from gc3session.records import values

        limit = values.MAX_DEPTH
        values.MAX_DEPTH = 1 << 30
        try:
            deep = self._generated(plan, 20 * plan.count, decoder_targets.TARGETS)
        finally:
            values.MAX_DEPTH = limit
        trusting = self._generated(plan, min(plan.count, 20), {"trusting": decoder_targets.trusting})
        stack = [failure for failure in deep.failures if "SIGSEGV" in failure]
        return each_fails({"no limit of nesting": attrs.evolve(deep, failures=stack), "trust": trusting})

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        targets = {**decoder_targets.TARGETS, "trusting": decoder_targets.trusting}
        data = (case / "input").read_bytes()

        def again(at: int) -> None:
            Trial(plan.work, at, targets).read(at, facts["target"], data)

        ((_, died),) = in_parallel(again, [0], 1, within=SECONDS)
        return Outcome(1, [self.failure(f"{facts['target']}: {_wrong(died)}", case)] if died else [])

    def _generated(self, plan: Plan, count: int, targets: dict[str, decoder_targets.Target]) -> Outcome:
        """Try inputs that are made by hostile_values.py."""

        def read(numbers: range) -> Counter[str]:
            trial = Trial(plan.work, numbers.stop, targets)
            for number in numbers:
                rng = Random(plan.seed << 32 | number)
                name = decoder_targets.choose(rng.getrandbits(16), targets)
                trial.read(number, name, decoder_targets.generated(name, rng))
            return trial.counts

        total = Outcome(0)
        parts = [range(at, min(at + PART, count)) for at in range(0, count, PART)]
        while parts:
            rest = []
            for numbers, counts in in_parallel(read, parts, plan.jobs, within=SECONDS):
                if isinstance(counts, Died):
                    failure, number = self._kept(plan, numbers.stop, counts)
                    total += Outcome(0, [failure])
                    rest.append(range(number + 1, numbers.stop))  # go on behind it
                else:
                    total += Outcome(0, [], dict(sorted(counts.items())))
            parts = [*filter(None, rest)]
        return attrs.evolve(total, tried=count)

    def _mutated(self, plan: Plan, count: int) -> Outcome:
        """Try inputs that are mutated by atheris."""
        if not count:
            return Outcome(0)
        try:
            importlib.import_module("atheris")
        except ImportError:
            raise CannotRun("the Python module atheris is missing (it is in the extra `test`)") from None
        jobs = max(1, min(plan.jobs, count // 1000))
        total = Outcome(count)
        for job, counts in in_parallel(
            lambda job: _fuzz(plan, job, count // jobs + (job < count % jobs)), range(jobs), jobs, within=3600
        ):
            if isinstance(counts, Died):
                total += Outcome(0, [self._kept(plan, job, counts)[0]])
            else:
                total += Outcome(0, [], dict(sorted(counts.items())))
        return total

    def _kept(self, plan: Plan, part: int, died: Died) -> tuple[str, int]:
        """Keep the input that has ended a part; return the line that tells of it, and its number."""
        head, _, data = (plan.work / f"input-{part}").read_bytes().partition(b"\n")
        number, target, size = json.loads(head)
        facts = {"target": target, "seed": plan.seed, "what": str(died)}
        case = self.keep(plan, facts, {"input": data[:size]})
        return self.failure(f"{target}: {_wrong(died)}", case), number


def _wrong(died: Died) -> str:
    first, *_, last = [*str(died).splitlines(), ""]
    return f"{first}; {last[:300]}".rstrip("; ")


class Trial:
    """What one process tries: it writes each input down before.

    Args:
        work: where to.
        part: the number of this part of the work, which no other has.
        targets: what reads.

    Attributes:
        counts: how reading has ended, and how often.
    """

    def __init__(self, work: Path, part: int, targets: dict[str, decoder_targets.Target]) -> None:
        self._targets = targets
        self._fd = os.open(work / f"input-{part}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.counts: Counter[str] = Counter()
        tempfile.tempdir = os.fspath(work)  # a child that dies deletes nothing itself
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))

    def read(self, number: int, target: str, data: bytes) -> None:
        """Have a target read bytes."""
        os.pwrite(self._fd, json.dumps([number, target, len(data)]).encode() + b"\n" + data, 0)
        signal.alarm(SECONDS)
        self.counts[f"{target}: {self._targets[target](data)}"] += 1
        signal.alarm(0)


def _fuzz(plan: Plan, job: int, runs: int) -> None:
    """Have atheris mutate inputs, which ends this process."""
    atheris = importlib.import_module("atheris")
    corpus = plan.work / f"corpus-{job}"
    corpus.mkdir()
    targets = decoder_targets.TARGETS
    trial = Trial(plan.work, job, targets)
    rng = Random(plan.seed + job)
    for number in range(300):
        choice = rng.randrange(256)
        data = decoder_targets.generated(decoder_targets.choose(choice, targets), rng)
        (corpus / str(number)).write_bytes(bytes([choice]) + data)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where it tells of its progress

    def one(data: bytes) -> None:
        # libFuzzer never returns, and ends the process in its own way: so it is ended here.
        try:
            if data:
                number = trial.counts.total()
                if number == runs:
                    finish(trial.counts)
                trial.read(number, decoder_targets.choose(data[0], targets), data[1:])
        except BaseException:  # noqa: BLE001  the parent learns of it
            fail()

    decoder_targets.instrument(atheris)
    options = f"-runs={100 * runs + 10_000} -seed={plan.seed + job} -max_len=2000 -rss_limit_mb=0 -handle_segv=0"
    options += " -handle_alrm=0 -handle_abrt=0 -handle_bus=0 -detect_leaks=0 -print_final_stats=0"
    atheris.Setup([sys.argv[0], *options.split(), str(corpus)], one)
    atheris.Fuzz()
