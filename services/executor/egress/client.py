"""HTTP requests to places that users name."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from opentelemetry import trace

from services.executor.egress.decoding import decode_body
from services.executor.egress.dialing import Dialer, Resolve, resolve_by_system
from services.executor.egress.errors import EgressError
from services.executor.egress.headers import Headers, check_headers, headers_for_other_origin
from services.executor.egress.http1 import ConnectionLostError, Http1Connection, HttpResponse
from services.executor.egress.rules import HostPort, Rules, Url
from services.kit.tracing import client_span, mark_failed, traceparent_of

MAX_REDIRECTS = 3
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Servers close idle connections; common limits are 5 s (uvicorn) and more. A shorter one here avoids the race.
_IDLE_SECONDS = 4.0
_AGE_SECONDS = 60.0
"""Names are resolved again at least this often."""
_MAX_IDLE = 32
"""Idle connections kept for each project and origin."""

_Key = tuple[str, str, HostPort]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request. Headers are checked here; framing headers and `Host` are added here."""

    method: str
    url: str
    headers: Headers = ()
    body: bytes = b""
    accepts_redirect: frozenset[int] = frozenset()
    """Redirect statuses that the caller wants to see instead of having them followed."""


class Egress:
    """Makes requests within the rules.

    Ignores proxies and credentials of the environment. Connections are kept and reused for one project and origin; a
    kept connection leads to an address that was checked when it was dialled, at most 60 s ago.
    """

    def __init__(
        self,
        allow: Iterable[HostPort] = (),
        deny: Iterable[HostPort] = (),
        *,
        resolve: Resolve = resolve_by_system,
        max_body_bytes: int = 1024 * 1024,
        user_agent: str = "headrace",
        sends_traceparent: bool = False,
    ) -> None:
        """`sends_traceparent`: servers are told the trace that a request belongs to."""
        self.dialer = Dialer(Rules(allow, deny), resolve=resolve)
        self._max_body_bytes = max_body_bytes
        self._user_agent = user_agent
        self._sends_traceparent = sends_traceparent
        self._idle: defaultdict[_Key, list[Http1Connection]] = defaultdict(list)
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(self, request: HttpRequest, *, project_id: str, timeout_seconds: float) -> HttpResponse:
        """Send a request, following up to three redirects. Raises EgressError.

        `timeout_seconds` bounds it all, redirects and a slow body included. A repeatable request is sent again when a
        kept connection turns out to be closed; others are not, because the server may have acted on them.
        """
        url = self.dialer.rules.parse_url(request.url)
        headers = check_headers(request.headers)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._follow(url, replace(request, headers=headers), project_id)
        except TimeoutError as error:
            raise EgressError(
                "HTTP_TIMEOUT",
                f"{url.place} did not answer within {timeout_seconds:g} s. "
                "Raise the node's `timeout_seconds` if the server needs longer.",
                retryable=True,
                outcome_unknown=True,
            ) from error

    async def close(self) -> None:
        """Close all kept connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _follow(self, url: Url, request: HttpRequest, project_id: str) -> HttpResponse:
        for number in range(MAX_REDIRECTS + 1):
            response = await self._send_traced(url, request, project_id, resends=number)
            location = response.header("location")
            if response.status not in _REDIRECTS or not location or response.status in request.accepts_redirect:
                body = decode_body(response.body, response.header("content-encoding"), self._max_body_bytes)
                return replace(response, body=body, url=str(url))
            url, request = self._redirected(url, request, response.status, location)
        raise EgressError(
            "TOO_MANY_REDIRECTS",
            f"The server redirected more than {MAX_REDIRECTS} times. Use the final URL, or mend the loop.",
        )

    def _redirected(self, url: Url, request: HttpRequest, status: int, location: str) -> tuple[Url, HttpRequest]:
        try:
            target = self.dialer.rules.parse_url(urljoin(str(url), location))
        except EgressError as error:
            raise EgressError(
                error.reason, f"The server redirects to a place that is not allowed. {error.message}"
            ) from error
        except ValueError as error:
            raise EgressError("INVALID_URL", "The server redirects to something that is not a URL.") from error
        if url.scheme == "https" and target.scheme == "http":
            raise EgressError("URL_NOT_ALLOWED", "The server redirects from https to http, which is not followed.")
        if status == 303 or (status in {301, 302} and request.method == "POST"):
            method = "HEAD" if request.method == "HEAD" else "GET"
            kept = tuple(item for item in request.headers if item[0].lower() not in {"content-type", "idempotency-key"})
            request = replace(request, method=method, body=b"", headers=kept)
        if target.origin != url.origin:
            request = replace(request, headers=headers_for_other_origin(request.headers))
        return target, request

    async def _send_traced(self, url: Url, request: HttpRequest, project_id: str, *, resends: int) -> HttpResponse:
        """Of the URL a span has the origin alone: paths and queries of other people's APIs hold secrets."""
        span = client_span(request.method)
        if span.is_recording():
            span.set_attributes({"http.request.method": request.method, "url.scheme": url.scheme})
            span.set_attributes({"server.address": url.place.host, "server.port": url.place.port})
            if resends:
                span.set_attribute("http.request.resend_count", resends)
        try:
            response = await self._send(url, request, project_id, span)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 400:
                mark_failed(span, str(response.status))
            return response
        except EgressError as error:
            mark_failed(span, error.reason)
            raise
        finally:
            span.end()

    async def _send(self, url: Url, request: HttpRequest, project_id: str, span: trace.Span) -> HttpResponse:
        key = (project_id, url.scheme, url.place)
        headers = self._all_headers(url, request, traceparent_of(span) if self._sends_traceparent else "")
        while True:
            connection = self._take(key)
            kept = connection is not None
            if connection is None:
                _, connection = await self.dialer.connect(
                    Http1Connection, url.place, operator_allowed=url.operator_allowed, tls=url.scheme == "https"
                )
            try:
                response = await connection.exchange(
                    method=request.method,
                    target=url.target,
                    headers=headers,
                    body=request.body,
                    max_bytes=self._max_body_bytes,
                )
            except ConnectionLostError as error:
                if kept and error.untouched and request.method in _SAFE_METHODS:
                    continue
                raise EgressError(
                    "CONNECTION_LOST",
                    f"{url.place} closed the connection before its answer ended.",
                    retryable=True,
                    outcome_unknown=True,
                ) from error
            self._keep(key, connection)
            return response

    def _all_headers(self, url: Url, request: HttpRequest, traceparent: str) -> Headers:
        given = {name.lower() for name, _ in request.headers}
        own = [("Host", url.host_header), ("Accept-Encoding", "identity")]
        if "accept" not in given:
            own.append(("Accept", "*/*"))
        if "user-agent" not in given:
            own.append(("User-Agent", self._user_agent))
        if traceparent and "traceparent" not in given:
            own.append(("traceparent", traceparent))
        if request.body or request.method not in _SAFE_METHODS:
            own.append(("Content-Length", str(len(request.body))))
        return (*own, *request.headers)

    def _take(self, key: _Key) -> Http1Connection | None:
        now = asyncio.get_running_loop().time()
        kept = self._idle.get(key)
        while kept:
            connection = kept.pop()
            if connection.reusable and not _is_stale(connection, now):
                return connection
            connection.close()
        return None

    def _keep(self, key: _Key, connection: Http1Connection) -> None:
        if not connection.reusable:
            return
        if self._closed or len(self._idle[key]) >= _MAX_IDLE:
            connection.close()
            return
        self._idle[key].append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._close_stale)

    def _close_stale(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for key, connections in list(self._idle.items()):
            stale = [item for item in connections if not item.reusable or _is_stale(item, now)]
            for connection in stale:
                connection.close()
                connections.remove(connection)
            if not connections:
                del self._idle[key]
        self._sweep = loop.call_later(_IDLE_SECONDS, self._close_stale) if self._idle else None


def _is_stale(connection: Http1Connection, now: float) -> bool:
    return now - connection.idle_since > _IDLE_SECONDS or now - connection.opened_at > _AGE_SECONDS
