"""The tasks that suites store: each says all of its record by what a user may put into it, so that half of one is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from gc3session import Persistable, Task, TaskCollection
from steps import SHARED, Record

ODD_TEXT = "aZ \n\0\x1bä\U0001f600"
LONG = 900
"""How many times as long as others a text is that doesn't fit a page of the store."""


@attrs.define
class Job(Task):
    """A task. What it says is assigned at once: another thread may save it between two assignments."""

    content: dict[str, Any] = attrs.Factory(dict)


@attrs.define
class Group(TaskCollection):
    """A collection of tasks."""

    content: dict[str, Any] = attrs.Factory(dict)


def content_of(name: str, steps: int) -> dict[str, Any]:
    """Return what the task must say: so many characters if there are many steps."""
    text = f"{name}/{steps} {ODD_TEXT[: steps % 9]}"
    return {"steps": steps, "text": text.ljust(steps, ".") if steps > 999 else text * (1 if steps % 16 else LONG)}


def new_task(name: str, record: Record, parts: Mapping[str, Persistable]) -> Job | Group:
    """Return the task of that name, which has not been stored; *parts* has those of a group."""
    state, steps, names = record
    content = content_of(name, steps)
    if names is None:
        return Job(jobname=name, state=state, content=content)
    return Group(jobname=name, state=state, content=content, tasks=[parts[part] for part in names])


def assign(task: Any, record: Record) -> None:
    """Change a task to what its record is to be."""
    task.state = record.state
    task.content = content_of(task.jobname, record.steps)


def whole(task: Any) -> bool:
    """Return whether what a task says was said at one moment."""
    if not isinstance(task, Job | Group) or task.jobname == SHARED:
        return isinstance(task, Task)
    return bool(task.content == content_of(task.jobname, task.content["steps"]))


def record_of(task: Any) -> Record:
    """Return the record of a task. Raise ValueError if it isn't whole."""
    if not isinstance(task, Job | Group):
        raise ValueError(f"a {type(task).__name__} that nobody has stored: {task!r}")  # noqa: TRY004
    if not whole(task):
        raise ValueError(f"{task.jobname} is not whole: {str(task.content)[:80]!r}")
    if not task.history or task.history[-1][1] != task.state:
        raise ValueError(f"{task.jobname} is {task.state}, its history says {task.history}")
    parts = tuple(str(getattr(part, "jobname", "")) for part in task.tasks) if isinstance(task, Group) else None
    return Record(task.state, task.content["steps"], parts)
