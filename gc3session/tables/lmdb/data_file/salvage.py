"""A new data file from what can be read of a damaged one.

What the tree of a table still leads to is read through the tree. For what it doesn't, because a page or a
key is damaged, all leaf pages of the file are read. A record in one proves itself by its checksum, which
depends on its N, and of several with one N that of the highest revision counts. From a page that is free, or
may be, a record is taken only if the index or the mirror knows it: it may be an earlier revision, but no
removed task comes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice

from ....errors import CorruptRecord, CorruptStore, UnknownFormat
from ....format.frame import seal, values_of
from ....format.schema import Schema
from ....system.filesystem import give_owner, is_holes, sync, temporary_name
from ....system.number_set import Numbers
from ....system.temporary import delete_leftovers, delete_tree
from ...interface import (
    LATE,
    LATE_MEMBERS,
    MEMBERS,
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    SET_TABLES,
    STATES,
    Item,
    Salvaged,
    Tables,
    Writer,
)
from .contents import LmdbContents, ignore
from .meta import MetaPage, Tree, newest_meta_page, opened_data_file, read_meta_page
from .pages import DUP, LEAF, LEAF2, SUB, DamagedPage, Pages, flags_of, width_of
from .structure import check_structure
from .verification import mark_trusted

_BATCH = 20_000  # items
_PAGE_SIZES = (4096, 16384, 65536, 8192, 32768, 2048, 1024, 512)
_MEMBER_SIZE = 20  # bytes
_EMPTY = Tree(0, 0, 0, 0, 0, 0, 0, None)


class Salvage:
    """What can be read of a damaged data file.

    Args:
        path: the path of the file, for messages.
        fd: the open file.
        listed: the Ns that the mirror lists.

    Attributes:
        members: whether the table of members could be read whole.
    """

    def __init__(self, path: str, fd: int, listed: Numbers) -> None:
        self._path = path
        self._fd = fd
        self._listed = listed
        self._old = False  # whether the newest meta page is lost, and what its transaction has changed with it
        self._pages = Pages(path, fd, self._meta())
        self._free_known = self.members = not self._old
        self._count = self._lost = 0  # records that can be read, and those of them that no tree leads to
        self._free = check_structure(self._pages, self._note_fault)
        self._contents = LmdbContents(self._pages)
        everything = MetaPage(self._pages.size, os.fstat(fd).st_size // self._pages.size, 0, _EMPTY, _EMPTY)
        self._all = Pages(path, fd, everything)  # also those that the newest state doesn't reach

    def _note_fault(self, fault: str) -> None:
        if fault.startswith(("the tree of tables", "the list of free pages")):
            self._free_known = False
        if fault.startswith(("the tree of tables", f"table '{MEMBERS}'", f"there is no table '{MEMBERS}'")):
            self.members = False

    def _meta(self) -> MetaPage:
        """Return the newest meta page that can be read; without one no tree is known."""
        try:
            return newest_meta_page(self._path, self._fd)
        except (CorruptStore, UnknownFormat) as error:
            self._old = True
            found = [MetaPage(4096, max(1, os.fstat(self._fd).st_size // 4096 - 1), -1, _EMPTY, _EMPTY)]
            for number, page_size in ((0, 4096), *((1, page_size) for page_size in _PAGE_SIZES)):
                with contextlib.suppress(CorruptStore, UnknownFormat):
                    found.append(read_meta_page(self._path, self._fd, number, page_size))
            if isinstance(error, UnknownFormat) and len(found) == 1:
                raise
            return max(found, key=lambda meta: meta.transaction)

    # -- all leaf pages, whether a tree leads to them or not

    def _leaves(self) -> Iterator[tuple[bytes, bool]]:
        """Yield these pages, and whether each is known to be free."""
        if is_holes(os.fstat(self._fd)):
            return
        for number in range(2, self._all.meta.last_page):
            with contextlib.suppress(DamagedPage):
                page = self._all.read(number)
                if flags_of(page) & LEAF:
                    # A page after the last one was written by a transaction that was not committed.
                    free = number >= self._pages.marks or self._free[number >> 3] & 1 << (number & 7)
                    yield page, bool(self._free_known and free)

    def items_of_leaves(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """Yield the items in these pages, and whether the page of each is known to be free."""
        for page, free in self._leaves():
            if flags_of(page) & LEAF2:
                continue
            for node in self._all.nodes(page, ignore):
                if not node.flags & (SUB | DUP):
                    with contextlib.suppress(DamagedPage):
                        yield node.key, self._all.value(node), free

    # -- filling a new store

    def fill(self, tables: Tables | None) -> Salvaged:
        """Write all that can be read to new tables; with None only count it."""
        version = self._contents.get(META, b"format")
        if version is not None and version != b"\x01" and len(version) == 1 and version[0] < 0x80:
            raise UnknownFormat(f"{self._path} has the format version {version[0]}; upgrade gc3session")
        items = self._items()
        while some := list(islice(items, _BATCH)):
            if tables is not None:
                tables.write(partial(_put, some))
        message = f"the data file is made again, with the {self._count:,} records that can be read"
        if self._lost:
            message += f", {self._lost:,} of them found though nothing led to them any more"
        return Salvaged(message, self.members, "data.mdb")

    def _items(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield table, key and value of all that can be read; of two items with one key the later one counts."""
        contents = self._contents
        found = Numbers()
        damaged: dict[int, Item] = {}
        revisions: dict[int, int] = {}  # of records that may have a later revision in a page that no tree leads to
        for key, data in contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            revision = _revision(number, data)
            if not revision:
                damaged[number] = key, data
                continue
            found.add(number)
            if self._old:
                revisions[number] = revision
            yield RECORDS, key, data
        schemas, rows = dict(contents.walk(SCHEMAS)), dict(contents.walk(SESSIONS))
        members = ((key, value) for key in contents.keys(MEMBERS) for value in contents.walk_values(MEMBERS, key))
        known = Numbers(chain(self._listed, (int.from_bytes(value[:8], "big") for _, value in members)))
        following = int.from_bytes(contents.get(META, b"next N") or b"", "big")
        strays: dict[int, int] = {}
        for key, data, free in self.items_of_leaves():
            number = int.from_bytes(key, "big")
            if len(key) == 4:
                if not _is_schema(key, schemas.get(key, b"")) and _is_schema(key, data):
                    schemas[key] = data
            elif len(key) == 16:
                if not free and key not in rows and seal(0, data[4:]) == data:
                    rows[key] = data
            elif len(key) == 8 and (self._old or number not in found):
                # An old page may have an earlier revision. For a task that the index knows that is better than
                # no record.
                is_current = not free and (self._free_known or number >= following or not len(known))
                revision = _revision(number, data) if is_current or number in known else 0
                if revision > max(revisions.get(number, 0), strays.get(number, 0)):
                    strays[number] = revision
                    yield RECORDS, key, data
        self._lost = sum(number not in found for number in strays)
        self._count = len(found) + self._lost
        yield from ((RECORDS, *item) for number, item in damaged.items() if number not in strays)
        yield from ((SCHEMAS, *item) for item in schemas.items())
        yield from ((SESSIONS, *item) for item in rows.items())
        for table in (LATE, LATE_MEMBERS, META):
            yield from ((table, *item) for item in contents.walk(table))
        for table, size in ((STATES, 8), (MEMBERS, _MEMBER_SIZE)):
            for key in contents.keys(table):
                yield from (
                    (table, key, value) for value in contents.walk_values(table, key) if len(value) == size
                )
        yield from self._stray_members(list(contents.keys(MEMBERS)) or [b"\0\0\0\1"], len(rows))

    def _stray_members(self, keys: list[bytes], rows: int) -> Iterator[tuple[str, bytes, bytes]]:
        if self.members or self._old or len(keys) > 1 or rows > 1 or len(self._listed):
            return  # they may belong to any of several sessions, or the mirror knows better
        for page, free in self._leaves():
            if not free and flags_of(page) & LEAF2 and width_of(page) == _MEMBER_SIZE:
                yield from ((MEMBERS, keys[0], value) for value in self._all.fixed(page, _MEMBER_SIZE, ignore))


