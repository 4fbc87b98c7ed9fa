"""`gc3session repair`: mend what is damaged, and put aside what can't be read."""

from __future__ import annotations

import click

from ...upkeep.quarantine import DAMAGED
from ...upkeep.repair import repair_session
from ..console import complain, escaped, quantity

_SUMMARY = """Mend SESSION without loss, and put aside what can't be read, with its bytes.

session_ids.txt, the index and the counters are made what the records say; missing files are made again.
A record that can't be read goes to the directory 'damaged' in SESSION.  If the data file's structure is
damaged, a new one is made from what can be read, and the old one goes there, too; if another process has
the store open then, its number is told and the file stays as it is.

A repair that was interrupted is simply done again.

\b
    $ gc3session repair --dry-run runs
    $ gc3session repair runs && gc3session check runs

The exit status is 0 if all is mended, 1 if something was put aside, 2 if SESSION can't be read or is none.
"""


@click.command(help=_SUMMARY, short_help="Mend a session, and put aside what can't be read.")
@click.argument("session")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
def repair(session: str, dry_run: bool) -> int:
    """Repair the session, and return the exit status."""
    repaired = repair_session(session, dry_run=dry_run)
    for line in repaired.done:
        click.echo(escaped(line))
    if repaired.quarantined:
        would = "would be " if dry_run else ""
        complain(
            f"{session}: {quantity(len(repaired.quarantined), 'thing')} {would}put aside in {session}/{DAMAGED}"
        )
        return 1
    if not repaired.done:
        click.echo(escaped(f"{session} is all right: nothing to mend"))
    return 0
