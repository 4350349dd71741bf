"""What CEL's operators do with JSON values.

Differences from CEL are extensions, never other results: an int and a double may be mixed in arithmetic (the result
is a double), because JSON's authors do not tell 1 from 1.0; and a division of doubles by zero fails, because JSON has
no infinity.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from services.kit.cel.errors import Failure, Refusal
from services.kit.cel.evaluation import Frame
from services.kit.cel.parser import INT_MAX, INT_MIN

MAX_EQUALITY_DEPTH = 64


class TypeValue(NamedTuple):
    """What `type(x)` gives, and what the bare names `int`, `string`, … stand for."""

    name: str


_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    list: "list",
    dict: "map",
    datetime: "timestamp",
    timedelta: "duration",
    TypeValue: "type",
}
TYPES = {name: TypeValue(name) for name in ("bool", "int", "double", "string", "list", "map", "timestamp", "duration")}
TYPES["null_type"] = TypeValue("null_type")

_NUMBERS = frozenset({int, float})
_ORDERED = frozenset({str, bool, datetime, timedelta})
_LONG_TEXT = 256


def type_name(value: Any) -> str:
    """The language's word for the type of a value."""
    return _NAMES.get(type(value), "value of an unknown type")


def type_of(value: Any) -> TypeValue:
    """What `type(value)` is."""
    return TYPES["null_type"] if value is None else TypeValue(type_name(value))


def equal(frame: Frame, left: Any, right: Any, depth: int = 0) -> bool:
    """CEL's equality: numbers by value, true is not 1, other kinds are unequal, lists and maps by content."""
    kind, other = type(left), type(right)
    if kind is not other:
        return kind in _NUMBERS and other in _NUMBERS and bool(left == right)
    if kind is str:
        if len(left) > _LONG_TEXT and len(left) == len(right):
            frame.charge(len(left) >> 8)
        return bool(left == right)
    if kind is not list and kind is not dict:
        return bool(left == right)
    if len(left) != len(right):
        return False
    if depth == MAX_EQUALITY_DEPTH:
        raise Refusal("EXPRESSION_TOO_COMPLEX", f"Values nested deeper than {MAX_EQUALITY_DEPTH} levels are compared.")
    frame.charge(6 + 3 * len(left))
    if kind is list:
        return all(equal(frame, one, two, depth + 1) for one, two in zip(left, right, strict=True))
    return all(key in right and equal(frame, value, right[key], depth + 1) for key, value in left.items())


def contained(frame: Frame, item: Any, container: Any) -> bool:
    """`item in container`: an equal item of a list, or a key of a map."""
    if type(container) is dict:
        return type(item) is str and item in container
    if type(container) is list:
        if type(item) is str:
            # Only text equals text, for CEL as for Python, which looks much faster.
            frame.charge((len(container) >> 3) + len(container) * (len(item) >> 8))
            return item in container
        for candidate in container:
            frame.charge(3)
            if equal(frame, item, candidate):
                return True
        return False
    if type(container) is str:
        raise Failure("`in` looks into lists and maps; for text write `text.contains(part)`")
    raise Failure(lambda: f"`in` looks into lists and maps, not into {type_name(container)}")


def compare(frame: Frame, operator: str, left: Any, right: Any) -> bool:
    """`<`, `<=`, `>`, `>=` over two numbers, texts, times or booleans."""
    kind, other = type(left), type(right)
    if kind is str and other is str:
        frame.charge(min(len(left), len(right)) >> 8)
    elif not (kind in _NUMBERS and other in _NUMBERS) and not (kind is other and kind in _ORDERED):
        raise Failure(lambda: f"{type_name(left)} and {type_name(right)} cannot be compared with `{operator}`")
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    if operator == ">":
        return bool(left > right)
    return bool(left >= right)


def arithmetic(frame: Frame, operator: str, left: Any, right: Any) -> Any:
    """`+ - * / %`."""
    kind, other = type(left), type(right)
    if kind is int and other is int:
        return _of_ints(operator, left, right)
    if kind in _NUMBERS and other in _NUMBERS:
        return _of_doubles(operator, left, right)
    if operator == "+":
        if kind is str and other is str:
            frame.make(len(left) + len(right))
            return left + right
        if kind is list and other is list:
            frame.make(len(left) + len(right))
            frame.charge((len(left) + len(right)) >> 4)
            return left + right
    if kind in {datetime, timedelta} and other in {datetime, timedelta}:
        return _of_times(operator, left, right)
    raise Failure(lambda: _no_operator(operator, left, right))


def _of_ints(operator: str, left: int, right: int) -> int:
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        if left.bit_length() + right.bit_length() > 128:
            raise Failure("the result is over 64 bits; use doubles: `double(x)`")
        result = left * right
    elif right == 0:
        raise Failure("division by zero")
    elif operator == "/":
        result = abs(left) // abs(right)
        result = result if (left < 0) == (right < 0) else -result
    else:
        result = abs(left) % abs(right)
        result = -result if left < 0 else result
    if INT_MIN <= result <= INT_MAX:
        return result
    raise Failure("the result is over 64 bits; use doubles: `double(x)`")


def _of_doubles(operator: str, left: float, right: float) -> float:
    try:
        if operator == "+":
            return float(left + right)
        if operator == "-":
            return float(left - right)
        if operator == "*":
            return float(left * right)
        if operator == "/":
            return float(left / right)
    except ZeroDivisionError:
        raise Failure("division by zero") from None
    except OverflowError:
        raise Failure("the number is too large") from None
    raise Failure("`%` works on whole numbers; convert with `int(x)`")


def _of_times(operator: str, left: Any, right: Any) -> Any:
    try:
        if operator == "+" and not (type(left) is datetime and type(right) is datetime):
            return left + right
        if operator == "-" and not (type(left) is timedelta and type(right) is datetime):
            return left - right
    except OverflowError:
        raise Failure("the time is outside the years 1 to 9999") from None
    raise Failure(lambda: _no_operator(operator, left, right))


def _no_operator(operator: str, left: Any, right: Any) -> str:
    hint = ""
    if operator == "+" and str in {type(left), type(right)}:
        hint = "; to join text convert with `string(x)`"
    elif {type(left), type(right)} <= {int, float, str}:
        hint = "; convert text with `int(x)` or `double(x)`"
    elif left is None or right is None:
        hint = "; give a value for null with `default(x, 0)`"
    return f"`{operator}` does not work on {type_name(left)} and {type_name(right)}{hint}"


def negate(value: Any) -> Any:
    """`-value`."""
    if type(value) is int:
        if value < -INT_MAX:
            raise Failure("the result is over 64 bits")
        return -value
    if type(value) is float:
        return -value
    raise Failure(lambda: f"`-` needs a number, this is {type_name(value)}")


def not_boolean(value: Any, subject: object) -> Failure:
    """The failure of something else where true or false is needed: CEL knows no truthiness."""
    return Failure(
        lambda: f"{subject} must be true or false, this is {type_name(value)}; compare it, as in `x != null`"
    )
