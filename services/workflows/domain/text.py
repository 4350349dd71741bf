"""Words for messages: values cut short, JSON paths, and suggestions for misspelt names."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import orjson

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_EXCERPT_LENGTH = 80
_SUGGESTIONS = 20
_CANDIDATES = 1000


def excerpt(value: Any, length: int = _EXCERPT_LENGTH) -> str:
    """A JSON value on one line, cut short."""
    text = value[: 4 * length] if isinstance(value, str) else orjson.dumps(value).decode()[: 4 * length]
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def kind_of(value: Any) -> str:
    """What a JSON value is, in a word."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def json_path(prefix: str, *steps: str | int) -> str:
    """A path extended by keys and positions: `nodes[2].config.url`; keys of other forms as `["x y"]`."""
    path = prefix
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            path += f".{step}" if path else step
        else:
            path += f"[{orjson.dumps(step[:64]).decode()}]"
    return path


class Suggestions:
    """Finds the name that was probably meant. Bounded: comparing names is slow, and a document may hold many wrong."""

    def __init__(self) -> None:
        self._left = _SUGGESTIONS

    def did_you_mean(self, name: str, candidates: Iterable[str]) -> str:
        """` Did you mean …?` with a leading space, or nothing."""
        if self._left == 0 or len(name) > 64:
            return ""
        self._left -= 1
        known = [candidate for candidate, _ in zip(candidates, range(_CANDIDATES), strict=False)]
        close = difflib.get_close_matches(name, known, n=1)
        return f" Did you mean `{close[0]}`?" if close else ""
