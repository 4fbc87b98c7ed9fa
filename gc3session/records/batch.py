"""The batch: what has been changed in memory and is not on disk yet."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import repeat
from typing import Any

from ..tasks import Origin, Persistable, Stamp, field_names, mark_of, restamp
from .codec import set_fields

REMOVED = b""
"""In place of a record: it is to be removed."""

Journal = list[tuple[Any, Any, Any]]

STAGED_BYTES = 300
"""Of memory that a record in the batch takes, beside its bytes, with its entry in an index."""


class Batch:
    """Staged records, and a journal by which a failed change is undone.

    Attributes:
        records: N -> record, or REMOVED.
        states: N -> state in that record.
        bases: N -> the revision that must be in the store, and the state in it; new records
            have no base.
        bytes: of memory that all this takes, about.
        version: another one after each change, of what is staged in indexes, too.
        journal: what undoes the changes since the outermost unit began: mapping, key, value
            before; or None, object, its stamp or a dict of its fields before.  None outside of units.
        kept: journals of calls of several units, which may have to undo them while they are not on disk.
    """

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.kept: list[Journal] = []
        self.version = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was staged: it is on disk, and can't be undone."""
        self.records: dict[int, bytes] = {}
        self.states: dict[int, str] = {}
        self.bases: dict[int, tuple[int, str]] = {}
        self.bytes = 0
        self.version += 1
        for journal in (self.journal, *self.kept):
            if journal is not None:
                journal.clear()

    def stage(self, number: int, record: bytes, state: str, base: tuple[int, str] | None) -> None:
        """Put a record into the batch."""
        self.set_item(self.records, number, record)
        self.set_item(self.states, number, state)
        self.set_item(self.bases, number, base)
        self.bytes += STAGED_BYTES + len(record)

    def stage_many(
        self, records: dict[int, bytes], states: dict[int, str], bases: dict[int, tuple[int, str]]
    ) -> None:
        """Put records into the batch, none of which is there yet."""
        self.version += 1
        for column, new in ((self.records, records), (self.states, states), (self.bases, bases)):
            if self.journal is not None:
                self.journal += zip(repeat(column), new, repeat(None))
            column.update(new)  # type: ignore[arg-type]
        self.bytes += STAGED_BYTES * len(records) + sum(map(len, records.values()))

    def unstage(self, number: int) -> None:
        """Take a record out of the batch, if it is there."""
        for column in (self.records, self.states, self.bases):
            self.set_item(column, number, None)

    def is_new(self, number: int) -> bool:
        """Return whether record N is in the batch and nowhere else."""
        return number in self.records and number not in self.bases

    def updates(self) -> list[int]:
        """Return the Ns of the stored records that the batch overwrites."""
        return [number for number in self.bases if self.records[number] != REMOVED]

    def removals(self) -> list[int]:
        """Return the Ns of the stored records that the batch removes."""
        return [number for number in self.bases if self.records[number] == REMOVED]

    def set_item(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an item of any mapping, or delete it (None), so that it can be undone."""
        self.version += 1
        if self.journal is not None:
            self.journal.append((mapping, key, mapping.get(key)))
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value

    def restamp(self, obj: Persistable, stamp: Stamp | Origin | None) -> None:
        """Set what a store knows of an object, so that it can be undone."""
        if self.journal is not None:
            self.journal.append((None, obj, mark_of(obj)))
        restamp(obj, stamp)

    def keep_fields(self, obj: Persistable) -> None:
        """Have the fields of an object set again to what they are, if what is done to them is undone."""
        if self.journal is not None:
            names = field_names(type(obj))
            self.journal.append((None, obj, {name: getattr(obj, name) for name in names if hasattr(obj, name)}))

    def give_up(self, journal: Journal) -> None:
        """Undo units that have ended, by their journal."""
        self.journal = journal
        self.undo(0)
        self.journal = None
        self.bytes = sum(STAGED_BYTES + len(record) for record in self.records.values())

    def undo(self, mark: int) -> None:
        """Undo all changes since the journal had *mark* entries."""
        journal = self.journal
        assert journal is not None
        self.version += 1
        while len(journal) > mark:
            mapping, key, before = journal.pop()
            if mapping is None and type(before) is dict:
                set_fields(key, before)
            elif mapping is None:
                restamp(key, before)
            elif before is None:
                mapping.pop(key, None)
            else:
                mapping[key] = before
