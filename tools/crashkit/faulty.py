"""Runs scripts in which an I/O call fails: `faulty.py SCRATCH [BROKEN]`, started with the recorder, which watches SCRATCH.

It reads jobs, JSON one a line, and answers each with a line: what is wrong with what came of it. Each script runs in
a forked child, and what it leaves is judged in another one, where nothing fails any more.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from breakages import break_by
from gc3session import DamagedSession, Error, NotASession, Session, repair_session
from generator import script
from judge import Found, contents, judge
from performer import SMALL_MAP, Performer, on_a_small_scale
from processes import Died, Lines, Process, in_process
from steps import Contents, Step
from verdicts import Account

_LIBRARY = ctypes.CDLL(None)
_LIBRARY.crashkit_kinds.restype = ctypes.c_char_p

HUNG = 60
"""Seconds after which a script hangs."""

PARTLY = ("batch", "add_many")
"""Steps that may be done in part where one of their calls fails: each task in them is whole."""


def set_fault(at: int, what: str, always: bool) -> None:
    """Make the *at*-th call from now on go wrong, as recorder.c describes; none if that is 0."""
    _LIBRARY.crashkit_fault(ctypes.c_long(at), what.encode(), int(always))


class Script:
    """A script that goes on after a call has failed, as a program may."""

    def __init__(self, path: Path, seed: int, count: int, report: Lines) -> None:
        self._path, self._report = path, report
        self._steps = script(seed, 0, 1, count)
        self._performer = Performer(path, "0", report, map_size=SMALL_MAP)

    def run(self, at: int, what: str, always: bool) -> None:
        """Do all steps, then damage the session and repair it, then destroy it."""
        set_fault(at, what, always)
        before = Contents()
        for number, (step, after) in enumerate(self._steps):
            try:
                self._performer.perform(number, step)
            except Error as error:
                self._raised(error)
                if always or not self._went_on(number, step, before, after):
                    self._close()
                    return
            before = after
        self._close()
        self._mend(always)
        self._destroy(always)

    def _raised(self, error: Error) -> None:
        self._report("raised", "0", type(error).__name__)

    def _went_on(self, number: int, step: Step, before: Contents, after: Contents) -> bool:
        """Go on after a call had failed once; return whether that is possible."""
        performer = self._performer
        if not performer.was_opened:
            performer.open()
        elif performer.is_open:
            performer.own.flush()
        with Session(self._path, create=False) as other:
            found = contents(other).get("0", Contents())
            performer.ids = {name: id_ for name, id_ in performer.ids.items() if name in found.records} | {
                task.jobname: str(task.persistent_id) for task in other
            }
        if found == after:
            self._report("done", "0", number)
            return True
        if found == before:
            if not performer.is_open:
                performer.open(create=False)
            performer.perform(number, step)
            return True
        if step.kind not in PARTLY or not _is_part(found, before, after):
            raise ValueError(f"step {number} ({step.kind}) failed; before it {found.difference(before)}")
        self._report("partly", "0", number)
        return False

    def _close(self) -> None:
        try:
            self._performer.close()
        except Error as error:
            self._raised(error)

    def _mend(self, always: bool) -> None:
        """Take `store.url` away, and have it made again."""
        url = self._path / Session.STORE_URL_FILENAME
        self._report("damaged", "0")
        try:
            url.unlink(missing_ok=True)
        except OSError:
            return  # the call that had to fail was this program's own
        for _ in range(2):
            try:
                repair_session(self._path)
            except Error as error:
                self._raised(error)
                if always:
                    return
            else:
                self._report("repaired", "0")
                return

    def _destroy(self, always: bool) -> None:
        for _ in range(2):
            try:
                session = Session(self._path, create=False)
                self._report("try", "destroy")
                session.destroy()
                self._report("done", "destroy")
            except Error as error:
                self._raised(error)
                if always or not self._path.exists():
                    return
            else:
                return


def _is_part(found: Contents, before: Contents, after: Contents) -> bool:
    """Return whether each task is as before the step or as after it."""

    def task(name: str, contents: Contents) -> tuple[Any, bool]:
        return contents.records.get(name), name in contents.members

    names = found.records.keys() | before.records.keys() | after.records.keys()
    return all(task(name, found) in (task(name, before), task(name, after)) for name in names)


def run_script(path: Path, job: dict[str, Any]) -> tuple[list[list[Any]], Process]:
    """Run a script in a process; return what it reported, and the process, which has ended."""
    with tempfile.TemporaryFile() as reports:
        process = Process(_run, path, job, Lines(reports.fileno()), name="it", within=HUNG)
        process.wait()
        reports.seek(0)
        return Lines.read(reports.read()), process


def _run(path: Path, job: dict[str, Any], report: Lines) -> None:
    try:
        warnings.simplefilter("ignore")  # that the mirror could not be written
        on_a_small_scale()
        script = Script(path, job["seed"], job["steps"], report)
        before = len(_LIBRARY.crashkit_kinds())
        script.run(*job["fault"])
        set_fault(0, "", False)
        report("kinds", "0", _LIBRARY.crashkit_kinds()[before:].decode())
    except BaseException as error:  # noqa: BLE001  whatever else comes is a finding
        set_fault(0, "", False)
        report("broke", "0", _in_short(error), traceback.format_exc())


def _in_short(error: BaseException) -> str:
    """Return what was raised, and where; the whole trace is kept with the case."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, {frame.name})"


def judged(path: Path, damaged: bool) -> Found:
    """Judge what a script has left; with *damaged* it is repaired first, if it doesn't open."""
    if damaged:
        try:
            Session(path, create=False).close()
        except DamagedSession:
            repair_session(path)
        except NotASession:
            pass  # it was destroyed
    return judge(path)


def wrong(path: Path, job: dict[str, Any], keep: Path | None) -> dict[str, Any]:
    """Run a job; return what is wrong with what came of it, what it raised, and the kinds of its calls."""
    reports, process = run_script(path, job)
    if keep is not None:
        (keep / "reports.json").write_text(json.dumps(reports, indent=1))
        if path.exists():
            shutil.copytree(path, keep / "session", dirs_exist_ok=True)
    account = Account(job["seed"], 1, job["steps"])
    words: dict[str, list[str]] = {"raised": [], "broke": [], "kinds": []}
    for what, whose, *rest in reports:
        words.setdefault(what, []).append(rest[0] if rest else "")
        if what in ("try", "done", "ids"):
            account.take_down((what, whose, *rest))
    answer = {"wrong": "", "raised": words["raised"], "kinds": "".join(words["kinds"])}
    if words["broke"]:
        return {**answer, "wrong": f"it raised {words['broke'][0]}"}
    if process.wait() not in (0, -signal.SIGKILL):
        return {**answer, "wrong": str(process.death())}
    try:
        found = in_process(judged, path, "damaged" in words, within=HUNG)
    except Died as died:
        found = Found(problem=str(died))
    if "partly" in words and not found.problem:
        return answer  # what was in it was looked at when the call had failed, and is on disk
    return {**answer, "wrong": account.wrong(found, account.moment())}


def main() -> None:
    """Do the jobs."""
    scratch = Path(sys.argv[1])
    for broken in sys.argv[2:]:
        break_by(broken)
    for line in sys.stdin:
        job = json.loads(line)
        path = scratch / "session"
        answer = wrong(path, job, Path(job["keep"]) if job.get("keep") else None)
        for entry in scratch.iterdir():
            shutil.rmtree(entry)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
