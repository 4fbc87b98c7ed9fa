"""Power cuts: a filesystem on a loop device is shut down in mid-run, without writing its log, and mounted again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import attrs

from breakages import BREAKAGES
from judge import Found, boot, judge
from performer import Performer, Piped
from script import steps
from suite import CannotRun, Outcome, Plan, Suite
from verdicts import Account
from workers import Died, Workers, one
from workload import on_a_small_scale

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
        self._image = work / "image"
        self._fresh = work / "fresh"
        self.root = work / "root"
        self.root.mkdir()
        with open(self._fresh, "wb") as file:
            file.truncate(kind.size)
        _run(*kind.make, str(self._fresh))

    def renew(self) -> None:
        """Begin with an empty filesystem."""
        _run("cp", "--sparse=always", str(self._fresh), str(self._image))

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount it; in the end it is mounted no more, whatever uses it."""
        _run("mount", "-o", "loop", str(self._image), str(self.root))
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

    def keep(self, place: Path) -> None:
        """Copy it, as it is, to *place*."""
        _run("cp", "--sparse=always", str(self._image), str(place))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
        check_possible()
        kinds, missing = _usable(plan.work)
        each = -(-plan.count // len(FILESYSTEMS))
        failures: list[str] = []
        tried: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        workers: Workers[_Cuts, Outcome] = Workers(
            lambda cuts: self._cuts(plan, cuts),
            lambda died: Outcome(0, [f"the suite's own process: {died}"]),
            plan.jobs,
            batch=1,
        )
        try:
            jobs = [
                _Cuts(kind, plan.seed + n, min(_AT_A_TIME, each - n))
                for n in range(0, each, _AT_A_TIME)
                for kind in kinds
            ]
            for job in jobs:
                for cuts, outcome in (*workers.add(job), *(workers.rest() if job is jobs[-1] else ())):
                    tried[cuts.kind.name] += outcome.tried
                    failures += outcome.failures
                    notes.update({key: int(number) for key, number in outcome.notes.items()})
        finally:
            unmount_all(plan.work)
        if missing and not failures:
            raise CannotRun(f"{missing}; {tried.total()} power cuts on the other filesystem passed")
        return Outcome(tried.total(), failures, {**tried, **notes})

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
                told = _cut_in_mid_run(disk, seed, programs, cuts.broken, chance.uniform(0, LONGEST_RUN))
            account = Account(seed, programs, STEPS)
            for words in told:
                account.take_down(words)
            moment = account.moment()
            disk.keep(work / "cut")
            with disk.mounted():
                found = _found(disk.root)
            tried += 1
            amidst += moment.done != moment.tried
            wrong = account.wrong(found, moment)
            if wrong:
                failures.append(self._keep(plan, work / "cut", cuts.kind, wrong, {**account.told(), "told": told}))
                if cuts.broken and len(failures) >= ENOUGH:
                    break
        shutil.rmtree(work)
        return Outcome(tried, failures, {"in the middle of a step": amidst})

    def _keep(self, plan: Plan, image: Path, kind: Filesystem, wrong: str, told: dict[str, Any]) -> str:
        case = self.new_case(plan)
        _run("cp", "--sparse=always", str(image), str(case / "image"))
        (case / "case.json").write_text(json.dumps({"wrong": wrong, "filesystem": kind.name, **told}))
        return self.failure(f"{kind.name}: {wrong}", case)

    def control(self, plan: Plan) -> Outcome:
        """Use sync=False."""
        check_possible()
        try:
            return self._cuts(plan, _Cuts(FILESYSTEMS[0], plan.seed, plan.count, "sync=False"))
        finally:
            unmount_all(plan.work)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        check_possible()
        try:
            told = json.loads((case / "case.json").read_text())
        except FileNotFoundError as error:
            raise CannotRun(f"{error.filename} is missing: {case} holds no failure of this suite") from error
        account = Account.from_told(told)
        for words in told["told"]:
            account.take_down(words)
        kind = next(kind for kind in FILESYSTEMS if kind.name == told["filesystem"])
        disk = Disk(plan.work, kind)
        _run("cp", "--sparse=always", str(case / "image"), str(plan.work / "image"))
        with disk.mounted():
            wrong = account.wrong(_found(disk.root), account.moment())
        return Outcome(1, [self.failure(wrong, case)] if wrong else [])


def check_possible() -> None:
    """Raise CannotRun if this machine can't mount filesystems."""
    if os.geteuid() != 0:
        raise CannotRun("only root can mount filesystems")
    if not Path("/dev/loop-control").exists():
        raise CannotRun("there are no loop devices (/dev/loop-control)")
    if shutil.which(FILESYSTEMS[0].make[0]) is None:
        raise CannotRun(f"{FILESYSTEMS[0].make[0]} is missing: install e2fsprogs")


def _usable(work: Path) -> tuple[list[Filesystem], str]:
    """Return the kinds of filesystem that can be made and mounted here, and why others can't."""
    kinds, missing = [], []
    for kind in FILESYSTEMS:
        probe = work / f"probe-{kind.name}"
        probe.mkdir()
        try:
            disk = Disk(probe, kind)
            disk.renew()
            with disk.mounted():
                pass
        except CannotRun as reason:
            missing.append(f"{kind.name}: {reason}")
        else:
            kinds.append(kind)
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
    """Run programs, cut the power, kill them; return what they told."""
    reader, writer = os.pipe()
    pids = []
    for program in range(programs):
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _run_program(str(disk.root / "session"), seed, program, programs, broken, writer)
        pids.append(pid)
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = [pipe.readline()]  # the first step of somebody
        time.sleep(seconds)  # the instant is random on purpose
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # nobody tells of a step that was done after the cut
        disk.cut()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        lines += pipe.readlines()
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _run_program(path: str, seed: int, program: int, programs: int, broken: str, tell: int) -> NoReturn:
    """Do a program's steps in this process, a child, until it is killed."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says of the disk that fails is known
        on_a_small_scale()
        if broken:
            BREAKAGES[broken]()
        performer = Performer(path, program, Piped(tell))
        for number, step in enumerate(steps(seed, program, programs, STEPS)):
            performer.perform(number, step)
    finally:
        os._exit(0)


def _found(root: Path) -> Found:
    def look() -> Found:
        boot(again=True)
        return judge(root / "session")

    try:
        return one(look)
    except Died as died:
        return Found(problem=str(died))
