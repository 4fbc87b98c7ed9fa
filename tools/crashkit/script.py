"""What the programs of a workload do, and what the session must hold after each step: functions of a seed.

Each program has tasks of its own: `2-17` is the jobname of the 17th of program 2.  So the session holds, of each
program, what that one's steps have left, whatever the others do meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator

import attrs

from gc3session import Persistable, Task, TaskCollection

STATES = ("NEW", "RUNNING", "TERMINATED", "a state of its own")

LONG_TEXT = 9000
"""Bytes of a text that doesn't fit a page of the store."""

Value = tuple[str, int]
"""State and steps of a task."""


@attrs.define
class Job(Task):
    """A task; its text is a function of its name and its steps."""

    steps: int = 0
    text: str = ""


@attrs.define
class Group(TaskCollection):
    """A collection that holds one job."""

    steps: int = 0
    text: str = ""


def text_of(name: str, steps: int) -> str:
    """Return the text that the task must have."""
    return f"{name}/{steps} " * (1 if steps % 7 else LONG_TEXT // 10)


def new_task(name: str, value: Value) -> Job | Group:
    """Return the task of that name, which has not been stored."""
    state, steps = value
    text = text_of(name, steps)
    if is_group(name):
        return Group(jobname=name, state=state, steps=steps, text=text, tasks=[Job(jobname=child_of(name))])
    return Job(jobname=name, state=state, steps=steps, text=text)


def is_group(name: str) -> bool:
    """Return whether the task of that name is a collection."""
    return name.endswith("5")


def child_of(name: str) -> str:
    """Return the jobname of the one job in a group."""
    return f"in {name}"


def program_of(name: str) -> int:
    """Return the number of the program whose task that is."""
    return int(name.removeprefix("in ").partition("-")[0])


def value_of(task: Task | Persistable) -> Value:
    """Return state and steps of a task.  Raise ValueError if it isn't whole."""
    if not isinstance(task, Job | Group):
        raise ValueError(f"a {type(task).__name__} that nobody has stored: {task!r}")  # noqa: TRY004
    if task.text != text_of(task.jobname, task.steps) or is_group(task.jobname) is not isinstance(task, Group):
        raise ValueError(f"{task.jobname} is not whole: {task.steps} steps, its text is {task.text[:80]!r}")
    if not task.history or task.history[-1][1] != task.state:
        raise ValueError(f"{task.jobname} is {task.state}, its history says {task.history}")
    if isinstance(task, Group) and (names := [getattr(child, "jobname", "") for child in task.tasks]) != [
        child_of(task.jobname)
    ]:
        raise ValueError(f"{task.jobname} holds {names}")
    return task.state, task.steps


@attrs.frozen
class Holds:
    """What a session holds of one program.

    Attributes:
        members: its tasks in the session by jobname, in the order of adding.
        stored: those that are stored and have left the session.
        finished: the end time of the session, which the first program sets; 0 before that.
    """

    members: dict[str, Value] = attrs.field(factory=dict, eq=lambda members: list(members.items()))
    stored: dict[str, Value] = attrs.field(factory=dict)
    finished: int = 0

    def digest(self) -> str:
        """Return a few characters that tell it from everything else that a session may hold."""
        told = [list(self.members.items()), sorted(self.stored.items()), self.finished]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=12).hexdigest()


@attrs.frozen
class Step:
    """One thing that a program does.

    Attributes:
        kind: how it does it.
        before: what there is of the program before it,
        after: and after it; between these two there is nothing.
    """

    kind: str
    before: Holds
    after: Holds


_SHARES = {
    "add": 5,
    "add_many": 3,
    "batch": 3,
    "change": 5,
    "remove": 4,
    "transaction": 4,
    "forget": 2,
    "adopt": 2,
    "reopen": 1,
}
_FOR_ONE = {"finish": 1, "compact": 1, "repair": 1}
"""Done by the first program only, ..."""

_ALONE = ("compact", "repair")
"""... and these while it is the only one."""


def steps(seed: int, program: int, programs: int, count: int) -> Iterator[Step]:
    """Give *count* steps of one of several programs; the first one opens the session."""
    chance = random.Random(f"{seed}/{program}")
    shares = dict(_SHARES)
    if program == 0:
        shares |= {kind: share for kind, share in _FOR_ONE.items() if programs == 1 or kind not in _ALONE}
    holds, number = Holds(), 0
    yield Step("open", holds, holds)
    first = list(shares)  # each kind once, so that none is left out
    chance.shuffle(first)
    for i in range(count - 1):
        kind = first[i // 2] if i % 2 and i // 2 < len(first) else chance.choices([*shares], [*shares.values()])[0]
        members, stored, finished = dict(holds.members), dict(holds.stored), holds.finished
        if kind in ("add", "add_many", "batch", "transaction"):
            for _ in range(1 if kind == "add" else chance.choice((2, 5, 12))):
                number += 1
                members[f"{program}-{number}"] = _value(chance)
        if kind in ("change", "batch", "transaction"):
            for name in _some(chance, [*holds.members]):
                members[name] = _value(chance)
        if kind in ("remove", "transaction"):
            for name in _some(chance, [name for name in holds.members if members[name] == holds.members[name]]):
                del members[name]
        if kind == "forget":
            for name in _some(chance, [*members]):
                stored[name] = members.pop(name)
        if kind == "adopt":
            for name in _some(chance, sorted(stored)):
                members[name] = stored.pop(name)
        if kind == "finish":
            finished = 1_000_000_000 + i
        after = Holds(members, stored, finished)
        yield Step(kind, holds, after)
        holds = after


def _value(chance: random.Random) -> Value:
    return chance.choice(STATES), chance.randrange(1, 1000)


def _some(chance: random.Random, names: list[str]) -> list[str]:
    return chance.sample(names, min(len(names), chance.choice((1, 1, 3))))
