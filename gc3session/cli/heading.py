"""What a session is, above the list of its tasks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..session import Session
from .console import escaped, quantity, state_colour, time_of

if TYPE_CHECKING:
    from rich.console import Console


def write_heading(session: Session, console: Console) -> None:
    """Write what the session is and how many tasks are in which state."""
    from rich.text import Text

    counts = session.stats()
    heading = Text(escaped(session.name), "bold")
    heading.append(f"  {quantity(len(session), 'task')}", "not bold")
    separator = ": "
    for state, count in sorted(counts.items(), key=lambda item: -item[1]):
        heading.append(separator, "not bold")
        heading.append(f"{count:,} {escaped(state)}", f"not bold {state_colour(state, None) or ''}")
        separator = ", "
    console.print(heading)
    dates = [("created", session.created), ("finished", session.finished)]
    times = [f"{what} {time.isoformat(' ', 'seconds')}" for what, at in dates if (time := time_of(at))]
    console.print(Text(escaped("  ".join([os.path.abspath(session.path), *times])), "dim"), soft_wrap=True)
    console.print()
