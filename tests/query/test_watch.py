"""Watching a session: its figures, and the live screen of the command in a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from children import run_python
from gc3session import FailedTask, InvalidArgument, Session, Task
from gc3session.query.progress import Watch
from test_cli import BERLIN, MOMENT, TERMINAL, finish, one_error, run, start

DONE = "TERMINATED"


def failed(name: str, seconds: float, code: int | None = 1, state: str = DONE) -> Task:
    return Task(jobname=name, state=state, returncode=code, history=[[MOMENT + seconds, state]])


# -- figures ------------------------------------------------------------------


def test_counts_and_the_latest_failures(session: Session) -> None:
    session.add_many([Task(state="RUNNING"), Task(state=DONE, returncode=0), Task(state=DONE)])
    session.add_many([failed("a", 1), failed("b", 3, -9), failed("c", 2, None, "UNKNOWN")])
    progress = Watch(session._index).look()
    assert (progress.counts, progress.total) == ({"RUNNING": 1, DONE: 4, "UNKNOWN": 1}, 6)
    assert (progress.rate, progress.left, progress.is_done) == (None, None, False)
    assert progress.failures[0] == FailedTask(datetime.fromtimestamp(MOMENT + 3, UTC), "Task.5", "b", DONE, -9)
    assert [failure.name for failure in progress.failures] == ["b", "c", "a"]


def test_failures_come_and_go(session: Session) -> None:
    task = Task(jobname="x", state="RUNNING")
    session.add(task)
    watching = Watch(session._index)
    assert watching.look().failures == []
    task.returncode, task.state = 2, DONE
    session.save_all()
    assert [failure.returncode for failure in watching.look().failures] == [2]
    task.state = "NEW"
    session.save_all()
    assert watching.look().failures == []


def test_every_failure_is_found_though_only_so_many_are_read_at_a_look(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gc3session.query.progress._RECORDS_A_LOOK", 600)
    session.add_many(failed(str(n), n, code=int(n % 500 == 7)) for n in range(3000))
    watching = Watch(session._index)
    seen: set[str | None] = set()
    for _ in range(7):
        seen |= {failure.name for failure in watching.look().failures}
    assert seen == {str(n) for n in range(7, 3000, 500)}


def test_what_fails_under_way_or_is_new_is_found_at_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add_many(Task(state=DONE, returncode=0) for _ in range(3000))
    running = [Task(jobname=f"r{n}", state="RUNNING") for n in range(20)]
    session.add_many(running)
    monkeypatch.setattr("gc3session.query.progress._RECORDS_A_LOOK", 600)
    watching = Watch(session._index)
    watching.look()
    running[3].returncode, running[3].state = 1, DONE
    session.save_all()
    session.add(failed("new", 0))
    assert {failure.name for failure in watching.look().failures} == {"r3", "new"}


def test_rate_and_time_left(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("gc3session.query.progress.clock.monotonic", lambda: now)
    tasks = [Task(state="RUNNING") for _ in range(100)]
    session.add_many(tasks)
    watching = Watch(session._index)
    assert watching.look().rate is None
    for n in range(40):
        now += 3
        tasks[n].state = DONE
        session.save_all()
        progress = watching.look()
        assert progress.rate == pytest.approx(20)
        assert progress.left == pytest.approx(3 * (99 - n))
    for _ in range(30):
        now += 3
        progress = watching.look()
    assert (progress.rate, progress.left) == (0, None)


def test_watching_ends_when_all_have_terminated_and_waits_for_the_first(session: Session) -> None:
    looks = session.watch(0.001)
    assert next(looks).total == 0
    task = Task(state="RUNNING")
    session.add(task)
    assert next(looks).counts == {"RUNNING": 1}
    task.state = DONE
    session.save_all()
    last = next(looks)
    assert (last.is_done, last.left) == (True, 0)
    assert list(looks) == []
    with pytest.raises(InvalidArgument):
        session.watch(0)


def test_a_look_costs_the_same_in_a_session_of_any_size(session: Session) -> None:
    """It reads no more records of many tasks than of some."""
    script = """
        import sys
        from gc3session import Session
        from gc3session.query.progress import Watch
        from gc3session.store.record_view import StoredTasks
        read = 0
        whole = StoredTasks.records
        def counted(self, reader, entries):
            global read
            read += len(entries)
            return whole(self, reader, entries)
        StoredTasks.records = counted
        with Session(sys.argv[1], read_only=True) as session:
            watching = Watch(session._index)
            for _ in range(3):
                watching.look()
        print(read)
    """
    session.add_many(Task(state=DONE if n % 2 else "RUNNING", returncode=0) for n in range(60_000))
    session.flush()
    assert int(run_python(script, session.path)) <= 3 * 3 * 5000


# -- the command --------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Session(tmp_path / "runs") as session:
        session.add_many([Task(state="RUNNING"), failed("bad \x1b[31m", 0, 3), Task(state="odd\nstate")])
    return tmp_path / "runs"


def finish_all(path: Path) -> None:
    with Session(path) as session:
        for task in session:
            task.state = DONE
        session.save_all()


def test_not_on_a_terminal_it_is_a_line_for_each_look(path: Path) -> None:
    ran = run("watch", path, "--once", env=BERLIN)
    assert (ran.status, ran.err) == (0, "")
    first, failure = ran.out.splitlines()
    assert re.fullmatch(r"[-0-9]{10} [:0-9]{8}  3 tasks: 1 RUNNING, 1 TERMINATED, 1 odd\\nstate", first)
    assert failure == "  failed: 2020-09-13 13:26:40  Task.2  TERMINATED 3  bad \\x1b[31m"
    process = start("watch", path, "--interval", "0.02")
    assert process.stdout
    assert b"3 tasks" in process.stdout.readline()
    assert b"failed" in process.stdout.readline()
    assert b"3 tasks" in process.stdout.readline()
    finish_all(path)
    ran = finish(process)
    assert (ran.status, ran.err) == (0, "")
    assert "3 tasks: 3 TERMINATED; all TERMINATED" in ran.out
    assert run("watch", path).out.count("\n") == 2


def test_it_ends_quietly_when_nobody_reads_and_on_ctrl_c(path: Path) -> None:
    process = start("watch", path, "--interval", "600")
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 141
    process.stdout = None
    assert finish(process).err == ""
    process = start("watch", path, "--interval", "600")
    assert process.stdout
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    ran = finish(process)
    assert (ran.status, ran.err) == (130, "gc3session: interrupted\n")


def test_errors(path: Path) -> None:
    assert "no session" in one_error(run("watch", path / "none"), 2)
    assert "interval" in one_error(run("watch", path, "--interval", "0"), 2)


class Screen:
    """The command in a terminal of its own, and what it has written there."""

    def __init__(self, path: Path, width: int = 80, height: int = 24, **env: str) -> None:
        self._here, self._there = pty.openpty()
        self.resize(width, height)
        self.modes = termios.tcgetattr(self._there)
        self.written = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.process = start(
            "watch", path, "--interval", "0.3", stdin=self._there, stdout=self._there, stderr=subprocess.PIPE,
            env=TERMINAL | {"LINES": ""} | env, start_new_session=True,
        )  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._there, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, text: str) -> str:
        """Read until *text* has been written from now on; return all of that."""
        begin = len(self.written)
        while text not in self.written[begin:]:
            assert select.select([self._here], [], [], 60)[0], f"no {text!r} in {self.written!r}"
            self.written += self._decode(os.read(self._here, 65536))
        return self.written[begin:]

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the status, the last picture, and what was written on stderr."""
        while self.process.poll() is None or select.select([self._here], [], [], 0)[0]:
            if select.select([self._here], [], [], 0.05)[0]:
                self.written += self._decode(os.read(self._here, 65536))
        assert termios.tcgetattr(self._there) == self.modes, "the modes of the terminal"
        assert "\x1b[?" not in self.written, "no other screen, no hidden cursor"
        assert self.process.stderr
        err = self.process.stderr.read().decode()
        self.process.stderr.close()
        return self.process.returncode, self.written.rpartition("\x1b[1mruns")[2], err

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._here)
        os.close(self._there)


