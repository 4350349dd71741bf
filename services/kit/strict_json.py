"""JSON from outside, made safe to keep: what PostgreSQL, orjson and other readers would choke on is refused.

Limits (measured on orjson 3.11 and PostgreSQL 18): orjson writes at most 254 levels; jsonb and text refuse NUL; UTF-8
has no lone surrogates; NaN and infinities are no JSON.
"""

import math
from typing import Any

import orjson

from services.kit.errors import InvalidArgumentError, Violation

MAX_DEPTH = 64
MAX_VALUES = 200_000


def loads(data: bytes | str, *, max_bytes: int) -> Any:
    """Parse JSON text. Raises InvalidArgumentError: not JSON, larger than `max_bytes`, or refused by `check`."""
    if len(data) > max_bytes:
        raise _refused("TOO_LARGE", f"JSON of {len(data)} bytes is over the limit of {max_bytes} bytes.", "")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _refused("INVALID_JSON", f"Not valid JSON: {error}.", "") from error
    check(value)
    return value


def check(value: Any) -> None:
    """Raise InvalidArgumentError unless a parsed value is safe: depth, number of values, text, finite numbers."""
    stack: list[tuple[Any, str, int]] = [(value, "$", 1)]
    seen = 0
    while stack:
        item, path, depth = stack.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise _refused("TOO_MANY_VALUES", f"More than {MAX_VALUES} JSON values in one document.", "")
        if depth > MAX_DEPTH:
            raise _refused("TOO_DEEP", f"Nested deeper than {MAX_DEPTH} levels.", path[:256])
        if isinstance(item, str):
            _check_text(item, path)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise _refused("NOT_FINITE", "NaN and infinity are not JSON numbers.", path)
        elif isinstance(item, dict):
            for key, child in item.items():
                if not isinstance(key, str):
                    raise _refused("INVALID_KEY", "Object keys must be text.", path)
                _check_text(key, path)
                stack.append((child, f"{path}.{key}", depth + 1))
        elif isinstance(item, list | tuple):
            stack.extend((child, f"{path}[{index}]", depth + 1) for index, child in enumerate(item))
        elif item is not None and not isinstance(item, int | bool):
            raise _refused("NOT_JSON", f"{type(item).__name__} is not a JSON type.", path)


def _check_text(text: str, path: str) -> None:
    if "\x00" in text:
        raise _refused("NUL_CHARACTER", "Text must not hold the NUL character (\\u0000).", path[:256])
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _refused("LONE_SURROGATE", "Text holds half of a surrogate pair.", path[:256]) from error


def _refused(code: str, message: str, path: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, violations=(Violation(code, message, path),))
