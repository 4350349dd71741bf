"""Which request headers an author may set (values may come from webhooks and models), and which survive a redirect."""

import re
from collections.abc import Iterable, Mapping

from services.executor.egress.errors import EgressError

MAX_HEADERS = 100
MAX_VALUE_LENGTH = 8192
MAX_TOTAL_LENGTH = 32_768

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\x20-\x7e\t]*")

# Framing and routing belong to this client; the metadata headers are what cloud metadata servers ask for as a proof
# that the caller was not tricked; the forwarding headers pretend to come from a proxy.
_DENIED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "metadata",
        "metadata-flavor",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-google-metadata-request",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-real-ip",
    }
)
_DENIED_PREFIXES = ("proxy-", "x-forwarded-", "x-aws-ec2-metadata-token", "x-original-", "x-rewrite-")

# What another origin may see after a redirect: nothing that could be a secret.
_HARMLESS = frozenset(
    {"accept", "accept-language", "cache-control", "content-language", "content-type", "range", "user-agent"}
)

Headers = tuple[tuple[str, str], ...]


def check_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> Headers:
    """The headers, values trimmed. Raises EgressError with reason INVALID_HEADER or HEADER_NOT_ALLOWED."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if len(pairs) > MAX_HEADERS:
        raise EgressError("INVALID_HEADER", f"There are {len(pairs)} headers; the limit is {MAX_HEADERS}.")
    checked = tuple((_name(name), _value(name, value)) for name, value in pairs)
    total = sum(len(name) + len(value) for name, value in checked)
    if total > MAX_TOTAL_LENGTH:
        raise EgressError("INVALID_HEADER", f"The headers have {total} characters; the limit is {MAX_TOTAL_LENGTH}.")
    names = [name.lower() for name, _ in checked]
    if len(set(names)) != len(names):
        raise EgressError("INVALID_HEADER", "A header is given twice in different spellings. Give each header once.")
    return checked


def headers_for_other_origin(headers: Headers) -> Headers:
    """What remains of the headers when a redirect leads to another origin."""
    return tuple((name, value) for name, value in headers if name.lower() in _HARMLESS)


def _name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise EgressError("INVALID_HEADER", f"{name[:64]!r} is not a valid header name: use letters, digits and '-'.")
    lower = name.lower()
    if lower in _DENIED or lower.startswith(_DENIED_PREFIXES):
        raise EgressError("HEADER_NOT_ALLOWED", f"The header {name!r} may not be set by a workflow. Remove it.")
    return name


def _value(name: str, value: str) -> str:
    trimmed = value.strip(" \t")
    if len(trimmed) > MAX_VALUE_LENGTH:
        raise EgressError("INVALID_HEADER", f"The header {name!r} is longer than {MAX_VALUE_LENGTH} characters.")
    if not _VALUE.fullmatch(trimmed):
        # Neither the value nor its place: it may be a secret.
        raise EgressError(
            "INVALID_HEADER",
            f"The value of the header {name!r} holds a line break, a control character or a character outside ASCII. "
            "Remove it or encode it.",
        )
    return trimmed
