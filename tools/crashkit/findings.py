"""What is wrong with a session, as its own check sees it."""

from __future__ import annotations

from pathlib import Path

from gc3session import check_session

_MADE_LAST = ("directory", "mirror")
"""Kinds of findings that there may be while processes are killed: the session is being made, or its mirror is stale."""


def findings(path: Path) -> list[str]:
    """Return what `check_session` finds in a session that nobody is writing to."""
    return [f"check finds {finding}" for finding in check_session(path)]


def findings_meanwhile(path: Path) -> list[str]:
    """Return what `check_session` finds in a session whose writers are at work, or killed."""
    return [f"check finds {finding}" for finding in check_session(path) if finding.kind not in _MADE_LAST]
