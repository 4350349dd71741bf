"""What may leave an evaluation: JSON, and not too much of it."""

from datetime import datetime, timedelta
from itertools import chain
from math import isfinite
from typing import Any

from services.kit.cel.errors import Failure, Refusal
from services.kit.cel.times import seconds_of, text_of_timestamp
from services.kit.cel.values import TypeValue, type_name
from services.kit.strict_json import MAX_DEPTH

MAX_RESULT_BYTES = 1024 * 1024
"""UTF-8 bytes of the text and digits in a result: as large as a node's output may be, so that any can be passed on."""

MAX_RESULT_VALUES = 100_000
"""JSON values in a result."""

_SHORT = frozenset({bool, type(None)})
_CONVERTED = frozenset({datetime, timedelta, TypeValue})


class Allowance:
    """How much may still leave; shared by the expressions of one template."""

    __slots__ = ("bytes", "values")

    def __init__(self) -> None:
        self.bytes = MAX_RESULT_BYTES
        self.values = MAX_RESULT_VALUES

    def take(self, value: Any) -> Any:
        """The value as JSON: times as text or seconds, all else untouched and not copied.

        Raises Failure for what JSON cannot hold, Refusal for too much of it.
        """
        kind = type(value)
        if kind is str:
            self._spend(1, _text_size(value))
            return value
        if kind is int or kind is bool or value is None:
            self._spend(1, _int_size(value) if kind is int else 4)
            return value
        if kind in _CONVERTED:
            return self.take(_converted(value))
        if self._walk(value):
            return _convert_all(value)
        return value

    def _spend(self, values: int, size: int) -> None:
        self.values -= values
        self.bytes -= size
        if self.values < 0:
            raise Refusal("EXPRESSION_OUTPUT_TOO_LARGE", f"The result has more than {MAX_RESULT_VALUES:,} values.")
        if self.bytes < 0:
            raise Refusal("EXPRESSION_OUTPUT_TOO_LARGE", f"The result is over the limit of {MAX_RESULT_BYTES:,} bytes.")

    def _walk(self, value: Any) -> bool:
        """Check a list or map level by level; True when something in it has to be converted."""
        level: list[Any] = [value]
        depth, convert = 0, False
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise Refusal("EXPRESSION_OUTPUT_TOO_LARGE", f"The result nests deeper than {MAX_DEPTH} levels.")
            # Counted before the next level is gathered: shared parts may make a small value huge when written out.
            self._spend(len(level), 2 * len(level))
            kinds = set(map(type, level))
            if str in kinds:
                self._spend(0, sum(_text_size(item) for item in level if type(item) is str))
            if int in kinds:
                self._spend(0, sum(_int_size(item) for item in level if type(item) is int))
            if float in kinds:
                floats = [item for item in level if type(item) is float]
                self._spend(0, 6 * len(floats))
                if not all(map(isfinite, floats)):
                    raise Failure("the result holds a number that is infinite or no number, which JSON does not know")
            convert = convert or bool(kinds & _CONVERTED)
            if unknown := kinds - _KNOWN:
                raise Failure(f"the result holds a {min(kind.__name__ for kind in unknown)}, which is not JSON")
            level = self._children(level, kinds)
        return convert

    def _children(self, level: list[Any], kinds: set[type]) -> list[Any]:
        parents = [item for item in level if type(item) is list or type(item) is dict] if kinds & _NESTING else []
        if sum(map(len, parents)) > self.values:
            self._spend(self.values + 1, 0)
        for item in parents:
            if type(item) is dict:
                for key in item:
                    if type(key) is not str:
                        raise Failure(f"the result has a key that is {type_name(key)}; the keys of JSON are text")
                    self._spend(0, _text_size(key))
        return list(chain.from_iterable(item.values() if type(item) is dict else item for item in parents))


_NESTING = frozenset({list, dict})
_KNOWN = _SHORT | _CONVERTED | _NESTING | {str, int, float}


def _text_size(text: str) -> int:
    if "\x00" in text:
        raise Failure("the result holds the NUL character, which cannot be stored")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise Failure("the result holds half a character (a lone surrogate)") from None


def _int_size(value: int) -> int:
    # orjson writes what fits into 64 bits, signed or unsigned.
    if -(2**63) <= value < 2**64:
        return 4
    raise Failure("the result holds a whole number over 64 bits")


def _converted(value: Any) -> Any:
    if type(value) is datetime:
        return text_of_timestamp(value)
    return seconds_of(value) if type(value) is timedelta else value.name


def _convert_all(value: Any) -> Any:
    if type(value) is list:
        return [_convert_all(item) for item in value]
    if type(value) is dict:
        return {key: _convert_all(item) for key, item in value.items()}
    return _converted(value) if type(value) in _CONVERTED else value
