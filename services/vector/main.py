"""The vector service: `python -m services.vector.main [serve|migrate]`."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress

import structlog
from headrace.vector.v1.vector_service_pb2_grpc import add_VectorServiceServicer_to_server

from services.kit import lifecycle
from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.migrate import migrate
from services.kit.pool import Pool
from services.kit.postgres import POSTGRES_UP, is_connection_loss, open_pool
from services.kit.settings import InternalKeySettings
from services.vector.domain.collections import Collections
from services.vector.domain.housekeeping import Housekeeping
from services.vector.domain.indexes import LoadedIndexes
from services.vector.domain.records import Records
from services.vector.domain.search import Search
from services.vector.settings import Settings
from services.vector.storage import migrations
from services.vector.storage.faiss_index import FaissIndex, use_one_thread
from services.vector.storage.postgres import PostgresCollections
from services.vector.storage.records import PostgresRecords
from services.vector.storage.snapshots import FileSnapshots
from services.vector.transport.grpc import GRANT_METHODS, SERVICE, VectorServicer
from services.vector.transport.llm import LlmEmbedder

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve until told to stop, or bring the schema up to date."""
    command = sys.argv[1:] or ["serve"]
    if command == ["serve"]:
        lifecycle.run("vector", _serve)
    elif command == ["migrate"]:
        migrate(Settings().postgres_url.get_secret_value(), schema="vector", migrations=migrations)
    else:
        sys.exit("usage: headrace-vector [serve|migrate]")


async def _serve(stack: AsyncExitStack) -> None:
    settings = Settings()
    keys = InternalKeySettings().keys
    lifecycle.serve_metrics(settings.metrics_listen)
    await start(stack, settings, *keys)


async def start(stack: AsyncExitStack, settings: Settings, key: bytes, *accepted: bytes) -> None:
    """Build the service and start it; the stack gives back what it takes. `key` is the internal one."""
    pool = await _open_pool(settings)
    stack.push_async_callback(_close_pool, pool)
    tokens = CallerTokens(key, *accepted)
    channel = open_channel(settings.llm_target) if settings.llm_target else None
    if channel is not None:
        await stack.enter_async_context(channel)
    embedder = LlmEmbedder(channel, Rpc(tokens.for_service("vector")))

    collection_rows, record_rows = PostgresCollections(pool), PostgresRecords(pool)
    snapshots = FileSnapshots(settings.index_dir, key)
    indexes = LoadedIndexes(
        record_rows,
        snapshots,
        new_index=FaissIndex,
        searching=_threads(stack, "search", settings.search_threads),
        working=_threads(stack, "work", 2),
        memory_bytes=settings.memory_bytes,
        snapshot_changes=settings.snapshot_changes,
    )
    stack.push_async_callback(indexes.close)
    housekeeping = Housekeeping(
        collection_rows,
        indexes,
        snapshots,
        pause_seconds=settings.housekeeping_seconds,
        deletions_kept_seconds=settings.deletions_kept_seconds,
    )
    _background(stack, asyncio.create_task(housekeeping.run()))

    server = GrpcServer(listen=settings.listen, tokens=tokens, service_names=(SERVICE,), grant_methods=GRANT_METHODS)
    servicer = VectorServicer(
        Collections(collection_rows, embedder, indexes, on_deleted=housekeeping.wake),
        Records(collection_rows, record_rows, embedder),
        Search(collection_rows, record_rows, embedder, indexes),
        indexes.is_loading,
    )
    add_VectorServiceServicer_to_server(servicer, server.server)
    await server.start()
    stack.push_async_callback(server.stop)
    await server.set_healthy(True)

    async def report(answers: bool) -> None:
        POSTGRES_UP.set(answers)
        await server.set_healthy(answers)

    _background(stack, asyncio.create_task(housekeeping.watch(report)))


async def _open_pool(settings: Settings) -> Pool:
    """Connect to PostgreSQL; waits for it as long as it is not there."""
    while True:
        try:
            return await open_pool(
                settings.postgres_url.get_secret_value(), size=settings.postgres_connections, by_key=False
            )
        except Exception as error:
            if not is_connection_loss(error):
                raise
            log.warning("waiting_for_postgres", error=repr(error))
        await asyncio.sleep(0.5)


async def _close_pool(pool: Pool) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(pool.close(), timeout=5)


def _threads(stack: AsyncExitStack, name: str, number: int) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(number, thread_name_prefix=name, initializer=use_one_thread)
    stack.callback(executor.shutdown, cancel_futures=True)
    return executor


def _background(stack: AsyncExitStack, task: "asyncio.Task[None]") -> None:
    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


if __name__ == "__main__":
    main()
