"""Tasks of the kinds that users define, for the suites to store."""

from __future__ import annotations

from typing import Any

import attrs

from gc3session import Task, TaskCollection


@attrs.define
class Simulation(Task):
    """A task with fields of its own."""

    mesh: str = ""
    steps: int = 0
    inputs: dict[str, Any] = attrs.Factory(dict)


@attrs.define
class Sweep(TaskCollection):
    """A collection of simulations."""

    parameter: str = ""
