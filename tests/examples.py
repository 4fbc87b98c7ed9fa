"""Classes as a user of the library writes them, for all suites."""

from __future__ import annotations

import enum
from typing import Any

import attrs

from gc3session import Persistable, Task, TaskCollection


@attrs.define
class Simulation(Task):
    """The example of the documentation, with a few fields more."""

    mesh: str = ""
    inputs: dict[str, Any] = attrs.Factory(dict)
    steps: int = 0


@attrs.define
class Sweep(TaskCollection):
    """A collection of simulations."""

    parameter: str = ""


@attrs.define
class Note(Persistable):
    """A persistable that is no task."""

    text: str = ""
    about: Any = None


@attrs.frozen
class Point:
    """An attrs object that is stored by value, and can be a key."""

    x: Any
    y: Any = 0


@attrs.define
class Grid:
    """An attrs object that is stored by value, and can't be a key."""

    name: str
    points: list[Any] = attrs.Factory(list)
    _secret: int = 7


class Colour(enum.Enum):
    RED = "red"
    GREEN = ("g", 1)
    ALSO_RED = "red"  # noqa: PIE796 (an alias is what is wanted)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10**30


class Mode(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Outer:
    class Inner(enum.Enum):
        NESTED = 1


class Celsius(float, enum.Enum):
    ZERO = 0.0
    BODY = 37.0
