"""Asking before what can't be undone."""

from __future__ import annotations

import sys

import click

from .console import Failure, escaped
from .interrupts import Interrupts


def ensure_may_ask(command: str, yes: bool, *, stdin_is_read: bool = False) -> None:
    """Raise Failure with status 2 if there is nobody to ask, and *yes* doesn't say that nobody need be."""
    if yes:
        return
    if stdin_is_read or sys.stdin is None or not sys.stdin.isatty():
        why = "gives the IDs" if stdin_is_read else "is no terminal"
        raise Failure(f"{command} asks before it begins, but standard input {why}: add --yes to do it unasked", 2)


def confirmed(question: str, yes: bool, interrupts: Interrupts) -> bool:
    """Return whether it may be done: *yes*, or the answer to a question on stderr; the end of input is a no.

    Raise KeyboardInterrupt for a signal.
    """
    if yes:
        return True
    sys.stderr.write(f"{escaped(question)} [y/N] ")
    sys.stderr.flush()
    interrupts.ready(sys.stdin.fileno())
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer.strip().lower() in ("y", "yes")


yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
