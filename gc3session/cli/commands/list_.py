"""`gc3session list`: a session's tasks as a table, or in other forms."""

from __future__ import annotations

from typing import Any

import click

from ..filters import CONDITIONS_HELP
from ..listing import listing_options, write_listing

_HELP = f"""List the tasks of SESSION: ID, name, state, and when the state last changed (local time).

The tasks come in the order of the numbers in their IDs. If several options choose tasks, a task must meet all
of them.

\b
    $ gc3session list runs --state RUNNING --limit 20
    $ gc3session list runs --where 'returncode != 0' --columns ID,NAME,extra.node --sort extra.node
    $ gc3session list runs --since '2 hours ago' --format jsonl | jq .fields.extra

{CONDITIONS_HELP}
With -r, the tasks inside collections are listed, too, indented below them. A collection that doesn't
meet the conditions is shown, dim, if it leads to a task that does; the limit doesn't count it. The
other forms than the table have each task once.

Sorting keeps the field of up to some 65,000 tasks in memory, and of more tasks in a temporary file (in
TMPDIR). Tasks that are equal in the field stay in the order of their numbers; those without it, or
with a value that has no order, come last. A task that can't be read is reported on standard error, and the
exit status is 1.
"""


@click.command("list", help=_HELP, short_help="List the tasks of a session.")
@click.argument("session")
@listing_options
def list_(session: str, **options: Any) -> int:
    """Write the list, and return the exit status."""
    return write_listing(session, "table", options)
