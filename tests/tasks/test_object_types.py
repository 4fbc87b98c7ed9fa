"""What a type checker says of programs that use the library: of right ones nothing, of wrong ones the line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gc3session

ROOT = Path(gc3session.__file__).parent.parent

CLASSES = """
from typing import Any, Generic, TypeVar, assert_type

import attrs

from gc3session import Persistable, Session, Task, TaskCollection, TemporarySession, make_store


@attrs.define
class Simulation(Task):
    mesh: str = ""
    steps: int = 0


@attrs.define
class Sweep(TaskCollection[Simulation]):
    parameter: str = ""


@attrs.define
class Note(Persistable):
    text: str
    about: Simulation | None = None
"""

RIGHT = """

def of_one_class(session: Session[Simulation]) -> None:
    for task in session:
        assert_type(task, Simulation)
        task.mesh = task.mesh.upper()
    assert_type(session["Simulation.1"], Simulation)
    assert_type(session.tasks["Simulation.1"], Simulation)
    assert_type(session.get("Simulation.1"), Simulation | None)
    assert_type(session.get("Simulation.1", None), Simulation | None)
    assert_type(session.get("Simulation.1", 3), Simulation | int)
    assert_type(session.get("Simulation.1", Simulation()), Simulation)
    for task in session.select(state="NEW", steps=3):
        assert_type(task, Simulation)
    with session.edit(name="x") as tasks:
        for task in tasks:
            assert_type(task, Simulation)
    assert_type(session.update(session.select(state=["NEW"]), mesh="m"), int)
    with session as same, session.transaction() as again:
        assert_type(same, Session[Simulation])
        assert_type(again, Session[Simulation])
    assert_type(session.add(Simulation()), str)
    assert_type(session.save(Simulation(), flush=False), str)
    session.add_many(Simulation(steps=n) for n in range(3))


def of_several(session: Session[Simulation | Sweep]) -> None:
    for task in session:
        if isinstance(task, Sweep):
            assert_type(task.tasks, list[Simulation])
        else:
            assert_type(task, Simulation)


def by_kind(session: Session[Task]) -> None:
    for simulation in session.select(kind=Simulation, state="NEW"):
        assert_type(simulation, Simulation)
    for task in session.select(kind=["Simulation", Sweep]):
        assert_type(task, Task)
    with session.edit(kind=Simulation) as simulations:
        for simulation in simulations:
            assert_type(simulation, Simulation)
    with session.edit(kind="Simulation") as tasks:
        for task in tasks:
            assert_type(task, Task)
    assert_type(session.load("Simulation.1", Simulation), Simulation)
    assert_type(session.load("Note.1", kind=Note, add=True).text, str)
    assert_type(session.load("Simulation.1"), Any)


def bare(session: Session) -> None:
    for task in session:
        task.mesh = "whatever its class has"
    assert_type(session["Simulation.1"], Any)
    new = Session("campaign", batch_bytes=1 << 20)
    for other in new.select(where="steps > 3"):
        other.mesh = "whatever its class has"
    named: Session[Simulation] = Session("campaign")
    assert_type(named["Simulation.1"].mesh, str)
    assert_type(Session[Simulation]("campaign")["Simulation.1"], Simulation)


def temporary(session: TemporarySession[Simulation]) -> None:
    assert_type(session["Simulation.1"].mesh, str)
    assert_type(make_store("jobs").load("Simulation.1"), Persistable)


def collections(sweep: Sweep, mixed: TaskCollection) -> None:
    sweep.add(Simulation())
    sweep.discard(sweep.tasks[0])
    for simulation in sweep:
        assert_type(simulation, Simulation)
    own = TaskCollection[Sweep](jobname="both", tasks=[Sweep(tasks=[Simulation()])])
    assert_type(own.tasks[0].tasks[0].mesh, str)
    mixed.add(Task())
    mixed.add(Note("t"))
    for task in mixed:
        task.mesh = "whatever its class has"


M = TypeVar("M", bound=Task)


@attrs.define
class Batch(TaskCollection[M], Generic[M]):
    size: int = 0


def generic(batch: Batch[Simulation]) -> None:
    assert_type(batch.tasks[0].mesh, str)


def task(simulation: Simulation) -> None:
    simulation.set_state("RUNNING", time=3.5)
    assert_type(simulation.state, str)
    simulation.state = "TERMINATED"
    assert_type(simulation.persistent_id, str | None)
    assert_type(attrs.evolve(simulation, mesh="n"), Simulation)
    assert_type(simulation.events[0].state, str)
    simulation.extra["x"] = 1
