"""Draws the steps of the step language (steps.py).

Each program, or thread, is an *owner* of tasks that it alone changes: `writer 3/7-25` is the 25th that `writer 3` has
made with the seed `7`. What it does follows from its seed and from what it held before. So from these, and from how
many of its steps have returned, follows what the session holds of it, whatever the others do meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import NamedTuple

import attrs

from steps import SHARED, Change, Contents, Record, Step

STATES = ("NEW", "RUNNING", "TERMINATED", "a state of its own", "x" * 450)

PAIRED = "one of a pair"
"""The state of tasks that come and go two at a time: in any snapshot their number is even."""


class Mix(NamedTuple):
    """How often each kind of step is done, and how many tasks it may concern if that isn't one."""

    shares: dict[str, int]
    sizes: tuple[int, ...]


SCRIPT = Mix(
    {"add": 5, "add_many": 3, "batch": 3, "save_all": 5, "remove_many": 4, "transaction": 4}
    | {"forget": 2, "adopt": 2, "reopen": 1},
    (1, 2, 5, 12),
)
"""A few tasks, all of which are looked at again and again."""

RACE = Mix(
    {"add": 5, "add_many": 2, "save": 4, "save_all": 3, "remove": 3, "remove_many": 2, "forget": 2, "adopt": 2}
    | {"batch": 3, "transaction": 3, "rollback": 1, "pair": 2, "share": 3, "reopen": 1},
    (1, 2, 10, 60),
)
"""Many tasks, with many at work."""

FOR_ONE = {"finish": 1, "compact": 1, "repair": 1}
"""Done by the first program of a script only, ..."""

ALONE = ("compact", "repair")
"""... and these while it is the only one."""

_CROWDED = 120
ONE_TASK = ("add", "add_group", "save", "change", "remove", "forget", "adopt", "add_again")
_ADDING = ("add", "add_group", "add_many", "batch", "transaction", "rollback")
_CHANGING = ("change", "save", "save_all", "batch", "transaction")
_FORGETTING = ("forget", "batch", "transaction")
_ADOPTING = ("adopt", "add_again", "batch", "transaction")
_REMOVING = ("remove", "remove_many", "batch", "transaction")


@attrs.frozen
class Choice:
    """What a step may concern.

    Attributes:
        names: of new tasks.
        sizes: how many tasks it may be, where that isn't one.
        free: the tasks that may be changed, with their records.
        members: those that may be forgotten.
        removable: those that may be removed.
        outside: those that may be adopted.
        parts: those that a new group may hold.
    """

    names: Iterator[str]
    sizes: Sequence[int]
    free: Mapping[str, Record]
    members: Sequence[str]
    removable: Sequence[str]
    outside: Sequence[str]
    parts: Sequence[str] = ()

    def draw(self, kind: str, chance: random.Random) -> list[Change]:
        """Return the changes of a step of that kind, which concern each task but once."""
        changes: list[Change] = []

        def some(names: Iterable[str]) -> list[str]:
            touched = {change.name for change in changes}
            names = [name for name in names if name not in touched]
            number = 1 if kind in ONE_TASK else chance.choice(self.sizes)
            return chance.sample(names, min(number, len(names)))

        if kind in _ADDING:
            for name in islice(self.names, 1 if kind in ONE_TASK else chance.choice(self.sizes)):
                changes += self._new(name, kind == "add_group", chance)
        if kind in _CHANGING:
            for name in some(self.free):
                changes.append(Change("change", name, _record(chance, self.free[name].parts)))
        if kind in _FORGETTING:
            changes += [Change("forget", name) for name in some(self.members)]
        if kind in _ADOPTING:
            changes += [Change("adopt", name) for name in some(self.outside)]
        if kind in _REMOVING:
            changes += [Change("remove", name) for name in some(self.removable)]
        return changes

    def _new(self, name: str, group: bool, chance: random.Random) -> list[Change]:
        """Return the changes that add a task: a group if that is wanted, or its name ends with 5."""
        if not (group or name.endswith("5")):
            return [Change("add", name, _record(chance))]
        parts = [f"in {name}.{n}" for n in range(chance.randrange(4) if group else 1)]
        known = chance.sample(self.parts, min(len(self.parts), chance.randrange(2))) if group else []
        changes = [Change("part", part, _record(chance)) for part in parts]
        return [*changes, Change("add", name, _record(chance, (*parts, *known)))]


def _record(chance: random.Random, parts: tuple[str, ...] | None = None) -> Record:
    return Record(chance.choice(STATES), chance.randrange(1000), parts)


def owner_of(name: str) -> str:
    """Return whose task that is."""
    return name.removeprefix("in ").partition("/")[0]


def steps(
    owner: str, seed: object, mix: Mix, contents: Contents, more: Mapping[str, int] | None = None
) -> Iterator[tuple[Step, Contents]]:
    """Give the steps of an owner without end, each with what there is after it; *more* are kinds, as in a mix.

    Each kind is done early, so that none is left out of a short script.
    """
    chance = random.Random(f"{owner}/{seed}")
    names = (f"{owner}/{seed}-{number}" for number in count(1))
    shares = mix.shares | dict(more or {})
    first = list(shares)
    chance.shuffle(first)
    for i in count():
        kind = first.pop() if i % 2 == 0 and first else chance.choices([*shares], [*shares.values()])[0]
        parts = {part for record in contents.records.values() for part in record.parts or ()}
        records = {name: r for name, r in contents.records.items() if r.state != PAIRED and name not in parts}
        members = [name for name in contents.members if name in records]
        outside = [name for name in records if name not in contents.members]
        if len(records) > _CROWDED:
            kind = "remove_many"
        if kind == "share" and SHARED not in contents.numbers:
            kind = "add"
        changes = Choice(names, mix.sizes, records, members, members, outside).draw(kind, chance)
        if kind == "finish":
            changes = [Change("count", "finished", 1_000_000_000 + i)]
        elif kind == "share":
            changes = [Change("count", SHARED, contents.numbers[SHARED] + 1)]
        elif kind == "pair":
            changes = [Change("remove", name) for name, r in contents.records.items() if r.state == PAIRED]
            kind = "remove_many" if changes else "transaction"
            changes = changes or [Change("add", next(names), Record(PAIRED, chance.randrange(1000))) for _ in "ab"]
        if kind != "rollback":
            contents = contents.after(changes)
        yield Step(kind, tuple(changes)), contents


def script(seed: int, program: int, programs: int, length: int) -> list[tuple[Step, Contents]]:
    """Return the steps of one of several programs, and what there is of it after each; the first opens the session."""
    more = {kind: share for kind, share in FOR_ONE.items() if programs == 1 or kind not in ALONE}
    begin = Contents()
    after = steps(str(program), seed, SCRIPT, begin, {} if program else more)
    return [(Step("open"), begin), *islice(after, length - 1)]
