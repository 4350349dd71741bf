"""Regular expressions for `matches`: Rust's engine, linear in the text, without look-around and back-references.

Linear still means text × pattern. Usually the engine needs a nanosecond a character; a pattern made for it, such as
`[ab]*a[ab]{100}c`, makes it follow all its states one by one (measured: 16 ns a state and character). So a pattern has
a weight, an estimate of its states, and text × weight is charged. Patterns are literals of the expression: they are
checked when the workflow is validated.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic_core import SchemaError, SchemaValidator, core_schema

from services.kit.cel.errors import ExpressionError, Failure, Refusal, excerpt
from services.kit.cel.evaluation import Frame

MAX_PATTERN_LENGTH = 256
"""Characters."""

MAX_PATTERN_WEIGHT = 1000
"""States of all patterns of an expression, about. Compiling takes up to 10 ms then, and 5 MB."""

MAX_PATTERN_GROUPS = 16
"""Depth of groups."""

MAX_MATCHED_LENGTH = 64 * 1024
"""Characters of the text that is searched."""

_CACHED_PATTERNS = 64
_STEPS_TO_COMPILE = 40
"""Per weight: 10 µs."""

# What Unicode costs: `\w` has 700 ranges (0.5 ms and 70 KB to compile), `\d` 60, `.` and negated classes a handful.
_WORD, _DIGIT, _WIDE = 60, 10, 2
_REPETITION = re.compile(r"[*+?]|\{([0-9]{1,6})(,([0-9]{0,6}))?\}")
_PLAIN = re.compile(r"[^\\\[\].*+?{}]*")


class Pattern(NamedTuple):
    """A compiled pattern. `plain` ones (words and `|`) always run at full speed, whatever the text."""

    validator: SchemaValidator
    weight: int
    plain: bool


class _Weigher:
    """Estimates the states of a pattern: atoms, multiplied by their repetitions. Rather too many than too few."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def total(self) -> int:
        weight = 0
        while self._at < len(self._pattern):
            weight += self._sequence(0)
            self._at += 1  # a `)` too many, which the engine will refuse
        return weight

    def _sequence(self, depth: int) -> int:
        if depth > MAX_PATTERN_GROUPS:
            self._at = len(self._pattern)
            return MAX_PATTERN_WEIGHT + 1
        total = 0
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            total += self._atom(depth) * self._repetitions()
        return total

    def _atom(self, depth: int) -> int:
        character = self._take()
        if character == "(":
            weight = self._sequence(depth + 1)
            self._at += 1
            return weight + 2
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        return _WIDE if character == "." or not character.isascii() else 1

    def _class(self) -> int:
        weight, nested, opened = 1, 1, self._at
        while nested and (character := self._take()):
            if character == "\\":
                weight += self._escape()
            elif character == "[":
                nested += 1
                weight += _WORD
            elif character == "]" and self._at > opened + 1:
                nested -= 1
            elif character == "^" or not character.isascii():
                weight += _WIDE
        return weight

    def _escape(self) -> int:
        character = self._take()
        if character in {"w", "W", "p", "P", "b", "B"}:
            return _WORD
        return _DIGIT if character in {"d", "D", "s", "S"} else 1

    def _repetitions(self) -> int:
        times = 1
        while found := _REPETITION.match(self._pattern, self._at):
            times *= 2 if found[1] is None else max(int(found[1]), int(found[3] or 0)) + 1
            self._at = found.end()
        return times

    def _take(self) -> str:
        character = self._pattern[self._at : self._at + 1]
        self._at += 1
        return character


def check_pattern(pattern: str) -> int:
    """The weight of a pattern. Raises ExpressionError for one that is wrong or too large."""
    return _compile(pattern).weight


@lru_cache(maxsize=_CACHED_PATTERNS)
def _compile(pattern: str) -> Pattern:
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ExpressionError(
            "EXPRESSION_TOO_COMPLEX",
            f"The pattern `{excerpt(pattern)}` has more than {MAX_PATTERN_LENGTH} characters.",
        )
    # Flags may ignore case, which doubles classes.
    weight = _Weigher(pattern).total() * (2 if "(?" in pattern else 1)
    if weight > MAX_PATTERN_WEIGHT:
        raise ExpressionError(
            "EXPRESSION_TOO_COMPLEX",
            f"The pattern `{excerpt(pattern)}` is too large. Lower its counts ({{n,m}}), or write [a-z0-9_] for \\w.",
        )
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))
    except SchemaError as error:
        problem = next((line for line in str(error).splitlines() if line.strip().startswith("error:")), "")
        problem = problem.replace("error:", "").strip() or "it is not understood"
        raise ExpressionError("EXPRESSION_SYNTAX", f"The pattern `{excerpt(pattern)}` is wrong: {problem}.") from None
    plain = _PLAIN.fullmatch(pattern.removeprefix("(?i)").replace("(?:", "(")) is not None
    return Pattern(validator, weight, plain)


def search(frame: Frame, text: Any, *, pattern: str) -> bool:
    """Whether the pattern, which was checked, is found anywhere in a text."""
    if type(text) is not str:
        raise Failure("`matches` needs text; convert with `string(x)`")
    if len(text) > MAX_MATCHED_LENGTH:
        raise Refusal(
            "EXPRESSION_INPUT_TOO_LARGE",
            f"`matches` searches at most {MAX_MATCHED_LENGTH:,} characters, this text has {len(text):,}.",
        )
    if frame.searches is None:
        frame.searches = {}
    compiled: Pattern | None = frame.searches.get(pattern)
    if compiled is None:
        # It may have been dropped since it was checked; held for the rest of this evaluation.
        compiled = frame.searches[pattern] = _compile(pattern)
        frame.charge(compiled.weight * _STEPS_TO_COMPILE)
    frame.charge(len(text) >> 6 if compiled.plain else len(text) * compiled.weight >> 4)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Failure("the text holds half a character (a lone surrogate)") from None
    return bool(compiled.validator.isinstance_python(text))
