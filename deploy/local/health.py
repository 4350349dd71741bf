"""Health checks of the services as `deploy.local.processes.Probe`s: each returns, or raises while it is not well."""

from __future__ import annotations

import os

import httpx

# Processes are started while the channels below are open. gRPC's own fork support would get in the way, and a child
# of ours executes another program at once and never uses them. Read when grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.errors import StackError

_CHANNEL = [
    # A service that is starting is asked again soon, not after the library's second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]


class GrpcHealth:
    """Asks the standard gRPC health service of one process, over one channel."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None

    async def __call__(self) -> None:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=_CHANNEL)
        check = health_pb2_grpc.HealthStub(self._channel).Check
        reply = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=4)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise StackError(f"{self._address} is not serving yet.")

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


class HttpReadiness:
    """Asks the gateway's `/readyz`, which asks what the gateway depends on."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/readyz"
        self._client = httpx.AsyncClient(timeout=4, trust_env=False)

    async def __call__(self) -> None:
        (await self._client.get(self._url)).raise_for_status()

    async def close(self) -> None:
        await self._client.aclose()
