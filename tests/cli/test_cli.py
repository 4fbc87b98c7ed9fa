"""The command line, as processes of its own: what it records, what it shows, and how it fails."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consistency import check
from examples import Colour, Note, Point, Simulation, Sweep
from forked_command import Ancestor
from gc3session import Session, Task, TaskCollection
from raw_tables import damage
from sameness import same

CHECKOUT = Path(__file__).parents[2]
BERLIN = {"TZ": "XYZ-1"}  # a zone one hour before UTC, all the year
MOMENT = 1_600_000_000.25  # 2020-09-13 12:26:40.250 UTC


class Ran(NamedTuple):
    """What a command line gave."""

    status: int
    out: str
    err: str


def start(*argv: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start `gc3session` with these arguments, whose three streams are pipes by default."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "gc3session", *map(str, argv)],
        env={**environment(), **(env or {})},
        **{**pipes, **options},
    )


def environment() -> dict[str, str]:
    """Return an environment in which the library is found."""
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@cache
def ancestor() -> Ancestor:
    """Return the process of which commands are forked children."""
    return Ancestor(environment())


def finish(process: subprocess.Popen[bytes], stdin: str | bytes = b"") -> Ran:
    """Wait for the end of a process; whatever it met, it must not have given a traceback."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = process.communicate(data if process.stdin else None)
    return as_ran(process.returncode, out or b"", err or b"")


def as_ran(status: int, out: bytes, err: bytes) -> Ran:
    assert b"Traceback" not in err
    return Ran(status, out.decode(), err.decode())


def run(*argv: object, stdin: Any = b"", **options: Any) -> Ran:
    """Run `gc3session` with these arguments; *stdin* is what it reads, or a file to read from."""
    if not isinstance(stdin, (str, bytes)):
        return finish(start(*argv, stdin=stdin, **options))
    if not options:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        ran = ancestor().run([str(argument) for argument in argv], data)
        if ran is not None:
            return as_ran(*ran)
    return finish(start(*argv, **options), stdin)


def one_error(ran: Ran, status: int) -> str:
    """Return the line on stderr of a command that failed with this status."""
    assert ran.status == status, ran
    assert re.fullmatch(r"gc3session: [^\n]+\n", ran.err), ran.err
    return ran.err.removeprefix("gc3session: ").rstrip("\n")


def recorded(path: Path) -> list[Any]:
    """Return the tasks of a session that is consistent."""
    check(path)
    with Session(path, create=False, read_only=True) as session:
        return list(session)


def jobnames(path: Path) -> list[str]:
    return [task.jobname for task in recorded(path)]


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def named(*names: str) -> str:
    return lines(*({"jobname": name} for name in names))


class Terminal:
    """A terminal of this width; what is written on it is read here."""

    def __init__(self, width: int = 80) -> None:
        self._here, self.there = pty.openpty()
        fcntl.ioctl(self.there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def read(self) -> str:
        """Return all that is written until every program has closed the terminal."""
        os.close(self.there)
        written = b""
        try:
            while chunk := os.read(self._here, 65536):
                written += chunk
        except OSError:  # EIO: nobody has the other end any more
            pass
        os.close(self._here)
        return written.decode().replace("\r\n", "\n")


TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "", "NO_COLOR": ""}


