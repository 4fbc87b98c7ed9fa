"""A copy of a session as it is at one moment, which is a session itself.

If the store is inside the session's directory, its data file is copied page by page in one read
transaction: writers go on, and only the pages that they free meanwhile can't be used again. Then
the mirror is written as the copied index has it. If the store is elsewhere, the session's records
and all that they refer to are written to a store inside the backup.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..directory import SessionDirectory
from ..errors import InvalidArgument, WriteError
from ..index.entries import Row
from ..store.index import Index
from ..store.mirrored import mirrored_index
from ..store.store import Store, make_store
from ..system.filesystem import real_path, sync, write_error
from ..system.temporary import made_whole
from ..tables.interface import OnProgress
from ..tables.urls import StoreURL
from .copying import copy_records
from .snapshot import snapshot


class BackedUp(NamedTuple):
    """What a backup holds.

    Attributes:
        tasks: how many tasks its session has.
        size: how many bytes its files have.
        missing: Ns that are in the session's index but have no record, and so are not in the backup;
            empty where the whole store was copied, which keeps their entries.
    """

    tasks: int
    size: int
    missing: list[int]


def backup_session(
    index: Index, directory: SessionDirectory, dest: str | os.PathLike[str], progress: OnProgress
) -> BackedUp:
    """Make the backup of a session at *dest*, whole or not at all; see `Session.backup`."""
    target = SessionDirectory(dest)
    if real_path(target.path).startswith(real_path(directory.path) + os.sep):
        raise InvalidArgument(f"{target.path} is inside the session that is to be backed up; choose another place")
    if os.path.lexists(target.path) and not _is_empty(target.path):
        raise InvalidArgument(
            f"{target.path} is there, and not an empty directory; choose another place for the backup"
        )
    try:
        with made_whole(target.path) as temporary:
            return _fill(index, directory, SessionDirectory(temporary), progress)
    except OSError as error:
        message = f"the backup {target.path} can't be made, and nothing is left of it"
        raise write_error(error, message, "choose another place") from error


def _is_empty(path: str) -> bool:
    try:
        return not os.path.islink(path) and not os.listdir(path)
    except OSError:  # a file, or a directory that can't be read
        return False


def _fill(index: Index, source: SessionDirectory, target: SessionDirectory, progress: OnProgress) -> BackedUp:
    """Make the backup in the directory *target*."""
    tables = index.store.tables
    inside = source.holds(index.store.url)
    place = os.path.join(target.path, source.DEFAULT_JOBS_DIR)
    if inside:
        there = real_path(StoreURL(index.store.url).path)
        place = os.path.join(target.path, os.path.relpath(there, real_path(source.path)))
    target.make(StoreURL.of_path(place), "", replace=False, identity=index.identity)
    _copy_timestamps(source, target)
    times: dict[str, int] = {}
    if inside and tables.exists():
        os.makedirs(os.path.dirname(place), exist_ok=True)
        times = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(there)}  # of the last writing
        tables.copy_to(place, progress)
    store = make_store(place)
    try:
        tasks, missing = _complete(index, store, target, progress)
        store.close()
    except BaseException:
        store.discard()
        raise
    for name, time in times.items():
        path = os.path.join(place, name)
        if os.path.exists(path):  # writing the mirror has changed the copied store, but not its tasks
            os.utime(path, ns=(time, time))
    sync(target.mirror)
    files = [os.path.join(at, name) for at, _, names in os.walk(target.path) for name in names]
    return BackedUp(tasks, sum(os.stat(path).st_size for path in files), missing)


def _complete(index: Index, store: Store, target: SessionDirectory, progress: OnProgress) -> tuple[int, list[int]]:
    """Write what the backup lacks: all records unless the store was copied, and the mirror.

    Return how many tasks it has, and the Ns that have no record.
    """
    missing: list[int] = []
    with mirrored_index(store, target, index.identity) as (copy, mirror):
        if store.tables.exists():  # the mirror's note in its row is that of the original's mirror
            store.write(lambda index_writer, writer: index_writer.follow_mirror(index.identity), numbers=False)
        elif index.store.tables.exists():
            with snapshot(index, progress) as (state, records):
                copy_records(state, records, copy)
                missing = state.missing
        with store.reading() as reader:
            tasks = copy.count(reader)
            if not mirror.intact(Row.read(reader, index.identity)):
                raise WriteError(
                    f"{target.mirror} could not be written; there is no backup. Make room, and try again"
                )
    return tasks, missing


def _copy_timestamps(source: SessionDirectory, target: SessionDirectory) -> None:
    """Copy the files `created` and `finished`, with their times."""
    times = {which: source.timestamp_ns(which) for which in source.TIMESTAMP_FILES}
    target.restore(source.command() or "", {which: time for which, time in times.items() if time is not None})
    if times["start"] is None:
        os.unlink(target.timestamp_files["start"])
