"""What a record or a directory says never imports or runs anything, and never leads out of the session."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from children import HERE, Died, in_child, run_python, run_script
from examples import Simulation
from gc3session import DamagedSession, MirrorWarning, Session, Task
from test_check import Raw

KIT = HERE.parent / "tools" / "crashkit"

MakeSession = Callable[..., Session]

WRITES = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from gc3session import Session, Task
    from loud_module import Colour, Place, Own
    with Session(sys.argv[1]) as session:
        session.add(Task(extra={"enum": Colour.RED, "attrs": Place(3)}))
        session.add(Own(jobname="own"))
"""

READS = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from gc3session import GenericTask, Opaque, Session
    with Session(sys.argv[1]) as session:
        for _ in range(2):
            plain, own = session
            assert type(plain.extra["enum"]) is type(plain.extra["attrs"]) is Opaque
            assert type(own) is GenericTask and own.jobname == "own"
            session.store.invalidate_cache()
    assert "loud_module" not in sys.modules
"""


def test_no_module_is_imported_for_what_a_record_names(tmp_path: Path) -> None:
    (tmp_path / "loud_module.py").write_text(
        "import attrs, enum\nfrom gc3session import Task\nprint('imported')\n"
        "class Colour(enum.Enum):\n    RED = 1\n"
        "@attrs.define\nclass Place:\n    x: int\n"
        "@attrs.define\nclass Own(Task):\n    pass\n"
    )
    assert run_python(WRITES, tmp_path / "session", tmp_path) == "imported"
    assert run_python(READS, tmp_path / "session", tmp_path) == ""


def test_numpy_is_not_imported_for_an_array(make_session: MakeSession) -> None:
    numpy = pytest.importorskip("numpy")
    with make_session() as session:
        session.add(Simulation(inputs={"array": numpy.arange(3), "scalar": numpy.float32(1)}))
    reads = """
        import sys
        from gc3session import Opaque, Session
        with Session(sys.argv[1]) as session:
            (task,) = session
            extra = task.inputs if hasattr(task, "inputs") else task.fields["inputs"]
            assert type(extra["array"]) is type(extra["scalar"]) is Opaque
        assert "numpy" not in sys.modules
    """
    run_python(reads, session.path)


def test_store_url_that_is_a_link_is_refused(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        session.add(Task())
    url = Path(session.path, "store.url")
    os.rename(url, tmp_path / "elsewhere")
    url.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(DamagedSession, match="regular file"):
        Session(session.path)
    assert (tmp_path / "elsewhere").read_bytes() == before
    url.unlink()
    os.rename(tmp_path / "elsewhere", url)


@pytest.mark.parametrize("leads", ["../other/jobs", "jobs/../../other/jobs", "..", "."])
def test_relative_store_url_does_not_lead_out_of_the_session(
    make_session: MakeSession, tmp_path: Path, leads: str
) -> None:
    with make_session("other") as other:
        other.add(Task(jobname="of the other"))
    with make_session() as session:
        session.add(Task())
    url = Path(session.path, "store.url")
    good = url.read_text()
    url.write_text(good.replace("lmdb:jobs", f"lmdb:{leads}"))
    with pytest.raises(DamagedSession, match="leads out"):
        Session(session.path)
    url.write_text(good)


def test_mirror_that_becomes_a_link_during_a_transaction_is_not_written_through(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add(Task())
    victim = tmp_path / "victim"
    victim.write_text("precious")
    prepare = session._mirror.plan

    def prepare_and_plant(*args: object) -> object:
        mark = prepare(*args)
        os.unlink(session._mirror.path)
        os.symlink(victim, session._mirror.path)
        return mark

    with monkeypatch.context() as patched:
        patched.setattr(session._mirror, "plan", prepare_and_plant)
        session.add(Task())  # the line goes into the file that was open
    assert victim.read_text() == "precious"
    with pytest.warns(MirrorWarning):
        session.add(Task())
    assert victim.read_text() == "precious"
    assert len(session) == 3


# -- under a hook that sees what is imported, started and opened

VALUES = """
    import sys, datetime, decimal, fractions, pathlib, uuid, zoneinfo
    from gc3session import Session, Task, TaskCollection
    extra = {
        "n": 7, "text": "a\\x1b[2J\\u202e\\ud800", "bytes": b"cos\\nsystem\\n(S'touch ran'\\ntR.", "decimal": decimal.Decimal("1.5"),
        "fraction": fractions.Fraction(1, 3), "uuid": uuid.UUID(int=1), "path": pathlib.Path("/etc/passwd"),
        "time": datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich")), "day": datetime.date(2026, 1, 1),
        "span": datetime.timedelta(1), "complex": 1j, "set": {1, 2}, "frozen": frozenset((1,)), (1, 2): [1.5, None, True],
    }
"""

MAKES_HARMLESS = f"""{VALUES}
    import attrs
    from gc3session import Persistable
    class Job(Task): pass
    class Group(TaskCollection): pass
    class Thing(Persistable): pass
    with Session(sys.argv[1]) as session:
        session.add_many(Task(jobname="a", extra=extra) for _ in range(3))
        session.add(TaskCollection(jobname="a", tasks=[Task(jobname="a"), Job()]))
        session.add_many([Job(), Group(), Thing()])
"""
"""Also of classes that the reading program doesn't have: once these have been read, nothing is left to be compiled."""

