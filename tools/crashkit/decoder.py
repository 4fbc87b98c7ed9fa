"""The suite `decoder`: bytes that no encoder wrote, given to all that reads records, schemas and dumps.

Half of the inputs are mutated by atheris, which looks for inputs that reach other code; the others
are made by hostile_values.py, which knows where the limits of each type are.  What reads them
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
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ClassVar, Final, NoReturn

import attrs

import decoder_targets
from suite import CannotRun, Outcome, Plan, Suite

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
        outcome = self._tried(plan, range(generated), decoder_targets.TARGETS)
        if outcome.failures:  # not to be lost where the other half can't run
            return outcome
        return _joined(outcome, self._mutated(plan, plan.count - generated))

    def control(self, plan: Plan) -> Outcome:
        """Without the limit of nesting, the C stack ends; and with a target that trusts its input."""
        from gc3session.records import values

        limit = values.MAX_DEPTH
        values.MAX_DEPTH = 1 << 30
        try:
            deep = self._tried(plan, range(20 * plan.count), decoder_targets.TARGETS)
        finally:
            values.MAX_DEPTH = limit
        trusting = self._tried(plan, range(min(plan.count, 20)), {"trusting": decoder_targets.trusting})
        stack = [failure for failure in deep.failures if "SIGSEGV" in failure]
        outcome = _joined(attrs.evolve(deep, failures=stack), trusting)
        return outcome if stack and trusting.failures else attrs.evolve(outcome, failures=[])

    def replay(self, plan: Plan, case: Path) -> Outcome:
        told = json.loads((case / "case.json").read_text())
        targets = {**decoder_targets.TARGETS, "trusting": decoder_targets.trusting}
        data = (case / "input").read_bytes()
        tried = _run_part(plan.work, lambda tell: _try(targets, told["target"], data, tell))
        failures = [self.failure(f"{told['target']}: {tried.wrong}", case)] if tried.wrong else []
        return Outcome(1, failures)

    # -- made by hostile_values.py

    def _tried(self, plan: Plan, numbers: range, targets: dict[str, decoder_targets.Target]) -> Outcome:
        counts: Counter[str] = Counter()
        failures: list[str] = []
        done = numbers.start
        pending: list[_Part] = []
        while done < numbers.stop or pending:
            while done < numbers.stop and len(pending) < plan.jobs:
                end = min(done + PART, numbers.stop)
                pending.append(_start(plan.work, self._generating(plan.seed, range(done, end), targets), end))
                done = end
            part = pending.pop(0)
            part.finish()
            counts.update(part.counts)
            if part.wrong:
                failures.append(self._kept(plan, part))
                if part.number + 1 < part.end:  # go on behind it
                    rest = range(part.number + 1, part.end)
                    pending.append(_start(plan.work, self._generating(plan.seed, rest, targets), part.end))
        return Outcome(len(numbers), failures, {f"{name}": counts[name] for name in sorted(counts)})

    @staticmethod
    def _generating(
        seed: int, numbers: range, targets: dict[str, decoder_targets.Target]
    ) -> Callable[[_Tell], None]:
        def work(tell: _Tell) -> None:
            for number in numbers:
                rng = Random(seed << 32 | number)
                name = decoder_targets.choose(rng.getrandbits(16), targets)
                tell.number = number
                _try(targets, name, decoder_targets.generated(name, rng), tell)

        return work

    # -- mutated by atheris

    def _mutated(self, plan: Plan, count: int) -> Outcome:
        if not count:
            return Outcome(0)
        try:
            importlib.import_module("atheris")
        except ImportError:
            raise CannotRun("the Python module atheris is missing (it is in the extra `test`)") from None
        jobs = max(1, min(plan.jobs, count // 1000))
        parts = []
        for job in range(jobs):
            runs = count // jobs + (job < count % jobs)
            parts.append(_start(plan.work, _fuzzing(plan.seed + job, runs, plan.work / f"corpus-{job}"), runs))
        failures, counts = [], Counter[str]()
        for part in parts:
            part.finish()
            counts.update(part.counts)
            if part.wrong:
                failures.append(self._kept(plan, part))
        return Outcome(count, failures, {f"{name}": counts[name] for name in sorted(counts)})

    def _kept(self, plan: Plan, part: _Part) -> str:
        case = self.new_case(plan)
        (case / "input").write_bytes(part.input)
        (case / "case.json").write_text(json.dumps({"target": part.target, "seed": plan.seed, "what": part.wrong}))
        return self.failure(f"{part.target}: {part.wrong}", case)


def _joined(first: Outcome, second: Outcome) -> Outcome:
    notes: Counter[str] = Counter()
    for outcome in (first, second):
        notes.update({key: value for key, value in outcome.notes.items() if isinstance(value, int)})
    return Outcome(first.tried + second.tried, first.failures + second.failures, dict(notes))


# -- a process


class _Tell:
    """How a child tells what it is about to try: a small file that is written anew each time."""

    def __init__(self, path: Path, writer: int) -> None:
        self._writer = writer
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.number = 0
        self.counts: Counter[str] = Counter()

    def about_to(self, target: str, data: bytes) -> None:
        head = json.dumps([self.number, target, len(data)]).encode().ljust(80)
        os.pwrite(self._fd, head + data, 0)

    def end(self, told: str, status: int) -> NoReturn:
        """End this process, and tell the parent what came of it."""
        os.write(self._writer, told[-60_000:].encode("utf-8", "replace"))
        os._exit(status)


@attrs.define
class _Part:
    """What one child tries, and what became of it."""

    pid: int
    path: Path
    end: int
    reader: int
    wrong: str = ""
    number: int = 0
    target: str = ""
    input: bytes = b""
    counts: Counter[str] = attrs.field(factory=Counter)

    def finish(self) -> None:
        """Wait for the child."""
        with open(self.reader, "rb") as pipe:
            told = pipe.read().decode()
        status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            self.wrong = f"ended by {signal.Signals(number).name}"
            if number == signal.SIGALRM:
                self.wrong += f": it takes more than {SECONDS} s"
        elif status or not told.startswith("{"):
            self.wrong = told.strip().splitlines()[-1][:300] if told.strip() else f"exit status {status >> 8}"
        else:
            self.counts.update(json.loads(told))
        if self.wrong:
            data = self.path.read_bytes()
            if len(data) >= 80:
                self.number, self.target, size = json.loads(data[:80])
                self.input = data[80 : 80 + size]
        self.path.unlink()


_started = 0


def _start(work: Path, do: Callable[[_Tell], None], end: int) -> _Part:
    """Fork a child that does something."""
    global _started
    _started += 1
    path = work / f"input-{_started}"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        tempfile.tempdir = os.fspath(work)  # a child that dies deletes nothing itself
        _child(path, writer, do)
    os.close(writer)
    return _Part(pid, path, end, reader)


def _run_part(work: Path, do: Callable[[_Tell], None]) -> _Part:
    part = _start(work, do, 1)
    part.finish()
    return part


def _child(path: Path, writer: int, do: Callable[[_Tell], None]) -> NoReturn:
    """Do something, tell the parent of it, and end the process."""
    tell = _Tell(path, writer)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        do(tell)
    except BaseException:  # noqa: BLE001  told to the parent, which judges
        tell.end(traceback.format_exc(), 1)
    tell.end(json.dumps(tell.counts), 0)


def _try(targets: dict[str, decoder_targets.Target], name: str, data: bytes, tell: _Tell) -> None:
    tell.about_to(name, data)
    signal.alarm(SECONDS)
    ended = targets[name](data)
    tell.counts[f"{name}: {ended}"] += 1
    signal.alarm(0)


def _fuzzing(seed: int, runs: int, corpus: Path) -> Callable[[_Tell], None]:
    """Return what has atheris mutate inputs; it ends the process."""

    def work(tell: _Tell) -> None:
        atheris = importlib.import_module("atheris")

        corpus.mkdir()
        rng = Random(seed)
        targets = decoder_targets.TARGETS
        for number in range(300):
            choice = rng.randrange(256)
            name = decoder_targets.choose(choice, targets)
            data = bytes([choice]) + decoder_targets.generated(name, rng)
            (corpus / str(number)).write_bytes(data)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where it tells of its progress

        def one(data: bytes) -> None:
            # libFuzzer never returns, and ends the process in its own way: so it is ended here.
            try:
                if data:
                    tell.number += 1
                    _try(targets, decoder_targets.choose(data[0], targets), data[1:], tell)
            except BaseException:  # noqa: BLE001  told to the parent, which judges
                tell.end(traceback.format_exc(), 1)
            if tell.number == runs:
                tell.end(json.dumps(tell.counts), 0)

        decoder_targets.instrument(atheris)
        options = [
            f"-runs={100 * runs + 10_000}",
            f"-seed={seed}",
            "-max_len=2000",
            "-rss_limit_mb=0",
            "-handle_segv=0",
        ]
        options += ["-handle_alrm=0", "-handle_abrt=0", "-handle_bus=0", "-detect_leaks=0", "-print_final_stats=0"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()

    return work
