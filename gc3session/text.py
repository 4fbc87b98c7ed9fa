"""Text that is safe to show, wherever it comes from."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def escaped(text: str) -> str:
    """Return *text* with each character that could control a terminal escaped as in a literal of Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_text(size: int) -> str:
    """Return a number of bytes as text, such as '174.3 MiB' or '17 bytes'."""
    if size < 1024:
        return f"{size} byte{'' if size == 1 else 's'}"
    amount, unit = size / 1024, 0
    while amount >= 1023.95 and unit < len(_UNITS) - 1:  # which would be shown as 1,024.0
        amount, unit = amount / 1024, unit + 1
    return f"{amount:,.1f} {_UNITS[unit]}"
