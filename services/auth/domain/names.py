"""Names that people give to things."""

import unicodedata

from services.kit.errors import InvalidArgumentError, Violation

MAX_NAME_CHARACTERS = 128


def name_violations(name: str, *, path: str = "name", required: bool = True) -> list[Violation]:
    """What is wrong with a name (already stripped): its length, or characters that cannot be seen."""
    if not name and required:
        return [Violation("REQUIRED", "must not be empty", path)]
    if len(name) > MAX_NAME_CHARACTERS:
        return [Violation("TOO_LONG", f"must have at most {MAX_NAME_CHARACTERS} characters", path)]
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in name):
        return [Violation("INVALID_CHARACTER", "must not hold control characters or line breaks", path)]
    return []


def checked_name(text: str) -> str:
    """A name without the spaces around it. Raises InvalidArgumentError."""
    name = text.strip()
    refuse_violations(name_violations(name))
    return name


def refuse_violations(violations: list[Violation], *, reason: str | None = None) -> None:
    """Raise InvalidArgumentError with all violations, if there are any."""
    if violations:
        told = "; ".join(f"{item.path} {item.message}" for item in violations)
        raise InvalidArgumentError(f"{told[:1].upper()}{told[1:]}.", reason=reason, violations=tuple(violations))
