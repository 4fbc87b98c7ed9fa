"""Runs scripts in which an I/O call fails: `faulty.py SCRATCH [BROKEN]`, started with the recorder, which watches SCRATCH.

It reads jobs, JSON one a line, and answers each with a line: what is wrong with what came of it.  Each script runs in
a forked child, and what it leaves is judged in another one, where nothing fails any more.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from breakages import BREAKAGES
from gc3session import DamagedSession, Error, NotASession, Session, repair_session
from judge import Found, contents, judge
from performer import Performer, Piped
from script import Holds, Step, steps
from verdicts import Account
from workers import LONGEST, Died, one
from workload import on_a_small_scale

_LIBRARY = ctypes.CDLL(None)
_LIBRARY.crashkit_kinds.restype = ctypes.c_char_p

PARTLY = ("batch", "add_many")
"""Steps that may be done in part where one of their calls fails: each task in them is whole."""


def set_fault(at: int, what: str, always: bool) -> None:
    """Have the *at*-th call from now on go wrong, as recorder.c tells; none if that is 0."""
    _LIBRARY.crashkit_fault(ctypes.c_long(at), what.encode(), int(always))


class Script:
    """A script that goes on after a call has failed, as a program may."""

    def __init__(self, path: Path, seed: int, count: int, tell: Piped) -> None:
        self._path, self._tell = path, tell
        self._steps = list(steps(seed, 0, 1, count))
        self._performer = Performer(str(path), 0, tell)

    def run(self, at: int, what: str, always: bool) -> None:
        """Do all steps, then damage the session and repair it, then destroy it."""
        set_fault(at, what, always)
        for number, step in enumerate(self._steps):
            try:
                self._performer.perform(number, step)
            except Error as error:
                self._told_of(error)
                if always or not self._went_on(number, step):
                    self._close()
                    return
        self._close()
        self._mend(always)
        self._destroy(always)

    def _told_of(self, error: Error) -> None:
        self._tell("raised", 0, type(error).__name__)

    def _went_on(self, number: int, step: Step) -> bool:
        """Go on after a call had failed once; return whether that is possible."""
        performer = self._performer
        if performer.session is None:
            performer.open(create=True)
        elif not performer.session._closed:
            performer.session.flush()
        with Session(self._path, create=False) as other:
            held = contents(other).get(0, Holds())
            performer.ids = {task.jobname: str(task.persistent_id) for task in other} | {
                name: id_ for name, id_ in performer.ids.items() if name in held.stored
            }
        if held == step.after:
            self._tell("done", 0, number)
            return True
        if held == step.before:
            if performer.session is not None and performer.session._closed:
                performer.open()
            performer.perform(number, step)
            return True
        if step.kind not in PARTLY or not _is_part(held, step):
            raise ValueError(f"step {number} ({step.kind}) failed, and left {held}; before {step.before}")
        self._tell("partly", 0, number)
        return False

    def _close(self) -> None:
        if self._performer.session is not None:
            try:
                self._performer.session.close()
            except Error as error:
                self._told_of(error)

    def _mend(self, always: bool) -> None:
        """Take `store.url` away, and have it made again."""
        url = self._path / Session.STORE_URL_FILENAME
        self._tell("damaged", 0)
        try:
            url.unlink(missing_ok=True)
        except OSError:
            return  # the call that had to fail was this program's own
        for _ in range(2):
            try:
                repair_session(self._path)
            except Error as error:
                self._told_of(error)
                if always:
                    return
            else:
                self._tell("mended", 0)
                return

    def _destroy(self, always: bool) -> None:
        for _ in range(2):
            try:
                session = Session(self._path, create=False)
                self._tell("try", "destroy")
                session.destroy()
                self._tell("done", "destroy")
            except Error as error:
                self._told_of(error)
                if always or not self._path.exists():
                    return
            else:
                return


def _is_part(held: Holds, step: Step) -> bool:
    """Return whether each task is as before the step or as after it."""
    before, after = step.before.members, step.after.members
    strange = set(held.members) - set(before) - set(after)
    missing = set(before) & set(after) - set(held.members)
    return (
        not strange
        and not missing
        and held.stored == step.before.stored
        and all(value in (before.get(name), after.get(name)) for name, value in held.members.items())
    )


def run_script(path: Path, job: dict[str, Any]) -> tuple[list[list[Any]], int, str]:
    """Run a script in a child; return what it told, its status, and the kinds of its calls."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_and_exit(path, job, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = [json.loads(line) for line in pipe.read().splitlines(keepends=True) if line.endswith(b"\n")]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kinds = next((words[1] for words in told if words[0] == "kinds"), "")
    return [words for words in told if words[0] != "kinds"], status, kinds


def _run_and_exit(path: Path, job: dict[str, Any], writer: int) -> NoReturn:
    signal.alarm(LONGEST)
    tell = Piped(writer)
    try:
        warnings.simplefilter("ignore")  # that the mirror could not be written
        on_a_small_scale()
        script = Script(path, job["seed"], job["steps"], tell)
        before = len(_LIBRARY.crashkit_kinds())
        script.run(*job["fault"])
        set_fault(0, "", False)
        tell("kinds", _LIBRARY.crashkit_kinds()[before:].decode())
    except BaseException as error:  # noqa: BLE001  whatever else comes is a finding
        set_fault(0, "", False)
        tell("broke", 0, _in_short(error), traceback.format_exc())
    finally:
        os._exit(0)


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
    told, status, kinds = run_script(path, job)
    if keep is not None:
        (keep / "told.json").write_text(json.dumps(told, indent=1))
        if path.exists():
            shutil.copytree(path, keep / "session", dirs_exist_ok=True)
    answer = {"wrong": "", "raised": [words[2] for words in told if words[0] == "raised"], "kinds": kinds}
    account = Account(job["seed"], 1, job["steps"])
    broke = [words[2] for words in told if words[0] == "broke"]
    if broke or status not in (0, -signal.SIGKILL):
        return {**answer, "wrong": f"it raised {broke[0]}" if broke else _ended(status)}
    partly = any(words[0] == "partly" for words in told)
    for words in told:
        if words[0] in ("try", "done", "ids"):
            account.take_down(words)
    try:
        found = one(judged, path, any(words[0] == "damaged" for words in told))
    except Died as died:
        found = Found(problem=str(died))
    if partly and not found.problem:
        return answer  # what was in it was looked at when the call had failed, and is on disk
    return {**answer, "wrong": account.wrong(found, account.moment())}


def _ended(status: int) -> str:
    return f"it died by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def main() -> None:
    """Do the jobs."""
    scratch = Path(sys.argv[1])
    for broken in sys.argv[2:]:
        BREAKAGES[broken]()
    for line in sys.stdin:
        job = json.loads(line)
        path = scratch / "session"
        answer = wrong(path, job, Path(job["keep"]) if job.get("keep") else None)
        for entry in scratch.iterdir():
            shutil.rmtree(entry)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
