"""Text that is safe to show, wherever it comes from."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Return *text* with each character that could control a terminal written as Python does."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
