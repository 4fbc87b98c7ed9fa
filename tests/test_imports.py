"""Imports between modules go one way, and importing the library does nothing else."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest
from children import run_python

import gc3session

PACKAGE = Path(gc3session.__file__).parent

LAYERS = ["errors", "tasks", "codec", "store", "session", "cli"]
"""Each of these may use those before it, and none of those after it."""


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules of the library that *module* imports when it runs, `cli` for all of those."""
    files = sorted((PACKAGE / module).rglob("*.py")) if (PACKAGE / module).is_dir() else [PACKAGE / f"{module}.py"]
    found: set[str] = set()
    for file in files:
        depth = len(file.relative_to(PACKAGE).parts)
        for node in _running(ast.parse(file.read_text())):
            found |= _imported(node, depth, module)
    return frozenset(found - {module})


def _running(node: ast.AST) -> list[ast.AST]:
    """Return all statements below *node* but those for type checkers only."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            found += [grandchild for other in child.orelse for grandchild in [other, *_running(other)]]
        else:
            found += [child, *_running(child)]
    return found


def _imported(node: ast.AST, depth: int, module: str) -> set[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [
            alias.name.removeprefix("gc3session.") for alias in node.names if alias.name.startswith("gc3session")
        ]
    elif isinstance(node, ast.ImportFrom):
        if node.level and node.level < depth:
            return set()  # inside a subpackage
        base = node.module or ""
        if not node.level:
            if not base.startswith("gc3session"):
                return set()
            base = base.removeprefix("gc3session").removeprefix(".")
        names = [base] if base else [alias.name for alias in node.names]
    first = [name.partition(".")[0] for name in names]
    return {name if name in modules() else "__init__" for name in first}


@functools.cache
def modules() -> list[str]:
    """Return the names of the library's modules and subpackages."""
    return sorted(
        [file.stem for file in PACKAGE.glob("*.py") if file.stem not in ("__init__", "__main__")]
        + [file.parent.name for file in PACKAGE.glob("*/__init__.py")]
    )


def reached_from(module: str) -> set[str]:
    """Return all modules that *module* imports, and those that these import, and so on."""
    reached: set[str] = set()
    ahead = set(imports_of(module))
    while ahead:
        name = ahead.pop()
        if name not in reached and name in modules():
            reached.add(name)
            ahead |= imports_of(name)
    return reached


@pytest.mark.parametrize("module", modules())
def test_no_module_imports_itself_through_others(module: str) -> None:
    assert module not in reached_from(module)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_uses_only_those_below_it(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    assert not reached_from(layer) & set(above)


@pytest.mark.parametrize("module", [name for name in modules() if name != "cli"])
def test_library_does_not_import_its_own_public_names_or_the_command_line(module: str) -> None:
    assert "__init__" not in imports_of(module)
    assert "cli" not in imports_of(module)


def test_store_and_codec_know_nothing_of_sessions_and_the_codec_nothing_of_stores() -> None:
    for module in ("store", "lmdb_store", "postgresql_store", "codec", "values", "tables"):
        assert not reached_from(module) & {"session", "mirror", "cli"}, module
    for module in ("codec", "values", "tasks"):
        assert not reached_from(module) & {"store", "lmdb_store", "tables", "index", "batch"}, module


@pytest.mark.parametrize(("package", "prefix"), [("lmdb", "lmdb_"), ("psycopg", "postgresql_")])
def test_database_is_used_in_its_own_modules_alone(package: str, prefix: str) -> None:
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        uses = any(
            (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == package for alias in node.names))
            or (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").partition(".")[0] == package
            )
            for node in ast.walk(tree)
        )
        assert not uses or file.stem.startswith(prefix), file


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
