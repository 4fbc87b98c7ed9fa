"""The suite `hostile`: directories that somebody has spoilt on purpose, used through Python and by each command."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import attrs

import hostile_actions
import hostile_mutations
from hostile_base import Bases, Canary
from hostile_mutations import Mutation
from hostile_watch import forbid_side_effects
from processes import Died, in_parallel
from suite import Outcome, Plan, Suite, in_memory

_WORKFLOW = {
    "name": "w",
    "schemaVersion": "1.5",
    "workflow": {"specification": {"tasks": [{"name": "a", "id": "a", "parents": [], "children": []}]}},
}

_PART, _LONGEST = 250, 600
"""Cases that one worker tries, and seconds after which it hangs: a case has its own limit."""

_IN_A_CHILD = 25
"""Cases that one process does: to fork one takes longer than most cases."""


class HostileDirectories(Suite):
    """Each case is one directory and one use of it, in a process forked from one that has imported all."""

    name: ClassVar[str] = "hostile"
    summary: ClassVar[str] = "directories that were spoilt on purpose, used through Python and by each command"
    unit: ClassVar[str] = "cases"
    short: ClassVar[int] = 20_000
    long: ClassVar[int] = 2_000_000

    def run(self, plan: Plan) -> Outcome:
        bases = Bases.made(plan.part("bases").work)
        return self._tried(plan, bases, range(plan.count))

    def control(self, plan: Plan) -> Outcome:
        """Without the check before LMDB opens a file it is LMDB that ends processes."""
        from gc3session.tables.lmdb.data_file import verification

        bases = Bases.made(plan.part("bases").work)
        check = verification._check
        verification._check = lambda directory, verify: False
        try:
            outcome = self._tried(plan, bases, range(min(5 * plan.count, 500)), hostile_mutations.DEADLY)
        finally:
            verification._check = check
        signals = [failure for failure in outcome.failures if "ended by SIG" in failure]
        return attrs.evolve(outcome, failures=signals)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        bases = pickle.loads((case / "bases").read_bytes())
        return self._tried(attrs.evolve(plan, seed=facts["seed"], jobs=1), bases, facts["numbers"])

    def _tried(
        self,
        plan: Plan,
        bases: Bases,
        numbers: Sequence[int],
        mutations: dict[Mutation, int] = hostile_mutations.MUTATIONS,
    ) -> Outcome:
        """Try the cases, with as many workers as the plan has."""
        actions = hostile_actions.actions()
        hostile_actions.import_all()
        parts = (numbers[at : at + _PART] for at in range(0, len(numbers), _PART))
        total = Outcome(0)
        with in_memory(plan.work) as place:

            def work(part: Sequence[int]) -> tuple[Counter[str], list[dict[str, Any]]]:
                return _Worker(Path(place, f"{part[0]}"), plan.seed, bases, actions, mutations).tried(part)

            for part, done in in_parallel(work, parts, plan.jobs, within=_LONGEST):
                if isinstance(done, Died):
                    total += Outcome(0, [f"a worker of the suite itself broke: {done}"])
                    continue
                counts, faults = done
                for fault in faults:
                    case = self.keep(plan, {"seed": plan.seed, **fault}, {"bases": pickle.dumps(bases)})
                    total += Outcome(0, [self.failure(fault["what"], case)])
                total += Outcome(len(part), [], dict(sorted(counts.items())))
        return total


class _Child:
    """A process that does cases, one after the other, until it dies of one.

    Args:
        files: open files for what they write to stdout and stderr.
        place: where they are.
        seed: of the suite.
        may_start: whether they may start programs.

    Attributes:
        numbers: of the cases that it has done, or is doing.
    """

    def __init__(
        self,
        actions: dict[str, hostile_actions.Action],
        files: list[int],
        place: hostile_actions.Place,
        seed: int,
        *,
        may_start: bool,
    ) -> None:
        self.numbers: list[int] = []
        ours, its = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            status = hostile_actions.WRONG
            try:
                hostile_actions.prepare(files, place.out)
                ours.close()
                with its, its.makefile("r") as orders, its.makefile("w") as answers:
                    forbid_side_effects((place.session, place.out), may_start=may_start)
                    while line := orders.readline():
                        number, name, ids = json.loads(line)
                        rng = Random(f"{seed}:{number}:{name}")
                        done = hostile_actions.do(actions[name], attrs.evolve(place, ids=ids), rng)
                        print(done, int(hostile_actions.is_clean()), file=answers, flush=True)
                status = 0
            finally:
                os._exit(status)
        its.close()
        self._ours = ours
        self._answers = ours.makefile("r")

    def do(self, number: int, name: str, ids: list[str]) -> tuple[int, bool]:
        """Do a case; return the wait status that it has, or would have had, and whether the child can do another."""
        self.numbers.append(number)
        line = ""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.sendall(f"{json.dumps((number, name, ids))}\n".encode())
            line = self._answers.readline()
        if not line:  # that it ends by itself and well is wrong, too
            return self.end() or hostile_actions.WRONG << 8, False
        status, clean = map(int, line.split())
        if not clean:
            self.end()
        return status << 8, bool(clean)

    def end(self) -> int:
        """End the child; return its wait status."""
        with contextlib.suppress(OSError):  # of one that has died
            self._ours.shutdown(socket.SHUT_RDWR)  # another child has a copy of this end
        self._answers.close()
        self._ours.close()
        return os.waitpid(self._pid, 0)[1]


class _Worker:
    """Tries cases, one after the other, some in each child."""

    def __init__(
        self,
        work: Path,
        seed: int,
        bases: Bases,
        actions: dict[str, hostile_actions.Action],
        mutations: dict[Mutation, int],
    ) -> None:
        self._work = work
        self._out = work.with_name(f"{work.name}-out")
        self._seed = seed
        self._bases = bases
        self._actions = actions
        self._mutations = mutations
        for path in (work, self._out):
            path.mkdir()
        bases.sessions[0].write(work / "sound")
        (work / "dump.jsonl").write_bytes(bases.dump)
        self._files = [os.open(self._out / name, os.O_RDWR | os.O_CREAT, 0o666) for name in ("stdout", "stderr")]
        self._canary = Canary(work, bases)
        self._place = hostile_actions.Place(work / "case", [], work / "sound", work / "dump.jsonl", self._out)
        self._children: dict[bool, _Child] = {}  # whether it may start programs -> the child

    def tried(self, numbers: Sequence[int]) -> tuple[Counter[str], list[dict[str, Any]]]:
        """Try the cases of these numbers; return counts, and what is wrong."""
        counts: Counter[str] = Counter()
        faults: list[dict[str, Any]] = []
        for number in numbers:
            mutation, action, ended, wrong, done = self._case(number)
            counts[f"by {action}"] += 1
            counts[f"ended: {ended}"] += 1
            if wrong:
                faults.append({"numbers": done, "what": f"{mutation}, {action}: {wrong}"})
        for child in self._children.values():
            child.end()
        for place in (self._work, self._out):
            shutil.rmtree(place)
        return counts, faults

    def _do(self, number: int, name: str, ids: list[str]) -> tuple[int, list[int]]:
        """Do a case; return its wait status, and the numbers of the cases that its child has done."""
        may_start = name == "record"
        child = self._children.pop(may_start, None)
        if child is None:
            child = _Child(self._actions, self._files, self._place, self._seed, may_start=may_start)
        status, goes_on = child.do(number, name, ids)
        if goes_on and len(child.numbers) < _IN_A_CHILD:
            self._children[may_start] = child
        elif goes_on:
            child.end()
        return status, child.numbers

    def _case(self, number: int) -> tuple[str, str, str, str, list[int]]:
        """Try a case; return what was done, how it ended, what is wrong with that, and what its child has done."""
        rng = Random(f"{self._seed}:{number}")
        case = self._place.session
        mutation = hostile_mutations.build(self._work, self._bases, rng, self._mutations)
        name = rng.choice(list(self._actions))
        ids = rng.choice(self._bases.sessions).ids[:5]
        (self._out / "workflow.json").write_text(json.dumps(_WORKFLOW))
        before = _contents(case) if name in hostile_actions.INSPECTING else {}
        for fd in self._files:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        status, done = self._do(number, name, ids)
        out, err = (os.pread(fd, 1 << 20, 0) for fd in self._files)
        wrong = hostile_actions.problem(name, status, out, err)
        changes = self._canary.changes()
        if changes:
            wrong = wrong or f"changed beside the session: {', '.join(changes[:5])}"
        if name in hostile_actions.INSPECTING and not wrong:
            after = _contents(case)
            changed = sorted({key for key, _ in before.items() ^ after.items()})
            if changed:
                wrong = f"an inspecting call has changed {', '.join(changed)}"
        _delete(case)
        for entry in list(self._out.iterdir()):
            if entry.name not in ("stdout", "stderr"):
                _delete(entry)
        ended = "killed" if os.WIFSIGNALED(status) else f"status {os.waitstatus_to_exitcode(status)}"
        return mutation, name, ended, wrong, list(done)


def _contents(case: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a session, but for LMDB's lock, which readers use."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, _, files in os.walk(case):
        for name in files:
            path = os.path.join(directory, name)
            key = os.path.relpath(path, case)
            try:
                status = os.lstat(path)
            except PermissionError:  # the directory lets its owner list it alone
                continue
            if key != os.path.join("jobs", "lock.mdb"):
                found[key] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        for entry in path.iterdir():
            _delete(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
