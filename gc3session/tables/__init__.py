"""Tables of bytes: the interface that a store is written over, and its kinds.

Whoever writes a kind of store of their own finds here what it must provide (interface.py says
more); `gc3session.register` makes its URLs known.
"""

from .interface import (
    PLAIN_TABLES,
    SET_TABLES,
    Compacted,
    Contents,
    Figure,
    Item,
    NoTables,
    OnProgress,
    Reader,
    Salvaged,
    Tables,
    Writer,
)

__all__ = [
    "PLAIN_TABLES",
    "SET_TABLES",
    "Compacted",
    "Contents",
    "Figure",
    "Item",
    "NoTables",
    "OnProgress",
    "Reader",
    "Salvaged",
    "Tables",
    "Writer",
]
