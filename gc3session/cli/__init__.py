"""The command `gc3session`: a module for each of its commands.

program.py has the group of commands, and what becomes of errors.  The commands share console.py
(opening a session, text that is safe to show, error lines), table.py, fields_text.py (values as
text), json_input.py, line_input.py and interrupts.py.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Run the command line of this process and return its exit status.

    0: done; 1: some of it failed; 2: wrong usage, or the session can't be opened; 130 and the
    like: 128 + the number of the signal that ended it.
    """
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"gc3session: the command line needs {' and '.join(missing)}: pip install 'gc3session[cli]'",
            file=sys.stderr,
        )
        return 2
    from .guard import guarded

    return guarded(_run)


def _run() -> int:
    from .program import run

    return run(sys.argv[1:])
