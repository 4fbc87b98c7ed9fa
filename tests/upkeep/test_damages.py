"""Sessions damaged in 200 ways: every command ends with a message and a documented status, and a repair repairs it.

A damage is a name and a function on a session directory.  All are made from one seed.  Commands run in
forked children of one process that has imported everything.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from children import Died, in_child
from examples import Note, Simulation, Sweep
from gc3session import Error, Session, check_session, dump_session, repair_session
from gc3session.cli.guard import guarded
from gc3session.cli.program import _COMMANDS, run

SEED = 20261125
COUNT = 200
SECONDS = 300  # after which a command hangs
PAGE = 4096
NOBODY = 65534
MESSAGE = "gc3session: "

Damage = Callable[[Path], None]


# -- what is damaged ----------------------------------------------------------


def make(path: Path) -> None:
    """Make a session with everything: collections, tasks that came back, large values, several states, gaps."""
    chance = random.Random(SEED)
    with Session(path) as session:
        ids = list(
            session.add_many(Simulation(jobname=f"t{i}", mesh="m" * chance.randrange(200)) for i in range(300))
        )
        for id_ in ids:
            session.load(id_).state = chance.choice(("NEW", "RUNNING", "TERMINATED"))
        session.save_all()
        session.add(Sweep(jobname="sweep", tasks=[session.load(id_) for id_ in ids[:5]]))
        for i in range(5):
            session.add(Simulation(jobname="large", inputs={"bytes": chance.randbytes(9000 + 4000 * i)}))
        session.add(Note(text="a note", about=session.load(ids[9])))
        session.remove_many(ids[20:90:7])
        session.forget(ids[0])
        session.add(session.store.load(ids[0]))


def flipped(file: str, place: float, bit: int) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray((path / file).read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        (path / file).write_bytes(data)

    return damage


def overwritten(file: str, place: float, size: int, seed: int) -> Damage:
    """Pages of 4096 bytes, zeroed, or with *seed* random."""

    def damage(path: Path) -> None:
        data = bytearray((path / file).read_bytes())
        begin = int(place * len(data)) // 4096 * 4096
        data[begin : begin + size] = random.Random(seed).randbytes(size) if seed else bytes(size)
        (path / file).write_bytes(data)

    return damage


def cut(file: str, place: float) -> Damage:
    def damage(path: Path) -> None:
        os.truncate(path / file, int(place * (path / file).stat().st_size))

    return damage


def swapped_pages(one: float, other: float) -> Damage:
    def damage(path: Path) -> None:
        file = path / "jobs" / "data.mdb"
        data = bytearray(file.read_bytes())
        a, b = (int(place * len(data)) // 4096 * 4096 for place in (one, other))
        data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]
        file.write_bytes(data)

    return damage


def replaced(file: str, contents: bytes | str | None) -> Damage:
    """With bytes, by a link to somewhere (a str), or by a directory."""

    def damage(path: Path) -> None:
        target = path / file
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        if contents is None:
            target.mkdir()
        elif isinstance(contents, str):
            target.symlink_to(contents)
        else:
            target.write_bytes(contents)

    return damage


def removed(*files: str) -> Damage:
    def damage(path: Path) -> None:
        for file in files:
            shutil.rmtree(path / file) if (path / file).is_dir() else (path / file).unlink()

    return damage


def fifo(file: str) -> Damage:
    def damage(path: Path) -> None:
        (path / file).unlink()
        os.mkfifo(path / file)

    return damage


def swapped_files(one: str, other: str) -> Damage:
    def damage(path: Path) -> None:
        (path / one).rename(path / "x")
        (path / other).rename(path / one)
        (path / "x").rename(path / other)

    return damage


def edited(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    def damage(path: Path) -> None:
        file = path / "session_ids.txt"
        file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))

    return damage


def forbidden(file: str, mode: int) -> Damage:
    def damage(path: Path) -> None:
        (path / file).chmod(mode)

    return damage


def damages() -> list[tuple[str, Damage]]:
    """Return the damages by their names."""
    chance = random.Random(SEED)
    data, lock, mirror, url, created = "jobs/data.mdb", "jobs/lock.mdb", "session_ids.txt", "store.url", "created"
    found: list[tuple[str, Damage]] = [
        *((f"page {n} zeroed", overwritten(data, n / 100, 4096, 0)) for n in range(0, 100, 3)),
        *((f"page at {n} % random", overwritten(data, n / 100, 4096, n + 1)) for n in range(1, 100, 7)),
        *((f"data cut at {n} %", cut(data, n / 100)) for n in range(0, 100, 6)),
        *((f"mirror cut at {n} %", cut(mirror, n / 100)) for n in (0, 33, 99)),
        *((f"store.url cut at {n} %", cut(url, n / 100)) for n in (0, 50, 99)),
        *((f"lock cut at {n} %", cut(lock, n / 100)) for n in (0, 1, 50)),
        *((f"meta byte {n} flipped", flipped_at(n)) for n in (0, 10, 16, 20, 40, 44, 46, 80, 92, 94, 128, 136, 144)),
        *((f"newest meta byte {n} flipped", flipped_at(n, newest=True)) for n in (16, 80, 128, 136, 144)),
        ("both metas zeroed", overwritten(data, 0, 8192, 0)),
        ("half zeroed", overwritten(data, 0.5, 1 << 20, 0)),
        ("data random", replaced(data, random.Random(1).randbytes(100_000))),
        ("data empty", replaced(data, b"")),
        *((f"{file} a directory", replaced(file, None)) for file in (data, lock, mirror, url, created)),
        *((f"{file} a link", replaced(file, "/dev/null")) for file in (data, lock, mirror, url, created)),
        *((f"{file} a FIFO", fifo(file)) for file in (data, lock, mirror, url, created)),
        *((f"{file} removed", removed(file)) for file in (data, lock, mirror, url, created, "jobs")),
        ("store.url and mirror removed", removed(url, mirror)),
        ("store.url and created removed", removed(url, created)),
        ("jobs a file", replaced("jobs", b"a file")),
        ("data and lock swapped", swapped_files(data, lock)),
        ("data and mirror swapped", swapped_files(data, mirror)),
        ("mirror and store.url swapped", swapped_files(mirror, url)),
        ("mirror and created swapped", swapped_files(mirror, created)),
        ("lock random", replaced(lock, random.Random(2).randbytes(8192))),
        ("lock text", replaced(lock, b"text\n" * 2000)),
        ("store.url of a stranger", replaced(url, b"lmdb:jobs#" + b"0" * 32 + b"\n")),
        ("store.url leads out", replaced(url, b"lmdb:../x#" + b"0" * 32 + b"\n")),
        ("store.url not text", replaced(url, b"\xff\xfe\0")),
        ("mirror with a line more", edited(lambda lines: [*lines, b"Task.999999\n"])),
        ("mirror with a line less", edited(lambda lines: lines[:10] + lines[11:])),
        ("mirror with lines swapped", edited(lambda lines: [lines[1], lines[0], *lines[2:]])),
        ("mirror not text", edited(lambda lines: [b"\xff\0"] * len(lines))),
        ("mirror with Windows newlines", edited(lambda lines: [line[:-1] + b"\r\n" for line in lines])),
        *((f"{file} {mode:o}", forbidden(file, mode)) for file in (data, lock, mirror, url, "jobs", ".") for mode in (0, 0o400)),
    ]  # fmt: skip
    found += [(f"pages swapped {n}", swapped_pages(chance.random(), chance.random())) for n in range(10)]
    n = 0
    while len(found) < COUNT:
        file = chance.choice([data, data, data, data, lock, mirror, url])
        found.append((f"bit flipped in {file} {n}", flipped(file, chance.random(), chance.randrange(8))))
        n += 1
    return found


def flipped_at(place: int, newest: bool = False) -> Damage:
    """A byte of a meta page: of page 0, or of that of the newest state."""

    def damage(path: Path) -> None:
        file = path / "jobs" / "data.mdb"
        data = bytearray(file.read_bytes())
        second = newest and data[4096 + 144 : 4096 + 152][::-1] > data[144:152][::-1]
        data[4096 * second + place] ^= 0xFF
        file.write_bytes(data)

    return damage


# -- the commands -------------------------------------------------------------

Arguments = Callable[[Path], list[list[str]]]

ARGUMENTS: dict[str, Arguments] = {
    "record": lambda path: [[str(path), str(path.parent / "task.jsonl")]],
    "import-wf": lambda path: [[str(path), str(path.parent / "task.jsonl")]],
    "show": lambda path: [[str(path), "Simulation.3"]],
    "watch": lambda path: [[str(path), "--once"]],
    "dump": lambda path: [[str(path)], [str(path), "-o", str(path.parent / "out")]],
    "load": lambda path: [[str(path), str(path.parent / "dump.jsonl")]],
    "diff": lambda path: [[str(path), str(path.parent / "whole")]],
    "backup": lambda path: [[str(path), str(path.parent / "backup")]],
    "repair": lambda path: [[str(path), "--dry-run"]],
    "remove": lambda path: [[str(path), "Simulation.3", "--yes"]],
    "forget": lambda path: [[str(path), "Simulation.4", "--yes"]],
    "destroy": lambda path: [[str(path), "--yes"]],
    "migrate": lambda path: [[str(path), f"lmdb://{path.parent}/elsewhere"]],
}
"""What each command is called with; those that aren't here take the session alone."""

