"""Space: full disks, limits of file size, memory and descriptors, and readers that were killed in mid-read.

In each case a session is filled until something is exhausted. What had returned must be there, what failed must have
failed with an error of the library's own and changed nothing, and once there is room the work must go on.
"""

from __future__ import annotations

import contextlib
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
from typing import Final

import attrs

from breakages import break_by
from gc3session import Error, MirrorWarning, Session, StoreFull
from judge import contents, findings
from performer import Performer
from processes import Died, Process, in_process, none_left
from specimens import Job, whole
from steps import Change, Contents, Record, Step, View
from suite import CannotRun, Outcome, Plan, Suite

HOWS: Final = ("add", "batch", "transaction", "save", "save_all", "remove")
DISKS: Final = (64, 300, 1024)  # KiB
FILE_SIZES: Final = (1, 5_000, 40_000, 200_000, 1_000_000)  # bytes
MEMORIES: Final = (0, 8, 32, 64)  # MiB above what the process has
DESCRIPTORS: Final = range(10)  # that may still be opened
READERS: Final = 200
MOST: Final = 3000  # tasks; no limit leaves room for as many
OWNER: Final = "filler"
SILENT: Final = "a full disk that raises no error"


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
        return outcome + self._try(plan, disks, "")

    def control(self, plan: Plan) -> Outcome:
        return self._try(plan, [Case("file size", 200_000, how) for how in HOWS[:3]], SILENT)

    def replay(self, plan: Plan, case: Path) -> Outcome:
        facts = self.facts(case)
        again = Case(facts["what"], facts["limit"], facts["how"])
        return self._try(attrs.evolve(plan, seed=facts["seed"]), [again], facts["broken"])

    def _try(self, plan: Plan, cases: list[Case], broken: str) -> Outcome:
        failures = []
        notes: dict[str, int | str] = {}
        for case in cases:
            notes[case.what] = int(notes.get(case.what, 0)) + 1
            place = plan.work / "case"
            place.mkdir()
            try:
                with small_disk(place, case.limit) if case.what == "disk" else contextlib.nullcontext():
                    wrong = tried(case, place / "session", plan.seed, broken)
                    if wrong:
                        facts = attrs.asdict(case) | {"seed": plan.seed, "broken": broken, "wrong": wrong}
                        failures.append(self.failure(f"{case}: {wrong}", self.keep(plan, facts, {"place": place})))
            finally:
                shutil.rmtree(place)
        return Outcome(len(cases), failures, notes)


def tried(case: Case, path: Path, seed: int, broken: str) -> str:
    """Try a case with a session at *path*; return what is wrong, or ''."""
    does = kill_readers if case.what == "readers" else exhaust
    try:
        expected = in_process(does, path, case, f"{seed}/{case}", broken)
        found, wrong = in_process(judge, path)
    except Died as died:
        return str(died)
    return "; ".join([*wrong, *filter(None, [found.difference(expected)])])


