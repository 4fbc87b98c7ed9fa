"""Text of records, paths and errors has its control characters shown on a terminal, never sent: by each command, through one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import sys
import termios
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from children import in_child
from examples import Simulation
from gc3session import (
    Error,
    MirrorWarning,
    Persistable,
    Session,
    Task,
    TaskCollection,
    check_session,
    dump_session,
    load_dump,
    repair_session,
)
from gc3session.cli.program import _COMMANDS, run
from gc3session.format.frame import seal
from test_hostile import spoil

SECONDS = 300  # after which a command hangs

SIGNS = "\x1b[2J\x1b]0;x\x07\u202etxt\u2066\u200b\u2069\ufeff\x9b31m\x85\r\x7f\u2028\nFORGED\u00ad\U000e0041"
ODD = f"a{SIGNS}z"
"""What a name or a path may have: CSI, OSC, C1, overrides of direction, invisible characters, line breaks, DEL, tags."""

ODDER = f"{ODD}\0\ud800"
"""What a text in a record may have, too."""

DRAWING = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?(25|1049)[hl]|\x1b\[[12]?K|\x1b\[\d*[AG]|\x1b\[H|\r")
"""What the program itself sends: colours, and the movements that its bars and screens are drawn with."""


def make(path: Path) -> None:
    """Make a session in which every text that there can be is odd."""
    with Session(path) as session:
        inner = Task(jobname=ODDER, state=ODD, returncode=1)
        task = Task(
            jobname=ODDER,
            state="TERMINATED",
            returncode=7,
            extra={
                ODDER: [ODDER, {ODDER: ODDER}, ODDER.encode("utf-8", "surrogatepass")],
                "long": ODD * 40,
                "path": Path(ODD),
            },
        )
        session.add(TaskCollection(jobname=ODDER, state=ODD, tasks=[inner, task]))
        session.add(task)
        session.add(Task(jobname="other", extra={"wf": ODDER}))
        session.add_many([Persistable(), Simulation(jobname=ODD, mesh=ODDER)])
        bad = session.add(Task(jobname="unreadable"))
    (path / "created").write_text(ODD)
    number = int(bad.rpartition(".")[2])

    def other_class(key: bytes, value: bytes) -> bytes:
        tag, name, kind, fields = msgpack.unpackb(value[:-5])
        fields = [field + ODD if field == "mesh" else field for field in fields]
        return seal(int.from_bytes(key, "big"), msgpack.packb([tag + ODD, name, kind, fields]))

    def spoilt(key: bytes, value: bytes) -> bytes:
        return value[:-1] if int.from_bytes(key, "big") == number else value

    in_child(spoil, path, "schemas", other_class)
    in_child(spoil, path, "records", spoilt)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an odd session `a...`, a dump of it, and other files that are read."""
    place = tmp_path_factory.mktemp("odd")
    path = place / ODD
    make(path)
    with Session(path, read_only=True) as session:
        dump_session(session, place / f"{ODD}.jsonl")
    text = (place / f"{ODD}.jsonl").read_text()
    (place / f"{ODD}-spoilt.jsonl").write_text(
        text.replace('"kind"', json.dumps(ODDER)).replace('"state"', '"st"')
    )
    (place / f"{ODD}.txt").write_text(
        json.dumps({ODDER: ODDER}) + "\n" + json.dumps({"jobname": ODDER, ODDER: 1}) + "\n{" + ODD
    )
    task = {"name": ODDER, "id": ODDER, "parents": [ODDER + "x"], "children": []}
    workflow = {"name": ODDER, "schemaVersion": "1.5", "workflow": {"specification": {"tasks": [task, task]}}}
    (place / f"{ODD}.json").write_text(json.dumps(workflow))
    with Session(place / f"{ODD}-url") as session:
        session.add(Task())
    (place / f"{ODD}-url" / "store.url").write_text(f"{ODD}\n")
    with Session(place / f"{ODD}-data") as session:
        session.add(Task())
    (place / f"{ODD}-data" / "jobs" / "data.mdb").write_text(ODD * 1000)
    return place


def command_lines(place: Path) -> Iterator[list[str]]:
    """Give command lines: each command with what it finds, and with what it has to complain of."""
    session = f"{place}/{ODD}"
    id_ = f"Task{ODD}.2"
    readers = ["info", "list", "select", "show", "log", "dump", "check"]
    yield from (
        [name, session] for name in ("info", "list", "select", "log", "dump", "check", "watch") if name != "watch"
    )
    yield from ([name, f"{session}{end}"] for name in readers for end in ("-none", "-url", "-data", ".txt"))
    yield from (
        [name, session, *more] for name, *more in (
            ["info", "--scan"], ["list", "-r"], ["list", "--columns", f"ID,CLASS,extra.{ODD}"], ["list", "--sort", ODD],
            ["list", "--columns", "ID,NAME,extra.wf,extra.long"], ["list", "--state", ODD], ["list", "--since", ODD],
            ["list", "--where", ODD], ["list", "--where", f"jobname = {ODD}"], ["list", "--name", f"({ODD}"],
            ["list", "--format", ODD], ["list", f"--{ODD}"], ["list", "--ids"], ["select", "--ids"],
            ["show", id_, f"{ODD}.1", "Task.99", f"TaskCollection{ODD}.1"], ["log", "--state", ODD], ["log", "--since", ODD],
            ["watch", "--once"], ["watch", "--interval", ODD], ["dump", "-o", f"{place}/new{ODD}.jsonl"],
            ["dump", "-o", f"{place}/no{ODD}/x"], ["diff", f"{session}.jsonl"], ["diff", f"{session}-data"],
            ["diff", f"{session}.txt"], ["backup", f"{session}-backup"], ["backup", f"{session}.txt"],
            ["load", f"{session}.jsonl"], ["load", f"{session}-spoilt.jsonl"], ["load", f"{session}.txt"],
            ["record", f"{session}.txt"], ["record", "--", f"no{ODD}"], ["import-wf", f"{session}.json"],
            ["import-wf", f"{session}.txt"], ["migrate", f"lmdb://{session}.txt/x"], ["migrate", f"{ODD}:x"],
            ["repair", "--dry-run"], ["remove", "--yes", f"{ODD}.9"], ["forget", "--yes", f"{ODD}.9"],
            ["remove", id_], ["compact"], ["repair"], ["forget", "--yes", id_], ["destroy", ODD], ["destroy"],
        )
    )  # fmt: skip
    yield [ODD]
    yield ["--completion", ODD]


