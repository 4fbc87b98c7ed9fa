"""What a repair changes in the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import CorruptRecord
from ..tables.interface import Contents, Writer
from .quarantine import DAMAGED

_LONGEST_NAME: Final = 64  # of a file, without its ending


class Changes(NamedTuple):
    """One repair of the tables, as its parts share it; the methods write nothing in a dry run.

    Attributes:
        contents: the committed state.
        writer: the transaction; None in a dry run.
        report: called with a line for each thing that is done.
        save: called with the name and the bytes of what is taken out, before that is deleted.
    """

    contents: Contents
    writer: Writer | None
    report: Callable[[str], None]
    save: Callable[[str, bytes], None]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if self.writer is not None:
            self.writer.put(table, [(key, value)])

    def delete(self, table: str, key: bytes) -> None:
        if self.writer is not None:
            self.writer.delete(table, [key])

    def take_out(self, table: str, key: bytes, fault: CorruptRecord) -> None:
        """Move a damaged item of `records`, `schemas`, `states` or `metadata` to the directory of what is damaged."""
        kind = table.removesuffix("s")
        name = str(int.from_bytes(key, "big")) if len(key) in (4, 8) else key.hex()[:_LONGEST_NAME]
        self.save(f"{name}.{kind}", self.contents.get(table, key) or b"")
        self.report(f"{kind} {name}: {fault}; moved to {DAMAGED}/")
        self.delete(table, key)
