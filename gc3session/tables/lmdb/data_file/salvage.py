"""A new data file from what can be read of a damaged one.

What the tree of a table still leads to is read through the tree. To find records that no tree leads
to any more, every page of the file is read; a record proves itself by its checksum, which depends on
its N. From a page that is free, or may be, a record is taken only if the index or the mirror knows
it: the record may be an earlier revision, but no removed task comes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from struct import Struct
from struct import error as struct_error
from sys import byteorder

from ....errors import CorruptStore, UnknownFormat
from ....format.validation import Fault, parse_record, parse_schema, unframe
from ....system.filesystem import give_owner, is_holes, sync, temporary_name
from ....system.number_set import Numbers
from ....system.temporary import delete_leftovers, delete_tree
from ...interface import (
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
from .pages import BIG, DUP, LEAF, LEAF2, SUB, DamagedPage, Pages, flags_of, width_of
from .structure import check_structure, trees_of
from .verification import mark_trusted
from .walk import Walk

_BATCH = 20_000  # items
_PIECE = 1 << 22  # bytes read at once
_SIZE, _KIND, _NUMBER = Struct("=HH"), Struct("=HH"), Struct("=Q")
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
        faults: list[str] = []
        with contextlib.suppress(struct_error):
            check_structure(self._pages, lambda fault: faults.append(fault) if len(faults) < 10_000 else None)
        self._contents = LmdbContents(self._pages)
        self._free_known = not self._old and not any(
            "free" in fault or "tree of tables" in fault for fault in faults
        )
        self.members = not self._old and not any(
            "members" in fault or "tree of tables" in fault for fault in faults
        )

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

    # -- pages that no tree leads to

    def _stray(self) -> Iterator[tuple[bytes, bool]]:
        """Yield the leaf pages that no tree leads to, and whether each is known to be free."""
        pages = self._pages
        used = pages.new_marks()
        for tree in (pages.meta.main, pages.meta.free if self._free_known else _EMPTY):
            for page, _, _ in Walk(pages, tree, used, ignore):
                del page
        for name, tree in trees_of(pages, ignore).items():
            for page, _, _ in Walk(pages, tree, used, ignore):
                for node in pages.nodes(page, ignore) if name in SET_TABLES else ():
                    if node.flags == SUB | DUP and len(node.data) == 48:
                        for _ in Walk(pages, Tree.from_bytes(node.data), used, ignore):
                            pass
        free = pages.new_marks()
        if self._free_known:
            self._mark_free(free)
        if is_holes(os.fstat(self._fd)):
            return
        everything = MetaPage(pages.size, os.fstat(self._fd).st_size // pages.size, 0, _EMPTY, _EMPTY)
        self._all = Pages(self._path, self._fd, everything)
        for number in range(2, everything.last_page):
            if number < pages.marks and used[number >> 3] & 1 << (number & 7):
                continue
            try:
                page = self._all.read(number)
            except DamagedPage:
                continue
            if flags_of(page) & LEAF:
                yield page, number < pages.marks and bool(free[number >> 3] & 1 << (number & 7))

    def _mark_free(self, used: bytearray) -> None:
        pages = self._pages
        marks = Walk(pages, _EMPTY, used, ignore)
        for page, _, _ in Walk(pages, pages.meta.free, pages.new_marks(), ignore):
            for node in pages.nodes(page, ignore):
                with contextlib.suppress(DamagedPage):
                    data = pages.value(node)
                    for at in range(8, len(data) - 7, 8):
                        marks.use(int.from_bytes(data[at : at + 8], byteorder))

    def _stray_nodes(self) -> Iterator[tuple[bytes, bytes, bool]]:
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
        self._check_version()
        batch = _Batch(tables)
        known = self._known()
        schemas = dict(self._contents.walk(SCHEMAS))
        found = Numbers()
        damaged: dict[bytes, bytes] = {}
        revisions: dict[int, int] = {}
        records = lost = 0
        for key, data in self._contents.walk(RECORDS):
            number = int.from_bytes(key, "big")
            try:
                revision = parse_record(number, data).revision
            except Fault:
                damaged[key] = data
                continue
            found.add(number)
            if self._old:
                revisions[number] = revision
            batch.put(RECORDS, key, data)
            records += 1
        rows = dict(self._contents.walk(SESSIONS))
        following = int.from_bytes(self._contents.get(META, b"next N") or b"", "big")
        strays: dict[int, int] = {}
        for key, data, free in self._stray_nodes():
            if len(key) == 16 and not free and key not in rows and _is_framed(0, data):
                rows[key] = data
            elif len(key) == 8:
                number = int.from_bytes(key, "big")
                try:
                    revision = parse_record(number, data).revision
                except Fault:
                    continue
                if number in found and revision <= revisions.get(number, 1 << 63):
                    continue
                # An old page may have an earlier revision. For a task that the index knows that is better than
                # no record.
                sure = self._free_known and not free
                if not (sure or number in known or (not free and (number >= following or not len(known)))):
                    continue
                if revision > strays.get(number, 0):
                    lost += number not in strays and number not in found
                    strays[number] = revision
                    batch.put(RECORDS, key, data)
        lost += self._fill_from_remains(batch, known, found, strays)
        for key, data in _schemas(self._path, self._fd, self._pages.size):
            if not _is_framed(int.from_bytes(key, "big"), schemas.get(key, b"")):
                schemas[key] = data
        for key, data in damaged.items():
            if int.from_bytes(key, "big") not in strays:
                batch.put(RECORDS, key, data)
        for key, data in schemas.items():
            batch.put(SCHEMAS, key, data)
        for key, data in rows.items():
            batch.put(SESSIONS, key, data)
        for table in ("late", "late_members", META):
            for key, data in self._contents.walk(table):
                batch.put(table, key, data)
        self._fill_members(batch, len(rows))
        batch.write()
        message = f"the data file is made again, with the {records + lost:,} records that can be read"
        if lost:
            message += f", {lost:,} of them from pages that nothing led to any more"
        return Salvaged(message, self.members, "data.mdb")

    def _fill_from_remains(self, batch: _Batch, known: Numbers, found: Numbers, strays: dict[int, int]) -> int:
        """Write records that are known, but are in no page that can be read as one. Return how many there are."""
        wanted = {
            number
            for numbers in known.chunks(_BATCH)
            for number in numbers
            if number not in found and number not in strays
        }
        if not wanted:
            return 0
        best: dict[int, int] = {}
        for key, data in _remains(self._fd, self._pages.size, 8):
            number = int.from_bytes(key, "big")
            if number in wanted:
                try:
                    revision = parse_record(number, data).revision
                except Fault:
                    continue
                if revision > best.get(number, 0):
                    best[number] = revision
                    batch.put(RECORDS, key, data)
        strays.update(best)
        return len(best)

    def _check_version(self) -> None:
        version = self._contents.get(META, b"format")
        if version is not None and version != b"\x01" and len(version) == 1 and version[0] < 0x80:
            raise UnknownFormat(f"{self._path} has the format version {version[0]}; upgrade gc3session")

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

    def _fill_members(self, batch: _Batch, sessions: int) -> None:
        for key in self._contents.keys(STATES):
            for value in self._contents.walk_values(STATES, key):
                if len(value) == 8:
                    batch.put(STATES, key, value)
        keys = [key for key in self._contents.keys(MEMBERS) if len(key) == 4]
        for key in keys:
            for value in self._contents.walk_values(MEMBERS, key):
                if len(value) == _MEMBER_SIZE:
                    batch.put(MEMBERS, key, value)
        if self.members or self._old or len(keys) > 1 or sessions > 1 or len(self._listed):
            return  # stray members may belong to any of several sessions, or the mirror knows better
        key = keys[0] if keys else b"\0\0\0\1"
        for page, free in self._stray():
            if not free and flags_of(page) & LEAF2 and width_of(page) == _MEMBER_SIZE:
                for value in self._all.fixed(page, _MEMBER_SIZE, ignore):
                    batch.put(MEMBERS, key, value)


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


def _is_framed(number: int, data: bytes) -> bool:
    try:
        unframe(number, data)
    except Fault:
        return False
    return True


def schemas_in(directory: str) -> Iterator[Item]:
    """Yield all schemas in any page of the data file in *directory*, used or free; a schema never changes."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        yield from _schemas(path, file.fileno(), newest_meta_page(path, file.fileno()).page_size)


