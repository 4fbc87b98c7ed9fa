"""Kills repairs: `killed_repairs.py SCRATCH DAMAGED all|some`, started with the crash kit's recorder, which watches SCRATCH.

A copy of the session DAMAGED is repaired in a child that is killed instead of its n-th I/O call; then
it is repaired again, and must hold what a repair that nobody kills makes of it.  (It may hold more: a damaged
record comes back from a copy that the other one has written over.)  What is wrong is printed as JSON, with the
number of kills.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import Died, in_child
from gc3session import Session, check_session, repair_session
from gc3session.cli.program import run
from test_damages import lines_of

KNOWN = {
    "created",
    "finished",
    "session_ids.txt",
    "store.url",
    "jobs",
    "damaged",
    "data.mdb",
    "lock.mdb",
    "writer.lock",
    "checked",
}

_LIBRARY = ctypes.CDLL(None)
_LIBRARY.crashkit_kinds.restype = ctypes.c_char_p


def by_python(path: Path) -> None:
    repair_session(path)


def by_command(path: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        run(["repair", str(path)])


def by_session(path: Path) -> None:
    """Through an open session, if this damage lets one be opened and its store is to stay as it is."""
    with Session(path, create=False) as session:
        session.repair()


WAYS = {"python": by_python, "command": by_command, "session": by_session}


def repaired(path: Path, at: int, way: Callable[[Path], None]) -> str:
    """Repair, and be killed instead of the n-th call; return the kinds of all calls, if there are fewer."""
    warnings.simplefilter("ignore")
    before = len(_LIBRARY.crashkit_kinds())
    _LIBRARY.crashkit_fault(ctypes.c_long(at), b"kill", 0)
    way(path)
    _LIBRARY.crashkit_fault(ctypes.c_long(0), b"", 0)
    return str(_LIBRARY.crashkit_kinds()[before:].decode())


def holds(path: Path) -> list[dict[str, Any]]:
    """Return the tasks of a session that must be sound."""
    findings = list(check_session(path))
    if findings:
        raise AssertionError(f"check finds {findings[:3]}")
    Session(path, create=False).close()  # which takes a mirror away that was not renamed
    left = {name for at, *names in os.walk(path) if "damaged" not in at for some in names for name in some} - KNOWN
    if left:
        raise AssertionError(f"it has left {sorted(left)}")
    return list(lines_of(path).values())


def repaired_and_holds(path: Path) -> list[dict[str, Any]]:
    repair_session(path)
    return holds(path)


def fresh(damaged: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(damaged, path, symlinks=True)
    return path


def chosen(kinds: str) -> list[int]:
    """Return the numbers of the calls that change names, of the first and of the last one."""
    return sorted({1, len(kinds), *(n for n, kind in enumerate(kinds, 1) if kind == "n")})


def main() -> None:
    """Kill repairs of one damaged session."""
    path, damaged = Path(sys.argv[1], "session"), Path(sys.argv[2])
    wrong, kills = [], 0
    for name in sys.argv[4:]:
        way = WAYS[name]
        kinds = in_child(repaired, fresh(damaged, path), 0, way)
        expected = in_child(holds, path)
        for at in chosen(kinds) if sys.argv[3] == "some" else range(1, len(kinds) + 1):
            fresh(damaged, path)
            try:
                in_child(repaired, path, at, way)
                wrong.append(f"{name}: call {at} of {kinds} was not reached")
            except Died as died:
                if died.status != -signal.SIGKILL:
                    raise
            kills += 1
            try:
                held = in_child(repaired_and_holds, path)
                if any(line not in held for line in expected):
                    wrong.append(f"{name}: killed at call {at} of {kinds} it ends with other tasks")
            except Exception as error:
                wrong.append(f"{name}: killed at call {at} of {kinds}: {error!r}")
    print(json.dumps({"wrong": wrong, "kills": kills}))


if __name__ == "__main__":
    main()
