"""Every inspecting command: beside a writer, on what may only be read, without the classes, and nothing changes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from children import in_child, run_python, start_python
from consistency import check, number_of
from gc3session import Session, load_dump
from gc3session.cli.program import _COMMANDS
from test_cli import Ran, run
from test_damage import NOBODY, forbid_writing
from test_damage import reachable as reachable
from test_dump import dumped, lines_of
from test_inspect_script import inspect

WRITING = {"record", "import-wf", "load", "compact", "repair", "remove", "forget", "destroy", "migrate"}

INSPECTING: dict[str, list[Any]] = {
    "info": ["info", "{session}", "--scan"],
    "list": ["list", "{session}", "-r"],
    "select": ["select", "{session}", "state = NEW"],
    "show": ["show", "{session}", "Job.1"],
    "log": ["log", "{session}"],
    "watch": ["watch", "{session}", "--once"],
    "dump": ["dump", "{session}"],
    "diff": ["diff", "{session}", "{session}"],
    "backup": ["backup", "{session}", "{elsewhere}/copy"],
    "check": ["check", "{session}"],
}
"""What is run of each command that only looks."""

SHOWN = {
    "info": "NEW",
    "list": "first",
    "show": "mesh",
    "log": "first",
    "dump": '"first"',
    "select": "Job.1",
    "watch": "NEW",
}
"""What the output must have in it."""

CLASSES = """
    import sys, time, attrs
    from gc3session import Session, Task

    @attrs.frozen
    class Point:
        x: int

    @attrs.define
    class Job(Task):
        mesh: object = None

    def job(name):
        return Job(jobname=name, mesh=Point(1))
"""

MAKING = f"""{CLASSES}
    with Session(sys.argv[1]) as session:
        session.add(job("first"))
        session.add_many(job(str(n)) for n in range(20))
        session.forget("Job.3")
"""

ADDING = f"""{CLASSES}
    with Session(sys.argv[1]) as session:
        print("begun", flush=True)
        n = 0
        while True:
            session.add(job(f"n{{n}}"))
            if n < 300:
                session.add_many(job(f"n{{n}}.{{m}}") for m in range(n % 50))
            else:  # a fast disk would take millions, which the commands would read for minutes
                time.sleep(0.002)
            n += 1
