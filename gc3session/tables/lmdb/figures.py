"""The figures of an LMDB environment: its size, its readers, how safe its commits are.

All of them are known in constant time, from what LMDB and the system have counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from ...system.filesystem import filesystem_of, write_cache_of
from ...text import size_text
from ..interface import Figure
from .data_file.meta import MetaPage
from .environment import Environment
from .opening import Transaction

_READER: Final = re.compile(r"\s*(\d+)\s+[0-9a-f]+\s+(\d+|-)")


def figures(env: Environment, meta: MetaPage, reader: Transaction) -> list[Figure]:
    """Return the figures of the state of *meta*, which *reader* sees."""
    return [
        _file(env, meta, reader),
        _map(env, meta),
        _readers(env),
        _durability(env),
        filesystem_figure(env.path),
        _last_write(env, meta),
    ]


def _file(env: Environment, meta: MetaPage, reader: Transaction) -> Figure:
    size = os.stat(env.data).st_size
    used = meta.used
    free = max(0, meta.size - used)
    reclaimable = max(0, size - used)
    text = f"{size_text(size)}: {size_text(used)} in use, {size_text(free)} free for later writes"
    if reclaimable:
        text += f"; compacting gives back {size_text(reclaimable)} or more"
    values = {"bytes": size, "used_bytes": used, "free_bytes": free, "reclaimable_bytes": reclaimable}
    return Figure("file", text, values)


def _map(env: Environment, meta: MetaPage) -> Figure:
    size = env.opened().info()["map_size"]
    headroom = max(0, size - meta.size)
    text = f"{size_text(size)} of address space, {size_text(headroom)} headroom; it grows when it is full"
    return Figure("map", text, {"map_bytes": size, "headroom_bytes": headroom})


def _readers(env: Environment) -> Figure:
    if not env.locked:
        text = "unknown: this user may not lock the store, and so reads without a slot"
        return Figure("reader slots", text, {"readers": None, "slots": None})
    opened = env.opened()
    found = [
        {
            "pid": int(pid),
            "transaction": None if transaction == "-" else int(transaction),
            "stale": not env.is_alive(int(pid)),
        }
        for pid, transaction in _READER.findall(opened.readers())
        if int(pid) != os.getpid()
    ]
    slots = opened.info()["max_readers"]
    text = f"{len(found)} of {slots:,} taken by other processes"
    live, stale = _slots_text(found, stale=False), _slots_text(found, stale=True)
    if live:
        text += f": {live}"
    if stale:
        text += f"; stale, of processes that are dead, freed by who writes within a minute: {stale}"
    return Figure("reader slots", text, {"readers": found, "slots": slots})


def _slots_text(slots: Iterable[dict[str, Any]], *, stale: bool) -> str:
    return ", ".join(
        f"pid {slot['pid']}"
        + ("" if slot["transaction"] is None else f" reading transaction {slot['transaction']:,}")
        for slot in slots
        if slot["stale"] == stale
    )


def _durability(env: Environment) -> Figure:
    flags = env.opened().flags()
    cache = write_cache_of(env.path)
    values = {"sync": flags["sync"], "metasync": flags["metasync"], "writemap": flags["writemap"], "cache": cache}
    if filesystem_of(env.path) in ("tmpfs", "ramfs"):
        return Figure("durability", "none: the filesystem is in memory, and ends with the machine", values)
    text = "each commit is flushed to disk, data and then meta page, before it returns"
    if cache is not None:
        text += f"; the disk's cache is '{cache}'" + (", which the flush empties" if cache == "write back" else "")
    return Figure("durability", text, values)


def filesystem_figure(path: str) -> Figure:
    """Return the figure that says which filesystem *path* is on."""
    type_ = filesystem_of(path)
    return Figure("filesystem", type_ or "unknown", {"type": type_})


def _last_write(env: Environment, meta: MetaPage) -> Figure:
    seconds = os.stat(env.data).st_mtime
    time = datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    text = f"{time}, transaction {meta.transaction:,} of the store"
    return Figure("last write", text, {"time": seconds, "transaction": meta.transaction})
