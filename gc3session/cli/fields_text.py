"""The fields of an object as lines of text: nested values indented, times local and UTC.

A short value stands on one line, as Python would write it; a longer one has a line for each item.
Characters of records that could control a terminal are always escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from .. import Opaque, Persistable, Task, TaskCollection, Unreadable
from ..records.codec import extras_of
from ..records.unbuilt import Reference, UnknownMember, UnknownObject, built
from ..tasks import Placeholder, field_names
from .console import Style, escaped, in_zone, state_colour, time_of

_INDENT: Final = "  "
_LINE_LENGTH: Final = 72  # characters of the longest value that stands on one line
_UNCOUNTED_ITEMS: Final = 10  # of a field with more items, their number is shown
_BYTES_SHOWN: Final = 256  # of a longer bytes value, the rest is left out
_BRACKETS: Final[dict[type, str]] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}", dict: "{}"}


def object_lines(obj: Persistable, style: Style) -> Iterator[str]:
    """Give the lines that show an object: its ID, its class, and each field, also those that its class lacks."""
    yield style(escaped(obj.persistent_id or ""), "bold")
    schema = extras_of(obj)[0]
    if isinstance(obj, Placeholder):
        fields = obj.fields
    else:
        fields = {name: getattr(obj, name) for name in field_names(type(obj))} | extras_of(obj)[1]
    if isinstance(obj, TaskCollection) and "tasks" in fields:
        fields["tasks"] = fields.pop("tasks")  # they come last
    names = {name: escaped(name) for name in fields}
    widest = max(len("class"), *(len(name) for name in names.values()))
    yield labelled("class", widest, escaped("" if schema is None else schema.tag), style)
    for name, value in fields.items():
        lines = list(_field_lines(obj, name, value, style))
        if len(lines) == 1:
            yield labelled(names[name], widest, lines[0], style)
        else:
            count = f"{len(value):,} items" if type(value) in _BRACKETS and len(value) > _UNCOUNTED_ITEMS else ""
            yield labelled(names[name], widest, style(count, "dim"), style).rstrip()
            yield from (_INDENT * 2 + line for line in lines)


def labelled(name: str, widest: int, text: str, style: Style) -> str:
    """Return the line of a name and the text that belongs to it; the longest name has *widest* characters."""
    return f"{_INDENT}{style(name, 'label')}{' ' * (widest - len(name) + 2)}{text}"


def _field_lines(obj: Persistable, name: str, value: Any, style: Style) -> Iterable[str]:
    if isinstance(obj, Task):
        if name == "history" and type(value) is list:
            return [_event(event, style) for event in value] or [style("(no times known)", "dim")]
        if name == "state" and type(value) is str:
            return [style(escaped(value), state_colour(value, obj.returncode))]
        if name == "tasks" and type(value) is list and value:
            return (f"- {one_line(task)}" for task in value)
    if type(value) is str and _plain(value):
        return [escaped(value)]
    return _lines(value)


def _event(event: Any, style: Style) -> str:
    try:
        seconds, state = event
    except (TypeError, ValueError):
        return one_line(event)
    time = time_of(seconds, UTC)
    if time is None or type(state) is not str:
        return one_line(event)
    return f"{time_text(time)}  {style(escaped(state), state_colour(state))}"


def time_text(time: datetime) -> str:
    """Return an aware time as local time and UTC (once, if they are the same)."""
    local, utc = in_zone(time), in_zone(time, UTC)
    if local is None or utc is None:
        return str(time)
    texts = [f"{t.replace(tzinfo=None).isoformat(' ', 'milliseconds')} {t.tzname()}" for t in (local, utc)]
    return texts[1] if texts[0] == texts[1] else f"{texts[0]} ({texts[1]})"


def _plain(text: str) -> bool:
    """Return whether *text* is not mistaken for another value when it stands without quotes."""
    if not text or text != text.strip() or "\n" in text or text[0] in "[](){}<>'\"":
        return False
    if text in ("None", "True", "False"):
        return False
    with suppress(ValueError):
        complex(text)
        return False
    return True


# -- values -------------------------------------------------------------------


_Part = tuple[str, str, Any]
"""The beginning of the first line, that of the others, and a value."""


def _lines(value: Any) -> Iterator[str]:
    """Give the lines that show any value; without recursion, as a record may be nested to any depth."""
    above: list[Iterator[str | _Part]] = [iter([("", "", value)])]
    while above:
        part = next(above[-1], None)
        if part is None:
            above.pop()
        elif isinstance(part, str):
            yield part
        else:
            first, others, value = part
            short = _short(value)
            if short is None:
                above.append(_parts(first, others, built(value)))
            else:
                yield first + short


def _parts(first: str, others: str, value: Any) -> Iterator[str | _Part]:
    """Give the lines, and the values inside, of a value that is too long for one line."""
    cls = type(value)
    if cls is dict:
        for key, item in value.items():
            short, is_bare = (
                _short(item),
                type(key) is str and key.isprintable() and _plain(key) and ":" not in key,
            )
            yield f"{first}{key if is_bare else one_line(key)}: {short or ''}".rstrip(" ")
            if short is None:
                yield others + _INDENT, others + _INDENT, item
            first = others
    elif cls is UnknownObject:
        yield f"{first}<{escaped(value.tag)}>"
        yield others + _INDENT, others + _INDENT, value.fields
    elif cls in _BRACKETS:
        if cls is not list:
            yield f"{first}{cls.__name__} of {len(value):,}"
            first = others
        for item in value:
            yield f"{first}- ", f"{others}{_INDENT}", item
            first = others
    elif cls is str and "\n" not in value:
        yield first + repr(value)
    else:
        bar, text = ("| ", value) if cls is str else ("", _atom(value))
        for line in text.split("\n"):
            yield f"{first}{bar}{escaped(line)}"
            first = others


def one_line(value: Any) -> str:
    """Return a value as one line of text."""
    return "".join(_pieces(value)).replace("\n", " ")  # NumPy writes an array in lines


def _short(value: Any) -> str | None:
    """Return the text of a value, or None if it is too long for one line."""
    text = ""
    value = built(value)
    if type(value) is str and "\n" in value.strip():
        return None
    for piece in _pieces(value):
        text += piece
        if len(text) > _LINE_LENGTH and type(value) in (*_BRACKETS, UnknownObject, str):
            return None
    return text if "\n" not in text else None


def _pieces(value: Any) -> Iterator[str]:
    """Give the parts of a value on one line."""
    value = built(value)
    cls = type(value)
    if cls is UnknownObject:
        yield f"<{escaped(value.tag)}>"
        value, cls = value.fields, dict
    if cls not in _BRACKETS:
        yield _atom(value)
        return
    if not value and cls in (set, frozenset):
        yield f"{cls.__name__}()"
        return
    yield _BRACKETS[cls][0]
    separator = ""
    for item in value:
        yield separator
        yield from _pieces(item)
        if cls is dict:
            yield ": "
            yield from _pieces(value[item])
        separator = ", "
    yield ",)" if cls is tuple and len(value) == 1 else _BRACKETS[cls][1]


def _atom(value: Any) -> str:
    """Return the text of a value that isn't a container."""
    if type(value) is int:
        try:
            return str(value)
        except ValueError:  # Python writes no more than some 4,300 digits
            return hex(value)
    if type(value) is bytes and len(value) > _BYTES_SHOWN:
        return f"{value[:_BYTES_SHOWN]!r} and so on: {len(value):,} bytes"
    if type(value) is datetime:
        return time_text(value) if value.tzinfo is not None else f"{value} (no time zone)"
    if isinstance(value, Unreadable):
        return f"<{escaped(value.persistent_id or '')} unreadable: {escaped(value.reason)}>"
    if isinstance(value, Persistable):
        parts = [value.persistent_id, getattr(value, "jobname", None), getattr(value, "state", None)]
        return f"<{' '.join(escaped(part) for part in parts if part and isinstance(part, str))}>"
    if type(value) is Reference:
        return f"<record {value.number}>"
    if type(value) is UnknownMember:
        return f"<{escaped(value.tag)}.{escaped(str(value.value))}>"
    if type(value) is Opaque:
        return f"<{len(value.data):,} bytes of extension {value.code}: {escaped(value.why)}>"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        shape = " x ".join(str(n) for n in value.shape) or "()"
        return "\n".join([f"{escaped(str(value.dtype))} array, {shape}", *map(escaped, str(value).split("\n"))])
    try:
        return escaped(repr(value))
    except ValueError:  # a Fraction of too many digits
        return f"<{type(value).__name__} of too many digits to show>"
