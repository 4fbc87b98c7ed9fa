"""What a suite of the crash kit is: it tries to break a session, and has a control that it must break."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

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

    def __add__(self, other: Outcome) -> Outcome:
        """Return what came of both: numbers in their notes are added up."""
        notes = self.notes | other.notes
        for key in self.notes.keys() & other.notes.keys():
            mine, theirs = self.notes[key], other.notes[key]
            if isinstance(mine, int) and isinstance(theirs, int):
                notes[key] = mine + theirs
        return Outcome(self.tried + other.tried, self.failures + other.failures, notes)


def each_fails(controls: Mapping[str, Outcome]) -> Outcome:
    """Return what came of several controls: there are failures only if each of them has some."""
    both = sum(controls.values(), Outcome(0))
    failures = both.failures if all(outcome.failures for outcome in controls.values()) else []
    notes: dict[str, int | str] = {
        name: f"{len(outcome.failures)} failures in {outcome.tried}" for name, outcome in controls.items()
    }
    return Outcome(both.tried, failures, notes)


class CannotRun(Exception):
    """The machine lacks what a suite needs, such as root's rights or a loop device."""


def in_memory(work: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a directory for what need not be flushed, to be used with `with`: in memory if possible, or in *work*."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="crashkit-", dir=memory if os.access(memory, os.W_OK) else work)


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
        """Try *plan.count* cases. Raise CannotRun if that isn't possible here."""

    @abstractmethod
    def control(self, plan: Plan) -> Outcome:
        """Do the same to something that is broken on purpose: the outcome must have failures.

        With several controls it has them only if each has been seen to fail.
        """

    @abstractmethod
    def replay(self, plan: Plan, case: Path) -> Outcome:
        """Try again the failure that was kept in the directory *case*."""

    def keep(
        self, plan: Plan, facts: Mapping[str, Any], files: Mapping[str, Path | str | bytes] | None = None
    ) -> Path:
        """Keep a failure; return the directory where it is.

        Args:
            plan: which has found it.
            facts: of it, which JSON can write; `facts` returns them.
            files: what else there is of it: the contents of files, or the paths of those and of directories.
        """
        plan.log.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            case = plan.log / f"{self.name}-{plan.seed}-{number}"
            with contextlib.suppress(FileExistsError):
                case.mkdir()
                break
        (case / "case.json").write_text(json.dumps(facts, indent=1))
        for name, data in (files or {}).items():
            if isinstance(data, Path):
                if data.is_dir():
                    shutil.copytree(data, case / name)
                elif data.exists():
                    shutil.copyfile(data, case / name)
            else:
                (case / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return case

    @staticmethod
    def facts(case: Path) -> dict[str, Any]:
        """Return the facts of a failure that was kept. Raise CannotRun if none was kept there."""
        try:
            facts: dict[str, Any] = json.loads((case / "case.json").read_text())
        except FileNotFoundError as error:
            raise CannotRun(f"{error.filename} is missing: {case} holds no failure") from error
        return facts

    def failure(self, what: str, case: Path) -> str:
        """Return the line that tells of a failure that was kept in *case*, and the command that replays it."""
        command = [sys.executable, str(KIT), self.name, "--replay", str(case.resolve())]
        return f"{what}\n    {shlex.join(command)}"
