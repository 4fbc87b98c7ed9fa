"""What the writers of several suites do, and the model of what they must leave.

Any number of *owners* work on one session.  Each has tasks of its own, which it alone changes, and in what
order it does what follows from its seed and from what it held before: so whoever knows these, and how many of its
steps have returned, knows what the session holds of it.  One task is shared by all: each counts its own increments
in it, and takes the conflicts with the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gc3session import ConflictError, NotFound, Session, Task
from specimens import Simulation, Sweep

Holds = dict[str, tuple[str, int, bool]]
"""What an owner holds: jobname -> state, steps and whether it is in the session; those that are in the order of adding.

A task that is not in the session is in the store alone.  SHARED has the number of increments instead of the steps.
"""

SHARED = "shared"
PAIRED = "one of a pair"
"""The state of tasks that come and go two at a time: in any snapshot their number is even."""

_STATES = ("NEW", "RUNNING", "TERMINATED", "a state of its own")
_BORN = "born"
_ON_LOOKER = "on-looker"
_CROWDED = 120
_KINDS = {
    "add": 5,
    "add_many": 2,
    "save": 4,
    "save_all": 3,
    "remove": 3,
    "remove_many": 2,
    "forget": 2,
    "adopt": 2,
    "batch": 3,
    "transaction": 3,
    "rollback": 1,
    "pair": 2,
    "share": 3,
    "reopen": 1,
}


class Rollback(Exception):
    """Ends a transaction that is not to be."""


def steps(owner: str, seed: str, holds: Holds) -> Iterator[tuple[str, Holds]]:
    """Give what an owner does, step by step: the kind of work, and what it holds after it."""
    chance = random.Random(f"{owner}/{seed}")
    number = 0
    while True:
        kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
        plain = [name for name, (state, _, _) in holds.items() if name != SHARED and state != PAIRED]
        if len(plain) > _CROWDED:
            kind = "remove_many"
        if kind == "share" and SHARED not in holds:
            kind = "add"
        after = dict(holds)
        if kind in ("save", "save_all", "batch", "transaction"):
            for name in _some(chance, plain, 1 if kind == "save" else chance.choice((1, 5, 20))):
                after[name] = (chance.choice(_STATES), chance.randrange(1000), holds[name][2])
        changed = {name for name in plain if after[name] != holds[name]}
        members = [name for name in plain if holds[name][2] and name not in changed]
        if kind in ("forget", "batch", "transaction"):
            for name in _some(chance, members, chance.choice((1, 3)) if kind != "forget" else 1):
                after[name] = (*holds[name][:2], False)
                members.remove(name)
        if kind == "adopt":
            for name in _some(chance, [name for name in plain if not holds[name][2]], 1):
                after[name] = (*after.pop(name)[:2], True)
        if kind in ("remove", "remove_many", "batch", "transaction"):
            for name in _some(chance, members, 1 if kind == "remove" else chance.choice((1, 5, 50))):
                del after[name]
        if kind in ("add", "add_many", "batch", "transaction"):
            for _ in range(1 if kind == "add" else chance.choice((2, 10, 60))):
                number += 1
                after[f"{owner}/{seed}-{number}"] = (chance.choice(_STATES), chance.randrange(1000), True)
        if kind == "pair":
            pair = [name for name, (state, _, _) in holds.items() if state == PAIRED]
            for name in pair:
                del after[name]
            for _ in range(0 if pair else 2):
                number += 1
                after[f"{owner}/{seed}-{number}"] = (PAIRED, chance.randrange(1000), True)
        if kind == "share":
            after[SHARED] = ("", holds[SHARED][1] + 1, True)
        yield kind, after
        holds = after


def _some(chance: random.Random, names: list[str], count: int) -> list[str]:
    return chance.sample(names, min(len(names), count))


def same(one: Holds, other: Holds) -> bool:
    """Return whether two owners' holdings are the same, order of adding included."""
    members = [[name for name, value in holds.items() if value[2] and name != SHARED] for holds in (one, other)]
    return one == other and members[0] == members[1]


