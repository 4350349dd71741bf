"""The gateway process: reads settings, builds, serves, stops in reverse."""

import asyncio
import contextlib
from contextlib import AsyncExitStack

from headrace.auth.v1 import auth_service_pb2

from services.gateway.access_tokens import AccessTokens, KeySet
from services.gateway.app import build_app
from services.gateway.clients import Clients, open_clients
from services.gateway.identity import Identity
from services.gateway.routing import Gateway
from services.gateway.server import HttpServer
from services.gateway.settings import Settings, TargetSettings
from services.kit.errors import UnavailableError
from services.kit.identity import CallerTokens
from services.kit.lifecycle import run, serve_metrics
from services.kit.settings import InternalKeySettings


def build_gateway(settings: Settings, clients: Clients) -> Gateway:
    """What the endpoints work with."""

    async def fetch_keys() -> bytes:
        reply = await clients.call(clients.auth.GetJwks, auth_service_pb2.GetJwksRequest())
        return reply.jwks.utf8

    keys = KeySet(fetch_keys)
    tokens = AccessTokens(keys, issuer=settings.token_issuer, audience=settings.token_audience)
    return Gateway(settings=settings, clients=clients, identity=Identity(tokens, clients), keys=keys)


async def start(stack: AsyncExitStack) -> HttpServer:
    """Build and start the gateway from the environment. What it puts on the stack is undone in reverse."""
    settings = Settings()
    targets = TargetSettings()
    clients = await open_clients(
        targets,
        tokens=CallerTokens(*InternalKeySettings().keys).for_service("gateway"),
        rpc_timeout_seconds=settings.rpc_timeout_seconds,
        stack=stack,
    )
    gateway = build_gateway(settings, clients)
    first_keys = asyncio.create_task(_read_keys(gateway.keys))
    stack.callback(first_keys.cancel)
    serve_metrics(settings.metrics_listen)
    server = HttpServer(build_app(gateway), settings)
    await server.start()
    stack.push_async_callback(server.stop)
    # Undone first: event streams end, and /readyz says no.
    stack.callback(gateway.stopping.set)
    return server


async def _read_keys(keys: KeySet) -> None:
    """Have the keys before the first token comes; when auth is not there yet, that token asks again."""
    with contextlib.suppress(UnavailableError):
        await keys.refresh()


def main() -> None:
    """Run the gateway until it is told to stop."""

    async def serve(stack: AsyncExitStack) -> None:
        await start(stack)

    run("gateway", serve, at_edge=True)


if __name__ == "__main__":
    main()
