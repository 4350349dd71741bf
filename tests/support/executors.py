"""One executor's own parts in this process, on a real store: committer, jobs, watchers, and the bus to NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import orjson
from headrace.common.v1 import value_pb2
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.admission import Admission, AdmissionLimits
from services.executor.domain.committer import Committer
from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.idle_workers import IdleWorkers
from services.executor.domain.jobs import Jobs, Report, Success
from services.executor.domain.model import NewRun, NodeRef, Version, WorkerLease
from services.executor.domain.refill import Refill, RefillSettings
from services.executor.domain.run_states import RunStates
from services.executor.domain.turns import Turns, concurrency_key
from services.executor.domain.variables import ProjectVariables
from services.executor.domain.versions import Versions
from services.executor.domain.watchers import Watchers
from services.executor.engine import decide
from services.executor.engine.run_variables import NO_VARIABLES, RunVariables
from services.executor.engine.state import RunState, Usage
from services.executor.handlers.registry import catalogue
from services.executor.storage.dispatching import PostgresReadyStore
from services.executor.storage.limits import PostgresLimitStore
from services.executor.storage.postgres import PostgresRunStore
from services.executor.storage.turns import PostgresTurnStore
from services.executor.storage.variables import PostgresVariableStore
from services.executor.transport.bus import Bus
from services.executor.transport.convert import graph_from_definition, node_kind
from services.kit.ids import new_id

PROJECT = uuid4()
QUEUES = frozenset({"default"})


def own_queue() -> str:
    """A queue of the caller's own; its wake-ups are kept by no stream, so that other tests do not find them there."""
    return f"test.{uuid4().hex}"


class Executor:
    """What one executor process has of its own. Its bus is silent until `bus.use`; with `queue` all jobs go there."""

    def __init__(self, store: PostgresRunStore, *, queue: str = "") -> None:
        self.store = store
        self.ready, self.limits = PostgresReadyStore(store.pool), PostgresLimitStore(store.pool)
        kinds = {name: node_kind(node_type) for name, node_type in catalogue().items()}
        self.kinds = {name: replace(kind, queue=queue or kind.queue) for name, kind in kinds.items()}
        self.watchers = Watchers()
        self.bus = Bus(str(new_id()), self.watchers)
        self.variables = ProjectVariables(PostgresVariableStore(store.pool))
        self.dispatcher = Dispatcher(self.bus, self.limits)
        self.bus.dispatch_by(self.dispatcher)
        # Every version is in the store already: the workflows service is never asked.
        self.versions = Versions(store, None, lambda data: graph_from_definition(data, self.kinds))  # type: ignore[arg-type]
        self.run_states = RunStates(store, self.versions)
        self.idle_workers = IdleWorkers(self.dispatcher)
        self.committer = Committer(store, self.run_states, self.bus, self.idle_workers)
        self.jobs = Jobs(store, self.committer, self.dispatcher, lease_seconds=2)
        self.turns = Turns(PostgresTurnStore(store.pool), self.versions, self.committer, interval=0.25)
        self.bus.tell(self.turns.moved)
        self.admission = Admission(
            self.ready, self.dispatcher, self.committer, AdmissionLimits(100_000, 500_000, 30.0, 5000)
        )

    async def start(
        self,
        run_id: UUID,
        version_id: UUID,
        run_input: object = None,
        *,
        project_id: UUID = PROJECT,
        priority: int = 0,
        variables: RunVariables = NO_VARIABLES,
    ) -> None:
        """Start a run of a stored version."""
        version = await self.versions.get(version_id)
        await self.submit_start(
            run_id, version, run_input, project_id=project_id, priority=priority, variables=variables
        )

    def submit_start(
        self,
        run_id: UUID,
        version: Version,
        run_input: object = None,
        *,
        project_id: UUID = PROJECT,
        priority: int = 0,
        variables: RunVariables = NO_VARIABLES,
    ) -> asyncio.Future[None]:
        """Queue the start of a run."""

        def make() -> RunState:
            state = a_state(run_id, version, run_input, project_id=project_id, priority=priority)
            state.vars = variables
            return state

        key = concurrency_key(version.graph.limits, orjson.dumps(run_input))
        new = NewRun("w", request_hash=None, started_by=None, timeout_seconds=3600, concurrency_key=key)
        begin = decide.start if key is None else decide.hold
        return self.committer.submit_new(run_id, new, make, begin, lambda _, __: None)


def a_state(
    run_id: UUID, version: Version, run_input: object = None, *, project_id: UUID = PROJECT, priority: int = 0
) -> RunState:
    """A new run's state."""
    return RunState(
        run_id=run_id,
        project_id=str(project_id),
        workflow_id=str(version.workflow_id),
        version_id=str(version.id),
        version_number=1,
        graph=version.graph,
        input=orjson.dumps(run_input),
        priority=priority,
    )


@asynccontextmanager
async def committing(*executors: Executor) -> AsyncIterator[None]:
    """The committers run while inside."""
    for executor in executors:
        executor.committer.start()
    try:
        yield
    finally:
        for executor in executors:
            await executor.committer.stop()


async def a_version(
    executor: Executor,
    *nodes: dict[str, Any],
    parallel: bool = False,
    limits: definition_pb2.RunLimits | None = None,
) -> UUID:
    """A chain of these nodes, or these nodes side by side, as a stored version."""
    message = definition_pb2.Definition(
        nodes=[
            definition_pb2.Node(
                key=node["key"],
                type=node.get("type", "noop"),
                config=value_pb2.Json(utf8=orjson.dumps(node.get("config", {}))),
            )
            for node in nodes
        ],
        edges=[
            definition_pb2.Edge(source=one["key"], target=other["key"])
            for one, other in pairwise([] if parallel else nodes)
        ],
        limits=limits,
    )
    data = message.SerializeToString()
    version = Version(new_id(), PROJECT, uuid4(), "w", 1, data, graph_from_definition(data, executor.kinds))
    await executor.store.keep_version(version)
    return version.id


def success(ref: NodeRef, epoch: int, output: bytes = b"1", port: str = "") -> Report:
    """The report of an attempt that went well."""
    return Report(ref, epoch, Success(output, port, Usage()), shown_input=None, handler_seconds=0.0)


def a_lease(worker_id: str, *, slots: int = 1, queue: str = "default") -> WorkerLease:
    """What a worker tells of itself."""
    return WorkerLease(worker_id, host="", draining=False, slots=slots, queues=(queue,))


def a_refill(executor: Executor, queue: str, *, interval: float = 0.05, window_per_slot: float = 1.0) -> Refill:
    """What brings ready rows of the queue into the executor's window."""
    settings = RefillSettings(executor.bus.executor_id, (queue,), interval, window_per_slot)
    return Refill(
        executor.ready, executor.limits, executor.dispatcher, executor.bus, settings, variables=executor.variables
    )
