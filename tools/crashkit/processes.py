"""Forked processes, which a suite starts, watches and kills.

What a process returns or prints as it fails is in files, which outlive it however it ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, NoReturn, TypeVar

LONGEST = 120
"""Seconds after which a process that should have ended is taken to wait for ever, and ended."""

Job = TypeVar("Job")


class Died(Exception):
    """A process ended in another way than by returning; the first line says how, the others what it printed."""


class Process:
    """A forked process that runs *function*.

    It is ended after *within* seconds.

    Attributes:
        pid: of the process.
    """

    def __init__(
        self, function: Callable[..., Any], *args: Any, name: str = "the process", within: float = LONGEST
    ) -> None:
        self.name = name
        self._within = int(within)
        self._results, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  as long as it
        self._status: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(self._results, self._errors, self._within, function, args)

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

    def result(self) -> Any:
        """Wait for its end; return what the function returned. Raise Died if it did not return."""
        if self.wait() != 0:
            raise self.death()
        (value,) = self.results()
        return value

    def results(self) -> list[Any]:
        """Return all that it has answered, one job after the other."""
        values = []
        self._results.seek(0)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # the end, or killed in mid-answer
            while True:
                values.append(pickle.load(self._results))
        return values

    def death(self) -> Died:
        """Return how it has ended, and what it printed."""
        status = self.wait()
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        if status == -signal.SIGALRM:
            how += f": it hung for {self._within} s, where its threads were at"
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").strip()
        return Died("\n".join(filter(None, (f"{self.name} ended {how}", printed))))


_results: BinaryIO
_errors: BinaryIO


def _run(
    results: BinaryIO, errors: BinaryIO, within: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> NoReturn:
    global _results, _errors
    _results, _errors = results, errors
    try:
        faulthandler.enable(errors)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, errors, all_threads=True, chain=True)
        signal.alarm(within)
        finish(function(*args))
    except BaseException:  # noqa: BLE001  whatever it is, the parent learns of it
        fail()
    finally:
        os._exit(1)


def _answer(value: Any) -> None:
    pickle.dump(value, _results)
    _results.flush()


def finish(value: Any) -> NoReturn:
    """End this process, a forked one, as if its function had returned *value*."""
    _answer(value)
    os._exit(0)


def fail() -> NoReturn:
    """End this process as if its function had raised the exception that is being handled."""
    os.write(_errors.fileno(), traceback.format_exc().encode(errors="replace"))
    os._exit(1)


def in_process(function: Callable[..., Any], *args: Any, within: float = LONGEST) -> Any:
    """Run *function* in a process of its own; return what it returns. Raise Died if it doesn't."""
    return Process(function, *args, within=within).result()


def in_parallel(
    function: Callable[[Job], Any], jobs: Iterable[Job], at_a_time: int, batch: int = 1, within: int = LONGEST
) -> Iterator[tuple[Job, Any]]:
    """Give each job and what *function* returns of it, or the Died of the process that it ended.

    Each process does a *batch* of jobs, one after the other, unless one of them ends it.
    """
    source = iter(jobs)
    again: deque[list[Job]] = deque()
    running: list[tuple[Process, list[Job]]] = []
    with none_left(process for process, _ in running):
        while True:
            while len(running) < at_a_time and (some := again.popleft() if again else list(islice(source, batch))):
                running.append((Process(_do, function, some, within, within=within), some))
            if not running:
                return
            ended = [each for each in running if each[0].ended()]
            if not ended:
                time.sleep(0.002)
            for process, some in ended:
                running.remove((process, some))
                values = process.results()
                yield from zip(some, values, strict=False)
                if len(values) < len(some):
                    yield some[len(values)], process.death()
                    again.extend(filter(None, [some[len(values) + 1 :]]))


def _do(function: Callable[[Job], Any], jobs: list[Job], within: int) -> Any:
    for job in jobs[:-1]:
        _answer(function(job))
        signal.alarm(within)
    return function(jobs[-1])


@contextlib.contextmanager
def none_left(processes: Iterable[Process]) -> Iterator[None]:
    """`with` this, whatever happens, none of *processes* lives on."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()


class Lines:
    """Writes reports to *fd*, a pipe or a file: each report is a line of JSON, whole or not there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, *words: Any) -> None:
        os.write(self._fd, json.dumps(words).encode() + b"\n")

    @staticmethod
    def read(data: bytes) -> list[list[Any]]:
        """Return the reports in *data* that are whole."""
        return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
