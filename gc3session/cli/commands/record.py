"""`gc3session record`: tasks from lines of JSON."""

from __future__ import annotations

import os
import stat
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ...errors import Error
from ...session.session import Session
from ...tasks import Task
from ..console import Failure, complain, escaped, open_session, quantity
from ..interrupts import Interrupts
from ..json_input import parse_json
from ..line_input import LONGEST, Lines, opened

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# A batch is committed before the session would do so by itself, at 64 MiB: so it is known how
# many tasks a failed commit has not written.  In a record a JSON value takes at most 9 bytes
# for 4 in the line ('1e9,'); in the batch an object takes some 420 bytes beside its record.
_BATCH_BYTES: Final = 48 << 20
_OBJECT_BYTES: Final = 512
_GROWTH: Final = 2.25

_MANY: Final = 10_000  # tasks whose rate is of interest at the end

_SUMMARY = """Record tasks from FILE (or standard input), a JSON object a line, in SESSION.

SESSION is made if it does not exist.  The keys jobname, state, returncode, history (a list of
[seconds since 1970, state]) and extra are the task's; all others go into its 'extra'.

\b
    $ echo '{"jobname": "hello", "state": "RUNNING", "cores": 4}' | gc3session record runs
    recorded 1 task in runs

What is recorded is on disk.  Tasks that a program writes slowly are committed whenever it
pauses; on Ctrl-C, what has been read is kept.
"""


@click.command(help=_SUMMARY, short_help="Record tasks from lines of JSON.")
@click.argument("session")
@click.argument("file", default="-")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Commit after N tasks (or 48 MiB).",
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do at a broken line: stop, with the tasks before it recorded; or skip it, name it on"
    " standard error and record the others.  Either way the exit status is 1.",
)
def record(session: str, file: str, batch: int, on_error: str) -> int:
    """Record the tasks of *file*, and return the exit status."""
    name = "standard input" if file == "-" else file
    with opened(file) as fd:
        recording = _Recording(open_session(session, read_only=False), batch)
        start = time.monotonic()
        try:
            with Interrupts() as interrupts, _Progress(fd) as progress:
                broken = _record_lines(Lines(fd, interrupts), recording, progress, name, on_error == "skip")
                recording.commit()
                recording.close()
        except (Error, OSError) as error:
            what = str(error) if isinstance(error, Error) else f"{name}: {error.strerror}"
            lost = recording.close()
            left = f"; {quantity(lost, 'task')} of the last batch could not be" if lost else ""
            raise Failure(
                f"{what}; {quantity(recording.committed, 'task')} recorded in {session}{left}"
            ) from error
        seconds = time.monotonic() - start
    told = f"recorded {quantity(recording.committed, 'task')} in {session}"
    if recording.committed >= _MANY:
        told += f" ({seconds:,.1f} s, {recording.committed / seconds:,.0f} tasks/s)"
    if interrupts.caught is not None:
        complain(f"interrupted; {quantity(recording.committed, 'task')} read before are recorded")
    elif broken and on_error == "skip":
        told += f"; {quantity(broken, 'broken line')} skipped"
    click.echo(escaped(told))
    return 128 + interrupts.caught if interrupts.caught is not None else 1 if broken else 0


def _record_lines(lines: Lines, recording: _Recording, progress: _Progress, name: str, skip: bool) -> int:
    """Record the tasks of *lines* until they end, a signal, or a broken one if not *skip*.

    Return the number of broken lines.
    """
    broken = 0
    try:
        for number, line in lines:
            if number % 256 == 0 or line is None:
                progress.update(recording.committed + recording.pending, lines.position)
            if line is None:
                recording.commit()
                continue
            try:
                if len(line) > LONGEST:
                    raise ValueError(f"it is longer than {LONGEST >> 20} MiB")
                task = task_from_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                if task is not None:
                    recording.add(task, len(line))
            except ValueError as error:
                broken += 1
                what_now = "skipped" if skip else "stopped there: mend it, or go past it with --on-error skip"
                complain(f"{name}, line {number}: {error}; {what_now}")
                if not skip:
                    break
    except KeyboardInterrupt:
        pass
    return broken