"""

WRONG = """

def wrong(session: Session[Simulation], tasks: Session[Task], sweep: Sweep, simulation: Simulation) -> None:
    session["Simulation.1"].meshh  # error
    session.tasks["Simulation.1"].meshh  # error
    session.get("Simulation.1").mesh  # error
    number: int = session.get("Simulation.1", 3)  # error
    session.load("Simulation.1", Simulation).meshh  # error
    session.load("Simulation.1", int)  # error
    session.load("Simulation.1", "Simulation")  # error
    next(session.select(state="NEW")).meshh  # error
    next(tasks.select(kind=Simulation)).meshh  # error
    next(tasks.select(state="NEW")).mesh  # error
    next(session.select(state=3))  # error
    next(session.select(kind=int))  # error
    for other in session:
        other.meshh = ""  # error
        other.steps = "3"  # error
    with session.edit(kind=Sweep) as edited:
        for one in edited:
            one.mesh = ""  # error
    session.update([simulation], mesh="")  # error
    session.add("Simulation.1")  # error
    session.add_many([simulation, 3])  # error
    session.save(simulation, flsh=True)  # error
    simulation.state = 3  # error
    simulation.set_state(3)  # error
    simulation.set_state("RUNNING", time="now")  # error
    simulation.persistent_id = "Simulation.1"  # error
    Simulation(meshh="")  # error
    Simulation(steps="")  # error
    Note()  # error
    sweep.add(Task())  # error
    sweep.tasks.append("Simulation.1")  # error
    Sweep(tasks=[Task()])  # error
    for member in sweep:
        member.meshh = ""  # error
    TaskCollection[Sweep](tasks=[simulation])  # error
    simple: Session[Task] = session["Simulation.1"]  # error
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    (directory / "right.py").write_text(CLASSES + RIGHT)
    (directory / "wrong.py").write_text(CLASSES + WRONG)
    return directory


def check(programs: Path, errors: dict[str, dict[int, str]]) -> None:
    """Check the messages by file and line: none of what is right, and one of each line that is wrong."""
    assert errors.get("right.py", {}) == {}
    lines = (programs / "wrong.py").read_text().splitlines()
    wrong = {number: line for number, line in enumerate(lines, 1) if line.endswith("# error")}
    found = errors.get("wrong.py", {})
    assert {number: line for number, line in wrong.items() if number not in found} == {}
    assert {number: found[number] for number in found if number not in wrong} == {}


def test_mypy_passes_what_is_right_and_finds_what_is_wrong(programs: Path, pytestconfig: pytest.Config) -> None:
    kept = getattr(pytestconfig, "cache", None)
    cache = programs if kept is None else kept.mkdir("mypy")
    environment = {**os.environ, "MYPYPATH": str(ROOT)} if (ROOT / "pyproject.toml").exists() else None
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"]
    command += ["--follow-imports=silent"]
    done = subprocess.run(
        [*command, "--no-error-summary", "right.py", "wrong.py"],
        cwd=programs,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    errors: dict[str, dict[int, str]] = {}
    for line in done.stdout.splitlines():
        parsed = re.fullmatch(r"(\w+\.py):(\d+): (?:error|note): (.*)", line)
        assert parsed, line
        errors.setdefault(parsed[1], {})[int(parsed[2])] = parsed[3]
    check(programs, errors)


def test_pyright_passes_what_is_right_and_finds_what_is_wrong(programs: Path) -> None:
    # Of a class that wasn't told what is in it nothing is known, which strict checking says of each use.
    silent = ["MissingTypeArgument", "MissingTypeStubs", "UnusedExpression", "UnusedImport", "UnusedVariable"]
    silent += ["UnknownVariableType", "UnknownMemberType", "UnknownArgumentType", "UnknownParameterType"]
    settings = {
        "typeCheckingMode": "strict",
        "extraPaths": [str(ROOT)],
        **{f"report{what}": False for what in silent},
    }
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "right.py", "wrong.py"],
        cwd=programs,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    errors: dict[str, dict[int, str]] = {}
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        line = found["range"]["start"]["line"] + 1
        errors.setdefault(Path(found["file"]).name, {})[line] = found["message"]
    check(programs, errors)
