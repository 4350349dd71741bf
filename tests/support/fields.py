"""Executors and workers of one installation in this process: real PostgreSQL, real NATS, the product's own loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import asyncpg
from nats.aio.client import Client
from pydantic import BaseModel

from services.executor.domain.sweeper import Sweeper
from services.executor.handlers.base import Context, NodeType, Result
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport import streams
from services.executor.transport.bus import StreamKeeper
from services.executor.transport.workers import WorkerTransport
from services.executor.worker.loop import Worker
from services.executor.worker.runner import Runner
from services.kit import nats
from services.kit.identity import CallerTokens
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated
from services.kit.postgres import open_pool
from tests.support.executors import Executor, a_refill, committing

QUEUE = "default"
Handler = Callable[[Context], Awaitable[None]]


class AnyConfig(BaseModel, extra="allow"):
    """Whatever a test gives its nodes."""


class Field:
    """Some executors, and workers when the test asks for them. Use `field`."""

    def __init__(
        self, pool: asyncpg.Pool, client: Client, executors: Sequence[Executor], stack: AsyncExitStack
    ) -> None:
        self.pool = pool
        """The test's own, to look by."""
        self.client = client
        self.executors = executors
        self.started: list[tuple[str, UUID]] = []
        """Project and run of each node execution, in the order in which handlers were called."""
        self.handler: Handler | None = None
        """Runs after it is noted."""
        self._stack = stack

    @property
    def window(self) -> int:
        """Wake-ups that may be on NATS and not claimed, of all executors together."""
        return sum(executor.dispatcher.windows[QUEUE].capacity for executor in self.executors)

    async def add_worker(self, *, slots: int) -> Worker:
        """A worker that runs until the end of the test."""
        kind = NodeType(
            name="noop", title="", help="", icon="", category="", config=AnyConfig, output={}, handler=self._run
        )
        worker = Worker(
            self.client, Runner({"noop": kind}, None), queues=[QUEUE], slots=slots, heartbeat_seconds=0.3, host="here"
        )
        await worker.start()
        self._stack.push_async_callback(worker.drain, 0)
        return worker

    async def _run(self, context: Context, config: BaseModel) -> Result:
        self.started.append((context.project_id, context.run_id))
        if self.handler is not None:
            await self.handler(context)
        return Result(1)

    async def start_runs(
        self, count: int, version_id: UUID, project_id: UUID, *, priority: int = 0, run_input: object = None
    ) -> list[UUID]:
        """Start runs at the executors in turn; they are committed."""
        ids = [new_id() for _ in range(count)]
        await asyncio.gather(
            *(
                self.executors[place % len(self.executors)].start(
                    run_id, version_id, run_input, project_id=project_id, priority=priority
                )
                for place, run_id in enumerate(ids)
            )
        )
        return ids

    async def open_runs(self) -> int:
        """Runs that have not ended."""
        count: int = await self.pool.fetchval("SELECT count(*) FROM executor.runs WHERE status < 4")
        return count

    async def messages(self) -> int:
        """Wake-ups on NATS."""
        info = await self.client.jetstream().stream_info(streams.STREAM)
        return info.state.messages


@asynccontextmanager
async def field(url: str, nats_urls: Mapping[str, str], *, executors: int = 2) -> AsyncIterator[Field]:
    """Run executors over one database and one NATS for the time of the context."""
    tokens = CallerTokens(os.urandom(32))
    async with AsyncExitStack() as stack:
        pool = await open_pool(url, size=12)
        stack.push_async_callback(pool.close)
        made: list[Executor] = []
        for _ in range(executors):
            executor = Executor(PostgresRunStore(pool))
            made.append(executor)
            client = await nats.connect(nats_urls["executor"], name="test-executor")
            stack.push_async_callback(client.close)
            await _serve(stack, executor, client, tokens)
        for executor in made:
            # All know of one another.
            await a_refill(executor, QUEUE).take_census()
        look = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=2))
        yield Field(look, client, made, stack)


async def _serve(stack: AsyncExitStack, executor: Executor, client: Client, tokens: CallerTokens) -> None:
    await executor.bus.start(client)
    keeper = StreamKeeper(executor.store, executor.dispatcher, [QUEUE])
    await keeper.check(client)
    keeping = asyncio.create_task(keeper.run(client))
    stack.callback(keeping.cancel)
    refill = a_refill(executor, QUEUE, interval=0.25)
    sweeper = Sweeper(
        executor.store, executor.ready, executor.committer, executor.bus, interval=0.25, lease_seconds=2.0
    )
    await stack.enter_async_context(committing(executor))
    for what, step in (("sweep", sweeper.step), ("refill", refill.step), ("turns", executor.turns.step)):
        await stack.enter_async_context(Repeated(what, step, pause=0.25))
    workers = WorkerTransport(client, executor.jobs, executor.idle_workers, tokens, executor.bus.executor_id)
    await workers.start()
    stack.push_async_callback(workers.stop)
