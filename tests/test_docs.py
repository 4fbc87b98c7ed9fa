"""The examples in the README and in the docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import gc3session
from gc3session import Error

ROOT = Path(gc3session.__file__).parent.parent
README = ROOT / "README.md"

MODULES = sorted(module.name for module in pkgutil.walk_packages(gc3session.__path__, "gc3session."))


def library_modules() -> list[str]:
    """Return the modules that need no more than the library's own dependencies."""
    return [name for name in MODULES if not name.startswith(("gc3session.cli", "gc3session.__main__"))]


def run_examples(text: str, name: str) -> int:
    """Run the examples in *text*; return how many there are."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, name, 0)
    results = runner.run(test)
    assert results.failed == 0, f"{results.failed} examples of {name} show something else than they do"
    return results.attempted


@pytest.mark.skipif(not README.exists(), reason="there is no README.md beside the package")
def test_examples_of_the_readme_give_what_they_show() -> None:
    # The fences would be taken for output.
    text = "\n".join("" if line.startswith("```") else line for line in README.read_text().splitlines())
    assert run_examples(text, "README.md") > 0


@pytest.mark.parametrize("name", library_modules())
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if test.examples:
            results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert results.failed == 0, test.name


def public_things() -> list[tuple[str, object]]:
    return [(name, getattr(gc3session, name)) for name in gc3session.__all__]


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(gc3session.__all__)) == len(gc3session.__all__)
    for name, thing in public_things():
        assert not name.startswith("_")
        if isinstance(thing, (type, ModuleType)) or callable(thing):
            assert inspect.getdoc(thing), name


def test_every_public_method_is_documented() -> None:
    for name, thing in public_things():
        if isinstance(thing, type):
            for method_name, method in vars(thing).items():
                if not method_name.startswith("_") and inspect.isfunction(method):
                    assert inspect.getdoc(method) or inspect.getdoc(getattr(thing, method_name)), (
                        f"{name}.{method_name}"
                    )


def test_public_names_are_those_of_the_contract() -> None:
    names = """Session TemporarySession Store make_store register Persistable Task TaskCollection State Event GenericTask
        GenericCollection GenericPersistable Unreadable Opaque Error InvalidArgument NotASession DamagedSession
        CorruptStore LoadError NotFound ConflictError StoreFull NotInSession ReadOnlyError UnstorableValue
        MirrorWarning""".split()
    assert set(names) <= set(gc3session.__all__)


def test_every_exception_is_public_and_derives_from_the_one_base() -> None:
    errors = importlib.import_module("gc3session.errors")
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and thing.__module__ == errors.__name__:
            assert getattr(gc3session, name) is thing
            assert issubclass(thing, (Error, Warning))
