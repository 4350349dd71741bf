"""How an executor ends its part towards workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from headrace.executor.v1 import worker_pb2 as pb

from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport import streams
from services.executor.transport.workers import WorkerTransport
from services.kit import nats
from services.kit.identity import CallerTokens
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import Executor, a_version
from tests.support.waiting import await_until


async def test_it_does_not_wait_for_requests_that_nobody_commits_any_more(
    database: Callable[[str], Awaitable[str]], nats_server: str
) -> None:
    pool = await open_pool(await database("executor"), size=4)
    executor = Executor(PostgresRunStore(pool))
    client = await nats.connect(nats_server, name="test-stop")
    executor_id, run_id = executor.bus.executor_id, new_id()
    tokens = CallerTokens(os.urandom(32))
    workers = WorkerTransport(client, executor.jobs, executor.idle_workers, tokens, executor_id)
    await workers.start()
    # Its commits have never begun, which is as if they had ended by an error.
    executor.submit_start(run_id, await executor.versions.get(await a_version(executor, {"key": "a"})))
    claim = pb.ClaimRequest(worker_id="w", claim_id="c", jobs=[pb.JobRef(run_id=str(run_id), node_key="a")])
    await client.publish(streams.executor_subject(streams.CLAIM, executor_id), claim.SerializeToString())
    await await_until(lambda: executor.committer.queued == 2)
    async with asyncio.timeout(20):
        await workers.stop()
    await client.close()
    await pool.close()
