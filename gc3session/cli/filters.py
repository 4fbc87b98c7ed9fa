"""The options that choose tasks, which `list`, `select`, `remove` and `forget` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import click

from ..errors import InvalidArgument
from ..query.selection import Selected, filters
from ..session.session import Session
from .completion import complete_states

_OPTIONS = (
    click.option(
        "--state",
        metavar="STATE,...",
        multiple=True,
        shell_complete=complete_states,
        help="Tasks in this state, or in one of several; only these are read.",
    ),
    click.option("--name", metavar="REGEX", help="Tasks in whose name this regular expression is found."),
    click.option("--id", metavar="REGEX", help="Tasks in whose ID this regular expression is found."),
    click.option("--class", "kind", metavar="NAME", multiple=True, help="Tasks of this class (its name or tag)."),
    click.option(
        "--where",
        metavar="CONDITION",
        multiple=True,
        help="Tasks that fulfil a condition, such as 'extra.runtimeInSeconds > 30'.",
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Tasks whose last event was then or later: 2026-11-24, '2026-11-24 18:30', yesterday, 2h, '3 days ago'.",
    ),
    click.option("--before", metavar="TIME", help="Tasks whose last event was before that."),
)

CONDITIONS_HELP = """A condition is FIELD OPERATOR VALUE; a task must fulfil all.  The operators are = != < <= > >=,
~ and !~ (a regular expression is found, or not), 'in' and 'not in' (values between commas), 'has' and
'lacks' (an item of a list or set, a key of a dict, a part of a text).  FIELD may lead inside:
extra.node, history.-1.1, tasks.0.jobname; ID, CLASS, NAME, STATE and LAST EVENT stand for those.
VALUE is read as what the field holds: a number, true, false, null, a time, a text; in quotes a text.
What can't be compared with it, or isn't there, doesn't fit.
"""


@attrs.frozen
class Asked:
    """What the options ask for, as the arguments of `Session.select`."""

    arguments: dict[str, Any]

    @property
    def anything(self) -> bool:
        """Whether anything is asked for."""
        return any(value not in (None, ()) for value in self.arguments.values())

    def of(self, session: Session) -> Selected:
        """Return the tasks that fit."""
        return session.select(**self.arguments)


def _asked(states: tuple[str, ...], conditions: tuple[str, ...], **arguments: Any) -> Asked:
    """Return what the options ask for.  Raise UsageError if they can't be understood."""
    arguments["state"] = [state for several in states for state in several.split(",")] or None
    arguments["kind"] = arguments["kind"] or None
    arguments["where"] += conditions
    try:
        filters(**arguments)
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error
    return Asked(arguments)


def filter_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options; it is called with `asked`, and not with them or its `conditions`."""

    @functools.wraps(command)
    def called(
        *args: Any,
        state: Any,
        name: Any,
        id: Any,  # noqa: A002 (the option's name)
        kind: Any,
        where: Any,
        since: Any,
        before: Any,
        conditions: tuple[str, ...] = (),
        **others: Any,
    ) -> int:
        asked = _asked(state, conditions, name=name, id=id, kind=kind, where=where, since=since, before=before)
        return command(*args, asked=asked, **others)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called
