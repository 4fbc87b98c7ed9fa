"""What shells offer at the Tab key, tried in real shells; and hints for commands that there aren't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gc3session import Session, Task
from test_cli import CHECKOUT, one_error, run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a session, and a program `gc3session`."""
    with Session(tmp_path / "runs") as session:
        session.add_many([Task(state="RUNNING"), Task(state="odd"), Task(state="RUNNING")])
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gc3session"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gc3session "$@"\n')
    program.chmod(0o755)
    return tmp_path


def shell(here: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": f"{here / 'bin'}:{os.environ['PATH']}"}
    ran = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert "Traceback" not in ran.stderr
    return ran.stdout


def offered_by_bash(here: Path, *words: str) -> list[str]:
    """Return what bash offers after these words, of which the last one is begun."""
    script = """
        eval "$(gc3session --completion bash)"
        complete -p gc3session >/dev/null || exit 1
        COMP_WORDS=(gc3session "$@")
        COMP_CWORD=$#
        _gc3session_completion gc3session
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    return shell(here, "bash", "--norc", "-c", script, "bash", *words).split()


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    {
        ("sel",): ["select"],
        ("list", "--sor"): ["--sort"],
        ("list", "runs", "--state", ""): ["RUNNING", "odd"],
        ("list", "runs", "--state", "R"): ["RUNNING"],
        ("list", "runs", "--state", "odd,R"): ["odd,RUNNING"],
        ("list", "runs", "--format", "js"): ["json", "jsonl"],
        ("show", "runs", ""): ["Task.1", "Task.2", "Task.3"],
        ("show", "runs", "Task.2", "Task."): ["Task.1", "Task.3"],
        ("remove", "runs", "Task.3"): ["Task.3"],
        ("show", "none", ""): [],
        ("list", "none", "--state", "TERM"): ["TERMINATING", "TERMINATED"],
        ("--completion", ""): ["bash", "zsh", "fish"],
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_offers(here: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert offered_by_bash(here, *words) == offered


@needs_bash
def test_bash_offers_directories_for_a_session(here: Path) -> None:
    out = shell(
        here,
        "bash",
        "--norc",
        "-c",
        "COMP_WORDS='gc3session info ru' COMP_CWORD=2 _GC3SESSION_COMPLETE=bash_complete gc3session",
    )
    assert out == "dir,ru\n"


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_that_it_accepts(here: Path, name: str) -> None:
    out = run("--completion", name).out
    assert "_GC3SESSION_COMPLETE" in out
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    check = {"bash": "-n", "zsh": "-n", "fish": "--no-execute"}[name]
    (here / "script").write_text(out)
    shell(here, name, check, "script")


def test_completing_changes_nothing(here: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*") if file.name != "lock.mdb"}
    environment = {
        "COMP_WORDS": "gc3session show runs ",
        "COMP_CWORD": "3",
        "_GC3SESSION_COMPLETE": "bash_complete",
    }
    assert run(env=environment, cwd=here).out == "plain,Task.1\nplain,Task.2\nplain,Task.3\n"
    assert {
        file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*") if file.name != "lock.mdb"
    } == before


@pytest.mark.parametrize(
    ("typed", "hint"), [("lst", "'list'"), ("selct", "'select'"), ("Dump", "'dump'"), ("qqq", None), ("rm", None)]
)
def test_a_command_that_there_is_not_brings_the_nearest_to_mind(typed: str, hint: str | None) -> None:
    error = one_error(run(typed), 2)
    assert error.startswith(f"No such command '{typed}'.")
    assert (f"Did you mean {hint}?" in error) if hint else ("Did you mean" not in error)
