"""Values as the kind that a function needs, or the sentence that says what to do."""

from typing import Any

from services.kit.cel.errors import Failure
from services.kit.cel.parser import INT_MAX, INT_MIN
from services.kit.cel.values import type_name


def as_text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise Failure(lambda: f"`{name}` needs text, this is {type_name(value)}; convert with `string(x)`")
    return value


def as_list(name: str, value: Any) -> list[Any]:
    if type(value) is not list:
        raise Failure(lambda: f"`{name}` needs a list, this is {type_name(value)}")
    return value


def as_map(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Failure(lambda: f"`{name}` needs a map, this is {type_name(value)}")
    return value


def as_whole(name: str, value: Any) -> int:
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is int and not INT_MIN <= value <= INT_MAX:
        raise Failure(f"`{name}` needs a whole number of 64 bits")
    if type(value) is not int:
        raise Failure(lambda: f"`{name}` needs a whole number, this is {type_name(value)}")
    return value


def as_number(name: str, value: Any) -> int | float:
    if type(value) is not int and type(value) is not float:
        raise Failure(lambda: f"`{name}` needs a number, this is {type_name(value)}")
    return value