MAKES_HOSTILE = f"""{VALUES}
    import numpy
    sys.path.insert(0, sys.argv[2])
    from loud_module import Colour, Own, Place
    with Session(sys.argv[1]) as session:
        session.add_many(Task(jobname="a", extra=extra | {{"enum": Colour.RED, "attrs": Place(3)}}) for _ in range(3))
        session.add(TaskCollection(jobname="a", tasks=[Own(jobname="a"), Task(extra={{"array": numpy.arange(3)}})]))
"""

LOUD = """
import attrs, enum
from gc3session import Task
open(__file__ + ".imported", "w").close()
class Colour(enum.Enum):
    RED = 1
@attrs.define
class Place:
    x: int
@attrs.define
class Own(Task):
    pass
"""

EVIL_TAGS = ("subprocess:Popen", "os:system", "builtins:eval", "loud_module:Own", "this:x", "../loud_module:Own")


def filled(place: Path, source: str) -> Path:
    """Make a session by *source*, and what else is used with it."""
    (place / "out").mkdir(parents=True)
    (place / "loud_module.py").write_text(LOUD)
    run_python(source, place / "session", place)
    run_script("-m", "gc3session", "dump", place / "session", "-o", place / "dump.jsonl")
    (place / "tasks.jsonl").write_text('{"jobname": "new"}\n')
    task = {"name": "a", "id": "a", "parents": [], "children": []}
    workflow = {"name": "w", "schemaVersion": "1.5", "workflow": {"specification": {"tasks": [task]}}}
    (place / "workflow.json").write_text(json.dumps(workflow))
    return place


needs_kit = pytest.mark.skipif(not KIT.exists(), reason="there is no tools/crashkit beside the tests")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where there are a harmless and a hostile session."""
    pytest.importorskip("numpy")
    at = tmp_path_factory.mktemp("places")
    filled(at / "harmless", MAKES_HARMLESS)
    filled(at / "hostile", MAKES_HOSTILE)
    (at / "hostile" / "loud_module.py.imported").unlink()
    return at


@needs_kit
@pytest.mark.parametrize("tag", [None, *EVIL_TAGS])
def test_whatever_is_done_nothing_is_imported_started_or_written_elsewhere(
    places: Path, tmp_path: Path, tag: str | None
) -> None:
    """Through Python and by each command; a class that a record names could be imported here."""
    harmless, hostile = (Path(shutil.copytree(places / name, tmp_path / name)) for name in ("harmless", "hostile"))
    if tag is not None:
        renamed(hostile, tag)
    path = os.pathsep.join((str(HERE.parent), str(HERE), str(hostile)))
    environment = {"PYTHONPATH": path, "TMPDIR": str(hostile / "out")}
    ended = json.loads(run_script(HERE / "watched.py", KIT, harmless, hostile, env=environment))
    for statuses in ended:
        assert {name for name, status in statuses.items() if status} == set()
        assert len(statuses) > 35
    assert not (hostile / "loud_module.py.imported").exists()


def renamed(place: Path, tag: str) -> None:
    """Give a class of the session, and of its dump, another tag."""
    with Raw(place / "session") as raw:
        for key, data in raw.items("schemas"):
            if b"loud_module:Own" in data:
                raw.change_schema(int.from_bytes(key, "big"), lambda body: [tag, *body[1:]])
    dump = place / "dump.jsonl"
    text = dump.read_text()
    assert "loud_module:Own" in text
    dump.write_text(text.replace("loud_module:Own", tag))


TRAPS: dict[str, Callable[[Path], object]] = {
    "import": lambda place: __import__("this"),
    "compile": lambda place: compile("1", "x", "eval"),
    "exec": lambda place: exec("pass"),
    "eval": lambda place: eval("1"),
    "pickle": lambda place: pickle.loads(pickle.dumps(Path)),
    "system": lambda place: os.system("true"),
    "subprocess": lambda place: subprocess.run(["true"], check=True),
    "socket": lambda place: socket.socket(),
    "address": lambda place: socket.getaddrinfo("localhost", 1),
    "open": lambda place: (place / "new").write_text(""),
    "append": lambda place: os.open(place / "there", os.O_WRONLY | os.O_APPEND),
    "rename": lambda place: (place / "there").rename(place / "allowed" / "x"),
    "rename out": lambda place: (place / "allowed" / "there").rename(place / "x"),
    "remove": lambda place: (place / "there").unlink(),
    "mkdir": lambda place: (place / "new").mkdir(),
    "symlink": lambda place: (place / "new").symlink_to("x"),
    "link": lambda place: (place / "new").hardlink_to(place / "there"),
    "chmod": lambda place: (place / "there").chmod(0),
    "time": lambda place: os.utime(place / "there"),
    "truncate": lambda place: os.truncate(place / "there", 0),
    "by ..": lambda place: (place / "allowed" / ".." / "new").write_text(""),
}


@needs_kit
def test_the_hook_ends_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(os.fspath(KIT))
    from hostile_watch import forbid_side_effects

    (tmp_path / "allowed").mkdir()
    for place in (tmp_path, tmp_path / "allowed"):
        (place / "there").write_text("")

    def trapped(trap: Callable[[Path], object]) -> None:
        forbid_side_effects((tmp_path / "allowed",))
        (tmp_path / "allowed" / "new").write_text("")
        trap(tmp_path)

    passed = []
    for name, trap in TRAPS.items():
        try:
            in_child(trapped, trap)
            passed.append(name)
        except Died as died:
            if died.status != 99:
                passed.append(f"{name}: {died}")
    assert passed == []
    in_child(trapped, lambda place: None)
