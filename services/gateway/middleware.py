"""The edge, as pure ASGI: request id, admission, security headers, trace, metrics, access log."""

import asyncio
import re
import time
from http import HTTPStatus
from typing import Any

from opentelemetry import context, trace
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.access_log import AccessLog
from services.gateway.problems import REQUEST_ID, RequestError, printable, problem_response
from services.kit.ids import new_id
from services.kit.logging import CURRENT_REQUEST, trace_id
from services.kit.tracing import context_of, mark_failed, tracer

_DURATION = Histogram(
    "headrace_gateway_request_duration_seconds",
    "Time from a request's headers to the end of its answer.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
_UNDER_WAY = Gauge("headrace_gateway_requests_under_way", "Requests being answered now, event streams included.")
_TURNED_AWAY = Counter(
    "headrace_gateway_requests_turned_away_total", "Requests refused because too many were under way."
)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_DEFAULTS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Set unless the answer sets its own."""


class Edge:
    """Wraps the application: what every request gets, whatever becomes of it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_requests: int,
        body_timeout_seconds: float,
        trusted_proxies: int,
        access_log: AccessLog | None,
    ) -> None:
        self._app = app
        self._max_requests = max_requests
        self._body_timeout = body_timeout_seconds
        self._trusted_proxies = trusted_proxies
        self._access_log = access_log
        self._under_way = 0
        self._durations: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _interesting(scope)
        answer = _Answer(send, scope, headers.get(b"x-request-id", b""))
        scope["headrace.client_address"] = self._client_address(scope, headers)
        # In the context of the request's own task, so there is nothing to clear.
        CURRENT_REQUEST.set(scope[REQUEST_ID])
        started = time.perf_counter()
        self._under_way += 1
        _UNDER_WAY.set(self._under_way)
        parent = context_of(headers.get(b"traceparent", b"").decode("latin-1"))
        span = tracer.start_span("http_request", context=parent, kind=trace.SpanKind.SERVER)
        # By hand: the context manager costs as much as the span. The task's context ends with it, so nothing detaches.
        context.attach(trace.set_span_in_context(span))
        try:
            await self._serve(scope, _Timed(receive, self._body_timeout), answer)
        finally:
            if span.is_recording():
                _describe(span, scope, answer)
            span.end()
            self._under_way -= 1
            _UNDER_WAY.set(self._under_way)
            self._record(scope, answer, time.perf_counter() - started)

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if self._under_way > self._max_requests:
            _TURNED_AWAY.inc()
            message = "Too many requests are under way. Try again in a moment."
            busy = RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "OVERLOADED", message, retry_after=1.0)
            await problem_response(busy, scope)(scope, receive, answer)
            return
        try:
            await self._app(scope, receive, answer)
        except OSError:
            if not answer.disconnected:
                raise

    def _client_address(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The address that the outermost trusted proxy saw. What lies before it in the header anyone can write."""
        if self._trusted_proxies:
            hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
            if len(hops) >= self._trusted_proxies and (address := hops[-self._trusted_proxies].strip()):
                return printable(address[:64])
        client = scope.get("client")
        return str(client[0]) if client else ""

    def _record(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route, method, status = _route(scope), _method(scope), _status(answer)
        key = (method, route, status)
        duration = self._durations.get(key)
        if duration is None:
            duration = self._durations[key] = _DURATION.labels(method, route, status)
        duration.observe(seconds)
        if self._access_log is not None:
            self._access_log(
                {
                    "method": method,
                    "route": route,
                    "status": status,
                    "milliseconds": round(seconds * 1000, 2),
                    "client": scope["headrace.client_address"],
                    "request_id": scope[REQUEST_ID],
                    "trace_id": trace_id(),
                }
            )


class _Answer:
    """The `send` of one request; adds headers, and remembers what was sent."""

    __slots__ = ("_request_id", "_send", "disconnected", "status")

    def __init__(self, send: Send, scope: Scope, offered_id: bytes) -> None:
        self._send = send
        self.status = 0
        self.disconnected = False
        request_id = offered_id.decode() if _REQUEST_ID.fullmatch(offered_id) else str(new_id())
        scope[REQUEST_ID] = request_id
        self._request_id = request_id.encode()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *_SECURITY_HEADERS, (b"x-request-id", self._request_id)]
            names = {name for name, _ in headers}
            headers.extend(default for default in _DEFAULTS if default[0] not in names)
            message["headers"] = headers
        try:
            await self._send(message)
        except OSError:
            self.disconnected = True
            raise


class _Timed:
    """The `receive` of one request: a client that stops sending its body is answered 408."""

    __slots__ = ("_complete", "_receive", "_timeout")

    def __init__(self, receive: Receive, timeout_seconds: float) -> None:
        self._receive = receive
        self._timeout = timeout_seconds
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            # Waiting for the client to leave may take as long as an event stream does.
            return await self._receive()
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                "REQUEST_TIMEOUT",
                f"The request's body did not come: nothing for {self._timeout:g} s.",
                headers={"Connection": "close"},
            ) from None
        self._complete = not message.get("more_body", False)
        return message


_INTERESTING = frozenset({b"x-request-id", b"x-forwarded-for", b"traceparent"})


def _interesting(scope: Scope) -> dict[bytes, bytes]:
    return {name: value for name, value in scope["headers"] if name in _INTERESTING}


def _describe(span: trace.Span, scope: Scope, answer: _Answer) -> None:
    """Name a span by its route. Not by the path: it holds ids, and of deliveries the token."""
    route, method, status = _route(scope), _method(scope), _status(answer)
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "headrace.request.id": scope[REQUEST_ID],
        }
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        mark_failed(span, str(status))


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"


def _status(answer: _Answer) -> int:
    """499 as proxies write it: the client went away before it was answered."""
    return answer.status or 499


def _route(scope: Scope) -> str:
    """The route's template: a metric's labels and a log's fields must not grow with the ids in paths."""
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or "unmatched"
