"""Power-loss states: what the disk may hold at any moment of a session's life, and whether that opens."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from breakages import BREAKAGES
from disk import SECTOR, Disk, State
from gc3session.index.mirror import place_of
from judge import Found, boot_again, judge, take_for
from processes import Died, in_parallel, in_process
from recorder import Entry, Recorder
from suite import KIT, Outcome, Plan, Suite, each_fails, in_memory
from verdicts import Account, Moment

SEEDS = 3
"""Seeds that a plan's count is shared among, each with 1 to 4 programs."""

FEW = 1000
"""Fewer states than these are all of one seed."""

FURTHER = 8
"""In one of so many states a task is added and removed, too, and all is checked."""

PROGRAMS = (1, 2, 3, 4)
STEPS = 60
"""Steps of all programs of a workload together."""

LARGEST = 60_000
"""States of one workload; with more of them there are more workloads."""

PASSES = 12
NEW = 3
"""States of a moment, of which 4 are drawn, that no other moment has had; roughly."""

REPORTED = 5
"""How many times as often as others those moments are drawn at which something has just returned or is tried."""

CONTROL, ENOUGH = 2000, 5
"""States that each control tries at most, until so many are bad; few are, where sectors are torn."""

KEPT = 10
"""Failures of a workload whose states are kept."""

AT_ONCE, HUNG = 32, 60
"""States that a child opens, and seconds after which one of them hangs."""

TORN = 8
"""Bytes at which a control tears sectors."""

SESSION = Path("new", "directories", "session")
"""Where the session is made."""


@attrs.frozen
class Case:
    """A state to be judged, and when it might have been there.

    Attributes:
        state: what the disk holds.
        killed: whether the programs were killed, rather than the machine.
        digest: of the state.
    """

    state: State
    killed: bool
    digest: bytes


class Workload:
    """Programs that were run with the recorder, and all that followed from it.

    Args:
        plan: its *work* is used; *count* is how many states to try.
        programs: how many run at a time.
        broken: one of BREAKAGES, or ''.
    """

    def __init__(self, plan: Plan, programs: int, broken: str = "") -> None:
        self.plan = plan
        self.count = STEPS // programs
        self.account = Account(plan.seed, programs, self.count)
        root = plan.work / "root"
        root.mkdir()
        self.root_inode = root.stat().st_ino
        fd = os.open(root, os.O_RDONLY)
        self.where = place_of(fd)
        os.close(fd)
        self.recorder = Recorder(plan.work, root)
        self._run(root / SESSION, broken)

    def _run(self, path: Path, broken: str) -> None:
        chance = random.Random(f"{self.plan.seed}/kills")
        command = [sys.executable, str(KIT / "performer.py"), str(path), str(self.plan.seed)]
        more = ["--broken", broken] if broken else []
        programs = []
        for program in range(self.account.programs):
            # Some of several programs are killed in mid-call, and the others go on.
            fault = f"{chance.randrange(50, 400)}:kill" if program and chance.random() < 0.3 else ""
            numbers = [str(program), str(self.account.programs), str(self.count)]
            environment = self.recorder.environment(fault)
            programs.append((subprocess.Popen([*command, *numbers, *more], env=environment), bool(fault)))
        statuses = [(process.wait(), may_die) for process, may_die in programs]
        numbers = ["0", str(self.account.programs), str(self.count), "--destroy"]
        end = subprocess.run([*command, *numbers, *more], env=self.recorder.environment(), check=False)
        statuses.append((end.returncode, False))
        if any(status and not (may_die and status == -9) for status, may_die in statuses):
            raise RuntimeError(f"a program of the workload failed: {statuses}; seed {self.plan.seed}")

        self.moments = self.reports = 0
        for entry in self.recorder.entries():
            self.moments += 1
            if entry.kind == "A":
                self.reports += 1
                self.account.take_down(entry.report)

    def cases(
        self, chance: random.Random, share: float, each: int, unit: int = SECTOR
    ) -> Iterator[tuple[Case, Moment]]:
        """Give at most *each* states of a *share* of all moments, and the moment; the last one is always there."""
        disk = Disk(self.root_inode, unit)
        account = Account(self.account.seed, self.account.programs, self.count)
        for number, entry in enumerate(self.recorder.entries(), 1):
            if entry.kind == "A":
                account.take_down(entry.report)
            else:
                disk.follow(entry)
            weight = _weight(entry, unit)
            if number < self.moments and chance.random() > share * weight:
                continue
            moment = account.moment()
            everything = disk.everything()
            yield Case(everything, True, b"killed" + everything.digest()), moment
            for state in disk.states(chance, each):
                yield Case(state, False, state.digest()), moment


def _weight(entry: Entry, unit: int) -> int:
    """Return how often the moment after an entry is drawn, as a multiple."""
    if unit < SECTOR:  # where the meta page of the store, the only short write, may be torn
        return 1 if entry.kind == "W" and len(entry.data) < SECTOR else 0
    return REPORTED if entry.kind == "A" else 1


def find(root: Path, where: str, inodes: Mapping[str, int], further: bool = True) -> Found:
    """Judge the session in *root*, of programs that were killed, or of another boot if *where* is ''.

    This process is a child: see `take_for`.
    """
    boot_again()
    if where:
        take_for(root, where, inodes)
    return judge(root / SESSION, further=further)


