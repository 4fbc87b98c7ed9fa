"""`gc3session record`: tasks from lines of JSON."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from datetime import UTC
from typing import Any, Final

import click

from ... import Error, Task
from ..console import Failure, complain, open_session, os_error_text, quantity, say, time_of
from ..input import LINE_BYTES, STDIN, lines_of, opened, parse_json
from ..interrupts import Interrupts
from ..progress_bar import ProgressBar

_RATE_TASKS: Final = 10_000  # from so many on, their rate is reported
_UPDATE_LINES: Final = 256  # between two updates of the progress bar
_GO_ON: Final = "correct it, or go past it with --on-error skip"


@click.command(short_help="Record tasks from lines of JSON.")
@click.argument("session")
@click.argument("file", default=STDIN)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Commit after N tasks (or 64 MiB).",
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do at a broken line, which is reported on standard error: stop, after recording the tasks before"
    " it; or skip it, and record the others. Either way the exit status is 1.",
)
def record(session: str, file: str, batch: int, on_error: str) -> int:
    """Record tasks in SESSION from FILE (or standard input), which has one JSON object a line.

    SESSION is made if it does not exist. The keys jobname, state, returncode, history (a list of
    [seconds since 1970, state]) and extra are fields of the task; all others go into its 'extra'.

        $ echo '{"jobname": "hello", "state": "RUNNING", "cores": 4}' | gc3session record runs
        recorded 1 task in runs

    Tasks are on disk when the command says that they are recorded. If a program writes them slowly, they
    are committed whenever it pauses. After Ctrl-C, the tasks that were read before are kept.
    """
    name = "standard input" if file == STDIN else file
    number = tasks = broken = 0
    interrupts = Interrupts()
    with opened(file) as fd:
        target = open_session(session, read_only=False)
        size = os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else None
        start = time.monotonic()
        try:
            with interrupts, ProgressBar("task") as bar:
                with suppress(KeyboardInterrupt):
                    for line in lines_of(fd, interrupts):
                        if number % _UPDATE_LINES == 0 or line is None:
                            bar.update(0 if size is None else os.lseek(fd, 0, os.SEEK_CUR), size, tasks)
                        if line is None or len(target.store.batch.records) >= batch:
                            target.flush()
                        if line is None:
                            continue
                        number += 1
                        try:
                            task = task_from_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                            if task is not None:
                                target.add(task, flush=False)
                                tasks += 1
                        except ValueError as error:
                            broken += 1
                            now = "skipped" if on_error == "skip" else f"stopped there: {_GO_ON}"
                            complain(f"{name}, line {number}: {error}; {now}")
                            if on_error == "stop":
                                break
                target.close()
        except (Error, OSError) as error:
            what = str(error) if isinstance(error, Error) else os_error_text(error, name)
            with suppress(Error):  # which is the same
                target.close()
            lost = len(target.store.batch.records)
            target.store.discard()  # nothing tries again
            left = f"; {quantity(lost, 'task')} of the last batch could not be" if lost else ""
            raise Failure(f"{what}; {quantity(tasks - lost, 'task')} recorded in {session}{left}") from error
        seconds = time.monotonic() - start
    message = f"recorded {quantity(tasks, 'task')} in {session}"
    if tasks >= _RATE_TASKS:
        message += f" ({seconds:,.1f} s, {tasks / seconds:,.0f} tasks/s)"
    if interrupts.caught is not None:
        complain(f"interrupted; {quantity(tasks, 'task')} read before are recorded")
    elif broken and on_error == "skip":
        message += f"; {quantity(broken, 'broken line')} skipped"
    say(message)
    return interrupts.status if interrupts.caught is not None else 1 if broken else 0


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

    Raise ValueError, which says what is wrong, if it is broken.
    """
    if len(line) > LINE_BYTES:
        raise ValueError(f"it is longer than {LINE_BYTES >> 20} MiB")
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
                raise ValueError(
                    f"its 'history' must be pairs [seconds since 1970, state], but entry {i + 1} is not"
                )
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
    return type(value[0]) in (int, float) and time_of(value[0], UTC) is not None