def difference(found: Holds, expected: Holds) -> str:
    """Return in a few words how what was found differs from what was expected."""
    words = [
        f"{name}: found {found.get(name)}, expected {expected.get(name)}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    return "; ".join([*words[:3], f"{len(words)} differences"]) if words else "the order of adding"


def share(session: Session) -> None:
    """Add the task that all owners share."""
    session.add(Simulation(jobname=SHARED))


class Owner:
    """Does the steps of one owner.

    Args:
        name: of the owner.
        path: of the session.
        session: to work with, which others may do, too; unless told, one of its own.

    Attributes:
        session: the one that it works with.
        holds: what it holds now.
    """

    def __init__(self, name: str, path: Path, session: Session | None = None) -> None:
        self.name = name
        self._path = path
        self._own = Session(path)  # increments can't go through what another thread's save_all saves
        self._shares = session is not None
        self.session = self._own if session is None else session
        held, self._ids, born = _look(self._own, name, [name])
        self.holds = held[name]
        if born:
            self._own.remove_many(born)

    def do(self, kind: str, after: Holds) -> None:
        """Do a step, which ends with *after*; when this returns it is on disk."""
        before, session, ids = self.holds, self.session, self._ids
        new = [new_task(name, *value[:2]) for name, value in after.items() if name not in before]
        forgotten = [name for name in before if before[name][2] and name in after and not after[name][2]]
        changed = {
            name: value
            for name, value in after.items()
            if name in before and before[name] != value and name not in forgotten
        }
        removed = [name for name in before if name not in after]
        if kind in ("transaction", "rollback"):
            self._transaction(new, changed, forgotten, removed, kind == "rollback")
        elif kind == "batch":
            self._add(new, flush=False)
            self._change(changed)
            for name in forgotten:
                session.forget(ids[name], flush=False)
            session.remove_many([ids[name] for name in removed], flush=False)
            session.save_all(flush=False)
            session.flush()
        elif kind == "pair" and new:
            with session.transaction():
                self._add(new, flush=True)
        elif kind == "add":
            self._add(new, flush=True)
        elif kind == "add_many":
            ids.update(zip([task.jobname for task in new], session.add_many(new), strict=True))
        elif kind == "save":
            for task in self._change(changed):
                session.save(task)
        elif kind == "save_all":
            self._change(changed)
            session.save_all()
        elif kind == "remove":
            for name in removed:
                session.remove(ids[name])
        elif kind in ("remove_many", "pair"):
            session.remove_many(ids[name] for name in removed)
        elif kind == "forget":
            for name in forgotten:
                session.forget(ids[name])
        elif kind == "adopt":
            for name in changed:
                session.load(ids[name], add=True)
        elif kind == "share":
            self._share(after[SHARED][1])
        elif kind == "reopen":
            self._reopen()
        for name in removed:
            del ids[name]
        self.holds = after

    def _transaction(
        self, new: Sequence[Task], changed: Holds, forgotten: list[str], removed: list[str], fails: bool
    ) -> None:
        session, ids = self.session, self._ids
        try:
            with session.transaction():
                if fails:
                    session.add(Task(jobname="rolled back"))
                    raise Rollback
                self._add(new, flush=True)
                for task in self._change(changed):
                    session.save(task)
                for name in forgotten:
                    session.forget(ids[name])
                session.remove_many(ids[name] for name in removed)
        except Rollback:
            return

    def _add(self, new: Sequence[Task], flush: bool) -> None:
        for task in new:
            self._ids[task.jobname] = self.session.add(task, flush=flush)

    def _change(self, changed: Holds) -> list[Any]:
        tasks = []
        for name, (state, steps, _) in changed.items():
            task: Any = self.session.load(self._ids[name])
            _set(task, state, steps)
            tasks.append(task)
        return tasks

    def _share(self, count: int) -> None:
        task = self._own.load(self._ids[SHARED])
        while True:
            task.inputs = {**task.inputs, self.name: count}
            try:
                self._own.save(task)
            except ConflictError:
                self._own.refresh(task)
            else:
                return

    def _reopen(self) -> None:
        self._own.close()
        self._own = Session(self._path)
        if not self._shares:
            self.session = self._own

    def close(self) -> None:
        """Close what is its own."""
        self._own.close()


def new_task(name: str, state: str, steps: int) -> Simulation | Sweep:
    """Return a task that is whole."""
    task: Simulation | Sweep
    if name.endswith("7") and not name.startswith("in "):
        task = Sweep(jobname=name, state=state, tasks=[new_task(f"in {name}", "NEW", 0)])
    else:
        task = Simulation(jobname=name, state=state)
    _set(task, state, steps)
    return task


def _set(task: Simulation | Sweep, state: str, steps: int) -> None:
    task.state = state
    if isinstance(task, Sweep):
        task.parameter = str(steps)
    else:  # one assignment: another thread's save_all may come in between two
        task.inputs = {"steps": steps, "mesh": _mesh(steps)}


def _mesh(steps: int) -> str:
    return f"{steps}," * (steps % 50 if steps % 100 else 5000)


def whole(task: Any) -> bool:
    """Return whether the fields of a task are those of one moment."""
    if isinstance(task, Sweep):
        part = task.tasks[0]
        # Between the reading of the two another process may have removed both.
        return len(task.tasks) == 1 and (not isinstance(part, Simulation) or part.jobname == f"in {task.jobname}")
    if not isinstance(task, Simulation) or task.jobname == SHARED:
        return isinstance(task, Task)
    return bool(task.inputs["mesh"] == _mesh(task.inputs["steps"]))


def look(session: Session, owners: Iterable[str]) -> dict[str, Holds]:
    """Return what a session and its store hold of each owner, once all that was committed is seen.

    These are *owners*, and whoever else there may be.

    Raise AssertionError if something is not whole.
    """
    held, _, born = _look(session, _ON_LOOKER, owners)
    session.remove_many(born)
    return held


def _look(
    session: Session, owner: str, owners: Iterable[str]
) -> tuple[dict[str, Holds], dict[str, str], list[str]]:
    # A commit that a killed process has not acknowledged is seen for certain only after another one.
    session.add(Task(jobname=f"{owner}/{_BORN}"))
    # A task that another owner takes out and back in meanwhile is met at both places.
    members = list(dict.fromkeys(session.ids()))
    outside = set(session.store.list()).difference(members)
    held: dict[str, Holds] = {each: {} for each in owners}
    ids: dict[str, str] = {}
    born: list[str] = []
    for id_, task in _loaded(session, [*members, *sorted(outside)]):
        name = task.jobname
        whose = name.partition("/")[0]
        if name == SHARED:
            ids[name] = id_
            for each in {*held, *task.inputs}:
                held.setdefault(each, {})[SHARED] = ("", task.inputs.get(each, 0), True)
        elif name == f"{owner}/{_BORN}":
            born.append(id_)
        elif name.startswith("in ") or name.endswith(_BORN):
            continue
        else:
            if not whole(task) or name in held.setdefault(whose, {}):
                raise AssertionError(f"{id_} is not whole, or there twice: {task!r}")
            steps = int(task.parameter) if isinstance(task, Sweep) else task.inputs["steps"]
            held[whose][name] = (task.state, steps, id_ not in outside)
            if whose == owner:
                ids[name] = id_
    return held, ids, born


def _loaded(session: Session, ids: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Give the objects of IDs; those that others remove meanwhile are left out."""
    for id_ in ids:
        try:
            yield id_, session.load(id_)
        except NotFound:
            continue
