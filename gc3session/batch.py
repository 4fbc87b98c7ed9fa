"""The batch: what has been changed in memory and is not on disk yet."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .codec import Schema
from .tasks import Persistable

if TYPE_CHECKING:
    from .store import Store

ANY_REVISION = -1
"""The base of a record that is written, or removed, whatever is there."""

_STAGED_BYTES = 420  # of memory that a record in the batch takes, beside its bytes


class Staged(NamedTuple):
    """A record in the batch.  (The batch holds plain tuples of this form, which are made faster.)"""

    record: bytes | None  # None: it is to be removed
    base: int  # the revision that must be there; 0 for a new record
    schema: Schema | None
    state: str


class Batch:
    """Staged records, and a journal by which a failed change is undone.

    Attributes:
        records: N -> Staged.
        bytes: of memory that the records take, about.
        journal: what undoes the changes since the outermost unit began; None outside of units.
    """

    def __init__(self) -> None:
        self.records: dict[int, tuple[bytes | None, int, Schema | None, str]] = {}
        self.bytes = 0
        self.journal: list[Callable[[], object]] | None = None

    def stage(self, number: int, record: bytes | None, base: int, schema: Schema | None, state: str) -> None:
        """Put a record into the batch."""
        self.set_item(self.records, number, (record, base, schema, state))
        self.bytes += _STAGED_BYTES + len(record or b"")

    def unstage(self, number: int) -> None:
        """Take a record out of the batch, if it is there."""
        self.set_item(self.records, number, None)

    def updates(self) -> list[int]:
        """Return the Ns of the stored records that the batch overwrites."""
        return [n for n, (record, base, _, _) in self.records.items() if base != 0 and record is not None]

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

    def set_slots(
        self,
        obj: Persistable,
        store: Store | None,
        number: int,
        revision: int,
        schema: Schema | None,
        changed: bool,
    ) -> None:
        """Set what an object knows of its record, so that it can be undone."""
        if self.journal is not None:
            before = (obj._store, obj._number, obj._revision, obj._schema, obj.changed)
            self.journal.append(lambda: set_slots(obj, *before))
        set_slots(obj, store, number, revision, schema, changed)

    def undo(self, mark: int) -> None:
        """Undo all changes since the journal had *mark* entries."""
        assert self.journal is not None
        while len(self.journal) > mark:
            self.journal.pop()()


def set_slots(
    obj: Persistable, store: Store | None, number: int, revision: int, schema: Schema | None, changed: bool
) -> None:
    """Set what an object knows of its record; nothing is tracked."""
    cls = type(obj)
    object.__setattr__(obj, "__class__", cls._quiet)
    obj._store, obj._number, obj._revision, obj._schema, obj.changed = store, number, revision, schema, changed
    obj.__class__ = cls