@pytest.fixture
def screen(path: Path) -> Iterator[Any]:
    made: list[Screen] = []

    def make(**options: Any) -> Screen:
        made.append(Screen(path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_terminal_is_drawn_until_all_have_terminated(screen: Any, path: Path) -> None:
    one = screen()
    shown = one.wait_for("bad \\x1b[31m")
    for text in ("runs", "3 tasks", "RUNNING", "33.3 %", "odd\\nstate", "Latest failures"):
        assert text in shown, text
    one.wait_for("bad \\x1b[31m")
    finish_all(path)
    status, last, err = one.end()
    assert (status, err) == (0, "")
    assert "all TERMINATED" in last
    lines = one.written.count("\n") - sum(map(int, re.findall(r"\x1b\[(\d+)A", one.written)))
    assert lines <= one.written.partition("\x1b[")[2].count("\n")
    assert re.search(r"TERMINATED +3  100\.0 %  █{40}", last)


@pytest.mark.usefixtures("not_ignored")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_picture_stays_after_a_signal(screen: Any, number: int, status: int) -> None:
    one = screen()
    one.wait_for("Latest failures")
    one.process.send_signal(number)
    ended, last, err = one.end()
    assert (ended, err) == (status, "gc3session: interrupted\n")
    assert "RUNNING" in last


def test_drawing_ends_when_the_session_was_destroyed(screen: Any, path: Path) -> None:
    one = screen()
    one.wait_for("Latest failures")
    with Session(path) as session:
        session.add(Task())
        session.destroy()
    status, _, err = one.end()
    assert status == 0
    assert "no longer there" in err


def lines_of(shown: str) -> list[str]:
    """Return the lines of what was drawn, without the signs that draw it."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).split("\r\n")


@pytest.mark.parametrize(("width", "height"), [(20, 5), (8, 3), (30, 40), (200, 10)])
def test_terminals_of_any_size(screen: Any, path: Path, width: int, height: int) -> None:
    one = screen(width=width, height=height)
    one.wait_for("runs")
    finish_all(path)
    assert one.end()[0] == 0
    assert max(map(len, lines_of(one.written))) <= width
    assert all(picture.count("\n") < height for picture in one.written.split("runs"))


def test_a_resized_terminal_is_drawn_anew(screen: Any, path: Path) -> None:
    one = screen(width=100)
    one.wait_for("Latest failures")
    one.resize(24, 30)
    one.wait_for("Latest failures")
    one.wait_for("Latest failures")
    assert max(map(len, lines_of(one.wait_for("Latest failures")))) <= 24
    finish_all(path)
    assert one.end()[0] == 0


def test_a_terminal_that_can_not_be_drawn_on_gets_lines(path: Path) -> None:
    finish_all(path)
    from test_cli import on_terminal

    assert "\x1b" not in on_terminal("watch", path, TERM="dumb")
