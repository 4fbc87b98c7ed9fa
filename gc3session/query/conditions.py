"""Conditions on the fields of tasks: `returncode != 0`, `extra.runtimeInSeconds > 30`.

The value in the text of a condition is read as the type that the field holds: `17` is a number if the
field holds a number, and a text if it holds a text. A task that lacks the field, or whose value can't be
compared, doesn't fit; that is never an error.
"""

from __future__ import annotations

import enum
import numbers
import operator
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import attrs

from ..errors import InvalidArgument
from ..records.unbuilt import UnknownMember, built
from ..records.values import Opaque
from ..store.record_view import StoredReference
from ..tasks import Persistable
from .field_path import MISSING, PATTERN, FieldPath, Root
from .times import duration, moment

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS: Final = (*_COMPARE, "~", "!~", "in", "not in", "has", "lacks")

_QUOTED: Final = r""""[^"]*"|'[^']*'"""
_CONDITION: Final = re.compile(
    rf"\s*(?P<path>{PATTERN})(?:\s*(?P<sign>!=|<=|>=|==|!~|[=<>~])|\s+(?P<word>not\s+in|in|has|lacks)(?=\s))"
    r"\s*(?P<value>.*?)\s*",
    re.DOTALL,
)
_ITEM: Final = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*(?:,|$)")


def _path(path: FieldPath | str) -> FieldPath:
    return FieldPath.parse(path) if isinstance(path, str) else path


def _sign(sign: str) -> str:
    return "=" if sign == "==" else sign


@attrs.frozen
class Condition:
    """A condition on a field of a task, as `Session.select(where=...)` takes it.

    Attributes:
        path: the path of the field, such as 'extra.node'; a str is parsed.
        operator: one of

            - `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=`;
            - `~`, `!~`: a regular expression is found in the text there, or isn't;
            - `in`, `not in`: the value there equals one of several values, or none of them;
            - `has`, `lacks`: the value is an item of the list, tuple or set there, a key of the
              dict, or a part of the text; or it isn't.
        value: what it is compared with; for `in` and `not in` a list, tuple or set of values.

    Numbers are compared with numbers, texts with texts, and so on; only None is compared with
    anything, by `=` and `!=`. An enum member is compared as its name, and a path, a UUID and the ID
    of a reference as text.

    Raise InvalidArgument for an unknown operator, a path that can't be parsed, or a value that
    doesn't go with the operator.

    >>> from gc3session import Task
    >>> task = Task(returncode=3, extra={'node': 'n042', 'seconds': 31.5})
    >>> Condition('returncode', '>', 2).fits(task)
    True
    >>> [Condition.parse(text).fits(task) for text in ('extra.node ~ ^n0', 'extra.seconds < 30')]
    [True, False]
    """

    path: FieldPath = attrs.field(converter=_path)
    operator: str = attrs.field(converter=_sign)
    value: Any
    _test: Callable[[Any], bool] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_test", self._compiled())

    def _compiled(self) -> Callable[[Any], bool]:
        sign, value = self.operator, self.value
        if sign not in OPERATORS:
            raise InvalidArgument(f"{sign!r} is no operator of conditions; they are {', '.join(OPERATORS)}")
        if sign in ("in", "not in"):
            if not isinstance(value, (list, tuple, set, frozenset)):
                raise InvalidArgument(f"`{sign}` takes a list, tuple or set of values, not {value!r}")
            several = [_value(item) for item in value]
            return lambda found: _among(found, several, negative=sign == "not in")
        if sign in ("~", "!~"):
            expression = pattern(value)
            return lambda found: _matches(found, expression, negative=sign == "!~")
        one = _value(value)
        if sign in ("has", "lacks"):
            return lambda found: _holds(found, one, negative=sign == "lacks")
        compare = _COMPARE[sign]
        return lambda found: _compared(compare, found, one)

    def fits(self, task: Root) -> bool:
        """Return whether a task, or a `StoredTask`, fulfils the condition."""
        found = self.path.of(task)
        if found is MISSING:
            return False
        try:
            return self._test(found)
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            return False  # what can't be compared: a naive time with an aware one, a signalling NaN, an array

    def states(self) -> frozenset[str] | None:
        """Return the states that a task must be in to fit; None if a task in any state may fit."""
        if self.path.parts not in ((("state", False),), (("STATE", False),)) or self.operator not in ("=", "in"):
            return None
        several = self.value if self.operator == "in" else [self.value]
        return frozenset(text for kind, text in map(comparable, several) if kind == "text")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition of a text `FIELD OPERATOR VALUE`. Raise InvalidArgument if it isn't one.

        The value is read as what the field holds: a number, true or false, null, a time such as
        '2026-11-24 18:30' or '2 hours ago', a time span such as 90s, or a text; in quotes it is
        always a text. The values of `in` are separated by commas.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise InvalidArgument(
                f"{text!r} is no condition: write FIELD OPERATOR VALUE, such as 'extra.runtimeInSeconds > 30';"
                f" the operators are {' '.join(OPERATORS)}"
            )
        path, given = FieldPath.parse(match["path"]), match["value"]
        sign = match["sign"] or " ".join(match["word"].split())
        if not given:
            raise InvalidArgument(f"{text!r}: there is no value after {sign!r}; an empty text is written ''")
        if sign in ("in", "not in"):
            return cls(path, sign, tuple(_items(given)))
        return cls(path, sign, _unquoted(given) if sign in ("~", "!~") else _literal(given))


class Literal(str):
    """A value as written in the text of a condition; it is read as what the field holds."""

    __slots__ = ()


def _literal(text: str) -> str:
    return _unquoted(text) if re.fullmatch(_QUOTED, text) else Literal(text)


