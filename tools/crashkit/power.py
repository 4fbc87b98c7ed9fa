"""Power cuts: a filesystem on a loop device is shut down in mid-run, without writing its log, and mounted again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from breakages import break_by
from generator import script
from judge import Found, boot_again, judge
from performer import SMALL_MAP, Performer, on_a_small_scale
from processes import Died, Lines, Process, in_parallel, in_process, none_left
from suite import CannotRun, Outcome, Plan, Suite
from verdicts import Account

SHUTDOWN = 0x8004587D
"""The ioctl FS_IOC_SHUTDOWN."""

WITHOUT_LOG = (2).to_bytes(4, sys.byteorder)
"""Its flag NOLOGFLUSH: what is not on disk yet, the log of the filesystem too, is lost."""

LONGEST_RUN = 0.4
"""Seconds that a workload may run before the cut; it is a random time up to that, from its first step on."""

STEPS = 400
"""More steps than a program comes to in that time."""


ENOUGH = 3
"""Failures after which a control ends."""

_AT_A_TIME = 10


@attrs.frozen
class Filesystem:
    """A kind of filesystem."""

    name: str
    size: int
    make: tuple[str, ...]


FILESYSTEMS = (
    Filesystem("ext4", 48 << 20, ("mkfs.ext4", "-q", "-F")),
    Filesystem("xfs", 304 << 20, ("mkfs.xfs", "-q", "-f")),  # it makes none that are smaller
)
"""Each is tried as often as a plan says."""


@attrs.frozen
class _Cuts:
    """Some power cuts, each with a seed of its own."""

    kind: Filesystem
    seed: int
    count: int
    broken: str = ""


class Disk:
    """A filesystem in a file."""

    def __init__(self, work: Path, kind: Filesystem) -> None:
        self.image = work / "image"
        self._fresh = work / "fresh"
        self.root = work / "root"
        self.root.mkdir()
        with open(self._fresh, "wb") as file:
            file.truncate(kind.size)
        _run(*kind.make, str(self._fresh))

    def renew(self) -> None:
        """Begin with an empty filesystem."""
        _run("cp", "--sparse=always", str(self._fresh), str(self.image))

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount it; in the end it is mounted no more, whatever uses it."""
        _run("mount", "-o", "loop", str(self.image), str(self.root))
        try:
            yield
        finally:
            _run("umount", str(self.root))

    def cut(self) -> None:
        """Cut its power."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, WITHOUT_LOG)
        finally:
            os.close(fd)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotRun(f"{command[0]} is missing") from error
    if done.returncode:
        raise CannotRun(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


class PowerCuts(Suite):
    """Cuts the power of ext4 and of xfs while programs write."""

    name = "power"
    summary = "the power of an ext4 and an xfs is cut in mid-run"
    unit = "power cuts"
    short = 300
    long = 40_000

    def run(self, plan: Plan) -> Outcome:
        """Cut the power *plan.count* times, half of them on each filesystem."""
        kinds, missing = usable(plan.work)
        each = -(-plan.count // len(FILESYSTEMS))
        jobs = [
            _Cuts(kind, plan.seed + n, min(_AT_A_TIME, each - n))
            for n in range(0, each, _AT_A_TIME)
            for kind in kinds
        ]
        total = Outcome(0)
        try:
            for _, outcome in in_parallel(lambda cuts: self._cuts(plan, cuts), jobs, plan.jobs):
                broken = isinstance(outcome, Died)
                total += Outcome(0, [f"the suite's own process: {outcome}"]) if broken else outcome
        finally:
            unmount_all(plan.work)
        if missing and not total.failures:
            raise CannotRun(f"{missing}; {total.tried} power cuts on the other filesystem passed")
        return total

    def _cuts(self, plan: Plan, cuts: _Cuts) -> Outcome:
        """Cut the power some times; this process is a child, or there are no others."""
        work = plan.work / f"{cuts.kind.name}-{os.getpid()}-{cuts.seed}"
        work.mkdir()
        disk = Disk(work, cuts.kind)
        failures: list[str] = []
        tried = amidst = 0
        for seed in range(cuts.seed, cuts.seed + cuts.count):
            chance = random.Random(f"{seed}/{cuts.kind.name}")
            programs = chance.choice((1, 1, 2, 3, 4))
            disk.renew()
            with disk.mounted():
                reports = _cut_in_mid_run(disk, seed, programs, cuts.broken, chance.uniform(0, LONGEST_RUN))
            account = Account(seed, programs, STEPS)
            for words in reports:
                account.take_down(words)
            moment = account.moment()
            _run("cp", "--sparse=always", str(disk.image), str(work / "cut"))
            with disk.mounted():
                found = _found(disk.root)
            tried += 1
            amidst += moment.done != moment.tried
            wrong = account.wrong(found, moment)
            if wrong:
                facts = {"wrong": wrong, "filesystem": cuts.kind.name, **account.to_json(), "reports": reports}
                case = self.keep(plan, facts)
                _run("cp", "--sparse=always", str(work / "cut"), str(case / "image"))
                failures.append(self.failure(f"{cuts.kind.name}: {wrong}", case))
                if cuts.broken and len(failures) >= ENOUGH:
                    break
        shutil.rmtree(work)
        return Outcome(tried, failures, {cuts.kind.name: tried, "in the middle of a step": amidst})

    def control(self, plan: Plan) -> Outcome:
        """Use sync=False."""
        kinds, _ = usable(plan.work)
        try:
            return self._cuts(plan, _Cuts(kinds[0], plan.seed, plan.count, "sync=False"))
        finally:
            unmount_all(plan.work)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        account = Account.from_json(facts)
        for words in facts["reports"]:
            account.take_down(words)
        kind = next(kind for kind in FILESYSTEMS if kind.name == facts["filesystem"])
        check_possible()
        disk = Disk(plan.work, kind)
        _run("cp", "--sparse=always", str(case / "image"), str(disk.image))
        with disk.mounted():
            wrong = account.wrong(_found(disk.root), account.moment())
        return Outcome(1, [self.failure(wrong, case)] if wrong else [])


def check_possible() -> None:
    """Raise CannotRun if this machine can't mount filesystems."""
    if os.geteuid() != 0:
        raise CannotRun("only root can mount filesystems")
    if not Path("/dev/loop-control").exists():
        raise CannotRun("there are no loop devices (/dev/loop-control)")


