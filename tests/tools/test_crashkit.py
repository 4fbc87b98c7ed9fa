"""The crash kit in tools/crashkit: its runner, and each suite in seconds. `python tools/crashkit` does it in earnest."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KIT = Path(__file__).parents[2] / "tools" / "crashkit"

pytestmark = pytest.mark.skipif(not KIT.exists(), reason="there is no tools/crashkit beside the tests")

SUITES = {
    "states": 150,
    "power": 4,
    "faults": 40,
    "kills": 30,
    "model": 15,
    "together": 150,
    "space": 10,
    "hostile": 150,
    "decoder": 2000,
}
"""How many cases of each suite make a short run."""


@pytest.mark.parametrize("name", SUITES)
def test_suite_finds_nothing_but_its_control(tmp_path: Path, name: str) -> None:
    (tmp_path / "temporary").mkdir()
    options = ["--count", str(SUITES[name]), "--at", str(tmp_path), "--log", str(tmp_path / "log")]
    done = subprocess.run(
        [sys.executable, KIT, name, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    if "NOT RUN" in done.stdout:
        pytest.skip(next(line for line in done.stdout.splitlines() if line.startswith("!!")))
    assert "as it must" in done.stdout
    assert not (tmp_path / "log").exists(), "a log of failures, though there are none"
    assert os.listdir(tmp_path) == ["temporary"]
    assert os.listdir(tmp_path / "temporary") == []


@pytest.mark.parametrize("name", ["kills", "space", "model"])
def test_failure_is_kept_and_its_command_fails_again(runner: ModuleType, tmp_path: Path, name: str) -> None:
    suite, plan = runner.suite_named(name), sys.modules["suite"].Plan
    (tmp_path / "work").mkdir()
    outcome = suite.control(plan(7, 60, tmp_path / "work", tmp_path / "log"))
    command = shlex.split(outcome.failures[0].splitlines()[-1])
    assert Path(command[-1]).parent == tmp_path / "log"
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    assert "the suite itself broke" not in done.stdout


@pytest.mark.parametrize("missing", ["mkfs.xfs", "mkfs.ext4", "mkfs.xfs mkfs.ext4", "mount"])
def test_power_cuts_name_what_this_machine_lacks(tmp_path: Path, missing: str) -> None:
    """Where only one of the filesystems can be made, that one is tried."""
    (tmp_path / "commands").mkdir()
    there = {"mkfs.ext4", "mkfs.xfs", "mount", "umount", "cp"} - set(missing.split())
    for command in there:
        found = shutil.which(command, path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
        if found:
            (tmp_path / "commands" / command).symlink_to(found)
        else:
            missing += f" {command}"
    done = subprocess.run(
        [sys.executable, KIT, "power", "--count", "2", "--at", tmp_path, "--log", tmp_path / "log"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path / "commands")},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    (reason,) = (line for line in done.stdout.splitlines() if line.startswith("!! power: NOT RUN: "))
    if os.geteuid() != 0:
        assert "only root can mount filesystems" in reason
    elif not Path("/dev/loop-control").exists():
        assert "there are no loop devices" in reason
    else:
        assert [command for command in missing.split() if f"{command} is missing" not in reason] == []
        if missing == "mkfs.xfs" and "ext4: " not in reason:
            assert "1 power cuts on the other filesystem passed" in reason
            assert "control: " in done.stdout


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The runner of the kit, as a module."""
    monkeypatch.syspath_prepend(str(KIT))
    spec = importlib.util.spec_from_file_location("crashkit_runner", KIT / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_suite(runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **does: Any) -> Any:
    """Run a suite that *does* this in `run` and in `control`; an exception is raised, a number is that of failures."""
    suite = sys.modules["suite"]

    def outcome(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return suite.Outcome(10, [f"failure {i}" for i in range(what)])

    class Pretended(suite.Suite):
        name, summary, unit, short, long = "pretended", "does what the test asks for", "cases", 10, 100

        def run(self, plan: Any) -> Any:
            return outcome(does["run"])

        def control(self, plan: Any) -> Any:
            return outcome(does["control"])

        def replay(self, plan: Any, case: Path) -> Any:
            return outcome(does["replay"])

    monkeypatch.setattr(runner, "suite_named", lambda name: Pretended())
    options = argparse.Namespace(long=False, count=None, replay=does.get("case"))
    return runner.run("pretended", suite.Plan(1, 0, tmp_path, tmp_path / "log"), options)


@pytest.mark.parametrize(
    ("run", "control", "verdict", "status"),
    [
        (0, 1, "passed", 0),
        (1, 1, "FAILED", 1),
        (0, 0, "FAILED", 1),
        (ValueError("broken"), 1, "FAILED", 1),
    ],
    ids=["finds nothing", "finds something", "control passes", "breaks"],
)
def test_suite_passes_only_if_it_finds_nothing_and_its_control_something(
    runner: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
    control: int,
    verdict: str,
    status: int,
) -> None:
    result = run_suite(runner, tmp_path, monkeypatch, run=run, control=control)
    assert result.verdict == verdict
    assert runner.summary([result]) == status


def test_suite_that_cannot_run_says_so_loudly_and_has_not_passed(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = sys.modules["suite"].CannotRun("no loop devices")
    result = run_suite(runner, tmp_path, monkeypatch, run=reason, control=reason)
    assert result.verdict == "NOT RUN"
    assert runner.summary([result]) == 0
    output = capsys.readouterr().out
    assert "!! pretended: NOT RUN: no loop devices" in output
    assert "!! NOT RUN, and so not proven here: pretended" in output


def test_replay_tries_the_one_case(runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ValueError("only the case is tried")
    result = run_suite(runner, tmp_path, monkeypatch, run=broken, control=broken, replay=1, case=tmp_path)
    assert result.verdict == "FAILED"


def test_script_of_steps_follows_from_its_seed_and_has_each_kind(runner: ModuleType) -> None:
    generator = importlib.import_module("generator")
    drawn = generator.script(7, 0, 1, 26)
    assert drawn == generator.script(7, 0, 1, 26)
    assert drawn != generator.script(8, 0, 1, 26)
    assert {step.kind for step, _ in drawn} == {"open", *generator.SCRIPT.shares, *generator.FOR_ONE}
    for (_, before), (step, after) in itertools.pairwise(drawn):
        assert (
            before.after(step.changes) == after == type(after).from_json(json.loads(json.dumps(after.to_json())))
        )


def test_job_that_ends_its_process_is_told_of_and_the_others_are_done(runner: ModuleType) -> None:
    processes = importlib.import_module("processes")

    def work(job: int) -> int:
        if job == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 5:
            raise ValueError("five")
        if job == 7:
            threading.Event().wait()
        return job * job

    done = dict(processes.in_parallel(work, range(10), 2, batch=4, within=2))
    assert {job: result for job, result in done.items() if isinstance(result, int)} == {
        n: n * n for n in (0, 1, 2, 4, 6, 8, 9)
    }
    assert str(done[3]) == "the process ended by SIGKILL"
    assert str(done[5]).startswith("the process ended with status 1\nTraceback")
    assert str(done[7]).startswith("the process ended by SIGALRM: it hung for 2 s")
    assert "in work" in str(done[7])


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--replay", "."], ["states", "--replay", "/missing"], ["--count", "0"]]
)
def test_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, KIT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr
