"""Asking before what can't be undone."""

from __future__ import annotations

import sys

import click

from .console import Failure, escaped


def ensure_may_ask(command: str, yes: bool, *, stdin_is_read: bool = False) -> None:
    """Raise Failure with status 2 if there is nobody to ask, and *yes* doesn't say that nobody need be."""
    if yes:
        return
    if stdin_is_read or sys.stdin is None or not sys.stdin.isatty():
        why = "gives the IDs" if stdin_is_read else "is no terminal"
        raise Failure(f"{command} asks before it begins, but standard input {why}: add --yes to do it unasked", 2)


def confirmed(question: str, yes: bool) -> bool:
    """Return whether it may be done: *yes*, or the answer to a question."""
    return yes or click.confirm(escaped(question), err=True)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
