"""Functions and programs run in processes of their own, which may be killed or die."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import gc3session

HERE = Path(__file__).parent
_PATH = [
    str(Path(gc3session.__file__).parent.parent),
    str(HERE),
    *(str(path) for path in HERE.glob("**/") if path != HERE),
]


def let_others_in(path: Path) -> None:
    """Let other users enter *path*, and those directories above it that pytest has made for this user alone."""
    for directory in (path, *path.parents):
        if not directory.stat().st_mode & 0o077:
            directory.chmod(0o755)
        elif "pytest-of-" not in str(directory):  # that one is closed again when pytest is started elsewhere
            return


class Died(Exception):
    """A child ended by a signal, or without a word; `status` is as `os.waitstatus_to_exitcode` gives it."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(f"the child ended with status {status}: {message}")
        self.status = status


class Child:
    """A forked process that runs *function* and sends its result through a pipe.

    Attributes:
        pid: of the child.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._result, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._result)
            _run(end, function, args)
        os.close(end)

    def kill(self) -> None:
        """End the child by SIGKILL. Its result is then Died, unless it had ended before."""
        os.kill(self.pid, signal.SIGKILL)

    def result(self) -> Any:
        """Wait for the end and return what the function returned, or raise what it raised."""
        with open(self._result, "rb") as pipe:
            data = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if not data:
            raise Died(status)
        value, error, trace = pickle.loads(data)
        if error is not None:
            error.add_note(f"in a child process:\n{trace}")
            raise error
        return value


def _run(end: int, function: Callable[..., Any], args: tuple[Any, ...]) -> NoReturn:
    status = 1
    try:
        try:
            result = pickle.dumps((function(*args), None, ""))
        except BaseException as error:
            trace = traceback.format_exc()
            try:
                result = pickle.dumps((None, error, trace))
            except Exception:
                result = pickle.dumps((None, AssertionError(f"{type(error).__name__}: {error}"), trace))
        with open(end, "wb") as pipe:
            pipe.write(result)
        status = 0
    finally:
        os._exit(status)


def change_until(stop: Path, path: Path, pause: float = 0.0) -> list[str]:
    """Add tasks to a session, save and remove some, until *stop* is there; return the IDs of those that are left.

    Who never pauses (seconds) keeps a check of the session waiting for the mirror's lock.
    """
    mine: list[str] = []
    with gc3session.Session(path) as session:
        while not stop.exists():
            ids = session.add_many(gc3session.Task(jobname="x" * 200) for _ in range(6))
            for id_ in list(ids)[::2]:
                session.load(id_).state = "RUNNING"
            session.save_all()
            mine += ids
            session.remove_many([mine.pop(0) for _ in range(5)])
            time.sleep(pause)
    return mine


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Run *function* in a forked process; return what it returns, raise what it raises, or Died."""
    return Child(function, *args).result()


def start_python(*argv: object, **options: Any) -> subprocess.Popen[str]:
    """Start a fresh interpreter with these arguments; it finds the library and the suites' modules."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*_PATH, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        env=environment | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_script(*argv: object, **options: Any) -> str:
    """Run a fresh interpreter; return what it printed, without white space at the end.

    Raise Died, with its standard error, if it failed.
    """
    process = start_python(*argv, **options)
    out, err = process.communicate()
    if process.returncode != 0:
        raise Died(process.returncode, err)
    return out.rstrip()


def run_python(source: str, *args: object, **options: Any) -> str:
    """Run *source* in a fresh interpreter with sys.argv[1:] = *args*; see `run_script`."""
    return run_script("-c", textwrap.dedent(source), *args, **options)
