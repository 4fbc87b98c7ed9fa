"""A task in a list."""

from __future__ import annotations

import attrs

from ..stored import StoredTask, UnreadableTask


@attrs.define
class Place:
    """A task in a list.

    Attributes:
        depth: in how many collections it stands.
        fits: whether it was asked for; if not, it is shown as it leads to one that was.
    """

    task: StoredTask | UnreadableTask
    depth: int = 0
    fits: bool = True
