"""Functions over numbers."""

import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from services.kit.cel.arguments import as_list, as_number, as_whole
from services.kit.cel.errors import Failure
from services.kit.cel.evaluation import Frame
from services.kit.cel.parser import INT_MAX, INT_MIN

_NUMBERS = frozenset({int, float})
_ORDERED = frozenset({str, datetime, timedelta})


def extreme(name: str, choose: Callable[[Iterable[Any]], Any]) -> Callable[..., Any]:
    """`min` or `max`, of a list or of the values themselves."""

    def run(frame: Frame, *values: Any) -> Any:
        items = values[0] if len(values) == 1 and type(values[0]) is list else values
        if not items:
            raise Failure(
                f"`{name}` of an empty list; give a value for that with `default({name}(x), …)`", missing=True
            )
        kinds = set(map(type, items))
        if not (kinds <= _NUMBERS or (len(kinds) == 1 and kinds <= _ORDERED)):
            raise Failure(f"`{name}` needs only numbers, only texts or only times")
        text = sum(map(len, items)) if str in kinds else 0
        frame.charge((len(items) >> 2) + (text >> 8))
        return choose(items)

    return run


def sum_of(frame: Frame, value: Any) -> Any:
    """The sum of a list: an int of ints, else a double, rounded once."""
    items = as_list("sum", value)
    kinds = set(map(type, items))
    frame.charge(len(items) >> 2)
    if not kinds <= _NUMBERS:
        raise Failure("`sum` needs a list of numbers")
    if float not in kinds:
        return in_range(sum(items))
    try:
        return math.fsum(items)
    except (OverflowError, ValueError):
        raise Failure("the number is too large") from None


def absolute(_frame: Frame, value: Any) -> int | float:
    if type(value) is int and value <= INT_MIN:
        raise Failure("the result is over 64 bits")
    return abs(as_number("abs", value))


def to_whole(name: str, turn: Callable[[float], int]) -> Callable[..., int]:
    def whole(_frame: Frame, value: Any) -> int:
        number = as_number(name, value)
        return in_range(turn(number)) if math.isfinite(number) else in_range(INT_MAX + 1)

    return whole


def rounded(_frame: Frame, value: Any, digits: Any = 0) -> int | float:
    number, places = as_number("round", value), as_whole("round", digits)
    if type(number) is int or not math.isfinite(number):
        return number if type(number) is int else in_range(INT_MAX + 1)
    if not 0 <= places <= 15:
        raise Failure("`round` keeps 0 to 15 digits after the point")
    if places == 0:
        return in_range(math.floor(abs(number) + 0.5) * (1 if number >= 0 else -1))
    return round(number, places)


def in_range(value: int) -> int:
    if INT_MIN <= value <= INT_MAX:
        return value
    raise Failure("the number does not fit into 64 bits")
