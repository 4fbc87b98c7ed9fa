"""A new data file from what can be read of a damaged one.

What the tree of a table still leads to is read through the tree. Of the other pages, those that are
leaf pages of our tables are read, too: a damaged page above them may have been all that led to them. A
record in one proves itself by its checksum, which depends on its N, and of several with one N that of the highest
revision counts. From a page that is free, or may be, a record is taken only if the index or the mirror
knows it: it may be an earlier revision, but no removed task comes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from ....errors import CorruptRecord, CorruptStore, UnknownFormat
from ....format.frame import unseal, values_of
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
        self._used, self._free = check_structure(self._pages, self._note_fault)
        self._contents = LmdbContents(self._pages)
        everything = MetaPage(self._pages.size, os.fstat(fd).st_size // self._pages.size, 0, _EMPTY, _EMPTY)
        self._all = Pages(path, fd, everything)  # also those that the newest state doesn't reach

    def _note_fault(self, fault: str) -> None:
        if fault.startswith(("the tree of tables", "the list of free pages")):
            self._free_known = False
        if fault.startswith(("the tree of tables", f"table '{MEMBERS}'", f"there is no table '{MEMBERS}'")):
            self.members = False

    def _meta(self) -> MetaPage:
        unknown: UnknownFormat | None = None
        try:
            return newest_meta_page(self._path, self._fd)
        except CorruptStore:
            pass
        except UnknownFormat as error:
            unknown = error
        size = os.fstat(self._fd).st_size
        found: list[MetaPage] = []
        for number, page_size in ((0, 4096), *((1, page_size) for page_size in _PAGE_SIZES)):
            with contextlib.suppress(CorruptStore, UnknownFormat):
                found.append(read_meta_page(self._path, self._fd, number, page_size))
        if unknown is not None and not found:
            raise unknown
        self._old = True
        if found:
            return max(found, key=lambda meta: meta.transaction)
        return MetaPage(4096, max(1, size // 4096 - 1), 0, _EMPTY, _EMPTY)

    # -- leaf pages that no tree leads to

    def _stray(self) -> Iterator[tuple[bytes, bool]]:
        """Yield these pages, and whether each is known to be free."""
        if is_holes(os.fstat(self._fd)):
            return
        for number in range(2, self._all.meta.last_page):
            byte, bit = number >> 3, 1 << (number & 7)
            committed = number < self._pages.marks
            if committed and self._used[byte] & bit:
                continue
            with contextlib.suppress(DamagedPage):
                page = self._all.read(number)
                if flags_of(page) & LEAF:
                    yield page, self._free_known and not (committed and not self._free[byte] & bit)

    def stray_items(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """Yield the items in these pages, and whether the page of each is known to be free."""
        for page, free in self._stray():
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
        batch = _Batch(tables)
        count, lost = self._fill_by_keys(batch)
        for table in (LATE, LATE_MEMBERS, META):
            for key, data in self._contents.walk(table):
                batch.put(table, key, data)
        self._fill_sets(batch)
        batch.write()
        message = f"the data file is made again, with the {count:,} records that can be read"
        if lost:
            message += f", {lost:,} of them from pages that nothing led to any more"
        return Salvaged(message, self.members, "data.mdb")

    def _fill_by_keys(self, batch: _Batch) -> tuple[int, int]:
        """Write records, schemas and rows. Return how many records there are, and how many of them only in stray pages."""
        found = Numbers()
        damaged: dict[int, Item] = {}
        revisions: dict[int, int] = {}  # of records that may have a later revision in a stray page
        for key, data in self._contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            revision = _revision(number, data)
            if not revision:
                damaged[number] = key, data
                continue
            found.add(number)
            if self._old:
                revisions[number] = revision
            batch.put(RECORDS, key, data)
        schemas = dict(self._contents.walk(SCHEMAS))
        self._rows = dict(self._contents.walk(SESSIONS))
        known = self._known()
        following = int.from_bytes(self._contents.get(META, b"next N") or b"", "big")
        strays: dict[int, int] = {}
        for key, data, free in self.stray_items():
            number = int.from_bytes(key, "big")
            if len(key) == 4:
                if not _is_schema(key, schemas.get(key, b"")) and _is_schema(key, data):
                    schemas[key] = data
            elif len(key) == 16:
                if not free and key not in self._rows and _is_framed(data):
                    self._rows[key] = data
            elif len(key) == 8 and (self._old or number not in found):
                # An old page may have an earlier revision. For a task that the index knows that is better than
                # no record.
                is_current = not free and (self._free_known or number >= following or not len(known))
                revision = _revision(number, data) if is_current or number in known else 0
                if revision > max(revisions.get(number, 0), strays.get(number, 0)):
                    strays[number] = revision
                    batch.put(RECORDS, key, data)
        for table, items in ((SCHEMAS, schemas), (SESSIONS, self._rows)):
            for key, data in items.items():
                batch.put(table, key, data)
        for number, (key, data) in damaged.items():
            if number not in strays:
                batch.put(RECORDS, key, data)
        lost = sum(number not in found for number in strays)
        return len(found) + lost, lost

    def _known(self) -> Numbers:
        """Return the Ns that the mirror or the index knows."""
        known = Numbers()
        for numbers in self._listed.chunks(_BATCH):
            for number in numbers:
                known.add(number)
        for key in self._contents.keys(MEMBERS):
            for value in self._contents.walk_values(MEMBERS, key):
                number = int.from_bytes(value[:8], "big")
                if number not in known:
                    known.add(number)
        return known

    def _fill_sets(self, batch: _Batch) -> None:
        for table, size in ((STATES, 8), (MEMBERS, _MEMBER_SIZE)):
            for key in self._contents.keys(table):
                for value in self._contents.walk_values(table, key):
                    if len(value) == size and (table == STATES or len(key) == 4):
                        batch.put(table, key, value)
        keys = list(self._contents.keys(MEMBERS))
        if self.members or self._old or len(keys) > 1 or len(self._rows) > 1 or len(self._listed):
            return  # stray members may belong to any of several sessions, or the mirror knows better
        for page, free in self._stray():
            if not free and flags_of(page) & LEAF2 and width_of(page) == _MEMBER_SIZE:
                for value in self._all.fixed(page, _MEMBER_SIZE, ignore):
                    batch.put(MEMBERS, keys[0] if keys else b"\0\0\0\1", value)


class _Batch:
    """Items to be written to new tables, some thousands in a transaction."""

    def __init__(self, tables: Tables | None) -> None:
        self._tables = tables
        self._items: list[tuple[str, bytes, bytes]] = []

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._items.append((table, key, value))
        if len(self._items) >= _BATCH:
            self.write()

    def write(self) -> None:
        items, self._items = self._items, []
        if self._tables is None or not items:
            return

        def unit(writer: Writer) -> None:
            for table, key, value in items:
                if table in SET_TABLES:
                    writer.put_values(table, key, [value])
                else:
                    writer.put(table, [(key, value)])

        self._tables.write(unit)


def _revision(number: int, record: bytes) -> int:
    """Return the revision of a record, 0 if it can't be read."""
    try:
        return values_of(number, record)[1]
    except CorruptRecord:
        return 0


def _is_schema(key: bytes, data: bytes) -> bool:
    try:
        Schema.from_item(key, data)
    except CorruptRecord:
        return False
    return True


def _is_framed(data: bytes) -> bool:
    try:
        unseal(0, data)
    except CorruptRecord:
        return False
    return True


def schemas_in(directory: str) -> Iterator[Item]:
    """Yield the schemas in leaf pages of the data file in *directory* that no tree leads to; a schema never changes."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        for key, data, _ in Salvage(path, file.fileno(), Numbers()).stray_items():
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
