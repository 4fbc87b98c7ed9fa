"""`gc3session info`: what there is to know of a session and its store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING

import click

from ...session.information import EventFigures, Information
from ..console import escaped, open_session, quantity, state_colour, style_on, time_of
from ..fields_text import labelled, time_text
from ..interrupts import Interrupts
from ..progress import ProgressBar
from ..table import terminal, width

if TYPE_CHECKING:
    from rich.console import Console

_BAR = 40  # columns
_BESIDE_BAR = 40
_NONE = "-"
_NO_STATE = "(no state)"

_SUMMARY = """Tell what there is to know of SESSION: its tasks by state, its times, its store and that store's room.

All of it takes the same time however many tasks there are, as it is counted already.  Which
events were the first and the last of all, and how many records each schema has, only the records
know: '--scan' reads them.

\b
    $ gc3session info runs
    $ gc3session info runs --json | jq .figures.file.used_bytes
"""


@click.command(help=_SUMMARY, short_help="Tell the figures of a session and its store.")
@click.argument("session")
@click.option("--scan", is_flag=True, help="Read all records, too.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object, with times in seconds since 1970.")
def info(session: str, scan: bool, as_json: bool) -> int:
    """Write what there is to know, and return the exit status."""
    with (
        open_session(session, read_only=True) as source,
        Interrupts() as interrupts,
        interrupts.waiting(),
        ProgressBar(scan) as bar,
    ):
        told = source.info(scan=scan, progress=bar.update)
    if as_json:
        sys.stdout.write(json.dumps(told.as_dict(), indent=2) + "\n")
        return 0
    _write(told)
    return 0


def _write(told: Information) -> None:
    style = style_on(sys.stdout)
    pairs = list(_pairs(told))
    widest = max(len(name) for name, _ in pairs)
    sys.stdout.write(f"{style(escaped(told.name), 'bold')}\n")
    for name, text in pairs:
        sys.stdout.write(f"{labelled(name, widest, escaped(text), style)}\n")
    sys.stdout.write(f"{labelled('schemas', widest, f'{len(told.schemas):,}', style)}\n")
    for line in _schemas(told):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{labelled('tasks', widest, f'{told.tasks:,}', style)}\n")
    sys.stdout.flush()
    _write_states(told, terminal())


def _pairs(told: Information) -> Iterator[tuple[str, str]]:
    yield "path", told.path
    where = "inside the session" if told.inside else "elsewhere"
    made = "not made yet" if told.format is None else f"format {told.format}"
    yield "store", f"{told.store} ({where}, {made})"
    yield "identity", told.identity
    by = f", by: {told.command}" if told.command else ""
    yield "created", f"{_time(told.created)}{by}"
    yield "finished", _time(told.finished)
    of = "of all" if told.scanned is not None else "of the task added first"
    yield "first event", _event(told.first_event, of)
    of = "of all" if told.scanned is not None else "of the task added last"
    yield "last event", _event(told.last_event, of)
    rate = _NONE if told.per_minute is None else f"{told.per_minute:,.1f}"
    until = "the last event above" if told.last_write is None else "the last write"
    if told.finished is not None:
        until = "the end"
    yield "tasks a minute", f"{rate} (all tasks, from creation to {until})"
    if told.waiting:
        yield "waiting", f"{quantity(told.waiting, 'record')} in the batch, not on disk"
    mirror = (
        "as the index says"
        if told.mirror
        else "stale: it is written anew when the session is next opened to write"
    )
    yield "mirror", mirror
    others = (
        f"{quantity(told.other_sessions, 'other session')} may have"
        if told.other_sessions
        else "only this one has"
    )
    yield "records", f"{told.records:,} in the store, in which {others} tasks"
    if told.scanned is not None:
        unreadable = f", of which {told.unreadable:,} can't be read" if told.unreadable else ""
        yield "scanned", f"{quantity(told.scanned, 'record')}{unreadable}"
    for figure in told.figures:
        yield figure.name, figure.text


def _time(seconds: float | None) -> str:
    time = time_of(seconds, UTC)
    return _NONE if time is None else time_text(time)


def _event(event: EventFigures | None, of: str) -> str:
    return _NONE if event is None else f"{_time(event.time)}  {event.state}  {event.id} ({of})"


def _states(told: Information) -> list[tuple[str, int, float]]:
    """Return each state, how many are in it, and how large a part that is; the most first."""
    counts = sorted(told.states.items(), key=lambda item: (-item[1], item[0]))
    without = told.tasks - sum(told.states.values())
    if without > 0:
        counts.append((_NO_STATE, without))
    return [(escaped(state), count, count / told.tasks) for state, count in counts]


def _write_states(told: Information, console: Console | None) -> None:
    """Write a line for each state; on a terminal with a bar."""
    states = _states(told)
    if console is None:
        widest = max((width(state) for state, _, _ in states), default=0)
        for state, count, part in states:
            gap = " " * (widest - width(state))
            sys.stdout.write(f"    {state}{gap}  {count:>{len(f'{told.tasks:,}')},}  {part:6.1%}\n")
        return
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    chart = Table.grid(padding=(0, 2, 0, 0))
    for state, count, part in states:
        colour = state_colour(state, None) or "white"
        bar = Bar(1.0, 0, part, width=max(4, min(_BAR, console.width - _BESIDE_BAR)), color=colour)
        chart.add_row("  ", Text(state, colour), Text(f"{count:,}", justify="right"), f"{part:6.1%}", bar)
    console.print(chart)


def _schemas(told: Information) -> Iterator[str]:
    """Give a line for each schema."""
    for schema in told.schemas:
        records = "" if schema.records is None else f", {quantity(schema.records, 'record')}"
        yield escaped(
            f"    {schema.number}  {schema.name}: {schema.tag}, {quantity(schema.fields, 'field')}{records}"
        )
    if told.schemas and told.scanned is None:
        yield "    (how many records each has, '--scan' tells)"
