"""Timestamps and durations: RFC 3339 text and CEL's duration text, in both directions, and their parts.

Resolution is a microsecond. There is no `now()`: an evaluation may be repeated and must give the same again.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from services.kit.cel.errors import Failure
from services.kit.cel.evaluation import Frame
from services.kit.cel.values import type_name

_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})(ms|us|µs|ns|h|m|s)")
_MICROSECONDS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1, "µs": 1, "ns": 0.001}
_OFFSET = re.compile(r"([+-])([01][0-9]|2[0-3]):([0-5][0-9])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 64


def timestamp(_frame: Frame, value: Any) -> datetime:
    """RFC 3339 text, or seconds since 1970 as an int, to a timestamp."""
    if type(value) is datetime and value.tzinfo is not None:
        return value
    try:
        if type(value) is int:
            return _EPOCH + timedelta(seconds=value)
        if type(value) is str and len(value) <= _LONGEST and _TIMESTAMP.fullmatch(value):
            return datetime.fromisoformat(value.upper())
    except (ValueError, OverflowError):
        pass  # A day or hour that does not exist, or a year that datetime does not reach.
    if type(value) is str:
        raise Failure("the text is no timestamp; one is written 2026-05-04T10:00:00Z, or with an offset such as +02:00")
    raise Failure(lambda: f"`timestamp` needs text such as 2026-05-04T10:00:00Z, this is {_shown(value)}")


def duration(frame: Frame, value: Any) -> timedelta:
    """Text such as `1h30m`, `90s`, `-1.5h`, `250ms` to a duration."""
    if type(value) is timedelta:
        return value
    if type(value) is not str:
        raise Failure(lambda: f"`duration` needs text such as 1h30m, this is {_shown(value)}")
    text = value[1:] if value[:1] in {"-", "+"} else value
    frame.charge(4 * min(len(text), _LONGEST))
    microseconds, position = 0.0, 0
    while position < len(text) <= _LONGEST and (part := _DURATION_PART.match(text, position)):
        microseconds += float(part[1]) * _MICROSECONDS[part[2]]
        position = part.end()
    if not text or position < len(text):
        raise Failure("the text is no duration; one is written 90s, 1h30m, 250ms")
    try:
        return timedelta(microseconds=round(-microseconds if value[0] == "-" else microseconds))
    except OverflowError:
        raise Failure("the duration is too long") from None


def text_of_timestamp(value: datetime) -> str:
    """RFC 3339, with `Z` for UTC."""
    text = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def seconds_of(value: timedelta) -> int | float:
    """Seconds, whole ones as an int."""
    seconds = value.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


def text_of_duration(value: timedelta) -> str:
    """Seconds with an `s`, which `duration` reads again."""
    return f"{seconds_of(value)}s"


def unix_seconds(value: datetime) -> int:
    """Whole seconds since 1970, rounded down."""
    return (value - _EPOCH) // timedelta(seconds=1)


def _shown(value: Any) -> str:
    return "a time without an offset" if type(value) is datetime else type_name(value)


def _local(name: str, value: Any, offset: Any) -> datetime:
    if type(value) is not datetime or value.tzinfo is None:
        raise Failure(lambda: f"`{name}` needs a timestamp, this is {type_name(value)}; convert with `timestamp(x)`")
    try:
        return value.astimezone(_zone(name, offset))
    except (OverflowError, ValueError):
        raise Failure("the time is outside the years 1 to 9999") from None


def _zone(name: str, offset: Any) -> timezone:
    if offset in (None, "UTC", "Z"):
        return UTC
    found = _OFFSET.fullmatch(offset) if type(offset) is str else None
    if found is None:
        raise Failure(f'`{name}` takes an offset such as "+02:00" or "UTC"; zones by name change with the season')
    delta = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-delta if found[1] == "-" else delta)


def _part(name: str, read: Callable[[datetime], int]) -> Callable[..., int]:
    def part(_frame: Frame, value: Any, offset: Any = None) -> int:
        return read(_local(name, value, offset))

    return part


def _part_or_total(name: str, read: Callable[[datetime], int], unit: timedelta) -> Callable[..., int]:
    """Of a timestamp the part of the day, of a duration the whole number of units in it (towards zero)."""

    def part(_frame: Frame, value: Any, offset: Any = None) -> int:
        if type(value) is timedelta:
            return -(-value // unit) if value < timedelta() else value // unit
        return read(_local(name, value, offset))

    return part


# Counted as CEL counts: months, days of the month and of the year from 0, days of the week from Sunday = 0, `getDate`
# from 1.
PARTS: dict[str, Callable[..., int]] = {
    "getFullYear": _part("getFullYear", lambda at: at.year),
    "getMonth": _part("getMonth", lambda at: at.month - 1),
    "getDate": _part("getDate", lambda at: at.day),
    "getDayOfMonth": _part("getDayOfMonth", lambda at: at.day - 1),
    "getDayOfWeek": _part("getDayOfWeek", lambda at: at.isoweekday() % 7),
    "getDayOfYear": _part("getDayOfYear", lambda at: at.timetuple().tm_yday - 1),
    "getHours": _part_or_total("getHours", lambda at: at.hour, timedelta(hours=1)),
    "getMinutes": _part_or_total("getMinutes", lambda at: at.minute, timedelta(minutes=1)),
    "getSeconds": _part_or_total("getSeconds", lambda at: at.second, timedelta(seconds=1)),
    "getMilliseconds": _part("getMilliseconds", lambda at: at.microsecond // 1000),
}
