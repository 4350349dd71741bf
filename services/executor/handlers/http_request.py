"""`http_request`: calls an HTTP API through egress."""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import orjson
from pydantic import Field, field_validator, model_validator

from services.executor.egress import EgressError, HttpRequest, HttpResponse
from services.executor.handlers.base import (
    ConfigModel,
    Context,
    Effect,
    NodeType,
    Result,
    RetryableError,
    TerminalError,
)
from services.executor.handlers.clients import Credential, Services
from services.executor.handlers.failures import failure_of_egress
from services.kit import strict_json
from services.kit.errors import InvalidArgumentError

_REPEATED_WITH_KEY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_MAX_RETRY_AFTER_SECONDS = 3600.0
_MAX_JSON_BYTES = 16 * 1024 * 1024
"""Above any limit of egress, which applies first."""
_SHOWN_BODY = 1000
_STATUS_PART = re.compile(r"([1-5])xx|([1-5]\d\d)(?:-([1-5]\d\d))?", re.IGNORECASE)

Scalar = str | int | float | bool


class HttpRequestConfig(ConfigModel):
    """What to send, and which answers count as success."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] = Field(
        "GET", title="Method", description="HTTP method."
    )
    url: str = Field(title="URL", description="Starts with http:// or https://. Only public hosts can be reached.")
    headers: dict[str, Scalar] = Field(
        default_factory=dict, title="Headers", description="Request headers by name. Use `credential` for secrets."
    )
    query: dict[str, Scalar | list[Scalar] | None] = Field(
        default_factory=dict,
        title="Query",
        description="Query parameters, added to the URL and percent-encoded. A list repeats its parameter.",
    )
    json_: Any = Field(None, alias="json", title="JSON body", description="Sent as JSON. Instead of `body`.")
    body: str | None = Field(
        None, title="Body", description="Sent as it is, UTF-8; set Content-Type yourself. Instead of `json`."
    )
    credential: str | None = Field(
        None, title="Credential", description="Name of a credential of type http_bearer, http_basic or http_header."
    )
    expect_status: str = Field(
        "2xx",
        title="Expected status",
        description='Statuses that count as success, such as "2xx", "200" or "200-299,404".',
    )

    @field_validator("method", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("expect_status", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("expect_status")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        expected_statuses(value)
        return value

    @model_validator(mode="after")
    def _one_body(self) -> "HttpRequestConfig":
        if self.body is not None and "json_" in self.model_fields_set:
            raise ValueError("give `json` or `body`, not both")
        return self


class HttpRequestOutput(ConfigModel):
    """The answer."""

    status: int = Field(title="Status", description="HTTP status.")
    headers: dict[str, str] = Field(title="Headers", description="Response headers, names in lower case.")
    json_: Any = Field(None, alias="json", title="JSON", description="The body, when it is JSON.")
    text: str | None = Field(None, title="Text", description="The body as text, when it is not JSON.")


async def http_request(context: Context, config: HttpRequestConfig) -> Result:
    """Send the request and judge its answer."""
    services: Services = context.services
    expected = expected_statuses(config.expect_status)
    headers = {name: _text(value) for name, value in config.headers.items()}
    body = _body(config, headers)
    if config.method in _REPEATED_WITH_KEY:
        _default(headers, "Idempotency-Key", context.idempotency_key)
    if config.credential:
        _authorise(headers, await services.credential(context, config.credential))
    request = HttpRequest(
        method=config.method,
        url=_with_query(config),
        headers=tuple(headers.items()),
        body=body,
        accepts_redirect=frozenset(status for status in range(300, 400) if status in expected),
    )
    try:
        response = await services.egress.request(
            request, project_id=context.project_id, timeout_seconds=context.timeout_seconds
        )
    except EgressError as error:
        raise failure_of_egress(error) from error
    if response.status not in expected:
        raise _unexpected(config, response)
    return Result(_output(response))


@lru_cache(maxsize=256)
def expected_statuses(pattern: str) -> frozenset[int]:
    """Statuses of a pattern such as `2xx`, `200` or `200-299,404`. Raises ValueError."""
    found: set[int] = set()
    for part in pattern.split(","):
        match = _STATUS_PART.fullmatch(part.strip())
        if match is None:
            raise ValueError('expect_status is a list such as "2xx", "200" or "200-299,404"')
        family, first, last = match.groups()
        if family:
            found.update(range(int(family) * 100, int(family) * 100 + 100))
        else:
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(value: Scalar) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _default(headers: dict[str, str], name: str, value: str) -> None:
    """Set a header unless the author did, in any spelling."""
    if not any(given.lower() == name.lower() for given in headers):
        headers[name] = value


def _body(config: HttpRequestConfig, headers: dict[str, str]) -> bytes:
    if "json_" in config.model_fields_set:
        _default(headers, "Content-Type", "application/json")
        return orjson.dumps(config.json_)
    if config.body is None:
        return b""
    _default(headers, "Content-Type", "text/plain; charset=utf-8")
    return config.body.encode()


def _with_query(config: HttpRequestConfig) -> str:
    if not config.query:
        return config.url
    pairs = [
        (name, _text(item))
        for name, value in config.query.items()
        for item in (value if isinstance(value, list) else [value])
        if item is not None
    ]
    # Textually: the URL is taken apart by egress alone, so that no two parsers can read it differently.
    url = config.url.partition("#")[0]
    return url + ("&" if "?" in url else "?") + urlencode(pairs, quote_via=quote)


def _authorise(headers: dict[str, str], credential: Credential) -> None:
    data = credential.data
    match credential.type:
        case "http_bearer":
            name, value = "Authorization", f"Bearer {data['token']}"
        case "http_basic":
            pair = f"{data['username']}:{data['password']}".encode()
            name, value = "Authorization", "Basic " + base64.b64encode(pair).decode()
        case "http_header":
            name, value = data["name"], data["value"]
        case _:
            raise TerminalError(
                "CREDENTIAL_TYPE_MISMATCH",
                f"The credential {credential.name!r} is of type {credential.type}; http_request takes http_bearer, "
                "http_basic or http_header.",
            )
    for given in [given for given in headers if given.lower() == name.lower()]:
        del headers[given]
    headers[name] = value


def _unexpected(config: HttpRequestConfig, response: HttpResponse) -> TerminalError | RetryableError:
    place = urlsplit(response.url).netloc
    message = (
        f"{config.method} {place} answered with status {response.status}, expected was {config.expect_status}. "
        "Change the request, or `expect_status` if this answer is fine."
    )
    shown = response.body[:_SHOWN_BODY].decode("utf-8", "replace").replace("\x00", "\ufffd")
    details = {"status": response.status, "body": shown}
    if response.status in _RETRYABLE_STATUSES or response.status >= 500:
        return RetryableError("HTTP_STATUS", message, details=details, retry_after=_retry_after(response))
    return TerminalError("HTTP_STATUS", message, details=details)


def _retry_after(response: HttpResponse) -> float | None:
    """RFC 9110 §10.2.3: seconds or a date. At most an hour, so that a server cannot park a run for ever."""
    text = response.header("retry-after")
    if not text:
        return None
    try:
        if text.isdecimal():
            seconds = float(text[:9])
        else:
            moment = parsedate_to_datetime(text)
            seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


def _output(response: HttpResponse) -> dict[str, Any]:
    headers: dict[str, str] = {}
    for name, value in response.headers:
        shown = value.replace("\x00", "\ufffd")
        headers[name] = f"{headers[name]}, {shown}" if name in headers else shown
    output: dict[str, Any] = {"status": response.status, "headers": headers}
    kind, _, parameters = response.header("content-type").partition(";")
    kind = kind.strip().lower()
    if response.body and (kind == "application/json" or kind.endswith("+json")):
        output["json"] = _parsed(response)
    else:
        output["text"] = _decoded(response.body, parameters)
    return output


def _parsed(response: HttpResponse) -> Any:
    try:
        return strict_json.loads(response.body, max_bytes=_MAX_JSON_BYTES)
    except InvalidArgumentError as error:
        raise TerminalError(
            "INVALID_RESPONSE",
            f"{urlsplit(response.url).netloc} called its answer JSON, but it cannot be read: {error.message}",
            details={"status": response.status},
        ) from error


def _decoded(body: bytes, parameters: str) -> str:
    match = re.search(r"charset\s*=\s*\"?([A-Za-z0-9._-]{1,40})", parameters, re.IGNORECASE)
    try:
        text = body.decode(match.group(1) if match else "utf-8", "replace")
    except (LookupError, UnicodeError):  # no such charset, or one that is no text encoding
        text = body.decode("utf-8", "replace")
    # Neither has a place in JSON as PostgreSQL keeps it (kit.strict_json); utf-7 and its like can make surrogates.
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _effect(config: Mapping[str, Any]) -> Effect:
    """Safe methods change nothing (RFC 9110 §9.2.1); with the others goes the idempotency key."""
    return "read" if config.get("method", "GET") in ("GET", "HEAD", "OPTIONS") else "idempotent"


HTTP_REQUEST = NodeType(
    name="http_request",
    title="HTTP request",
    help="Calls an HTTP API and passes on its answer.",
    icon="globe",
    category="integration",
    config=HttpRequestConfig,
    output=HttpRequestOutput,
    handler=http_request,
    effect_of=_effect,
)
