"""Tables of bytes: the interface that a store is built on, and its kinds.

These are the names for writing a new kind of store; interface.py says what it has to provide, and
`gc3session.register` makes its URLs known.
"""

from .interface import (
    TABLES,
    Compacted,
    Contents,
    Figure,
    Item,
    NoTables,
    OnProgress,
    Reader,
    Remains,
    Standing,
    Tables,
    Writer,
)

__all__ = [
    "TABLES",
    "Compacted",
    "Contents",
    "Figure",
    "Item",
    "NoTables",
    "OnProgress",
    "Reader",
    "Remains",
    "Standing",
    "Tables",
    "Writer",
]
