"""`gc3session list`: a session's tasks as a table."""

from __future__ import annotations

import click

from ..filters import CONDITIONS_HELP, Asked, filter_options
from ..listing import Wanted, listing_options, write_listing

_SUMMARY = f"""List the tasks of SESSION: ID, name, state, and when the state last changed (local time).

They come in the order of adding; those that fit all that is asked for.

\b
    $ gc3session list runs --state RUNNING --limit 20
    $ gc3session list runs --where 'returncode != 0' --columns ID,NAME,extra.node --sort extra.node
    $ gc3session list runs --since '2 hours ago' --format jsonl | jq .fields.extra

{CONDITIONS_HELP}
With -r the tasks inside collections are looked at, too, and shown indented below them; a
collection that doesn't fit is shown, dim, if it leads to a task that does.  The limit counts those
that fit.  Other forms than the table have each task once.

Sorting holds the field of some 65,000 tasks in memory, and of more in a temporary file (in TMPDIR);
tasks that are equal in it stay in the order of adding, and those without it, or with a value that
has no order, come last.  A task that can't be read is told on standard error; the exit status is 1.
"""


@click.command("list", help=_SUMMARY, short_help="List the tasks of a session.")
@click.argument("session")
@filter_options
@listing_options("table")
def list_(session: str, asked: Asked, wanted: Wanted) -> int:
    """Write the list, and return the exit status."""
    return write_listing(session, asked, wanted)
