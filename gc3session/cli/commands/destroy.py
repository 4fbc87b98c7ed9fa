"""`gc3session destroy`: a whole session is deleted."""

from __future__ import annotations

import click

from ..console import open_session, quantity, say
from ..input import confirmed, ensure_may_ask, yes_option
from ..interrupts import Interrupts


@click.command(short_help="Delete a session.")
@click.argument("session")
@yes_option
def destroy(session: str, yes: bool) -> int:
    """Delete SESSION: its directory and its tasks.

    In a store outside the directory the session's tasks are deleted, even those that other sessions have,
    too; the store itself stays. The command asks first. With --yes it doesn't ask; that is needed where
    standard input is not a terminal.

    The directory vanishes at once, under the name '.SESSION.XXXXXXXX.deleted', and is then deleted. Once
    this has begun, Ctrl-C doesn't stop it.
    """
    ensure_may_ask("destroy", yes)
    with open_session(session, read_only=False, create=False) as doomed, Interrupts() as interrupts:
        with interrupts.ending("interrupted; nothing was done"):
            tasks = quantity(len(doomed), "task")
            if not confirmed(f"destroy the session {session} and its {tasks}, for good?", yes, interrupts):
                say("nothing was done")
                return 1
        doomed.destroy()
    say(f"destroyed {session}, which had {tasks}")
    return 0
