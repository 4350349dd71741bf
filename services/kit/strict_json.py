"""JSON from outside, made safe to keep: what PostgreSQL, orjson and other readers would choke on is refused.

Limits (measured on orjson 3.11 and PostgreSQL 18): orjson writes at most 254 levels; jsonb and text refuse NUL; UTF-8
has no lone surrogates; NaN and infinities are no JSON.
"""

import math
from typing import Any, TypeAlias

import orjson

from services.kit.errors import InvalidArgumentError, Violation

MAX_DEPTH = 64
MAX_VALUES = 200_000

_SAFE = frozenset({int, bool, type(None)})
"""Types with no value that could be refused."""

_Place: TypeAlias = "tuple[str | int, _Place | None]"
"""A key or index, and the place of what holds it; None at the top."""


def loads(data: bytes | str, *, max_bytes: int, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON text. Raises InvalidArgumentError: not JSON, larger than `max_bytes`, or refused by `check`."""
    if len(data) > max_bytes:
        raise _refused("TOO_LARGE", f"JSON of {len(data)} bytes is over the limit of {max_bytes} bytes.", "")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _refused("INVALID_JSON", f"Not valid JSON: {error}.", "") from error
    check(value, max_values=max_values)
    return value


def check(value: Any, *, max_values: int = MAX_VALUES, max_characters: int | None = None) -> None:
    """Raise InvalidArgumentError unless a parsed value is safe: depth, number of values, text, finite numbers.

    `max_characters` bounds all text together, so that what is far too large need not be written to be measured.
    """
    # Linked places instead of paths: a path is put together for the one value that is refused, not for all.
    stack: list[tuple[Any, _Place, int]] = [(value, ("$", None), 1)]
    seen = 1
    characters = 0
    while stack:
        item, place, depth = stack.pop()
        if max_characters is not None and isinstance(item, str):
            characters += len(item)
            if characters > max_characters:
                raise _refused("TOO_LARGE", f"More than {max_characters} characters of text in one document.", "")
        if depth > MAX_DEPTH:
            raise _refused("TOO_DEEP", f"Nested deeper than {MAX_DEPTH} levels.", _path(place))
        if isinstance(item, dict):
            seen += len(item)
            for key, child in item.items():
                if not isinstance(key, str):
                    raise _refused("INVALID_KEY", "Object keys must be text.", _path(place))
                _check_text(key, place)
                if type(child) not in _SAFE:
                    stack.append((child, (key, place), depth + 1))
        elif isinstance(item, list | tuple):
            seen += len(item)
            if seen <= max_values:
                stack.extend(
                    (child, (index, place), depth + 1)
                    for index, child in enumerate(item)
                    if type(child) not in _SAFE and (type(child) is not float or not math.isfinite(child))
                )
        else:
            _check_scalar(item, place)
        if seen > max_values:
            raise _refused("TOO_MANY_VALUES", f"More than {max_values} JSON values in one document.", "")


def _check_scalar(item: Any, place: "_Place") -> None:
    if isinstance(item, str):
        _check_text(item, place)
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise _refused("NOT_FINITE", "NaN and infinity are not JSON numbers.", _path(place))
    elif item is not None and not isinstance(item, int | bool):
        raise _refused("NOT_JSON", f"{type(item).__name__} is not a JSON type.", _path(place))


def _check_text(text: str, place: "_Place") -> None:
    if "\x00" in text:
        raise _refused("NUL_CHARACTER", "Text must not hold the NUL character (\\u0000).", _path(place))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _refused("LONE_SURROGATE", "Text holds half of a surrogate pair.", _path(place)) from error


def _path(place: "_Place") -> str:
    steps: list[str] = []
    at: _Place | None = place
    while at is not None:
        step, at = at
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps))[1:].encode(errors="replace").decode()[:256]


def _refused(code: str, message: str, path: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, violations=(Violation(code, message, path),))
