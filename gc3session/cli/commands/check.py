"""`gc3session check`: whether everything on disk of a session is as it should be."""

from __future__ import annotations

import sys

import click

from ... import check_session
from ..console import complain, quantity, say
from ..progress_bar import interruptible


@click.command(short_help="Read everything and report what is wrong.")
@click.argument("session")
@click.option(
    "--references",
    is_flag=True,
    help="Also report references to records that the store doesn't have. Otherwise they are only counted,"
    " because 'remove' leaves them where it removes what others refer to.",
)
def check(session: str, references: bool) -> int:
    """Read everything in SESSION and report what is wrong, one finding a line.

    This reads the files of the directory, the structure of the store's data file, the checksum and the values
    of each record, and the schemas; it compares the index with the records in both directions, and
    session_ids.txt with the index byte for byte.

    Nothing is written. Others may go on writing, as the check is of one state of the session. A damaged file is
    read without LMDB, which could end the program. 'gc3session repair' repairs what is found.

        $ gc3session check runs && echo all right

    The exit status is 0 if all is right, 1 if there are findings, 2 if SESSION can't be read or is not a session.
    """
    found = 0
    with interruptible("interrupted; the check is not complete", wanted=not sys.stdout.isatty()) as progress:
        findings = check_session(session, references=references, progress=progress)
        for finding in findings:
            found += 1
            say(str(finding))
    read = f"{quantity(findings.tasks, 'task')}, {quantity(findings.records, 'record')} read"
    if findings.dangling and not references:
        id_, number = findings.examples[0]
        complain(
            f"note: {quantity(findings.dangling, 'record')} with references to records that are not in the store"
            f" (such as {id_} to record {number}): they were removed, or a repair took them out"
        )
    if found:
        complain(f"{session}: {quantity(found, 'finding')}; {read}. See 'gc3session repair --dry-run {session}'")
        return 1
    say(f"{session} is all right: {read}")
    return 0
