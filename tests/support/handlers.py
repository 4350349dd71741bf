"""Running one handler as a worker does: real clients, and the border to other services on real sockets."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson
from headrace.auth.v1 import auth_service_pb2
from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceServicer
from headrace.common.v1 import value_pb2

from services.executor.egress import Egress, HostPort
from services.executor.handlers.base import Context, NodeType, Result
from services.executor.handlers.clients import Services, Targets
from services.kit.errors import NotFoundError
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens

TOKENS = CallerTokens(os.urandom(32))


class Credentials(AuthServiceServicer):
    """Stands for auth at the network border: gives the credentials that a test has set."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, dict[str, Any]]] = {}

    async def ResolveCredential(self, request: Any, context: Any) -> auth_service_pb2.ResolveCredentialResponse:
        if request.name not in self.known:
            raise NotFoundError("no such credential", reason="CREDENTIAL_NOT_FOUND")
        kind, data = self.known[request.name]
        return auth_service_pb2.ResolveCredentialResponse(type=kind, data=value_pb2.Json(utf8=orjson.dumps(data)))


class HandlerBench:
    """Runs handlers under a grant for one project."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.project_id = str(uuid4())
        self.tokens: list[str] = []

    async def run(
        self, node_type: NodeType, *, timeout_seconds: float = 10, effect_key: str = "", **config: Any
    ) -> Result:
        """Run one attempt. `effect_key` is the idempotency key; a new one when empty."""
        context = Context(
            project_id=self.project_id,
            run_id=uuid4(),
            node_key="node",
            item_path="",
            attempt=1,
            idempotency_key=effect_key or str(uuid4()),
            grant=TOKENS.mint_grant(project_id=self.project_id, run_id="r", lifetime_seconds=60),
            timeout_seconds=timeout_seconds,
            services=self.services,
            emit_token=self.tokens.append,
        )
        assert node_type.handler is not None
        return await node_type.handler(context, node_type.config.model_validate(config))


@asynccontextmanager
async def handler_bench(
    *, target: str = "127.0.0.1:1", allow: Iterable[HostPort] = (), deny: Iterable[HostPort] = (), **egress: Any
) -> AsyncIterator[HandlerBench]:
    """A bench whose services are all at `target`."""
    targets = Targets(auth=target, executor=target, llm=target, vector=target)
    services = Services(targets, egress=Egress(allow, deny, **egress))
    try:
        yield HandlerBench(services)
    finally:
        await services.close()


@asynccontextmanager
async def served(address: str, registrations: Iterable[Any], grant_methods: Iterable[str]) -> AsyncIterator[None]:
    """Servicers behind the real interceptors: `registrations` are (add function, servicer)."""
    server = GrpcServer(listen=address, tokens=TOKENS, service_names=(), grant_methods=grant_methods)
    for add, servicer in registrations:
        add(servicer, server.server)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
