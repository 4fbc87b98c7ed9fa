"""Kills: eight writers and two readers of one session, each ended by SIGKILL at a random instant.

A *round* lasts until all of them are dead; some writers are followed by others meanwhile, which take over what
they find.  Then the session is judged: of each writer it must hold what it held after a number of steps that is
not less than that of its acknowledged ones, and not more than that of those it had begun.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import attrs

from breakages import BROKEN
from findings import findings, findings_meanwhile
from gc3session import MirrorWarning, NotASession, Session
from processes import Died, Journal, Process, in_process
from suite import Outcome, Plan, Suite
from working import PAIRED, SHARED, Holds, Owner, difference, look, same, share, steps, whole

WRITERS: Final = 8
READERS: Final = 2
KILLS_IN_A_SESSION: Final = 60
LONGEST_LIFE: Final = 0.35  # seconds
ENOUGH: Final = 20  # failures


@attrs.frozen
class Life:
    """A writer from its birth on.

    Attributes:
        owner: whose steps it does.
        seed: of these steps.
        journal: where it tells what it has found, and what it tries and has done.
    """

    owner: str
    seed: str
    journal: Path

    def found(self) -> Holds | None:
        """Return what its owner held when it was born, or None if it did not get so far."""
        lines = Journal.read(self.journal)
        return _holds(lines[0]) if lines else None

    def may_hold(self, at_birth: Holds) -> list[Holds]:
        """Return what its owner may hold after its death."""
        lines = Journal.read(self.journal)
        done, tried = lines.count("done"), lines.count("try")
        first = [] if done else [at_birth]
        after = islice(steps(self.owner, self.seed, at_birth), max(0, done - 1), tried)
        return first + [holds for _, holds in after]


def _holds(line: str) -> Holds:
    return {name: (state, number, member) for name, (state, number, member) in json.loads(line).items()}


class Kills(Suite):
    """See the module."""

    name = "kills"
    summary = f"{WRITERS} writers and {READERS} readers of one session, killed at random"
    unit = "kills"
    short = 1_000
    long = 50_000

    def run(self, plan: Plan) -> Outcome:
        return self._kills(plan, "")

    def control(self, plan: Plan) -> Outcome:
        outcomes = [self._kills(plan.part(str(n)), broken) for n, broken in enumerate(BROKEN_HERE)]
        return Outcome(
            sum(outcome.tried for outcome in outcomes),
            [failure for outcome in outcomes for failure in outcome.failures]
            if all(outcome.failures for outcome in outcomes)
            else [],
            {
                broken: f"{len(outcome.failures)} failures in {outcome.tried} kills"
                for broken, outcome in zip(BROKEN_HERE, outcomes, strict=True)
            },
        )

    def replay(self, plan: Plan, case: Path) -> Outcome:
        told = json.loads((case / "case.json").read_text())
        expected = {
            owner: [_holds(json.dumps(holds)) for holds in each] for owner, each in told["expected"].items()
        }
        failures = [f"what was kept: {wrong}" for wrong in self._judged(case / "session", plan.work, expected)]
        again = Campaign(self, plan.part("again"), told["seed"], told["broken"])
        again.run(KILLS_IN_A_SESSION)
        return Outcome(again.killed, failures + again.failures)

    def _kills(self, plan: Plan, broken: str) -> Outcome:
        killed = steps_done = sessions = 0
        failures: list[str] = []
        while killed < plan.count and len(failures) < ENOUGH:
            campaign = Campaign(self, plan.part(f"session {sessions}"), f"{plan.seed}/{sessions}", broken)
            campaign.run(min(KILLS_IN_A_SESSION, plan.count - killed))
            shutil.rmtree(campaign.work)
            killed += campaign.killed
            steps_done += campaign.done
            failures += campaign.failures
            sessions += 1
        return Outcome(killed, failures, {"sessions": sessions, "acknowledged steps": steps_done})

    def _judged(self, image: Path, work: Path, expected: dict[str, list[Holds]]) -> list[str]:
        """Return what is wrong with a copy of the session in *image*."""
        copy = work / "judged"
        if image.exists():
            shutil.copytree(image, copy)
        else:  # all were killed before they had made it; judging makes it
            copy.mkdir()
        try:
            held, wrong = in_process(work, "judge", judge, copy, list(expected))
        except Died as died:
            return [str(died)]
        finally:
            shutil.rmtree(copy)
        for owner, allowed in expected.items():
            found = held.pop(owner, {})
            if allowed and not any(same(found, each) for each in allowed):
                last = difference(found, allowed[0])
                wrong.append(
                    f"{owner} holds none of the {len(allowed)} states it may: after what was acknowledged {last}"
                )
        return [*wrong, *(f"what {owner} holds came from nowhere" for owner, holds in held.items() if holds)]


def judge(path: Path, owners: list[str]) -> tuple[dict[str, Holds], list[str]]:
    """Return what a session holds of each owner, and what else is wrong with it; everybody else is dead."""
    warnings.simplefilter("error", MirrorWarning)  # nobody has edited it: it is mended without a word
    with Session(path) as session:
        held = look(session, owners)
    return held, findings(path)


class Campaign:
    """Rounds of kills in one session.

    Args:
        suite: for which failures are kept.
        plan: where to work.
        seed: of what writers do, and of the instants.
        broken: what is broken on purpose, or ''.
    """

    def __init__(self, suite: Kills, plan: Plan, seed: str, broken: str) -> None:
        self.work = plan.work
        self.killed = self.done = 0
        self.failures: list[str] = []
        self._suite = suite
        self._plan = plan
        self._seed = seed
        self._broken = broken
        self._path = plan.work / "a session"
        self._chance = random.Random(f"{seed}/instants")
        self._may_hold: dict[str, list[Holds]] = {f"writer {n}": [{}] for n in range(WRITERS)}
        self._births = 0
        self._lives: dict[str, list[Life]] = {}

    def run(self, kills: int) -> None:
        """Kill so many processes, in rounds; stop at the first failure."""
        if self._chance.random() < 0.7:  # else the writers make it, all at once
            in_process(self.work, "maker", _make, self._path)
            self._may_hold = {owner: [{SHARED: ("", 0, True)}] for owner in self._may_hold}
        while self.killed < kills and not self.failures:
            self._round(kills - self.killed)

    def _round(self, kills: int) -> None:
        self._lives = {owner: [] for owner in self._may_hold}
        wrong = self._kill_all(kills)
        expected = {}
        for owner, lives in self._lives.items():
            try:
                expected[owner] = self._after(owner, lives)
            except Died as died:
                wrong.append(str(died))
                expected[owner] = []  # whatever it holds: that it is wrong is known
        wrong += self._suite._judged(self._path, self.work, expected)
        if wrong:
            self._keep(wrong, expected)
        for life in (life for lives in self._lives.values() for life in lives):
            self.done += Journal.read(life.journal).count("done")
            life.journal.unlink(missing_ok=True)
        self._may_hold = expected

    def _after(self, owner: str, lives: list[Life]) -> list[Holds]:
        """Return what an owner may hold after its lives of a round.  Raise Died if one found something else."""
        may_hold = self._may_hold[owner]
        for life in lives:
            found = life.found()
            if found is None:
                continue
            if not any(same(found, each) for each in may_hold):
                raise Died(f"{owner} found what it can't hold: {difference(found, may_hold[0])}")
            may_hold = life.may_hold(found)
        return may_hold

    def _kill_all(self, kills: int) -> list[str]:
        """Let a round's processes work until all have been killed; return how they failed, if so."""
        chance = self._chance
        at_once = chance.random() < 0.15
        now = time.monotonic()
        last = now + chance.uniform(0, LONGEST_LIFE)
        due: list[tuple[float, str, Process]] = []
        wrong: list[str] = []

        def be_born(owner: str, now: float) -> None:
            process = self._writer(owner) if owner in self._lives else self._process(owner, read, self._path)
            due.append((last if at_once else now + chance.uniform(0, LONGEST_LIFE), owner, process))
            due.sort(key=lambda each: each[0])

        everybody = [*self._lives, *(f"reader {n}" for n in range(READERS))]
        for owner in everybody:
            be_born(owner, now)
        try:
            while due:
                instant, owner, process = due.pop(0)
                time.sleep(max(0.0, instant - time.monotonic()))
                if process.kill():
                    self.killed += 1
                    kills -= 1
                else:
                    wrong.append(f"{process.name} ended with status {process.wait()}: {process.error()}")
                if not at_once and kills > len(due) and owner in self._lives and chance.random() < 0.4:
                    be_born(owner, time.monotonic())
        finally:
            for _, _, process in due:
                process.kill()
        return wrong

    def _writer(self, owner: str) -> Process:
        self._births += 1
        life = Life(owner, f"{self._seed.replace('/', '.')}.{self._births}", self.work / f"{self._births}.journal")
        self._lives[owner].append(life)
        return self._process(owner, write, self._path, life, self._broken)

    def _process(self, owner: str, function: Callable[..., Any], *args: Any) -> Process:
        return Process(self.work, f"{owner}", function, *args)

    def _keep(self, wrong: list[str], expected: dict[str, list[Holds]]) -> None:
        case = self._suite.new_case(self._plan)
        if self._path.exists():
            shutil.copytree(self._path, case / "session")
        for lives in self._lives.values():
            for life in lives:
                if life.journal.exists():
                    shutil.copyfile(life.journal, case / f"{life.owner} {life.journal.name}")
        told = {"seed": self._seed, "broken": self._broken, "wrong": wrong, "expected": expected}
        (case / "case.json").write_text(json.dumps(told, indent=1))
        self.failures.append(self._suite.failure("\n    ".join(wrong), case))


