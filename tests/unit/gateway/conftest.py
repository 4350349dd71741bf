"""A gateway in this process, its peers at the end of real gRPC channels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from services.gateway.app import build_app
from services.gateway.clients import open_clients
from services.gateway.main import build_gateway
from services.gateway.routing import Gateway
from services.gateway.server import HttpServer
from services.gateway.settings import Settings, TargetSettings
from services.kit.identity import CallerTokens
from services.kit.logging import configure_logging
from services.kit.settings import CommonSettings
from tests.unit.gateway.peers import KEY, Peers, access_token, serve


@pytest.fixture(scope="session", autouse=True)
def logs() -> None:
    """Logs as the process writes them; structlog's own default takes seconds for a traceback."""
    configure_logging("gateway", CommonSettings(log_format="json"))


@pytest.fixture
def settings() -> Settings:
    return Settings(listen="127.0.0.1:0", heartbeat_seconds=0.2)


@pytest.fixture
def peer_address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/peers"


@pytest.fixture
async def peers(peer_address: str) -> AsyncIterator[Peers]:
    scripted = Peers()
    server = await serve(scripted, peer_address)
    yield scripted
    await server.stop(0)


@pytest.fixture
async def gateway(settings: Settings, peers: Peers, peer_address: str) -> AsyncIterator[Gateway]:
    names = ("auth", "workflows", "executor", "llm", "vector")
    targets = TargetSettings(**{f"{name}_target": peer_address for name in names})
    async with AsyncExitStack() as stack:
        tokens = CallerTokens(KEY).for_service("gateway")
        clients = await open_clients(targets, tokens=tokens, rpc_timeout_seconds=5, stack=stack)
        yield build_gateway(settings, clients)


@pytest.fixture
async def anonymous(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a credential."""
    transport = httpx.ASGITransport(build_app(gateway), client=("192.0.2.1", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def client(anonymous: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client with a good access token."""
    anonymous.headers["Authorization"] = f"Bearer {access_token()}"
    return anonymous


@pytest.fixture
async def served(gateway: Gateway) -> AsyncIterator[int]:
    """Port of the gateway behind its real HTTP server."""
    server = HttpServer(build_app(gateway), gateway.settings)
    await server.start()
    yield server.port
    gateway.stopping.set()
    await server.stop()
