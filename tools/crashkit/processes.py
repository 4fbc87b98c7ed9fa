"""Processes that a suite forks, watches and kills: they report through files, which survive them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

HUNG = 120.0
"""Seconds after which a process that should have ended is taken to wait for ever."""


class Died(Exception):
    """A process ended by itself in another way than by returning; the message says how, with what it printed."""


class Process:
    """A forked process that runs *function*.

    What it returns, or how it failed, is in a file of *directory* (its *name*, and `.result` or `.error`);
    nothing of that depends on its being alive when it is read.

    Attributes:
        pid: of the process.
    """

    def __init__(self, directory: Path, name: str, function: Callable[..., Any], *args: Any) -> None:
        self.name = name
        self._result = directory / f"{name}.result"
        self._error = directory / f"{name}.error"
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(self._result, self._error, function, args)

    def kill(self) -> bool:
        """End it by SIGKILL, and wait for that; return whether it was alive until then."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        return self._status == -signal.SIGKILL

    def wait(self) -> int:
        """Wait for its end; return the status as `os.waitstatus_to_exitcode` does."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def result(self, within: float = HUNG) -> Any:
        """Return what the function returned.

        Raise Died if it raised, was killed by a signal, or has not ended *within* so many seconds: then
        it is killed, and where each of its threads was is in the message.
        """
        deadline = time.monotonic() + within
        while not self.ended():
            if time.monotonic() > deadline:
                self._show_stacks()
                self.kill()
                raise Died(f"{self.name} has not ended within {within:.0f} s; its threads were at\n{self.error()}")
            time.sleep(0.001)
        if self._status != 0:
            raise Died(f"{self.name} ended with status {self._status}: {self.error()}")
        return pickle.loads(self._result.read_bytes())

    def error(self) -> str:
        """Return what it left behind as it failed, or ''."""
        return self._error.read_text(errors="replace").strip() if self._error.exists() else ""

    def _show_stacks(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1)  # only what the message tells depends on it


def _run(result: Path, error: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> NoReturn:
    status = 1
    try:
        with open(error, "w") as file:
            faulthandler.enable(file)
            faulthandler.register(signal.SIGUSR1, file, all_threads=True)
            try:
                result.write_bytes(pickle.dumps(function(*args)))
                status = 0
            except BaseException:  # noqa: BLE001  whatever it is, the parent is to learn of it
                traceback.print_exc(file=file)
    finally:
        os._exit(status)


def in_process(directory: Path, name: str, function: Callable[..., Any], *args: Any, within: float = HUNG) -> Any:
    """Run *function* in a process of its own; return what it returns.  Raise Died if it doesn't."""
    return Process(directory, name, function, *args).result(within)


@contextlib.contextmanager
def none_left(processes: list[Process]) -> Iterator[None]:
    """`with` this, whatever happens, none of *processes* lives on."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()


class Journal:
    """Lines that a process has written to *path*; each is whole or not there, whenever it was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def tell(self, line: str) -> None:
        """Add a line, with one call to the system."""
        os.write(self._fd, line.encode() + b"\n")

    @staticmethod
    def read(path: Path) -> list[str]:
        """Return the whole lines in *path*, of which there are none if it isn't there."""
        data = path.read_bytes() if path.exists() else b""
        return [line[:-1].decode() for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
