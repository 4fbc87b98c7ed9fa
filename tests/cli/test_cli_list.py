"""`list`, `select` and `show --json` as real processes: each filter, order and form, pipes, terminals, writers."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from children import Child, Died
from examples import Colour, Note, Point, Simulation, Sweep
from gc3session import Session, Task, TaskCollection
from raw_tables import damage
from test_cli import BERLIN, MOMENT, on_terminal, one_error, run, start, without_colours


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path with characters that shells and URLs mind."""
    return tmp_path / "läufe 1"


@pytest.fixture
def ids(path: Path) -> list[str]:
    """The IDs of tasks of all sorts in a session."""
    with Session(path) as session:
        return list(
            session.add_many(
                [
                    Task(jobname="a", state="NEW", history=[[MOMENT, "NEW"]]),
                    Simulation(
                        jobname="b", state="RUNNING", steps=5, history=[[MOMENT + 60, "RUNNING"]], extra={"s": 40}
                    ),
                    Simulation(
                        jobname="ab",
                        state="DONE",
                        steps=10,
                        returncode=1,
                        history=[],
                        extra={"s": 7, "é": Colour.RED},
                    ),
                    Sweep(jobname="c", state="RUNNING", tasks=[Task(jobname="in", state="RUNNING", history=[])]),
                    Note(text="x,\n\x1b", about=Point(1, 2)),
                ]
            )
        )


def listed(*arguments: object, status: int = 0, command: str = "list") -> list[str]:
    """Return the IDs that a command gives."""
    ran = run(command, *arguments, "--ids") if command == "list" else run(command, *arguments)
    assert (ran.status, ran.err) == (status, ""), ran
    return ran.out.splitlines()


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["--state", "RUNNING"], [1, 3]),
        (["--state", "RUNNING,NEW"], [0, 1, 3]),
        (["--state", "DONE", "--state", "NEW"], [0, 2]),
        (["--name", "^a"], [0, 2]),
        (["--id", "^Sim"], [1, 2]),
        (["--class", "Simulation"], [1, 2]),
        (["--class", "examples:Sweep", "--class", "Note"], [3, 4]),
        (["--where", "steps > 5"], [2]),
        (["--where", "extra.s > 5", "--where", "state != DONE"], [1]),
        (["--where", "extra.é = RED"], [2]),
        (["--where", "about.x = 1"], [4]),
        (["--where", "tasks.0.jobname = in"], [3]),
        (["--since", "2020-09-13T12:27:00Z", "--before", "2021-01-01"], [1]),
        (["--before", "2020-09-13T12:27:00Z"], [0]),
        (["--since", "1 hour ago"], [3]),
        (["--name", "a", "--state", "DONE", "--where", "returncode = 1"], [2]),
        (["--state", "NOSUCH"], []),
        (["--limit", "2"], [0, 1]),
        (["--limit", "0"], []),
        (["--limit", "1", "--where", "steps > 1"], [1]),
        (["--sort", "jobname"], [0, 2, 1, 3, 4]),
        (["--sort", "-NAME"], [3, 1, 2, 0, 4]),
        (["--sort", "-steps", "--limit", "1"], [2]),
        (["--sort", "extra.s"], [2, 1, 0, 3, 4]),
        (["--sort", "-extra.s"], [1, 2, 0, 3, 4]),
        (["--sort", "LAST EVENT"], [0, 1, 3, 2, 4]),
        (["--sort", "-CLASS", "--state", "NEW,RUNNING", "--limit", "2"], [3, 1]),
    ],
    ids=str,
)
def test_list_gives_what_is_asked_for(path: Path, ids: list[str], options: list[str], places: list[int]) -> None:
    assert listed(path, *options) == [ids[place] for place in places]


def test_select_takes_conditions_and_gives_ids(path: Path, ids: list[str]) -> None:
    assert listed(path, command="select") == ids
    assert listed(path, "state = RUNNING", "steps = 5", command="select") == [ids[1]]
    assert listed(path, "steps > 1", "--name", "a", "--sort", "-steps", command="select") == [ids[2]]
    assert run("select", path, "steps > 1", "--format", "csv", "--columns", "ID,steps").out == (
        f"ID,steps\n{ids[1]},5\n{ids[2]},10\n"
    )
    assert run("select", path, "steps > 9", "--columns", "steps").out == "steps\n10\n"
    assert run("select", path, "steps > 9", "--format", "table").out.startswith("ID ")


