"""Ctrl-C that doesn't tear a transaction: a signal is noted, and obeyed between two steps."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from .console import Failure

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Within `with`, a signal that asks the command to end sets `caught`, and raises only in `waiting()`.

    Attributes:
        caught: the number of the first such signal, or None.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._waiting = False
        self._former: dict[int, Any] = {}
        self._pipe = (-1, -1)  # each signal writes a byte into it
        self._former_wakeup = -1

    @property
    def status(self) -> int:
        """The exit status of a command that the signal has ended."""
        return 128 + (self.caught or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._former_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and jobs in the background ignore it
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        for fd in self._pipe:
            os.close(fd)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.caught = self.caught or number
        if self._waiting:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt, also one that came before: nothing can be torn here."""
        self._waiting = True
        try:
            if self.caught is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    @contextmanager
    def ending(self, message: str) -> Iterator[None]:
        """Let a signal end the command with *message*: as `waiting`, but a Failure is raised."""
        try:
            with self.waiting():
                yield
        except KeyboardInterrupt:
            raise Failure(message, self.status) from None

    def ready(self, fd: int, seconds: float | None = None) -> bool:
        """Wait until there is something to read from *fd*, at most *seconds*; return whether there is.

        Raise KeyboardInterrupt for a signal, also for one that comes just before the waiting begins.
        """
        with self.waiting():  # the signal itself writes to the pipe, so select can't miss it
            return fd in select.select([fd, self._pipe[0]], [], [], seconds)[0]
