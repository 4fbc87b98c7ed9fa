"""The command `gc3session`.

guard.py runs the command line in a child process, program.py finds the command and turns its errors
into a line and an exit status, and `commands/` has the commands: a file for each, or for two that do
the same but for the end (`list` and `select`, `remove` and `forget`). All commands open sessions, write
messages and choose colours through console.py; interrupts.py says when Ctrl-C may end one, and
progress_bar.py shows how far it has come. input.py reads what a user gives: lines, IDs, JSON and
answers. filters.py has the options that choose tasks, and completion.py what a shell offers for them.
order.py and table.py are the order and the drawing of what is listed; fields_text.py shows an
object's fields as text.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Run the command line of this process and return its exit status.

    0: done; 1: some of it failed; 2: wrong usage, or the session can't be opened; 130 and the
    like: 128 + the number of the signal that ended it.
    """
    if find_spec("click") is None:
        print("gc3session: the command line needs click: pip install 'gc3session[cli]'", file=sys.stderr)
        return 2
    from .guard import guarded

    return guarded(_run)


def _run() -> int:
    from .program import run

    return run(sys.argv[1:])