def _unquoted(text: str) -> str:
    return text[1:-1] if re.fullmatch(_QUOTED, text) else text


def _items(text: str) -> Iterator[str]:
    place = 0
    while place <= len(text):
        item = _ITEM.match(text, place)
        if item is None or not item[1]:
            raise InvalidArgument(f"{text!r} are no values between commas, such as NEW,RUNNING or 'a b','c, d'")
        yield _literal(item[1])
        place = item.end() if item[0].endswith(",") else len(text) + 1


def pattern(value: Any) -> re.Pattern[str]:
    """Return a regular expression, which may be compiled already. Raise InvalidArgument if it isn't one."""
    try:
        return re.compile(value)
    except (re.error, TypeError) as error:
        raise InvalidArgument(f"{value!r} is not a regular expression: {error}") from error


# -- comparing ----------------------------------------------------------------

_Kind = str
_NUMBER: Final = "number"


def comparable(value: Any) -> tuple[_Kind, Any]:
    """Return the kind of a value, and the value to compare in its stead."""
    cls = type(value)
    if cls is Opaque:
        value = built(value)
        cls = type(value)
    kind = _KINDS.get(cls)
    if kind is not None:
        return kind, value
    if isinstance(value, (Persistable, StoredReference)):
        return "text", value.persistent_id
    if isinstance(value, (PurePath, UUID)):
        return "text", str(value)
    if cls is UnknownMember:
        return ("text" if type(value.value) is str else _NUMBER), value.value
    if isinstance(value, enum.Flag):
        return _NUMBER, value.value
    if isinstance(value, enum.Enum):
        return "text", value.name
    if isinstance(value, str):
        return "text", str(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.bool_):
        return "bool", bool(value)
    if isinstance(value, numbers.Real):
        return _NUMBER, value
    return "other", value


_KINDS: Final[dict[type, _Kind]] = {
    type(None): "null",
    bool: "bool",
    int: _NUMBER,
    float: _NUMBER,
    Decimal: _NUMBER,
    Fraction: _NUMBER,
    str: "text",
    bytes: "bytes",
    complex: "complex",
    datetime: "datetime",
    date: "date",
    time: "time",
    timedelta: "timedelta",
}


class _Exactly:
    """A value that is compared as it is."""

    def __init__(self, value: Any) -> None:
        self.kind, self.value = comparable(value)

    def like(self, kind: _Kind, found: Any) -> Any:
        """Return the value to compare *found* with, or MISSING if they are of different kinds."""
        if kind == "null" or self.kind == "null":
            return self.value
        if kind != self.kind or (kind == "other" and type(found) is not type(self.value)):
            return MISSING
        return self.value


class _AsRead:
    """A text that is read as a value of the kind that it is compared with."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._now = datetime.now(UTC)
        self._values: dict[Any, Any] = {}

    def like(self, kind: _Kind, found: Any) -> Any:
        """Return the value to compare *found* with, or MISSING if the text isn't one of that kind."""
        if self._text == "null" and kind != "text":
            return None
        key = kind, type(found) if kind == _NUMBER else kind == "datetime" and found.tzinfo is None
        if key not in self._values:
            try:
                self._values[key] = self._as(kind, found)
            except (ValueError, ArithmeticError, OSError):
                self._values[key] = MISSING
        return self._values[key]

    def _as(self, kind: _Kind, found: Any) -> Any:
        text = self._text
        if kind == "text":
            return text
        if kind == _NUMBER:
            return _number(text, type(found))
        if kind == "bool":
            return {"true": True, "false": False}.get(text, MISSING)
        if kind == "datetime":
            time_ = moment(text, self._now)
            if found.tzinfo is not None:
                return time_.astimezone(UTC)
            return time_ if time_.tzinfo is None else time_.astimezone().replace(tzinfo=None)
        reader = _READERS.get(kind)
        return MISSING if reader is None else reader(text)


_READERS: Final[dict[_Kind, Callable[[str], Any]]] = {
    "bytes": str.encode,
    "complex": complex,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": duration,
}


def _number(text: str, cls: type) -> Any:
    """Return the number in a text, to be compared with a number of class *cls*."""
    if cls is Decimal or cls is Fraction:
        return cls(text)
    try:
        return int(text)
    except ValueError:
        return float(text)


def _value(value: Any) -> _Exactly | _AsRead:
    return _AsRead(str(value)) if type(value) is Literal else _Exactly(value)


def _compared(compare: Callable[[Any, Any], Any], found: Any, value: _Exactly | _AsRead) -> bool:
    kind, found = comparable(found)
    other = value.like(kind, found)
    if other is MISSING:
        return False
    if other is None or found is None:
        same = other is found
        return same if compare is operator.eq else compare is operator.ne and not same
    return bool(compare(found, other))


def _equal(found: Any, value: _Exactly | _AsRead) -> bool | None:
    """Return whether two values are equal; None if they are of different kinds."""
    kind, found = comparable(found)
    other = value.like(kind, found)
    if other is MISSING:
        return None
    return other is found or bool(found == other)


def _among(found: Any, several: list[_Exactly | _AsRead], *, negative: bool) -> bool:
    equal = [same for value in several if (same := _equal(found, value)) is not None]
    return bool(equal) and any(equal) != negative


def _matches(found: Any, pattern: re.Pattern[str], *, negative: bool) -> bool:
    kind, text = comparable(found)
    return kind == "text" and (pattern.search(text) is None) == negative


def _holds(found: Any, value: _Exactly | _AsRead, *, negative: bool) -> bool:
    if type(found) in (dict, list, tuple, set, frozenset):
        return any(_equal(item, value) for item in found) != negative
    kind, text = comparable(found)
    part = value.like(kind, text) if kind == "text" else MISSING
    return type(part) is str and (part in text) != negative
