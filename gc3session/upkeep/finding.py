"""What a check finds, and what a repair does about it."""

from __future__ import annotations

from typing import NamedTuple

import attrs


class Change(NamedTuple):
    """One change of the tables in a repair.

    Attributes:
        table, key: of the item that is changed.
        value: the new one; None if the item is deleted.
        kept: whether the item can't be read: a copy takes its place if there is one, and its bytes are kept.
    """

    table: str
    key: bytes
    value: bytes | None = None
    kept: bool = False


@attrs.frozen
class Finding:
    """Something that is wrong with a session.

    Attributes:
        kind: the check that has found it: 'directory', 'structure', 'format', 'schema', 'session', 'record', 'index',
            'state', 'sequence', 'unique', 'metadata', 'lease', 'mirror' or 'reference'.
        where: the file, table entry or task concerned.
        message: what is wrong with it.
        changes: what a repair changes in the tables.
    """

    kind: str
    where: str
    message: str
    changes: tuple[Change, ...] = attrs.field(default=(), eq=False, repr=False)

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"
