"""Pages: sizes within limits, and opaque tokens that hold the place where the next page starts."""

import base64
import binascii
from typing import Any

import orjson

from services.kit.errors import InvalidArgumentError, Violation

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> int:
    """The size to use: the default for 0, at most the maximum. Raises InvalidArgumentError for a negative one."""
    if requested < 0:
        raise InvalidArgumentError(
            "page_size must not be negative.",
            violations=(Violation("OUT_OF_RANGE", "must be 0 or more", "page_size"),),
        )
    return min(requested, maximum) if requested else default


def encode_page_token(place: list[Any]) -> str:
    """A token for a place: the sort values of the last item of a page, JSON-compatible."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def decode_page_token(token: str, *, length: int) -> list[Any] | None:
    """The place in a token, None for the first page. Raises InvalidArgumentError unless it holds `length` values.

    The values come from the client: convert them to their types before use, by `page_token_error` on failure.
    """
    if not token:
        return None
    try:
        place = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError) as error:
        raise page_token_error() from error
    if not isinstance(place, list) or len(place) != length:
        raise page_token_error()
    return place


def page_token_error() -> InvalidArgumentError:
    """What to raise for a token that was not made by us."""
    return InvalidArgumentError(
        "page_token is not one that this list gave. Take it from next_page_token of the page before.",
        violations=(Violation("INVALID_PAGE_TOKEN", "not a token of this list", "page_token"),),
    )
