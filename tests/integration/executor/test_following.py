"""What a follower of a run sees, and in which order; and how often one who waits for a run looks."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import worker_pb2
from headrace.executor.v1.executor_service_pb2_grpc import add_ExecutorServiceServicer_to_server
from headrace.workflows.v1 import definition_pb2
from headrace.workflows.v1 import workflow_service_pb2 as pb
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceStub
from nats.aio.client import Client

from deploy.local import databases
from services.executor.domain.answers import Answers
from services.executor.domain.limit_settings import LimitSettings
from services.executor.domain.model import EventView, NodeRef, RunView, VersionSelector
from services.executor.domain.resume_tokens import ResumeTokens
from services.executor.domain.retention import RetentionSettings
from services.executor.domain.run_states import RunStates
from services.executor.domain.runs import Runs
from services.executor.domain.versions import Versions
from services.executor.engine.state import RunStatus
from services.executor.handlers.registry import catalogue
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport import streams
from services.executor.transport.convert import graph_from_definition
from services.executor.transport.grpc import ExecutorServicer, ProjectSettings
from services.executor.transport.workflows import GrpcWorkflows
from services.kit import nats
from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.ids import new_id
from services.kit.postgres import open_engine, open_pool
from services.workflows import main as workflows_main
from tests.support.executors import PROJECT, QUEUES, Executor, a_version, committing, own_queue, success
from tests.support.waiting import await_until


class CountingStore(PostgresRunStore):
    """Counts how often a run is read."""

    looks = 0

    async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        self.looks += 1
        return await super().get_run(project_id, run_id)


@pytest.fixture
async def url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("executor")


@pytest.fixture
async def client(nats_server: str) -> AsyncIterator[Client]:
    connected = await nats.connect(nats_server, name="test-following")
    yield connected
    await connected.close()


@pytest.fixture
async def executor(url: str, client: Client) -> AsyncIterator[Executor]:
    pool = await open_pool(url, size=6)
    made = Executor(CountingStore(pool), queue=own_queue())
    await made.bus.start(client)
    async with committing(made):
        yield made
    await pool.close()


def runs_of(executor: Executor, versions: Versions | None = None) -> Runs:
    versions = versions or executor.versions
    return Runs(
        executor.store,
        versions,
        RunStates(executor.store, versions),
        executor.committer,
        executor.admission,
        variables=executor.variables,
        watch_here=executor.watchers.watch,
        watch_everywhere=executor.bus.watch,
        max_run_seconds=3600,
    )


async def test_tokens_come_between_the_start_of_their_node_and_its_end(
    executor: Executor, client: Client, url: str, postgres_server: str
) -> None:
    ref = NodeRef(new_id(), "a")
    await executor.start(ref.run_id, await a_version(executor, {"key": "a"}))
    await executor.jobs.claim("w", [(ref, 0)], "c")
    stream = runs_of(executor).follow(PROJECT, ref.run_id, 0)
    admin = await asyncpg.connect(databases.url_with(postgres_server, database=urlsplit(url).path[1:]))

    async def next_seen() -> list[str]:
        return [
            item.type if isinstance(item, EventView) else worker_pb2.NodeToken.FromString(item).text
            for item in await anext(stream)
        ]

    async def token(text: str) -> None:
        data = worker_pb2.NodeToken(node_key="a", text=text).SerializeToString()
        await client.publish(streams.run_subject(ref.run_id, streams.TOKEN), data)
        await client.flush()  # all that was published before is here now: it is the follower's own connection

    async def reads_are_held_up() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await admin.fetchval(query))

    seen = await next_seen()
    await token("live")
    seen += await next_seen()
    # The node and the run end; its last token comes while the follower reads the events of that.
    await executor.jobs.report("w", [success(ref, 1)], free_slots=0, queues=QUEUES)
    async with admin.transaction():
        await admin.execute("LOCK TABLE executor.run_events IN ACCESS EXCLUSIVE MODE")
        reading = asyncio.create_task(next_seen())
        await await_until(reads_are_held_up)
        await token("late")
    seen += await reading
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await admin.close()

    assert seen == ["run.started", "node.started", "live", "late", "node.succeeded", "run.succeeded"]


@pytest.fixture
async def workflows(
    executor: Executor, url: str, database: Callable[[str], Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, CallerTokens]]:
    """The workflows service, beside the executor's door where it learns the node types: its target, and tokens."""
    key = os.urandom(32)
    tokens = CallerTokens(key)
    async with AsyncExitStack() as stack:
        # Not tmp_path: a socket's path has at most 107 bytes.
        folder = stack.enter_context(TemporaryDirectory(prefix="hr-ex-"))
        server = GrpcServer(listen=f"unix:{folder}/executor", tokens=tokens, service_names=())
        answers = Answers(executor.store, executor.committer, ResumeTokens(key))
        engine = open_engine(url)
        stack.push_async_callback(engine.dispose)
        retention = RetentionSettings(PostgresHousekeepingStore(engine), 30)
        add_ExecutorServiceServicer_to_server(
            ExecutorServicer(
                runs_of(executor),
                answers,
                executor.store,
                ProjectSettings(LimitSettings(executor.limits, ()), executor.variables, retention),
                catalogue(),
            ),
            server.server,
        )
        await server.start()
        stack.push_async_callback(server.stop, 0)
        monkeypatch.setenv("HEADRACE_WORKFLOWS_LISTEN", f"unix:{folder}/workflows")
        monkeypatch.setenv("HEADRACE_WORKFLOWS_POSTGRES_URL", await database("workflows"))
        monkeypatch.setenv("HEADRACE_EXECUTOR_TARGET", f"unix:{folder}/executor")
        monkeypatch.setenv("HEADRACE_INTERNAL_KEY", base64.b64encode(key).decode())
        await workflows_main.serve(stack)
        health = health_pb2_grpc.HealthStub(await stack.enter_async_context(open_channel(f"unix:{folder}/workflows")))

        async def is_healthy() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await await_until(is_healthy, within=20)
        yield f"unix:{folder}/workflows", tokens


async def a_workflow(target: str, tokens: CallerTokens, node: definition_pb2.Node) -> UUID:
    """A workflow of one node, without a version."""
    request = pb.CreateWorkflowRequest(
        project_id=str(PROJECT), name="w", definition=definition_pb2.Definition(nodes=[node])
    )
    async with open_channel(target) as channel:
        call = Rpc(tokens.for_service("gateway")).call
        answer = await call(WorkflowServiceStub(channel).CreateWorkflow, request, timeout=20)
    return UUID(answer.workflow.id)


async def test_a_caller_who_waits_for_a_long_run_looks_now_and_then(
    executor: Executor, workflows: tuple[str, CallerTokens]
) -> None:
    target, tokens = workflows
    hour = definition_pb2.Node(key="d", type="delay", config=value_pb2.Json(utf8=b'{"seconds": 3600}'))
    workflow_id = await a_workflow(target, tokens, hour)
    client = GrpcWorkflows(target, tokens.for_service("executor"))
    versions = Versions(executor.store, client, lambda data: graph_from_definition(data, executor.kinds))
    run = await runs_of(executor, versions).start(
        PROJECT,
        workflow_id,
        VersionSelector(draft=True),
        input_json=b"{}",
        request_id="",
        started_by=None,
        traceparent="",
        wait_seconds=1.4,
    )
    await client.close()

    assert run.status is RunStatus.WAITING
    assert isinstance(executor.store, CountingStore)
    assert 2 <= executor.store.looks <= 4
