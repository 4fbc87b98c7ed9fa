"""Options and fixtures of all suites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import hypothesis.configuration
import pytest
from consistency import check

from gc3session import Session


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms: more examples, more kills")


def pytest_configure(config: pytest.Config) -> None:
    # No deadline: how long an example takes says nothing about whether it is right.
    options = {"deadline": None, "print_blob": True}
    hypothesis.settings.register_profile("default", max_examples=100, stateful_step_count=30, **options)
    hypothesis.settings.register_profile("long", max_examples=3000, stateful_step_count=80, **options)
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "default")
    cache = getattr(config, "cache", None)
    if cache is not None:  # not `.hypothesis` in whatever directory the tests are started from
        hypothesis.configuration.set_hypothesis_home_dir(cache.mkdir("hypothesis"))


@pytest.fixture(scope="session")
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms are asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(autouse=True)
def nothing_left_in_cwd(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run each test in an empty directory, which must be empty again after it."""
    here = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(here)
    yield
    assert os.listdir(here) == [], "the test left files in the current directory"


@pytest.fixture
def make_session(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """A function that opens a session in *tmp_path*; its directory and store are checked after the test."""
    made: list[Session] = []

    def make(name: str = "session", **options: object) -> Session:
        made.append(Session(tmp_path / name, **options))
        return made[-1]

    yield make
    for session in made:
        session.close()
    for path in {os.fspath(session.path) for session in made}:
        if os.path.exists(path):
            check(path)


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """A new session."""
    return make_session()
