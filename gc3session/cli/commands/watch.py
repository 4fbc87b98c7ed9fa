"""`gc3session watch`: how far a session has come, drawn again and again on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import click

from ... import FailedTask, Progress, State
from ...query.progress import watch as looks_at
from ..console import (
    complain,
    escaped,
    open_session,
    quantity,
    state_colour,
    style_on,
    terminal_width,
    wait_while_read,
)
from ..interrupts import Interrupts
from ..table import folded, width

_FAILURES_WRITTEN: Final = 10  # at most, below the figures of a look
_BAR_WIDTH: Final = 40  # of the longest bar
_LABEL_WIDTH: Final = 24  # to which the names of states are cut


@click.command(short_help="Show live how far a session has come.")
@click.argument("session")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="The time between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, and write a line.")
def watch(session: str, interval: float, once: bool) -> int:
    """Show how far SESSION has come: tasks in each state, their rate, the time left, and the latest failures.

    The rate is how many have TERMINATED a minute; failures are tasks that are UNKNOWN, or TERMINATED with a return
    code other than 0.

    On a terminal this is drawn again at each look, until all tasks have TERMINATED or Ctrl-C is pressed; elsewhere,
    each look writes a line. Tasks inside collections don't count. The session is only read.
    """
    lines_only = once or not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown")
    with open_session(session, read_only=True) as source, Interrupts() as interrupts:

        def wait(seconds: float) -> None:
            with interrupts.ending("interrupted"):
                wait_while_read(seconds)

        write = _line_writer() if lines_only else _drawing(source.name)
        for progress in looks_at(source._index, interval, source._is_there, wait):
            write(progress)
            if once:
                break
        if not (once or source._is_there()):
            complain(f"{session} is no longer there")
    return 0


def _line_writer() -> Callable[[Progress], None]:
    """Return the function that writes a line for a look, and one for each failure that was not among the last ones."""
    written: set[str] = set()

    def write(progress: Progress) -> None:
        states = ", ".join(f"{progress.counts[state]:,} {escaped(state)}" for state in _sorted(progress))
        parts = [f"{quantity(progress.total, 'task')}{': ' if states else ''}{states}", *_pace(progress)]
        sys.stdout.write(f"{_clock(progress.time)}  {'; '.join(parts)}\n")
        failures = [_failure_line(failure) for failure in progress.failures[:_FAILURES_WRITTEN]]
        for line in reversed(failures):
            if line not in written:
                sys.stdout.write(f"  failed: {line}\n")
        written.clear()
        written.update(failures)

    return write


def _drawing(name: str) -> Callable[[Progress], None]:
    """Return the function that draws a look over the one before, in lines that are cut to the terminal's width."""
    style = style_on(sys.stdout)
    drawn = 0  # lines

    def write(progress: Progress) -> None:
        nonlocal drawn
        columns = terminal_width(sys.stdout) or 0
        rows = (os.get_terminal_size(sys.stdout.fileno()).lines or 24) - 1
        lines = _picture(name, progress, columns)[:rows]
        lines += [("", "")] * (min(drawn, rows) - len(lines))
        text = "\n".join(f"\x1b[K{style(folded(line, columns - 1)[0], colour)}" for line, colour in lines)
        sys.stdout.write(f"\x1b[{min(drawn, rows)}A{text}\n" if drawn else f"{text}\n")
        drawn = len(lines)

    return write


def _picture(name: str, progress: Progress, columns: int) -> list[tuple[str, str]]:
    """Return the lines of a look with their styles."""
    lines = [
        (f"{escaped(name)}  {quantity(progress.total, 'task')}", "bold"),
        (_clock(progress.time), "dim"),
        ("", ""),
    ]
    names = {state: folded(escaped(state), _LABEL_WIDTH)[0] for state in _sorted(progress)}
    widest = max(map(width, names.values()), default=0)
    for state, text in names.items():
        share, count = progress.counts[state] / progress.total, f"{progress.counts[state]:,}"
        bar = "█" * round(_BAR_WIDTH * share)
        gap = " " * (widest - width(text))
        lines.append(
            (
                f"{text}{gap}  {count:>{len(f'{progress.total:,}')}}  {100 * share:5.1f} %  {bar}",
                state_colour(state),
            )
        )
    lines += [("", ""), (", ".join(_pace(progress)) or "measuring how fast it goes", "")]
    if progress.failures:
        lines += [("", ""), ("Latest failures", "bold")]
    for failure in progress.failures[:_FAILURES_WRITTEN]:
        lines.append((_failure_line(failure), state_colour(failure.state, failure.returncode)))
    return lines


def _sorted(progress: Progress) -> list[str]:
    """Return the states of the tasks in the order in which tasks go through them."""
    return sorted(progress.counts, key=lambda state: (State.ALL.index(state) if state in State.ALL else 99, state))


def _pace(progress: Progress) -> list[str]:
    """Return the rate, and the time left, in words."""
    if progress.is_done:
        return ["all TERMINATED"]
    if progress.rate is None:
        return []
    if progress.left is None:
        return ["none TERMINATED lately"]
    rate = f"{progress.rate:,.0f}" if progress.rate >= 10 else f"{progress.rate:.1f}"
    left = "years" if progress.left >= 365 * 86400 else str(timedelta(seconds=round(progress.left)))
    return [f"{rate} TERMINATED a minute", f"{left} left"]


def _clock(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _failure_line(failure: FailedTask) -> str:
    when = "" if failure.time is None else f"{_clock(failure.time)}  "
    code = "" if failure.returncode is None else f" {failure.returncode}"
    return f"{when}{escaped(failure.id)}  {escaped(failure.state)}{code}  {escaped(failure.name or '-')}"