def on_terminal(arguments: list[str], until: bytes = b"") -> tuple[int, bytes]:
    """Run a command in a child whose streams are a terminal of 100 columns; return its status and what it sent.

    It is given an answer of no, and Ctrl-C as soon as it has written *until*, if that is something.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(ours)
            signal.alarm(SECONDS)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
            os.environ["TERM"] = "xterm-256color"
            os.login_tty(theirs)
            sys.stdin, sys.stdout, sys.stderr = (open(fd, "rw"[fd > 0], closefd=False) for fd in range(3))  # noqa: SIM115
            status = run(arguments)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    os.close(theirs)
    os.write(ours, b"n\n")
    sent = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while piece := os.read(ours, 65536):
            sent += piece
            if until and until in sent:
                os.write(ours, b"\x03")
                until = b""
    os.close(ours)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sent


def signs_in(sent: bytes) -> list[str]:
    """Return what a terminal would obey, or not show, of what was sent."""
    text = DRAWING.sub(b"", sent).decode("utf-8", "surrogateescape")
    signs = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c != "\n"}
    forged = ["a line that is FORGED"] if re.search(r"(?m)^FORGED", text) else []
    return sorted(map(ascii, signs)) + forged


def test_no_command_sends_what_controls_the_terminal(made: Path, tmp_path: Path) -> None:
    failures, tried = [], set()
    place = tmp_path / "place"
    shutil.copytree(made, place)
    for arguments in command_lines(place):
        status, sent = on_terminal(arguments)
        tried.add(arguments[0])
        signs = signs_in(sent)
        if signs or status not in (0, 1, 2):
            failures.append(f"{arguments[0]} {arguments[2:]!a}: status {status}, {signs}: {sent[-300:]!r}")
    assert not failures, "\n".join(failures)
    assert tried >= set(_COMMANDS)


def test_watch_draws_no_sign_of_a_record(made: Path) -> None:
    status, sent = on_terminal(["watch", str(made / ODD), "--interval", "0.1"], until=b"TERMINATED")
    assert (status, signs_in(sent)) == (130, [])


def test_the_terminal_test_sees_what_is_sent() -> None:
    """The control: each of the signs is one."""
    for sign in set(SIGNS) - set("[]2J0;xt31mFORGED\n\r"):
        assert signs_in(f"a{sign}z".encode()) == [ascii(sign)]
    assert signs_in(b"a\x1b[2Jz\x1b]0;x\x07") != []
    assert signs_in(b"a\r\nFORGED") == ["a line that is FORGED"]
    assert signs_in(b"\x1b[1m\x1b[31ma\x1b[0m\r\n\x1b[2K") == []


def test_reprs_and_errors_are_safe_to_show(made: Path, tmp_path: Path) -> None:
    """As a program prints them, or its traceback."""
    place = tmp_path / "place"
    shutil.copytree(made, place)
    shown: list[str] = []

    def show(*things: Any) -> None:
        shown.extend(thing if isinstance(thing, str) else repr(thing) for thing in things)

    def attempt(function: Callable[[], Any]) -> None:
        try:
            show(function())
        except (Error, OSError) as error:  # a dump is a file of the caller's
            show(error, str(error))

    def use(session: Session) -> None:
        show(session, session.store, session.tasks, session.info(), next(iter(session.watch())))
        show(*session.select().stored(), *session.check())
        for id_ in session.list_ids():
            attempt(lambda id_=id_: session.load(id_))
        log = session.log()
        for _ in range(20):
            attempt(lambda: next(log, None))
        for call in (
            session.load,
            session.remove,
            session.forget,
            session.__getitem__,
            session.select,
            lambda name: session.backup(tmp_path / f"{name}-copy"),
        ):
            attempt(lambda call=call: call(ODD))
        attempt(lambda: list(session.select(where=f"{ODD} = 1")))
        attempt(lambda: session.add(Task(extra={ODD: object()})))

    def in_process() -> list[str]:
        with Session(place / ODD) as session:
            use(session)
        for end in ("", "-none", "-url", "-data", ".txt"):
            path = place / f"{ODD}{end}"
            attempt(lambda path=path: Session(path, create=False))
            attempt(lambda path=path: repair_session(path, dry_run=True))
            attempt(lambda path=path: list(check_session(path)))
            attempt(lambda path=path: load_dump(tmp_path / "new", path))
        attempt(lambda: load_dump(tmp_path / "new", place / f"{ODD}-spoilt.jsonl"))
        new = tmp_path / f"{ODD}-new"
        with Session(new) as session:
            session.add(Task())
        (new / "session_ids.txt").write_text("edited by hand\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MirrorWarning)
            Session(new).close()
        assert caught
        show(*(str(warning.message) for warning in caught))
        return [text for text in shown if signs_in(text.encode("utf-8", "backslashreplace"))]

    assert in_child(in_process) == []
