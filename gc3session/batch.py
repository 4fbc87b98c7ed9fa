"""The batch: what has been changed in memory and is not on disk yet."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from .codec import Schema
from .tasks import Persistable

ANY_REVISION = -1
"""The base of a record that is removed whatever is there."""

_STAGED_BYTES = 420  # of memory that a record in the batch takes, beside its bytes

Staged = tuple[bytes | None, int, Schema | None, str, str]
"""A record in the batch: its bytes (None: it is to be removed), the revision that must be there
(0: none, it is new), its schema, its state, and the state at that revision."""


class Batch:
    """Staged records, and a journal by which a failed change is undone.

    Attributes:
        records: N -> Staged.
        bytes: of memory that the records take, about.
        journal: what undoes the changes since the outermost unit began; None outside of units.
    """

    def __init__(self) -> None:
        self.records: dict[int, Staged] = {}
        self.bytes = 0
        self.journal: list[Callable[[], object]] | None = None

    def stage(self, number: int, staged: Staged) -> None:
        """Put a record into the batch."""
        self.set_item(self.records, number, staged)
        self.bytes += _STAGED_BYTES + len(staged[0] or b"")

    def unstage(self, number: int) -> None:
        """Take a record out of the batch, if it is there."""
        self.set_item(self.records, number, None)

    def updates(self) -> list[int]:
        """Return the Ns of the stored records that the batch overwrites."""
        return [n for n, (record, base, *_) in self.records.items() if base > 0 and record is not None]

    def set_item(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an item of any mapping, or delete it (None), so that it can be undone."""
        if self.journal is not None:
            before = mapping.get(key)
            if before is None:
                self.journal.append(lambda: mapping.pop(key, None))
            else:
                self.journal.append(lambda: mapping.__setitem__(key, before))
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value

    def set_slots(self, obj: Persistable, slots: Slots) -> None:
        """Set what an object knows of its record, so that it can be undone."""
        if self.journal is not None:
            before = (obj._store, obj._number, obj._revision, obj._stored_state, obj._schema, obj.changed)
            self.journal.append(lambda: set_slots(obj, before))
        set_slots(obj, slots)

    def undo(self, mark: int) -> None:
        """Undo all changes since the journal had *mark* entries."""
        assert self.journal is not None
        while len(self.journal) > mark:
            self.journal.pop()()


Slots = tuple[Any, int, int, str, Schema | None, bool]
"""Of an object: its store, N, revision, stored state, schema, and whether it is changed."""

NO_SLOTS: Slots = (None, 0, 0, "", None, True)
"""Those of an object without a record."""


def set_slots(obj: Persistable, slots: Slots) -> None:
    """Set what an object knows of its record; nothing is tracked."""
    cls = type(obj)
    object.__setattr__(obj, "__class__", cls._quiet)
    obj._store, obj._number, obj._revision, obj._stored_state, obj._schema, obj.changed = slots
    obj.__class__ = cls
