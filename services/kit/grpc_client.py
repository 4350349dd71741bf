"""Calls to other services: channels, identity, trace context, and errors as the server raised them."""

import asyncio
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import grpc
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from services.kit.errors import DomainError
from services.kit.grpc_status import error_from_rpc, is_unreachable
from services.kit.identity import TokenSource
from services.kit.logging import CURRENT_REQUEST
from services.kit.tracing import client_span, mark_failed, traceparent_of

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""gRPC's default of 4 MiB is less than a definition of 10,000 nodes; set on both sides."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata with the id of the REST request that a call is made for."""
MAX_METADATA_BYTES = 2 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Errors travel in trailing metadata, the 1,000 issues of a definition among them; the default is 8 KiB.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A restarted service is found again within a second; the default goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Names are asked for again when a connection ends, but by default at most every 30 s: replicas that are replaced
    # one after the other would all be gone before that.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Half-open connections are noticed without traffic.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)

# By AIP-131 and -132 these verbs change nothing, so a call that failed for want of a connection may be repeated.
_READ_VERBS = ("Get", "List", "Search", "Query", "Resolve", "Verify", "Validate", "Count", "Embed")
_READ_ATTEMPTS = 4

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel to a service. Connects when first used, shares one connection per replica, spreads calls over replicas.

    `target` is a gRPC name: `host:port`, `dns:///name:port`, `ipv4:127.0.0.1:5001,127.0.0.1:5002`.
    """
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


class Rpc:
    """Makes calls under one identity.

    A failed call raises the DomainError that the server raised. Calls by a read verb, and streams of which nothing has
    come, are tried again, up to four times in all and within the deadline, while the service cannot be reached; others
    are not, because nobody knows whether they happened.
    """

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float,  # noqa: ASYNC109 - handed to gRPC, which sends it to the server as the deadline
        token: str | None = None,
    ) -> ResponseT:
        """Call a unary method. `timeout` is in seconds; `token` replaces the caller's own identity (by a grant)."""
        facts = rpc_facts(getattr(method, "_method", b""))
        attempts = _READ_ATTEMPTS if facts.is_read else 1
        deadline = asyncio.get_running_loop().time() + timeout
        span = client_span(facts.name, facts.attributes)
        try:
            for attempt in range(1, attempts + 1):
                left = deadline - asyncio.get_running_loop().time()
                try:
                    return await method(request, timeout=max(left, 0.001), metadata=self._metadata(token, span))
                except grpc.aio.AioRpcError as failure:
                    pause = 0.05 * 2**attempt
                    is_away = failure.code() is grpc.StatusCode.UNAVAILABLE or is_unreachable(failure)
                    if not (is_away and attempt < attempts and pause < left):
                        raise _failed(span, failure) from failure
                await asyncio.sleep(pause)
            raise AssertionError("the last attempt returns or raises")
        finally:
            span.end()

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float,  # noqa: ASYNC109 - as above
        token: str | None = None,
    ) -> AsyncIterator[ResponseT]:
        """Iterate over a streaming method, which must change nothing. Leaving the iteration cancels the call."""
        facts = rpc_facts(getattr(method, "_method", b""))
        deadline = asyncio.get_running_loop().time() + timeout
        span = client_span(facts.name, facts.attributes)
        try:
            for attempt in range(1, _READ_ATTEMPTS + 1):
                left = deadline - asyncio.get_running_loop().time()
                call = method(request, timeout=max(left, 0.001), metadata=self._metadata(token, span))
                has_begun = False
                try:
                    async for message in call:
                        has_begun = True
                        yield message
                    return
                except grpc.aio.AioRpcError as failure:
                    pause = 0.05 * 2**attempt
                    may_repeat = attempt < _READ_ATTEMPTS and pause < left and not has_begun
                    if not (may_repeat and is_unreachable(failure)):
                        raise _failed(span, failure) from failure
                finally:
                    call.cancel()
                await asyncio.sleep(pause)
        finally:
            span.end()

    def _metadata(self, token: str | None, span: trace.Span) -> list[tuple[str, str]]:
        metadata = [("authorization", f"Bearer {token or self._tokens()}")]
        if traceparent := traceparent_of(span):
            metadata.append(("traceparent", traceparent))
        if request_id := CURRENT_REQUEST.get():
            metadata.append((REQUEST_ID_KEY, request_id))
        return metadata


class RpcFacts(NamedTuple):
    """What is known of a method by its path."""

    name: str
    """`package.Service/Method`, the name of its spans."""
    is_read: bool
    attributes: dict[str, AttributeValue]


@lru_cache(maxsize=1024)
def rpc_facts(path: bytes | str) -> RpcFacts:
    """The facts of `/package.Service/Method`."""
    name = (path.decode() if isinstance(path, bytes) else path).lstrip("/")
    is_read = name.rpartition("/")[2].startswith(_READ_VERBS)
    return RpcFacts(name, is_read, {"rpc.system.name": "grpc", "rpc.method": name})


def _failed(span: trace.Span, failure: grpc.aio.AioRpcError) -> DomainError:
    error = error_from_rpc(failure)
    span.set_attribute("rpc.response.status_code", failure.code().name)
    mark_failed(span, error.reason)
    return error
