"""The process, its schema, and the catalogue it waits for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import run_pb2
from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from headrace.workflows.v1 import definition_pb2 as d
from headrace.workflows.v1 import workflow_service_pb2 as pb
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from services.kit.errors import PermissionDeniedError, UnavailableError
from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import CallerTokens
from services.kit.migrate import differences
from services.workflows.storage.tables import metadata
from services.workflows.transport.node_types import GrpcNodeTypes
from tests.integration.workflows.client import Client, node, sound
from tests.integration.workflows.conftest import is_healthy
from tests.integration.workflows.executor import Executor, serving
from tests.support.waiting import await_until


async def test_tables_and_revisions_agree(database_url: str) -> None:
    assert await differences(database_url, schema="workflows", metadata=metadata) == []


async def test_an_unknown_type_is_looked_up_anew(tokens: CallerTokens, sockets: Path) -> None:
    executor = Executor()
    target = f"unix:{sockets}/renewed"
    async with serving(executor, target, tokens), open_channel(target) as channel:
        types = GrpcNodeTypes(ExecutorServiceStub(channel), Rpc(tokens.for_service("workflows")), least_interval=0)
        await types.start()
        await types.loaded.wait()
        before = types.node_types()
        await types.refresh()
        assert types.node_types() is before
        executor.types.append(run_pb2.NodeType(type="new", config_schema=value_pb2.Json(utf8=b'{"type": "object"}')))
        executor.types.append(run_pb2.NodeType(type="broken", config_schema=value_pb2.Json(utf8=b'{"type": "none"}')))
        await types.refresh()
        assert set(types.node_types()) == {*before, "new"}
        await types.stop()


async def test_it_starts_without_the_executor_and_is_healthy_once_it_knows_the_types(
    environment: dict[str, str], sockets: Path, tokens: CallerTokens
) -> None:
    listen, target = f"unix:{sockets}/alone", f"unix:{sockets}/late-executor"
    variables = environment | {"HEADRACE_WORKFLOWS_LISTEN": listen, "HEADRACE_EXECUTOR_TARGET": target}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.workflows.main",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)} | variables,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with open_channel(listen) as channel:
            # Not until its file exists, which it does a moment before anything listens there.
            await asyncio.wait_for(channel.channel_ready(), timeout=40)
            client = Client(WorkflowServiceStub(channel), Rpc(tokens.for_service("gateway")))
            assert not await is_healthy(channel)
            with pytest.raises(UnavailableError, match="node types"):
                await client.CreateWorkflow(name="w", definition=sound())
            async with serving(Executor(), target, tokens):
                await await_until(lambda: is_healthy(channel), within=15)
                created = await client.CreateWorkflow(name="w", definition=d.Definition(nodes=[node("a")]))
                assert not created.issues
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), timeout=15) == 0


async def test_a_grant_of_a_worker_covers_nothing_here(client: Client, tokens: CallerTokens) -> None:
    workflow = await client.workflow()
    grant = tokens.mint_grant(project_id=client.project_id, run_id="r", lifetime_seconds=60)
    for method, request in (
        (client.stub.GetWorkflow, pb.GetWorkflowRequest(project_id=client.project_id, workflow_id=workflow.id)),
        (client.stub.GetVersionById, pb.GetVersionByIdRequest(project_id=client.project_id)),
    ):
        with pytest.raises(PermissionDeniedError):
            await Rpc(lambda: grant).call(method, request, timeout=5)