def _make(path: Path) -> None:
    with Session(path) as session:
        share(session)


def write(path: Path, life: Life, broken: str) -> None:
    """Do the steps of a life until killed."""
    warnings.simplefilter("error", MirrorWarning)
    if broken:
        BROKEN[broken]()
    early = broken == EARLY
    owner = Owner(life.owner, path)
    journal = Journal(life.journal)
    journal.tell(json.dumps(owner.holds))
    for kind, after in steps(life.owner, life.seed, owner.holds):
        journal.tell("try")
        if early:
            journal.tell("done")
        owner.do(kind, after)
        if not early:
            journal.tell("done")


EARLY: Final = "acknowledged before the commit"
BROKEN_HERE: Final = (EARLY, "the index in another transaction than the records")


def read(path: Path) -> None:
    """Read until killed: all that is seen at any moment must be whole."""
    counted: dict[str, int] = {}
    reads = 0
    while True:
        try:
            session = Session(path, create=False, read_only=reads % 2 == 0)
        except NotASession:
            time.sleep(0.002)  # the writers are about to make it
            continue
        if reads % 4 == 0 and (wrong := findings_meanwhile(path)):
            raise AssertionError(wrong)
        with session:
            for _ in range(3):
                reads += 1
                if session.stats().get(PAIRED, 0) % 2:
                    raise AssertionError("half a transaction")
                for task in session:
                    if not whole(task):
                        raise AssertionError(f"not whole: {task!r}")
                    if task.jobname == SHARED:
                        if any(task.inputs.get(owner, 0) < count for owner, count in counted.items()):
                            raise AssertionError(f"{task.inputs}, which had been {counted}")
                        counted = dict(task.inputs)
