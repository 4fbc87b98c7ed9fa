"""`remove`, `forget` and `destroy`: what they take away, what they ask, and what is left when they are stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from consistency import check
from gc3session import Session, Task, TaskCollection
from raw_tables import damage
from test_cli import CHECKOUT, TERMINAL, Ran, Terminal, finish, one_error, run, start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def ids(path: Path) -> list[str]:
    with Session(path) as session:
        return list(session.add_many(Task(jobname=f"j{i}", state="AB"[i % 2], extra={"i": i}) for i in range(6)))


def left(path: Path) -> list[str]:
    """Return the IDs that a session has, which must be consistent."""
    check(path)
    with Session(path, create=False, read_only=True) as session:
        return list(session.ids())


def stored(path: Path) -> list[str]:
    with Session(path, create=False, read_only=True) as session:
        return list(session.store.list())


def answered(answer: str, *argv: object) -> Ran:
    """Run a command with a terminal as its standard input, on which this answer is typed."""
    terminal = Terminal()
    os.write(terminal._here, answer.encode())
    process = start(*argv, stdin=terminal.there, env=TERMINAL)
    ran = finish(process)
    terminal.read()
    return ran


COMMANDS = {"remove": "removed", "forget": "forgot"}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_tasks_go_by_their_ids(path: Path, ids: list[str], command: str) -> None:
    ran = run(command, path, ids[1], ids[4], ids[1], "--yes")
    assert ran == (0, f"{COMMANDS[command]} 2 tasks of {path}\n", "")
    assert left(path) == [ids[0], *ids[2:4], ids[5]]
    assert set(stored(path)) == set(left(path) if command == "remove" else ids)


def test_tasks_go_by_filters(path: Path, ids: list[str], command: str) -> None:
    ran = run(command, path, "--state", "B", "--where", "extra.i > 1", "-y")
    assert ran == (0, f"{COMMANDS[command]} 2 tasks of {path}\n", "")
    assert left(path) == [*ids[:3], ids[4]]
    assert run(command, path, "--state", "B", "-y").out == f"{COMMANDS[command]} 1 task of {path}\n"
    assert run(command, path, "--state", "B", "-y") == (0, f"{COMMANDS[command]} 0 tasks of {path}\n", "")


def test_tasks_go_by_ids_from_standard_input(path: Path, ids: list[str], command: str) -> None:
    selected = run("select", path, "extra.i < 2").out
    assert run(command, path, "-", ids[5], "--yes", stdin=selected).status == 0
    assert left(path) == ids[2:5]


def test_one_id_that_is_not_there_and_nothing_is_done(path: Path, ids: list[str], command: str) -> None:
    for wrong in ("Task.99", "Other.1", "no ID\x1b"):
        ran = run(command, path, ids[0], wrong, "--yes")
        assert ran.status == 1
        first, second = ran.err.splitlines()
        assert first.isprintable()
        assert " is not in the session " in first
        assert second == "gc3session: nothing was done"
    assert left(path) == ids


def test_more_tasks_than_a_step_go(path: Path, command: str) -> None:
    with Session(path) as session:
        kept = session.add(Task(state="KEPT"))
        session.add_many(Task(state="DONE") for _ in range(2500))
    assert run(command, path, "--state", "DONE", "--yes").out == f"{COMMANDS[command]} 2,500 tasks of {path}\n"
    assert left(path) == [kept]


def test_removing_takes_the_tasks_inside_along_and_forgetting_leaves_them(path: Path, command: str) -> None:
    inner, other = Task(jobname="inner"), Task(jobname="other")
    with Session(path) as session:
        ids = list(session.add_many([TaskCollection(jobname="all", tasks=[inner]), inner, other]))
    ran = run(command, path, ids[0], ids[1], "--yes")
    assert ran == (0, f"{COMMANDS[command]} 2 tasks of {path}\n", "")
    assert left(path) == [ids[2]]
    assert set(stored(path)) == ({ids[2]} if command == "remove" else set(ids))


# -- asking -------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["Task.1"], ["--state", "A"]])
def test_what_cannot_be_asked_is_refused(path: Path, ids: list[str], command: str, arguments: list[str]) -> None:
    assert "add --yes" in one_error(run(command, path, *arguments), 2)
    assert "add --yes" in one_error(run(command, path, *arguments, preexec_fn=lambda: os.close(0)), 2)
    assert "add --yes" in one_error(run("destroy", path), 2)
    assert "gives the IDs" in one_error(answered("y\n", command, path, "-"), 2)
    assert left(path) == ids


def test_the_question_says_how_many_and_only_yes_does_it(path: Path, ids: list[str], command: str) -> None:
    for answer in ("n\n", "\n"):
        ran = answered(answer, command, path, "--state", "A")
        assert (ran.status, ran.out) == (1, "nothing was done\n")
        assert f"{command} 3 tasks of {path}" in ran.err
        assert left(path) == ids
    ran = answered("y\n", command, path, "--state", "A")
    assert (ran.status, ran.out) == (0, f"{COMMANDS[command]} 3 tasks of {path}\n")
    assert left(path) == ids[1::2]


def test_destroy_asks_with_the_number_of_tasks(path: Path, ids: list[str]) -> None:
    ran = answered("n\n", "destroy", path)
    assert (ran.status, ran.out) == (1, "nothing was done\n")
    assert f"destroy the session {path} and its 6 tasks, for good?" in ran.err
    assert left(path) == ids
    ran = answered("y\n", "destroy", path)
    assert (ran.status, ran.out) == (0, f"destroyed {path}, which had 6 tasks\n")
    assert os.listdir(path.parent) == []


def test_destroy_leaves_a_store_that_others_use(path: Path, tmp_path: Path) -> None:
    with Session(path, store_or_url=tmp_path / "store") as session:
        session.add(Task())
        with Session(tmp_path / "other", store_or_url=session.store) as other:
            kept = other.add(Task())
    assert run("destroy", path, "--yes").status == 0
    assert not path.exists()
    assert left(tmp_path / "other") == [kept] == stored(tmp_path / "other")


def test_ctrl_c_at_the_question_does_nothing(path: Path, ids: list[str]) -> None:
    for arguments in (["remove", path, ids[0]], ["destroy", path]):
        terminal = Terminal()
        process = start(*arguments, stdin=terminal.there, env=TERMINAL)
        assert process.stderr is not None
        asked = b""
        while not asked.endswith(b"[y/N] "):
            some = os.read(process.stderr.fileno(), 1000)
            assert some, asked
            asked += some
        process.send_signal(signal.SIGINT)
        ran = finish(process)
        terminal.read()
        assert ran.status == 130
        assert "interrupted; nothing was done" in ran.err
    assert left(path) == ids


# -- usage and trouble --------------------------------------------------------


def test_tasks_must_be_chosen_in_one_way(path: Path, ids: list[str], command: str) -> None:
    assert "Which tasks?" in one_error(run(command, path, "--yes"), 2)
    assert "not by both" in one_error(run(command, path, ids[0], "--state", "A", "--yes"), 2)
    assert "regular expression" in one_error(run(command, path, "--name", "(", "--yes"), 2)
    assert left(path) == ids


def test_no_session_is_made_where_there_is_none(tmp_path: Path, command: str) -> None:
    for arguments in ([command, tmp_path / "none", "Task.1"], ["destroy", tmp_path / "none"]):
        assert "there is no session" in one_error(run(*arguments, "--yes"), 2)
    assert os.listdir(tmp_path) == []


def test_unreadable_tasks_are_left_where_they_cannot_be_judged(path: Path, ids: list[str], command: str) -> None:
    damage(path, ids[0])
    ran = run(command, path, "--where", "extra.i < 3", "--yes")
    assert f"{ids[0]} is left" in one_error(ran, 1)
    assert ran.out == f"{COMMANDS[command]} 2 tasks of {path}\n"
    assert run(command, path, ids[0], "--yes").status == 0
    assert run(command, path, "--state", "A", "--yes").status == 0
    with Session(path, read_only=True) as session:
        assert list(session.ids()) == [ids[3], ids[5]]


def test_a_read_only_session_is_told(path: Path, ids: list[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    (path / "jobs").chmod(0o500)
    try:
        assert run("remove", path, ids[0], "--yes").status in (1, 2)
    finally:
        (path / "jobs").chmod(0o700)
    assert left(path) == ids


STOPPED = """
    import os, signal, sys
    from gc3session import Session
    from gc3session.cli import main

    forget, at, done = Session.forget, int(sys.argv[1]), 0

    def counting(session, id_, flush=True):
        global done
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)
        forget(session, id_, flush)

    Session.forget = counting
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
"""


@pytest.mark.parametrize("at", [1, 1500, 2500])
def test_ctrl_c_stops_between_two_steps_and_says_how_many_are_gone(path: Path, at: int) -> None:
    with Session(path) as session:
        ids = list(session.add_many(Task() for _ in range(2500)))
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    argv = [sys.executable, "-c", textwrap.dedent(STOPPED), at, "forget", path, "--id", ".", "--yes"]
    ran = subprocess.run([str(a) for a in argv], env=environment, capture_output=True, text=True, check=False)
    gone = {1: 1000, 1500: 2000, 2500: 2500}[at]
    if gone == 2500:  # all was done when it came to look
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"forgot 2,500 tasks of {path}\n"
    else:
        error = one_error(Ran(ran.returncode, ran.stdout, ran.stderr), 130)
        rest = 2500 - gone
        assert error == f"interrupted; forgot {gone:,} tasks, not the other {rest:,} tasks"
    assert left(path) == ids[gone:]


def test_a_session_that_others_write_to_loses_what_was_chosen_and_nothing_else(path: Path) -> None:
    with Session(path) as session:
        ids = list(session.add_many(Task(state="DONE") for _ in range(1200)))
        process = start("remove", path, "--state", "DONE", "--yes")
        added = [session.add(Task(state="NEW")) for _ in range(200)]
        ran = finish(process)
    assert ran.status == 0
    assert re.fullmatch(rf"removed 1,200 tasks of {path}\n", ran.out)
    assert left(path) == added
    assert not set(ids) & set(stored(path))
