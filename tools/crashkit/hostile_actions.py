"""What is done with a hostile session, through Python and by each command, and what must not come of it.

Allowed is: to succeed, or a documented error; for a command, a documented exit status and one line for each error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from random import Random
from typing import Any, Final

import attrs

import gc3session
from gc3session import Error, Persistable, Session, Task
from gc3session.cli import program
from gc3session.records.codec import layout_of
from gc3session.store.program_end import _finish
from gc3session.tables.lmdb import registry

SECONDS: Final = 90
"""After which a case hangs; none takes one, but the machine may be busy."""

MEMORY: Final = 2 << 30
"""Bytes of address space for a case."""

WRONG: Final = 99
"""The status of a child that found something wrong; what, is on its stderr."""

SHOWN_CONTROLS: Final = frozenset("\n")


@attrs.frozen
class Place:
    """Where a case is, and what its actions may use.

    Attributes:
        session: the hostile one.
        ids: some IDs that it may have.
        sound: a sound session.
        dump: a dump.
        out: a directory where commands may write.
    """

    session: Path
    ids: list[str]
    sound: Path
    dump: Path
    out: Path


Action = Callable[[Place, Random], int]
"""Do something with the session; return the exit status."""


# -- Python


def read(place: Place, rng: Random) -> int:
    """Open read-only, and read everything."""
    with Session(place.session, read_only=True) as session:
        _look_around(session, rng)
    return 0


def write(place: Place, rng: Random) -> int:
    """Open, read, and change something of each kind."""
    with Session(place.session) as session:
        _look_around(session, rng)
        for step in rng.sample((_add, _save, _remove, _forget, _transaction, _end), 3):
            with _Documented():
                step(session, rng)
        with _Documented():
            session.flush()
        _look_around(session, rng)
    return 0


def make_again(place: Place, rng: Random) -> int:
    """Make the session again, or destroy it."""
    if rng.random() < 0.5:
        with Session(place.session, load=False) as session:
            session.add(Task(jobname="new"))
            _look_around(session, rng)
        return 0
    Session(place.session).destroy()
    return 0


def store(place: Place, rng: Random) -> int:
    """Use the store without a session."""
    if (place.session / "jobs").is_symlink():
        return 0  # a store that the caller names may be a link
    with gc3session.make_store(place.session / "jobs", read_only=rng.random() < 0.5) as store:
        for id_ in store.list():
            with _Documented():
                repr(store.load(id_))
        if not store.read_only:
            store.save(Task(jobname="new"))
    return 0


class _Documented:
    """Lets documented errors pass."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, cls: type[BaseException] | None, *_: object) -> bool:
        return cls is not None and issubclass(cls, Error)


def _look_around(session: Session, rng: Random) -> None:
    looks: list[Callable[[], object]] = [
        lambda: len(session),
        lambda: session.stats(),
        lambda: list(session.tasks),
        lambda: session.list_ids(),
        lambda: session.list_names(),
        lambda: [repr(task) for task in session],
        lambda: (session.created, session.finished, repr(session)),
        lambda: [repr(task) for task in session.select("NEW")],
    ]
    looks += [method(session) for name, method in _LATER.items() if hasattr(session, name)]
    rng.shuffle(looks)
    for look in looks:
        with _Documented():
            look()
    with _Documented():
        for id_ in list(session.tasks):
            with _Documented():
                repr(session.load(id_))


_LATER: Final[dict[str, Callable[[Any], Callable[[], object]]]] = {
    "info": lambda session: lambda: repr(session.info()),
    "check": lambda session: lambda: list(session.check()),
    "log": lambda session: lambda: list(session.log()),
}


def _add(session: Session, rng: Random) -> None:
    session.add(Task(jobname="new", extra={"data": bytes(rng.choice((0, 9000)))}), flush=rng.random() < 0.5)


def _save(session: Session, rng: Random) -> None:
    for task in session:
        if isinstance(task, Task):
            task.jobname = "changed"
            break
    session.save_all()


def _one(session: Session, rng: Random) -> str:
    ids = list(session.tasks)
    return rng.choice(ids) if ids else "Task.1"


def _remove(session: Session, rng: Random) -> None:
    session.remove(_one(session, rng))


def _forget(session: Session, rng: Random) -> None:
    session.forget(_one(session, rng))


def _transaction(session: Session, rng: Random) -> None:
    with session.transaction():
        session.add_many(Task(jobname=f"m{n}") for n in range(50))
        session.remove(_one(session, rng))


def _end(session: Session, rng: Random) -> None:
    session.set_end_timestamp()
    session.set_start_timestamp(1.0)


# -- commands

Arguments = Callable[[Place, Random], list[str]]


def _id(place: Place, rng: Random) -> str:
    return rng.choice((*place.ids, "Task.1", "Task.99999", "Unreadable.1", "\x1b[2J.1", "\u202eTask.3", "../x"))


