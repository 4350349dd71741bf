"""`headrace-healthcheck`, as a container runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kit.grpc_server import GrpcServer


async def check(service: str, port: int) -> tuple[int, str]:
    """Its status, and what it said."""
    environ = os.environ | {"HEADRACE_SERVICE": service, f"HEADRACE_{service.upper()}_LISTEN": f"0.0.0.0:{port}"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.kit.healthcheck"), env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


@asynccontextmanager
async def answering(status: str) -> AsyncIterator[int]:
    """An HTTP server that answers with a status; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /readyz HTTP/1.1")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nwords".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("healthy", [True, False])
async def test_a_service_is_as_healthy_as_it_says(healthy: bool, unused_tcp_port: int) -> None:
    server = GrpcServer(listen=f"127.0.0.1:{unused_tcp_port}", tokens=None, service_names=())
    await server.start()
    await server.set_healthy(healthy)
    assert await check("worker", unused_tcp_port) == ((0, "") if healthy else (1, "worker is not ready: NOT_SERVING\n"))
    await server.stop()


async def test_the_gateway_is_asked_whether_it_is_ready() -> None:
    async with answering("200 OK") as port:
        assert await check("gateway", port) == (0, "")
    async with answering("503 Service Unavailable") as port:
        assert await check("gateway", port) == (1, "gateway is not ready: words\n")


@pytest.mark.parametrize("service", ["gateway", "auth"])
async def test_who_does_not_listen_is_not_healthy(service: str, unused_tcp_port: int) -> None:
    status, said = await check(service, unused_tcp_port)
    assert status == 1
    assert said.startswith(f"{service} does not answer: ")
