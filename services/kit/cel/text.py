"""Functions over text.

What searching costs follows CPython's algorithm: up to 30,000 characters it compares at every place where the last
character fits (0.5 ns a comparison), above it is linear (5 ns a character).
"""

from typing import Any
from urllib.parse import quote

from services.kit.cel.arguments import as_list, as_text, as_whole
from services.kit.cel.conversions import to_string
from services.kit.cel.errors import Failure
from services.kit.cel.evaluation import Frame
from services.kit.cel.values import type_name


def _charge_search(frame: Frame, text: str, part: str) -> None:
    length, width = len(text), len(part)
    if length < 64:
        return
    frame.charge(length >> 8)
    if width > 1:
        if length < 30_000 and (width < 100 or length < 2500):
            frame.charge(text.count(part[-1]) * width >> 8)
        else:
            frame.charge(length + width >> 5)


def contains(frame: Frame, value: Any, part: Any) -> bool:
    if type(value) is list:
        raise Failure("`contains` looks into text; for a list write `item in list`")
    _charge_search(frame, as_text("contains", value), as_text("contains", part))
    return part in value


def starts_with(_frame: Frame, value: Any, part: Any) -> bool:
    return as_text("startsWith", value).startswith(as_text("startsWith", part))


def ends_with(_frame: Frame, value: Any, part: Any) -> bool:
    return as_text("endsWith", value).endswith(as_text("endsWith", part))


def index_of(frame: Frame, value: Any, part: Any) -> int:
    _charge_search(frame, as_text("indexOf", value), as_text("indexOf", part))
    return int(value.find(part))


def lower(frame: Frame, value: Any) -> str:
    frame.charge(len(as_text("lower", value)) >> 4)
    frame.make(len(value))
    return str(value.lower())


def upper(frame: Frame, value: Any) -> str:
    frame.charge(len(as_text("upper", value)) >> 4)
    # One character can become three (ΐ).
    frame.make(len(value) if value.isascii() else 3 * len(value))
    return str(value.upper())


def trim(frame: Frame, value: Any) -> str:
    frame.charge(len(as_text("trim", value)) >> 6)
    frame.make(len(value))
    return str(value.strip())


def substring(frame: Frame, value: Any, start: Any, end: Any = None) -> str:
    text, first = as_text("substring", value), as_whole("substring", start)
    last = len(text) if end is None else as_whole("substring", end)
    if first < 0 or last < first:
        raise Failure(lambda: f"`substring` needs 0 ≤ start ≤ end, it got {first} and {last}")
    frame.make(max(0, min(last, len(text)) - first))
    return text[first:last]


def replace(frame: Frame, value: Any, old: Any, new: Any) -> str:
    text, part, other = as_text("replace", value), as_text("replace", old), as_text("replace", new)
    if not part:
        raise Failure("`replace` needs something to look for; its second value is empty")
    _charge_search(frame, text, part)
    found = text.count(part)
    _charge_search(frame, text, part)
    frame.charge(found >> 3)
    frame.make(len(text) + found * (len(other) - len(part)) if len(other) > len(part) else len(text))
    return text.replace(part, other)


def split(frame: Frame, value: Any, separator: Any) -> list[str]:
    text, part = as_text("split", value), as_text("split", separator)
    if not part:
        frame.charge(len(text) >> 2)
        frame.make(2 * len(text))
        return list(text)
    _charge_search(frame, text, part)
    pieces = text.count(part) + 1
    _charge_search(frame, text, part)
    frame.charge(pieces >> 1)
    frame.make(len(text) + pieces)
    return text.split(part)


def join(frame: Frame, value: Any, separator: Any = "") -> str:
    items, part = as_list("join", value), as_text("join", separator)
    frame.charge(len(items) >> 1)
    for item in items:
        if type(item) is not str:
            raise Failure(f"`join` needs a list of texts, it holds {type_name(item)}; map with `string(x)`")
    frame.make(sum(map(len, items)) + len(part) * max(0, len(items) - 1))
    return part.join(items)


def url_encode(frame: Frame, value: Any) -> str:
    text = to_string(frame, value)
    frame.charge(len(text) >> 1)
    frame.make(len(text) * (3 if text.isascii() else 12))
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise Failure("the text holds half a character (a lone surrogate)") from None
