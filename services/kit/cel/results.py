"""What may leave an evaluation: JSON, and not too much of it."""

from datetime import datetime, timedelta
from itertools import chain
from math import isfinite
from typing import Any

from services.kit.cel.errors import Failure, Refusal
from services.kit.cel.times import seconds_of, text_of_timestamp
from services.kit.cel.values import TypeValue
from services.kit.strict_json import MAX_DEPTH

MAX_RESULT_BYTES = 1024 * 1024
"""UTF-8 bytes of the text and digits in a result: as large as a node's output may be, so that any can be passed on."""

MAX_RESULT_VALUES = 100_000
"""JSON values in a result."""

_CONVERTED = frozenset({datetime, timedelta, TypeValue})
_KNOWN = _CONVERTED | {type(None), bool, int, float, str, list, dict}


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
        """Check a list or map level by level; True when something in it has to be converted.

        A level is checked by a few passes at C speed, not value by value.
        """
        level: list[Any] = [value]
        depth, convert = 0, False
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise Refusal("EXPRESSION_OUTPUT_TOO_LARGE", f"The result nests deeper than {MAX_DEPTH} levels.")
            # Counted before the next level is gathered: shared parts may make a small value huge when written out.
            self._spend(len(level), 2 * len(level))
            kinds = set(map(type, level))
            if unknown := kinds - _KNOWN:
                raise Failure(f"the result holds a {min(kind.__name__ for kind in unknown)}, which is not JSON")
            if str in kinds:
                self._take_texts([item for item in level if type(item) is str])
            if int in kinds:
                self._spend(0, _int_size(*[item for item in level if type(item) is int]))
            if float in kinds:
                self._spend(0, _float_size([item for item in level if type(item) is float]))
            convert = convert or not kinds.isdisjoint(_CONVERTED)
            lists = [item for item in level if type(item) is list] if list in kinds else []
            maps = [item for item in level if type(item) is dict] if dict in kinds else []
            if sum(map(len, lists)) + sum(map(len, maps)) > self.values:
                self._spend(self.values + 1, 0)
            self._take_keys(list(chain.from_iterable(maps)))
            level = list(chain(chain.from_iterable(lists), chain.from_iterable(map(dict.values, maps))))
        return convert

    def _take_texts(self, texts: list[str]) -> None:
        size = sum(map(len, texts))
        if size > self.bytes:
            self._spend(0, size)
        self._spend(0, _text_size("".join(texts)))

    def _take_keys(self, keys: list[Any]) -> None:
        for kind in set(map(type, keys)):
            if kind is not str:
                raise Failure(f"the result has a key that is no text but {kind.__name__}")
        self._take_texts(keys)


def _text_size(text: str) -> int:
    if "\x00" in text:
        raise Failure("the result holds the NUL character, which cannot be stored")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise Failure("the result holds half a character (a lone surrogate)") from None


def _int_size(*numbers: int) -> int:
    # orjson writes what fits into 64 bits, signed or unsigned.
    if min(numbers) >= -(2**63) and max(numbers) < 2**64:
        return 4 * len(numbers)
    raise Failure("the result holds a whole number over 64 bits")


def _float_size(numbers: list[float]) -> int:
    if all(map(isfinite, numbers)):
        return 8 * len(numbers)
    raise Failure("the result holds a number that is infinite or no number, which JSON does not know")


def _converted(value: Any) -> Any:
    if type(value) is datetime:
        if value.tzinfo is None:
            raise Failure("the result holds a time without an offset, which is not JSON")
        return text_of_timestamp(value)
    return seconds_of(value) if type(value) is timedelta else value.name


def _convert_all(value: Any) -> Any:
    if type(value) is list:
        return [_convert_all(item) for item in value]
    if type(value) is dict:
        return {key: _convert_all(item) for key, item in value.items()}
    return _converted(value) if type(value) in _CONVERTED else value
