"""`gc3session list` and `select`: they choose tasks, put them in order, and write them in some form."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Final

import click

from ... import InvalidArgument, Session, StoredTask, UnreadableTask
from ...query.field_path import MISSING, FieldPath, last_event
from ...store.record_view import StoredTasks
from ...transfer.dump import RecordLines
from ..console import complain, escaped, in_zone, open_session, quantity, state_colour, style_on, time_of
from ..fields_text import one_line
from ..filters import CONDITIONS_HELP, filter_options, taken_filters
from ..order import FoundTask, ListedTask, in_tree, sorted_by
from ..table import Cell, write_table

_NONE: Final = ("-", "dim")
_TASKS_AT_ONCE: Final = 32  # whose lines are made together
_DEFAULT_COLUMNS: Final = "ID,NAME,STATE,LAST EVENT"

_OPTIONS: Final = (
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
        type=click.Choice(["table", "csv", "json", "jsonl"]),
        help="A table, CSV, the line of each task in a dump (jsonl), or an array of these lines (json).",
    ),
    click.option("--ids", is_flag=True, help="Print only the IDs, one a line, for the '-' of another command."),
)


def _listing_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options that choose tasks, and those of their order and form."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return filter_options(command)


@click.command("list", short_help="List the tasks of a session.", epilog=CONDITIONS_HELP)
@click.argument("session")
@_listing_options
def list_(session: str, **options: Any) -> int:
    """List the tasks of SESSION: ID, name, state, and when the state last changed (local time).

    The tasks come in the order of the numbers in their IDs. If several options choose tasks, a task must meet all
    of them.

        $ gc3session list runs --state RUNNING --limit 20
        $ gc3session list runs --where 'returncode != 0' --columns ID,NAME,extra.node --sort extra.node
        $ gc3session list runs --since '2 hours ago' --format jsonl | jq .fields.extra

    With -r, the tasks inside collections are listed, too, indented below them. A collection that doesn't
    meet the conditions is shown, dim, if it leads to a task that does; the limit doesn't count it. The
    other forms than the table have each task once.

    Sorting keeps the field of up to some 65,000 tasks in memory, and of more tasks in a temporary file (in
    TMPDIR). Tasks that are equal in the field stay in the order of their numbers; those without it, or
    with a value that has no order, come last. A task that can't be read is reported on standard error, and the
    exit status is 1.
    """
    return _write_listing(session, "table", options)


@click.command(short_help="Print the IDs of the tasks that meet conditions.", epilog=CONDITIONS_HELP)
@click.argument("session")
@click.argument("conditions", metavar="[CONDITION]...", nargs=-1)
@_listing_options
def select(session: str, **options: Any) -> int:
    """Print the IDs of the tasks of SESSION that meet all conditions, one a line.

    This is 'gc3session list --ids' with the conditions as arguments, and takes the same options.

        $ gc3session select runs 'state = RUNNING' 'extra.runtimeInSeconds > 3600'
        $ gc3session select runs 'extra.error ~ quota' | gc3session remove runs - --yes
        $ gc3session select runs 'inputs has mesh' --format csv --columns ID,inputs.mesh
    """
    return _write_listing(session, "ids", options)


def _write_listing(path: str, default: str, options: dict[str, Any]) -> int:
    """Write the tasks of the session at *path* that the *options* choose, and return the exit status.

    *default* is the form of the list if the options don't say it.
    """
    filters = taken_filters(options)
    with open_session(path, read_only=True) as session:
        listing = _Listing(session, filters, default, **options)
        getattr(listing, f"write_{listing.form}")()
    return 1 if listing.unreadable else 0


class _Listing:
    """The tasks that fit, as they come.

    Attributes:
        form: 'ids', 'table', 'csv', 'json' or 'jsonl'.
        unreadable: how many could not be read, so far.
    """

    def __init__(
        self,
        session: Session,
        filters: dict[str, Any],
        default: str,
        *,
        recursive: bool,
        sort: str | None,
        limit: int | None,
        columns: str | None,
        form: str | None,
        ids: bool,
    ) -> None:
        if ids and form:
            raise click.UsageError("--ids and --format exclude each other.")
        self.form = "ids" if ids else form or (default if columns is None else "table")
        if columns is not None and self.form not in ("table", "csv"):
            raise click.UsageError("--columns is for table and csv; the other forms have no columns.")
        if recursive and sort is not None:
            raise click.UsageError("-r and --sort exclude each other: a tree has its own order.")
        self._descending = sort is not None and sort.startswith("-")
        self._sort = None if sort is None else _columns_of(sort[self._descending :])
        if self._sort is not None and len(self._sort) != 1:
            raise click.UsageError("--sort takes one field.")
        self._columns = _columns_of(_DEFAULT_COLUMNS if columns is None else columns)
        self._cells = [_CELLS.get(column.text, partial(_value, column)) for column in self._columns]
        self._recursive = recursive
        self._limit = limit
        self._session = session
        self._selected = session.select(**filters)
        self._tasks = StoredTasks(session.store)
        self.unreadable = 0

    # -- choosing

    def _listed(self, *, flat: bool = True) -> Iterator[ListedTask]:
        """Give the tasks that fit; with the collections that lead to them, unless *flat*.

        Complain of each that can't be read, and give it only if no field decides which tasks fit.
        """
        left = self._limit
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
        if self._recursive:
            roots = self._session.select().stored()
            return in_tree(roots, self._tasks, self._selected.filters, flat=flat)
        found = self._selected.stored()
        if self._sort is not None:
            found = sorted_by(self._sort[0], found, self._tasks, descending=self._descending, limit=self._limit)
        return map(ListedTask, found)

    # -- writing

    def write_ids(self) -> None:
        """Write the IDs; no record is read for those that the index has."""
        ids: Iterator[str] = islice(self._selected.ids(), self._limit)
        if self._recursive or self._sort or self._selected.filters.need_records:
            ids = (listed.task.persistent_id for listed in self._listed())
        sys.stdout.writelines(f"{escaped(id_)}\n" for id_ in ids)

    def write_table(self) -> None:
        """Write a table, on a terminal below the figures of the session."""
        if sys.stdout.isatty():
            _write_heading(self._session)
        titles = [escaped(column.text) for column in self._columns]
        write_table(titles, map(self._row, self._listed(flat=False)))

    def _row(self, listed: ListedTask) -> list[Cell]:
        task, indent = listed.task, "  " * listed.depth
        if isinstance(task, UnreadableTask):
            known = {"ID": (escaped(task.persistent_id), ""), "NAME": ("(unreadable)", "red")}
            row = [known.get(column.text, _NONE) for column in self._columns]
        else:
            row = [cell(task) if listed.fits else (cell(task)[0], "dim") for cell in self._cells]
        if indent:
            cells = zip(self._columns, row, strict=True)
            row = [(indent + text if column.text == "ID" else text, style) for column, (text, style) in cells]
        return row

    def write_csv(self) -> None:
        """Write CSV: a line with the titles, then one for each task."""
        write = csv.writer(sys.stdout, lineterminator="\n").writerow
        write([escaped(column.text) for column in self._columns])
        for listed in self._listed():
            task = listed.task
            if isinstance(task, StoredTask):
                write([_text_in(column, task) for column in self._columns])
            else:
                write([escaped(task.persistent_id) if column.text == "ID" else "" for column in self._columns])

    def write_jsonl(self) -> None:
        """Write the lines of the tasks as a dump has them."""
        sys.stdout.writelines(task_lines(self._session, (listed.task for listed in self._listed())))

    def write_json(self) -> None:
        """Write an array of the lines that a dump has of the tasks."""
        separator = "[\n"
        for line in task_lines(self._session, (listed.task for listed in self._listed())):
            sys.stdout.write(separator + line.removesuffix("\n"))
            separator = ",\n"
        sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


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


# -- columns


def _columns_of(text: str) -> list[FieldPath]:
    """Return the columns that a text names, with commas between them. Raise UsageError if one is no field."""
    try:
        return [FieldPath.parse(part) for part in text.split(",")]
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error


def _text_in(column: FieldPath, task: StoredTask) -> str:
    """Return what CSV has of a task in a column, '' for nothing; times are in ISO 8601."""
    value = column.of(task)
    if isinstance(value, datetime):
        local = None if value.tzinfo is None else in_zone(value)
        return (local or value).isoformat()
    return "" if value is MISSING or value is None else _text(value)


def _value(column: FieldPath, task: StoredTask) -> Cell:
    value = column.of(task)
    return _NONE if value is MISSING or value is None else (_text(value) or "-", "")


def _text(value: Any) -> str:
    return escaped(value) if type(value) is str else one_line(value)


def _name(value: Any, style: str = "") -> Cell:
    """Return the cell of what should be a text; of another value only its type is shown."""
    if isinstance(value, str):
        return (escaped(value), style) if value else _NONE
    return _NONE if value is None else (f"({type(value).__name__})", "dim")


def _state(task: StoredTask) -> Cell:
    state = task.fields.get("state")
    return _name(state, state_colour(state, task.fields.get("returncode")))


def _last_event(task: StoredTask) -> Cell:
    """Return when the last event was, and which it was unless it is the task's state."""
    time = time_of(last_event(task))
    if time is None:
        return _NONE
    text = time.isoformat(" ", "seconds")
    try:
        _, last = task.fields["history"][-1]
    except (TypeError, ValueError, LookupError):
        return text, ""
    return (text if last == task.fields.get("state") else f"{text} {_name(last)[0]}"), ""


_CELLS: Final[dict[str, Callable[[StoredTask], Cell]]] = {
    "ID": lambda task: (escaped(task.persistent_id), ""),
    "NAME": lambda task: _name(task.fields.get("jobname")),
    "STATE": _state,
    "LAST EVENT": _last_event,
}
"""What a table has of a task in a column; of another column it is `_value`."""


# -- lines of a dump


def task_lines(session: Session, tasks: Iterable[FoundTask]) -> Iterator[str]:
    """Give the lines that a dump has of some tasks, with their line feeds; they say whether the session has the task."""
    index, lines, source = session._index, RecordLines(), iter(tasks)
    while some := list(islice(source, _TASKS_AT_ONCE)):
        written = []
        with session.store.reading() as reader:
            held = index.held(reader, [task.number for task in some])
            for task in some:
                member = task.number in held
                if isinstance(task, StoredTask):
                    written.append(lines.of(task.schema, task.number, member, task.record))
                else:
                    state = index.state(reader, task.number) if member else ""
                    written.append(lines.raw(task.persistent_id, member, state, task.record))
        yield from written
