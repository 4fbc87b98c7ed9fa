"""tools/bench.py: what it prints with each of its options, whatever the figures are."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from postgresql_server import Server

TOOLS = Path(__file__).parents[2] / "tools"

pytestmark = pytest.mark.skipif(
    not (TOOLS / "bench.py").exists(), reason="there is no tools/bench.py beside the tests"
)

Table = dict[str, dict[str, list[str]]]
"""The rows by their first cell: the cells by the titles of their columns."""


def bench(*argv: str) -> list[Table]:
    """Run the bench, which leaves nothing behind; return the tables that it prints."""
    ran = subprocess.run([sys.executable, TOOLS / "bench.py", *argv], capture_output=True, text=True, check=False)
    if "this directory is in memory" in ran.stderr:
        pytest.skip("the tests' directory is in memory")
    assert ran.returncode == 0, ran.stderr
    assert "- libraries: lmdb " in ran.stdout
    tables: list[Table] = []
    for text in re.findall(r"(?:^\|.*\n)+", ran.stdout, re.MULTILINE):
        titles, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
        tables.append({})
        for first, *cells in rows:
            of_row = tables[-1].setdefault(first, {})
            for title, cell in zip(titles[1:], cells, strict=True):
                of_row.setdefault(title, []).append(cell)
    return tables


def number(cell: str) -> float:
    return float(cell.removesuffix(" x").replace(",", ""))


def test_each_row_has_time_and_cpu_of_all_and_their_ratios_to_the_raw_limit() -> None:
    ratios, amounts = bench("--tasks", "2000")
    assert list(ratios) == list(amounts)
    assert len(ratios) == 17
    for title, row in ratios.items():
        of_all = amounts[title]
        assert (len(row["CPU"]), len(of_all["CPU"])) == (2, 3)
        if of_all["unit"] != ["us a task"] or "8 threads" in title:
            continue
        for name, place in (("gc3session", 0), ("sqlite3", 2)):
            if of_all[name] != [""]:
                assert number(row[name][0]) > 0
                assert number(of_all[name][0]) > 0
                assert number(of_all["CPU"][place]) > 0
        assert number(of_all["raw limit"][0]) > 0


@pytest.mark.skipif(not shutil.which("valgrind"), reason="there is no valgrind")
def test_instructions_are_counted_a_task() -> None:
    ratios, amounts = bench("--tasks", "2000", "--only", "build a task", "--instructions")
    ((ratio, _),) = (row["instructions"] for row in ratios.values())
    ((of_ours, of_raw, _),) = (row["instructions"] for row in amounts.values())
    assert 1_000 < number(of_raw) < 100_000  # without Python's start, whatever the Python
    assert number(of_ours) / number(of_raw) == pytest.approx(number(ratio), rel=0.01)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_session_at_scale_is_recorded_read_edited_checked_and_emptied(processes: int) -> None:
    steps, growth, _ = bench("--scale", "2000", "--processes", str(processes))
    words = ["build and", "iterate", "read without", "change", "`check`, ", "`remove_many`", "`check` of"]
    for title, word in zip(steps, words, strict=True):
        assert title.startswith(word)
        for times in ("us a task", "us of CPU"):
            assert len(steps[title][times][0].split()) == (1 if "check" in title else 10)
            assert min(map(number, steps[title][times][0].split())) >= 0
        assert number(steps[title]["bytes on disk a task"][0]) > 0
    assert [title.partition(",")[0] for title in growth] == [
        "open + `len`",
        "`stats()`",
        "durable `add`",
        "durable `remove`",
    ]


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_workers_add_together_what_they_say(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_targets
    import bench_workers

    for target in (bench_targets.Gc3session, bench_targets.Sqlite):
        store = target(str(tmp_path / target.name), "")
        with multiprocessing.get_context("spawn").Manager() as manager:
            tasks, wall, cpu = bench_workers.durable_adds(store, 2, 0.2, manager if kind == "processes" else None)
        assert store.count() == tasks > 0
        assert wall > 0
        assert cpu > 0
        store.close()


def test_workers_are_shown_beside_sqlite(long_form: bool) -> None:
    if not long_form:
        pytest.skip("it starts 60 processes")
    (rates,) = bench("--workers", "--quick")
    assert [title.split()[0] for title in rates] == ["1", "2", "4", "8"] * 2
    for row in rates.values():
        assert number(row["gc3session"][0]) > 0
        assert number(row["sqlite3"][0]) > 0


def test_on_postgresql(postgresql: Server) -> None:
    ratios, amounts = bench("--tasks", "2000", "--store", postgresql.url())
    assert list(ratios) == list(amounts)
    assert len(ratios) == 5
    assert list(amounts["record, `add_many`"]) == [
        "unit",
        "gc3session on PostgreSQL",
        "CPU",
        "COPY",
        "executemany",
        "gc3session",
    ]


@pytest.mark.parametrize(
    "wrong", ["--tasks 100", "--scale 100", "--scale 2000 --processes 0", "--workers --instructions"]
)
def test_what_cannot_be_measured_is_refused(wrong: str) -> None:
    ran = subprocess.run(
        [sys.executable, TOOLS / "bench.py", *wrong.split()], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "error: " in ran.stderr
