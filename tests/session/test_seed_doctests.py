"""Every example of the documentation that the library follows (seed.txt)."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

SEED = Path(__file__).with_name("seed.txt")


def test_every_example_of_the_seed_gives_what_it_shows() -> None:
    results = doctest.testfile(os.fspath(SEED), module_relative=False, report=True)
    assert results.failed == 0
    assert results.attempted == len(re.findall(r"^>>> (?!#)", SEED.read_text(), re.MULTILINE))
