"""Workflow executions from WfFormat documents: nothing of them is lost."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from children import run_python
from consistency import check
from gc3session import (
    InvalidArgument,
    Session,
    State,
    Task,
    TaskCollection,
    Workflow,
    WorkflowTask,
)
from gc3session.tasks import class_tag
from sameness import same
from test_cli import one_error, run

INSTANCES = Path(
    os.environ.get("GC3SESSION_WFINSTANCES") or Path(__file__).parents[3] / "shared" / "data" / "wfinstances"
)

DOCUMENT: dict[str, Any] = {
    "name": "two steps",
    "description": "made by hand",
    "createdAt": "2024-03-01T10:00:00Z",
    "schemaVersion": "1.5",
    "author": {"name": "A. N. Other", "email": "a@example.org", "orcid": "0000"},
    "runtimeSystem": {"name": "make", "version": "4.3"},
    "unknown at the top": [1, 2.0, None, {"x": True}],
    "workflow": {
        "unknown in workflow": "w",
        "specification": {
            "unknown in specification": {"levels": 2},
            "tasks": [
                {
                    "name": "split",
                    "id": "split_1",
                    "parents": [],
                    "children": ["join_2"],
                    "inputFiles": ["in.txt"],
                    "outputFiles": ["half.txt"],
                    "category": "cheap",
                },
                {"name": "join", "id": "join_2", "parents": ["split_1"], "children": [], "inputFiles": None},
                {"name": "never ran", "id": "extra_3", "parents": [], "children": []},
            ],
            "files": [
                {"id": "in.txt", "sizeInBytes": 10**20},
                {"id": "half.txt", "sizeInBytes": 0, "md5": "d41d"},
            ],
        },
        "execution": {
            "makespanInSeconds": 12,
            "executedAt": "20240301T110000+0100",
            "unknown in execution": 1.0,
            "tasks": [
                {
                    "id": "join_2",
                    "runtimeInSeconds": 2,
                    "executedAt": "2024-03-01T10:00:10Z",
                    "command": {"program": "join", "arguments": ["-v", ""], "shell": False},
                    "coreCount": 1.5,
                    "avgCPU": 99,
                    "priority": None,
                    "machines": ["node-1", "node-2"],
                    "exit": {"code": 0},
                },
                {"id": "split_1", "runtimeInSeconds": 1.0},
            ],
            "machines": [
                {"nodeName": "node-1", "cpu": {"coreCount": 4, "speedInMHz": 2400.0}},
                {"nodeName": "node-2"},
            ],
        },
    },
}


def without(*keys: str | int) -> dict[str, Any]:
    """Return the document without the value at this place."""
    return changed(*keys)


def changed(*keys: str | int, to: Any = ...) -> dict[str, Any]:
    """Return the document with another value at this place, or none."""
    document = copy.deepcopy(DOCUMENT)
    *above, last = keys
    place: Any = document
    for key in above:
        place = place[key]
    if to is ...:
        del place[last]
    else:
        place[last] = to
    return document


def ordered(value: Any) -> Any:
    """Return a JSON value with its keys sorted, so that `same` minds only the order of arrays."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(item) for item in value] if isinstance(value, list) else value


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def stored(path: Path) -> list[Workflow]:
    """Return the workflows of a session, which is opened again."""
    check(path)
    with Session(path, create=False, read_only=True) as session:
        return list(session)


