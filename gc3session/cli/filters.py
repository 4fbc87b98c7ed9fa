"""The options that choose tasks, which `list`, `select`, `remove` and `forget` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .. import InvalidArgument
from ..query.selection import Filters
from .completion import complete_states

_OPTIONS = (
    click.option(
        "--state",
        metavar="STATE,...",
        multiple=True,
        shell_complete=complete_states,
        help="Tasks in this state, or in one of these; no other tasks are read.",
    ),
    click.option("--name", metavar="REGEX", help="Tasks whose name contains a match of REGEX."),
    click.option("--id", metavar="REGEX", help="Tasks whose ID contains a match of REGEX."),
    click.option(
        "--class", "kind", metavar="NAME", multiple=True, help="Tasks of the class with this name or tag."
    ),
    click.option(
        "--where",
        metavar="CONDITION",
        multiple=True,
        help="Tasks that meet a condition, such as 'extra.cores > 8'.",
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Tasks whose last event was at that time or later: 2026-11-24, '2026-11-24 18:30', yesterday,"
        " 2h, '3 days ago'.",
    ),
    click.option("--before", metavar="TIME", help="Tasks whose last event was before that time."),
)

_NAMES = ("state", "name", "id", "kind", "where", "since", "before")

CONDITIONS_HELP = """A condition is FIELD OPERATOR VALUE. A task must meet all conditions. The operators are = != < <= > >=,
~ and !~ (a regular expression is found, or is not), 'in' and 'not in' (values with commas between them),
'has' and 'lacks' (an item of a list or set, a key of a dict, a part of a text). FIELD is the name of a field,
or leads into one: extra.node, history.-1.1, tasks.0.jobname. ID, CLASS, NAME, STATE and LAST EVENT mean the
columns of these titles. VALUE is read as the type that the field holds: a number, true, false, null, a time, a
text; in quotes it is a text. A task that lacks the field, or holds something there that can't be
compared with VALUE, doesn't meet the condition.
"""


def parsed_filters(**arguments: Any) -> Filters:
    """Return what the arguments of `Session.select` ask for. Raise UsageError if they can't be understood."""
    try:
        return Filters(**arguments)
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error


def filter_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options; `taken_filters` takes them from all of its options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def taken_filters(options: dict[str, Any]) -> dict[str, Any]:
    """Remove from the *options* of a command those of `filter_options`, and its 'conditions'.

    Return the arguments of `Session.select` that they mean, without those that weren't given. Raise UsageError if
    they can't be understood.
    """
    arguments = {name: options.pop(name) for name in _NAMES}
    arguments["state"] = [state for several in arguments["state"] for state in several.split(",")]
    arguments["where"] += options.pop("conditions", ())
    given = {name: value for name, value in arguments.items() if value not in (None, (), [])}
    parsed_filters(**given)
    return given
