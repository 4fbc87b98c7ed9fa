"""What a shell offers at the Tab key: commands and options (by click), sessions, states and IDs."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Any, Final

import click

from .. import Error, Session, State
from .console import Failure, open_session

SHELLS: Final = ("bash", "zsh", "fish")

_SILENT: Final = (Error, Failure, OSError)  # a shell has no place for their messages while it completes
_IDS_OFFERED: Final = 50
_IDS_READ: Final = 5000  # in search of those that fit


class SessionPath(click.Path):
    """The path of a session: a shell offers directories, and opening it tells what is wrong with it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def complete_states(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the states of the session's tasks, or else all usual ones, that begin with what is typed."""
    before, comma, begun = incomplete.rpartition(",")
    states = list(State.ALL)
    with suppress(*_SILENT), _session(ctx) as session:
        states = list(session.stats())
    return [f"{before}{comma}{state}" for state in states if state.startswith(begun) and state.isprintable()]


def complete_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the first IDs of the session that begin with what is typed."""
    with suppress(*_SILENT), _session(ctx) as session:
        typed = set(ctx.params.get("ids") or ())
        ids = (id_ for id_ in islice(session.ids(), _IDS_READ) if id_.startswith(incomplete) and id_ not in typed)
        return list(islice(filter(str.isprintable, ids), _IDS_OFFERED))
    return []


def _session(ctx: click.Context) -> Session:
    # If the line ends with an option that lacks its value, click has taken no argument yet.
    path = ctx.params.get("session") or next(iter(ctx.args), "")
    return open_session(path, read_only=True)


def script(program: click.Command, shell: str) -> str:
    """Return the script with which a shell completes the command line of *program*."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    return completion(program, {}, "gc3session", "_GC3SESSION_COMPLETE").source()
