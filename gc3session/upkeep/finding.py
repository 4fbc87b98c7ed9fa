"""What a check finds."""

from __future__ import annotations

import attrs


@attrs.frozen
class Finding:
    """Something that is wrong with a session.

    Attributes:
        kind: the check that has found it: 'directory', 'structure', 'format', 'schema', 'session', 'record',
            'index', 'late', 'state', 'sequence', 'mirror' or 'reference'.
        where: the file, table entry or task concerned.
        message: what is wrong with it.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"
