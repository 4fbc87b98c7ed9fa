"""A bar on stderr for work whose size is known, if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from .console import quantity

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS = 0.1  # between two updates


class ProgressBar:
    """Within `with`, a bar with the number of records and their rate; call `update` as they are done.

    Args:
        wanted: False shows nothing: what is done is written on the terminal itself.
        noun: what is counted; '' if it is no number that anybody wants to read, as of bytes.
    """

    def __init__(self, wanted: bool = True, noun: str = "record") -> None:
        self._wanted = wanted
        self._noun = noun
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = self._last = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if self._wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("[bold]{task.fields[count]}"), TextColumn("[cyan]{task.fields[rate]}"))
            self._bar = Progress(
                BarColumn(None),
                TextColumn("{task.percentage:3.0f} %"),
                *(columns if self._noun else ()),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                redirect_stdout=False,  # it may be a file
                transient=True,
                expand=True,
                refresh_per_second=5,
            )
            self._task = self._bar.add_task("", total=None, count="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show how many records are done, of how many."""
        now = time.monotonic()
        if self._bar is None or self._task is None or (now - self._last < _SECONDS and done < total):
            return
        self._last = now
        rate = f"{done / max(now - self._start, 0.001):,.0f}/s"
        self._bar.update(self._task, completed=done, total=total, count=quantity(done, self._noun), rate=rate)
