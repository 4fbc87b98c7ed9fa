"""The tables as key ranges of one tree: so a commit writes fewer pages than with a tree for each."""

from __future__ import annotations

from typing import Final

from ..interface import TABLES

RANGES: Final = {table: bytes([place]) for place, table in enumerate(TABLES, 1)}
"""The byte with which the keys of each table begin."""
