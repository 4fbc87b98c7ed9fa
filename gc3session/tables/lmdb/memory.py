"""What has been read of a data file, in this process's memory.

LMDB maps the file, and each page that was read stays mapped.  It is the system's cache that holds
it, and the system takes it back when it needs room.  But until then it counts as memory of the
process (its resident set), by which batch systems judge and end programs.
"""

from __future__ import annotations

import re
from typing import Final

_MADV_DONTNEED: Final = 4
# Shared and never written: there is nothing in such a map that could be lost.
_MAPPED: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r--s \S+ \S+ (\d+) .*/data\.mdb\n")


def unmap_pages(inode: int) -> None:
    """Take the pages of the data file of this *inode* out of this process's resident set.

    What is read next comes from the system's cache, and only what is no longer there from the disk.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    with open("/proc/self/maps", "rb") as maps:
        for found in filter(None, map(_MAPPED.fullmatch, maps)):
            if int(found[3]) == inode:
                begin, end = int(found[1], 16), int(found[2], 16)
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
