"""Ways to break gc3session on purpose, from outside: what a control does.

The library has no option for any of them. Each takes hold in the program that calls it.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

import lmdb
from gc3session import StoreFull
from gc3session.index.mirror import Mirror
from gc3session.store.commit import Commit
from gc3session.store.store import Store
from gc3session.tables.interface import RECORDS, Item, Writer
from gc3session.tables.lmdb.tables import LmdbTables, _LmdbWriter


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
    plan = Mirror.plan

    def plan_and_write(self: Mirror, *args: Any) -> Any:
        mark = plan(self, *args)
        self.write()
        return mark

    Mirror.plan = plan_and_write  # type: ignore[method-assign, assignment]


def split_transactions() -> None:
    """Write records in a transaction after that of the index."""
    late: list[Sequence[Item]] = []
    write = LmdbTables.write

    class WithoutRecords(_LmdbWriter):
        def put(self, table: str, items: Sequence[Item]) -> None:
            if table == RECORDS:
                late.append(items)
            else:
                super().put(table, items)

    def write_twice(tables: LmdbTables, unit: Callable[[Writer], Any], *rest: Any) -> Any:
        def index(writer: Any) -> Any:
            late.clear()
            return unit(WithoutRecords(writer._txn, writer._tables))

        def records(writer: Writer) -> None:
            for items in late:
                writer.put(RECORDS, items)

        result = write(tables, index, *rest)
        time.sleep(0.002)
        write(tables, records)
        return result

    LmdbTables.write = write_twice  # type: ignore[method-assign, assignment]


def lost_updates() -> None:
    """Save whatever another process has saved meanwhile."""
    Commit._check_conflicts = lambda *args: None  # type: ignore[method-assign]


def silent_full_disk() -> None:
    """Drop the batch where there is no room, and raise no error."""
    write = Store.write

    def write_if_possible(store: Store, more: Callable[[Any, Writer], object], **options: Any) -> None:
        try:
            write(store, more, **options)
        except StoreFull:
            store.batch.clear()
            for index in store.indexes:
                index.reset()

    Store.write = write_if_possible  # type: ignore[method-assign, assignment]


BREAKAGES = {"sync=False": no_sync, "no directory flushed": no_directory_sync, "mirror first": mirror_first}
"""What a power cut shows, by the names that the summaries have for it."""

BROKEN: dict[str, Callable[[], None]] = {
    "acknowledged before the commit": lambda: None,  # by the suite itself
    "the index in another transaction than the records": split_transactions,
    "saved without a look at what others have saved": lost_updates,
    "a full disk that raises no error": silent_full_disk,
}
"""What kills, races and full disks show."""


@functools.cache
def break_by(name: str) -> None:
    """Break the library in this process, in one of these ways; in none if that is ''."""
    if name:
        (BREAKAGES | BROKEN)[name]()
