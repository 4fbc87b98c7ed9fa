"""`gc3session forget`: tasks leave the session."""

from __future__ import annotations

import click

from ...session.session import Session
from ..filters import Asked
from ..taking_away import STEPS_HELP, Deed, choosing, take_away

_SUMMARY = f"""Take tasks out of SESSION, and leave them in its store: those with these IDs ('-' reads them from
standard input), or those that fit the options, which are as in 'gc3session list'.

'gc3session show' still shows them, and a program can add them again: session.load(ID, add=True).

{STEPS_HELP}
\b
    $ gc3session forget runs Task.17
    $ gc3session select runs 'extra.batch < 12' | gc3session forget runs - --yes
"""


def _forget(session: Session, id_: str) -> None:
    session.forget(id_)


_DEED = Deed("forget", "forgot", "", _forget)


@click.command(help=_SUMMARY, short_help="Take tasks out of a session.")
@choosing
def forget(session: str, ids: tuple[str, ...], asked: Asked, yes: bool) -> int:
    """Forget the tasks, and return the exit status."""
    return take_away(_DEED, session, ids, asked, yes)
