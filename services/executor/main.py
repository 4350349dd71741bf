"""The executor process: `python -m services.executor.main [serve|migrate|limits …]`."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import structlog
from headrace.executor.v1.executor_service_pb2_grpc import add_ExecutorServiceServicer_to_server
from nats.aio.client import Client

from services.executor.domain.admission import Admission
from services.executor.domain.answers import Answers
from services.executor.domain.committer import Committer
from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.housekeeping import TIDIED_EVERY, Housekeeper
from services.executor.domain.idle_workers import IdleWorkers
from services.executor.domain.jobs import Jobs
from services.executor.domain.limit_settings import LimitSettings
from services.executor.domain.measures import run_moved
from services.executor.domain.refill import Refill
from services.executor.domain.resume_tokens import ResumeTokens
from services.executor.domain.retention import RetentionSettings
from services.executor.domain.run_states import RunStates
from services.executor.domain.runs import Runs
from services.executor.domain.survey import LEAST_PAUSE, Survey
from services.executor.domain.sweeper import Sweeper
from services.executor.domain.turns import Turns
from services.executor.domain.variables import ProjectVariables
from services.executor.domain.versions import Versions
from services.executor.domain.watchers import Watchers
from services.executor.engine.graph import NodeKind
from services.executor.engine.state import Limits
from services.executor.handlers.registry import catalogue
from services.executor.limits_command import limits_command
from services.executor.queues import alone
from services.executor.settings import PeerSettings, Settings
from services.executor.storage.dispatching import PostgresReadyStore
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.limits import PostgresLimitStore
from services.executor.storage.postgres import PostgresRunStore
from services.executor.storage.project_tables import PostgresProjectTableStore
from services.executor.storage.survey import PostgresCountStore
from services.executor.storage.turns import PostgresTurnStore
from services.executor.storage.variables import PostgresVariableStore
from services.executor.transport.bus import Bus, StreamKeeper
from services.executor.transport.convert import graph_from_definition, node_kind
from services.executor.transport.grpc import SERVICE_NAME, ExecutorServicer, ProjectSettings
from services.executor.transport.tables_grpc import GRANT_METHODS as TABLE_GRANT_METHODS
from services.executor.transport.tables_grpc import SERVICE_NAME as TABLES_SERVICE_NAME
from services.executor.transport.tables_grpc import add_table_service
from services.executor.transport.workers import WorkerTransport
from services.executor.transport.workflows import GrpcWorkflows
from services.kit import nats
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated, run, serve_metrics, vital
from services.kit.postgres import open_engine, open_pool
from services.kit.settings import InternalKeySettings

log = structlog.get_logger(__name__)

_CONNECTIONS = 8
"""To PostgreSQL: one for commits, one for each task that asks by itself, the rest for who reads runs."""


async def serve(stack: AsyncExitStack) -> None:
    """Build the executor from the environment and start it; the stack stops it in reverse."""
    settings, peers = Settings(), PeerSettings()
    keys = InternalKeySettings().keys
    tokens = CallerTokens(*keys)
    serve_metrics(settings.metrics_listen)
    executor_id = str(new_id())
    node_types = catalogue()
    kinds = {name: node_kind(node_type) for name, node_type in node_types.items()}
    server = GrpcServer(
        listen=settings.listen,
        tokens=tokens,
        service_names=(SERVICE_NAME, TABLES_SERVICE_NAME),
        grant_methods=TABLE_GRANT_METHODS,
    )
    pool = await open_pool(settings.postgres_url.get_secret_value(), size=_CONNECTIONS)
    stack.push_async_callback(pool.close)
    engine = open_engine(settings.postgres_url.get_secret_value())
    stack.push_async_callback(engine.dispose)
    store = PostgresRunStore(pool)
    workflows = GrpcWorkflows(peers.workflows_target, tokens.for_service("executor"))
    stack.push_async_callback(workflows.close)
    versions = Versions(store, workflows, partial(graph_from_definition, kinds=kinds))
    watchers = Watchers()
    bus = Bus(executor_id, watchers)
    ready, limits = PostgresReadyStore(pool), PostgresLimitStore(pool)
    variables = ProjectVariables(PostgresVariableStore(pool))
    dispatcher = Dispatcher(bus, limits)
    bus.dispatch_by(dispatcher)
    run_states = RunStates(store, versions, Limits(settings.max_run_output_bytes, settings.max_run_events))
    idle_workers = IdleWorkers(dispatcher)
    committer = Committer(store, run_states, bus, idle_workers)
    runs = Runs(
        store,
        versions,
        run_states,
        committer,
        Admission(ready, dispatcher, committer, settings.admission),
        variables=variables,
        watch_here=watchers.watch,
        watch_everywhere=bus.watch,
        max_run_seconds=settings.max_run_seconds,
    )
    housekeeping = PostgresHousekeepingStore(engine)
    servicer = ExecutorServicer(
        runs,
        Answers(store, committer, ResumeTokens(*keys)),
        store,
        ProjectSettings(
            LimitSettings(limits, _of_workers(kinds)),
            variables,
            RetentionSettings(housekeeping, settings.retention_days),
        ),
        node_types,
    )
    add_ExecutorServiceServicer_to_server(servicer, server.server)
    add_table_service(server.server, PostgresProjectTableStore(engine))
    await server.start()

    queues = sorted({name for queue in _of_workers(kinds).values() for name in (queue, alone(queue))})
    keeper = StreamKeeper(store, dispatcher, queues)
    client = await _connect(stack, peers, bus, keeper)
    refill = Refill(ready, limits, dispatcher, bus, settings.refill(executor_id, queues), variables=variables)
    # Before anything moves: until then no limit of any project is known here.
    await refill.take_census()
    vital(committer.start())
    stack.push_async_callback(committer.stop)
    turns = Turns(PostgresTurnStore(pool), versions, committer)
    bus.tell(run_moved, turns.moved)
    workers = WorkerTransport(
        client,
        Jobs(store, committer, dispatcher, lease_seconds=settings.lease_seconds),
        idle_workers,
        tokens,
        executor_id,
    )
    await workers.start()
    stack.push_async_callback(workers.stop)
    sweeper = Sweeper(
        store, ready, committer, bus, interval=settings.sweep_seconds, lease_seconds=settings.lease_seconds
    )
    housekeeper = Housekeeper(housekeeping, settings.max_run_seconds, settings.retention_days)
    for what, step, pause in (
        ("turns", turns.step, settings.sweep_seconds),
        ("sweep", sweeper.step, settings.sweep_seconds),
        ("refill", refill.step, settings.sweep_seconds),
        ("survey", Survey(PostgresCountStore(pool), queues).count, LEAST_PAUSE),
        ("housekeeping", housekeeper.tidy, TIDIED_EVERY),
    ):
        await stack.enter_async_context(Repeated(what, step, pause=pause))
    stack.push_async_callback(server.stop)
    await server.set_healthy(True)
    log.info("executor_ready", executor_id=executor_id)


async def _connect(stack: AsyncExitStack, peers: PeerSettings, bus: Bus, keeper: StreamKeeper) -> Client:
    url = peers.nats_url.get_secret_value()
    client = await nats.connect(url, name="headrace-executor", on_reconnect=keeper.reconnected)
    stack.push_async_callback(client.close)
    await bus.start(client)
    await keeper.check(client)
    stack.callback(asyncio.create_task(keeper.run(client)).cancel)
    return client


def _of_workers(kinds: Mapping[str, NodeKind]) -> dict[str, str]:
    """Queues of the node types that workers run, by type."""
    return {name: kind.queue for name, kind in kinds.items() if not kind.inline}


def migrate_schema() -> None:
    """Bring the executor's schemas to their newest revision."""
    from services.executor.storage import migrations  # noqa: PLC0415 - Alembic is imported only to migrate
    from services.kit.migrate import migrate  # noqa: PLC0415

    url = Settings(listen="").postgres_url.get_secret_value()  # the address is not used
    migrate(url, schema="executor", migrations=migrations)


def main() -> None:
    """Command line."""
    if sys.argv[1:] == ["migrate"]:
        migrate_schema()
    elif sys.argv[1:2] == ["limits"]:
        limits_command(sys.argv[2:])
    else:
        run("executor", serve)


if __name__ == "__main__":
    main()
