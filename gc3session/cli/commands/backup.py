"""`gc3session backup`: a copy of a session, which is a session."""

from __future__ import annotations

import click

from ...text import size_text
from ..console import complain, escaped, open_session, quantity
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SHOWN = 20  # Ns in complaints

_SUMMARY = """Copy SESSION to DEST, as it is at one moment, while others go on writing to it.

DEST must not exist, or be an empty directory.  It is there whole or not at all, and is a session
itself: the same IDs, order and times.  A store inside SESSION is copied as it is; 'gc3session
compact DEST' then gives back what is free in it.  From a store elsewhere the session's tasks, and
what these refer to, go into a store inside DEST.

\b
    $ gc3session backup runs /backup/runs-$(date +%F)
"""


@click.command(help=_SUMMARY, short_help="Copy a session while others write to it.")
@click.argument("session")
@click.argument("dest")
def backup(session: str, dest: str) -> int:
    """Make the backup, and return the exit status."""
    with open_session(session, read_only=True) as source, Interrupts() as interrupts:
        try:
            with interrupts.waiting(), ProgressBar(noun="") as bar:
                made = source.backup(dest, progress=bar.update)
        except KeyboardInterrupt:
            complain("interrupted; there is no backup")
            return 128 + (interrupts.caught or 2)
    click.echo(escaped(f"backed up {quantity(made.tasks, 'task')} of {session} to {dest}, {size_text(made.size)}"))
    for number in made.missing[:_SHOWN]:
        complain(
            f"the session's index has an entry for record {number}, which is not in the store; it is left out"
        )
    if len(made.missing) > _SHOWN:
        complain(f"and {len(made.missing) - _SHOWN:,} more missing")
    return 1 if made.missing else 0
