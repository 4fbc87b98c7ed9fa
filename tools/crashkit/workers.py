"""Work that may end the process, done in forked children: a crash is a finding, not the end."""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

LONGEST = 60
"""Seconds after which a job hangs, and its child is ended."""

_BATCH = 32
_SIZE = struct.Struct("=Q")


class Died(Exception):
    """A child ended before it had a result; the text says how."""


class Workers(Generic[Job, Result]):
    """Does jobs in forked children, some jobs in each and *jobs* children at a time.

    Args:
        work: gives the result of one job.
        died: gives the result of a job whose child died.
        jobs: how many children there may be at a time.
        batch: how many jobs each one does.
    """

    def __init__(
        self, work: Callable[[Job], Result], died: Callable[[Died], Result], jobs: int, batch: int = _BATCH
    ) -> None:
        self._work, self._died, self._jobs, self._batch = work, died, jobs, batch
        self._waiting: deque[Job] = deque()
        self._running: dict[int, tuple[int, deque[Job], bytearray]] = {}  # pipe -> pid, jobs to be done, bytes

    def add(self, job: Job) -> Iterator[tuple[Job, Result]]:
        """Take a job; give what has been done meanwhile."""
        self._waiting.append(job)
        if len(self._waiting) >= self._batch:
            if len(self._running) >= self._jobs:
                yield from self._some()
            if len(self._running) < self._jobs:
                self._begin()

    def rest(self) -> Iterator[tuple[Job, Result]]:
        """Give the results of all other jobs."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._jobs:
                self._begin()
            yield from self._some()

    def _begin(self) -> None:
        batch = deque(self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting))))
        result, end = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(result)
            self._do(batch, end)
        os.close(end)
        self._running[result] = pid, batch, bytearray()

    def _do(self, batch: deque[Job], end: int) -> NoReturn:
        status = 1
        try:
            with open(end, "wb") as pipe:
                for job in batch:
                    signal.alarm(LONGEST)
                    data = pickle.dumps(self._work(job))
                    pipe.write(_SIZE.pack(len(data)) + data)
                    pipe.flush()
            status = 0
        except BaseException:  # noqa: BLE001  the parent is told by the status
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _some(self) -> Iterator[tuple[Job, Result]]:
        """Wait for something, and give what is done."""
        for pipe in select.select(list(self._running), [], [])[0]:
            pid, batch, data = self._running[pipe]
            piece = os.read(pipe, 1 << 20)
            data += piece
            while len(data) >= _SIZE.size and len(data) >= _SIZE.size + _SIZE.unpack_from(data)[0]:
                size = _SIZE.unpack_from(data)[0]
                yield batch.popleft(), pickle.loads(data[_SIZE.size : _SIZE.size + size])
                del data[: _SIZE.size + size]
            if not piece:
                os.close(pipe)
                del self._running[pipe]
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if batch:
                    yield batch.popleft(), self._died(Died(_told(status)))
                    self._waiting.extendleft(reversed(batch))


def _told(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"the process hung for {LONGEST} s"
    if status < 0:
        return f"the process died by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


def one(function: Callable[..., Result], *args: Any) -> Result:
    """Return what *function* returns in a child of its own.  Raise Died if that dies."""

    def died(death: Died) -> Any:
        return death

    workers: Workers[tuple[Any, ...], Any] = Workers(lambda given: function(*given), died, 1)
    list(workers.add(args))
    ((_, result),) = workers.rest()
    if isinstance(result, Died):
        raise result
    return result  # type: ignore[no-any-return]
