"""What a session holds after whatever befell it: its whole contents, or what is wrong with it."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

import gc3session.index.mirror
from gc3session import MirrorWarning, NotASession, Session, Task, check_session
from script import Group, Holds, Job, child_of, is_group, program_of, value_of

MAP = 1 << 24
"""Bytes of address space that a judge needs."""

ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"


@attrs.frozen
class Found:
    """What was found.

    Attributes:
        holds: what there is of each program; None if there is no session, and one could be made there.
        new: the N that a task was given which was added afterwards; 0 if none was.
        problem: what is wrong, or ''.
    """

    holds: dict[int, Holds] | None = None
    new: int = 0
    problem: str = ""


_this_boot = gc3session.index.mirror._boot_id


def boot(*, again: bool) -> None:
    """Have this process take the machine for one that was started *again*, as it is after a power cut, or was not."""
    gc3session.index.mirror._boot_id = (lambda: ANOTHER_BOOT) if again else _this_boot  # type: ignore[assignment]


def judge(path: Path, *, further: bool = True) -> Found:
    """Open the session at *path* and look at all of it; with *further* add a task, look again, and have it checked."""
    with warnings.catch_warnings():
        # Nobody has edited the mirror: what is wrong with it must be mended without a word.
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
    _check(path)
    return Found(before, int(new.rpartition(".")[2]))


def contents(session: Session) -> dict[int, Holds]:
    """Return what the session holds of each program.  Raise ValueError if it contradicts itself."""
    ids = list(session.ids())
    members: dict[str, Any] = {}
    states: Counter[str] = Counter()
    for task in session:
        if task.jobname in members:
            raise ValueError(f"{task.jobname} is in the session twice")
        members[task.jobname] = value_of(task)
        states[task.state] += 1
    if len(session) != len(ids) or len(members) != len(ids) or set(ids) != session.list_ids():
        raise ValueError(f"{len(session)} tasks, of which {len(ids)} are listed and {len(members)} loaded")
    if session.stats() != dict(states):
        raise ValueError(f"the states are {dict(states)}, stats() says {session.stats()}")
    lines = Path(session.path, session.INDEX_FILENAME).read_text().splitlines()
    if [line.strip() for line in lines if line.strip()] != ids:
        raise ValueError(f"the mirror lists {lines}, the session {ids}")
    stored, children = _outside(session, set(ids))
    parents = [*members, *stored]
    if sorted(children) != sorted(child_of(name) for name in parents if is_group(name)):
        raise ValueError(f"there are the children {children} of {parents}")
    finished = int(session.finished or 0)
    programs = {program_of(name) for name in parents}
    return {
        program: Holds(
            {name: value for name, value in members.items() if program_of(name) == program},
            {name: value for name, value in stored.items() if program_of(name) == program},
            finished if program == 0 else 0,
        )
        for program in programs | {0}
    }


def _outside(session: Session, members: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the tasks that are stored and not in the session, and the names of the groups' jobs."""
    stored: dict[str, Any] = {}
    children = []
    for id_ in session.store.list():
        if id_ in members:
            continue
        task = session.load(id_)
        if isinstance(task, Job) and task.jobname.startswith("in "):
            children.append(task.jobname)
        elif isinstance(task, Job | Group) and task.jobname not in stored:
            stored[task.jobname] = value_of(task)
        else:
            raise ValueError(f"{id_}, {task.jobname}, is stored and nobody has stored it")
    return stored, children


def _check(path: Path) -> None:
    """Raise ValueError if the library's own check finds anything."""
    findings = [f"{finding.where}: {finding.message}" for finding in check_session(os.fspath(path))]
    if findings:
        raise ValueError(f"the check finds: {'; '.join(findings[:3])}")
