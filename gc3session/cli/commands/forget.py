"""`gc3session forget`: tasks leave the session, and stay in its store."""

from __future__ import annotations

from typing import Any

import click

from ... import Session
from ..bulk import STEPS_HELP, bulk_options, run_bulk

_HELP = f"""Take tasks out of SESSION and leave them in its store: the tasks with these IDs ('-' reads IDs from
standard input), or those that the options choose, as in 'gc3session list'.

'gc3session show' still shows these tasks, and a program can add them again: session.load(ID, add=True).

{STEPS_HELP}
\b
    $ gc3session forget runs Task.17
    $ gc3session select runs 'extra.batch < 12' | gc3session forget runs - --yes
"""


@click.command(help=_HELP, short_help="Take tasks out of a session.")
@bulk_options
def forget(session: str, yes: bool, **options: Any) -> int:
    """Forget the tasks, and return the exit status."""
    return run_bulk(Session.forget, "forgot", "", session, yes, options)
