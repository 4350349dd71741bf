"""From one type to another, and to and from JSON text."""

import math
import re
from datetime import datetime, timedelta
from typing import Any

import orjson

from services.kit.cel.arguments import as_text
from services.kit.cel.errors import Failure, Refusal
from services.kit.cel.evaluation import Frame
from services.kit.cel.numbers import in_range
from services.kit.cel.parser import INT_MAX, INT_MIN
from services.kit.cel.results import Allowance
from services.kit.cel.times import text_of_duration, text_of_timestamp, unix_seconds
from services.kit.cel.values import type_name

MAX_PARSED_LENGTH = 128 * 1024
"""Characters that `parseJson` reads."""

_INT = re.compile(r"[+-]?[0-9]{1,19}")
_DOUBLE = re.compile(r"[+-]?(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})(?:[eE][+-]?[0-9]{1,4})?")
_TRUE, _FALSE = frozenset({"true", "True", "TRUE", "t", "1"}), frozenset({"false", "False", "FALSE", "f", "0"})


def to_int(_frame: Frame, value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is float:
        return in_range(int(value) if math.isfinite(value) else INT_MAX + 1)
    if type(value) is datetime:
        return unix_seconds(value)
    if type(value) is str and len(value) <= 20 and _INT.fullmatch(value):
        return in_range(int(value))
    raise Failure(lambda: f"{_shown(value)} is no whole number")


def to_double(_frame: Frame, value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and INT_MIN <= value < 2**64:
        return float(value)
    if type(value) is str and len(value) <= 64 and _DOUBLE.fullmatch(value) and math.isfinite(float(value)):
        return float(value)
    raise Failure(lambda: f"{_shown(value)} is no number")


def to_bool(_frame: Frame, value: Any) -> bool:
    if type(value) is bool:
        return value
    if type(value) is str and value in _TRUE | _FALSE:
        return value in _TRUE
    raise Failure(lambda: f"{_shown(value)} is neither true nor false")


def _shown(value: Any) -> str:
    return "the text" if type(value) is str else type_name(value)


def to_string(_frame: Frame, value: Any) -> str:
    """Text of a scalar: whole doubles without `.0`, times as RFC 3339, durations in seconds."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int and INT_MIN <= value < 2**64:
        return str(value)
    if kind is float:
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if kind is datetime:
        return text_of_timestamp(value)
    if kind is timedelta:
        return text_of_duration(value)
    hint = "use `toJson(x)`" if kind in {list, dict} else 'give a text for null with `default(x, "")`'
    raise Failure(lambda: f"`string` does not take {type_name(value)}; {hint}")


def to_json(frame: Frame, value: Any) -> str:
    """Compact JSON text of any value that could be a result."""
    allowance = Allowance()
    values = allowance.values
    try:
        plain = allowance.take(value)
    finally:
        frame.charge(min(values, values - allowance.values))
    encoded = orjson.dumps(plain)
    frame.make(len(encoded))
    return encoded.decode()


def parse_json(frame: Frame, value: Any) -> Any:
    text = as_text("parseJson", value)
    if len(text) > MAX_PARSED_LENGTH:
        raise Refusal(
            "EXPRESSION_INPUT_TOO_LARGE",
            f"`parseJson` reads at most {MAX_PARSED_LENGTH:,} characters, this text has {len(text):,}.",
        )
    frame.charge(len(text) >> 1)
    frame.make(len(text))
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, RecursionError):
        raise Failure("the text is not JSON") from None