WRITING = ("record", "import-wf", "load", "compact", "remove", "forget", "destroy", "migrate")


class Ended(NamedTuple):
    status: int
    output: str


def command(arguments: list[str]) -> Ended:
    """Run a command, in a child that its guard makes; return its status and what it has written."""

    def child() -> tuple[int, str]:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            for fd in (1, 2):
                os.dup2(write, fd)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, "rw"[fd > 0]) for fd in range(3))
            status = 70
            try:
                status = guarded(lambda: run(arguments))
                sys.stdout.flush()
            except BaseException as error:
                sys.stderr.write(f"Traceback: {error!r}")
            finally:
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
                os._exit(status)
        os.close(write)
        with open(read, "rb") as pipe:
            output = pipe.read().decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output

    return Ended(*in_child(child))


def faults_of(name: str, arguments: list[str]) -> list[str]:
    """Return what is wrong with how a command ends."""
    status, output = command([name, *arguments])
    faults = []
    if status not in (0, 1, 2):
        faults.append(f"status {status}")
    if "Traceback" in output:
        faults.append("a traceback")
    if status == 2 and not any(line.startswith(MESSAGE) for line in output.splitlines()):
        faults.append("no message")
    return [f"{name} {' '.join(arguments)}: {fault}: {output[-1500:]}" for fault in faults]


