"""Ways to break gc3session on purpose, from outside: what a control does.

The library has no option for any of them.  Each takes hold in the program that calls it.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import lmdb

from gc3session.mirror import Mirror


def no_sync() -> None:
    """Open LMDB so that it flushes nothing."""
    opened = lmdb.open

    def open_(*args: Any, **options: Any) -> Any:
        return opened(*args, **{**options, "sync": False})

    lmdb.open = open_  # type: ignore[assignment]


def no_directory_sync() -> None:
    """Let no directory be flushed."""
    flush = os.fsync

    def fsync(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            flush(fd)

    os.fsync = fsync  # type: ignore[assignment]


def mirror_first() -> None:
    """Write the mirror before the index is committed."""
    prepare = Mirror.prepare

    def prepare_and_apply(self: Mirror, *args: Any) -> Any:
        mark = prepare(self, *args)
        self.apply()
        return mark

    Mirror.prepare = prepare_and_apply  # type: ignore[method-assign, assignment]


BREAKAGES = {"sync=False": no_sync, "no directory flushed": no_directory_sync, "mirror first": mirror_first}
"""By the names that the summaries have for them."""
