"""All that stands in a damaged data file, and a new file in its place.

All leaf pages are read: those that the tree still leads to, those that it doesn't, because a page or a key is
damaged, and free ones.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from ....errors import CorruptStore, UnknownFormat
from ....system.filesystem import give_owner, is_holes, sync, temporary_name
from ....system.temporary import delete_leftovers, delete_tree
from ...interface import Remains, Standing, Tables
from ..ranges import RANGES
from .meta import MetaPage, Tree, newest_meta_page, opened_data_file, read_meta_page
from .pages import LEAF, DamagedPage, Pages, flags_of, number_of
from .structure import check_structure
from .verification import mark_trusted
from .walk import ignore

_PAGE_SIZES: Final = (4096, 16384, 65536, 8192, 32768, 2048, 1024, 512)
_EMPTY: Final = Tree(0, 0, 0, 0, 0, 0, 0, None)
_NAMES: Final = {range_[0]: table for table, range_ in RANGES.items()}


class LmdbRemains(Remains):
    """What stands in a data file.

    Args:
        path: the path of the file.
        fd: the open file.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.is_newest = True
        self._pages = Pages(path, fd, self._meta())
        self.knows_free = self.is_newest
        self.is_led_to = self._pages.meta.main.root is not None
        self._reached, self._free = check_structure(self._pages, self._note_fault)
        last_page = os.fstat(fd).st_size // self._pages.size - 1
        self._all = Pages(path, fd, MetaPage(self._pages.size, last_page, 0, _EMPTY, _EMPTY))

    def _note_fault(self, fault: str) -> None:
        if fault.startswith("the list of free pages"):
            self.knows_free = False

    def _meta(self) -> MetaPage:
        """Return the newest meta page that can be read; without one no tree is known."""
        try:
            return newest_meta_page(self.path, self._fd)
        except (CorruptStore, UnknownFormat) as error:
            self.is_newest = False
            found = [MetaPage(4096, max(1, os.fstat(self._fd).st_size // 4096 - 1), -1, _EMPTY, _EMPTY)]
            for number, page_size in ((0, 4096), *((1, page_size) for page_size in _PAGE_SIZES)):
                with contextlib.suppress(CorruptStore, UnknownFormat):
                    found.append(read_meta_page(self.path, self._fd, number, page_size))
            if isinstance(error, UnknownFormat) and len(found) == 1:
                raise
            return max(found, key=lambda meta: meta.transaction)

    def _standing(self, number: int) -> Standing:
        """Return what is known of a page; one after the last was written by a transaction that was not committed."""
        byte, bit = number >> 3, 1 << (number & 7)
        beyond = number >= self._pages.marks
        if not beyond and self._reached[byte] & bit:
            return Standing.REACHED
        return Standing.FREE if self.knows_free and (beyond or self._free[byte] & bit) else Standing.LOST

    def items(self, *standing: Standing) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield what stands in leaf pages; one that says it has another number was written to a wrong place."""
        size = self._pages.size
        for place in () if is_holes(os.fstat(self._fd)) else range(2, self._all.meta.last_page + 1):
            page = os.pread(self._fd, size, place * size)
            if flags_of(page) != LEAF or self._standing(number_of(page)) not in standing:
                continue
            for node in self._all.nodes(page, ignore):
                table = _NAMES.get(node.key[0])
                if table is not None:
                    with contextlib.suppress(DamagedPage):
                        yield table, node.key[1:], self._all.value(node, sound=False)


@contextlib.contextmanager
def remains(directory: str) -> Iterator[Remains]:
    """Give what stands in the data file in *directory*."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        yield LmdbRemains(path, file.fileno())


def rebuild(
    directory: str, make: Callable[[str], Tables], keep: Callable[[str], None], fill: Callable[[Tables], None]
) -> None:
    """Replace the data file in *directory* by a new one.

    The new file takes its place by one renaming. Nobody may have the environment open meanwhile.

    Args:
        directory: the directory of the environment.
        make: returns the tables at a path.
        keep: called with the path of the old file, which it gives a second name.
        fill: called with the new tables, before they take their place.
    """
    path = os.path.join(directory, "data.mdb")
    delete_leftovers(directory)
    temporary = temporary_name(directory)
    try:
        with contextlib.closing(make(temporary)) as tables:
            tables.write(lambda writer: None)  # so that they are made even if there is nothing to fill in
            fill(tables)
        new = os.path.join(temporary, "data.mdb")
        give_owner(new, path)
        keep(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, "lock.mdb"))
        os.rename(new, path)
        sync(directory)
        mark_trusted(directory)
    finally:
        delete_tree(temporary)