class _Recording:
    """Tasks on their way into a session.

    Attributes:
        committed: how many are on disk.
        pending: how many are in the session's batch.
    """

    def __init__(self, session: Session, batch: int) -> None:
        self._session = session
        self._batch = batch
        self._bytes = 0.0
        self.committed = self.pending = 0

    def add(self, task: Task, size: int) -> None:
        """Add a task from a line of *size* bytes.  Raise InvalidArgument if it can't be stored."""
        cost = _OBJECT_BYTES + _GROWTH * size
        if self._bytes + cost > _BATCH_BYTES:
            self.commit()
        self._session.add(task, flush=False)
        self.pending += 1
        self._bytes += cost
        if self.pending >= self._batch:
            self.commit()

    def commit(self) -> None:
        """Put the batch on disk."""
        if self.pending:
            self._session.flush()
            self.committed += self.pending
            self.pending = 0
            self._bytes = 0.0

    def close(self) -> int:
        """Close the session, and return how many tasks could not be written."""
        try:
            self._session.close()
        except Error:
            self._session.store.discard()  # the caller tells; nothing is to try again
            return self.pending
        self.committed += self.pending
        self.pending = 0
        return 0


# -- tasks --------------------------------------------------------------------

_FIELDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "jobname": ((str,), "a string"),
    "state": ((str,), "a string"),
    "returncode": ((int, type(None)), "an integer or null"),
    "history": ((list,), "an array"),
    "extra": ((dict,), "an object"),
}
_JSON_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def task_from_line(line: bytes) -> Task | None:
    """Return the task that a line describes, or None if it is blank.

    Raise ValueError if it is broken, saying what is wrong.
    """
    if not line.strip():
        return None
    value = parse_json(line)
    if type(value) is not dict:
        raise ValueError(f"it is {_JSON_TYPES[type(value)]}, not an object")
    fields = {name: value.pop(name) for name in _FIELDS if name in value}
    for name, given in fields.items():
        types, wanted = _FIELDS[name]
        if type(given) not in types:
            raise ValueError(f"its {name!r} must be {wanted}, not {_JSON_TYPES[type(given)]}")
    if fields.get("state") == "":
        raise ValueError("its 'state' must not be empty")
    if history := fields.get("history"):
        for i, event in enumerate(history):
            if not _is_event(event):
                raise ValueError(f"its 'history' must be [seconds since 1970, state] pairs; entry {i + 1} is none")
        fields.setdefault("state", history[-1][1])
    if extra := fields.get("extra"):
        for name in value:
            if name in extra:
                raise ValueError(f"it has {name!r} beside its 'extra' and in it: only one can be kept")
        value |= extra
    fields["extra"] = value
    return Task(**fields)


def _is_event(value: Any) -> bool:
    if not (type(value) is list and len(value) == 2 and type(value[1]) is str and value[1]):
        return False
    if type(value[0]) not in (int, float):
        return False
    try:
        datetime.fromtimestamp(value[0], UTC)
    except (ValueError, OverflowError, OSError):
        return False
    return True


# -- progress -----------------------------------------------------------------


class _Progress:
    """Within `with`, a bar on stderr with the number of tasks and their rate, if it is a terminal."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            known = self._size is not None
            self._bar = Progress(
                BarColumn(None if known else 12),
                *((TextColumn("{task.percentage:3.0f} %"),) if known else ()),
                TextColumn("[bold]{task.fields[tasks]}"),
                TextColumn("[cyan]{task.fields[rate]}"),
                TimeRemainingColumn() if known else TimeElapsedColumn(),
                console=Console(stderr=True),
                redirect_stdout=False,  # it may be a file
                transient=True,
                expand=known,
                refresh_per_second=5,
            )
            self._task = self._bar.add_task("", total=self._size, tasks="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, tasks: int, position: int) -> None:
        """Show how many tasks have been read, and up to where."""
        if self._bar is not None and self._task is not None:
            rate = tasks / max(time.monotonic() - self._start, 0.001)
            self._bar.update(
                self._task, completed=position, tasks=quantity(tasks, "task"), rate=f"{rate:,.0f} tasks/s"
            )
