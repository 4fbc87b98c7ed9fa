"""`gc3session compact`: the room of what was deleted goes back to the system."""

from __future__ import annotations

import click

from ...text import size_text
from ..console import complain, escaped, open_session
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SUMMARY = """Write the store of SESSION anew without its free pages, and so give their room back.

It needs room for the new file beside the old one.  Whatever ends it in the middle leaves the old
file or the new one.  No other process may have the store open meanwhile: if one has, its number
is told and nothing is changed.  A store that several sessions share is compacted as a whole.
"""


@click.command(help=_SUMMARY, short_help="Give back the room of what was deleted.")
@click.argument("session")
def compact(session: str) -> int:
    """Compact the store, and return the exit status."""
    with open_session(session, read_only=False, create=False) as target, Interrupts() as interrupts:
        try:
            with interrupts.waiting(), ProgressBar(noun="") as bar:
                done = target.compact(progress=bar.update)
        except KeyboardInterrupt:
            complain("interrupted; the store is as it was")
            return 128 + (interrupts.caught or 2)
    saved = max(0, done.before - done.after)
    sizes = f"{size_text(done.before)} -> {size_text(done.after)}"
    click.echo(escaped(f"compacted {session}: {sizes}, {size_text(saved)} given back"))
    return 0
