"""Together: many processes of many threads add, save, remove, read and fork in one session, and nothing is lost.

Each thread is an owner (working.py) with tasks of its own; half of those of a process share one Session object,
half have their own.  Now and then a thread forks: the child goes on with the open session, adds tasks and ends.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from itertools import islice
from pathlib import Path
from typing import Final

import attrs

from breakages import BROKEN
from findings import findings
from gc3session import Session
from processes import HUNG, Died, Process, in_process, none_left
from suite import Outcome, Plan, Suite
from working import PAIRED, Holds, Owner, difference, look, new_task, same, share, steps, whole

THREADS: Final = 8
PROCESSES: Final = 16
PROCESSES_IN_LONG_FORM: Final = 64
A_SESSION: Final = 20_000
"""Transactions at which a session is judged and another one begun."""

FORKED: Final = "forked"
LOST_UPDATES: Final = "saved without a look at what others have saved"
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
        tried = sessions = forks = 0
        failures: list[str] = []
        while tried < plan.count and not failures:
            part = plan.part(f"session {sessions}", count=min(A_SESSION, plan.count - tried))
            outcome = self._session(part, f"{plan.seed}/{sessions}", processes, "")
            shutil.rmtree(part.work)
            failures += outcome.failures
            tried += outcome.tried
            forks += int(outcome.notes["forks"])
            sessions += 1
        threads = processes * THREADS
        return Outcome(tried, failures, {"sessions": sessions, "threads at a time": threads, "forks": forks})

    def control(self, plan: Plan) -> Outcome:
        enough = attrs.evolve(plan, count=max(plan.count, CONTROL_TRANSACTIONS))
        return self._session(enough, f"{plan.seed}/control", 4, LOST_UPDATES)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        told = json.loads((case / "case.json").read_text())
        failures = []
        if (case / "session").exists():
            kept = plan.work / "kept"
            shutil.copytree(case / "session", kept)
            expected = {
                owner: {name: (state, number, member) for name, (state, number, member) in holds.items()}
                for owner, holds in told["expected"].items()
            }
            failures = [f"what was kept: {wrong}" for wrong in judged(plan.work, kept, expected, told["added"])]
        again = self._session(
            plan.part("again", count=told["count"]), told["seed"], told["processes"], told["broken"]
        )
        return Outcome(again.tried, failures + again.failures)

    def _session(self, plan: Plan, seed: str, count: int, broken: str) -> Outcome:
        """Have *count* processes make plan.count transactions in one session, and judge it."""
        path = plan.work / "a session"
        in_process(plan.work, "maker", _make, path)
        each = -(-plan.count // (count * THREADS))
        processes: list[Process] = []
        wrong: list[str] = []
        expected: dict[str, Holds] = {}
        added: list[str] = []
        forks = 0
        with none_left(processes):
            processes.extend(
                Process(plan.work, f"process {number}", work, path, f"{number}", seed, each, broken)
                for number in range(count)
            )
            for process in processes:
                try:
                    holds, theirs = process.result(within=HUNG + plan.count * SLOWEST)
                except Died as died:
                    wrong.append(str(died))
                    continue
                expected |= holds
                added += theirs
                forks += len(theirs)
        tried = count * THREADS * each
        if not wrong:
            image = plan.work / "image"
            shutil.copytree(path, image)
            wrong = judged(plan.work, path, expected, added)
            path = image
        failures = []
        if wrong:
            case = self.new_case(plan)
            shutil.copytree(path, case / "session")
            told = {"seed": seed, "count": plan.count, "processes": count, "broken": broken, "wrong": wrong}
            (case / "case.json").write_text(json.dumps(told | {"expected": expected, "added": added}, indent=1))
            failures.append(self.failure("\n    ".join(wrong), case))
        return Outcome(tried, failures, {"forks": forks})


def _make(path: Path) -> None:
    with Session(path) as session:
        share(session)


def judged(work: Path, path: Path, expected: dict[str, Holds], added: list[str]) -> list[str]:
    """Return what is wrong with a session that must hold *expected*, and the tasks *added* by forked children."""
    wrong: list[str]
    try:
        held, children, wrong = in_process(work, "judge", _judge, path, list(expected))
    except Died as died:
        return [str(died)]
    if sorted(children) != sorted(added):
        wrong.append(f"{len(children)} tasks of forked children are there, {len(added)} were added")
    for owner in expected:
        if not same(held[owner], expected[owner]):
            wrong.append(f"{owner}: {difference(held[owner], expected[owner])}")
    return wrong


def _judge(path: Path, owners: list[str]) -> tuple[dict[str, Holds], list[str], list[str]]:
    with Session(path) as session:
        held = look(session, owners)
        children = list(held.pop(FORKED, {}))
    return held, children, findings(path)


def work(path: Path, name: str, seed: str, each: int, broken: str) -> tuple[dict[str, Holds], list[str]]:
    """Let the threads of a process make *each* so many transactions.

    Return what they hold at the end, and the names of what their forked children have added.
    """
    if broken:
        BROKEN[broken]()
    failures: list[BaseException] = []
    held: dict[str, Holds] = {}
    added: list[str] = []
    with Session(path) as session:

        def run(owner: str, shared: Session | None) -> None:
            try:
                held[owner] = _Thread(path, owner, seed, shared, added).run(each)
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
    return held, added


class _Thread:
    """A thread's work.

    Args:
        path: of the session.
        owner: whose steps it does.
        seed: of these, and of when it reads and forks.
        shared: the Session that it shares with other threads; None to have its own.
        added: takes the names of what its forked children have added.
    """

    def __init__(self, path: Path, owner: str, seed: str, shared: Session | None, added: list[str]) -> None:
        self._path = path
        self._name = owner
        self._seed = seed
        self._shared = shared
        self._added = added
        self._chance = random.Random(f"{seed}/{owner}/instants")

    def run(self, count: int) -> Holds:
        """Make *count* transactions; return what the owner holds then."""
        owner = Owner(self._name, self._path, self._shared)
        done = forks = 0
        for kind, after in steps(self._name, self._seed, owner.holds):
            owner.do(kind, after)
            done += kind not in WRITES_NOTHING
            if self._chance.random() < 0.2:
                _read(owner.session)
            if self._chance.random() < 0.02:
                name = f"{FORKED}/{self._name}-{forks}"
                in_process(self._path.parent, f"child {forks} of {self._name}", _go_on, owner.session, name)
                self._added.append(name)
                forks += 1
            if done >= count:
                break
        owner.close()
        return owner.holds


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
    session.add(new_task(name, "NEW", 1), flush=False)
    session.flush()
    if not any(task.jobname == name for task in session):
        raise AssertionError(f"{name} is not there")
