"""The gRPC server that every service runs: identity, deadlines, errors, metrics, health, reflection, graceful stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeAlias, cast

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import context as otel_context
from opentelemetry import trace
from prometheus_client import Histogram

from services.kit import grpc_status
from services.kit.errors import (
    DomainError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from services.kit.grpc_client import MAX_MESSAGE_BYTES, REQUEST_ID_KEY, rpc_facts
from services.kit.identity import Caller, CallerTokens
from services.kit.ids import new_id
from services.kit.logging import CURRENT_REQUEST
from services.kit.tracing import context_of, mark_failed, server_span

log = structlog.get_logger(__name__)

_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
_DURATION = Histogram(
    "headrace_rpc_server_duration_seconds",
    "Time to answer a gRPC call.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
# Looking labels up costs as much as counting.
_duration = lru_cache(maxsize=1024)(_DURATION.labels)
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Statuses that are the server's fault, by OpenTelemetry's conventions for gRPC."""
_MAX_REQUEST_ID = 128
# Generic for type checkers only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_CALLER: ContextVar[Caller] = ContextVar("headrace_caller")


def current_caller() -> Caller:
    """Who made the call being answered."""
    return _CALLER.get()


class _Guard(grpc.aio.ServerInterceptor):
    """Verifies the caller, requires a deadline, and turns exceptions into statuses, for every method but health."""

    def __init__(self, tokens: CallerTokens, grant_methods: frozenset[str]) -> None:
        self._tokens = tokens
        self._grant_methods = grant_methods
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(_OPEN_SERVICES):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> Handler:
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        # The stubs type handlers for synchronous servers only.
        unary_unary: Any = handler.unary_unary
        unary_stream: Any = handler.unary_stream
        if handler.response_streaming:

            async def answer_stream(request: Any, context: Context) -> AsyncIterator[Any]:
                async with _Call(method, context) as metadata:
                    self._admit(method, request, context, metadata)
                    async for message in unary_stream(request, context):
                        yield message

            make_stream: Any = grpc.unary_stream_rpc_method_handler
            return cast("Handler", make_stream(answer_stream, **coding))

        async def answer(request: Any, context: Context) -> Any:
            async with _Call(method, context) as metadata:
                self._admit(method, request, context, metadata)
                return await unary_unary(request, context)

        make_unary: Any = grpc.unary_unary_rpc_method_handler
        return cast("Handler", make_unary(answer, **coding))

    def _admit(self, method: str, request: Any, context: Context, metadata: Mapping[str, str | bytes]) -> None:
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme != "Bearer":
            raise UnauthenticatedError("This method needs `authorization: Bearer <caller token>`.")
        caller = self._tokens.verify(token)
        if caller.is_grant:
            if method not in self._grant_methods:
                raise PermissionDeniedError("A worker's grant does not cover this method.")
            if request.project_id != caller.project_id:
                # What belongs to another project does not exist for this caller.
                raise NotFoundError("There is no such project for this caller.", reason="PROJECT_NOT_FOUND")
        if context.time_remaining() is None:
            raise InvalidArgumentError("Set a deadline on the call.", reason="DEADLINE_REQUIRED")
        _CALLER.set(caller)


class _Call:
    """One answered call: its span, its duration, and its way out when something is raised."""

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context
        self._started = 0.0

    async def __aenter__(self) -> Mapping[str, str | bytes]:
        """The call's metadata."""
        self._started = time.perf_counter()
        metadata = dict(self._context.invocation_metadata() or ())
        facts = rpc_facts(self._method)
        caller = context_of(str(metadata.get("traceparent", "")))
        self._span = server_span(facts.name, caller, attributes=facts.attributes)
        # By hand: the context manager costs twice what the span does. The call has a task and so a context of its own.
        otel_context.attach(trace.set_span_in_context(self._span))
        if request_id := metadata.get(REQUEST_ID_KEY):
            CURRENT_REQUEST.set(str(request_id)[:_MAX_REQUEST_ID])
        return metadata

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        code = grpc.StatusCode.OK if error is None else _code(error)
        if self._span.is_recording():
            self._span.set_attribute("rpc.response.status_code", code.name)
            if code in _FAULTS:
                mark_failed(self._span, error.reason if isinstance(error, DomainError) else type(error).__name__)
        self._span.end()
        _duration(self._method, code.name).observe(time.perf_counter() - self._started)
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            await grpc_status.abort(self._context, _for_caller(error, self._method))


def _code(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, DomainError):
        return grpc_status.code_of(error)
    return grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else grpc.StatusCode.INTERNAL


def _for_caller(error: Exception, method: str) -> DomainError:
    """What the caller may see: domain errors as they are, lost connections as unavailable, the rest masked."""
    if isinstance(error, DomainError) and not isinstance(error, InternalError):
        log.info("rpc_refused", method=method, reason=error.reason, message=error.message)
        return error
    if isinstance(error, ConnectionError | TimeoutError):
        log.warning("rpc_dependency_lost", method=method, error=repr(error))
        return UnavailableError("A part of the service does not answer at the moment. Try again.", retry_after=1.0)
    incident = str(new_id())
    log.error("rpc_failed", method=method, incident=incident, exc_info=error)
    return InternalError(InternalError.public_message, metadata={"incident": incident})


class GrpcServer:
    """A gRPC server with health and reflection. `start` binds; `stop` drains."""

    def __init__(
        self,
        *,
        listen: str,
        tokens: CallerTokens | None,
        service_names: Iterable[str],
        grant_methods: Iterable[str] = (),
        connection_seconds: float = 60.0,
    ) -> None:
        """Make the server; register servicers on `.server` before `start`.

        `tokens` None = no services but health. `service_names` are the full names for reflection. `grant_methods` are
        the paths (`/pkg.Service/Method`) that a worker's grant may call. Connections end after `connection_seconds`,
        10% more or less, when the calls on them have: clients then ask for the name again, and find new replicas.
        """
        self.server = grpc.aio.server(
            interceptors=(_Guard(tokens, frozenset(grant_methods)),) if tokens else (),
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", int(connection_seconds * 1000)),
                # Accept the clients' keepalive pings (`grpc_client`), which are rarer than this.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        # Generated code names each method twice, the second time to the core, and then grpc.aio (1.85) looks at all
        # methods of the server for each call. What has only the first is found in a dict.
        self.server.add_registered_method_handlers = lambda *_: None  # type: ignore[method-assign]
        self._listen = listen
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def start(self) -> None:
        """Bind and serve, not yet healthy. Raises RuntimeError when the address is taken."""
        if self.server.add_insecure_port(self._listen) == 0:
            raise RuntimeError(f"cannot listen on {self._listen}: the address is taken or not of this machine")
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.server.start()

    async def set_healthy(self, healthy: bool) -> None:
        """Tell health checks whether the dependencies answer."""
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if healthy else status.NOT_SERVING)

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """Turn unhealthy, refuse new calls, let calls under way finish for `grace_seconds`, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_seconds)
