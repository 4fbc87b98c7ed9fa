"""The batch: what has been changed in memory and is not on disk yet."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from ..format.schema import Schema
from ..tasks import SLOT_SETTERS, Persistable, set_changed
from .codec import field_values

REMOVED = b""
"""In place of a record: it is to be removed."""

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
            before; or None, object, slots before.  None outside of units.
    """

    def __init__(self) -> None:
        self.journal: list[tuple[Any, Any, Any]] | None = None
        self.version = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was staged: it is on disk, and can't be undone."""
        self.records: dict[int, bytes] = {}
        self.states: dict[int, str] = {}
        self.bases: dict[int, tuple[int, str]] = {}
        self.bytes = 0
        self.version += 1
        if self.journal is not None:
            self.journal.clear()

    def stage(self, number: int, record: bytes, state: str, base: tuple[int, str] | None) -> None:
        """Put a record into the batch."""
        self.set_item(self.records, number, record)
        self.set_item(self.states, number, state)
        self.set_item(self.bases, number, base)
        self.bytes += STAGED_BYTES + len(record)

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

    def set_slots(self, obj: Persistable, slots: Slots) -> None:
        """Set what an object knows of its record, so that it can be undone."""
        if self.journal is not None:
            before = (obj._store, obj._number, obj._revision, obj._stored_state, obj._schema)
            self.journal.append((None, obj, before))
        set_slots(obj, slots)

    def clear_changed(self, obj: Persistable, changed: MutableMapping[int, Persistable]) -> None:
        """Note that *obj* is being saved; to be called before its fields are read.

        A change by another thread from now on is then a new one.  *changed* holds the objects
        that have unsaved changes, by their id().
        """
        if self.journal is not None and obj.changed:
            self.journal.append((changed, id(obj), _SAVED))
            self.journal.append((changed, id(obj), obj))
        changed.pop(id(obj), None)
        set_changed(obj, False)

    def detach(self, obj: Persistable) -> None:
        """Make *obj* an object without a record, so that it can be undone.

        What is assigned in between is a change of it, should it get its record back.
        """
        if self.journal is not None:
            self.journal.append((_DETACHED, obj, (obj.changed, field_values(obj))))
        self.set_slots(obj, NO_SLOTS)
        set_changed(obj, True)

    def undo(self, mark: int) -> None:
        """Undo all changes since the journal had *mark* entries."""
        journal = self.journal
        assert journal is not None
        self.version += 1
        while len(journal) > mark:
            mapping, key, before = journal[-1]
            if mapping is None:
                if key._store is not None and before[0] is None:  # it was new
                    key._store.changed.pop(id(key), None)
                set_slots(key, before)
            elif mapping is _DETACHED:
                changed, fields = before
                set_changed(
                    key, changed or any(a is not b for a, b in zip(fields, field_values(key), strict=True))
                )
                key._store.note_changed(key)
            elif before is _SAVED:
                obj = mapping.get(key)
                if obj is not None:
                    set_changed(obj, True)
                    if obj._store is None:
                        del mapping[key]
            elif before is None:
                mapping.pop(key, None)
            else:
                mapping[key] = before
            journal.pop()  # last, so that an interrupted undoing can go on


_SAVED: Final = object()
_DETACHED: Final = object()

Slots = tuple[Any, int, int, str, Schema | None]
"""Of an object: its store, N, revision, stored state, schema."""

NO_SLOTS: Slots = (None, 0, 0, "", None)
"""Those of an object without a record."""


def set_slots(obj: Persistable, slots: Slots) -> None:
    """Set what an object knows of its record; nothing is tracked."""
    for setter, value in zip(SLOT_SETTERS, slots, strict=True):
        setter(obj, value)
