"""`gc3session destroy`: the whole session is deleted."""

from __future__ import annotations

import click

from ..asking import confirmed, ensure_may_ask, yes_option
from ..console import complain, escaped, open_session, quantity
from ..interrupts import Interrupts

_SUMMARY = """Delete SESSION: its directory, and its tasks.

In a store outside of the directory its tasks are deleted, whatever other sessions have them,
too; the store stays.  It asks first; --yes does it unasked, and is needed where standard input
is no terminal.

The directory vanishes at once, under the name '.SESSION.XXXXXXXX.deleted', and is then deleted; once
begun, Ctrl-C doesn't stop that.
"""


@click.command(help=_SUMMARY, short_help="Delete a session.")
@click.argument("session")
@yes_option
def destroy(session: str, yes: bool) -> int:
    """Destroy the session, and return the exit status."""
    ensure_may_ask("destroy", yes)
    with open_session(session, read_only=False, create=False) as doomed, Interrupts() as interrupts:
        try:
            with interrupts.waiting():
                told = quantity(len(doomed), "task")
                if not confirmed(f"destroy the session {session} and its {told}, for good?", yes, interrupts):
                    click.echo("nothing was done")
                    return 1
        except KeyboardInterrupt:
            complain("interrupted; nothing was done")
            return 128 + (interrupts.caught or 2)
        doomed.destroy()
    click.echo(escaped(f"destroyed {session}, which had {told}"))
    return 0
