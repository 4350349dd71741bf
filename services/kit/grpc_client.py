"""Calls to other services: channels, identity, trace context, and errors as the server raised them."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import grpc
from opentelemetry import propagate

from services.kit.grpc_status import error_from_rpc
from services.kit.identity import TokenSource

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""gRPC's default of 4 MiB is less than a definition of 10,000 nodes; set on both sides."""

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

    A failed call raises the DomainError that the server raised. Calls by a read verb are tried again, up to four times
    in all and within the deadline, while the service cannot be reached; others are not, because nobody knows whether
    they happened.
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
        attempts = _READ_ATTEMPTS if _is_read(method) else 1
        deadline = asyncio.get_running_loop().time() + timeout
        for attempt in range(1, attempts + 1):
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await method(request, timeout=max(left, 0.001), metadata=self._metadata(token))
            except grpc.aio.AioRpcError as failure:
                pause = 0.05 * 2**attempt
                again = failure.code() is grpc.StatusCode.UNAVAILABLE and attempt < attempts and pause < left
                if not again:
                    raise error_from_rpc(failure) from failure
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float,  # noqa: ASYNC109 - as above
        token: str | None = None,
    ) -> AsyncIterator[ResponseT]:
        """Iterate over a streaming method. Leaving the iteration cancels the call."""
        call = method(request, timeout=timeout, metadata=self._metadata(token))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure) from failure
        finally:
            call.cancel()

    def _metadata(self, token: str | None) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return (("authorization", f"Bearer {token or self._tokens()}"), *carrier.items())


def _is_read(method: object) -> bool:
    path: bytes | str = getattr(method, "_method", "")
    name = (path.decode() if isinstance(path, bytes) else path).rpartition("/")[2]
    return name.startswith(_READ_VERBS)
