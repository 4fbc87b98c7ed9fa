"""`gc3session list`: a session's tasks as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import LoadError
from ..session import Session
from ..tasks import Persistable, TaskCollection, Unreadable
from .console import complain, escaped, open_session, quantity, state_colour, time_of
from .table import Cell, Column, Row, terminal, write_table

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS: Final = (
    Column("ID", least=12, spare=4),
    Column("NAME", least=16, spare=8),
    Column("STATE", least=10),
    Column("LAST EVENT", least=19),
)
_NONE: Final = Cell("-", "dim")
_CHUNK: Final = 256  # IDs handed to load_many at once

_SUMMARY = """List the tasks of SESSION: ID, name, state, and when the state last changed (local time).

The tasks come in the order of adding.  With -r, the tasks of a collection follow it, indented.
"""


@click.command("list", help=_SUMMARY, short_help="List the tasks of a session.")
@click.argument("session")
@click.option("-r", "--recursive", is_flag=True, help="List the tasks inside collections, too.")
def list_(session: str, recursive: bool) -> int:
    """Write the table, and return the exit status."""
    with open_session(session, read_only=True) as source:
        console = terminal()
        if console is not None:
            _write_heading(source, console)
        listing = _Listing(source, recursive)
        write_table(_COLUMNS, listing.rows(), console)
    return 1 if listing.unreadable else 0


def _write_heading(session: Session, console: Console) -> None:
    """Write what the session is and how many tasks are in which state."""
    from rich.text import Text

    counts = session.stats()
    heading = Text(escaped(session.name), "bold")
    heading.append(f"  {quantity(len(session), 'task')}", "not bold")
    separator = ": "
    for state, count in sorted(counts.items(), key=lambda item: -item[1]):
        heading.append(separator, "not bold")
        heading.append(f"{count:,} {escaped(state)}", f"not bold {state_colour(state, None) or ''}")
        separator = ", "
    console.print(heading)
    dates = [("created", session.created), ("finished", session.finished)]
    times = [f"{what} {time.isoformat(' ', 'seconds')}" for what, at in dates if (time := time_of(at))]
    console.print(Text(escaped("  ".join([os.path.abspath(session.path), *times])), "dim"), soft_wrap=True)
    console.print()


class _Listing:
    """The rows of the table.

    Attributes:
        unreadable: how many records could not be read, so far.
    """

    def __init__(self, session: Session, recursive: bool) -> None:
        self._session = session
        self._recursive = recursive
        self._entered: set[str] = set()  # collections; each is entered once, so cycles end
        self.unreadable = 0

    def rows(self) -> Iterator[Row]:
        """Give the rows of the session's tasks."""
        for id_, task in self._members():
            if isinstance(task, Persistable):
                yield from self._rows_of(task)
            else:
                yield self._unreadable(id_, str(task), 0)

    def _members(self) -> Iterator[tuple[str, Persistable | LoadError]]:
        """Give each ID of the session with its task, or with the error that loading it raises."""
        ids = iter(self._session.tasks)
        while chunk := list(islice(ids, _CHUNK)):
            done = 0
            while done < len(chunk):
                try:
                    for task in self._session.load_many(chunk[done:]):
                        yield chunk[done], task
                        done += 1
                except LoadError as error:
                    if chunk[done] in self._session:  # otherwise it has just been removed
                        yield chunk[done], error
                    done += 1

    def _rows_of(self, task: Persistable) -> Iterator[Row]:
        """Give the row of a task, and of those inside it."""
        above = [iter([task])]
        while above:
            inner = next(above[-1], None)
            if inner is None:
                above.pop()
                continue
            depth = len(above) - 1
            id_ = inner.persistent_id or ""
            if isinstance(inner, Unreadable):
                yield self._unreadable(id_, inner.reason, depth)
                continue
            yield _row(id_, inner, depth)
            if self._recursive and isinstance(inner, TaskCollection) and id_ not in self._entered:
                self._entered.add(id_)
                above.append(iter(_persistables(inner.tasks)))

    def _unreadable(self, id_: str, reason: str, depth: int) -> Row:
        self.unreadable += 1
        complain(f"{id_} is unreadable: {reason}")
        return Cell("  " * depth + escaped(id_)), Cell("(unreadable)", "red"), _NONE, _NONE


def _persistables(tasks: Any) -> Iterable[Persistable]:
    return (task for task in tasks if isinstance(task, Persistable)) if isinstance(tasks, (list, tuple)) else ()


def _row(id_: str, task: Persistable, depth: int) -> Row:
    """Return the cells of a task; a persistable that is no task has neither name nor state."""
    state = getattr(task, "state", None)
    return (
        Cell("  " * depth + escaped(id_)),
        _cell(getattr(task, "jobname", None)),
        _cell(state, state_colour(state, getattr(task, "returncode", None)) or ""),
        _last_event(getattr(task, "history", None), state),
    )


def _cell(value: Any, style: str = "") -> Cell:
    if isinstance(value, str):
        return Cell(escaped(value), style) if value else _NONE
    return _NONE if value is None else Cell(f"({type(value).__name__})", "dim")


def _last_event(history: Any, state: Any) -> Cell:
    """Return when the last event of a history was, and what, if that is not the state."""
    try:
        seconds, last = history[-1]
    except (TypeError, ValueError, LookupError):
        return _NONE
    time = time_of(seconds)
    if time is None:
        return _NONE
    text = time.isoformat(" ", "seconds")
    return Cell(text if last == state else f"{text} {_cell(last).text}")
