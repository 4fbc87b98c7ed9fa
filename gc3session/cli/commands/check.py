"""`gc3session check`: is all that is known of a session right?"""

from __future__ import annotations

import sys

import click

from ...upkeep.check import check_session
from ..console import complain, escaped, quantity
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SUMMARY = """Read everything in SESSION and tell what is wrong: one line a finding.

The files of the directory, the structure of the store's data file, the checksum and the values of each
record, the schemas, the index against the records both ways, and session_ids.txt byte for byte.

Nothing is written, and others may go on writing: it is one state of the session that is checked.  A
damaged file is read without LMDB, which could die of it.  'gc3session repair' mends what is found.

\b
    $ gc3session check runs && echo all right

The exit status is 0 if all is right, 1 if there are findings, 2 if SESSION can't be read or is none.
"""


@click.command(help=_SUMMARY, short_help="Read everything and tell what is wrong.")
@click.argument("session")
@click.option(
    "--references",
    is_flag=True,
    help="Also find references to records that the store doesn't have. 'remove' leaves these where it removes"
    " what others refer to, so they are no faults otherwise, only counted.",
)
def check(session: str, references: bool) -> int:
    """Print the findings, and return the exit status."""
    found = 0
    with Interrupts() as interrupts:
        try:
            with interrupts.waiting(), ProgressBar(not sys.stdout.isatty()) as bar:
                findings = check_session(session, references=references, progress=bar.update)
                for finding in findings:
                    found += 1
                    click.echo(escaped(str(finding)))
        except KeyboardInterrupt:
            complain("interrupted; the check is not complete")
            return 128 + (interrupts.caught or 2)
    read = f"{quantity(findings.tasks, 'task')}, {quantity(findings.records, 'record')} read"
    if findings.dangling and not references:
        id_, number = findings.examples[0]
        complain(
            f"note: {quantity(findings.dangling, 'record')} with references to records that are not in the store"
            f" (such as {id_} to record {number}): removed, or put aside by a repair"
        )
    if found:
        complain(f"{session}: {quantity(found, 'finding')}; {read}. See 'gc3session repair --dry-run {session}'")
        return 1
    click.echo(escaped(f"{session} is all right: {read}"))
    return 0
