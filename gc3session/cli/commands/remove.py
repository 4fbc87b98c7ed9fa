"""`gc3session remove`: tasks are deleted."""

from __future__ import annotations

from typing import Any

import click

from ... import Session
from ..bulk import STEPS_HELP, bulk_options, run_bulk

_HELP = f"""Delete tasks of SESSION: those with these IDs ('-' reads IDs from standard input), or those that the
options choose, as in 'gc3session list'.

The tasks in a collection are deleted with it. If several sessions use the store, a task is deleted from
all of them; 'gc3session forget' takes it out of this session only.

{STEPS_HELP}
\b
    $ gc3session remove runs Task.17 Task.18
    $ gc3session remove runs --state TERMINATED --before '30 days ago'
"""


@click.command(help=_HELP, short_help="Delete tasks.")
@bulk_options
def remove(session: str, yes: bool, **options: Any) -> int:
    """Remove the tasks, and return the exit status."""
    return run_bulk(Session.remove, "removed", ", and the tasks in them, for good", session, yes, options)
