"""Space: full disks, limits of file size, memory and descriptors, and readers that were killed in mid-read.

In each case a session is filled until something is exhausted.  What had returned must be there, what failed must have
failed with an error of the library's own and changed nothing, and once there is room the work must go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import attrs

from breakages import BROKEN
from findings import findings
from gc3session import Error, MirrorWarning, Session, StoreFull
from processes import Died, Process, in_process, none_left
from specimens import Simulation
from suite import CannotRun, Outcome, Plan, Suite

HOWS: Final = ("add", "batch", "transaction", "save", "save_all", "remove")
DISKS: Final = (64, 300, 1024)  # KiB
FILE_SIZES: Final = (1, 5_000, 40_000, 200_000, 1_000_000)  # bytes
MEMORIES: Final = (0, 8, 32, 64)  # MiB above what the process has
DESCRIPTORS: Final = range(10)  # that may still be opened
READERS: Final = 200
SILENT: Final = "a full disk that nobody is told of"


@attrs.frozen
class Case:
    """What is to be exhausted, and by what.

    Attributes:
        what: "disk", "file size", "memory", "descriptors" or "readers".
        limit: in the unit of that.
        how: what fills the session; for descriptors also when they are exhausted.
    """

    what: str
    limit: int
    how: str

    def __str__(self) -> str:
        return f"{self.what} {self.limit} {self.how}"


CASES: Final = [
    *(Case("disk", size, how) for size in DISKS for how in HOWS),
    *(Case("file size", size, how) for size in FILE_SIZES for how in HOWS),
    *(Case("memory", size, how) for size in MEMORIES for how in ("batch", "large")),
    *(Case("descriptors", left, how) for left in DESCRIPTORS for how in (*HOWS, "open", "fork")),
    Case("readers", READERS, "kill"),
]


class Space(Suite):
    """See the module."""

    name = "space"
    summary = "full disks, limits of file size, memory and descriptors, killed readers"
    unit = "cases"
    short = len(CASES)
    long = len(CASES)

    def run(self, plan: Plan) -> Outcome:
        cases = list(CASES)
        if plan.count < len(cases):
            cases = random.Random(plan.seed).sample(cases, plan.count)
        disks = [case for case in cases if case.what == "disk"]
        outcome = self._try(plan, [case for case in cases if case.what != "disk"], "")
        if not disks:
            return outcome
        if os.geteuid() != 0:
            if outcome.failures:
                return outcome
            raise CannotRun(f"{len(disks)} of {len(cases)} cases mount small disks, as root; the others passed")
        more = self._try(plan, disks, "")
        return Outcome(
            outcome.tried + more.tried, outcome.failures + more.failures, {**outcome.notes, **more.notes}
        )

    def control(self, plan: Plan) -> Outcome:
        return self._try(plan, [Case("file size", 200_000, how) for how in HOWS[:3]], SILENT)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        told = json.loads((case / "case.json").read_text())
        again = Case(told["what"], told["limit"], told["how"])
        return self._try(attrs.evolve(plan, seed=told["seed"]), [again], told["broken"])

    def _try(self, plan: Plan, cases: list[Case], broken: str) -> Outcome:
        failures = []
        notes: dict[str, int | str] = {}
        for case in cases:
            notes[case.what] = int(notes.get(case.what, 0)) + 1
            place = plan.work / "case"
            place.mkdir()
            try:
                with small_disk(place, case.limit) if case.what == "disk" else contextlib.nullcontext():
                    wrong = tried(case, place, plan.work, plan.seed, broken)
                    if wrong:
                        failures.append(self._kept(plan, case, wrong, place, broken))
            finally:
                shutil.rmtree(place)
        return Outcome(len(cases), failures, notes)

    def _kept(self, plan: Plan, case: Case, wrong: str, place: Path, broken: str) -> str:
        kept = self.new_case(plan)
        shutil.copytree(place, kept / "place", dirs_exist_ok=True)
        (kept / "log").write_text(wrong)
        (kept / "case.json").write_text(json.dumps(attrs.asdict(case) | {"seed": plan.seed, "broken": broken}))
        return self.failure(f"{case}: {wrong}", kept)


def tried(case: Case, place: Path, work: Path, seed: int, broken: str) -> str:
    """Try a case in *place*; return what is wrong, or ''."""
    path = place / "session"
    does = {"readers": kill_readers}.get(case.what, exhaust)
    try:
        expected = in_process(work, "filler", does, path, case, f"{seed}/{case}", broken)
        found, wrong = in_process(work, "judge", judge, path)
    except Died as died:
        return str(died)
    if found != expected:
        differ = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
        some = {name: (found.get(name), expected.get(name)) for name in sorted(differ)[:3]}
        wrong.append(f"{len(differ)} of {len(expected)} tasks are not as they must be (found, expected): {some}")
    return "; ".join(wrong)


def judge(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return what a session holds, and what is wrong with it."""
    with Session(path, create=False, read_only=True) as session:
        return held(session), findings(path)


