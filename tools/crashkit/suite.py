"""What a suite of the crash kit is: it tries to break a session, and has a control that it must break."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import attrs

KIT = Path(__file__).resolve().parent


@attrs.frozen
class Plan:
    """What a suite is asked to do.

    Attributes:
        seed: all that is random follows from it.
        count: how many cases to try, in the suite's unit.
        work: an empty directory on the disk under test; it is deleted afterwards.
        log: where failures are kept; it need not exist.
        jobs: how many processes may work at a time.
    """

    seed: int
    count: int
    work: Path
    log: Path
    jobs: int = 2

    def part(self, name: str, *, seed: int | None = None, count: int | None = None) -> Plan:
        """Return a plan for a part of the work, with a new directory *name* in this one's."""
        work = self.work / name
        work.mkdir()
        return attrs.evolve(
            self,
            work=work,
            seed=self.seed if seed is None else seed,
            count=self.count if count is None else count,
        )


@attrs.frozen
class Outcome:
    """What came of a plan.

    Attributes:
        tried: how many cases, in the suite's unit.
        failures: of each what is wrong, and the command that replays it.
        notes: what else is worth printing, such as how many cases were of each kind.
    """

    tried: int
    failures: list[str] = attrs.field(factory=list)
    notes: dict[str, int | str] = attrs.field(factory=dict)


class CannotRun(Exception):
    """The machine lacks what a suite needs, such as root's rights or a loop device."""


def scratch(plan: Plan) -> tempfile.TemporaryDirectory[str]:
    """Return a directory for what need not be flushed, to be used with `with`: in memory if possible."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="crashkit-", dir=memory if os.access(memory, os.W_OK) else plan.work)


class Suite(ABC):
    """Something that may befall a session, tried many times.

    Attributes:
        name: one word, as on the command line.
        summary: one line.
        unit: what is counted, in the plural.
        short: how many in the checks of each change.
        long: how many with `--long`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[str]
    short: ClassVar[int]
    long: ClassVar[int]

    @abstractmethod
    def run(self, plan: Plan) -> Outcome:
        """Try *plan.count* cases.  Raise CannotRun if that isn't possible here."""

    @abstractmethod
    def control(self, plan: Plan) -> Outcome:
        """Do the same to something that is broken on purpose: the outcome must have failures.

        With several controls it has them only if each has been seen to fail.
        """

    @abstractmethod
    def replay(self, plan: Plan, case: Path) -> Outcome:
        """Try again the failure that was kept in the directory *case*."""

    def new_case(self, plan: Plan) -> Path:
        """Make and return the directory in which the next failure is kept."""
        plan.log.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            case = plan.log / f"{self.name}-{plan.seed}-{number}"
            try:
                case.mkdir()
            except FileExistsError:
                number += 1
            else:
                return case

    def failure(self, what: str, case: Path) -> str:
        """Return the line that tells of a failure that was kept in *case*."""
        command = [sys.executable, str(KIT), self.name, "--replay", str(case.resolve())]
        return f"{what}\n    {shlex.join(command)}"