def test_list_sorts_more_tasks_than_it_holds(path: Path) -> None:
    with Session(path) as session:
        ids = session.add_many(Task(jobname=str(i * 7919 % 70_000)) for i in range(70_000))
    order = sorted(range(70_000), key=lambda i: str(i * 7919 % 70_000))
    assert listed(path, "--sort", "jobname") == [ids[i] for i in order]
    assert listed(path, "--sort", "-jobname") == [ids[i] for i in reversed(order)]


def test_sorting_takes_any_value(path: Path) -> None:
    values = [
        None,
        True,
        3,
        "text",
        2.5,
        float("nan"),
        10**30,
        b"b",
        "a",
        [1],
        datetime(2026, 1, 1),
        {},
        3,
        "\ud800",
    ]
    with Session(path) as session:
        ids = list(session.add_many(Task(extra={"v": value}) for value in values))
        ids.append(session.add(Task()))
    places = [ids.index(id_) for id_ in listed(path, "--sort", "extra.v")]
    assert places == [4, 2, 12, 6, 8, 3, 13, 10, 1, 7, 0, 5, 9, 11, 14]
    places = [ids.index(id_) for id_ in listed(path, "--sort", "-extra.v")]
    assert places == [7, 1, 10, 13, 3, 8, 6, 2, 12, 4, 0, 5, 9, 11, 14]


# -- forms --------------------------------------------------------------------


def test_columns_may_be_any_fields(path: Path, ids: list[str]) -> None:
    ran = run("list", path, "--columns", "STATE,ID,extra.s,CLASS,about,tasks,text", env=BERLIN)
    assert (ran.status, ran.err) == (0, "")
    rows = [re.split(" {2,}", line) for line in ran.out.splitlines()]
    assert rows[0] == ["STATE", "ID", "extra.s", "CLASS", "about", "tasks", "text"]
    assert rows[2] == ["RUNNING", ids[1], "40", "examples:Simulation", "-", "-", "-"]
    assert rows[4][5] == "[<Task.7>]"
    assert rows[5][4:] == ["<examples:Point>{'x': 1, 'y': 2}", "-", r"x,\n\x1b"]


def test_csv_is_read_again_and_has_times_with_their_zone(path: Path, ids: list[str]) -> None:
    ran = run("list", path, "--format", "csv", "--columns", "ID,NAME,LAST EVENT,text,returncode", env=BERLIN)
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [row["ID"] for row in rows] == ids
    assert datetime.fromisoformat(rows[0]["LAST EVENT"]) == datetime.fromtimestamp(MOMENT, UTC)
    assert (rows[2]["LAST EVENT"], rows[2]["returncode"], rows[0]["returncode"]) == ("", "1", "")
    assert rows[4]["text"] == r"x,\n\x1b"


def test_json_lines_are_those_of_the_dump(path: Path, ids: list[str]) -> None:
    dumped = {
        json.loads(line)["id"]: line for line in run("dump", path).out.splitlines() if line.startswith('{"id"')
    }
    assert run("list", path, "--format", "jsonl").out.splitlines() == [dumped[id_] for id_ in ids]
    assert run("list", path, "--format", "jsonl", "-r").out.splitlines() == [
        dumped[i] for i in (*ids[:4], "Task.7", ids[4])
    ]
    array = json.loads(run("list", path, "--format", "json", "--sort", "jobname", "--limit", "2").out)
    assert array == [json.loads(dumped[ids[0]]), json.loads(dumped[ids[2]])]
    assert json.loads(run("list", path, "--format", "json", "--state", "NOSUCH").out) == []
    assert run("show", path, "--json", "Task.7", ids[1]).out.splitlines() == [dumped["Task.7"], dumped[ids[1]]]


def test_unreadable_tasks_are_told_in_every_form(path: Path, ids: list[str]) -> None:
    damage(path, ids[1])
    dumped = [line for line in run("dump", path).out.splitlines() if f'"id":"{ids[1]}"' in line]
    for options in ([], ["--format", "csv"], ["--format", "json"], ["--format", "jsonl"], ["--sort", "NAME"]):
        ran = run("list", path, *options)
        assert ids[1] in one_error(ran, 1)
        assert ids[1] in ran.out
    assert dumped[0] in run("list", path, "--format", "jsonl").out
    assert '"state":"RUNNING"' in dumped[0]
    assert listed(path) == ids  # no record is read for them
    ran = run("list", path, "--ids", "--name", "")
    assert ids[1] in one_error(ran, 1)
    assert ran.out.splitlines() == [ids[0], *ids[2:4]]
    assert ids[1] in one_error(run("show", path, "--json", ids[1]), 1)