class Trial:
    """Tries states of a workload, and keeps account of what came of them."""

    def __init__(self, suite: Suite, workload: Workload, place: Path) -> None:
        self._suite, self._workload, self._place = suite, workload, place
        self._found: dict[bytes, Found] = {}
        self._waiting: dict[bytes, set[Moment]] = {}
        self._alike: dict[str, Found] = {}
        self.failures: list[str] = []

    @property
    def moments(self) -> int:
        """How many moments the workload has."""
        return self._workload.moments

    @property
    def tried(self) -> int:
        """How many states that differ from each other."""
        return len(self._found)

    def run(self, count: int, unit: int, enough: int) -> None:
        """Try *count* states, or as many as are found in some passes over the log; until *enough* fail."""
        chance = random.Random(f"{self._workload.plan.seed}/states")
        each = 4
        weights = self._workload.moments + (REPORTED - 1) * self._workload.reports
        share = count / (NEW * weights)  # at first: moments from all over the log, to its end
        for number in range(PASSES):
            before = len(self._found)
            cases = self._new(
                self._workload.cases(chance, share, each, unit), count if number else 1 << 60, enough
            )
            for case, found in in_parallel(self._look, cases, self._workload.plan.jobs, AT_ONCE, HUNG):
                self._take(case, Found(problem=str(found)) if isinstance(found, Died) else found)
            missing, new = count - len(self._found), len(self._found) - before
            if missing <= 0 or len(self.failures) >= enough:
                break
            if share >= 1:
                each = min(4096, 2 * each * max(1, missing // max(1, new)))
            share *= max(2, missing / max(1, new))

    def _new(self, cases: Iterator[tuple[Case, Moment]], count: int, enough: int) -> Iterator[Case]:
        """Give those of some cases that haven't been tried, until there are *count*, or *enough* have failed."""
        for case, moment in cases:
            if len(self._found) + len(self._waiting) >= count or len(self.failures) >= enough:
                return
            if case.digest in self._found:
                self._note(case, self._found[case.digest], moment)
            elif case.digest in self._waiting:
                self._waiting[case.digest].add(moment)
            else:
                self._waiting[case.digest] = {moment}
                yield case

    def _look(self, case: Case) -> Found:
        with open(os.devnull, "wb") as nowhere:  # LMDB's last words: how it ended is known without them
            os.dup2(nowhere.fileno(), 2)
        place = Path(tempfile.mkdtemp(dir=self._place))
        try:
            case.state.build(place)
            where = self._workload.where if case.killed else ""
            return find(place, where, case.state.inodes, case.digest[-1] % FURTHER == 0)
        finally:
            shutil.rmtree(place)

    def _take(self, case: Case, found: Found) -> None:
        # Few sessions differ: each is kept once.
        found = self._alike.setdefault(repr(found), found)
        self._found[case.digest] = found
        for moment in self._waiting.pop(case.digest):
            self._note(case, found, moment)

    def _note(self, case: Case, found: Found, moment: Moment) -> None:
        account = self._workload.account
        wrong = account.wrong(found, moment)
        if not wrong:
            return
        if len(self.failures) >= KEPT:
            self.failures.append(f"{wrong} (not kept)")
            return
        facts = {"wrong": wrong, "where": self._workload.where if case.killed else "", "inodes": case.state.inodes}
        facts |= {"moment": attrs.asdict(moment), **account.to_json()}
        kept = self._suite.keep(self._workload.plan, facts, {"log": self._workload.recorder.log})
        (kept / "state").mkdir()
        case.state.build(kept / "state")
        self.failures.append(self._suite.failure(wrong, kept))


class PowerLossStates(Suite):
    """Opens what the disk may hold after a power cut, at each moment of a session's life."""

    name = "states"
    summary = "every state that the disk may hold after a power cut, opened and compared"
    unit = "states"
    short = 50_000
    long = 3_000_000

    def run(self, plan: Plan) -> Outcome:
        total = Outcome(0)
        rounds = max(SEEDS if plan.count >= FEW else 1, -(-plan.count // (LARGEST * len(PROGRAMS))))
        for number in range(rounds):
            for n, programs in enumerate(PROGRAMS, number * len(PROGRAMS)):
                count = -(-(plan.count - total.tried) // (rounds * len(PROGRAMS) - n))
                total += self._trial(plan.part(str(n), seed=plan.seed + number, count=count), programs)
        return total + Outcome(0, [], {"seeds": rounds, "programs at a time": "1 to 4"})

    def _trial(
        self, plan: Plan, programs: int, broken: str = "", unit: int = SECTOR, enough: int = 1 << 30
    ) -> Outcome:
        workload = Workload(plan, programs, broken)
        with in_memory(plan.work) as place:
            trial = Trial(self, workload, Path(place))
            trial.run(plan.count, unit, enough)
        shutil.rmtree(plan.work)
        return Outcome(trial.tried, trial.failures, {"moments": trial.moments})

    def control(self, plan: Plan) -> Outcome:
        """Break each of BREAKAGES, and tear sectors."""
        controls = {name: (name, SECTOR) for name in BREAKAGES} | {f"torn at {TORN} bytes": ("", TORN)}
        return each_fails(
            {
                name: self._trial(plan.part(str(n), count=CONTROL), 1, broken, unit, ENOUGH)
                for n, (name, (broken, unit)) in enumerate(controls.items())
            }
        )

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        account = Account.from_json(facts)
        moment = Moment.from_json(facts["moment"])
        shutil.copytree(case / "state", plan.work / "state")
        try:
            found = in_process(find, plan.work / "state", facts["where"], facts["inodes"])
        except Died as died:
            found = Found(problem=str(died))
        wrong = account.wrong(found, moment)
        return Outcome(1, [self.failure(wrong, case)] if wrong else [], {"moment": str(moment)})
