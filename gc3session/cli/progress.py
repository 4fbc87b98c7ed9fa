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
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = self._last = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if self._wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(None),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("[bold]{task.fields[records]}"),
                TextColumn("[cyan]{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                redirect_stdout=False,  # it may be a file
                transient=True,
                expand=True,
                refresh_per_second=5,
            )
            self._task = self._bar.add_task("", total=None, records="", rate="")
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
        self._bar.update(self._task, completed=done, total=total, records=quantity(done, "record"), rate=rate)
