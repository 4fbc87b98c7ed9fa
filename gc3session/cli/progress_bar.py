"""A bar on stderr for long work, if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .console import quantity
from .interrupts import Interrupts

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..tables.interface import OnProgress

_UPDATE_SECONDS = 0.1  # between two updates


@contextmanager
def interruptible(interrupted: str, *, noun: str = "record", wanted: bool = True) -> Iterator[OnProgress]:
    """Within `with`, a signal ends the command with the message *interrupted*, and a bar shows what is done.

    Give the function to call with how much is done and how much there is.
    """
    with Interrupts() as interrupts, interrupts.ending(interrupted), ProgressBar(noun, wanted=wanted) as bar:
        yield bar.update


class ProgressBar:
    """Within `with`, a bar with the number of things done, their rate and the time left.

    Args:
        noun: what is counted; '' if the number is of no interest, such as that of bytes.
        wanted: False shows nothing, for work that itself writes on the terminal.
        sized: False if it isn't known how much there is to do: the bar shows the time spent.
    """

    def __init__(self, noun: str = "record", *, wanted: bool = True, sized: bool = True) -> None:
        self._noun = noun
        self._wanted = wanted
        self._sized = sized
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = time.monotonic()
        self._last = 0.0

    def __enter__(self) -> ProgressBar:
        if self._wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            share = (TextColumn("{task.percentage:3.0f} %"),)
            count = (TextColumn("[bold]{task.fields[count]}"), TextColumn("[cyan]{task.fields[rate]}"))
            self._bar = Progress(
                BarColumn(None if self._sized else 12),
                *(share if self._sized else ()),
                *(count if self._noun else ()),
                TimeRemainingColumn() if self._sized else TimeElapsedColumn(),
                console=Console(stderr=True),
                redirect_stdout=False,  # it may be a file
                transient=True,
                expand=self._sized,
                refresh_per_second=5,
            )
            self._task = self._bar.add_task("", total=None, count="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None, count: int | None = None) -> None:
        """Show how much is done, of how much; *count* is the number of things if *done* measures their size."""
        now = time.monotonic()
        early = now - self._last < _UPDATE_SECONDS and (total is None or done < total)
        if self._bar is None or self._task is None or early:
            return
        self._last = now
        number = done if count is None else count
        rate = f"{number / max(now - self._start, 0.001):,.0f} {self._noun}s/s"
        self._bar.update(self._task, completed=done, total=total, count=quantity(number, self._noun), rate=rate)
