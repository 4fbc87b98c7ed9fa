"""The program with its commands, and the exit status of every error that they raise."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import warnings
from io import TextIOWrapper
from typing import Any, Final, TextIO

import click

from .. import Error, OpenError
from .completion import SHELLS, SessionPath, script
from .console import Failure, complain, os_error_text

_INTERRUPTED: Final = 128 + signal.SIGINT
_BROKEN_PIPE: Final = 128 + signal.SIGPIPE  # what a shell reports for a program that SIGPIPE has ended

_COMMANDS: Final = tuple(
    "record import-wf info list select show log watch dump load diff backup compact check repair remove forget"
    " destroy migrate".split()
)
"""In the order in which `--help` lists them."""

_MODULES: Final = {"list": "listing", "select": "listing", "remove": "bulk", "forget": "bulk"}
"""The modules of those commands that have none of their own name."""


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Each command is imported when it is needed, so that it starts without what the others use.
        if cmd_name not in _COMMANDS:
            return None
        name = _MODULES.get(cmd_name, cmd_name.replace("-", "_"))
        module = importlib.import_module(f".commands.{name}", __package__)
        commands = (each for each in vars(module).values() if isinstance(each, click.Command))
        command = next(each for each in commands if each.name == cmd_name)
        # The lines of examples stay as they are behind a \b.
        command.help = inspect.cleandoc(command.help or "").replace("\n\n    $", "\n\n\b\n    $")
        for parameter in command.params:
            if parameter.name == "session":
                parameter.type = SessionPath(file_okay=False)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # These two are caught here because click would give them another meaning.
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_unwritten(sys.stdout)  # the reader has ended, as in `gc3session list ... | head`
            return _BROKEN_PIPE
        except KeyboardInterrupt:
            raise Failure("interrupted", _INTERRUPTED) from None
        return result


@click.group(
    cls=_Program,
    name="gc3session",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'gc3session COMMAND --help' explains a command.",
)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.option(
    "--completion",
    type=click.Choice(SHELLS),
    help="Print the script with which a shell completes commands, sessions, states and IDs.",
)
@click.pass_context
def gc3session(ctx: click.Context, version: bool, completion: str | None) -> int:
    """Record tasks in a session, which is a directory that keeps them, and look at them."""
    if version:
        click.echo(_version())
    elif completion is not None:
        click.echo(script(gc3session, completion))
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"gc3session {version('gc3session')}"
    except PackageNotFoundError:
        return "gc3session (run from its source; it is not installed)"


def run(arguments: list[str]) -> int:
    """Run a command line and return the exit status; every error is one line on stderr."""
    sys.stdout = _tolerant(sys.stdout)
    sys.stderr = _tolerant(sys.stderr)
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    status = _status_of(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the exit status says so already
            _drop_unwritten(stream)
    return status


def _status_of(arguments: list[str]) -> int:
    try:
        status = gc3session.main(arguments, prog_name="gc3session", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "gc3session"
        failure = Failure(f"{error.format_message()} See '{path} --help'.", 2)
    except (click.Abort, KeyboardInterrupt):
        failure = Failure("interrupted", _INTERRUPTED)
    except Failure as error:
        failure = error
    except Error as error:
        failure = Failure(str(error), 2 if isinstance(error, OpenError) else 1)
    except OSError as error:
        failure = Failure(os_error_text(error))
    else:
        return status or 0
    complain(str(failure))
    return failure.status


def _drop_unwritten(stream: TextIO) -> None:
    """Send what is left in a stream's buffer to /dev/null: Python would try to write it as it ends, and change the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _tolerant(stream: TextIO | None) -> TextIO:
    """Return the stream, which writes any character from now on; if it is closed, one that drops all text."""
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
