"""`gc3session log`: the events of all tasks in the order of time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Final

import click

from ... import LoadError, LogEntry
from ...query.event_log import log as events_of
from ..console import complain, escaped, in_zone, open_session, state_colour, style_on, wait_while_read
from ..filters import parsed_filters

_TIME_WIDTH: Final = len("2026-11-25 12:00:00.000")
_LEAST_ID_WIDTH: Final = 12
_LEAST_STATE_WIDTH: Final = len("TERMINATING")
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


@click.command(short_help="Show all events in the order of time.")
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
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines of text, or one JSON object a line, with times in UTC.",
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
    format_: str,
) -> int:
    """Show the events of all tasks of SESSION in the order of time: when, which task, its new state, its name.

    Events of tasks inside collections are shown, too. Times are local (in UTC with TZ=UTC before the
    command), to the millisecond; events of unknown time come first. With --follow, events are shown as they happen, until Ctrl-C or until the session is
    destroyed.

        $ gc3session log runs --since 2026-11-25T12:00 --state TERMINATED
        $ gc3session log runs -n 20 --follow
        $ gc3session log runs --format jsonl | jq -r 'select(.state == "UNKNOWN").id'

    The exit status is 1 if some tasks can't be read.
    """
    write = _text_writer() if format_ == "text" else _write_json
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


def _text_writer() -> Callable[[LogEntry], None]:
    """Return the function that writes an entry as text in columns, which grow with their content."""
    style = style_on(sys.stdout)
    widths = [_LEAST_ID_WIDTH, _LEAST_STATE_WIDTH]

    def write(entry: LogEntry) -> None:
        id_, state = escaped(entry.id), "-" if entry.state is None else escaped(entry.state)
        widths[:] = max(widths[0], len(id_)), max(widths[1], min(len(state), 2 * _LEAST_STATE_WIDTH))
        local = entry.time and in_zone(entry.time)
        shown = local.isoformat(" ", "milliseconds")[:_TIME_WIDTH] if local else "(not known)"  # without the zone
        time = style(shown.ljust(_TIME_WIDTH), "dim")
        state = style(state.ljust(widths[1]), state_colour(entry.state))
        sys.stdout.write(f"{time}  {id_.ljust(widths[0])}  {state}  {escaped(entry.name or '-')}\n")

    return write


def _write_json(entry: LogEntry) -> None:
    fields = entry._asdict() | {"time": entry.time and entry.time.isoformat()}
    sys.stdout.write(f"{_encode(fields)}\n")
