"""Imports between modules go one way, and importing the library does nothing else."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

import gc3session
from children import run_python

PACKAGE = Path(gc3session.__file__).parent

ORDER = (
    ("text",),
    ("errors",),
    ("system",),
    ("format",),
    ("tables",),
    ("directory",),
    ("tasks",),
    ("records",),
    ("workflow",),
    ("index",),
    ("store",),
    ("query",),
    ("snapshots",),
    ("upkeep",),
    ("session",),
    ("transfer",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
"""The first level of the package: each may use those before it, and none of those after it."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return the files of the library by the names of their modules, as `store.loader`."""
    files = {file.relative_to(PACKAGE).with_suffix("").parts: file for file in PACKAGE.rglob("*.py")}
    return {".".join(parts): file for parts, file in files.items()}


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules of the library that *module* imports, for type checkers only or when it runs."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {_module(alias.name.split(".")[1:]) for alias in node.names if is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and (node.level or is_ours(node.module or "")):
            parts = (node.module or "").split(".") if node.module else []
            base = module.split(".")[: -node.level] + parts if node.level else parts[1:]
            found |= {_module([*base, alias.name]) for alias in node.names}
    return frozenset(found - {module})


def is_ours(name: str) -> bool:
    """Return whether a module of that name is one of the library."""
    return name.partition(".")[0] == "gc3session"


def _module(parts: list[str]) -> str:
    """Return the module that the dotted name names, or that a name in it is imported from."""
    while parts and ".".join(parts) not in modules():
        if ".".join([*parts, "__init__"]) in modules():
            return ".".join([*parts, "__init__"])
        parts = parts[:-1]
    return ".".join(parts) or "__init__"


def imports() -> list[tuple[str, str]]:
    """Return all imports of a module of the library by another one."""
    return [(a, b) for a in sorted(modules()) for b in sorted(imports_of(a))]


def position(module: str) -> int:
    """Return where in ORDER a module stands."""
    return next(n for n, names in enumerate(ORDER) if module.partition(".")[0] in names)


def test_the_first_level_is_that_of_the_plan() -> None:
    there = {entry.name.removesuffix(".py") for entry in PACKAGE.iterdir()} - {
        "__pycache__",
        "py.typed",
        "README.md",
    }
    assert there == {name for names in ORDER for name in names}
    assert len(list(PACKAGE.iterdir())) - 2 <= 22


def test_imports_go_down() -> None:
    assert [(a, b) for a, b in imports() if position(b) > position(a)] == []


def test_no_module_imports_itself_through_others() -> None:
    arrows = set(imports())
    while ends := {a for a, _ in arrows} ^ {b for _, b in arrows}:  # what imports nothing, or nothing imports it
        arrows = {(a, b) for a, b in arrows if a not in ends and b not in ends}
    assert arrows == set()


@pytest.mark.parametrize(("package", "room"), [("lmdb", "tables.lmdb."), ("psycopg", "tables.postgresql.")])
def test_database_is_used_in_its_own_room_alone(package: str, room: str) -> None:
    for module, file in modules().items():
        tree = ast.parse(file.read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        names += [node.module or "" for node in froms]
        assert package not in {name.partition(".")[0] for name in names} or module.startswith(room), file


def test_importing_takes_only_lmdb_msgpack_attrs_and_the_standard_library() -> None:
    script = """
        import sys
        before = set(sys.modules)
        import gc3session
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """
    imported = set(run_python(script).split())
    others = {
        name
        for name in imported
        if name not in sys.stdlib_module_names and name.lstrip("_") not in sys.stdlib_module_names
    }
    others = {name for name in others if not name.startswith(("_sysconfigdata", "cython_runtime", "_cython_"))}
    assert others <= {"gc3session", "lmdb", "lmdb_cpython", "msgpack", "attr", "attrs"}
    assert {"gc3session", "lmdb", "msgpack"} <= others


def test_importing_opens_no_socket_writes_no_file_and_starts_no_thread_or_process() -> None:
    script = """
        import sys
        done = []
        def hook(event, args):
            if event.startswith(("socket.", "subprocess.", "os.fork", "os.system", "os.exec", "os.mkdir", "os.remove",
                                 "os.rename", "_thread.start", "signal.")):
                done.append((event, args))
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                done.append((event, args))
        sys.addaudithook(hook)
        import gc3session
        import threading
        assert not done, done
        assert threading.active_count() == 1
    """
    run_python(script, env={"PYTHONDONTWRITEBYTECODE": "1"})


def test_importing_changes_no_setting_of_the_process() -> None:
    script = """
        import decimal, faulthandler, gc, locale, logging, os, resource, signal, sys, warnings
        def settings():
            return (
                sys.getrecursionlimit(), gc.get_threshold(), gc.isenabled(), dict(os.environ), os.getcwd(),
                {s: signal.getsignal(s) for s in signal.valid_signals()}, locale.setlocale(locale.LC_ALL),
                logging.root.handlers[:], logging.root.level, warnings.filters[:], sys.path[:], sys.excepthook,
                resource.getrlimit(resource.RLIMIT_AS), repr(decimal.getcontext()), faulthandler.is_enabled(),
            )
        before = settings()
        import gc3session
        assert settings() == before
    """
    run_python(script)


def test_the_package_has_types() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_package_shows_its_public_names_and_no_others() -> None:
    script = """
        import gc3session
        print(*dir(gc3session))
        for name in dir(gc3session):
            getattr(gc3session, name)
        print(*dir(gc3session))
    """
    first, second = run_python(script).splitlines()
    assert first == second == " ".join(sorted([*gc3session.__all__, "__version__"]))
