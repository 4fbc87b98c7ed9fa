"""What `list` and `select` do: choose tasks, put them in order, and write them in some form."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..session.session import Session
from .console import escaped, quantity, state_colour, time_of

if TYPE_CHECKING:
    from rich.console import Console

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
import click

from ..query.field_path import FieldPath
from ..query.selection import Selected
from ..store.record_view import StoredTask, StoredTasks, UnreadableTask
from .columns import DEFAULT, NONE, ListColumn, list_columns
from .console import complain, open_session
from .filters import Asked
from .table import Cell, Row, terminal, write_table
from .tree import Place

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "csv", "json", "jsonl")

_OPTIONS = (
    click.option(
        "-r", "--recursive", is_flag=True, help="Look at the tasks inside collections, too, and show the tree."
    ),
    click.option("--sort", metavar="FIELD", help="In the order of a field; '-FIELD' from the greatest."),
    click.option("--limit", metavar="N", type=click.IntRange(min=0), help="At most so many tasks."),
    click.option(
        "--columns",
        metavar="FIELD,...",
        help="What to show: ID, NAME, STATE, LAST EVENT (these unless told), CLASS, and fields, such as extra.node.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        help="table; csv; jsonl: the line of each task in a dump; json: an array of these.",
    ),
    click.option("--ids", is_flag=True, help="The IDs alone, a line each, for another command's '-'."),
)


@attrs.frozen
class Wanted:
    """The order and the form that are asked for.

    Attributes:
        path, descending: what to sort by; None for the order of adding.
        limit: at most so many tasks; None for all.
        columns: of a table or CSV.
        form: one of FORMATS, or 'ids'.
        recursive: whether the tasks inside collections are looked at, too.
    """

    path: FieldPath | None
    descending: bool
    limit: int | None
    columns: list[ListColumn]
    form: str
    recursive: bool


def listing_options(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return what gives a command the options; it is called with `wanted`; *default* is its form."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def called(
            *args: Any, recursive: bool, sort: str, limit: int, columns: str, form: str, ids: bool, **others: Any
        ) -> int:
            if ids and form:
                raise click.UsageError("--ids and --format exclude each other.")
            chosen = "ids" if ids else form or ("table" if columns is not None else default)
            if columns is not None and chosen not in ("table", "csv"):
                raise click.UsageError("--columns is for table and csv; the other forms have nothing to choose.")
            if recursive and sort is not None:
                raise click.UsageError("-r and --sort exclude each other: a tree has its own order.")
            descending = sort is not None and sort.startswith("-")
            path = None if sort is None else list_columns(sort[descending:])
            if path is not None and len(path) != 1:
                raise click.UsageError("--sort takes one field.")
            wanted = Wanted(
                path[0].path if path else None,
                descending,
                limit,
                list_columns(DEFAULT if columns is None else columns),
                chosen,
                recursive,
            )
            return command(*args, wanted=wanted, **others)

        called.__doc__ = command.__doc__
        for option in reversed(_OPTIONS):
            called = option(called)
        return called

    return decorate


def write_listing(path: str, asked: Asked, wanted: Wanted) -> int:
    """Write the tasks that fit of the session at *path*, and return the exit status."""
    with open_session(path, read_only=True) as session:
        listing = _Listing(session, asked.of(session), wanted)
        if wanted.form == "ids":
            listing.write_ids()
        elif wanted.form == "table":
            listing.write_table()
        elif wanted.form == "csv":
            listing.write_csv()
        else:
            listing.write_json(wanted.form == "json")
    return 1 if listing.unreadable else 0


class _Listing:
    """The tasks that fit, as they come.

    Attributes:
        unreadable: how many could not be read, so far.
    """

    def __init__(self, session: Session, selected: Selected, wanted: Wanted) -> None:
        self._session = session
        self._selected = selected
        self._wanted = wanted
        self._tasks = StoredTasks(session.store)
        self.unreadable = 0

    # -- choosing

    def _places(self, *, flat: bool) -> Iterator[Place]:
        """Give the tasks that fit; of those in a tree also those above, unless *flat*.

        One that can't be read is complained of, and given only if nothing in it was asked for.
        """
        wanted = self._wanted
        left = wanted.limit
        if left == 0:
            return
        for place in self._found(flat=flat):
            if isinstance(place.task, UnreadableTask):
                self.unreadable += 1
                complain(
                    f"{place.task.persistent_id} is unreadable: {place.task.error.__cause__ or place.task.error}"
                )
                if self._selected.filters.need_records:
                    continue
            yield place
            if left is not None and place.fits:
                left -= 1
                if left == 0:
                    return

    def _found(self, *, flat: bool) -> Iterator[Place]:
        wanted = self._wanted
        if wanted.recursive:
            from .tree import in_tree

            roots = self._session.select().stored()
            return in_tree(roots, self._tasks, self._selected.filters, flat=flat)
        found = self._selected.stored()
        if wanted.path is not None:
            from .sorting import sorted_by

            found = sorted_by(wanted.path, found, self._tasks, descending=wanted.descending, limit=wanted.limit)
        return map(Place, found)

    # -- writing

    def write_ids(self) -> None:
        """Write the IDs; no record is read for those that the index has."""
        wanted = self._wanted
        write = sys.stdout.write
        if not (wanted.recursive or wanted.path or self._selected.filters.need_records):
            for id_ in islice(self._selected.ids(), wanted.limit):
                write(f"{escaped(id_)}\n")
            return
        for place in self._places(flat=True):
            write(f"{escaped(place.task.persistent_id)}\n")

    def write_table(self) -> None:
        """Write a table, on a terminal with what the session is above it."""
        console = terminal()
        if console is not None:
            self._write_heading(console)
        columns = self._wanted.columns
        titles = [column.column._replace(title=column.path.text) for column in columns]
        write_table(titles, map(self._row, self._places(flat=False)), console)

    def _row(self, place: Place) -> Row:
        """Return the cells of a task."""
        task, indent = place.task, "  " * place.depth
        if isinstance(task, UnreadableTask):
            told = {"ID": Cell(indent + escaped(task.persistent_id)), "NAME": Cell("(unreadable)", "red")}
            return [told.get(column.path.text, NONE) for column in self._wanted.columns]
        row = [column.cell(task) for column in self._wanted.columns]
        if not place.fits:
            row = [cell._replace(style="dim") for cell in row]
        return [
            cell._replace(text=indent + cell.text) if column.path.text == "ID" else cell
            for cell, column in zip(row, self._wanted.columns, strict=True)
        ]

    def _write_heading(self, console: Console) -> None:
        from .listing import write_heading

        write_heading(self._session, console)

    def write_csv(self) -> None:
        """Write CSV: a line with the titles, then one for each task."""
        import csv

        columns = self._wanted.columns
        write = csv.writer(sys.stdout, lineterminator="\n").writerow
        write([escaped(column.path.text) for column in columns])
        for place in self._places(flat=True):
            task = place.task
            if isinstance(task, StoredTask):
                write([column.text(task) for column in columns])
            else:
                write([escaped(task.persistent_id) if column.path.text == "ID" else "" for column in columns])

    def write_json(self, array: bool) -> None:
        """Write the lines of the tasks as a dump has them, or an array of them."""
        from .task_lines import TaskLines

        lines = TaskLines(self._session)
        write = sys.stdout.write
        before = "[\n" if array else ""
        for place in self._places(flat=True):
            write(before)
            line = lines.of(place.task)
            write(line.removesuffix("\n") if array else line)
            before = ",\n" if array else ""
        if array:
            write("[]\n" if before == "[\n" else "\n]\n")


def write_heading(session: Session, console: Console) -> None:
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
