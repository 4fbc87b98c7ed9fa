"""A copy of a session as it is at one moment, which is a session itself.

If the store is inside the session's directory its data file is copied, page by page, in one read
transaction: writers go on, and only the pages that they free meanwhile can't be used again.  The
mirror is then written as the copied index has it.  From a store elsewhere the session's records,
and all that these refer to, go into a store of the backup's own.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import InvalidArgument, ReadOnlyError, StoreFull, WriteError
from ..format.frame import RECORD_KEY, values_of
from ..format.schema import PERSISTABLE, Schema
from ..index.entries import Row
from ..index.index_writer import Joining, Ledger
from ..records.sequence import NEXT_KEY
from ..store.store import make_store
from ..system.filesystem import NO_ROOM, is_regular, opened_regular, sync_file
from ..system.temporary import made_whole
from ..tables.interface import META, RECORDS, SCHEMAS, OnProgress, Writer
from ..tables.urls import StoreURL
from .snapshot import Kept, Snapshot, snapshot

if TYPE_CHECKING:
    from ..session.session import Session

_ONE_TRANSACTION: Final = 20_000  # records


class BackedUp(NamedTuple):
    """What a backup holds.

    Attributes:
        tasks: how many tasks the session in it has.
        size: bytes of its files.
        missing: Ns that are in the session's index but have no record, and so are left out; a
            copied store has them left in.
    """

    tasks: int
    size: int
    missing: list[int]


def backup_session(
    session: Session, dest: str | os.PathLike[str], opened: Callable[[str], Session], progress: OnProgress
) -> BackedUp:
    """Make the backup of a session at *dest*, whole or not at all; see `Session.backup`.

    *opened* opens a session that is there.
    """
    directory = SessionDirectory(dest)
    if os.path.realpath(directory.path).startswith(os.path.realpath(session.path) + os.sep):
        raise InvalidArgument(
            f"{directory.path} is inside the session that is to be backed up; choose another place"
        )
    if os.path.lexists(directory.path):
        _require_empty(directory.path)
    if not session.store.read_only:
        session.flush()
    try:
        os.makedirs(os.path.dirname(directory.path), exist_ok=True)
        with made_whole(directory.path) as temporary:
            return _fill(session, temporary, opened, progress)
    except OSError as error:
        raise _told(error, directory.path) from error


def _require_empty(path: str) -> None:
    try:
        there = os.listdir(path)
    except OSError:  # a file, or a directory of somebody else
        there = [path]
    if there or os.path.islink(path):
        raise InvalidArgument(f"{path} is there, and not an empty directory; choose another place for the backup")


def _told(error: OSError, path: str) -> Exception:
    if error.errno in NO_ROOM:
        return StoreFull(f"the backup {path} can't be made: {error.strerror}; nothing is left of it. Make room")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or path
        return ReadOnlyError(f"the backup {path} can't be made: {where}: {error.strerror}; choose another place")
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return InvalidArgument(f"{path} is there, and not an empty directory; choose another place for the backup")
    return WriteError(f"the backup {path} can't be made: {error}; nothing is left of it")


def _fill(session: Session, path: str, opened: Callable[[str], Session], progress: OnProgress) -> BackedUp:
    """Make the backup in the directory *path*."""
    source, target = SessionDirectory(session.path), SessionDirectory(path)
    _, identity = source.store_url()
    tables = session.store.tables
    inside = source.holds(session.store.url)
    place = os.path.join(path, source.DEFAULT_JOBS_DIR)
    if inside:
        there = os.path.realpath(StoreURL(session.store.url).path)
        place = os.path.join(path, os.path.relpath(there, os.path.realpath(session.path)))
    times: dict[str, int] = {}
    target.make(StoreURL.of_path(place), "", anew=False, identity=identity)
    _copy_timestamps(source, target)
    if inside and tables.exists():
        os.makedirs(os.path.dirname(place), exist_ok=True)
        times = _times(there)
        tables.copy_to(place, progress)
        _disown_mirror(place, identity)
    copy = opened(path)
    try:
        missing = []
        if not inside and tables.exists():
            with snapshot(session) as (state, kept):
                _Taking(copy, state, progress).take(kept)
                missing = state.missing
        tasks = len(copy)
        if not copy.info().mirror:
            raise WriteError(f"{target.mirror} could not be written; there is no backup. Make room, and try again")
        copy.close()
    except BaseException:
        copy.store.discard()
        raise
    for name, time in times.items():
        if os.path.exists(os.path.join(place, name)):  # it was last written then, as far as anybody wants to know
            os.utime(os.path.join(place, name), ns=(time, time))
    sync_file(target.mirror)
    size = sum(os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(path) for name in names)
    return BackedUp(tasks, size, missing)


def _times(directory: str) -> dict[str, int]:
    """Return when each file in a directory was last written, in ns since 1970."""
    return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(directory)}


def _copy_timestamps(source: SessionDirectory, target: SessionDirectory) -> None:
    """Copy the files `created` and `finished`, with their times."""
    for name in source.TIMESTAMP_FILES.values():
        old, new = os.path.join(source.path, name), os.path.join(target.path, name)
        if is_regular(old):
            with opened_regular(old) as file, open(new, "wb") as copy:
                shutil.copyfileobj(file, copy)
            shutil.copystat(old, new, follow_symlinks=False)
            sync_file(new)
        elif os.path.exists(new):
            os.unlink(new)


def _disown_mirror(place: str, identity: bytes) -> None:
    """Have the mirror that belongs to the store at *place* written anew: it is not there yet."""

    def unit(writer: Writer) -> None:
        row = Row.read(writer, identity)
        if row is not None:
            row._replace(mark=None).write(writer, identity)

    with make_store(place) as store:
        store.tables.write(unit)


class _Taking:
    """The taking of a snapshot into a new session."""

    def __init__(self, target: Session, state: Snapshot, progress: OnProgress) -> None:
        self._store = target.store
        self._identity = target._index.identity
        self._state = state
        self._progress = progress
        self._done = 0

    def take(self, kept: Iterator[Kept]) -> None:
        """Write all of it."""
        self._store.write(self._begin)
        while some := list(islice(kept, _ONE_TRANSACTION)):
            self._write(some)

    def _begin(self, ledger: Ledger, writer: Writer) -> None:
        writer.put(META, [(NEXT_KEY, RECORD_KEY.pack(self._state.next))])
        schemas = [
            (number.to_bytes(4, "big"), schema.to_bytes() if isinstance(schema, Schema) else schema)
            for number, schema in self._state.schemas.items()
        ]
        writer.put(SCHEMAS, schemas)
        ledger.mend(self._identity)

    def _write(self, some: list[Kept]) -> None:
        """Write some records, and their entries in the session's index."""
        records = sorted((RECORD_KEY.pack(number), record) for number, _, _, _, record in some)
        members = [kept for kept in some if kept[1]]
        joining = Joining(
            [order for _, order, _, _, _ in members],
            [number for number, _, _, _, _ in members],
            [schema for _, _, schema, _, _ in members],
            [self._state_of(kept) for kept in members],
        )
        if joining.orders == joining.numbers:
            joining = joining._replace(numbers=joining.orders)

        def unit(ledger: Ledger, writer: Writer) -> None:
            writer.put(RECORDS, records)
            if joining.orders:
                ledger.join(self._identity, joining)

        self._store.write(unit)
        self._done += len(some)
        self._progress(self._done, self._state.count)

    def _state_of(self, kept: Kept) -> str:
        number, _, schema_number, state, record = kept
        if state is not None:  # of a record that can't be read
            return state
        schema = self._state.schemas[schema_number]
        if not isinstance(schema, Schema) or schema.kind == PERSISTABLE:
            return ""
        return str(values_of(number, record)[2][schema.fields.index("state")])