def _schemas(path: str, fd: int, page_size: int) -> Iterator[Item]:
    for key, data in _remains(fd, page_size, 4):
        try:
            parse_schema(key, data)
        except Fault:
            continue
        yield key, data


def _remains(fd: int, page_size: int, key_size: int) -> Iterator[Item]:
    """Yield what looks like a node with a key of that size, anywhere in the file, damaged pages included.

    What LMDB has freed or moved stays in the file until something else is written there.
    """
    if is_holes(os.fstat(fd)):
        return
    kinds = [(flags, _KIND.pack(flags, key_size)) for flags in (0, BIG)]
    piece_size = max(_PIECE // page_size, 1) * page_size
    for offset in range(0, os.fstat(fd).st_size, piece_size):
        piece = os.pread(fd, piece_size, offset)
        for flags, kind in kinds:
            at = piece.find(kind)
            while at >= 0:
                if at >= 4 and at % 2 == 0:
                    low, high = _SIZE.unpack_from(piece, at - 4)
                    begin = at + 4 + key_size
                    size, key = low | high << 16, piece[at + 4 : begin]
                    if not flags and 5 <= size <= page_size:
                        yield key, piece[begin : begin + size]
                    elif flags and size > 4 and len(piece) >= begin + 8:
                        (run,) = _NUMBER.unpack_from(piece, begin)
                        if run * page_size + 16 + size <= os.fstat(fd).st_size:
                            yield key, os.pread(fd, size, run * page_size + 16)
                at = piece.find(kind, at + 1)


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
