"""The other services as the gateway calls them: one channel and one stub each, deadlines, health."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from headrace.executor.v1.table_service_pb2_grpc import TableServiceStub
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceStub
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from services.gateway.settings import TargetSettings
from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import TokenSource

if TYPE_CHECKING:
    from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceAsyncStub
    from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceAsyncStub
    from headrace.executor.v1.table_service_pb2_grpc import TableServiceAsyncStub
    from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub
    from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceAsyncStub
    from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

_HEALTH_TIMEOUT_SECONDS = 2.0
_HEALTH_CACHE_SECONDS = 1.0
"""`/readyz` is open to all: however often it is asked, the services are asked once in this time."""


@dataclass(slots=True)
class Clients:
    """Stubs of all services. `call` and `rpc.stream` make calls under the gateway's own identity."""

    rpc: Rpc
    rpc_timeout_seconds: float
    auth: "AuthServiceAsyncStub"
    workflows: "WorkflowServiceAsyncStub"
    executor: "ExecutorServiceAsyncStub"
    tables: "TableServiceAsyncStub"
    llm: "LlmServiceAsyncStub"
    vector: "VectorServiceAsyncStub"
    channels: Mapping[str, grpc.aio.Channel]
    _health: dict[str, bool] = field(default_factory=dict)
    _health_until: float = 0.0

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - handed to gRPC as the call's deadline
    ) -> ResponseT:
        """Call a unary method. `timeout` is in seconds. Raises the DomainError that the service raised."""
        return await self.rpc.call(method, request, timeout=timeout or self.rpc_timeout_seconds)

    async def health(self) -> dict[str, bool]:
        """Service -> whether it says that it is serving; asked all at once, at most once a second."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._health_until:
            answers = await asyncio.gather(*(_is_serving(channel) for channel in self.channels.values()))
            self._health = dict(zip(self.channels, answers, strict=True))
            self._health_until = loop.time() + _HEALTH_CACHE_SECONDS
        return self._health


async def _is_serving(channel: grpc.aio.Channel) -> bool:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def open_clients(
    targets: TargetSettings, *, tokens: TokenSource, rpc_timeout_seconds: float, stack: AsyncExitStack
) -> Clients:
    """Clients of all services, whose channels close with `stack`. Nothing connects before the first call."""
    channels: dict[str, grpc.aio.Channel] = {}
    for name in ("auth", "workflows", "executor", "llm", "vector"):
        channel = open_channel(getattr(targets, f"{name}_target"))
        channels[name] = await stack.enter_async_context(channel)
    return Clients(
        rpc=Rpc(tokens),
        rpc_timeout_seconds=rpc_timeout_seconds,
        auth=AuthServiceStub(channels["auth"]),
        workflows=WorkflowServiceStub(channels["workflows"]),
        executor=ExecutorServiceStub(channels["executor"]),
        tables=TableServiceStub(channels["executor"]),
        llm=LlmServiceStub(channels["llm"]),
        vector=VectorServiceStub(channels["vector"]),
        channels=channels,
    )