def test_a_reference_to_what_is_gone_is_told(path: Path) -> None:
    child = Task(jobname="gone")
    with Session(path) as session:
        session.add(Sweep(tasks=[child]))
        session.store.remove(str(child.persistent_id))
    ran = run("list", path, "-r")
    assert "is referred to" in one_error(ran, 1)
    assert "(unreadable)" in ran.out


@pytest.mark.parametrize(
    "options",
    [
        ["--where", "nonsense"],
        ["--where", "a ~ ("],
        ["--name", "("],
        ["--since", "one day"],
        ["--columns", "a b"],
        ["--columns", ""],
        ["--sort", "a,b"],
        ["--sort", ""],
        ["--limit", "-1"],
        ["--format", "xml"],
        ["--ids", "--format", "csv"],
        ["--ids", "--columns", "ID"],
        ["--format", "json", "--columns", "ID"],
        ["-r", "--sort", "NAME"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_understood_is_wrong_usage(path: Path, ids: list[str], options: list[str]) -> None:
    ran = run("list", path, *options)
    assert one_error(ran, 2).endswith("See 'gc3session list --help'.")
    assert ran.out == ""


# -- the tree -----------------------------------------------------------------


@pytest.fixture
def nested(path: Path) -> dict[str, str]:
    """The IDs by name of a session of collections, of which one is in two."""
    shared = Task(jobname="shared", state="RUNNING")
    inner = Sweep(jobname="inner", state="DONE", tasks=[Task(jobname="leaf", state="NEW"), shared])
    outer = TaskCollection(
        jobname="outer", state="NEW", tasks=[inner, shared, Task(jobname="other", state="DONE")]
    )
    inner.add(outer)
    with Session(path) as session:
        session.add_many([outer, Task(jobname="last", state="RUNNING")])
        return {task.jobname: str(task.persistent_id) for task in session.iter_workflow()}


def test_filters_of_a_tree_hold_for_all_depths_and_show_what_leads_there(
    path: Path, nested: dict[str, str]
) -> None:
    def names(*options: str) -> list[str]:
        lines = run("list", path, "-r", *options).out.splitlines()[1:]
        return ["  " * ((len(line) - len(line.lstrip())) // 2) + line.split()[1] for line in lines]

    assert names("--state", "RUNNING") == ["outer", "  inner", "    shared", "  shared", "last"]
    assert names("--name", "leaf") == ["outer", "  inner", "    leaf"]
    assert names("--state", "RUNNING", "--limit", "1") == ["outer", "  inner", "    shared"]
    assert names("--name", "other") == ["outer", "  other"]
    assert names("--state", "NEW") == ["outer", "  inner", "    leaf", "    outer"]
    assert names("--state", "NOSUCH") == []


def test_flat_forms_of_a_tree_have_each_task_that_fits_once(path: Path, nested: dict[str, str]) -> None:
    assert listed(path, "-r", "--state", "RUNNING") == [nested["shared"], nested["last"]]
    assert listed(path, "-r") == [nested[name] for name in ("outer", "inner", "leaf", "shared", "other", "last")]
    assert listed(path, "-r", "--limit", "3") == [nested[name] for name in ("outer", "inner", "leaf")]
    assert (
        run("list", path, "-r", "--format", "csv", "--columns", "NAME", "--class", "Sweep").out == "NAME\ninner\n"
    )


# -- pipes and terminals ------------------------------------------------------


@pytest.mark.parametrize(
    "form", [["--format", "csv"], ["--format", "json"], ["--format", "jsonl"], ["--ids"], ["-r"]]
)
def test_every_form_into_head_ends_without_a_word(path: Path, form: list[str]) -> None:
    with Session(path) as session:
        session.add_many(Task(jobname=f"job {i}") for i in range(10_000))
    with start("list", path, *form) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("width", [200, 100, 60, 40, 20])
def test_any_columns_fit_any_terminal_and_nothing_is_hidden(path: Path, width: int) -> None:
    letters = "".join(chr(0x3B1 + i % 24) for i in range(48))  # that stand nowhere else
    with Session(path) as session:
        session.add_many(
            [Simulation(jobname="j" * 30, mesh=letters, steps=i, extra={"a": "x" * 20}) for i in range(3)]
        )
    columns = "ID,NAME,mesh,steps,extra.a,STATE,LAST EVENT"
    shown = without_colours(on_terminal("list", path, "--columns", columns, width=width))
    rows = shown.split("\n\n", 1)[1].splitlines()
    assert all(len(row) <= width for row in rows)
    assert "".join(c for row in rows for c in row if c in letters) == letters * 3
    assert sum(row.count("x") for row in rows) == 1 + 3 * 20  # with that of the title


def test_collections_that_only_lead_to_others_are_dim_on_a_terminal(path: Path, nested: dict[str, str]) -> None:
    shown = on_terminal("list", path, "-r", "--name", "leaf", width=120)
    (outer,) = [line for line in shown.splitlines() if nested["outer"] in line]
    (leaf,) = [line for line in shown.splitlines() if nested["leaf"] in line]
    assert "\x1b[2m" + nested["outer"] in outer
    assert "\x1b[2m" not in leaf.split(nested["leaf"])[0]


# -- whatever the session goes through ----------------------------------------

LOOKING = [
    ["list", "--where", "jobname != x", "--sort", "-jobname"],
    ["list", "-r", "--format", "jsonl"],
    ["list", "--state", "NEW,RUNNING", "--format", "csv"],
    ["select"],
]


def looking(command: list[str], path: Path) -> list[object]:
    name, *options = command
    return [name, path, *options]


@pytest.mark.parametrize("command", [*LOOKING, ["show", "--json", "Task.1", "Sweep.6"]], ids=" ".join)
def test_looking_changes_no_byte_and_needs_no_right_to_write(
    path: Path, ids: list[str], command: list[str]
) -> None:
    (path / "session_ids.txt").write_text("")  # which a writer would repair

    def state() -> dict[str, tuple[bytes, int]]:
        files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb")
        return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = state()
    assert run(*looking(command, path)).status == 0
    assert state() == before
    for place in (path / "jobs", path):
        place.chmod(0o500)
    try:
        assert run(*looking(command, path)).status == 0
    finally:
        for place in (path, path / "jobs"):
            place.chmod(0o700)
    assert state() == before


def write_without_pause(path: Path) -> None:
    with Session(path) as session:
        while True:
            ids = session.add_many([Task(state="WRITTEN") for _ in range(20)])
            session.remove_many(ids[:10])


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_looking_works_beside_a_writer(path: Path, ids: list[str], command: list[str]) -> None:
    with Session(path) as session:
        session.add_many(Task(jobname="steady", state="NEW") for _ in range(2000))
    writer = Child(write_without_pause, path)
    try:
        with Session(path, read_only=True) as session:
            while not session.stats().get("WRITTEN"):
                pass
        for _ in range(3):
            ran = run(*looking(command, path))
            assert (ran.status, ran.err) == (0, "")
            steady = [line for line in ran.out.splitlines() if "steady" in line or command == ["select"]]
            assert len(steady) == 2000 or (command == ["select"] and len(steady) > 2000)
    finally:
        writer.kill()
        with pytest.raises(Died):
            writer.result()


# -- IDs from standard input --------------------------------------------------


def test_show_reads_ids_from_standard_input(path: Path, ids: list[str]) -> None:
    selected = run("select", path, "--class", "Simulation").out
    ran = run("show", path, "--json", "-", ids[0], stdin=f"\n  {selected}\r\n\n")
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == [ids[1], ids[2], ids[0]]
    shown = run("show", path, "-", stdin=selected)
    assert [line for line in shown.out.splitlines() if line[:1] not in ("", " ")] == [ids[1], ids[2]]
    assert run("show", path, "-", stdin=(path / "session_ids.txt").read_bytes()).status == 0
    assert r"no task \xff\x1b in" in one_error(run("show", path, "-", stdin=b"\xff\x1b\n"), 1)
    assert run("show", path, "-", stdin=b"") == (0, "", "")
    assert "standard input is closed" in one_error(run("show", path, "-", preexec_fn=lambda: os.close(0)), 2)


def test_a_copy_elsewhere_is_listed_alike(path: Path, ids: list[str], tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy")
    assert run("list", tmp_path / "copy").out == run("list", path).out