def usable(work: Path) -> tuple[list[Filesystem], str]:
    """Return the kinds of filesystem that can be made and mounted here, and why others can't.

    Raise CannotRun if none can.
    """
    check_possible()
    kinds, missing = [], []
    for kind in FILESYSTEMS:
        probe = work / f"probe-{kind.name}"
        probe.mkdir()
        try:
            disk = Disk(probe, kind)
            disk.renew()
            with disk.mounted():
                kinds.append(kind)
        except CannotRun as reason:
            missing.append(f"{kind.name}: {reason}")
        shutil.rmtree(probe)
    if not kinds:
        raise CannotRun("; ".join(missing))
    return kinds, "; ".join(missing)


def unmount_all(work: Path) -> None:
    """Take down what a process that has died has left mounted in *work*."""
    for root in work.glob("*/root"):
        if root.is_mount():
            subprocess.run(["umount", "--lazy", str(root)], check=True)


def _cut_in_mid_run(disk: Disk, seed: int, programs: int, broken: str, seconds: float) -> list[list[Any]]:
    """Run programs, cut the power, kill them; return what they reported."""
    reader, writer = os.pipe()
    path = disk.root / "session"
    processes = [Process(_run_program, path, seed, n, programs, broken, writer) for n in range(programs)]
    os.close(writer)
    with none_left(processes), open(reader, "rb") as pipe:
        first = pipe.readline()  # the first step of somebody
        time.sleep(seconds)  # the instant is random on purpose
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)  # nobody reports a step that was done after the cut
        disk.cut()
        for process in processes:
            process.kill()
        return Lines.read(first + pipe.read())


def _run_program(path: Path, seed: int, program: int, programs: int, broken: str, report: int) -> None:
    """Do a program's steps in this process, a child, until it is killed."""
    on_a_small_scale()
    break_by(broken)
    performer = Performer(path, str(program), Lines(report), map_size=SMALL_MAP)
    for number, (step, _) in enumerate(script(seed, program, programs, STEPS)):
        performer.perform(number, step)


def _look(root: Path) -> Found:
    boot_again()
    return judge(root / "session")


def _found(root: Path) -> Found:
    try:
        found: Found = in_process(_look, root)
    except Died as died:
        return Found(problem=str(died))
    return found
