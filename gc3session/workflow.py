"""Executions of workflows, from documents in WfFormat 1.5 (https://github.com/wfcommons/WfFormat).

A document becomes a `Workflow`, a task collection, and each of its tasks a `WorkflowTask` in
it.  Every value of the document is kept, with its type, in one of two places:

- what WfFormat 1.5 defines is in the field whose metadata name it;
- what it doesn't define, or defines with another type (null, for one), is in `extra`, under
  the name of the object that it stands in: 'document', 'workflow', 'specification' or
  'execution'.

A field is None where the document doesn't have the key.  So `Workflow.document` can return
what `Workflow.from_document` was given.
"""

# ruff: noqa: RUF009 (`_in` gives a field)
from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

import attrs

from .errors import InvalidArgument
from .tasks import State, Task, TaskCollection

VERSIONS: Final = ("1.5", "1.6")
"""The values of 'schemaVersion' that are read: 1.6 is 1.5 with two more optional objects."""

_TEXT, _NUMBER, _LIST, _OBJECT = (str,), (int, float), (list,), (dict,)


def _in(place: str, key: str, types: tuple[type, ...]) -> Any:
    """Return a field for what an object of the document, the *place*, has under a key, with its types there."""
    return attrs.field(default=None, metadata={place: (key, types)})


@attrs.define(eq=False, repr=False, kw_only=True)
class WorkflowTask(Task):
    """A task of a workflow, and how it ran.

    It is TERMINATED if the document says that it ran, and NEW otherwise.  Its history has the
    times of its run if the document has them, and is empty if it ran at an unknown time.

    Attributes:
        id: the name by which the document's other parts refer to the task.
        command: what ran: a dict with 'program' (str) and 'arguments' (list of str).
        runtime: seconds.
        machines: the names of the machines that it ran on; `Workflow.machines` describes them.
        parents, children: the `id` of the tasks that must come before and after this one.
        input_files, output_files: names of files; `Workflow.files` describes them.
        executed_at: when it started, as the document has it.
        core_count: how many cores it needs.
        avg_cpu: the use of the CPU, per cent.
        read_bytes, written_bytes, memory_bytes: how much it read, wrote and occupied.
        energy_kwh, avg_power_w: energy in kWh, average power in W.
        priority: the scheduler's.
    """

    class_tag: ClassVar[str] = "WorkflowTask"

    id: str = attrs.field(default="", metadata={"specification": ("id", _TEXT)})
    command: dict[str, Any] | None = _in("execution", "command", _OBJECT)
    runtime: float | None = _in("execution", "runtimeInSeconds", _NUMBER)
    machines: list[str] | None = _in("execution", "machines", _LIST)
    parents: list[str] | None = _in("specification", "parents", _LIST)
    children: list[str] | None = _in("specification", "children", _LIST)
    input_files: list[str] | None = _in("specification", "inputFiles", _LIST)
    output_files: list[str] | None = _in("specification", "outputFiles", _LIST)
    executed_at: str | None = _in("execution", "executedAt", _TEXT)
    core_count: float | None = _in("execution", "coreCount", _NUMBER)
    avg_cpu: float | None = _in("execution", "avgCPU", _NUMBER)
    read_bytes: float | None = _in("execution", "readBytes", _NUMBER)
    written_bytes: float | None = _in("execution", "writtenBytes", _NUMBER)
    memory_bytes: float | None = _in("execution", "memoryInBytes", _NUMBER)
    energy_kwh: float | None = _in("execution", "energyInKWh", _NUMBER)
    avg_power_w: float | None = _in("execution", "avgPowerInW", _NUMBER)
    priority: float | None = _in("execution", "priority", _NUMBER)


