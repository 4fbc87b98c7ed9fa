"""What is done around a fork, in an order that doesn't depend on the order of imports.

Locks are taken from the upper layer to the lower one, as everywhere else: a fork that took them
in another order could wait for a thread that waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

STORES: Final = 1
ENVIRONMENTS: Final = 2


class _Layer(NamedTuple):
    number: int
    before: Callable[[], None]
    after_in_parent: Callable[[], None]
    after_in_child: Callable[[], None]


_layers: list[_Layer] = []


def at_fork(
    number: int,
    before: Callable[[], None],
    after_in_parent: Callable[[], None],
    after_in_child: Callable[[], None],
) -> None:
    """Have functions called around each fork, those of lower numbers first before it and last after it."""
    _layers.append(_Layer(number, before, after_in_parent, after_in_child))
    _layers.sort(key=lambda layer: layer.number)


def _before() -> None:
    for layer in _layers:
        layer.before()


def _after_in_parent() -> None:
    for layer in reversed(_layers):
        layer.after_in_parent()


def _after_in_child() -> None:
    for layer in reversed(_layers):
        layer.after_in_child()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