def _put(items: list[tuple[str, bytes, bytes]], writer: Writer) -> None:
    for table, key, value in items:
        if table in SET_TABLES:
            writer.put_values(table, key, [value])
        else:
            writer.put(table, [(key, value)])


def _revision(number: int, record: bytes) -> int:
    """Return the revision of a record, 0 if it can't be read."""
    try:
        return values_of(number, record)[1]
    except CorruptRecord:
        return 0


def _is_schema(key: bytes, data: bytes) -> bool:
    try:
        return bool(Schema.from_item(key, data))
    except CorruptRecord:
        return False


def schemas_in(directory: str) -> Iterator[Item]:
    """Yield all schemas in leaf pages of the data file in *directory*, used or free; a schema never changes."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        for key, data, _ in Salvage(path, file.fileno(), Numbers()).items_of_leaves():
            if _is_schema(key, data):
                yield key, data


def readable(directory: str, listed: Numbers) -> Salvaged:
    """Return what can be read of the data file in *directory*; nothing is written."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        return Salvage(path, file.fileno(), listed).fill(None)


def rebuild(
    directory: str,
    make: Callable[[str], Tables],
    keep: Callable[[str], None],
    listed: Numbers,
    finish: Callable[[Tables, Salvaged], None],
) -> Salvaged:
    """Replace the data file in *directory* by a new one with all that can be read of the old one.

    The new file takes its place by one renaming. Nobody may have the environment open meanwhile.

    Args:
        directory: the directory of the environment.
        make: returns the tables at a path.
        keep: called with the path of the old file, which it gives a second name.
        listed: the Ns that the mirror lists.
        finish: called with the new tables, which it repairs before they take their place.
    """
    path = os.path.join(directory, "data.mdb")
    delete_leftovers(directory)
    temporary = temporary_name(directory)
    try:
        with contextlib.closing(make(temporary)) as tables, opened_data_file(path) as file:
            found = Salvage(path, file.fileno(), listed).fill(tables)
            tables.write(lambda writer: None)  # so that they are made even if nothing was found
            finish(tables, found)
        new = os.path.join(temporary, "data.mdb")
        give_owner(new, path)
        keep(path)
        lock = os.path.join(directory, "lock.mdb")
        if os.path.lexists(lock):
            os.unlink(lock)
        os.rename(new, path)
        sync(directory)
        mark_trusted(directory)
    finally:
        delete_tree(temporary)
    return found
