"""A writer that lives to be killed, and the model of what its session must hold afterwards.

The writer does random work and tells through a pipe what it tries and, after the call has returned, that it
is done.  One message is one line and one write: it is there whole or not at all.  What it does is a function
of its seed and of what the session held before, so that its parent, which reads the lines, can follow it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples import Simulation, Sweep

from gc3session import Session

Holds = dict[str, tuple[str, int]]
"""What a session holds: jobname -> state and steps of each of its tasks."""

STATES = ("NEW", "RUNNING", "TERMINATED", "a state of its own")


def plans(seed: int, holds: Holds) -> Iterator[tuple[str, Holds]]:
    """Give what a writer does, step by step: the kind of work, and what the session holds after it."""
    chance = random.Random(seed)
    holds, number = dict(holds), 0
    while True:
        kind = chance.choices(
            ["add", "add_many", "change", "remove", "batch", "transaction", "reopen"], [5, 3, 5, 3, 2, 2, 1]
        )[0]
        new: Holds = {}
        for _ in range(1 if kind == "add" else chance.choice((2, 20, 300)) if kind != "reopen" else 0):
            number += 1
            new[f"{seed}-{number}"] = (chance.choice(STATES), chance.randrange(1000))
        changed, removed = {}, []
        if kind in ("change", "batch", "transaction"):
            some = chance.sample(sorted(holds), min(len(holds), chance.choice((1, 5, 50))))
            changed = {name: (chance.choice(STATES), chance.randrange(1000)) for name in some}
        if kind in ("remove", "transaction"):
            some = sorted(set(holds) - set(changed))
            removed = chance.sample(some, min(len(some), chance.choice((1, 5, 50))))
        if kind in ("change", "remove"):
            new = {}
        holds = {name: value for name, value in holds.items() if name not in removed} | changed | new
        yield kind, holds


def write(path: Path, seed: int, holds: Holds, tell: int) -> None:
    """Do what `plans` gives until killed; tell of each step through the descriptor *tell*."""
    session = Session(path)
    ids = {task.jobname: str(task.persistent_id) for task in session}
    os.write(tell, b'["open"]\n')
    before = holds
    for kind, after in plans(seed, holds):
        os.write(tell, b'["try"]\n')
        if kind == "reopen":
            session.close()
            session = Session(path)
        else:
            _do(session, kind, before, after, ids)
        os.write(tell, b'["done"]\n')
        before = after


def _do(session: Session, kind: str, before: Holds, after: Holds, ids: dict[str, str]) -> None:
    new = [_task(name, *value) for name, value in after.items() if name not in before]
    changed = {name: value for name, value in after.items() if name in before and before[name] != value}
    removed = [ids.pop(name) for name in before if name not in after]
    if kind == "transaction":
        with session.transaction():
            _add(session, new, ids, flush=True)
            _change(session, changed, ids)
            session.save_all()
            session.remove_many(removed)
    elif kind == "batch":
        _add(session, new, ids, flush=False)
        _change(session, changed, ids)
        session.save_all(flush=False)
        session.flush()
    elif kind == "add":
        ids[new[0].jobname] = session.add(new[0])
    elif kind == "add_many":
        ids.update(zip([task.jobname for task in new], session.add_many(new), strict=True))
    elif kind == "change":
        _change(session, changed, ids)
        session.save_all()
    elif kind == "remove" and removed:
        session.remove_many(removed)


def _task(name: str, state: str, steps: int) -> Simulation | Sweep:
    if steps % 10 == 0:
        return Sweep(jobname=name, state=state, parameter=str(steps), tasks=[Simulation(jobname=f"in {name}")])
    return Simulation(jobname=name, state=state, steps=steps, mesh="x" * (steps if steps % 50 else 20_000))


def _add(session: Session, new: list[Any], ids: dict[str, str], flush: bool) -> None:
    for task in new:
        ids[task.jobname] = session.add(task, flush=flush)


def _change(session: Session, changed: Holds, ids: dict[str, str]) -> None:
    for name, (state, steps) in changed.items():
        task: Any = session.load(ids[name])
        task.state = state
        if isinstance(task, Sweep):
            task.parameter = str(steps)
        else:
            task.steps = steps


def held(session: Session) -> Holds:
    """Return what a session holds, having looked whether each task is whole."""
    found: Holds = {}
    for task in session:
        steps = int(task.parameter) if isinstance(task, Sweep) else task.steps
        if isinstance(task, Sweep):
            assert [child.jobname for child in task.tasks] == [f"in {task.jobname}"]
        assert task.history[-1][1] == task.state
        assert task.jobname not in found
        found[task.jobname] = (task.state, steps)
    return found


def told(lines: bytes) -> list[str]:
    """Return the messages of a writer, in order."""
    return [json.loads(line)[0] for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]
