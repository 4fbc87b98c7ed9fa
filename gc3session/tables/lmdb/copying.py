"""Copies of an environment's data file: page by page, or compacted and put in place of the original.

LMDB can copy, too (mdb_env_copy2), but when it compacts it begins the transaction numbers again, and version
0.9.36 dies by SIGSEGV if a set table is large. Here both kinds of copy keep the transaction number of
the state that they are a copy of. That makes it safe to replace a data file: `lock.mdb` still holds the number of
the last transaction, and what a program knows of the state with a certain number stays true.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Final

import lmdb

from ...errors import CorruptStore
from ...system.filesystem import KnownFile, give_owner, opened_directory, path_of, require_room, sync, write_error
from ...system.temporary import delete_tree
from ..interface import Compacted, OnProgress
from .data_file.meta import MetaPage, meta_pages_of, newest_meta_page, opened_data_file
from .data_file.verification import mark_trusted
from .environment import COMPACTED, Environment, compacted_name, unmap_pages
from .errors import translated
from .locks import exclusive_lock
from .opening import Transaction, path_for_lmdb

_PIECE: Final = 8 << 20  # bytes copied at once
_ITEMS: Final = 1000  # copied at once
_TRANSACTION: Final = 32 << 20  # bytes of items written in one transaction
_SPARE_MAP: Final = 64 << 20  # bytes of a map beyond what is expected to be written
_Item = tuple[bytes, bytes] | tuple[memoryview, memoryview]


# -- page by page


def copy_data(env: Environment, transaction: int, target: str, progress: OnProgress) -> bool:
    """Write the state of a transaction, which a reader holds, to the new file *target*, durably.

    Return False, with nothing written, if its meta page has been overwritten already. The other pages
    of the state are not overwritten as long as the reader holds it, so they are copied as they are.
    """
    meta = next((meta for meta in meta_pages_of(env.data) if meta.transaction == transaction), None)
    if meta is None:
        return False
    require_room(os.path.dirname(target), meta.size, "the copy")
    with (
        open(target, "xb", buffering=0) as file,
        opened_data_file(env.data) as source,
    ):  # "x": never through a link
        out = file.fileno()
        position = 2 * meta.page_size
        os.lseek(out, position, os.SEEK_SET)
        while position < meta.size:
            copied = os.sendfile(out, source.fileno(), position, min(_PIECE, meta.size - position))
            if not copied:  # the last pages were freed before they were ever written
                break
            position += copied
            progress(position, meta.size)
        os.truncate(out, meta.size)
        _write_meta_pages(out, meta)
        os.fsync(out)
        mark_trusted(os.path.dirname(target))
        progress(meta.size, meta.size)
    return True


def _write_meta_pages(fd: int, meta: MetaPage) -> None:
    """Write *meta* as both meta pages of a file that nobody has open.

    Transaction T has meta page T modulo 2, so the other page gets T - 1. When LMDB opens the file it takes the
    page with the greater number.
    """
    for number in (0, 1):
        transaction = meta.transaction - (number != meta.transaction & 1)
        page = meta._replace(transaction=transaction).to_bytes(number)
        os.pwrite(fd, page, number * meta.page_size)


# -- compacted


def compact(env: Environment, progress: OnProgress) -> Compacted:
    """Write a new data file without the free pages of the old one, and put it in the old one's place.

    The environment is closed meanwhile; the next transaction opens it again. If the process is killed,
    the old file or the new one is there, whole.

    Raise StoreInUse if another process has the environment open, StoreFull if there is no room. Then
    nothing has changed.
    """
    with env.idle():
        env.opened()  # which checks it, and makes `lock.mdb` if that is missing
        env.close()
        try:
            with exclusive_lock(env.path):
                try:
                    return _replace(env, progress)
                finally:
                    env.data_file = None  # also where the renaming has failed after it was done
        except lmdb.Error as error:
            raise translated(error, env.path) from error
        except OSError as error:
            message, remedy = f"{env.path} can't be compacted, and nothing was changed", "ask its owner to do it"
            raise write_error(error, message, remedy) from error


def _replace(env: Environment, progress: OnProgress) -> Compacted:
    former = env.data_file
    assert former is not None
    before = os.fstat(former.fd)
    temporary = compacted_name(env.path)
    delete_tree(temporary)
    os.mkdir(temporary)
    try:
        with opened_directory(env.path) as place, opened_directory(temporary) as made:
            out = os.open("data.mdb", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=made)
            with closing(KnownFile(out, os.path.join(temporary, "data.mdb"))) as new:
                give_owner(path_of(new.fd, new.path), path_of(former.fd, former.path))
                with (
                    path_for_lmdb(env.path, place, former, None) as source,
                    path_for_lmdb(temporary, made, new, None) as target,
                ):
                    inodes = [file.status.st_ino for file in (former, new)]
                    transaction = _fill(env, source, target, inodes, progress)
                meta = newest_meta_page(new.path, new.fd)._replace(transaction=transaction)
                _write_meta_pages(new.fd, meta)
                os.truncate(new.fd, meta.size)
                os.utime(new.fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of the last commit
                os.fsync(new.fd)
            os.rename("data.mdb", "data.mdb", src_dir_fd=made, dst_dir_fd=place)
        with contextlib.suppress(OSError):  # those who know the former file must open the session again then
            os.utime(former.fd, ns=(COMPACTED, COMPACTED))
        mark_trusted(env.path)
    finally:
        delete_tree(temporary)
    sync(env.path)
    return Compacted(before.st_size, meta.size)


def _map_size(size: int) -> int:
    return (size + _SPARE_MAP) // 4096 * 4096


def _fill(env: Environment, source: str, target: str, inodes: list[int], progress: OnProgress) -> int:
    """Write all items of the data file in the directory *source* to the empty one in *target*.

    The *inodes* are those of the two files. Return the number of the last transaction that was read.
    """
    former = env.data_file
    assert former is not None
    size = _map_size(os.fstat(former.fd).st_size)
    with (
        lmdb.open(source, map_size=size, create=False, readonly=True, lock=False) as old_env,
        old_env.begin() as reader,
        old_env.begin(buffers=True) as lean_reader,  # which takes no memory for the items, but twice the time
    ):
        meta = newest_meta_page(former.path, former.fd)
        used = meta.used
        require_room(env.path, used, "the compacted store")
        number: int = reader.id()
        limit = max(_TRANSACTION, 2 * used // number)  # so that the numbers of its transactions stay below
        large = reader.stat()["overflow_pages"] > 0
        items = (lean_reader if large else reader).cursor().iternext()
        # Nobody uses the new file yet; in the end all of it is synced.
        with lmdb.open(target, map_size=_map_size(2 * used), lock=False, sync=False, lib_version=0) as new_env:
            _copy_items(items, new_env, limit, inodes, progress, used)
            if new_env.stat()["entries"] != reader.stat()["entries"]:
                raise CorruptStore(
                    f"{env.path} is damaged and can't be read to its end; nothing was changed. Restore it from a backup"
                )
    progress(used, used)
    return number


def _copy_items(
    items: Iterator[_Item],
    new: lmdb.Environment,
    limit: int,
    inodes: list[int],
    progress: OnProgress,
    used: int,
) -> None:
    """Write items to *new*, at most some *limit* bytes in a transaction.

    The *inodes* are those of the two files, whose pages are unmapped after each transaction.
    """
    done = uncommitted = 0
    writer: Transaction = new.begin(write=True)
    try:
        while chunk := list(islice(items, _ITEMS)):
            for part in _parts(chunk, limit):
                if uncommitted > limit:
                    writer.commit()
                    for inode in inodes:
                        unmap_pages(inode)
                    uncommitted, writer = 0, new.begin(write=True)
                writer.cursor().putmulti(part, append=True)
                size = _size(part)
                done, uncommitted = done + size, uncommitted + size
                progress(min(done, used), used)
    except BaseException:
        writer.abort()
        raise
    writer.commit()


def _size(items: list[_Item]) -> int:
    return sum(len(key) + len(value) for key, value in items)


def _parts(items: list[_Item], limit: int) -> Iterator[list[_Item]]:
    """Yield all items at once, or one by one if together they have more than *limit* bytes."""
    if _size(items) <= limit:
        yield items
    else:
        yield from ([item] for item in items)
