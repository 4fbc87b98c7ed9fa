"""The step language: what programs do to sessions, and what these must hold then.

A *step* is one thing that a program does: some changes of tasks, and the kind of call that makes them::

    Step("add", (Change("add", "0/7-1", Record("NEW", 5)),))
    Step("transaction", (Change("change", "0/7-1", Record("RUNNING", 8)), Change("remove", "0/7-2")))

Steps are data: performer.py does them to a session, and `Contents.after` to the plain model. A task is known by its
jobname, which no other task has, and its record says all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import attrs

SHARED = "shared"
"""The name of the task in which each owner counts, and so of its number among those of an owner."""


class Record(NamedTuple):
    """All that there is to know of a task but its name: *parts* are the names of the tasks in a group."""

    state: str
    steps: int
    parts: tuple[str, ...] | None = None


class Change(NamedTuple):
    """What happens to a task.

    Attributes:
        verb: `part` a task is stored as a part of the next one that is added; `add` it is stored and joins the
            session; `change` it is stored again; `forget` it leaves the session; `adopt` it joins the session;
            `remove` it is deleted with its parts; `count` a number of the owner's has a new value.
        name: of the task, or of the number.
        value: the new Record or number.
    """

    verb: str
    name: str
    value: Any = None


class Step(NamedTuple):
    """One thing that a program does: *kind* is a kind of call, *flush* what it says for that argument."""

    kind: str
    changes: tuple[Change, ...] = ()
    flush: bool = True


@attrs.frozen
class Contents:
    """The model: what a session holds, or what it holds of one owner.

    Attributes:
        records: of all tasks that are stored.
        members: the names of those in the session, sorted.
        numbers: SHARED, and when the session was finished.
    """

    records: dict[str, Record] = attrs.Factory(dict)
    members: tuple[str, ...] = ()
    numbers: dict[str, int] = attrs.Factory(dict)

    def after(self, changes: Iterable[Change], *, elsewhere: bool = False) -> Contents:
        """Return what there is after some changes; *elsewhere* they are made in another session of the store."""
        records, members, numbers = dict(self.records), dict.fromkeys(self.members), dict(self.numbers)
        for verb, name, value in changes:
            if verb in ("part", "add", "change"):
                records[name] = value
            if verb in ("add", "adopt") and not elsewhere:
                members.setdefault(name)
            elif verb == "forget" and not elsewhere:
                del members[name]
            elif verb == "remove":
                for each in (name, *(records[name].parts or ())):
                    records.pop(each, None)
                    members.pop(each, None)
            elif verb == "count":
                numbers[name] = value
        return Contents(records, tuple(sorted(members)), numbers)

    def difference(self, expected: Contents) -> str:
        """Return in a few words how this differs from what was expected; '' if it doesn't."""
        words = [
            f"{name}: found {self._say(name)}, expected {expected._say(name)}"
            for name in {**expected.records, **self.records, **expected.numbers, **self.numbers}
            if self._say(name) != expected._say(name)
        ]
        return "; ".join([*words[:3], f"{len(words)} differences"]) if words else ""

    def _say(self, name: str) -> str:
        where = "in the session" if name in self.members else "stored"
        return f"{self.numbers.get(name, '')}{self.records.get(name, '')} {where}"

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can write, and `from_json` needs."""
        return attrs.asdict(self, recurse=False)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Contents:
        """Return the contents of which these are the facts."""
        records = {
            name: Record(state, steps, None if parts is None else tuple(parts))
            for name, (state, steps, parts) in facts["records"].items()
        }
        return cls(records, tuple(facts["members"]), dict(facts["numbers"]))


@attrs.define
class View:
    """What one session sees over what is committed: its own batch, and what it has not saved.

    Flushing the batch is doing its changes again to what is committed then.
    """

    changes: list[Change] = attrs.Factory(list)
    touched: set[str] = attrs.Factory(set)  # the names of the tasks that the batch changes
    unsaved: dict[str, Record] = attrs.Factory(dict)

    def apply(self, step: Step, seen: Contents) -> None:
        """Do a step to it, when the session sees that."""
        for change in step.changes:
            verb, name, record = change
            parts = (record or seen.records[name]).parts or ()
            if verb == "change":
                self.unsaved[name] = record
            else:
                self.changes.append(change)
                self.touched.add(name)
            if verb == "remove":
                self.touched.update(parts)
                for each in (name, *parts):
                    self.unsaved.pop(each, None)
            elif verb == "add" or (name in self.unsaved and verb != "forget" and step.kind != "change"):
                self.save(name, *parts)
        if step.kind in ("save_all", "batch"):
            self.save(*self.unsaved)

    def save(self, *names: str) -> None:
        """Save those tasks that aren't."""
        for name in names:
            if name in self.unsaved:
                self.changes.append(Change("change", name, self.unsaved.pop(name)))
                self.touched.add(name)
