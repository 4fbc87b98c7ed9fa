"""`gc3session watch`: how far a session has come, on a live screen."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from ... import FailedTask, Progress, Session, State
from ...query.progress import Watch
from ..console import STATE_COLOURS, complain, escaped, open_session, quantity, state_colour, wait_while_read
from ..interrupts import Interrupts
from ..table import terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_FAILURES_WRITTEN: Final = 10  # at most, below the line of a look
_RESIZE_SECONDS: Final = 0.2  # after which a new size of the terminal is noticed
_DISABLED: Final = b"\0"  # no key: _POSIX_VDISABLE of Linux

_HELP = """Show how far SESSION has come: how many tasks are in each state, how many have TERMINATED a minute, how
much time is left at this rate, and the latest failures (tasks that are UNKNOWN, or TERMINATED with a return
code other than 0).

On a terminal this is a live screen, until q is pressed or all tasks have TERMINATED; elsewhere, each look
writes a line. Tasks inside collections don't count. The session is only read.
"""


@click.command(help=_HELP, short_help="Show live how far a session has come.")
@click.argument("session")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="The time between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
def watch(session: str, interval: float, once: bool) -> int:
    """Show the session's progress, and return the exit status."""
    console = None if once or os.environ.get("TERM", "") in ("", "dumb", "unknown") else terminal()
    with open_session(session, read_only=True) as source, Interrupts() as interrupts:
        watching = _Watching(source, interval, interrupts)
        if console is None:
            watching.as_lines(once)
        else:
            _write_line(watching.on_screen(console), set())  # this stays when the screen is gone
        if not (once or source._is_there()):
            complain(f"{session} is no longer there")
    return 0


class _Watching:
    """One run of the command."""

    def __init__(self, session: Session, interval: float, interrupts: Interrupts) -> None:
        self._session = session
        self._watch = Watch(session._index)
        self._interval = interval
        self._interrupts = interrupts

    def as_lines(self, once: bool) -> None:
        """Write a line at each look until all is done."""
        written: set[str] = set()
        while True:
            progress = self._watch.look()
            with self._interrupts.ending("interrupted"):
                _write_line(progress, written)
                if once or progress.is_done or not self._session._is_there():
                    return
                wait_while_read(self._interval)

    def on_screen(self, console: Console) -> Progress:
        """Show a live screen until all is done or q is pressed; return what it showed in the end."""
        from rich.live import Live

        with _Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
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
                    with self._interrupts.ending("interrupted"):
                        keys = keyboard.pressed(min(left, _RESIZE_SECONDS))
                    if "q" in keys.lower():
                        return progress


class _Keyboard:
    r"""Within `with`, keys come as they are pressed, without waiting for the end of a line, and aren't echoed.

    In the end the terminal's modes are restored. Ctrl-C asks to end, as always; Ctrl-Z and Ctrl-\ do
    nothing, as they would leave the terminal in these modes. If stdin isn't a terminal there are no keys.
    """

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        self._fd: int | None = None

    def __enter__(self) -> _Keyboard:
        if sys.stdin is not None and sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._modes = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            modes = termios.tcgetattr(self._fd)
            modes[6][termios.VSUSP] = modes[6][termios.VQUIT] = _DISABLED
            termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None and self._modes is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)
            except termios.error:  # the terminal is gone
                self._modes = None

    def pressed(self, seconds: float) -> str:
        """Wait for keys, at most *seconds*, and return them; '' if there are none."""
        if not select.select([] if self._fd is None else [self._fd], [], [], seconds)[0] or self._fd is None:
            return ""
        keys = os.read(self._fd, 64)
        if not keys:  # the terminal is gone: it would be ready for ever
            self._fd = None
        return keys.decode(errors="replace")


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


def _clock(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _failure_line(failure: FailedTask) -> str:
    when = "" if failure.time is None else f"{_clock(failure.time)}  "
    code = "" if failure.returncode is None else f" {failure.returncode}"
    return f"{when}{escaped(failure.id)}  {escaped(failure.state)}{code}  {escaped(failure.name or '-')}"


def _write_line(progress: Progress, written: set[str]) -> None:
    """Write a line for a look, and one for each failure that isn't among those *written* at the last look."""
    states = ", ".join(f"{progress.counts[state]:,} {escaped(state)}" for state in _sorted_states(progress.counts))
    parts = [f"{quantity(progress.total, 'task')}{': ' if states else ''}{states}", *_pace(progress)]
    sys.stdout.write(f"{_clock(progress.time)}  {'; '.join(parts)}\n")
    lines = [_failure_line(failure) for failure in progress.failures[:_FAILURES_WRITTEN]]
    for line in reversed(lines):
        if line not in written:
            sys.stdout.write(f"  failed: {line}\n")
    written.clear()
    written.update(lines)


def _screen(session: Session, progress: Progress, console: Console) -> RenderableType:
    """Return the screen, with as many of the failures as there is room for and no line wrapped."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def text(content: str, style: str = "") -> Text:
        return Text(content, style, no_wrap=True, overflow="ellipsis")

    head = text(escaped(session.name), "bold")
    head.append(f"  {quantity(progress.total, 'task')}", "not bold")
    clock = text(_clock(progress.time), "dim")
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
