"""Claims and reports of workers at two executors that share one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from headrace.common.v1 import value_pb2
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.committer import Committer, RunExistsError
from services.executor.domain.jobs import Jobs, Report, Success
from services.executor.domain.model import NewRun, NodeRef, Version
from services.executor.domain.run_states import RunStates
from services.executor.domain.versions import Versions
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.state import NodeState, RunState, RunStatus, Usage
from services.executor.handlers.registry import catalogue
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport.convert import graph_from_definition, node_kind
from services.kit.ids import new_id
from services.kit.postgres import open_pool

KINDS = {name: node_kind(node_type) for name, node_type in catalogue().items()}
QUEUES = frozenset({"default"})
PROJECT = uuid4()


class Silent:
    def announce(self, state: RunState, ready: Sequence[NodeState]) -> None:
        """See Announcer: nobody listens."""


class Executor:
    """What one executor process has of its own: a committer with its copies of runs."""

    def __init__(self, store: PostgresRunStore) -> None:
        self.store = store
        # Every version is in the store already: the workflows service is never asked.
        self.versions = Versions(store, None, lambda data: graph_from_definition(data, KINDS))  # type: ignore[arg-type]
        self.committer = Committer(store, RunStates(store, self.versions), Silent(), lanes=2)
        self.jobs = Jobs(store, self.committer, lease_seconds=2)

    async def start(self, run_id: UUID, version_id: UUID, run_input: object = None) -> None:
        version = await self.versions.get(version_id)

        def make() -> RunState:
            return RunState(
                run_id=run_id,
                project_id=str(PROJECT),
                workflow_id=str(version.workflow_id),
                version_id=str(version_id),
                version_number=1,
                graph=version.graph,
                input=orjson.dumps(run_input),
            )

        new = NewRun(workflow_name="w", request_hash=None, started_by=None, timeout_seconds=3600)
        await self.committer.submit_new(run_id, new, make, decide.start, lambda _, __: None)


@pytest.fixture
async def executors(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[tuple[Executor, Executor]]:
    pool = await open_pool(await database("executor"), size=6)
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    for executor in both:
        executor.committer.start()
    yield both
    for executor in both:
        await executor.committer.stop()
    await pool.close()


async def a_version(executor: Executor, *nodes: dict[str, Any]) -> UUID:
    """A chain of these nodes, as a stored version."""
    message = definition_pb2.Definition(
        nodes=[
            definition_pb2.Node(
                key=node["key"],
                type=node.get("type", "noop"),
                config=value_pb2.Json(utf8=orjson.dumps(node.get("config", {}))),
            )
            for node in nodes
        ],
        edges=[definition_pb2.Edge(source=one["key"], target=other["key"]) for one, other in pairwise(nodes)],
    )
    data = message.SerializeToString()
    version = Version(new_id(), PROJECT, uuid4(), "w", 1, data, graph_from_definition(data, KINDS))
    await executor.store.keep_version(version)
    return version.id


def success(ref: NodeRef, epoch: int, output: bytes = b"1", port: str = "") -> Report:
    return Report(ref, epoch, Success(output, port, Usage()), shown_input=None, handler_seconds=0.0)


async def test_a_run_that_is_asked_for_several_times_at_once_starts_once(executors: tuple[Executor, Executor]) -> None:
    one, other = executors
    version_id = await a_version(one, {"key": "a"}, {"key": "b"})
    run_id = new_id()
    answers = await asyncio.gather(
        *(executor.start(run_id, version_id) for executor in (one, one, one, other, other)), return_exceptions=True
    )
    assert sorted(map(type, answers), key=str) == sorted([type(None)] + [RunExistsError] * 4, key=str)
    ref = NodeRef(run_id, "a")
    (job,) = (await one.jobs.claim("w", [ref], "c")).jobs
    (reported,) = await one.jobs.report("w", [success(ref, job.epoch)], free_slots=1, queues=QUEUES)
    await one.jobs.report("w", [success(reported.next[0].ref, 1)], free_slots=1, queues=QUEUES)
    events = await one.store.list_events(PROJECT, run_id, after=0, limit=100)
    assert [event.type for event in events] == [
        *("run.started", "node.started", "node.succeeded", "node.started", "node.succeeded", "run.succeeded")
    ]


async def test_a_report_is_not_judged_by_a_copy_that_another_executor_has_left_behind(
    executors: tuple[Executor, Executor],
) -> None:
    one, other = executors
    run_id = new_id()
    ref = NodeRef(run_id, "a")
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (job,) = (await other.jobs.claim("w", [ref], "c")).jobs

    (reported,) = await one.jobs.report("w", [success(ref, job.epoch)], free_slots=0, queues=QUEUES)

    assert reported.verdict is Verdict.ACCEPTED
    assert (await one.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED


async def test_a_job_that_another_executor_took_away_can_be_claimed_here(executors: tuple[Executor, Executor]) -> None:
    one, other = executors
    run_id = new_id()
    ref = NodeRef(run_id, "a")
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (first,) = (await one.jobs.claim("w", [ref], "c")).jobs

    def lose(state: RunState) -> Verdict:
        return decide.lose_worker(state, state.root.nodes[0], first.epoch)

    await other.committer.submit(run_id, lose, lambda _, __: None)

    claimed = await one.jobs.claim("another", [ref], "d")

    assert [job.epoch for job in claimed.jobs] == [first.epoch + 2]


async def test_a_result_that_the_database_refuses_fails_its_node_and_not_its_neighbours(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    version_id = await a_version(one, {"key": "a"})
    refs = [NodeRef(new_id(), "a") for _ in range(3)]
    for ref in refs:
        await one.start(ref.run_id, version_id)
    await one.jobs.claim("w", refs, "c")
    reports = [success(ref, 1, port="a\x00b" if ref is refs[1] else "") for ref in refs]

    answers = await one.jobs.report("w", reports, free_slots=0, queues=QUEUES)

    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 3
    runs = [await one.store.get_run(PROJECT, ref.run_id) for ref in refs]
    assert [run.status for run in runs] == [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.SUCCEEDED]
    assert runs[1].error is not None
    assert runs[1].error.reason == "RESULT_NOT_STORED"


async def test_a_node_that_reads_more_than_a_message_holds_fails_and_says_so(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    keys = [f"n{number}" for number in range(5)]
    reader = {"key": "reader", "config": {"value": ["{{ nodes." + key + ".output }}" for key in keys]}}
    run_id = new_id()
    await one.start(run_id, await a_version(one, *({"key": key} for key in keys), reader))
    output = orjson.dumps("x" * 1_000_000)
    claimed = await one.jobs.claim("w", [NodeRef(run_id, "n0")], "c")
    jobs = claimed.jobs
    for _ in keys:
        (answer,) = await one.jobs.report(
            "w", [success(jobs[0].ref, jobs[0].epoch, output)], free_slots=9, queues=QUEUES
        )
        jobs = answer.next
    assert not jobs

    claimed = await one.jobs.claim("w", [NodeRef(run_id, "reader")], "d")

    assert not claimed.jobs
    assert not claimed.retry
    run = await one.store.get_run(PROJECT, run_id)
    assert run.error is not None
    assert run.error.reason == "JOB_TOO_LARGE"
