"""Kills: eight writers and two readers of one session, each ended by SIGKILL at a random instant.

A *round* lasts until all of them are dead; some writers are followed by others meanwhile, which take over what
they find. Then the session is judged: of each writer it must hold what it held after a number of steps that is
not less than that of its acknowledged ones, and not more than that of those it had begun.
"""

from __future__ import annotations

import os
import random
import shutil
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, Final

import attrs

from breakages import break_by
from gc3session import MirrorWarning, NotASession, Session
from generator import PAIRED, RACE, steps
from judge import contents, findings, look, make_commit
from performer import Performer
from processes import Died, Lines, Process, in_process, none_left
from specimens import Job, whole
from steps import SHARED, Contents
from suite import Outcome, Plan, Suite, each_fails

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
        journal: where it reports what it has found, and what it tries and has done.
    """

    owner: str
    seed: str
    journal: Path

    def reports(self) -> list[list[Any]]:
        """Return what it has reported: what it found, and then what it tried and had done."""
        return Lines.read(self.journal.read_bytes()) if self.journal.exists() else []

    def done(self) -> int:
        """Return how many steps it had done."""
        return sum(words[0] == "done" for words in self.reports())

    def may_hold(self, at_birth: Contents) -> list[Contents]:
        """Return what there may be of its owner after its death."""
        done, tried = self.done(), sum(words[0] == "try" for words in self.reports())
        first = [] if done else [at_birth]
        after = islice(steps(self.owner, self.seed, RACE, at_birth), max(0, done - 1), tried)
        return first + [each for _, each in after]


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
        return each_fails({broken: self._kills(plan.part(str(n)), broken) for n, broken in enumerate(BROKEN_HERE)})

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        expected = {owner: list(map(Contents.from_json, each)) for owner, each in facts["expected"].items()}
        failures = [f"what was kept: {wrong}" for wrong in self.judged(case / "session", plan.work, expected)]
        again = Campaign(self, plan.part("again"), facts["seed"], facts["broken"])
        again.run(KILLS_IN_A_SESSION)
        return Outcome(again.killed, failures + again.failures)

    def _kills(self, plan: Plan, broken: str) -> Outcome:
        total, sessions = Outcome(0), 0
        while total.tried < plan.count and len(total.failures) < ENOUGH:
            campaign = Campaign(self, plan.part(f"session {sessions}"), f"{plan.seed}.{sessions}", broken)
            campaign.run(min(KILLS_IN_A_SESSION, plan.count - total.tried))
            shutil.rmtree(campaign.work)
            total += Outcome(campaign.killed, campaign.failures, {"acknowledged steps": campaign.done})
            sessions += 1
        return total + Outcome(0, [], {"sessions": sessions})

    def judged(self, image: Path, work: Path, expected: dict[str, list[Contents]]) -> list[str]:
        """Return what is wrong with a copy of the session in *image*."""
        copy = work / "judged"
        if image.exists():
            shutil.copytree(image, copy)
        else:  # all were killed before they had made it; judging makes it
            copy.mkdir()
        try:
            held, wrong = in_process(judge, copy, list(expected))
        except Died as died:
            return [str(died)]
        finally:
            shutil.rmtree(copy)
        for owner, allowed in expected.items():
            found = held.pop(owner, Contents())
            if allowed and found not in allowed:
                last = found.difference(allowed[0])
                wrong.append(
                    f"{owner} holds none of the {len(allowed)} states it may: after what was acknowledged {last}"
                )
        return [*wrong, *(f"what {owner} holds came from nowhere" for owner, each in held.items() if each.records)]


def judge(path: Path, owners: list[str]) -> tuple[dict[str, Contents], list[str]]:
    """Return what there is of each owner, and what else is wrong with a session; all its processes are dead."""
    warnings.simplefilter("error", MirrorWarning)  # nobody has edited it: it must be repaired without a warning
    with Session(path) as session:
        make_commit(session)
        held = contents(session, owners)
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
        self._may_hold = {f"writer {n}": [Contents()] for n in range(WRITERS)}
        self._births = 0
        self._lives: dict[str, list[Life]] = {}

    def run(self, kills: int) -> None:
        """Kill so many processes, in rounds; stop at the first failure."""
        if self._chance.random() < 0.7:  # else the writers make it, all at once
            in_process(make, self._path)
            self._may_hold = {owner: [Contents(numbers={SHARED: 0})] for owner in self._may_hold}
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
        wrong += self._suite.judged(self._path, self.work, expected)
        if wrong:
            self._keep(wrong, expected)
        for life in (life for lives in self._lives.values() for life in lives):
            self.done += life.done()
            life.journal.unlink(missing_ok=True)
        self._may_hold = expected

    def _after(self, owner: str, lives: list[Life]) -> list[Contents]:
        """Return what an owner may hold after its lives of a round. Raise Died if one found something else."""
        may_hold = self._may_hold[owner]
        for life in lives:
            reports = life.reports()
            if not reports:  # it was killed before it had looked
                continue
            found = Contents.from_json(reports[0][0])
            if found not in may_hold:
                raise Died(f"{owner} found what can't be: {found.difference(may_hold[0])}")
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
            process = self._writer(owner) if owner in self._lives else Process(read, self._path, name=owner)
            due.append((last if at_once else now + chance.uniform(0, LONGEST_LIFE), owner, process))
            due.sort(key=lambda each: each[0])

        for owner in (*self._lives, *(f"reader {n}" for n in range(READERS))):
            be_born(owner, now)
        with none_left(process for _, _, process in due):
            while due:
                instant, owner, process = due.pop(0)
                time.sleep(max(0.0, instant - time.monotonic()))
                if process.kill():
                    self.killed += 1
                    kills -= 1
                else:
                    wrong.append(str(process.death()))
                if not at_once and kills > len(due) and owner in self._lives and chance.random() < 0.4:
                    be_born(owner, time.monotonic())
        return wrong

    def _writer(self, owner: str) -> Process:
        self._births += 1
        life = Life(owner, f"{self._seed}.{self._births}", self.work / f"{self._births}.journal")
        self._lives[owner].append(life)
        return Process(write, self._path, life, self._broken, name=owner)

    def _keep(self, wrong: list[str], expected: dict[str, list[Contents]]) -> None:
        facts: dict[str, Any] = {"seed": self._seed, "broken": self._broken, "wrong": wrong}
        facts["expected"] = {owner: [each.to_json() for each in allowed] for owner, allowed in expected.items()}
        journals = {
            f"{life.owner} {life.journal.name}": life.journal for each in self._lives.values() for life in each
        }
        case = self._suite.keep(self._plan, facts, {"session": self._path, **journals})
        self.failures.append(self._suite.failure("\n    ".join(wrong), case))


def make(path: Path) -> None:
    """Make a session with the task that all owners share."""
    with Session(path) as session:
        session.add(Job(jobname=SHARED))


def write(path: Path, life: Life, broken: str) -> None:
    """Do the steps of a life until killed."""
    warnings.simplefilter("error", MirrorWarning)
    break_by(broken)
    report = Lines(os.open(life.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND))

    def report_early(*words: Any) -> None:
        if words[0] == "try":
            report("try")
            report("done")

    performer = Performer(path, life.owner, report_early if broken == EARLY else report)
    found, performer.ids = look(performer.open(), life.owner)
    report(found.to_json())
    for number, (step, _) in enumerate(steps(life.owner, life.seed, RACE, found)):
        performer.perform(number, step)


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
        if reads % 4 == 0 and (wrong := findings(path, meanwhile=True)):
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
                        if any(task.content.get(owner, 0) < count for owner, count in counted.items()):
                            raise AssertionError(f"{task.content}, which had been {counted}")
                        counted = dict(task.content)