def on_terminal(*argv: object, width: int = 80, **env: str) -> str:
    """Return what a command line that succeeds writes on a terminal."""
    terminal = Terminal(width)
    process = start(*argv, stdout=terminal.there, env=TERMINAL | env)
    out = terminal.read()
    ran = finish(process)
    assert (ran.status, ran.err) == (0, "")
    return out


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a session may be made."""
    return tmp_path / "runs"


@pytest.fixture
def made(path: Path) -> Callable[..., list[str]]:
    """A function that adds these tasks to a session and returns their IDs."""

    def make(*tasks: Task) -> list[str]:
        with Session(path) as session:
            return list(session.add_many(tasks))

    return make


# -- record: what becomes of a line -------------------------------------------


def test_record_known_keys_become_fields_and_the_rest_extra(path: Path) -> None:
    ran = run("record", path, stdin=lines({"jobname": "a", "returncode": 3, "cores": 4, "in": {"x": [1, None]}}))
    assert ran == (0, f"recorded 1 task in {path}\n", "")
    (task,) = recorded(path)
    assert type(task) is Task
    assert (task.jobname, task.returncode) == ("a", 3)
    assert task.extra == {"cores": 4, "in": {"x": [1, None]}}


def test_record_puts_the_rest_beside_what_extra_holds(path: Path) -> None:
    run("record", path, stdin=lines({"extra": {"a": 1}, "b": 2}))
    assert recorded(path)[0].extra == {"a": 1, "b": 2}


def test_record_keeps_a_given_history(path: Path) -> None:
    history = [[1, "NEW"], [2.5, "RUNNING"], [MOMENT, "weird"]]
    run(
        "record",
        path,
        stdin=lines({"state": "RUNNING", "history": history}, {"history": history}, {"history": []}),
    )
    given, stateless, empty = recorded(path)
    assert same(given.history, history)
    assert given.state == "RUNNING"
    assert (stateless.history, stateless.state) == (history, "weird")
    assert (empty.history, empty.state) == ([], "NEW")


def test_record_begins_the_history_with_a_given_state(path: Path) -> None:
    before = datetime.now(UTC)
    run("record", path, stdin=lines({"state": "RUNNING"}, {}))
    running, new = recorded(path)
    for task, state in ((running, "RUNNING"), (new, "NEW")):
        ((time, first),) = task.events
        assert first == task.state == state
        assert before <= time <= datetime.now(UTC)


def test_record_passes_over_blank_lines_byte_order_mark_and_line_ends(path: Path) -> None:
    data = b'\xef\xbb\xbf{"jobname": "a"}\r\n\n  \t\r\n{"jobname": "b"}\n\n{"jobname": "c"}'
    assert run("record", path, stdin=data).out == f"recorded 3 tasks in {path}\n"
    assert jobnames(path) == ["a", "b", "c"]


def test_record_keeps_every_json_value(path: Path) -> None:
    values = [math.nan, -math.inf, -0.0, 10**4000, -(2**63) - 1, 1.0, "\ud800 \x00 é", {"": {"\n": []}}, True]
    run("record", path, stdin=lines({"v": values}))
    assert same(recorded(path)[0].extra, {"v": values})


def test_record_adds_to_a_session(path: Path) -> None:
    run("record", path, stdin=named("a"))
    run("record", path, stdin=named("b", "c"))
    assert jobnames(path) == ["a", "b", "c"]


def test_record_reads_a_file(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(named("a", "b"))
    assert run("record", path, file).out == f"recorded 2 tasks in {path}\n"
    assert jobnames(path) == ["a", "b"]


# -- record: broken lines -----------------------------------------------------

BROKEN = {
    b'{"jobname": "x"': "not JSON",
    b"{}{}": "not JSON",
    b"tasks!": "not JSON",
    b"[1, 2]": "an array, not an object",
    b"null": "null, not an object",
    b'{"jobname": "\xff"}': "not UTF-8: byte 0xff",
    b'\xef\xbb\xbf{"jobname": "mark in the middle"}': "not JSON",
    b'{"jobname": 5}': "'jobname' must be a string, not a number",
    b'{"state": ""}': "'state' must not be empty",
    b'{"state": null}': "'state' must be a string, not null",
    b'{"returncode": 1.0}': "'returncode' must be an integer",
    b'{"returncode": true}': "'returncode' must be an integer",
    b'{"extra": []}': "'extra' must be an object",
    b'{"history": {}}': "'history' must be an array",
    b'{"history": [[1, "NEW"], [1]]}': "entry 2 is not",
    b'{"history": [[NaN, "NEW"]]}': "entry 1 is not",
    b'{"history": [[1e300, "NEW"]]}': "entry 1 is not",
    b'{"a": 1, "a": 2}': "the key 'a' twice",
    b'{"a": 1, "extra": {"a": 2}}': "'a' beside its 'extra' and in it",
    b'{"n": ' + b"9" * 5000 + b"}": "more than 4300 digits",
    b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "nested too deeply",
    b'{"jobname": "\x1b[2J\x07"}': "not JSON",
}


@pytest.fixture(
    params=BROKEN, ids=[f"{why}: {line[:12].decode(errors='replace')}" for line, why in BROKEN.items()]
)
def broken(request: pytest.FixtureRequest) -> tuple[bytes, str]:
    return request.param, BROKEN[request.param]


def test_record_stops_at_a_broken_line_with_those_before_it_recorded(
    path: Path, broken: tuple[bytes, str]
) -> None:
    line, why = broken
    ran = run("record", path, stdin=named("a", "b").encode() + b"\n" + line + b"\n" + named("c").encode())
    error = one_error(ran, 1)
    assert error.startswith("standard input, line 4: ")
    assert why in error
    assert "--on-error skip" in error
    assert error.isprintable()
    assert ran.out == f"recorded 2 tasks in {path}\n"
    assert jobnames(path) == ["a", "b"]


def test_record_skips_broken_lines_and_names_each(path: Path) -> None:
    data = b"".join(named(f"task {i}").encode() + line + b"\n" for i, line in enumerate(BROKEN))
    ran = run("record", path, "--on-error", "skip", stdin=data + named("last").encode())
    assert ran.status == 1
    errors = ran.err.splitlines()
    assert len(errors) == len(BROKEN)
    for i, (error, why) in enumerate(zip(errors, BROKEN.values(), strict=True)):
        assert error.startswith(f"gc3session: standard input, line {2 * i + 2}: ")
        assert why in error
        assert error.endswith("; skipped")
    assert ran.out == f"recorded {len(BROKEN) + 1} tasks in {path}; {len(BROKEN)} broken lines skipped\n"
    assert jobnames(path) == [*(f"task {i}" for i in range(len(BROKEN))), "last"]


def test_record_names_the_file_of_a_broken_line(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks\n.jsonl"
    file.write_text("{}\n?\n")
    assert one_error(run("record", path, file), 1).startswith(f"{tmp_path}/tasks\\n.jsonl, line 2: ")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_record_holds_no_line_that_is_too_long(path: Path, tmp_path: Path, on_error: str) -> None:
    file = tmp_path / "tasks.jsonl"
    with file.open("wb") as stream:
        stream.write(named("a").encode() + b'"')
        stream.truncate(400 << 20)  # a hole: zeros that take no disk
        stream.seek(0, os.SEEK_END)
        stream.write(b'"\n' + named("b").encode())
    ran, peak = with_peak("record", path, file, "--on-error", on_error)
    assert "line 2: it is longer than 64 MiB" in one_error(ran, 1)
    assert jobnames(path) == (["a", "b"] if on_error == "skip" else ["a"])
    assert peak < 350 << 20


@pytest.mark.parametrize("file", ["missing.jsonl", "."])
def test_record_of_an_input_that_cannot_be_read_makes_no_session(path: Path, tmp_path: Path, file: str) -> None:
    assert one_error(run("record", path, tmp_path / file), 1).startswith(str(tmp_path / file))
    assert not path.exists()


def test_record_of_an_input_that_fails_says_so_and_how_many_tasks_are_recorded(path: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as unreadable:
        ran = run("record", path, stdin=unreadable)
    assert one_error(ran, 1) == f"standard input: Bad file descriptor; 0 tasks recorded in {path}"


def test_record_without_standard_input_says_so(path: Path) -> None:
    ran = run("record", path, stdin=b"", preexec_fn=lambda: os.close(0))
    assert "standard input is closed" in one_error(ran, 1)
    assert not path.exists()


# -- record: batches, interruption, faults ------------------------------------


def wait_until_listed(path: Path, name: str) -> None:
    """Return when another process sees a task of that name."""
    for _ in range(100):  # each takes a tenth of a second
        if f" {name} " in run("list", path).out:
            return
    pytest.fail(f"{name} is not recorded")


def test_record_commits_what_a_slow_writer_has_given(path: Path) -> None:
    process = start("record", path)
    assert process.stdin is not None
    process.stdin.write(named("slow").encode())
    process.stdin.flush()
    wait_until_listed(path, "slow")
    assert process.poll() is None
    assert finish(process, named("last")).status == 0
    assert jobnames(path) == ["slow", "last"]


@pytest.mark.usefixtures("not_ignored")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_record_keeps_what_was_read_when_interrupted(path: Path, number: signal.Signals) -> None:
    process = start("record", path)
    assert process.stdin is not None
    process.stdin.write(named("first").encode())
    process.stdin.flush()
    wait_until_listed(path, "first")
    process.stdin.write(named("second", "third").encode())
    process.stdin.flush()
    process.send_signal(number)
    process.wait()
    ran = finish(process)
    names = jobnames(path)
    assert names == ["first", "second", "third"][: len(names)]
    count = f"{len(names)} task{'s' if len(names) > 1 else ''}"
    assert f"interrupted; {count} " in one_error(ran, 128 + number)
    assert ran.out == f"recorded {count} in {path}\n"


@pytest.mark.parametrize("batch", [100, 1_000_000])
def test_record_interrupted_at_full_speed_tells_the_number_of_tasks_kept(path: Path, batch: int) -> None:
    process = start("record", path, "--batch", batch)
    assert process.stdin is not None
    block = b"".join(b'{"jobname": "job", "cores": 4}\n' for _ in range(1000))
    for _ in range(20):  # more than a pipe holds, so most of it has been read
        process.stdin.write(block)
    process.send_signal(signal.SIGINT)
    process.wait()
    ran = finish(process)
    count = len(recorded(path))
    assert 0 < count <= 20_000
    assert f"interrupted; {count:,} tasks " in one_error(ran, 130)


def test_record_killed_loses_no_batch_that_was_committed(path: Path) -> None:
    process = start("record", path, "--batch", 5)
    assert process.stdin is not None
    process.stdin.write(named(*"abcdefg").encode())
    process.stdin.flush()
    wait_until_listed(path, "e")
    process.kill()
    process.wait()
    finish(process)
    assert jobnames(path)[:5] == list("abcde")


def test_record_on_a_full_disk_tells_what_is_recorded(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(named(f"{i}" * 100) for i in range(20_000)))
    ran = run("record", path, file, "--batch", 100, preexec_fn=lambda: limit_file_size(1 << 20))
    error = one_error(ran, 1)
    count = len(recorded(path))
    assert 0 < count < 20_000
    assert f"; {count:,} tasks recorded in {path}; 100 tasks of the last batch could not be" in error


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_record_into_a_closed_pipe_records_all_and_gives_no_traceback(path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("record", path, stdout=writing)
    os.close(writing)
    ran = finish(process, named("a", "b"))
    assert (ran.status, ran.err) == (141, "")
    assert jobnames(path) == ["a", "b"]


def test_record_skips_though_nobody_reads_its_errors(path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("record", path, "--on-error", "skip", stderr=writing)
    os.close(writing)
    assert finish(process, "?\n" + named("a", "b")).status == 1
    assert jobnames(path) == ["a", "b"]


def with_peak(*argv: object) -> tuple[Ran, int]:
    """Run a command and return its peak memory in bytes, too."""
    with open(os.devnull, "rb") as nothing:
        process = start(*argv, stdin=nothing)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ran(process.returncode, out, err), usage.ru_maxrss * 1024


def test_record_and_list_hold_no_memory_for_a_task(path: Path, tmp_path: Path, long_form: bool) -> None:
    few, many = 1_000, 400_000 if long_form else 40_000
    peaks: dict[str, list[int]] = {"record": [], "list": []}
    for count in (few, many):
        file = tmp_path / f"{count}.jsonl"
        file.write_text("".join(f'{{"jobname": "job {i}", "cores": {i}}}\n' for i in range(count)))
        session = path.with_name(f"{count} tasks")
        _, peak = with_peak("record", session, file, "--batch", few)
        peaks["record"].append(peak)
        ran, peak = with_peak("list", session)
        peaks["list"].append(peak)
        assert ran.out.count("\n") == count + 1
    for few_peak, many_peak in peaks.values():
        assert many_peak - few_peak < 25 << 20  # the map of the data file itself is counted, too


def test_record_shows_number_and_rate_on_a_terminal(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(named(*("job",) * 20_000))
    terminal = Terminal(100)
    process = start("record", path, file, stderr=terminal.there, env=TERMINAL)
    shown = without_colours(terminal.read())
    assert finish(process).out.startswith(f"recorded 20,000 tasks in {path}")
    assert re.search(r"[\d,]+ tasks +[\d,]+ tasks/s", shown)
    assert re.search(r"\d+ %", shown)


def test_record_names_broken_lines_above_the_bar(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(named(*("job",) * 5000) + "[\x1b[2J]\n" + named(*("job",) * 5000))
    terminal = Terminal(200)
    process = start("record", path, file, "--on-error", "skip", stderr=terminal.there, env=TERMINAL)
    shown = without_colours(terminal.read())
    assert finish(process).status == 1
    assert f"gc3session: {file}, line 5001: it is not JSON" in shown
    assert "[2J" not in shown


# -- list ---------------------------------------------------------------------


def test_list_has_id_name_state_and_last_event_in_the_order_of_adding(path: Path, made: Any) -> None:
    ids = made(
        Simulation(jobname="first one", state="RUNNING", history=[[0.0, "NEW"], [MOMENT, "RUNNING"]]),
        Task(history=[]),
        Task(jobname="c", state="own", history=[[MOMENT, "RUNNING"]]),
    )
    ran = run("list", path, env=BERLIN)
    assert (ran.status, ran.err) == (0, "")
    assert [re.split(" {2,}", line) for line in ran.out.splitlines()] == [
        ["ID", "NAME", "STATE", "LAST EVENT"],
        [ids[0], "first one", "RUNNING", "2020-09-13 13:26:40"],
        [ids[1], "-", "NEW", "-"],
        [ids[2], "c", "own", "2020-09-13 13:26:40 RUNNING"],
    ]
    assert (
        len(
            {
                line.index(column)
                for line, column in zip(ran.out.splitlines(), ["NAME", "first", "-", "c"], strict=True)
            }
        )
        == 1
    )


def test_list_of_no_tasks_is_the_heading_alone(path: Path, made: Any) -> None:
    made()
    assert run("list", path) == (0, "ID  NAME  STATE  LAST EVENT\n", "")


def tree() -> TaskCollection:
    """Return a collection in a collection, with a task in both, and the outer in the inner."""
    shared = Task(jobname="shared")
    inner = Sweep(jobname="inner", tasks=[shared, Note(text="no task")])
    outer = TaskCollection(jobname="outer", tasks=[inner, shared])
    inner.add(outer)
    return outer


def test_list_enters_collections_only_if_told_and_each_once(path: Path, made: Any) -> None:
    made(tree(), Task(jobname="last"))
    flat, deep = run("list", path).out.splitlines()[1:], run("list", "-r", path).out.splitlines()[1:]
    assert [re.split(" {2,}", line)[1] for line in flat] == ["outer", "last"]
    cells = [re.fullmatch(r"( *)(\S+) +(\S+) .*", line).groups() for line in deep]  # type: ignore[union-attr]
    assert [(len(indent) // 2, id_.split(".")[0], name) for indent, id_, name in cells] == [
        (0, "TaskCollection", "outer"),
        (1, "Sweep", "inner"),
        (2, "Task", "shared"),
        (2, "Note", "-"),
        (2, "TaskCollection", "outer"),
        (1, "Task", "shared"),
        (0, "Task", "last"),
    ]


def test_list_into_head_ends_without_a_word(path: Path, made: Any) -> None:
    made(*(Task(jobname=f"job {i}") for i in range(3000)))
    with start("list", path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ID ")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_list_interrupted_is_one_line(path: Path, made: Any) -> None:
    made(*(Task(jobname=f"job {i}") for i in range(3000)))  # more than a pipe holds
    process = start("list", path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert one_error(finish(process), 130) == "interrupted"


HOSTILE = "\x1b]0;x\x07\x9b31m\r\n\t\u202e\u2028\ud800[red]:smile:\\ é日本"
SAFE = r"\x1b]0;x\x07\x9b31m\r\n\t\u202e\u2028\ud800[red]:smile:\ é日本"


def test_text_of_records_never_reaches_a_terminal_raw(path: Path, made: Any) -> None:
    (id_,) = made(Task(jobname=HOSTILE, state=HOSTILE, extra={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE * 9}]}))
    outputs = [
        run("list", path).out,
        run("show", path, id_).out,
        without_colours(on_terminal("list", path, width=200)),
        without_colours(on_terminal("show", path, id_, width=200)),
    ]
    for out in outputs:
        assert not [c for c in out if not c.isprintable() and c not in "\n┃━"]
        assert SAFE in out


def test_list_fits_a_narrow_terminal_and_hides_nothing(path: Path, made: Any) -> None:
    name = "".join(chr(0x3B1 + i % 24) for i in range(78))  # letters that stand nowhere else
    id_, _ = made(Simulation(jobname=name), Task(jobname="b"))
    for width in (200, 80, 50, 30):
        rows = without_colours(on_terminal("list", path, width=width)).split("\n\n", 1)[1].splitlines()
        assert all(len(row) <= width for row in rows)
        assert any(row.startswith(id_) for row in rows)
        assert "".join(c for row in rows for c in row if c in name) == name


def test_list_on_a_terminal_begins_with_what_the_session_is(path: Path, made: Any) -> None:
    made(Task(state="RUNNING"), Task(state="RUNNING"), Task(state="TERMINATED", returncode=1))
    coloured = on_terminal("list", path)
    first, second, *_ = without_colours(coloured).splitlines()
    assert first == "runs  3 tasks: 2 RUNNING, 1 TERMINATED"
    assert second.startswith(f"{path}  created 20")
    assert "\x1b[31m" in coloured  # the one that failed
    assert "\x1b[3" not in on_terminal("list", path, NO_COLOR="1")


def test_list_tells_unreadable_records_and_lists_the_others(path: Path, made: Any) -> None:
    inner = Task(jobname="f")
    ids = made(*(Task(jobname=name) for name in "abcd"), TaskCollection(jobname="e", tasks=[inner]))
    for id_ in (ids[1], ids[3], str(inner.persistent_id)):
        damage(path, id_)
    ran = run("list", "-r", path)
    assert ran.status == 1
    rows = [line.split() for line in ran.out.splitlines()[1:]]
    assert [row[1] for row in rows] == ["a", "(unreadable)", "c", "(unreadable)", "e", "(unreadable)"]
    assert [row[0] for row in rows] == [*ids, inner.persistent_id]
    errors = ran.err.splitlines()
    assert len(errors) == 3
    assert all("checksum" in error for error in errors)
    shown = run("show", path, ids[1], ids[0])
    assert "checksum" in one_error(shown, 1)
    assert shown.out.startswith(ids[0])


# -- show ---------------------------------------------------------------------


def show(path: Path, *ids: str, **env: str) -> list[str]:
    """Return the lines of a `show` that succeeds."""
    ran = run("show", path, *ids, env=env or BERLIN)
    assert (ran.status, ran.err) == (0, "")
    return ran.out.splitlines()


def test_show_has_every_field_of_a_class_that_the_program_does_not_have(path: Path, made: Any) -> None:
    (id_,) = made(
        Simulation(
            jobname="mesh 7", state="RUNNING", history=[[MOMENT, "RUNNING"]], mesh="a.msh", steps=12, inputs={}
        )
    )
    assert show(path, id_) == [
        id_,
        "  class       examples:Simulation",
        "  jobname     mesh 7",
        "  state       RUNNING",
        "  returncode  None",
        "  history     2020-09-13 13:26:40.250 XYZ (2020-09-13 12:26:40.250 UTC)  RUNNING",
        "  extra       {}",
        "  mesh        a.msh",
        "  inputs      {}",
        "  steps       12",
    ]


def test_show_tells_a_time_once_where_local_time_is_utc(path: Path, made: Any) -> None:
    (id_,) = made(Task(history=[[MOMENT, "NEW"]]))
    assert "  history     2020-09-13 12:26:40.250 UTC  NEW" in show(path, id_, TZ="UTC")


def test_show_gives_nested_values_a_line_each(path: Path, made: Any) -> None:
    long = "x" * 60
    (id_,) = made(
        Task(
            extra={
                "short": [1, 2.0, None, True, "1"],
                "long": [long, {"deep": [long, long], 2: ()}, ({long}, 5)],
                "text": "first\n second\x1b",
                "number": "42",
            }
        )
    )
    out = show(path, id_)
    assert out[out.index("  extra") + 1 :] == [
        "    short: [1, 2.0, None, True, '1']",
        "    long:",
        f"      - '{long}'",
        "      - deep:",
        f"          - '{long}'",
        f"          - '{long}'",
        "        2: ()",
        f"      - ({{'{long}'}}, 5)",
        "    text:",
        "      | first",
        r"      |  second\x1b",
        "    number: '42'",
    ]


def test_show_tells_texts_from_other_values(path: Path, made: Any) -> None:
    for text in ("5", "None", "nan", " x", "", "[1]", "two\nlines"):
        (id_,) = made(Simulation(mesh=text))
        out = "\n".join(show(path, id_))
        assert f"  mesh        {text}\n" not in out


def test_show_has_values_of_every_kind(path: Path, made: Any) -> None:
    numpy = pytest.importorskip("numpy")
    moment = datetime.fromtimestamp(MOMENT, timezone(timedelta(hours=-5)))
    (id_,) = made(
        Simulation(
            inputs={
                "when": moment,
                "naive": moment.replace(tzinfo=None),
                "end": datetime.max.replace(tzinfo=UTC),
                "span": timedelta(seconds=5),
                "decimal": Decimal("1.50"),
                "complex": 1j,
                "bytes": b"\x00a" * 5000,
                "path": Path("a/b"),
                "enum": Colour.GREEN,
                "attrs": Point(1, [Colour.RED]),
                "long": Point("x" * 60, "y" * 60),
                "huge": 10**5000,
                "fraction": Fraction(10**5000, 3),
                "array": numpy.arange(4).reshape(2, 2),
                "scalar": numpy.float32(0.5),
                "set": {1},
                "empty": set(),
            }
        )
    )
    out = "\n".join(show(path, id_))
    for expected in (
        "when: 2020-09-13 13:26:40.250 XYZ (2020-09-13 12:26:40.250 UTC)",
        "naive: 2020-09-13 07:26:40.250000 (no time zone)",
        "end: 9999-12-31 23:59:59.999999+00:00",
        "span: datetime.timedelta(seconds=5)",
        "decimal: Decimal('1.50')",
        "complex: 1j",
        "and so on: 10,000 bytes",
        "path: PosixPath('a/b')",
        "enum: <examples:Colour.GREEN>",
        "attrs: <examples:Point>{'x': 1, 'y': [<examples:Colour.RED>]}\n",
        f"long:\n      <examples:Point>\n        x: '{'x' * 60}'\n        y: '{'y' * 60}'\n",
        f"huge: {10**5000:#x}",
        "fraction: <Fraction of too many digits to show>",
        "int64 array, 2 x 2\n",
        "[[0 1]\n",
        "scalar: np.float32(0.5)",
        "set: {1}",
        "empty: set()",
    ):
        assert expected in out


def test_show_gives_values_of_any_depth(path: Path) -> None:
    run("record", path, stdin=b'{"deep": ' + b"[" * 900 + b'"bottom"' + b"]" * 900 + b"}")
    assert show(path, "Task.1")[-1].endswith("- - - " + "[" * 32 + "'bottom'" + "]" * 32)


def test_show_has_references_by_id(path: Path, made: Any) -> None:
    collection = TaskCollection(tasks=[Task(jobname="a", state="RUNNING"), Note(about=5)])
    (id_,) = made(collection)
    a, note = (child.persistent_id for child in collection.tasks)
    assert show(path, id_)[-3:] == ["  tasks", f"    - <{a} a RUNNING>", f"    - <{note}>"]
    assert show(path, str(note))[2:] == ["  text   ''", "  about  5"]


def test_show_of_an_unknown_id_says_so_and_shows_the_others(path: Path, made: Any) -> None:
    first, last = made(Task(jobname="a"), Task(jobname="b"))
    ran = run("show", path, first, "Task.999", last)
    assert "Task.999" in one_error(ran, 1)
    assert [line for line in ran.out.splitlines() if line[:1] not in ("", " ")] == [first, last]
    assert r"no task nonsense\n in" in one_error(run("show", path, "nonsense\n"), 1)


def test_a_name_that_is_no_text_is_told_by_its_type(path: Path, made: Any) -> None:
    child = Task(jobname=10**5000)  # type: ignore[arg-type]
    collection, _ = made(TaskCollection(tasks=[child]), child)
    ran = run("list", path)
    assert ran.status == 0
    assert "  (int)  " in ran.out
    assert f"<{child.persistent_id} NEW>" in "\n".join(show(path, collection))


def test_show_survives_a_history_that_is_none(path: Path, made: Any) -> None:
    histories: list[Any] = [None, 5, {}, "ab", [[]], [None], [["x", "NEW"]], [[math.nan, "NEW"]], [[1e300, 5]]]
    ids = made(*(Task(history=history) for history in histories))
    assert [line for line in show(path, *ids) if line[:1] not in ("", " ")] == ids
    assert run("list", path).status == 0


def test_show_survives_a_return_code_that_is_none(path: Path, made: Any) -> None:
    numpy = pytest.importorskip("numpy")
    codes: list[Any] = ["3", [1], 2.5, numpy.arange(3), numpy.zeros(3, "V8")]
    ids = made(*(Task(returncode=code) for code in codes))
    assert [line for line in show(path, *ids) if line[:1] not in ("", " ")] == ids
    assert run("list", path).status == 0
    assert len(run("list", path, "--columns", "ID,returncode").out.splitlines()) == 1 + len(codes)


# -- all commands -------------------------------------------------------------


@pytest.mark.parametrize("command", [("list",), ("show", "Task.1")])
def test_looking_changes_nothing(path: Path, made: Any, command: tuple[str, ...]) -> None:
    made(tree())
    (path / "session_ids.txt").write_text("")  # which a writer would repair

    def state() -> dict[str, tuple[bytes, int]]:
        files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb")
        return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = state()
    name, *ids = command
    run(name, path, *ids)
    assert state() == before
    assert set(before) == {str(file) for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb"}


LOOKING = [("list",), ("list", "-r"), ("show", "Task.1")]


@pytest.mark.parametrize("command", LOOKING)
def test_a_path_that_is_no_session_is_told_and_left_alone(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("missing", "empty", "full", "file", "file/below", "n\x1b\n"):
        arguments = [*command[1:]] if command[0] == "show" else []
        options = [*command[1:]] if command[0] == "list" else []
        error = one_error(run(command[0], *options, tmp_path / name, *arguments), 2)
        assert str(tmp_path) in error
        assert error.isprintable()
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("command", ["record", "import-wf"])
def test_nothing_is_recorded_into_a_directory_of_other_things(tmp_path: Path, command: str) -> None:
    (tmp_path / "mine").write_text("")
    file = tmp_path / "file"
    file.write_text("{}\n")
    error = one_error(run(command, tmp_path, file), 2)
    assert str(tmp_path) in error
    assert {entry.name for entry in tmp_path.iterdir()} >= {"mine", "file"}
    assert not (tmp_path / "store.url").exists()


@pytest.mark.parametrize("damaged", ["jobs/data.mdb", "store.url"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 10_000, None])
def test_a_damaged_session_is_told(path: Path, made: Any, damaged: str, content: bytes | None) -> None:
    made(Task())
    if content is None:
        (path / damaged).unlink()
    else:
        (path / damaged).write_bytes(content)
    for command in (["list", path], ["show", path, "Task.1"], ["record", path]):
        assert str(path) in one_error(run(*command, stdin="{}\n"), 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_rights_are_told(path: Path, made: Any) -> None:
    made(Task())
    path.chmod(0)
    try:
        for command in (["list", path], ["show", path, "Task.1"], ["record", path]):
            assert "ermission denied" in one_error(run(*command), 2)
    finally:
        path.chmod(0o700)


def test_wrong_usage_is_one_line_and_status_2(path: Path) -> None:
    for arguments in (["nonsense"], ["list"], ["list", path, "--nonsense"], ["record", path, "--batch", "0"]):
        assert "--help" in one_error(run(*arguments), 2)
    ran = run()
    assert (ran.status, ran.out) == (2, "")
    assert "record" in ran.err
    assert not path.exists()


def test_help_tells_of_every_command(path: Path) -> None:
    commands = ("record", "import-wf", "list", "show")
    ran = run("--help")
    assert (ran.status, ran.err) == (0, "")
    assert all(f"\n  {command} " in ran.out for command in commands)
    for command in commands:
        assert run(command, "--help").out.startswith(f"Usage: gc3session {command} ")
    assert run("--version").out.startswith("gc3session ")


def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    source = "import sys; sys.modules['click'] = None\nfrom gc3session.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    ran = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False
    )
    assert "pip install 'gc3session[cli]'" in one_error(Ran(ran.returncode, ran.stdout, ran.stderr), 2)


def test_a_full_standard_output_is_told(path: Path, made: Any) -> None:
    made(Task())
    with open("/dev/full", "wb") as full:
        assert "No space left" in one_error(run("list", path, stdout=full), 1)


def test_a_closed_standard_output_is_borne(path: Path, made: Any) -> None:
    made(Task())
    assert run("list", path, stdout=None, preexec_fn=lambda: os.close(1)) == (0, "", "")


def test_names_that_stdout_cannot_encode_are_escaped(path: Path, made: Any) -> None:
    made(Task(jobname="é"))
    ran = run("list", path, env={"PYTHONIOENCODING": "ascii"})
    assert ran.status == 0
    assert r" \xe9 " in ran.out