@attrs.define(eq=False, repr=False, kw_only=True)
class Workflow(TaskCollection):
    """A workflow, and how it ran; its `tasks` are WorkflowTasks, in the document's order.

    Attributes:
        description, created_at, schema_version, author, runtime_system: of the document.
        executed_at: when the run started, as the document has it.
        makespan: how long the run took, in seconds.
        machines: a dict for each machine, with its 'nodeName', 'cpu' and so on.
        files: a dict for each file, with its 'id' and 'sizeInBytes'.
        executed: the `id` of each task that ran, in the order in which the document lists their
            runs; None if it lists none.
    """

    class_tag: ClassVar[str] = "Workflow"

    description: str | None = _in("document", "description", _TEXT)
    created_at: str | None = _in("document", "createdAt", _TEXT)
    schema_version: str | None = _in("document", "schemaVersion", _TEXT)
    author: dict[str, Any] | None = _in("document", "author", _OBJECT)
    runtime_system: dict[str, Any] | None = _in("document", "runtimeSystem", _OBJECT)
    executed_at: str | None = _in("execution", "executedAt", _TEXT)
    makespan: float | None = _in("execution", "makespanInSeconds", _NUMBER)
    machines: list[dict[str, Any]] | None = _in("execution", "machines", _LIST)
    files: list[dict[str, Any]] | None = _in("specification", "files", _LIST)
    executed: list[str] | None = None

    @classmethod
    def from_document(cls, document: Any) -> Workflow:
        """Return the workflow that a WfFormat document (as `json.load` gives it) describes.

        The values are taken over, not copied.  Raise InvalidArgument, saying where, if it is
        not such a document.
        """
        fields, rest = _taken(_object(document, "the document"), Workflow, "document")
        version = document.get("schemaVersion")
        if version not in VERSIONS:
            said = "no 'schemaVersion'" if version is None else f"schemaVersion {version!r}"
            raise InvalidArgument(
                f"it has {said}: only WfFormat {' and '.join(VERSIONS)} are read; WfFormat's migration"
                " tool turns older versions into them"
            )
        if "jobname" not in fields:
            raise InvalidArgument("it has no 'name' (a string), which WfFormat requires")
        inner = dict(_object(rest.pop("workflow", None), "'workflow'"))
        specification = dict(_object(inner.pop("specification", None), "'workflow.specification'"))
        tasks = _by_id(specification.pop("tasks", None), "workflow.specification.tasks")
        ran = inner.pop("execution") if isinstance(inner.get("execution"), dict) else None
        execution = dict(ran or {})
        runs: dict[str, Any] = {}
        if isinstance(execution.get("tasks"), list):
            runs = _by_id(execution.pop("tasks"), "workflow.execution.tasks", tasks)
            fields["executed"] = list(runs)
        specified, specification = _taken(specification, Workflow, "specification")
        run, execution = _taken(execution, Workflow, "execution")
        extra = {"document": rest, "workflow": inner, "specification": specification, "execution": execution}
        extra = {place: rest for place, rest in extra.items() if rest}
        if ran == {}:
            extra["execution"] = {}
        return cls(
            **fields,
            **specified,
            **run,
            **_past(ran is not None, run.get("executed_at"), run.get("makespan")),
            extra=extra,
            tasks=[_task(entry, runs.get(id_)) for id_, entry in tasks.items()],
        )

    def document(self) -> dict[str, Any]:
        """Return the WfFormat document that `from_document` made the workflow from.

        What has been changed since then is in it; its parts are the workflow's own values.
        Raise InvalidArgument if the collection holds anything but the document's tasks.
        """
        tasks = self.by_id()
        document = _given(self, "document")
        inner = document["workflow"] = dict(self.extra.get("workflow", {}))
        specification = inner["specification"] = _given(self, "specification")
        specification["tasks"] = [_given(task, "specification") for task in tasks.values()]
        execution = _given(self, "execution")
        if self.executed is not None:
            missing = [id_ for id_ in self.executed if id_ not in tasks]
            if missing:
                raise InvalidArgument(f"{self!r} has no task {missing[0]!r} any more, which it says has run")
            execution["tasks"] = [{"id": id_, **_given(tasks[id_], "execution")} for id_ in self.executed]
        if execution or "execution" in self.extra:
            inner["execution"] = execution
        return document

    def by_id(self) -> dict[str, WorkflowTask]:
        """Return the tasks by their `id`, in order.

        Raise InvalidArgument if one is not a WorkflowTask, or two have the same.
        """
        tasks: dict[str, WorkflowTask] = {}
        for task in self.tasks:
            if not isinstance(task, WorkflowTask):
                raise InvalidArgument(f"{self!r} holds {task!r}, which is not a WorkflowTask")
            if tasks.setdefault(task.id, task) is not task:
                raise InvalidArgument(f"{self!r} has two tasks with the id {task.id!r}")
        return tasks