def judge(path: Path) -> tuple[Contents, list[str]]:
    """Return what a session holds, and what is wrong with it."""
    with Session(path, create=False, read_only=True) as session:
        return contents(session, [OWNER])[OWNER], findings(path)


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
        performer: that does it.
        contents: what the session must hold.
        view: what it must hold as soon as there is room: the batch, and what could not be saved.
    """

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.performer = Performer(path, OWNER)
        self.performer.open()
        self.contents = Contents()
        self.view = View()
        self._chance = chance
        self._number = 0
        self.check()  # so that what reading needs is imported while files can be opened

    def do(self, kind: str, *changes: Change, flush: bool = True) -> None:
        """Do a step; if it fails, nothing of it must have been done."""
        step = Step(kind, changes, flush)
        self.performer.do(step)
        self.view.apply(step, self.contents)
        if flush and kind != "change":
            self.contents, self.view = self.contents.after(self.view.changes), View(unsaved=self.view.unsaved)

    def _new(self, size: int = 0) -> Change:
        self._number += 1
        size = size or self._chance.choice((11, 401, 1000, 2000, 60_000 if self._number % 20 == 0 else 3000))
        return Change("add", f"{OWNER}/{self._number}", Record("NEW", size))

    def _some(self, count: int) -> list[str]:
        return self._chance.sample(self.contents.members, min(len(self.contents.members), count))

    def add(self) -> None:
        self.do("add", self._new())

    def large(self) -> None:
        self.do("add", self._new(1 << 20))

    def batch(self) -> None:
        for _ in range(20):
            self.do("add", self._new(), flush=False)
        self.do("flush")

    def transaction(self) -> None:
        new = [self._new() for _ in range(5)]
        self.do("transaction", *new, *(Change("remove", name) for name in self._some(1)))

    def save(self) -> None:
        self.do("save", *self._changed(1))

    def save_all(self) -> None:
        self.do("change", *self._changed(5))
        self.do("save_all")

    def _changed(self, count: int) -> list[Change]:
        """Return changes of some tasks, which become longer; the same ones until they are saved."""
        if len(self.contents.members) < 10:
            self.add()
        if not self.view.unsaved:
            records = {name: self.contents.records[name] for name in self._some(count)}
            changes = [
                Change("change", name, Record("NEW", steps + 700)) for name, (_, steps, _) in records.items()
            ]
            self.do("change", *changes)
        return [Change("change", name, record) for name, record in self.view.unsaved.items()]

    def remove(self) -> None:
        for _ in range(3):
            self.add()
        self.do("remove", *(Change("remove", name) for name in self._some(1)))

    def check(self) -> None:
        """Raise AssertionError if the session doesn't hold what it must."""
        session = self.performer.own
        found = {task.jobname for task in session if whole(task)}
        now, later = set(self.contents.members), set(self.contents.after(self.view.changes).members)
        if not now <= found <= later:
            raise AssertionError(f"{found} is there, but should be {now}, and perhaps {later}")
        if len(session) != len(found):
            raise AssertionError(f"{len(session)} tasks, of which {len(found)} are found")

    def finish(self) -> None:
        """Go on now that there is room."""
        self.do("save_all")
        for _ in range(5):
            self.add()
        self.performer.close()


def exhaust(path: Path, case: Case, seed: str, broken: str) -> Contents:
    """Fill a session until there is no more room, then make room and go on; return what it must hold."""
    warnings.simplefilter("ignore", MirrorWarning)  # that it can't be written is what is wanted here
    break_by(broken)
    chance = random.Random(seed)
    how = case.how
    filler = None
    if case.what == "descriptors" and how != "open":
        filler = Filler(path, chance)
        filler.add()
    with limit_of(case, path):
        if filler is None:
            with contextlib.suppress(Error, MemoryError):
                filler = Filler(path, chance)
        if filler is not None:
            if how == "fork":
                fork_and_use(filler)
            fill(
                filler, "remove" if how in ("open", "fork") else how, expect_end=case.what in ("disk", "file size")
            )
    if filler is None:
        filler = Filler(path, chance)
    filler.check()
    filler.finish()
    return filler.contents


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
        if failed == 3 or len(filler.contents.records) > MOST:
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
                session = filler.performer.own
                session.remove(session.add(Job(jobname="of the child")))
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise AssertionError("the child failed otherwise than is documented")


# -- killed readers -------------------------------------------------------------


def kill_readers(path: Path, case: Case, seed: str, broken: str) -> Contents:
    """Kill many readers in mid-read, and see that the file does not grow for ever."""
    chance = random.Random(seed)
    filler = Filler(path, chance)
    for _ in range(40):
        filler.batch()
    filler.performer.close()
    killed = 0
    while killed < case.limit:
        readers: list[Process] = []
        with none_left(readers):
            readers.extend(Process(read, path) for _ in range(20))
            time.sleep(chance.uniform(0.05, 0.15))  # so that they are reading, wherever they are
        killed += len(readers)
    name, data = filler.contents.members[0], path / "jobs" / "data.mdb"
    size = data.stat().st_size
    filler.performer.open()
    for i in range(600):
        filler.do("save", Change("change", name, filler.contents.records[name]._replace(state=f"state {i}")))
    grown = data.stat().st_size - size
    filler.performer.close()
    if grown > 400_000:
        raise AssertionError(f"the file has grown by {grown} bytes: free pages are not used again")
    return filler.contents


def read(path: Path) -> None:
    """Read until killed."""
    session = Session(path, read_only=True)
    while True:
        if not all(whole(task) for task in session):
            raise AssertionError("not whole")
