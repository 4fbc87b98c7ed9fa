"""What a record or a directory says never imports anything, and never leads out of the session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from children import run_python
from examples import Simulation

from gc3session import DamagedSession, MirrorWarning, Session, Task

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
    prepare = session._mirror.prepare

    def prepare_and_plant(*args: object) -> object:
        mark = prepare(*args)
        os.unlink(session._mirror.path)
        os.symlink(victim, session._mirror.path)
        return mark

    with monkeypatch.context() as patched:
        patched.setattr(session._mirror, "prepare", prepare_and_plant)
        with pytest.warns(MirrorWarning, match="could not be written"):
            session.add(Task())
    assert victim.read_text() == "precious"
    with pytest.warns(MirrorWarning):
        session.add(Task())
    assert victim.read_text() == "precious"
    assert len(session) == 3
