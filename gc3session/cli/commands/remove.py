"""`gc3session remove`: tasks are deleted."""

from __future__ import annotations

import click

from ...session.session import Session
from ..filters import Asked
from ..taking_away import STEPS_HELP, Deed, choosing, take_away

_SUMMARY = f"""Delete tasks of SESSION: those with these IDs ('-' reads them from standard input), or those
that fit the options, which are as in 'gc3session list'.

The tasks in a collection are deleted with it.  In a store that several sessions use, a task
leaves all of them; 'gc3session forget' takes it out of this one only.

{STEPS_HELP}
\b
    $ gc3session remove runs Task.17 Task.18
    $ gc3session remove runs --state TERMINATED --before '30 days ago'
"""


def _remove(session: Session, id_: str) -> None:
    session.remove(id_)


_DEED = Deed("remove", "removed", ", and the tasks in them, for good", _remove)


@click.command(help=_SUMMARY, short_help="Delete tasks.")
@choosing
def remove(session: str, ids: tuple[str, ...], asked: Asked, yes: bool) -> int:
    """Remove the tasks, and return the exit status."""
    return take_away(_DEED, session, ids, asked, yes)
