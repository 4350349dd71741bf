"""The workflows service: `python -m services.workflows.main [serve|migrate]`."""

import argparse
import asyncio
from contextlib import AsyncExitStack

from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from headrace.workflows.v1.workflow_service_pb2_grpc import add_WorkflowServiceServicer_to_server

from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.lifecycle import run, serve_metrics
from services.kit.logging import configure_logging
from services.kit.postgres import open_engine, open_pool, watched_health
from services.kit.settings import InternalKeySettings
from services.workflows.domain.checks import Checks
from services.workflows.domain.elements import Elements
from services.workflows.domain.versions import Versions
from services.workflows.domain.workflows import Workflows
from services.workflows.settings import ExecutorSettings, Settings
from services.workflows.storage.postgres import PostgresStore
from services.workflows.transport.grpc import SERVICE_NAME, WorkflowServicer
from services.workflows.transport.node_types import GrpcNodeTypes

SCHEMA = "workflows"


async def serve(stack: AsyncExitStack) -> None:
    """Build and start the service; healthy once PostgreSQL answers and the executor has told its node types."""
    settings = Settings()
    tokens = CallerTokens(*InternalKeySettings().keys)
    serve_metrics(settings.metrics_listen)

    url = settings.postgres_url.get_secret_value()
    engine = open_engine(url, pool_size=settings.pool_size)
    stack.push_async_callback(engine.dispose)
    pool = await open_pool(url, size=settings.resolve_pool_size)
    stack.push_async_callback(pool.close)

    channel = await stack.enter_async_context(open_channel(ExecutorSettings().target))
    node_types = GrpcNodeTypes(ExecutorServiceStub(channel), Rpc(tokens.for_service("workflows")))
    await node_types.start()
    stack.push_async_callback(node_types.stop)

    store = PostgresStore(engine, pool)
    checks = Checks(node_types)
    server = GrpcServer(listen=settings.listen, tokens=tokens, service_names=(SERVICE_NAME,))
    servicer = WorkflowServicer(Workflows(store, checks), Elements(store), Versions(store, checks))
    add_WorkflowServiceServicer_to_server(servicer, server.server)
    await server.start()
    stack.push_async_callback(server.stop)

    database_answers = False

    async def report(healthy: bool) -> None:
        nonlocal database_answers
        database_answers = healthy
        await server.set_healthy(healthy and node_types.loaded.is_set())

    async def report_when_loaded() -> None:
        await node_types.loaded.wait()
        await server.set_healthy(database_answers)

    await stack.enter_async_context(watched_health(engine, schema=SCHEMA, report=report))
    waiting = asyncio.create_task(report_when_loaded())
    stack.callback(waiting.cancel)


def main() -> None:
    """Serve, or bring the schema up to date and end."""
    parser = argparse.ArgumentParser(prog="headrace-workflows", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("serve", "migrate"), default="serve")
    if parser.parse_args().command == "serve":
        run("workflows", serve)
        return
    from services.kit.migrate import migrate  # noqa: PLC0415 - Alembic takes long to import and serves no calls
    from services.workflows.storage import migrations  # noqa: PLC0415

    configure_logging("workflows")
    migrate(Settings().postgres_url.get_secret_value(), schema=SCHEMA, migrations=migrations)


if __name__ == "__main__":
    main()
