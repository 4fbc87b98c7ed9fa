"""Together: many processes of many threads add, save, remove, read and fork in one session, and nothing is lost.

Each thread is an owner (steps.py) with tasks of its own; half of those of a process share one Session object,
half have their own. Now and then a thread forks: the child goes on with the open session, adds tasks and ends.
"""

from __future__ import annotations

import random
import shutil
import threading
from itertools import islice
from pathlib import Path
from typing import Final

import attrs

from breakages import break_by
from gc3session import Session
from generator import PAIRED, RACE, steps
from judge import contents, findings, look, make_commit
from kills import make
from performer import Performer
from processes import LONGEST, Died, Process, in_process, none_left
from specimens import new_task, whole
from steps import SHARED, Change, Contents, Record
from suite import Outcome, Plan, Suite

THREADS: Final = 8
PROCESSES: Final = 16
PROCESSES_IN_LONG_FORM: Final = 64
A_SESSION: Final = 20_000
"""Transactions at which a session is judged and another one begun."""

FORKED: Final = "forked"
LOST_UPDATES: Final = "saved without a look at what others have saved"
FIRST: Final = Record("NEW", 1)
"""What a forked child adds."""

SLOWEST: Final = 0.05
"""Seconds a transaction, on a disk that is busy with other things."""

CONTROL_TRANSACTIONS: Final = 800
WRITES_NOTHING: Final = ("reopen", "rollback")


class Together(Suite):
    """See the module."""

    name = "together"
    summary = f"{PROCESSES} processes of {THREADS} threads in one session, which fork, too"
    unit = "transactions"
    short = 10_000
    long = 20_000_000

    def run(self, plan: Plan) -> Outcome:
        processes = PROCESSES if plan.count < self.long else PROCESSES_IN_LONG_FORM
        total, sessions = Outcome(0), 0
        while total.tried < plan.count and not total.failures:
            part = plan.part(f"session {sessions}", count=min(A_SESSION, plan.count - total.tried))
            total += self._session(part, f"{plan.seed}.{sessions}", processes, "")
            shutil.rmtree(part.work)
            sessions += 1
        return total + Outcome(0, [], {"sessions": sessions, "threads at a time": processes * THREADS})

    def control(self, plan: Plan) -> Outcome:
        enough = attrs.evolve(plan, count=max(plan.count, CONTROL_TRANSACTIONS))
        return self._session(enough, f"{plan.seed}.control", 4, LOST_UPDATES)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        failures = []
        if (case / "session").exists():
            kept = plan.work / "kept"
            shutil.copytree(case / "session", kept)
            expected = {owner: Contents.from_json(each) for owner, each in facts["expected"].items()}
            failures = [f"what was kept: {wrong}" for wrong in judged(kept, expected)]
        again = self._session(
            plan.part("again", count=facts["count"]), facts["seed"], facts["processes"], facts["broken"]
        )
        return again + Outcome(0, failures)

    def _session(self, plan: Plan, seed: str, count: int, broken: str) -> Outcome:
        """Have *count* processes make plan.count transactions in one session, and judge it."""
        path = plan.work / "a session"
        in_process(make, path)
        each = -(-plan.count // (count * THREADS))
        within = LONGEST + plan.count * SLOWEST
        processes: list[Process] = []
        wrong: list[str] = []
        expected: dict[str, Contents] = {}
        with none_left(processes):
            for number in range(count):
                args = work, path, f"{number}", seed, each, broken
                processes.append(Process(*args, name=f"process {number}", within=within))
            for process in processes:
                try:
                    expected |= process.result()
                except Died as died:
                    wrong.append(str(died))
        image = plan.work / "image"
        shutil.copytree(path, image)
        failures = []
        if wrong := wrong or judged(path, expected):
            facts = {"seed": seed, "count": plan.count, "processes": count, "broken": broken, "wrong": wrong}
            facts["expected"] = {owner: each.to_json() for owner, each in expected.items()}
            failures.append(self.failure("\n    ".join(wrong), self.keep(plan, facts, {"session": image})))
        forks = sum(owner.startswith(FORKED) for owner in expected)
        return Outcome(count * THREADS * each, failures, {"forks": forks})


def judged(path: Path, expected: dict[str, Contents]) -> list[str]:
    """Return what is wrong with a session that must hold *expected*."""
    wrong: list[str]
    try:
        held, wrong = in_process(_judge, path, list(expected))
    except Died as died:
        return [str(died)]
    return wrong + [
        f"{owner}: {each.difference(expected.get(owner, Contents()))}"
        for owner, each in held.items()
        if each != expected.get(owner, Contents())
    ]


def _judge(path: Path, owners: list[str]) -> tuple[dict[str, Contents], list[str]]:
    with Session(path) as session:
        make_commit(session)
        held = contents(session, owners)
    return held, findings(path)


def work(path: Path, name: str, seed: str, each: int, broken: str) -> dict[str, Contents]:
    """Let the threads of a process make *each* so many transactions.

    Return what there is of them at the end, and of their forked children.
    """
    break_by(broken)
    failures: list[BaseException] = []
    held: dict[str, Contents] = {}
    with Session(path) as session:

        def run(owner: str, shared: Session | None) -> None:
            try:
                held.update(_Thread(path, owner, seed, shared).run(each))
            except BaseException as failure:  # noqa: BLE001  raised in the thread that waits for this one
                failures.append(failure)

        threads = [
            threading.Thread(target=run, args=(f"{name}.{n}", session if n % 2 else None)) for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return held


class _Thread:
    """A thread's work.

    Args:
        path: of the session.
        owner: whose steps it does.
        seed: of these, and of when it reads and forks.
        shared: the Session that it shares with other threads; None to have its own.
    """

    def __init__(self, path: Path, owner: str, seed: str, shared: Session | None) -> None:
        self._owner, self._seed = owner, seed
        self._performer = Performer(path, owner, shared=shared)
        self._chance = random.Random(f"{seed}/{owner}/instants")

    def run(self, count: int) -> dict[str, Contents]:
        """Make *count* transactions; return what there is then of the owner, and of its forked children."""
        performer = self._performer
        begin, performer.ids = look(performer.own, self._owner)
        done = 0
        held: dict[str, Contents] = {}
        for step, after in steps(self._owner, self._seed, RACE, begin):
            performer.do(step)
            held[self._owner] = after
            done += step.kind not in WRITES_NOTHING
            if self._chance.random() < 0.2:
                _read(performer.session)
            if self._chance.random() < 0.02:
                child = f"{FORKED} {self._owner}-{done}"
                in_process(_go_on, performer.session, f"{child}/1")
                held[child] = Contents(numbers={SHARED: 0}).after([Change("add", f"{child}/1", FIRST)])
            if done >= count:
                break
        performer.close()
        return held


def _read(session: Session) -> None:
    """Look at what others are changing: it must be whole."""
    if session.stats().get(PAIRED, 0) % 2:
        raise AssertionError("half a transaction")
    for task in islice(session, 50):
        if not whole(task):
            raise AssertionError(f"not whole: {task!r}")


def _go_on(session: Session, name: str) -> None:
    """Use the session in a forked child: what the parent has not flushed is not this one's."""
    _read(session)
    session.add(new_task(name, FIRST, {}), flush=False)
    session.flush()
    if not any(task.jobname == name for task in session):
        raise AssertionError(f"{name} is not there")
