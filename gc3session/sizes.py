"""Sizes in bytes, as text and on a disk."""

from __future__ import annotations

import os

from .errors import StoreFull

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(size: int) -> str:
    """Return '174.3 MiB', or '17 bytes'."""
    if size < 1024:
        return f"{size} byte{'' if size == 1 else 's'}"
    amount, unit = size / 1024, 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:,.1f} {_UNITS[unit]}"


def require_room(directory: str, needed: int, what: str) -> None:
    """Raise StoreFull if the filesystem of *directory* has no room for *needed* bytes: *what* takes them."""
    status = os.statvfs(directory)
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    free = blocks * status.f_frsize
    if free < needed:
        raise StoreFull(
            f"{what} takes {size_text(needed)}, and the filesystem of {directory} has {size_text(free)} free: make"
            " room there, or choose another place"
        )
