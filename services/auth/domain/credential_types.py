"""The types of credentials and what each must hold."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from services.kit.errors import InvalidArgumentError, Violation

MAX_DATA_BYTES = 64 * 1024
_MAX_FIELD_CHARACTERS = 16 * 1024

# RFC 9110: what may be a header's name, and visible ASCII with inner spaces as its value. No line breaks, so that a
# value cannot start another header.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
# They frame the message or choose its receiver; setting them smuggles requests.
_FRAMING_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"}
_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

Check = Callable[[Any], str | None]
"""What is wrong with a value, as a sentence without subject; None when nothing is."""


@dataclass(frozen=True, slots=True)
class _Field:
    check: Check
    default: Any = None
    """Taken when the field is absent; None = the field is needed."""


def _text(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return "must be text and not empty"
    if len(value) > _MAX_FIELD_CHARACTERS:
        return f"must have at most {_MAX_FIELD_CHARACTERS} characters"
    return None


def _any_text(value: Any) -> str | None:
    return None if value == "" else _text(value)


def _matching(pattern: re.Pattern[str], complaint: str) -> Check:
    def check(value: Any) -> str | None:
        return _text(value) or (None if pattern.fullmatch(value) else complaint)

    return check


_token = _matching(re.compile(r"[\x21-\x7e]+"), "must be visible ASCII characters without spaces")
_header_value = _matching(_HEADER_VALUE, "must be ASCII on one line, without spaces around it")
# A host that begins with a slash would be a unix socket of the worker.
_host = _matching(_HOST, "must be a host name or an IP address")


def _header_name(value: Any) -> str | None:
    wrong = _matching(_HEADER_NAME, "must be a header's name, such as X-Api-Key")(value)
    if wrong is None and value.lower() in _FRAMING_HEADERS:
        return "must not be a header that frames the message"
    return wrong


def _user_name(value: Any) -> str | None:
    # RFC 7617: the first colon ends it.
    return _text(value) or ("must not hold a colon" if ":" in value else None)


def _port(value: Any) -> str | None:
    is_port = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
    return None if is_port else "must be a whole number from 1 to 65535"


def _ssl_mode(value: Any) -> str | None:
    return None if value in _SSL_MODES else f"must be one of {', '.join(_SSL_MODES)}"


def _base_url(value: Any) -> str | None:
    wrong = _text(value)
    if wrong is not None:
        return wrong
    complaint = "must be a URL such as https://api.example.com/v1, without user, query or fragment"
    try:
        parts = urlsplit(value)
        complete = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return complaint
    plain = not (parts.username or parts.password or parts.query or parts.fragment) and value.isprintable()
    return None if complete and plain and " " not in value else complaint


CREDENTIAL_TYPES: Mapping[str, Mapping[str, _Field]] = {
    "http_bearer": {"token": _Field(_token)},
    "http_basic": {"username": _Field(_user_name), "password": _Field(_any_text)},
    "http_header": {"name": _Field(_header_name), "value": _Field(_header_value)},
    "postgres": {
        "host": _Field(_host),
        "port": _Field(_port, default=5432),
        "database": _Field(_text),
        "username": _Field(_text),
        "password": _Field(_any_text),
        "sslmode": _Field(_ssl_mode, default="prefer"),
    },
    "llm_provider": {"base_url": _Field(_base_url), "api_key": _Field(_token)},
}


def checked_data(kind: str, data: Any) -> dict[str, Any]:
    """The data of a credential, with defaults filled in.

    Raises InvalidArgumentError (INVALID_CREDENTIAL_DATA) with everything that is wrong. No message quotes a value.
    """
    fields = CREDENTIAL_TYPES.get(kind)
    if fields is None:
        known = ", ".join(CREDENTIAL_TYPES)
        raise _refused([Violation("UNKNOWN_CREDENTIAL_TYPE", f"must be one of {known}", "type")])
    if not isinstance(data, dict):
        raise _refused([Violation("INVALID_TYPE", f"must be an object with {', '.join(fields)}", "data")])
    violations = [
        Violation("UNKNOWN_FIELD", f"is no field of {kind}, which has {', '.join(fields)}", f"data.{name[:64]}")
        for name in data
        if name not in fields
    ]
    checked: dict[str, Any] = {}
    for name, field in fields.items():
        value = data.get(name, field.default)
        if value is None:
            violations.append(Violation("REQUIRED", "is needed", f"data.{name}"))
        elif wrong := field.check(value):
            violations.append(Violation("INVALID_VALUE", wrong, f"data.{name}"))
        checked[name] = value
    if violations:
        raise _refused(violations)
    return checked


def _refused(violations: list[Violation]) -> InvalidArgumentError:
    told = "; ".join(f"{item.path} {item.message}" for item in violations[:5])
    return InvalidArgumentError(
        f"The credential cannot be stored: {told}.", reason="INVALID_CREDENTIAL_DATA", violations=tuple(violations)
    )
