"""`gc3session info`: what is known about a session and its store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC

import click

from ... import EventFigures, Information
from ..console import Style, escaped, open_session, quantity, state_colour, style_on, terminal_width, time_of
from ..fields_text import labelled, time_text
from ..progress_bar import interruptible
from ..table import width

_BAR_WIDTH = 40  # of the longest bar
_LABEL_WIDTH = 40  # of what stands before the bar
_NONE = "-"


@click.command(short_help="Show the figures of a session and its store.")
@click.argument("session")
@click.option("--scan", is_flag=True, help="Read all records, too.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object, with times in seconds since 1970.")
def info(session: str, scan: bool, as_json: bool) -> int:
    """Show what is known about SESSION: its tasks by state, its times, its store, and the space that the store takes.

    This takes the same time however many tasks there are, as they are counted already. Only the records say
    which events were the first and the last of all, and how many records each schema has: '--scan' reads them.

        $ gc3session info runs
        $ gc3session info runs --json | jq .figures.file.used_bytes
    """
    with open_session(session, read_only=True) as source, interruptible("interrupted", wanted=scan) as progress:
        known = source.info(scan=scan, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps(known.as_dict(), indent=2) + "\n")
    else:
        _write(known)
    return 0


def _write(known: Information) -> None:
    style = style_on(sys.stdout)
    pairs = list(_pairs(known))
    widest = max(len(name) for name, _ in pairs)
    lines = [
        style(escaped(known.name), "bold"),
        *(labelled(name, widest, escaped(text), style) for name, text in pairs),
        labelled("schemas", widest, f"{len(known.schemas):,}", style),
        *_schemas(known),
        labelled("tasks", widest, f"{known.tasks:,}", style),
        *_states(known, style),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _pairs(known: Information) -> Iterator[tuple[str, str]]:
    yield "path", known.path
    where = "inside the session" if known.inside else "elsewhere"
    made = "not made yet" if known.format is None else f"format {known.format}"
    yield "store", f"{known.store} ({where}, {made})"
    yield "identity", known.identity
    by = f", by: {known.command}" if known.command else ""
    yield "created", f"{_time(known.created)}{by}"
    yield "finished", _time(known.finished)
    for which, event in (("first", known.first_event), ("last", known.last_event)):
        of = "of all" if known.scanned is not None else f"of the task added {which}"
        yield f"{which} event", _event(event, of)
    rate = _NONE if known.per_minute is None else f"{known.per_minute:,.1f}"
    until = "the last event above" if known.last_write is None else "the last write"
    if known.finished is not None:
        until = "the end"
    yield "tasks a minute", f"{rate} (all tasks, from creation to {until})"
    if known.waiting:
        yield "waiting", f"{quantity(known.waiting, 'record')} in the batch, not on disk"
    stale = "stale: it is rewritten when the session is next opened for writing"
    yield "mirror", "up to date" if known.mirror else stale
    others = known.other_sessions
    have = f"{quantity(others, 'other session')} may have" if others else "no other session has"
    yield "records", f"{known.records:,} in the store, in which {have} tasks"
    if known.scanned is not None:
        unreadable = f", of which {known.unreadable:,} can't be read" if known.unreadable else ""
        yield "scanned", f"{quantity(known.scanned, 'record')}{unreadable}"
    for figure in known.figures:
        yield figure.name, figure.text


def _time(seconds: float | None) -> str:
    time = time_of(seconds, UTC)
    return _NONE if time is None else time_text(time)


def _event(event: EventFigures | None, of: str) -> str:
    return _NONE if event is None else f"{_time(event.time)}  {event.state}  {event.id} ({of})"


def _states(known: Information, style: Style) -> Iterator[str]:
    """Give a line for each state, with the number of tasks in it and their share; on a terminal with a bar."""
    counts = sorted(known.states.items(), key=lambda item: (-item[1], item[0]))
    without = known.tasks - sum(known.states.values())
    if without > 0:
        counts.append(("(no state)", without))
    widest = max((width(escaped(state)) for state, _ in counts), default=0)
    longest = max(4, min(_BAR_WIDTH, (terminal_width(sys.stdout) or 0) - _LABEL_WIDTH))
    for state, count in counts:
        share, colour, text = count / known.tasks, state_colour(state), escaped(state)
        bar = "  " + style("█" * round(longest * share), colour) if sys.stdout.isatty() else ""
        gap = " " * (widest - width(text))
        yield f"    {style(text, colour)}{gap}  {count:>{len(f'{known.tasks:,}')},}  {share:6.1%}{bar}"


def _schemas(known: Information) -> Iterator[str]:
    """Give a line for each schema."""
    for schema in known.schemas:
        records = "" if schema.records is None else f", {quantity(schema.records, 'record')}"
        yield escaped(
            f"    {schema.number}  {schema.name}: {schema.tag}, {quantity(schema.fields, 'field')}{records}"
        )
    if known.schemas and known.scanned is None:
        yield "    ('--scan' counts the records of each)"
