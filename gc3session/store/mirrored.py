"""Writing to a session without opening it, for a backup or a repair."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..directory import SessionDirectory
from ..index.mirror import Mirror
from ..index.server_mirror import ServerMirror
from .index import Index
from .store import Store


def mirror_of(store: Store, directory: SessionDirectory) -> Mirror:
    """Return the mirror of a session, whose index is in *store*."""
    cls = ServerMirror if store.tables.concurrent_writers else Mirror
    return cls(directory.mirror, directory.url_file, store.schemas)


@contextlib.contextmanager
def mirrored_index(store: Store, directory: SessionDirectory, identity: bytes) -> Iterator[tuple[Index, Mirror]]:
    """Give the index of a session, and the mirror that follows whatever is written to *store* meanwhile."""
    mirror = mirror_of(store, directory)
    index = Index(store, identity)
    index.listener = mirror
    store.indexes.append(index)
    try:
        yield index, mirror
    finally:
        store.indexes.remove(index)
        mirror.close()
