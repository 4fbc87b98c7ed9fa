"""What sessions must show, in plain Python: what is committed, and what each has not flushed and not saved."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import attrs

from handles import Picture, Seen


@attrs.frozen
class Record:
    """What the model knows of a stored task."""

    state: str
    text: str
    children: tuple[str, ...] = ()


@attrs.define
class Committed:
    """What is on disk, of sessions in two directories over one store."""

    records: dict[str, Record] = attrs.Factory(dict)
    index: dict[str, list[str]] = attrs.Factory(lambda: {"a": [], "b": []})
    stale: set[str] = attrs.Factory(set)  # the directories whose mirror waits for its session

    def put(self, id_: str, record: Record) -> None:
        self.records[id_] = record

    def join(self, directory: str, id_: str) -> None:
        if id_ not in self.index[directory]:
            self.index[directory].append(id_)

    def leave(self, directory: str, id_: str) -> None:
        self.index[directory].remove(id_)

    def delete(self, directory: str, id_: str) -> None:
        self.records.pop(id_, None)
        for other, ids in self.index.items():
            if id_ in ids:
                ids.remove(id_)
                if other != directory:
                    self.stale.add(other)

    def after(self, changes: list[Change]) -> Committed:
        """Return what there is after some changes."""
        changed = Committed(
            dict(self.records), {name: list(ids) for name, ids in self.index.items()}, set(self.stale)
        )
        for change in changes:
            change(changed)
        return changed


Change = Callable[[Committed], None]


@attrs.define
class View:
    """What one session sees over what is committed: its own batch.

    The batch is kept as a list of changes, so that flushing it is doing them again on what is committed then.
    """

    changes: list[Change] = attrs.Factory(list)
    touched: set[str] = attrs.Factory(set)  # the IDs that the batch changes
    dirty: dict[str, tuple[str, str]] = attrs.Factory(dict)  # ID -> state and text that aren't saved
    joins: bool = False  # the batch adds to the index

    def copy(self) -> View:
        return copy.copy(
            attrs.evolve(self, changes=[*self.changes], touched={*self.touched}, dirty={**self.dirty})
        )

    def wrong(self, picture: Picture, seen: Committed, directory: str) -> str:
        """Return how a session's picture differs from *seen*, what is committed with its batch; '' if it doesn't."""
        expected = seen.index[directory]
        found = picture.ids if not self.joins else sorted(picture.ids)
        tasks = {}
        for id_, record in seen.records.items():
            state, text = self.dirty.get(id_, (record.state, record.text))
            tasks[id_] = Seen(state, text, record.children, id_ in self.dirty, id_ in expected)
        pairs = {
            "ids": (found, expected if not self.joins else sorted(expected)),
            "len": (picture.length, len(expected)),
            "stats": (picture.stats, Counter(seen.records[id_].state for id_ in expected)),
            "the store's list": (sorted(picture.stored), sorted(seen.records)),
            "tasks": (picture.tasks, tasks),
            "the objects held": (picture.same, True),
        }
        for state, ids in picture.selected.items():
            stored = {id_ for id_ in ids if id_ in seen.records and seen.records[id_].state == state}
            pairs[f"select({state!r})"] = (stored, set(ids))
        return "; ".join(f"{what}: {a}, expected {b}" for what, (a, b) in pairs.items() if a != b)