def held(session: Session) -> dict[str, int]:
    """Return the names of a session's tasks, with what each says."""
    found = {}
    for task in session:
        if task.mesh != mesh(task.steps):
            raise AssertionError(f"not whole: {task!r}")
        found[task.jobname] = task.steps
    return found


def mesh(steps: int) -> str:
    """Return the text of a task that says *steps*: this many characters."""
    return "x" * steps


# -- what is exhausted ----------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[None]:
    """`with` this, *place* is a filesystem of so many KiB."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "crashkit", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRun(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def full_disk(place: Path) -> Iterator[None]:
    """After this `with`, the small disk has room."""
    yield
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)


@contextlib.contextmanager
def limited(which: int, limit: int) -> Iterator[None]:
    """`with` this, the process has a soft limit."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def limited_memory(more: int) -> AbstractContextManager[None]:
    """`with` this, the process has so many MiB more of address space than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limited(resource.RLIMIT_AS, pages * resource.getpagesize() + (more << 20))


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """`with` this, the process can open *left* more files."""
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 20
    taken: list[int] = []
    with limited(resource.RLIMIT_NOFILE, highest):
        try:
            with contextlib.suppress(OSError):  # until no more can be
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            for _ in range(left):
                os.close(taken.pop())
            yield
        finally:
            for fd in taken:
                os.close(fd)


def limit_of(case: Case, path: Path) -> AbstractContextManager[None]:
    """Return what exhausts that which a case is about."""
    if case.what == "disk":
        return full_disk(path.parent)
    if case.what == "file size":
        return limited(resource.RLIMIT_FSIZE, case.limit)
    if case.what == "memory":
        return limited_memory(case.limit)
    return few_descriptors(case.limit)


# -- filling --------------------------------------------------------------------


class Filler:
    """Fills a session and knows what it must hold.

    Attributes:
        session: that is filled.
        expected: what it must hold.
        later: what it must hold as soon as there is room: the batch, and what could not be saved.
    """

    def __init__(self, session: Session, chance: random.Random) -> None:
        self.session = session
        self.expected: dict[str, int] = held(session)
        self.later: dict[str, int] = {}
        self._chance = chance
        self._number = 0
        self._unsaved: list[Any] = []

    def _new(self) -> Any:
        self._number += 1
        steps = self._chance.choice((10, 400, 900, 2000, 60_000 if self._number % 20 == 0 else 3000))
        return Simulation(jobname=str(self._number), steps=steps, mesh=mesh(steps))

    def add(self) -> None:
        task = self._new()
        self.session.add(task)
        self.expected[task.jobname] = task.steps

    def large(self) -> None:
        task = self._new()
        task.steps, task.mesh = 1 << 20, mesh(1 << 20)
        self.session.add(task)
        self.expected[task.jobname] = task.steps

    def batch(self) -> None:
        for _ in range(20):
            task = self._new()
            self.session.add(task, flush=False)
            self.later[task.jobname] = task.steps
        self.session.flush()
        self._later_is_now()

    def _later_is_now(self) -> None:
        self.expected |= self.later
        self.later.clear()
        self._unsaved.clear()

    def transaction(self) -> None:
        new = [self._new() for _ in range(5)]
        removed = self._some(1)
        with self.session.transaction():
            for task in new:
                self.session.add(task)
            for task in removed:
                self.session.remove(str(task.persistent_id))
        for task in removed:
            del self.expected[task.jobname]
        self.expected |= {task.jobname: task.steps for task in new}

    def _some(self, count: int) -> list[Any]:
        ids = sorted(self.session.list_ids())
        return [self.session.load(id_) for id_ in self._chance.sample(ids, min(len(ids), count))]

    def save(self) -> None:
        self._change(1)
        for task in self._unsaved:
            self.session.save(task)
        self._later_is_now()

    def save_all(self) -> None:
        self._change(5)
        self.session.save_all()
        self._later_is_now()

    def _change(self, count: int) -> None:
        if len(self.expected) < 10:
            self.add()
        if self._unsaved:
            return
        self._unsaved = self._some(count)
        for task in self._unsaved:
            task.steps += 700
            task.mesh = mesh(task.steps)
            self.later[task.jobname] = task.steps

    def remove(self) -> None:
        for _ in range(3):
            self.add()
        for task in self._some(1):
            name = task.jobname
            self.session.remove(str(task.persistent_id))
            del self.expected[name]

    def check(self) -> None:
        """Raise AssertionError if the session doesn't hold what it must."""
        found = held(self.session)
        allowed = {**self.expected, **self.later}
        if found.keys() - allowed.keys() or self.expected.keys() - found.keys():
            raise AssertionError(f"{found} is there, but should be {self.expected}, and perhaps {self.later}")
        if len(self.session) != len(found):
            raise AssertionError(f"{len(self.session)} tasks, of which {len(found)} are found")

    def finish(self) -> None:
        """Go on now that there is room."""
        self.session.save_all()
        self._later_is_now()
        for _ in range(5):
            self.add()
        self.session.close()


