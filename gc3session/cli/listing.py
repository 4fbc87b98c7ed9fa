"""What `list` and `select` do: they choose tasks, put them in order, and write them in some form."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import attrs
import click

from .. import Selected, Session, StoredTask, UnreadableTask
from ..query.field_path import FieldPath
from ..store.record_view import StoredTasks
from .columns import DEFAULT, NONE, ListColumn, list_columns
from .console import complain, escaped, open_session, quantity, state_colour, style_on, time_of
from .filters import TaskFilter
from .order import ListedTask, in_tree, sorted_by
from .table import Cell, write_table

FORMATS = ("table", "csv", "json", "jsonl")

_OPTIONS = (
    click.option("-r", "--recursive", is_flag=True, help="Include tasks inside collections, and show the tree."),
    click.option("--sort", metavar="FIELD", help="Sort by a field; by '-FIELD' the greatest comes first."),
    click.option("--limit", metavar="N", type=click.IntRange(min=0), help="Show at most N tasks."),
    click.option(
        "--columns",
        metavar="FIELD,...",
        help="What to show: ID, NAME, STATE, LAST EVENT (the default), CLASS, and fields such as extra.node.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        help="A table, CSV, the line of each task in a dump (jsonl), or an array of these lines (json).",
    ),
    click.option("--ids", is_flag=True, help="Print only the IDs, one a line, for the '-' of another command."),
)


@attrs.frozen
class ListForm:
    """The order and the form that a list is to have.

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
    """Return what gives a command the options; it is called with `layout`; *default* is its form."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def called(
            *args: Any, recursive: bool, sort: str, limit: int, columns: str, form: str, ids: bool, **others: Any
        ) -> int:
            if ids and form:
                raise click.UsageError("--ids and --format exclude each other.")
            chosen = "ids" if ids else form or ("table" if columns is not None else default)
            if columns is not None and chosen not in ("table", "csv"):
                raise click.UsageError("--columns is for table and csv; the other forms have no columns.")
            if recursive and sort is not None:
                raise click.UsageError("-r and --sort exclude each other: a tree has its own order.")
            descending = sort is not None and sort.startswith("-")
            path = None if sort is None else list_columns(sort[descending:])
            if path is not None and len(path) != 1:
                raise click.UsageError("--sort takes one field.")
            layout = ListForm(
                path[0].path if path else None,
                descending,
                limit,
                list_columns(DEFAULT if columns is None else columns),
                chosen,
                recursive,
            )
            return command(*args, layout=layout, **others)

        for option in reversed(_OPTIONS):
            called = option(called)
        return called

    return decorate


def write_listing(path: str, chosen: TaskFilter, layout: ListForm) -> int:
    """Write the tasks of the session at *path* that fit, and return the exit status."""
    with open_session(path, read_only=True) as session:
        listing = _Listing(session, chosen.select(session), layout)
        if layout.form == "ids":
            listing.write_ids()
        elif layout.form == "table":
            listing.write_table()
        elif layout.form == "csv":
            listing.write_csv()
        else:
            listing.write_json(layout.form == "json")
    return 1 if listing.unreadable else 0


class _Listing:
    """The tasks that fit, as they come.

    Attributes:
        unreadable: how many could not be read, so far.
    """

    def __init__(self, session: Session, selected: Selected, layout: ListForm) -> None:
        self._session = session
        self._selected = selected
        self._layout = layout
        self._tasks = StoredTasks(session.store)
        self.unreadable = 0

    # -- choosing

    def _listed(self, *, flat: bool) -> Iterator[ListedTask]:
        """Give the tasks that fit; with the collections that lead to them, unless *flat*.

        Complain of each that can't be read, and give it only if no field decides which tasks fit.
        """
        left = self._layout.limit
        if left == 0:
            return
        for listed in self._found(flat=flat):
            task = listed.task
            if isinstance(task, UnreadableTask):
                self.unreadable += 1
                complain(f"{task.persistent_id} is unreadable: {task.error.__cause__ or task.error}")
                if self._selected.filters.need_records:
                    continue
            yield listed
            if left is not None and listed.fits:
                left -= 1
                if left == 0:
                    return

    def _found(self, *, flat: bool) -> Iterator[ListedTask]:
        layout = self._layout
        if layout.recursive:
            roots = self._session.select().stored()
            return in_tree(roots, self._tasks, self._selected.filters, flat=flat)
        found = self._selected.stored()
        if layout.path is not None:
            found = sorted_by(layout.path, found, self._tasks, descending=layout.descending, limit=layout.limit)
        return map(ListedTask, found)

    # -- writing

    def write_ids(self) -> None:
        """Write the IDs; no record is read for those that the index has."""
        layout = self._layout
        ids: Iterator[str] = islice(self._selected.ids(), layout.limit)
        if layout.recursive or layout.path or self._selected.filters.need_records:
            ids = (listed.task.persistent_id for listed in self._listed(flat=True))
        for id_ in ids:
            sys.stdout.write(f"{escaped(id_)}\n")

    def write_table(self) -> None:
        """Write a table, on a terminal below the figures of the session."""
        if sys.stdout.isatty():
            _write_heading(self._session)
        titles = [escaped(column.path.text) for column in self._layout.columns]
        write_table(titles, map(self._row, self._listed(flat=False)))

    def _row(self, listed: ListedTask) -> list[Cell]:
        """Return the cells of a task."""
        task, indent = listed.task, "  " * listed.depth
        if isinstance(task, UnreadableTask):
            known = {"ID": Cell(indent + escaped(task.persistent_id)), "NAME": Cell("(unreadable)", "red")}
            return [known.get(column.path.text, NONE) for column in self._layout.columns]
        row = []
        for column in self._layout.columns:
            cell = column.cell(task)
            if not listed.fits:
                cell = cell._replace(style="dim")
            if column.path.text == "ID":
                cell = cell._replace(text=indent + cell.text)
            row.append(cell)
        return row

    def write_csv(self) -> None:
        """Write CSV: a line with the titles, then one for each task."""
        import csv

        columns = self._layout.columns
        write = csv.writer(sys.stdout, lineterminator="\n").writerow
        write([escaped(column.path.text) for column in columns])
        for listed in self._listed(flat=True):
            task = listed.task
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
        for listed in self._listed(flat=True):
            write(before)
            line = lines.of(listed.task)
            write(line.removesuffix("\n") if array else line)
            before = ",\n" if array else ""
        if array:
            write("[]\n" if before == "[\n" else "\n]\n")


def _write_heading(session: Session) -> None:
    """Write the session's name, path and times, and how many tasks are in which state."""
    style = style_on(sys.stdout)
    counts = sorted(session.stats().items(), key=lambda item: -item[1])
    states = ", ".join(style(f"{count:,} {escaped(state)}", state_colour(state)) for state, count in counts)
    dates = [("created", session.created), ("finished", session.finished)]
    times = [f"{what} {time.isoformat(' ', 'seconds')}" for what, at in dates if (time := time_of(at))]
    head = f"{style(escaped(session.name), 'bold')}  {quantity(len(session), 'task')}"
    place = style(escaped("  ".join([os.path.abspath(session.path), *times])), "dim")
    sys.stdout.write(f"{head}{': ' if states else ''}{states}\n{place}\n\n")
