"""`gc3session log`: the events of all tasks in the order of time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import click

from ... import LoadError, LogEntry
from ...query.event_log import log as events_of
from ..console import complain, escaped, in_zone, open_session, state_colour, style_on, wait_while_read
from ..filters import parsed_filters

_TIME_WIDTH: Final = len("2026-11-25 12:00:00.000")
_LEAST_ID_WIDTH: Final = 12
_LEAST_STATE_WIDTH: Final = len("TERMINATING")
_UNKNOWN_TIME: Final = "(not known)"

_HELP = """Show the events of all tasks of SESSION in the order of time: when, which task, its new state, its name.

Events of tasks inside collections are shown, too. Times are local, to the millisecond; events of unknown
time come first. With --follow, events are shown as they happen, until Ctrl-C or until the session is
destroyed.

\b
    $ gc3session log runs --since 2026-11-25T12:00 --state TERMINATED
    $ gc3session log runs -n 20 --follow
    $ gc3session log runs --format jsonl | jq -r 'select(.state == "UNKNOWN").id'

The exit status is 1 if some tasks can't be read.
"""


@click.command(help=_HELP, short_help="Show all events in the order of time.")
@click.argument("session")
@click.option(
    "-s", "--state", "states", metavar="STATE", multiple=True, help="Only events with this state; may be repeated."
)
@click.option("--name", metavar="REGEX", help="Only tasks whose name contains a match of REGEX.")
@click.option("--since", metavar="TIME", help="Only events at that time or later, such as 2026-11-25T12:00.")
@click.option("--before", metavar="TIME", help="Only events before that time.")
@click.option("-n", "--last", metavar="COUNT", type=click.IntRange(0), help="Only the last COUNT events.")
@click.option("-f", "--follow", is_flag=True, help="Go on, and show events as they happen.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="With --follow, the time between two looks.",
)
@click.option("--utc", is_flag=True, help="Show times in UTC.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "csv", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines of text, CSV, or one JSON object a line; the last two have times in UTC.",
)
def log(
    session: str,
    states: tuple[str, ...],
    name: str | None,
    since: str | None,
    before: str | None,
    last: int | None,
    follow: bool,
    interval: float,
    utc: bool,
    format_: str,
) -> int:
    """Write a line for each event, and return the exit status."""
    write = {"text": _text(utc), "csv": _csv(), "jsonl": _jsonl}[format_]
    unreadable = 0
    with open_session(session, read_only=True) as source:
        wanted = parsed_filters(state=states or None, name=name, since=since, before=before)
        entries = events_of(
            source._index, wanted, last, interval if follow else None, source._is_there, wait_while_read
        )
        while True:
            try:
                for entry in entries:
                    write(entry)
                break
            except LoadError as error:
                complain(str(error))
                unreadable += 1
    if follow:
        complain(f"{session} is no longer there")
    return 1 if unreadable else 0


# -- lines --------------------------------------------------------------------


def _text(utc: bool) -> Callable[[LogEntry], None]:
    """Return the function that writes an entry as text in columns, which grow with their content."""
    style = style_on(sys.stdout)
    widths = [_LEAST_ID_WIDTH, _LEAST_STATE_WIDTH]

    def write(entry: LogEntry) -> None:
        id_, state = escaped(entry.id), "-" if entry.state is None else escaped(entry.state)
        widths[:] = max(widths[0], len(id_)), max(widths[1], min(len(state), 2 * _LEAST_STATE_WIDTH))
        time = style(_shown(entry.time, utc), "dim")
        state = style(state.ljust(widths[1]), state_colour(entry.state))
        sys.stdout.write(f"{time}  {id_.ljust(widths[0])}  {state}  {escaped(entry.name or '-')}\n")

    return write


def _shown(time: datetime | None, utc: bool) -> str:
    known = time and in_zone(time, UTC if utc else None)
    if known is None:
        return _UNKNOWN_TIME.ljust(_TIME_WIDTH + utc)
    return known.replace(tzinfo=None).isoformat(" ", "milliseconds") + "Z" * utc


def _fields(entry: LogEntry) -> dict[str, Any]:
    return {**entry._asdict(), "time": None if entry.time is None else entry.time.isoformat()}


def _jsonl(entry: LogEntry) -> None:
    sys.stdout.write(json.dumps(_fields(entry), separators=(",", ":")) + "\n")


def _csv() -> Callable[[LogEntry], None]:
    rows = csv.DictWriter(sys.stdout, LogEntry._fields, lineterminator="\n")
    begun = False

    def write(entry: LogEntry) -> None:
        nonlocal begun
        if not begun:
            rows.writeheader()
            begun = True
        rows.writerow(_fields(entry))

    return write
