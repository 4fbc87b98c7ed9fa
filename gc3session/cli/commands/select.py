"""`gc3session select`: the IDs of the tasks that meet conditions."""

from __future__ import annotations

from typing import Any

import click

from ..filters import CONDITIONS_HELP
from ..listing import listing_options, write_listing

_HELP = f"""Print the IDs of the tasks of SESSION that meet all conditions, one a line.

This is 'gc3session list --ids' with the conditions as arguments, and takes the same options.

\b
    $ gc3session select runs 'state = RUNNING' 'extra.runtimeInSeconds > 3600'
    $ gc3session select runs 'extra.error ~ quota' | gc3session remove runs - --yes
    $ gc3session select runs 'inputs has mesh' --format csv --columns ID,inputs.mesh

{CONDITIONS_HELP}"""


@click.command(help=_HELP, short_help="Print the IDs of the tasks that meet conditions.")
@click.argument("session")
@click.argument("conditions", metavar="[CONDITION]...", nargs=-1)
@listing_options
def select(session: str, **options: Any) -> int:
    """Write what is selected, and return the exit status."""
    return write_listing(session, "ids", options)