def exhaust(path: Path, case: Case, seed: str, broken: str) -> dict[str, int]:
    """Fill a session until there is no more room, then make room and go on; return what it must hold."""
    warnings.simplefilter("ignore", MirrorWarning)  # that it can't be written is what is wanted here
    if broken:
        BROKEN[broken]()
    chance = random.Random(seed)
    how = case.how
    filler = None
    if case.what == "descriptors" and how != "open":
        filler = Filler(Session(path), chance)
        filler.add()
    with limit_of(case, path):
        if filler is None:
            with contextlib.suppress(Error, MemoryError):
                filler = Filler(Session(path), chance)
        if filler is not None:
            if how == "fork":
                fork_and_use(filler)
            fill(
                filler, "remove" if how in ("open", "fork") else how, expect_end=case.what in ("disk", "file size")
            )
    if filler is None:
        filler = Filler(Session(path), chance)
    filler.check()
    filler.finish()
    return filler.expected


def fill(filler: Filler, how: str, expect_end: bool) -> None:
    """Do the same again and again until it fails, and then a few times more."""
    act: Callable[[], None] = getattr(filler, how)
    failed = 0
    for _ in range(3000 if expect_end else 60 if how == "large" else 25):
        try:
            act()
        except MemoryError:  # Python's own: even the user's objects have no room
            failed += 1
        except Error as error:
            failed += 1
            if expect_end and not isinstance(error, StoreFull):
                raise AssertionError("another error than StoreFull") from error
        if failed == 3:
            break
    if expect_end and not failed:
        raise AssertionError("the limit was never felt")
    with contextlib.suppress(Error, MemoryError):
        filler.check()


def fork_and_use(filler: Filler) -> None:
    """Fork where few files can be opened: the child must fail as documented, or work."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with contextlib.suppress(Error):
                filler.session.remove(filler.session.add(Simulation(jobname="of the child")))
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise AssertionError("the child failed otherwise than is documented")


# -- killed readers -------------------------------------------------------------


def kill_readers(path: Path, case: Case, seed: str, broken: str) -> dict[str, int]:
    """Kill many readers in mid-read, and see that the file does not grow for ever."""
    chance = random.Random(seed)
    with Session(path) as session:
        filler = Filler(session, chance)
        for _ in range(40):
            filler.batch()
    killed = 0
    while killed < case.limit:
        readers: list[Process] = []
        with none_left(readers):
            readers.extend(Process(path.parent, f"reader {n}", _read, path) for n in range(20))
            time.sleep(chance.uniform(0.05, 0.15))  # so that they are reading, wherever they are
        killed += len(readers)
    with Session(path) as session:
        filler.session = session
        [task, *_] = session
        size = (path / "jobs" / "data.mdb").stat().st_size
        for i in range(600):
            task.state = f"state {i}"
            session.save(task)
        grown = (path / "jobs" / "data.mdb").stat().st_size - size
    if grown > 400_000:
        raise AssertionError(f"the file has grown by {grown} bytes: free pages are not used again")
    return filler.expected


def _read(path: Path) -> None:
    session = Session(path, read_only=True)
    while True:
        held(session)
