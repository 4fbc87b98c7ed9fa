"""`gc3session log`: the events of all tasks in the order of time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import click

from ...errors import InvalidArgument, LoadError
from ...query.event_log import LogEntry
from ...query.event_log import log as events_of
from ...query.selection import filters
from ..console import colours, complain, escaped, open_session, state_colour, wait_while_read

_TIME_WIDTH: Final = 23  # 2026-11-25 12:00:00.000
_ID_WIDTH: Final = 12  # at least
_STATE_WIDTH: Final = 11  # at least: TERMINATING
_NEVER: Final = "(not known)"

_SUMMARY = """Show the events of all tasks of SESSION in the order of time: when, which task, its new state, its name.

Tasks inside collections are shown, too.  Times are local, to the millisecond; events whose time isn't
known come first.  With --follow, events are shown as they come, until Ctrl-C, or until the session is
destroyed.

\b
    $ gc3session log runs --since 2026-11-25T12:00 --state TERMINATED
    $ gc3session log runs -n 20 --follow
    $ gc3session log runs --format jsonl | jq -r 'select(.state == "UNKNOWN").id'

The exit status is 1 if some tasks can't be read.
"""


@click.command(help=_SUMMARY, short_help="Show all events in the order of time.")
@click.argument("session")
@click.option(
    "-s", "--state", "states", metavar="STATE", multiple=True, help="Only events of this state; may be repeated."
)
@click.option("--name", metavar="REGEXP", help="Only tasks in whose name this is found.")
@click.option("--since", metavar="TIME", help="Only events at that time or later, such as 2026-11-25T12:00.")
@click.option("--before", metavar="TIME", help="Only events before that time.")
@click.option("-n", "--last", metavar="COUNT", type=click.IntRange(0), help="Only so many events, the last ones.")
@click.option("-f", "--follow", is_flag=True, help="Go on, and show events as they come.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="With --follow, how often to look.",
)
@click.option("--utc", is_flag=True, help="Show times in UTC.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "csv", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines of text, or CSV, or a JSON object a line (both with times in UTC).",
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
        try:
            wanted = filters(states or None, name, since=since, before=before)
        except InvalidArgument as error:
            raise click.UsageError(f"{error}.") from error
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
    """Return what writes an entry as text in columns, which grow as they must."""
    coloured = colours(sys.stdout)
    widths = [_ID_WIDTH, _STATE_WIDTH]

    def write(entry: LogEntry) -> None:
        id_, state = escaped(entry.id), "-" if entry.state is None else escaped(entry.state)
        widths[:] = max(widths[0], len(id_)), max(widths[1], min(len(state), 2 * _STATE_WIDTH))
        time, id_, padded = _shown(entry.time, utc), id_.ljust(widths[0]), state.ljust(widths[1])
        if coloured:
            colour = state_colour(entry.state, None)
            time, padded = click.style(time, dim=True), click.style(padded, fg=colour)
        sys.stdout.write(f"{time}  {id_}  {padded}  {escaped(entry.name or '-')}\n")

    return write


def _shown(time: datetime | None, utc: bool) -> str:
    if time is None:
        return _NEVER.ljust(_TIME_WIDTH + utc)
    if not utc:
        try:
            return time.astimezone().replace(tzinfo=None).isoformat(" ", "milliseconds")
        except (ValueError, OverflowError, OSError):  # at the ends of the calendar
            return _NEVER.ljust(_TIME_WIDTH)
    return time.replace(tzinfo=None).isoformat(" ", "milliseconds") + "Z"


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