COMMANDS: Final[dict[str, tuple[Arguments, ...]]] = {
    "record": (lambda p, r: ["record", str(p.session), "--", "true"],),
    "import-wf": (lambda p, r: ["import-wf", str(p.session), str(p.out / "workflow.json")],),
    "info": (lambda p, r: ["info", str(p.session), *r.choice(([], ["--scan"], ["--json"]))],),
    "list": (lambda p, r: ["list", str(p.session)], lambda p, r: ["list", "-r", str(p.session)]),
    "select": (
        lambda p, r: [
            "select",
            str(p.session),
            *r.choice(([], ["--state", "NEW"], ["-r"], ["--where", "jobname > a"])),
        ],
    ),
    "show": (lambda p, r: ["show", str(p.session), *(_id(p, r) for _ in range(5))],),
    "log": (lambda p, r: ["log", str(p.session)],),
    "watch": (lambda p, r: ["watch", str(p.session), "--once"],),
    "dump": (
        lambda p, r: ["dump", str(p.session)],
        lambda p, r: ["dump", str(p.session), "-o", str(p.out / "d.jsonl")],
    ),
    "load": (
        lambda p, r: ["load", str(p.session), str(p.dump), "--on-clash", r.choice(("fail", "skip", "renumber"))],
    ),
    "diff": (
        lambda p, r: ["diff", str(p.session), str(p.sound)],
        lambda p, r: ["diff", str(p.dump), str(p.session)],
    ),
    "backup": (lambda p, r: ["backup", str(p.session), str(p.out / "backup")],),
    "compact": (lambda p, r: ["compact", str(p.session)],),
    "check": (lambda p, r: ["check", str(p.session), *r.choice(([], ["--references"]))],),
    "repair": (lambda p, r: ["repair", str(p.session)], lambda p, r: ["repair", "--dry-run", str(p.session)]),
    "remove": (lambda p, r: ["remove", "--yes", str(p.session), _id(p, r)],),
    "forget": (lambda p, r: ["forget", "--yes", str(p.session), _id(p, r)],),
    "destroy": (lambda p, r: ["destroy", "--yes", str(p.session)],),
    "migrate": (lambda p, r: ["migrate", str(p.session), f"lmdb://{p.out}/migrated"],),
}
"""The command lines that each command is tried with."""

INSPECTING: Final = frozenset(("info", "list", "select", "show", "log", "watch", "dump", "diff", "check", "read"))
"""What never changes a byte of the session."""

STATUSES: Final = frozenset((0, 1, 2))


def command(name: str) -> Action:
    """Return the action of a command."""

    def action(place: Place, rng: Random) -> int:
        return program.run(rng.choice(COMMANDS[name])(place, rng))

    return action


def actions() -> dict[str, Action]:
    """Return all actions.  Raise LookupError if there is a command that none of them tries."""
    untried = set(program._COMMANDS) - set(COMMANDS)
    if untried:
        raise LookupError(f"hostile_actions.COMMANDS has no line for the commands {', '.join(sorted(untried))}")
    python: dict[str, Action] = {"read": read, "write": write, "make_again": make_again, "store": store}
    return python | {name: command(name) for name in program._COMMANDS}


def import_all() -> None:
    """Import and compile what the actions will, before children are forked: what they do then is due to a record."""
    modules = pkgutil.walk_packages(gc3session.__path__, "gc3session.")
    for module in (*(found.name for found in modules if found.name != "gc3session.__main__"), *_LAZY):
        with contextlib.suppress(ImportError):  # of a package that need not be there
            importlib.import_module(module)
    classes: list[type[Persistable]] = [Persistable]
    for cls in classes:
        classes += cls.__subclasses__()
        layout_of(cls)


_LAZY: Final = (
    "difflib encodings.idna encodings.unicode_escape lmdb._envid numpy psycopg zoneinfo zstandard".split()
)
"""What the library imports where it is needed, whatever the session says."""


# -- the child


def prepare(files: list[int], out: Path) -> None:
    """Make this process, which has been forked for it, one that does cases: its limits, and where it may write."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    tempfile.tempdir = os.fspath(out)
    warnings.simplefilter("ignore")
    gc.freeze()


def do(action: Action, place: Place, rng: Random) -> int:
    """Do *action* and what a program does at its end; return the exit status.

    Nothing of it is left in this process, but for what the library keeps for a program's life.
    """
    status = WRONG
    sys.stdout = TextIOWrapper(_buffered(1), encoding="utf-8")
    sys.stderr = TextIOWrapper(_buffered(2), "utf-8", "backslashreplace")
    signal.alarm(SECONDS)
    try:
        try:
            status = action(place, rng)
        except Error:
            status = 1
        _finish()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001  the parent learns of it
        status = WRONG
        for frame in traceback.extract_tb(error.__traceback__):  # traceback.print_exc would compile their lines
            print(f"{frame.filename}, line {frame.lineno}, in {frame.name}", file=sys.stderr)
        print(*traceback.format_exception_only(error), sep="", end="", file=sys.stderr)
        sys.stderr.flush()
    gc.collect()
    signal.alarm(0)
    return status


def is_clean() -> bool:
    """Return whether nothing is open any more: another session in the same place would be taken for that one."""
    return not registry._environments


def _buffered(fd: int) -> BufferedWriter:
    return BufferedWriter(FileIO(fd, "wb", closefd=False))


def problem(name: str, status: int, out: bytes, err: bytes) -> str:
    """Return what is wrong with how a child has ended (a wait status) and what it has written, or ''."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hung = f": it has hung for {SECONDS} s" if number == signal.SIGALRM else ""
        return f"ended by {signal.Signals(number).name}{hung}"
    code = os.waitstatus_to_exitcode(status)
    if code == WRONG or b"Traceback (most recent call last)" in err:
        lines = err.decode("utf-8", "replace").strip().splitlines() or ["?"]
        where = "".join(f"\n     {line[-150:]}" for line in lines[-7:-1])
        return f"no documented error: {lines[-1][:300]}{where}"
    if code not in STATUSES:
        return f"exit status {code}"
    if name != "dump" or err:  # a dump is JSON, and its text is escaped there
        for stream, data in (("stdout", b"" if name == "dump" else out), ("stderr", err)):
            text = data.decode("utf-8", "replace")
            raw = {
                c
                for c in text
                if c not in SHOWN_CONTROLS and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl")
            }
            if raw:
                return f"control characters are sent to {stream}: {sorted(raw)!r}"
    return ""
