"""All that can be done with a session, under a hook that ends this process: `watched.py KIT HARMLESS HOSTILE`.

In each of these two directories there are `session`, `dump.jsonl`, `tasks.jsonl`, `workflow.json`, and an empty
directory `out`. First the harmless session is used, so that all is imported that this needs, whatever a session says;
then the hostile one, under the hook. What was done is printed as JSON, with its exit status.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gc3session import Error, Session, check_session, diff, dump_session, load_dump, make_store, repair_session
from gc3session.cli.program import _COMMANDS, run


def python_ways(place: Path) -> dict[str, Callable[[Session], object]]:
    """Return what can be done with a session that is open to be read."""
    return {
        "load": lambda session: [repr(session.load(id_)) for id_ in session.list_ids()],
        "iterate": lambda session: [(repr(task), vars_of(task)) for task in session],
        "workflow": lambda session: [repr(task) for task in session.iter_workflow()],
        "list": lambda session: (session.list_names(), session.stats(), list(session.ids()), repr(session)),
        "select": lambda session: list(session.select(where="extra.n > 1", name="a")),
        "stored": lambda session: list(session.select(where="jobname ~ a").stored()),
        "log": lambda session: [repr(entry) for entry in session.log()],
        "watch": lambda session: repr(next(iter(session.watch()))),
        "info": lambda session: repr(session.info(scan=True)),
        "check": lambda session: list(session.check(references=True)),
        "dump": lambda session: dump_session(session, io.BytesIO()),
        "diff": lambda session: list(diff(session, place / "dump.jsonl")),
        "backup": lambda session: session.backup(place / "out" / "backup"),
    }


def vars_of(task: Any) -> list[str]:
    return [repr(getattr(task, name, None)) for name in dir(task) if not name.startswith("_")]


def without_session(place: Path) -> dict[str, Callable[[], object]]:
    """Return what can be done with a session's directory, and with a dump."""
    return {
        "check_session": lambda: list(check_session(place / "session")),
        "repair_session": lambda: repair_session(place / "session", dry_run=True),
        "store": lambda: [repr(obj) for obj in map_store(place)],
        "load_dump": lambda: load_dump(place / "out" / "loaded", place / "dump.jsonl"),
    }


def map_store(place: Path) -> list[object]:
    with make_store(place / "session" / "jobs", read_only=True) as store:
        return [store.load(id_) for id_ in store.list()]


def lines(place: Path) -> dict[str, list[str]]:
    """Return a command line for each command, in an order in which they can be run one after the other."""
    session, out, dump = str(place / "session"), place / "out", str(place / "dump.jsonl")
    with Session(session, read_only=True) as opened:
        first, second, *_ = opened.ids()
    arguments: dict[str, list[str]] = {
        "info": [session, "--scan"], "list": [session, "-r"], "select": [session, "--where", "jobname ~ a"], "log": [session],
        "show": [session, first, second], "watch": [session, "--once"], "dump": [session], "check": [session],
        "diff": [session, dump], "backup": [session, f"{out}/by command"], "load": [f"{out}/loaded by command", dump],
        "record": [session, str(place / "tasks.jsonl")], "import-wf": [f"{out}/imported", str(place / "workflow.json")],
        "repair": [session], "forget": [session, first, "--yes"], "remove": [session, second, "--yes"],
        "compact": [session], "migrate": [session, f"lmdb://{out}/store"], "destroy": [session, "--yes"],
    }  # fmt: skip
    if arguments.keys() != set(_COMMANDS):
        raise LookupError(f"no line for {set(_COMMANDS) - arguments.keys()}")
    return arguments


def use(place: Path) -> dict[str, int]:
    """Do all of it; return how each ended."""
    ended: dict[str, int] = {}

    def do(name: str, function: Callable[[], object]) -> None:
        try:
            function()
            ended[name] = 0
        except Error:
            ended[name] = 1

    def all_ways() -> None:
        with Session(place / "session", read_only=True) as session:
            for name, way in python_ways(place).items():
                do(name, lambda way=way: way(session))

    do("open", all_ways)
    for name, way in without_session(place).items():
        do(name, way)
    for name, arguments in lines(place).items():
        ended[f"gc3session {name}"] = run([name, *arguments])
    return ended


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from hostile_watch import forbid_side_effects

    warnings.simplefilter("ignore")
    harmless, hostile = map(Path, sys.argv[2:])
    stdout, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO())
    ended = [use(harmless)]
    forbid_side_effects((hostile / "session", hostile / "out"))
    ended.append(use(hostile))
    stdout.write(json.dumps(ended))
    stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
