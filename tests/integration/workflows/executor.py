"""A small executor: serves the real node types over a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from headrace.executor.v1 import executor_service_pb2 as pb
from headrace.executor.v1 import run_pb2
from headrace.executor.v1.executor_service_pb2_grpc import (
    ExecutorServiceServicer,
    add_ExecutorServiceServicer_to_server,
)

from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from tests.support.definitions import node_type_messages


class Executor(ExecutorServiceServicer):
    """Knows node types and nothing else; a test may add to `types`."""

    def __init__(self) -> None:
        self.types: list[run_pb2.NodeType] = node_type_messages()
        self.calls = 0

    async def ListNodeTypes(self, request: pb.ListNodeTypesRequest, context: Any) -> pb.ListNodeTypesResponse:
        self.calls += 1
        return pb.ListNodeTypesResponse(node_types=self.types)


@asynccontextmanager
async def serving(executor: Executor, socket: str, tokens: CallerTokens) -> AsyncIterator[None]:
    """The executor at a socket, while inside."""
    server = GrpcServer(listen=socket, tokens=tokens, service_names=())
    add_ExecutorServiceServicer_to_server(executor, server.server)
    await server.start()
    yield
    await server.stop(0)