def _task(specification: dict[str, Any], run: dict[str, Any] | None) -> WorkflowTask:
    fields, rest = _taken(specification, WorkflowTask, "specification")
    run_fields, run_rest = _taken(run or {}, WorkflowTask, "execution")
    run_rest.pop("id", None)
    extra = {"specification": rest, "execution": run_rest}
    return WorkflowTask(
        **fields,
        **run_fields,
        **_past(run is not None, run_fields.get("executed_at"), run_fields.get("runtime")),
        extra={place: rest for place, rest in extra.items() if rest},
    )


def _past(ran: bool, executed_at: str | None, duration: float | None) -> dict[str, Any]:
    """Return the state and, if it ran, the history of a task."""
    if not ran:
        return {"state": State.NEW}
    history: list[list[Any]] = []
    # What is no time, or a duration that no clock can show, or None.
    with suppress(ValueError, OverflowError, TypeError):
        start = datetime.fromisoformat(executed_at)  # type: ignore[arg-type]
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        history.append([start.timestamp(), State.RUNNING])
        history.append([(start + timedelta(seconds=duration)).timestamp(), State.TERMINATED])  # type: ignore[arg-type]
    return {"state": State.TERMINATED, "history": history}


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"it is not WfFormat: {what} {'is missing' if value is None else 'is no object'}")
    return value


def _by_id(entries: Any, where: str, known: Container[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the objects of a list by their 'id', in order."""
    if not isinstance(entries, list):
        raise InvalidArgument(
            f"it is not WfFormat: {where!r} {'is missing' if entries is None else 'is no array'}"
        )
    found: dict[str, dict[str, Any]] = {}
    for position, value in enumerate(entries):
        entry = _object(value, f"'{where}[{position}]'")
        id_ = entry.get("id")
        if not isinstance(id_, str):
            raise InvalidArgument(f"'{where}[{position}]' has no 'id' (a string), which WfFormat requires")
        if id_ in found:
            raise InvalidArgument(
                f"'{where}[{position}]' has the id {id_!r}, which an earlier one has: make them differ"
            )
        if known is None and not isinstance(entry.get("name"), str):
            raise InvalidArgument(f"'{where}[{position}]' has no 'name' (a string), which WfFormat requires")
        if known is not None and id_ not in known:
            raise InvalidArgument(
                f"'{where}[{position}]' has the id {id_!r}, which no task of the specification has"
            )
        found[id_] = entry
    return found


def _keys(cls: type[Task], place: str) -> dict[str, tuple[str, tuple[type, ...]]]:
    """Return the keys of an object of the document, each with the field that it is kept in and its types."""
    named = {"name": ("jobname", _TEXT)} if place == ("document" if cls is Workflow else "specification") else {}
    found = ((field.name, field.metadata.get(place)) for field in attrs.fields(cls))
    return named | {of[0]: (name, of[1]) for name, of in found if of}


def _taken(entry: Mapping[str, Any], cls: type[Task], place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that are in an object of the document, and the rest of the object."""
    rest = dict(entry)
    fields = {}
    for key, (field, types) in _keys(cls, place).items():
        if type(rest.get(key)) in types:
            fields[field] = rest.pop(key)
    return fields, rest


def _given(task: Workflow | WorkflowTask, place: str) -> dict[str, Any]:
    """Return the object of the document that `_taken` took apart."""
    keys = _keys(Workflow if isinstance(task, Workflow) else WorkflowTask, place)
    entry = {key: getattr(task, field) for key, (field, _) in keys.items()}
    return {**task.extra.get(place, {}), **{key: value for key, value in entry.items() if value is not None}}
