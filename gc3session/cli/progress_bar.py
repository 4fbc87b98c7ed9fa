"""A line on stderr that shows how far long work has come, if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from ..tables.interface import OnProgress
from .console import CLEAR_LINE, quantity, terminal_width
from .interrupts import Interrupts

_UPDATE_SECONDS: Final = 0.1  # between two updates
_BAR_WIDTH: Final = 24


@contextmanager
def interruptible(interrupted: str, *, noun: str = "record", wanted: bool = True) -> Iterator[OnProgress]:
    """Within `with`, a signal ends the command with the message *interrupted*, and a line shows what is done.

    Give the function to call with how much is done and how much there is.
    """
    with Interrupts() as interrupts, interrupts.ending(interrupted), ProgressBar(noun, wanted=wanted) as bar:
        yield bar.update


class ProgressBar:
    """Within `with`, a line with a bar, the number of things done, their rate and the time left.

    Args:
        noun: what is counted; '' if the number is of no interest, such as that of bytes.
        wanted: False shows nothing, for work that itself writes on the terminal.
    """

    def __init__(self, noun: str = "record", *, wanted: bool = True) -> None:
        self._noun = noun
        self._shown = wanted and sys.stderr.isatty()
        self._start = time.monotonic()
        self._last = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write(CLEAR_LINE)

    def update(self, done: int, total: int | None, count: int | None = None) -> None:
        """Show how much is done, of how much; *count* is the number of things if *done* measures their size."""
        now = time.monotonic()
        if not self._shown or (now - self._last < _UPDATE_SECONDS and done != total):
            return
        self._last = now
        seconds, parts = max(now - self._start, 0.001), []
        if total:
            share = min(done / total, 1.0)
            parts = [("█" * round(_BAR_WIDTH * share)).ljust(_BAR_WIDTH, "░"), f"{100 * share:3.0f} %"]
        if self._noun:
            number = done if count is None else count
            parts += [quantity(number, self._noun), f"{number / seconds:,.0f} {self._noun}s/s"]
        if total and done:
            parts.append(f"{timedelta(seconds=round(seconds * (total - done) / done))} left")
        line = "  ".join(parts)[: (terminal_width(sys.stderr) or 0) - 1]
        sys.stderr.write(f"{CLEAR_LINE}{line}")
        sys.stderr.flush()
