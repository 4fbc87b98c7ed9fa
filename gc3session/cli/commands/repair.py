"""`gc3session repair`: a damaged session is repaired, and what can't be read is kept."""

from __future__ import annotations

import click

from ... import repair_session
from ...upkeep.quarantine import DAMAGED
from ..console import complain, quantity, say


@click.command(short_help="Repair a session, and keep what can't be read.")
@click.argument("session")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
def repair(session: str, dry_run: bool) -> int:
    """Repair SESSION without loss; what can't be read is moved out of it, and its bytes are kept.

    session_ids.txt, the index and the counters are rewritten from the records, and missing files are made
    again. A record that can't be read is moved to the directory 'damaged' in SESSION. If the structure of the
    data file is damaged, a new file is made from the pages that are whole, and the old one is moved there, too.
    That needs the store for itself: if another process has it open, the message has its process number and the
    file stays as it is.

    If a repair is interrupted, run it again.

        $ gc3session repair --dry-run runs
        $ gc3session repair runs && gc3session check runs

    The exit status is 0 if all is repaired, 1 if something was moved to 'damaged', 2 if SESSION can't be read or
    is not a session.
    """
    repaired = repair_session(session, dry_run=dry_run)
    for line in repaired.done:
        say(line)
    if repaired.quarantined:
        verb = "would be moved" if dry_run else "moved"
        complain(f"{session}: {quantity(len(repaired.quarantined), 'damaged item')} {verb} to {session}/{DAMAGED}")
        return 1
    if not repaired.done:
        say(f"{session} is all right: nothing to repair")
    return 0
