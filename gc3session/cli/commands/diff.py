"""`gc3session diff`: what differs between two sessions or dumps."""

from __future__ import annotations

import sys
from collections import Counter

import click

from ... import InvalidArgument
from ... import diff as differences
from ..console import Failure, complain, escaped, os_error_text, style_on

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command(short_help="Show what differs between two sessions or dumps.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def diff(first: str, second: str) -> int:
    """Show what differs from A to B; each is a session, or a file that 'gc3session dump' has written.

    Each task that differs has a line: '+ ID' if only B has it, '- ID' if only A has it, '~ ID: FIELD, ...'
    if these fields differ. Tasks inside collections count, too. The exit status is 0 if nothing differs,
    1 if something does, 2 if A or B can't be read.

        $ gc3session diff yesterday.jsonl.gz runs
        + Task.17
        ~ Task.3: state, history
    """
    counts: Counter[str] = Counter()
    style = style_on(sys.stdout)
    try:
        for kind, id_, fields in differences(first, second):
            counts[kind] += 1
            sign, colour = _SIGNS[kind]
            text = escaped(f"{sign} {id_}{': ' if fields else ''}{', '.join(fields)}")
            sys.stdout.write(f"{style(text, colour)}\n")
    except InvalidArgument as error:
        raise Failure(str(error), 2) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(os_error_text(error), 2) from error
    if counts and sys.stderr.isatty():
        complain(", ".join(f"{counts[kind]:,} {kind}" for kind in _SIGNS if counts[kind]))
    return 1 if counts else 0
