"""Copies of an LMDB environment's data file: as it is, or compacted and put in its place.

LMDB copies, too (mdb_env_copy2), but it lets go of the transaction number when it compacts, and
version 0.9.36 then dies by SIGSEGV where a set table is large.  Here a copy of either kind has
the number of the state that it is a copy of, on both meta pages.  That makes it safe to replace
a data file: `lock.mdb` goes on saying the number of the last transaction, and whatever a program
has noted as valid for a number stays valid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import lmdb

from ...errors import CorruptStore, ReadOnlyError, StoreFull, UnknownFormat, WriteError
from ...system.filesystem import NO_ROOM, require_room, sync_directory
from ...system.temporary import delete_tree
from ..interface import PLAIN_TABLES, SET_TABLES, Compacted, OnProgress
from .environment import Environment, Transaction, compacted_name, translated
from .gate import committed_state, states
from .memory import unmap_pages
from .origin import mark_as_ours
from .pages import State, meta_page
from .sharing import alone_with

_PIECE: Final = 8 << 20  # bytes copied at once
_ITEMS: Final = 1000  # copied at once
_TRANSACTION: Final = 32 << 20  # bytes of items that are written in one
_SPARE: Final = 64 << 20  # bytes of a map beyond what is expected
_Item = tuple[bytes, bytes] | tuple[memoryview, memoryview]
_TABLES: Final = {name.encode(): name in SET_TABLES for name in (*PLAIN_TABLES, *SET_TABLES)}  # whether of sets


# -- as it is


def copy_data(env: Environment, transaction: int, target: str, progress: OnProgress) -> bool:
    """Write the state of a transaction number, which a reader holds, to the new file *target*, durably.

    Return False, with nothing written, if its meta page has been overwritten already.  Pages
    that the state uses are not, as long as the reader is there: they are copied as they are.
    """
    state = next((state for state in states(env.data) if state.transaction == transaction), None)
    if state is None:
        return False
    require_room(os.path.dirname(target), state.size, "the copy")
    with _new_file(target) as out, _opened(env.data) as source:
        position = 2 * state.page_size
        os.lseek(out, position, os.SEEK_SET)
        while position < state.size:
            copied = os.sendfile(out, source, position, min(_PIECE, state.size - position))
            if not copied:  # the last pages were freed before they were ever written
                break
            position += copied
            progress(position, state.size)
        os.truncate(out, state.size)
        _write_state(out, state)
        os.fsync(out)
        mark_as_ours(os.path.dirname(target))
        progress(state.size, state.size)
    return True


def _write_state(fd: int, state: State) -> None:
    """Make both meta pages of a file that nobody has open describe a state.

    LMDB looks for a transaction on the page of its number modulo 2, and when it opens the file takes
    that of the greater number.
    """
    for number in (0, 1):
        before = number != state.transaction & 1
        page = meta_page(number, state._replace(transaction=state.transaction - before))
        os.pwrite(fd, page, number * state.page_size)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    """Give a descriptor of a new file; if the block raises, the file is deleted."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield fd
    except BaseException:
        if os.path.lexists(path):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


# -- compacted


def compact(env: Environment, progress: OnProgress) -> Compacted:
    """Write the data file anew without its free pages, and put it in the place of the old one.

    This process has no transaction open meanwhile, and closes the environment; the next
    transaction opens it again.  Whatever ends the process leaves the old file or the new one.

    Raise StoreInUse if another process has the environment open, StoreFull if there is no room:
    nothing has changed then.
    """
    with env.alone():
        env.opened()  # so it is sound, and `lock.mdb` is there
        env.drop()
        try:
            with alone_with(env.path):
                return _replace(env, progress)
        except lmdb.Error as error:
            raise translated(error, env.path) from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreFull(
                    f"{env.path}: {error.strerror} while the store was written anew; nothing was changed. Make room,"
                    " and compact it again"
                ) from error
            raise WriteError(f"{env.path} can't be compacted: {error}; nothing was changed") from error