# -- what is intact -----------------------------------------------------------


def lines_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a dump of the session's tasks, by ID."""
    out = io.BytesIO()
    with Session(path, create=False, read_only=True) as session:
        dump_session(session, out)
    found = {}
    for line in out.getvalue().splitlines():
        record = json.loads(line)
        if record.get("member"):
            found[record["id"]] = record
    return found


def records_of(path: Path) -> dict[str, bytes]:
    """Return the bytes of each task's record in the whole session."""
    with Session(path, create=False, read_only=True) as session, session.store.reading() as reader:
        return {
            id_: reader.get("records", int(id_.rpartition(".")[2]).to_bytes(8, "big")) for id_ in session.ids()
        }


def schemas_of(path: Path) -> dict[int, bytes]:
    with Session(path, create=False, read_only=True) as session, session.store.reading() as reader:
        return {int.from_bytes(key, "big"): data for key, data in reader.scan("schemas", b"")}


def intact(path: Path, records: dict[str, bytes], schemas: dict[int, bytes]) -> set[str]:
    """Return the IDs of the tasks whose records stand unchanged in whole pages of the damaged data file."""
    file = path / "jobs" / "data.mdb"
    if file.is_symlink() or not file.is_file():
        return set()
    data = file.read_bytes()
    data = data[: len(data) // PAGE * PAGE]
    nodes = {node for number in range(len(data) // PAGE) for node in _nodes(data, number)}
    runs = [(key, PAGE * int.from_bytes(value, sys.byteorder) + 16) for key, value in nodes if len(value) == 8]

    def stands(id_: str, record: bytes) -> bool:
        key = b"\x0b" + int(id_.rpartition(".")[2]).to_bytes(8, "big")
        if len(record) < 2000:
            return (key, record) in nodes
        return any(key == other and data.startswith(record, at) for other, at in runs)

    # Without its schema nobody can say what the values of a record are.
    known = {number for number, schema in schemas.items() if (b"\2" + number.to_bytes(4, "big"), schema) in nodes}
    return {id_ for id_, record in records.items() if record[1] in known and stands(id_, record)}


def _nodes(data: bytes, number: int) -> Iterator[tuple[bytes, bytes]]:
    """Give key and value of each node of a page if it is a leaf; of a large value the number of its first page."""
    page = data[number * PAGE : (number + 1) * PAGE]
    own_number, flags, lower, upper = struct.unpack_from("=QxxHHH", page)
    if own_number != number or flags != 2 or not 16 <= lower <= upper <= PAGE:
        return
    for place in struct.unpack_from(f"={(lower - 16) // 2}H", page, 16):
        if upper <= place <= PAGE - 8:
            low, high, flags, key_size = struct.unpack_from("=HHHH", page, place)
            begin = place + 8 + key_size
            if flags in (0, 1):
                yield page[place + 8 : begin], page[begin : begin + (8 if flags else low | high << 16)]


class Whole(NamedTuple):
    """The session that is damaged."""

    path: Path
    lines: dict[str, dict[str, Any]]
    records: dict[str, bytes]
    schemas: dict[int, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    path = place / "whole"
    make(path)
    (place / "task.jsonl").write_text('{"jobname": "new"}\n')
    out = io.BytesIO()
    with Session(path, read_only=True) as session:
        dump_session(session, out)
    (place / "dump.jsonl").write_bytes(out.getvalue())
    return Whole(path, lines_of(path), records_of(path), schemas_of(path))


def damaged(whole: Whole, place: Path, damage: Damage) -> Path:
    """Return a damaged copy of the session."""
    path = place / "session"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole.path, path)
    damage(path)
    return path


@pytest.fixture
def place(whole: Whole, tmp_path: Path) -> Iterator[Path]:
    for name in ("task.jsonl", "dump.jsonl"):
        shutil.copy(whole.path.parent / name, tmp_path)
    shutil.copytree(whole.path, tmp_path / "whole")
    yield tmp_path
    for each in tmp_path.rglob("*"):
        if each.is_dir():
            each.chmod(0o700)


def test_there_are_as_many_damages_as_are_said() -> None:
    names = [name for name, _ in damages()]
    assert len(names) == len(set(names)) == COUNT


ALL = damages()
GROUPS = 8


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_session_is_mended_and_no_readable_task_is_lost(whole: Whole, place: Path, group: int) -> None:
    failures = []
    for name, damage in ALL[group::GROUPS]:
        path = damaged(whole, place, damage)
        if not all(os.access(each, os.R_OK | os.W_OK) for each in (path, *path.rglob("*"))):  # never so for root
            try:
                in_child(repair_session, path)
            except Error as error:
                failures += [] if "Permission denied" in str(error) else [f"{name}: {error!r}"]
            restore_rights(path)
        expected = intact(path, whole.records, whole.schemas)
        try:
            failures += [f"{name}: {fault}" for fault in in_child(repair_failures, path, expected, whole.lines)]
        except Died as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            failures.append(f"{name}: {error!r}")
        restore_rights(path)
    assert failures == []


def restore_rights(path: Path) -> None:
    with contextlib.suppress(OSError):
        for each in (path, *path.rglob("*")):
            if not each.is_symlink():
                each.chmod(0o700 if each.is_dir() else 0o600)


def times_of(path: Path) -> dict[str, int]:
    """Return when each file was changed, but for LMDB's lock, which readers write."""
    return {
        str(file): file.lstat().st_mtime_ns for file in path.rglob("*") if file.name not in ("lock.mdb", "jobs")
    }


def repair_failures(path: Path, expected: set[str], lines: dict[str, Any]) -> list[str]:
    """Repair a session; return what is wrong after it."""
    signal.alarm(SECONDS)
    wrong = bool(next(check_session(path), None))
    before = times_of(path)
    planned = repair_session(path, dry_run=True)
    failures = [] if before == times_of(path) else ["a dry run has written"]
    repaired = repair_session(path)
    if bool(repaired.done) != wrong or bool(planned.done) != wrong:
        failures.append(f"findings: {wrong}, but repaired {repaired.done[:3]}, dry run {planned.done[:3]}")
    left = [str(finding) for finding in check_session(path)]
    if left:
        failures.append(f"after the repair: {left[:3]}")
        return failures
    after = lines_of(path)
    missing = expected - after.keys()
    if missing:
        failures.append(
            f"{len(missing)} of {len(expected)} readable tasks are lost: {sorted(missing)[:3]}; {repaired.done[:3]}"
        )
    strange = after.keys() - lines.keys()
    if strange:
        failures.append(f"tasks that were not in the session: {sorted(strange)[:3]}")
    changed = [id_ for id_ in expected & after.keys() if after[id_]["fields"] != lines[id_]["fields"]]
    if changed:
        failures.append(f"tasks are not what they were: {changed[:3]}")
    again = repair_session(path)
    if again.done:
        failures.append(f"a second repair does {again.done[:3]}")
    return failures


def some_commands(long_form: bool, n: int) -> list[str]:
    """Return the commands that a damage is tried with: all, or in the short form one, another each time."""
    names = list(_COMMANDS)
    return names if long_form else [names[n % len(names)]]


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_command_ends_with_a_message_and_a_documented_status(
    whole: Whole, place: Path, group: int, long_form: bool
) -> None:
    failures = []
    for n, (name, damage) in list(enumerate(ALL))[group::GROUPS]:
        path = damaged(whole, place, damage)
        for command_name in some_commands(long_form, n):
            for arguments in ARGUMENTS.get(command_name, lambda path: [[str(path)]])(path):
                failures += [f"{name}: {fault}" for fault in faults_of(command_name, arguments)]
            if command_name in WRITING:
                restore_rights(path)
                path = damaged(whole, place, damage)
            for leftover in ("backup", "elsewhere", "out"):
                shutil.rmtree(place / leftover, ignore_errors=True)
                (place / leftover).unlink(missing_ok=True)
        restore_rights(path)
    assert failures == []