"""


def arguments(name: str, session: Path, elsewhere: Path) -> list[str]:
    return [part.format(session=session, elsewhere=elsewhere) for part in INSPECTING[name]]


def assert_shown(name: str, ran: Ran, status: int = 0) -> None:
    assert (ran.status, ran.err) == (status, ""), name
    assert SHOWN.get(name, "") in ran.out, (name, ran.out)


def test_all_commands_are_one_or_the_other() -> None:
    assert WRITING | INSPECTING.keys() == set(_COMMANDS)
    assert not WRITING & INSPECTING.keys()


# -- beside a writer ----------------------------------------------------------


@pytest.fixture
def written_path(tmp_path: Path) -> Iterator[Path]:
    """A session to which another process adds without pause; it is consistent in the end."""
    path = tmp_path / "written"
    run_python(MAKING, path)
    writer = start_python("-c", textwrap.dedent(ADDING), path)
    assert writer.stdout
    assert writer.stdout.readline() == "begun\n"
    yield path
    assert writer.poll() is None, "the writer has ended"
    writer.kill()
    _, err = writer.communicate()
    assert err == ""
    with Session(path):  # rewrites the mirror if the kill has left it stale
        pass
    check(path)


def size_of(path: Path) -> int:
    with Session(path, read_only=True) as session:
        return len(session)


def wait_until_written(path: Path) -> None:
    before, end = size_of(path), time.monotonic() + 60
    while size_of(path) == before:
        assert time.monotonic() < end, "the writer adds nothing"


def test_each_command_works_beside_a_writer(written_path: Path, tmp_path: Path) -> None:
    for name in INSPECTING:
        ran = run(*arguments(name, written_path, tmp_path))
        # Of a session that is being written, the two sides of diff are two states of it.
        assert_shown(name, ran, ran.status if name == "diff" and ran.status == 1 else 0)
        if name == "diff":
            assert all(line.startswith("+ Job.") for line in ran.out.splitlines())
        wait_until_written(written_path)
    check(tmp_path / "copy")


def test_dumps_beside_a_writer_are_states_that_the_session_had(written_path: Path, tmp_path: Path) -> None:
    dumps = []
    for n in range(3):
        dumps.append(run("dump", written_path).out.encode())
        dumps.append(inspect(written_path, "dump", *["--copy"] * n))
        wait_until_written(written_path)
    final = [line for line in dumped(written_path).splitlines() if line.startswith(b'{"id"')]
    assert len(final) > len(dumps[0].splitlines())
    for place, dump in enumerate(dumps):
        *others, end = lines_of(dump)
        records = [line for line in dump.splitlines() if line.startswith(b'{"id"')]
        assert records == final[: len(records)], "a prefix of what was added, in the order of adding"
        assert others[0]["records"] == end["end"]["records"] == len(records)
        assert end["end"]["members"] == len(records) - 1, "all but the one that was forgotten"
        assert others[0]["next"] > number_of(json.loads(records[-1])["id"])
        load_dump(tmp_path / f"loaded{place}", io.BytesIO(dump))
        check(tmp_path / f"loaded{place}")


# -- nothing changes ----------------------------------------------------------


def state_of(path: Path) -> dict[str, Any]:
    """Return all that is to stay: names, modes, times of changing, bytes.

    Of lock.mdb, in which each reader that may write it notes itself, name, mode and size.
    """
    state: dict[str, Any] = {}
    for file in (path, *sorted(path.rglob("*"))):
        status = file.lstat()
        state[str(file)] = [status.st_mode, status.st_size, status.st_ino]
        if file.name != "lock.mdb":
            state[str(file)] += [status.st_mtime_ns, file.read_bytes() if file.is_file() else None]
    return state


def test_no_command_changes_anything(tmp_path: Path) -> None:
    path = tmp_path / "ein Verzeichnis mit Ümläuten und 'Zeichen'"
    run_python(MAKING, path)
    (path / "session_ids.txt").write_text("stale\n")  # which a writer would repair
    before = state_of(path)
    for name in INSPECTING:
        ran = run(*arguments(name, path, tmp_path))
        if name == "check":
            assert ran.status == 1
            assert "session_ids.txt" in ran.out
        else:
            assert_shown(name, ran)
        assert state_of(path) == before, name


def run_as_nobody(*argv: str, files: Path) -> Ran:
    """Run a command line in a child process of a user without rights, who can't read modules perhaps."""

    def child() -> int:
        from gc3session.cli.program import run as run_program

        def run_once(name: str) -> int:
            for fd, stream in ((1, "out"), (2, "err")):
                there = os.open(files / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(there, fd)
            sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
            status = run_program(list(argv))
            sys.stdout.flush()
            sys.stderr.flush()
            return status

        tempfile.tempdir = str(files)
        run_once("first")  # imports what it needs
        for stream in ("out", "err"):
            (files / f"second.{stream}").touch(0o666)
            (files / f"second.{stream}").chmod(0o666)
        for made in files.glob("copy*"):
            subprocess.run(["rm", "-rf", made], check=True)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return run_once("second")

    status = in_child(child)
    out, err = ((files / f"second.{stream}").read_text() for stream in ("out", "err"))
    return Ran(status, out, err)


@pytest.mark.parametrize("with_lock", [True, False])
def test_each_command_works_on_what_another_user_may_only_read(reachable: Path, with_lock: bool) -> None:
    path, files = reachable / "ses sion", reachable / "files"
    run_python(MAKING, path)
    if not with_lock:
        (path / "jobs" / "lock.mdb").unlink()
    forbid_writing(path)
    files.mkdir()
    files.chmod(0o777)
    before = state_of(path)
    for name in INSPECTING:
        assert_shown(name, run_as_nobody(*arguments(name, path, files), files=files))
        assert state_of(path) == before, name
