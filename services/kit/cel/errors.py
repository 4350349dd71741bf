"""The one error that users of expressions meet, and the two signals inside an evaluation."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from typing import NamedTuple

EXCERPT_LENGTH = 80
_COMPARED_LENGTH = 32
_COMPARED_NAMES = 64


class ExpressionError(Exception):
    """An expression that is refused or that failed; never anything else leaves this language.

    `reason` is stable: EXPRESSION_SYNTAX, EXPRESSION_UNKNOWN_NAME, EXPRESSION_TOO_COMPLEX, EXPRESSION_INPUT_TOO_LARGE,
    EXPRESSION_OUTPUT_TOO_LARGE, EXPRESSION_FAILED. `message` is for people. `position` is the offset in the source,
    in characters, where something is wrong; None when it is not one place.
    """

    def __init__(self, reason: str, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.position = position


class Failure(Exception):
    """An operation could not be done with these values; `&&`, `||` and `default` may absorb it.

    The sentence is made only when someone reads it: a macro may absorb thousands of failures.
    """

    def __init__(self, describe: Callable[[], str] | str, *, missing: bool = False) -> None:
        super().__init__()
        self.describe = describe
        self.missing = missing
        """Something is not there (a key, an item, a field of null), as opposed to being of the wrong kind."""

    def sentence(self) -> str:
        return self.describe if isinstance(self.describe, str) else self.describe()


class Refusal(Exception):
    """A bound was met. Nothing absorbs it: the evaluation ends here."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class Place(NamedTuple):
    """A part of an expression, turned into words only when something is wrong there."""

    source: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"`{excerpt(self.source, self.start, self.end)}`"


def located(failure: Failure, place: Place) -> Failure:
    """The same failure, saying in which part of the expression."""
    return Failure(lambda: f"{place}: {failure.sentence()}", missing=failure.missing)


def excerpt(text: str, start: int = 0, end: int | None = None) -> str:
    """A piece of an expression or a name, printable, on one line and short enough for a message."""
    piece = " ".join(text[start : len(text) if end is None else end][: 4 * EXCERPT_LENGTH].split())
    if not piece.isprintable():
        piece = "".join(character if character.isprintable() else "\ufffd" for character in piece)
    return piece if len(piece) <= EXCERPT_LENGTH else piece[: EXCERPT_LENGTH - 1] + "…"


def closest(word: str, candidates: Iterable[object]) -> str | None:
    """The candidate that was probably meant. Looks at few and short ones only: comparing takes quadratic time."""
    short = [
        name for name in islice(candidates, _COMPARED_NAMES) if isinstance(name, str) and len(name) <= _COMPARED_LENGTH
    ]
    found = get_close_matches(word[:_COMPARED_LENGTH], short, 1)
    return found[0] if found else None


def sentence_of(text: str) -> str:
    """Text as a sentence: with a capital letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?")) else text + "."
