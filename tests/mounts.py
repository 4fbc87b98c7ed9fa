"""Small filesystems in memory, which only root can mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(place: Path, options: str) -> None:
    """Mount a filesystem at *place*, which is made, or skip the test where that can't be done."""
    place.mkdir()
    _mount("-t", "tmpfs", "-o", options, "gc3session-test", str(place))


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("NOT RUN: a filesystem of its own can be mounted by root alone")


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def bound(directory: Path, place: Path) -> Iterator[Path]:
    """Have a directory mounted at *place*, too, within `with`, or skip the test where that can't be done."""
    _mount("--bind", str(directory), str(place))
    try:
        yield place
    finally:
        unmount(place)