def assert_rebuilt(session: Path, document: Any) -> None:
    """Check that the only workflow of a session holds exactly this document."""
    (workflow,) = stored(session)
    assert same(ordered(workflow.document()), ordered(document))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a session may be made."""
    return tmp_path / "runs"


def test_everything_in_a_document_is_found_again(path: Path, tmp_path: Path) -> None:
    ran = run("import-wf", path, write(tmp_path / "wf.json", DOCUMENT))
    assert ran == (0, f"Workflow.1  two steps: 3 tasks from {tmp_path}/wf.json\n", "")
    assert_rebuilt(path, DOCUMENT)


OPTIONAL = [
    ("description",),
    ("author",),
    ("runtimeSystem",),
    ("unknown at the top",),
    ("workflow", "execution"),
    ("workflow", "execution", "tasks"),
    ("workflow", "execution", "machines"),
    ("workflow", "execution", "executedAt"),
    ("workflow", "execution", "makespanInSeconds"),
    ("workflow", "execution", "tasks", 0, "command"),
    ("workflow", "specification", "files"),
    ("workflow", "specification", "tasks", 0, "outputFiles"),
    ("workflow", "specification", "tasks", 0, "parents"),
]
ANY_VALUE: list[Any] = [..., None, [], {}, "", 0, 1.5, True, [None]]


@pytest.mark.parametrize("keys", OPTIONAL, ids=[".".join(map(str, keys)) for keys in OPTIONAL])
def test_what_is_optional_may_lack_or_be_of_any_type(path: Path, keys: tuple[str | int, ...]) -> None:
    values = [to for to in ANY_VALUE if not (keys[-1] == "tasks" and to == [None])]  # a run of no task
    documents = [changed(*keys, to=to) for to in values]
    with Session(path) as session, session.transaction():
        for document in documents:
            session.add(Workflow.from_document(copy.deepcopy(document)))
    for workflow, document in zip(stored(path), documents, strict=True):
        assert same(ordered(workflow.document()), ordered(document))


def test_tasks_have_fields_state_and_history_as_the_document_says(path: Path, tmp_path: Path) -> None:
    run("import-wf", path, write(tmp_path / "wf.json", DOCUMENT))
    (workflow,) = stored(path)
    assert (workflow.jobname, workflow.state, workflow.returncode) == ("two steps", "TERMINATED", None)
    start = 1709287200.0  # 2024-03-01 10:00 UTC
    assert workflow.history == [[start, "RUNNING"], [start + 12, "TERMINATED"]]
    assert workflow.machines == DOCUMENT["workflow"]["execution"]["machines"]
    assert workflow.files == DOCUMENT["workflow"]["specification"]["files"]
    split, join, never = workflow.tasks
    assert all(type(task) is WorkflowTask for task in workflow.tasks)
    assert (join.jobname, join.id, join.state) == ("join", "join_2", State.TERMINATED)
    assert join.history == [[start + 10, "RUNNING"], [start + 12, "TERMINATED"]]
    assert join.command == {"program": "join", "arguments": ["-v", ""], "shell": False}
    assert same([join.runtime, join.core_count, join.avg_cpu, join.priority], [2, 1.5, 99, None])
    assert (join.machines, join.parents, join.children) == (["node-1", "node-2"], ["split_1"], [])
    assert (split.input_files, split.output_files) == (["in.txt"], ["half.txt"])
    assert join.extra == {
        "specification": {"inputFiles": None},
        "execution": {"priority": None, "exit": {"code": 0}},
    }
    assert (split.state, split.history) == ("TERMINATED", [])  # it ran, at a time that nobody knows
    assert (never.state, [state for _, state in never.history]) == ("NEW", ["NEW"])
    assert workflow.by_id()["split_1"] is split


def test_only_the_workflow_is_in_the_session_and_list_and_show_need_no_class(path: Path, tmp_path: Path) -> None:
    run("import-wf", path, write(tmp_path / "wf.json", DOCUMENT))
    assert check(path) == ["Workflow.1"]
    listed = run("list", "-r", path, env={"TZ": "UTC"}).out.splitlines()
    assert [line.split("  ")[0] for line in listed[1:2]] == ["Workflow.1"]
    assert "2024-03-01 10:00:12" in listed[1]
    assert [line.split()[1] for line in listed[2:]] == ["split", "join", "never"]
    shown = run("show", path, listed[3].split()[0]).out
    assert "  class          WorkflowTask\n" in shown
    assert "  command        {'program': 'join', 'arguments': ['-v', ''], 'shell': False}\n" in shown


def test_a_time_without_an_offset_is_utc_and_one_that_is_none_is_kept_as_text() -> None:
    naive = Workflow.from_document(changed("workflow", "execution", "executedAt", to="2024-03-01T10:00:00"))
    assert naive.history[0] == [1709287200.0, "RUNNING"]
    for text in ("yesterday", "", "9999-12-31T23:59:59Z"):
        strange = Workflow.from_document(changed("workflow", "execution", "executedAt", to=text))
        assert strange.executed_at == text
        assert "TERMINATED" not in [state for _, state in strange.history]
    for duration in (math.nan, 1e300):
        endless = Workflow.from_document(changed("workflow", "execution", "makespanInSeconds", to=duration))
        assert [state for _, state in endless.history] == ["RUNNING"]


def test_changes_made_after_the_import_are_in_the_rebuilt_document() -> None:
    workflow = Workflow.from_document(copy.deepcopy(DOCUMENT))
    workflow.tasks[1].runtime = 3
    workflow.tasks[1].priority = 7  # the document has null there
    workflow.tasks[1].extra["note"] = "not of the document"
    expected = copy.deepcopy(DOCUMENT)
    expected["workflow"]["execution"]["tasks"][0] |= {"runtimeInSeconds": 3, "priority": 7}
    assert workflow.document() == expected


def test_a_collection_that_is_no_document_any_more_is_refused() -> None:
    workflow = Workflow.from_document(copy.deepcopy(DOCUMENT))
    workflow.add(WorkflowTask(jobname="split", id="split_1"))
    with pytest.raises(InvalidArgument, match="two tasks with the id 'split_1'"):
        workflow.document()
    workflow.tasks = workflow.tasks[1:2]
    with pytest.raises(InvalidArgument, match="has no task 'split_1' any more"):
        workflow.document()
    workflow.add(Task())
    with pytest.raises(InvalidArgument, match="not a WorkflowTask"):
        workflow.document()


SPECIFICATION, EXECUTION = ("workflow", "specification"), ("workflow", "execution")
REFUSED: list[tuple[Any, str]] = [
    ([], "not WfFormat: the document is no object"),
    ({}, "no 'schemaVersion'"),
    (changed("schemaVersion", to="1.4"), "schemaVersion '1.4'"),
    (changed("schemaVersion", to=1.5), "schemaVersion 1.5"),
    (without("name"), "no 'name'"),
    (changed("name", to=None), "no 'name'"),
    (without("workflow"), "'workflow' is missing"),
    (without(*SPECIFICATION), "'workflow.specification' is missing"),
    (without(*SPECIFICATION, "tasks"), "'workflow.specification.tasks' is missing"),
    (changed(*SPECIFICATION, "tasks", to={}), "'workflow.specification.tasks' is no array"),
    (changed(*SPECIFICATION, "tasks", 1, to=5), "'workflow.specification.tasks[1]' is no object"),
    (without(*SPECIFICATION, "tasks", 1, "id"), "'workflow.specification.tasks[1]' has no 'id'"),
    (without(*SPECIFICATION, "tasks", 1, "name"), "'workflow.specification.tasks[1]' has no 'name'"),
    (changed(*SPECIFICATION, "tasks", 1, "id", to="split_1"), "tasks[1]' has the id 'split_1'"),
    (changed(*EXECUTION, "tasks", 1, "id", to="join_2"), "execution.tasks[1]' has the id 'join_2'"),
    (changed(*EXECUTION, "tasks", 1, "id", to="none"), "no task of the specification"),
    (without(*EXECUTION, "tasks", 1, "id"), "'workflow.execution.tasks[1]' has no 'id'"),
]


def test_a_document_that_is_not_wfformat_is_refused_saying_where() -> None:
    for document, why in REFUSED:
        with pytest.raises(InvalidArgument) as refusal:
            Workflow.from_document(document)
        assert why in str(refusal.value)


def test_broken_files_are_named_and_the_others_imported(path: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", DOCUMENT)
    text = json.dumps(DOCUMENT, ensure_ascii=False)
    files: dict[str, tuple[bytes, str]] = {
        "cut.json": (text[:-10].encode(), "not JSON"),
        "empty.json": (b"", "not JSON"),
        "latin1.json": (text.replace("by hand", "für Hände").encode("latin-1"), "not UTF-8: byte 0xfc"),
        "bytes.json": (b'{"name": "\xff"}', "not UTF-8"),
        "twice.json": (text.replace('"cheap"', '"cheap", "category": "dear"').encode(), "'category' twice"),
        "deep.json": (b"[" * 200_000, "nested too deeply"),
        "other.json": (b"{}", "schemaVersion"),
        "digits.json": (b"9" * 10_000, "more than 4300 digits"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    names = [*files, "missing.json", ".", "line\nend.json"]
    ran = run("import-wf", path, good, *(tmp_path / name for name in names), good)
    assert ran.status == 1
    errors = ran.err.splitlines()
    assert len(errors) == len(names)
    for error, name in zip(errors, names, strict=True):
        assert error.startswith(f"gc3session: {tmp_path / name}".replace("\n", "\\n"))
        assert files.get(name, (b"", ""))[1] in error
        assert "ot imported" in error
    assert ran.out.splitlines()[-1] == f"imported 2 workflows with 6 tasks in {path}"
    assert len(check(path)) == 2


def test_a_broken_file_alone_is_one_line(path: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "no.json") in one_error(run("import-wf", path, tmp_path / "no.json"), 1)


def test_a_workflow_of_a_byte_order_mark_and_nan_comes_back(path: Path, tmp_path: Path) -> None:
    document = changed("workflow", "execution", "makespanInSeconds", to=math.nan)
    (tmp_path / "wf.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode())
    run("import-wf", path, tmp_path / "wf.json")
    assert_rebuilt(path, document)


@pytest.mark.skipif(not INSTANCES.is_dir(), reason=f"there is no {INSTANCES}")
def test_every_value_of_the_real_executions_is_found_again(path: Path) -> None:
    files = sorted(INSTANCES.glob("*.json"))
    documents = [json.loads(file.read_bytes()) for file in files]
    count = sum(len(document["workflow"]["specification"]["tasks"]) for document in documents)
    ran = run("import-wf", path, *files)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"imported {len(files)} workflows with {count:,} tasks in {path}"
    workflows = stored(path)
    assert [same(ordered(w.document()), ordered(d)) for w, d in zip(workflows, documents, strict=True)] == [
        True
    ] * 4
    for workflow, document in zip(workflows, documents, strict=True):
        assert workflow.state == "TERMINATED"
        assert len(workflow.history) == 2
        for task, entry in zip(workflow, document["workflow"]["execution"]["tasks"], strict=True):
            assert task.command == entry["command"]
            assert same(task.runtime, entry["runtimeInSeconds"])
            assert task.machines == entry["machines"]
            assert task.state == "TERMINATED"
    assert run("list", "-r", path).out.count("\n") == 1 + len(files) + count


def test_a_workflow_is_known_to_a_program_that_has_not_imported_its_module(path: Path, tmp_path: Path) -> None:
    run("import-wf", path, write(tmp_path / "wf.json", DOCUMENT))
    source = """
        import sys
        from gc3session import Session
        with Session(sys.argv[1], read_only=True) as session:
            (workflow,) = session
            print(type(workflow).__name__, type(workflow.tasks[1]).__name__)
            print(workflow.machines[1], workflow.tasks[1].runtime)
    """
    assert run_python(source, path).splitlines() == ["Workflow WorkflowTask", "{'nodeName': 'node-2'} 2"]


def test_records_name_the_classes_of_the_library_without_its_modules() -> None:
    tags = {cls: class_tag(cls) for cls in (Task, TaskCollection, Workflow, WorkflowTask)}
    assert tags == {cls: cls.__name__ for cls in tags}
