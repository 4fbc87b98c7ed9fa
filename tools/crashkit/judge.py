"""What a session holds after whatever befell it: its whole contents, or what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from gc3session import MirrorWarning, NotASession, NotFound, Session, Task, check_session
from gc3session.index import mirror
from gc3session.upkeep import check_mirror
from generator import owner_of
from specimens import record_of
from steps import SHARED, Change, Contents

MAP = 1 << 24
"""Bytes of address space that a judge needs."""

ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"

_place_of = mirror.place_of

_MADE_LAST = ("directory", "mirror")
"""Kinds of findings that there may be while processes are killed: the session is being made, or its mirror is stale."""

_PASSING = "passing"
"""The name of a task that is added only to be removed."""


@attrs.frozen
class Found:
    """What was found.

    Attributes:
        contents: what there is of each owner; None if there is no session, and one could be made there.
        new: the N that a task was given which was added afterwards; 0 if none was.
        problem: what is wrong, or ''.
    """

    contents: dict[str, Contents] | None = None
    new: int = 0
    problem: str = ""


def boot_again() -> None:
    """Make this process believe that the machine was started again, as after a power cut."""
    for module in (mirror, check_mirror):
        vars(module).update(os=os, place_of=_place_of)
    vars(mirror).update(_boot_id=lambda: ANOTHER_BOOT)


def take_for(root: Path, where: str, inodes: Mapping[str, int]) -> None:
    """Make this process believe that the files in *root* are those of processes that were killed there.

    Args:
        root: where copies of these files are.
        where: what `place_of` said of a file there.
        inodes: those that the files had, by their paths in *root*.
    """
    boot_id, device, mount, _ = where.split(" ")
    had = {os.lstat(root / path).st_ino: inode for path, inode in inodes.items()}

    def status(found: os.stat_result) -> os.stat_result:
        inode = had.get(found.st_ino, found.st_ino)
        named = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return os.stat_result((found[0], inode, *found[2:10]), named)

    def place_of(fd: int) -> str:
        return f"{boot_id} {device} {mount} {status(os.fstat(fd)).st_ino}"

    lstat, fstat = (lambda path: status(os.lstat(path))), (lambda fd: status(os.fstat(fd)))
    looking = SimpleNamespace(**{**vars(os), "lstat": lstat, "fstat": fstat})
    for module in (mirror, check_mirror):
        vars(module).update(os=looking, place_of=place_of)


def judge(path: Path, *, further: bool = True) -> Found:
    """Open the session at *path* and look at all of it; with *further* add a task, look again, and have it checked."""
    with warnings.catch_warnings():
        # Nobody has edited the mirror: what is wrong with it must be repaired without a warning.
        warnings.simplefilter("error", MirrorWarning)
        try:
            return _judge(path, further)
        except Exception as error:  # noqa: BLE001  whatever it raises is what is wrong
            return Found(problem=f"{type(error).__name__}: {error}")


def _judge(path: Path, further: bool) -> Found:
    try:
        session = Session(path, create=False, map_size=MAP)
    except NotASession:
        with Session(path, map_size=MAP) as session:
            if len(session):
                raise ValueError(f"a new session at {path} has {len(session)} tasks") from None
        return Found()
    with session:
        before = contents(session)
        if not further:
            return Found(before)
        new = session.add(Task(jobname="afterwards"))
        session.close()
    with Session(path, create=False, map_size=MAP) as session:
        if session[new].jobname != "afterwards":
            raise ValueError(f"{new} is another task than was added as that")
        session.remove(new)
        if contents(session) != before:
            raise ValueError("the session holds something else after another task was added and removed")
    found = findings(path)
    if found:
        raise ValueError("; ".join(found[:3]))
    return Found(before, number_of(new))


def number_of(id_: str) -> int:
    """Return the N of an ID."""
    return int(id_.rpartition(".")[2])


def mirrored(path: Path) -> list[str]:
    """Return the IDs that the mirror of the session at *path* lists."""
    text = (path / Session.INDEX_FILENAME).read_text()
    if text[-1:] not in ("", "\n"):
        raise ValueError(f"the last line of the mirror is cut: {text[-50:]!r}")
    return [line.strip() for line in text.splitlines() if line.strip()]


def contents(session: Session, owners: Iterable[str] = ()) -> dict[str, Contents]:
    """Return what the session holds of *owners*, and of all others, while nobody else works on it.

    Raise ValueError if it contradicts itself.
    """
    ids, tasks = list(session.ids()), list(session)
    if ids != [str(task.persistent_id) for task in tasks] or {len(session), len(set(ids))} != {len(ids)}:
        raise ValueError(f"{len(session)} tasks, of which {ids} are listed and {tasks} loaded")
    if ids != sorted(ids, key=number_of):
        raise ValueError(f"{ids} are not in the order of their numbers")
    if set(ids) != session.list_ids():
        raise ValueError(f"ids() gives {ids}, list_ids() {session.list_ids()}")
    states = dict(Counter(task.state for task in tasks))
    if session.stats() != states:
        raise ValueError(f"the states are {states}, stats() says {session.stats()}")
    lines = mirrored(Path(session.path))
    if sorted(lines) != sorted(ids):  # they are in the order of the commits
        raise ValueError(f"the mirror lists {lines}, the session {ids}")
    outside = [session.load(id_) for id_ in session.store.list() if id_ not in session]
    found = _by_owner(tasks, outside, owners)
    if session.finished:
        found["0"] = found.get("0", Contents()).after([Change("count", "finished", int(session.finished))])
    return found


def _by_owner(members: Iterable[Any], outside: Iterable[Any], owners: Iterable[str]) -> dict[str, Contents]:
    """Return what there is of *owners*, and of all others, if these are the tasks in and outside of the session."""
    changes: dict[str, list[Change]] = {owner: [] for owner in owners}
    names = set()
    for verb, tasks in {"add": members, "part": outside}.items():
        for task in tasks:
            name = task.jobname
            if name == _PASSING:
                continue
            if name in names:
                raise ValueError(f"{name} is there twice")
            names.add(name)
            if name == SHARED:
                for owner in {**changes, **task.content}:
                    number = task.content.get(owner, 0)
                    changes.setdefault(owner, []).append(Change("count", SHARED, number))
            else:
                changes.setdefault(owner_of(name), []).append(Change(verb, name, record_of(task)))
    return {owner: Contents().after(each) for owner, each in changes.items()}


def make_commit(session: Session) -> None:
    """Make a commit: an earlier one, by a process that was killed before it returned, is sure to be seen only after that."""
    session.remove(session.add(Task(jobname=_PASSING)))


def look(session: Session, owner: str) -> tuple[Contents, dict[str, str]]:
    """Return what there is of an owner, which does nothing meanwhile, and the IDs by name; others may use the session."""
    make_commit(session)
    ids = list(session.ids())
    tasks: dict[str, Any] = {}
    for id_ in dict.fromkeys((*ids, *session.store.list())):
        with contextlib.suppress(NotFound):  # another owner has removed it meanwhile
            task: Any = session.load(id_)
            if task.jobname == SHARED or owner_of(task.jobname) == owner:
                tasks[id_] = task
    members = [task for id_, task in tasks.items() if id_ in session]
    outside = [task for id_, task in tasks.items() if id_ not in session]
    return _by_owner(members, outside, [owner])[owner], {task.jobname: id_ for id_, task in tasks.items()}


def findings(path: Path, *, meanwhile: bool = False) -> list[str]:
    """Return what `check_session` finds; *meanwhile* writers are at work on the session, or killed."""
    left_out = _MADE_LAST if meanwhile else ()
    return [f"check finds {finding}" for finding in check_session(path) if finding.kind not in left_out]
