"""What clients are told when something is wrong: every error as `application/problem+json` (RFC 9457), by one table.

Below `/v1/` the body holds an `error` member besides, which OpenAI's clients read.
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from services.kit import errors
from services.kit.errors import DomainError, Violation

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "headrace.request_id"
"""Key of the request's id in the ASGI scope."""


class RequestError(DomainError):
    """Wrong with the HTTP request itself, before any service is asked. Carries its status, as no other does."""

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.status = status
        self.headers = headers or {}


# The first class that fits.
_TABLE: tuple[tuple[type[DomainError], HTTPStatus], ...] = (
    (errors.InvalidArgumentError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.UnauthenticatedError, HTTPStatus.UNAUTHORIZED),
    (errors.PermissionDeniedError, HTTPStatus.FORBIDDEN),
    (errors.NotFoundError, HTTPStatus.NOT_FOUND),
    (errors.AlreadyExistsError, HTTPStatus.CONFLICT),
    (errors.RevisionMismatchError, HTTPStatus.PRECONDITION_FAILED),
    (errors.ConflictError, HTTPStatus.CONFLICT),
    (errors.FailedPreconditionError, HTTPStatus.CONFLICT),
    (errors.ResourceExhaustedError, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.DeadlineExceededError, HTTPStatus.GATEWAY_TIMEOUT),
    (errors.InternalError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
# Reasons whose status says more than that of their class.
_BY_REASON = {
    "INVALID_JSON": HTTPStatus.BAD_REQUEST,
    "INVALID_DEFINITION": HTTPStatus.UNPROCESSABLE_ENTITY,
    "MESSAGE_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_RETRYABLE = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_OPENAI_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def status_of(error: DomainError) -> HTTPStatus:
    """The HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    by_reason = _BY_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    return next((status for kind, status in _TABLE if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(error: DomainError, scope: Scope) -> dict[str, Any]:
    """The body of the answer to a request that failed with `error`."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": f"urn:headrace:problem:{error.reason.lower().replace('_', '-')}",
        "title": error.reason.replace("_", " ").capitalize(),
        "status": status.value,
        "detail": error.message,
        "instance": printable(scope.get("path", "")),
        "reason": error.reason,
        "request_id": scope.get(REQUEST_ID, ""),
    }
    if error.violations or status is HTTPStatus.UNPROCESSABLE_ENTITY:
        body["violations"] = [_violation(item) for item in error.violations]
    if error.metadata:
        body["metadata"] = error.metadata
    if scope.get("path", "").startswith("/v1/"):
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        body["error"] = {
            "message": error.message,
            "type": _OPENAI_TYPES.get(status, kind),
            "param": error.violations[0].path or None if error.violations else None,
            "code": error.reason.lower(),
        }
    return body


def problem_response(error: DomainError, scope: Scope) -> Response:
    """The whole answer to a request that failed with `error`."""
    status = status_of(error)
    headers = dict(error.headers) if isinstance(error, RequestError) else {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="headrace"'
    if status in _RETRYABLE or error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1.0)))
    body = orjson.dumps(problem(error, scope))
    return Response(body, status_code=status.value, headers=headers, media_type=MEDIA_TYPE)


def from_status(status: int, headers: Mapping[str, str] | None = None) -> DomainError:
    """The error for a bare status, as routers raise it."""
    known = HTTPStatus(status)
    if known is HTTPStatus.NOT_FOUND:
        return RequestError(known, "ROUTE_NOT_FOUND", "There is no such path. /openapi.json lists all.")
    if known is HTTPStatus.METHOD_NOT_ALLOWED:
        message = "This path does not know the method. The Allow header lists those it knows."
        return RequestError(known, "METHOD_NOT_ALLOWED", message, headers=headers)
    return RequestError(known, known.name, known.description or known.phrase, headers=headers)


def from_validation(found: Sequence[Mapping[str, Any]]) -> DomainError:
    """The error for what Pydantic found wrong with parameters or a body."""
    violations = tuple(
        Violation(str(item["type"]).upper(), _sentence(str(item["msg"])), _json_path(item["loc"]))
        for item in found[:100]
    )
    first = violations[0]
    place = f"{first.path}: " if first.path else ""
    return errors.InvalidArgumentError(f"The request is not valid. {place}{first.message}", violations=violations)


def printable(text: str) -> str:
    """Text from a request, made fit to be echoed in JSON and logs: half surrogates and control characters replaced."""
    text = text[:512].encode(errors="replace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _violation(item: Violation) -> dict[str, str]:
    body = {"code": item.code, "message": item.message, "path": item.path}
    if item.node_key:
        body["node_key"] = item.node_key
    body["severity"] = item.severity
    return body


def _json_path(location: Sequence[str | int]) -> str:
    path = ""
    # The first step says where: body, query, path or header.
    for step in location[1:]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return printable(path)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:500] + ("" if text.endswith(".") else ".")
