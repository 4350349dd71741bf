"""The workflows service over a unix socket, in this process, on a database of the module's own."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import CallerTokens
from services.workflows import main
from tests.integration.workflows.client import Client
from tests.integration.workflows.executor import Executor, serving
from tests.support.waiting import await_until

INTERNAL_KEY = os.urandom(32)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with TemporaryDirectory(prefix="hr-wf-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def tokens() -> CallerTokens:
    return CallerTokens(INTERNAL_KEY)


@pytest.fixture(scope="module")
async def database_url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("workflows")


@pytest.fixture(scope="module")
def environment(database_url: str, sockets: Path, monkeypatch_module: pytest.MonkeyPatch) -> dict[str, str]:
    """What the service is started with."""
    variables = {
        "HEADRACE_WORKFLOWS_LISTEN": f"unix:{sockets}/workflows",
        "HEADRACE_WORKFLOWS_POSTGRES_URL": database_url,
        "HEADRACE_EXECUTOR_TARGET": f"unix:{sockets}/executor",
        "HEADRACE_INTERNAL_KEY": base64.b64encode(INTERNAL_KEY).decode(),
    }
    for name, value in variables.items():
        monkeypatch_module.setenv(name, value)
    return variables


@pytest.fixture(scope="module")
async def executor(sockets: Path, tokens: CallerTokens) -> AsyncIterator[Executor]:
    served = Executor()
    async with serving(served, f"unix:{sockets}/executor", tokens):
        yield served


@pytest.fixture(scope="module")
async def service(environment: dict[str, str], executor: Executor, tokens: CallerTokens) -> AsyncIterator[Client]:
    """A client of the running service."""
    target = environment["HEADRACE_WORKFLOWS_LISTEN"]
    async with AsyncExitStack() as stack:
        await main.serve(stack)
        async with open_channel(target) as channel:
            await await_until(lambda: is_healthy(channel))
            yield Client(WorkflowServiceStub(channel), Rpc(tokens.for_service("gateway")))


@pytest.fixture
def client(service: Client) -> Client:
    """A client with a project of its own."""
    return service.other_project()


async def is_healthy(channel: grpc.aio.Channel) -> bool:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