def _replace(env: Environment, progress: OnProgress) -> Compacted:
    before = os.stat(env.data)
    temporary = compacted_name(env.path)
    delete_tree(temporary)
    os.mkdir(temporary)
    try:
        path = os.path.join(temporary, "data.mdb")
        with _new_file(path) as out:
            give_owner(path, env.data)
            transaction = _fill(env, temporary, progress)
            state = committed_state(path)._replace(transaction=transaction)
            _write_state(out, state)
            os.truncate(out, state.size)
            os.utime(out, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of the last commit
            os.fsync(out)
        os.rename(path, env.data)
        mark_as_ours(env.path)
    finally:
        delete_tree(temporary)
    sync_directory(env.path)
    return Compacted(before.st_size, state.size)


def _map_size(size: int) -> int:
    return (size + _SPARE) // 4096 * 4096


def give_owner(new: str, path: str) -> None:
    """Give a new file the owner and the rights of *path*, whose place it is to take."""
    status = os.stat(path)
    try:
        os.chown(new, status.st_uid, status.st_gid)
    except PermissionError as error:
        raise ReadOnlyError(
            f"{path} belongs to another user, to whom the new file can't be given: have its owner do this"
        ) from error
    shutil.copystat(path, new)


def _fill(env: Environment, target: str, progress: OnProgress) -> int:
    """Write all items to the empty file in the directory *target*; return the number of the last transaction."""
    size = _map_size(os.stat(env.data).st_size)
    source = lmdb.open(env.path, map_size=size, create=False, readonly=True, lock=False, max_dbs=16)
    try:
        with source.begin() as reader:
            names = set(reader.cursor().iternext(values=False))
        if names != _TABLES.keys():
            raise UnknownFormat(
                f"{env.path} has other tables than a store of this format, so it isn't compacted: upgrade gc3session"
            )
        tables = {
            name: source.open_db(name, create=False, dupsort=sets, dupfixed=sets) for name, sets in _TABLES.items()
        }
        with source.begin() as reader, source.begin(buffers=True) as viewer:
            _copy_tables(env, reader, viewer, tables, target, progress)
            number: int = reader.id()
            return number
    finally:
        source.close()


def _copy_tables(
    env: Environment,
    reader: Transaction,
    viewer: Transaction,
    tables: Mapping[bytes, Any],
    target: str,
    progress: OnProgress,
) -> None:
    """Write all items that *reader* sees; the numbers of the transactions don't go beyond its own.

    The *viewer* sees the same and takes no memory for the items, but twice the time.
    """
    state = committed_state(env.data)
    used = used_pages(state, reader, tables.values()) * state.page_size
    require_room(env.path, used, "the compacted store")
    new = lmdb.open(
        target,
        lock=False,
        map_size=_map_size(2 * used),
        max_dbs=16,
        sync=False,  # of the file that nobody uses yet; in the end all of it is synced
        lib_version=0,
    )
    try:
        limit = max(_TRANSACTION, 2 * used // reader.id())
        inodes = [os.stat(os.path.join(directory, "data.mdb")).st_ino for directory in (env.path, target)]
        handles = _copy_items(reader, viewer, tables, new, limit, inodes, progress, used)
        with new.begin() as copy:
            for name, table in tables.items():
                if copy.stat(handles[name])["entries"] != reader.stat(table)["entries"]:
                    raise CorruptStore(
                        f"{env.path}: the table {name.decode()} is damaged, it could not be read whole; nothing was"
                        " changed. Restore the store from a backup"
                    )
    finally:
        new.close()
    progress(used, used)


def _copy_items(
    reader: Transaction,
    viewer: Transaction,
    tables: Mapping[bytes, Any],
    new: lmdb.Environment,
    limit: int,
    inodes: list[int],
    progress: OnProgress,
    used: int,
) -> dict[bytes, Any]:
    """Write the items of all tables to *new*, at most *limit* bytes in a transaction; return its handles.

    The *viewer* reads the tables with values that LMDB has put on pages of their own.  The *inodes*
    are of the two files: what has been read and written of them is let go of.
    """
    handles: dict[bytes, Any] = {}
    done = uncommitted = 0
    writer: Transaction = new.begin(write=True)
    try:
        for name, table in tables.items():
            handles[name] = new.open_db(name, txn=writer, dupsort=_TABLES[name], dupfixed=_TABLES[name])
            large = reader.stat(table)["overflow_pages"] > 0
            items = (viewer if large else reader).cursor(table).iternext()
            while some := list(islice(items, _ITEMS)):
                for part in _parts(some, limit):
                    if uncommitted > limit:
                        writer.commit()
                        for inode in inodes:
                            unmap_pages(inode)
                        uncommitted, writer = 0, new.begin(write=True)
                    writer.cursor(handles[name]).putmulti(part, append=True)
                    size = _size(part)
                    done, uncommitted = done + size, uncommitted + size
                    progress(min(done, used), used)
    except BaseException:
        writer.abort()
        raise
    writer.commit()
    return handles


def _size(items: list[_Item]) -> int:
    return sum(len(key) + len(value) for key, value in items)


def _parts(items: list[_Item], limit: int) -> Iterator[list[_Item]]:
    """Give all items at once, or one by one if they are of more than *limit* bytes."""
    if _size(items) <= limit:
        yield items
    else:
        yield from ([item] for item in items)


def used_pages(state: State, reader: Transaction, tables: Iterable[Any]) -> int:
    """Return how many pages are in use in *state*, which *reader* sees; the others are free.

    LMDB counts them itself, and may be some pages off after a key with many values was deleted.
    """
    pages = 2 + state.free.pages + state.main.pages
    for table in tables:
        stat = reader.stat(table)
        pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages
