"""`gc3session watch`: how far a session has come, on a live screen."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from ...query.progress import FailedTask, Progress, Watch
from ...session.session import Session
from ...tasks import State
from ..console import (
    STATE_COLOURS,
    colours,
    complain,
    escaped,
    open_session,
    quantity,
    state_colour,
    wait_while_read,
)
from ..interrupts import Interrupts
from ..keyboard import Keyboard

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TOLD: Final = 10  # failures, at a look
_SLICE: Final = 0.2  # seconds after which a resized terminal is noticed

_SUMMARY = """Show how far SESSION has come: how many tasks are in which state, how many have TERMINATED a minute,
when the last one will have if it goes on so, and the latest failures (UNKNOWN, or TERMINATED with a
return code that isn't 0).

On a terminal it is a live screen, until q, or until all tasks have TERMINATED; else a line is written for
each look.  Tasks inside collections don't count.  The session is only read.
"""


@click.command(help=_SUMMARY, short_help="Show live how far a session has come.")
@click.argument("session")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
def watch(session: str, interval: float, once: bool) -> int:
    """Show the session's progress, and return the exit status."""
    live = not once and sys.stdout.isatty() and _can_draw()
    with open_session(session, read_only=True) as source, Interrupts() as interrupts:
        watching = _Watching(source, interval, interrupts)
        try:
            progress = watching.on_screen() if live else watching.as_lines(once)
        except KeyboardInterrupt:
            complain("interrupted")
            return 128 + (interrupts.caught or 2)
        if live:  # what stays when the screen is gone
            _write_line(progress, set())
        if not (once or source._is_there()):
            complain(f"{session} is no longer there")
    return 0


def _can_draw() -> bool:
    """Return whether stdout is a terminal on which a screen can be drawn."""
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class _Watching:
    """One run of the command."""

    def __init__(self, session: Session, interval: float, interrupts: Interrupts) -> None:
        self._session = session
        self._watch = Watch(session._index)
        self._interval = interval
        self._interrupts = interrupts

    def as_lines(self, once: bool) -> Progress:
        """Write a line at each look until all is done; return the last."""
        told: set[str] = set()
        while True:
            progress = self._watch.look()
            with self._interrupts.waiting():
                _write_line(progress, told)
                if once or progress.is_done or not self._session._is_there():
                    return progress
                wait_while_read(self._interval)

    def on_screen(self) -> Progress:
        """Show a live screen until all is done or q is pressed; return what it showed in the end."""
        from rich.console import Console
        from rich.live import Live

        console = Console(no_color=not colours(sys.stdout), highlight=False)
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                progress = self._watch.look()
                if progress.is_done or not self._session._is_there():
                    return progress
                end = time.monotonic() + self._interval
                size = None
                while (left := end - time.monotonic()) > 0:
                    if size != console.size:
                        size = console.size
                        live.update(_screen(self._session, progress, console), refresh=True)
                    with self._interrupts.waiting():
                        keys = keyboard.pressed(min(left, _SLICE))
                    if "q" in keys.lower():
                        return progress


# -- what is shown ------------------------------------------------------------


def _sorted_states(counts: dict[str, int]) -> list[str]:
    return sorted(counts, key=lambda state: (State.ALL.index(state) if state in State.ALL else 99, state))


def _pace(progress: Progress) -> list[str]:
    """Return the rate, and the time left, in words."""
    if progress.is_done:
        return ["all TERMINATED"]
    if progress.rate is None:
        return []
    if progress.left is None:
        return ["none TERMINATED lately"]
    rate = f"{progress.rate:,.0f}" if progress.rate >= 10 else f"{progress.rate:.1f}"
    return [f"{rate} TERMINATED a minute", f"{_span(progress.left)} left"]


def _span(seconds: float) -> str:
    if seconds >= 365 * 86400:
        return "years"
    return str(timedelta(seconds=round(seconds)))


def _failure_line(failure: FailedTask) -> str:
    when = "" if failure.time is None else f"{failure.time.astimezone():%Y-%m-%d %H:%M:%S}  "
    code = "" if failure.returncode is None else f" {failure.returncode}"
    return f"{when}{escaped(failure.id)}  {escaped(failure.state)}{code}  {escaped(failure.name or '-')}"


def _write_line(progress: Progress, told: set[str]) -> None:
    """Write a look as a line, and one for each failure that hasn't been told yet."""
    states = ", ".join(f"{progress.counts[state]:,} {escaped(state)}" for state in _sorted_states(progress.counts))
    parts = [f"{quantity(progress.total, 'task')}{': ' if states else ''}{states}", *_pace(progress)]
    sys.stdout.write(f"{progress.time.astimezone():%Y-%m-%d %H:%M:%S}  {'; '.join(parts)}\n")
    lines = [_failure_line(failure) for failure in progress.failures[:_TOLD]]
    for line in reversed(lines):
        if line not in told:
            sys.stdout.write(f"  failed: {line}\n")
    told.clear()
    told.update(lines)


def _screen(session: Session, progress: Progress, console: Console) -> RenderableType:
    """Return the screen: as many of the failures as there is room for, no line wrapped."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def text(content: str, style: str = "") -> Text:
        return Text(content, style, no_wrap=True, overflow="ellipsis")

    head = text(escaped(session.name), "bold")
    head.append(f"  {quantity(progress.total, 'task')}", "not bold")
    clock = text(f"{progress.time.astimezone():%Y-%m-%d %H:%M:%S}", "dim")
    states = Table.grid(padding=(0, 2, 0, 0), expand=True)
    states.add_column(no_wrap=True)
    states.add_column(ratio=1, min_width=4)
    states.add_column(justify="right", no_wrap=True)
    states.add_column(justify="right", no_wrap=True)
    for state in _sorted_states(progress.counts):
        count, colour = progress.counts[state], STATE_COLOURS.get(state, "white")
        bar = ProgressBar(progress.total, count, complete_style=colour, finished_style=colour)
        share = f"{100 * count / progress.total:.1f} %"
        states.add_row(text(escaped(state), colour), bar, text(f"{count:,}"), text(share))
    lines: list[RenderableType] = [head, clock, Text(""), states, Text("")]
    lines.append(text(", ".join(_pace(progress)) or "measuring how fast it goes"))
    room = console.size.height - 8 - len(progress.counts)
    if progress.failures and room > 0:
        lines += [Text(""), text("Latest failures", "bold")]
        for failure in progress.failures[:room]:
            lines.append(text(_failure_line(failure), state_colour(failure.state, failure.returncode) or ""))
    lines.append(text("q: quit", "dim"))
    return Group(*lines[: console.size.height - 1])
