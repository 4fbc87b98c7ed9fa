"""Times as people write them: '2026-11-24 18:30', 'yesterday', '2 hours ago', '90m'."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from ..errors import InvalidArgument

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART: Final = (
    r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?|d(?:ays?)?|w(?:eeks?)?)(?![a-z])\s*"
)


def duration(text: str) -> timedelta:
    """Return the time span that a text such as '90s', '1h30m' or '2 days' means. Raise InvalidArgument if it is none."""
    rest = text.strip().lower()
    if not re.fullmatch(f"(?:{_PART})+", rest):
        raise InvalidArgument(f"{text!r} is not a time span such as 90s, 1h30m or '2 days' (s, m, h, d, w)")
    try:
        return timedelta(
            seconds=sum(float(number) * _SECONDS[unit[0]] for number, unit in re.findall(_PART, rest))
        )
    except OverflowError as error:
        raise InvalidArgument(f"{text!r} is too long for a time span") from error


def moment(text: str, now: datetime | None = None) -> datetime:
    """Return the time that a text means: naive, which is local time, for a date without a zone, today and yesterday.

    Args:
        text: a date, or a date and time, in ISO 8601; 'now'; 'today' or 'yesterday', which mean the
            beginning of the day; or a time span before now, with or without 'ago'.
        now: the time that counts as now; the present if it is None.

    Raise InvalidArgument if it is none of these.
    """
    now = now or datetime.now(UTC)
    word = text.strip().lower()
    if word == "now":
        return now
    if word in ("today", "yesterday"):
        day = now.astimezone().replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        return day - timedelta(days=word == "yesterday")
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        pass
    try:
        return now - duration(word.removesuffix("ago"))
    except (InvalidArgument, OverflowError) as error:
        raise InvalidArgument(
            f"{text!r} is no time: write it as 2026-11-24, '2026-11-24 18:30', 2026-11-24T18:30:00+01:00, today,"
            " yesterday, 2h or '2 hours ago'"
        ) from error


def aware(time: datetime | timedelta | str, now: datetime | None = None) -> datetime:
    """Return a time in UTC: a naive datetime is local time, a timedelta or time span is that long ago.

    Raise InvalidArgument if it isn't a time, or is too near to the end of the calendar.
    """
    if isinstance(time, timedelta):
        time = (now or datetime.now(UTC)) - time
    elif not isinstance(time, datetime):
        if not isinstance(time, str):
            raise InvalidArgument(
                f"a time is a datetime, a timedelta or a text such as '2 hours ago', not {time!r}"
            )
        time = moment(time, now)
    try:
        return time.astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:  # at the ends of the calendar
        raise InvalidArgument(f"{time} has no time in UTC: it is at the end of the calendar") from error
