"""When the sweeper must not take work away, and when it must not hurry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from uuid import UUID

import orjson
import pytest
import structlog
from headrace.executor.v1 import worker_pb2
from nats.aio.client import Client

from services.executor.domain.model import NewRun, NodeRef
from services.executor.domain.store import FORGOTTEN_AFTER_SECONDS
from services.executor.domain.sweeper import Sweeper
from services.executor.engine import decide
from services.executor.engine.state import NodeStatus, RunStatus
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport import streams
from services.kit import nats
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated
from services.kit.pool import Pool
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, Executor, a_lease, a_refill, a_state, a_version, committing, own_queue
from tests.support.waiting import await_until

QUEUE = own_queue()
INTERVAL = 0.05
LEASE = 0.5


@pytest.fixture
async def pool(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pool]:
    opened = await open_pool(await database("executor"), size=6)
    yield opened
    await opened.close()


@pytest.fixture
async def executor(pool: Pool) -> AsyncIterator[Executor]:
    made = Executor(PostgresRunStore(pool), queue=QUEUE)
    async with committing(made):
        yield made


@pytest.fixture
async def client(nats_server: str) -> AsyncIterator[Client]:
    connected = await nats.connect(nats_server, name="test-sweeper")
    yield connected
    await connected.close()


def sweeping(sweeper: Sweeper) -> AbstractAsyncContextManager[None]:
    """As the executor does."""
    return Repeated("sweep", sweeper.step, pause=INTERVAL)


async def status_of(executor: Executor, run_id: UUID) -> NodeStatus:
    ((_, node),) = await executor.store.list_node_executions(PROJECT, run_id, limit=2, after=None)
    return node.status


async def a_short_delay(executor: Executor) -> UUID:
    """A run that ends as soon as a sweep has seen to its timer."""
    run_id = new_id()
    await executor.start(run_id, await a_version(executor, {"key": "d", "type": "delay", "config": {"seconds": 0.01}}))
    return run_id


async def has_ended(executor: Executor, run_id: UUID) -> bool:
    return (await executor.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED


async def test_claims_are_spared_while_workers_cannot_be_heard_and_for_a_lease_after(
    executor: Executor, client: Client
) -> None:
    version_id = await a_version(executor, {"key": "a"})
    claimed, ready = NodeRef(new_id(), "a"), NodeRef(new_id(), "a")
    for ref in (claimed, ready):
        await executor.start(ref.run_id, version_id)
    await executor.store.renew_lease(a_lease("w"), [], seconds=0.0)
    await executor.jobs.claim("w", [(claimed, 0)], "c")
    await executor.store.republish_all()
    wakeups = await client.subscribe(streams.jobs_subject(QUEUE))
    await client.flush()

    sweeper = Sweeper(
        executor.store, executor.ready, executor.committer, executor.bus, interval=INTERVAL, lease_seconds=LEASE
    )
    loop = asyncio.get_running_loop()
    begun = loop.time()
    refill = a_refill(executor, QUEUE, interval=INTERVAL)
    async with sweeping(sweeper), Repeated("refill", refill.step, pause=INTERVAL):
        # It sweeps all the while: timers are seen to, far beyond the lease that it spares after its start.
        while loop.time() - begun < 2 * LEASE:
            await await_until(partial(has_ended, executor, await a_short_delay(executor)), within=20)
        assert (await executor.store.find_overdue(1)).lost == [(claimed, 1)]
        assert await status_of(executor, claimed.run_id) is NodeStatus.RUNNING

        connected = loop.time()
        await executor.bus.start(client)
        # Not taken out of the queue of wake-ups while none could be sent: it would be due again only after 6 s.
        woken = worker_pb2.Wakeup.FromString((await wakeups.next_msg(timeout=3)).data)
        assert woken.job.run_id == str(ready.run_id)

        async def is_taken_away() -> bool:
            return await status_of(executor, claimed.run_id) is NodeStatus.READY

        await await_until(is_taken_away, within=30)
        assert loop.time() - connected > LEASE - 2 * INTERVAL


async def test_a_heartbeat_tells_which_claims_are_gone_and_which_the_worker_has_not_named(
    executor: Executor, pool: Pool
) -> None:
    version_id = await a_version(executor, {"key": "a"})
    named, older, fresh, of_another = refs = [NodeRef(new_id(), "a") for _ in range(4)]
    for ref in refs:
        await executor.start(ref.run_id, version_id)
    await executor.jobs.claim("w", [(ref, 0) for ref in (named, older, fresh)], "c")
    await executor.jobs.claim("v", [(of_another, 0)], "c")
    await pool.execute(
        "UPDATE executor.node_executions SET started_at = now() - make_interval(secs => $1) WHERE run_id <> $2",
        FORGOTTEN_AFTER_SECONDS + 1,
        fresh.run_id,
    )
    differences = await executor.jobs.heartbeat(a_lease("w"), [(named, 1), (of_another, 1), (fresh, 0)])
    assert differences.forgotten == [(older, 1)]
    assert set(differences.revoked) == {(of_another, 1), (fresh, 0)}


async def test_a_timer_that_cannot_be_put_right_is_not_tried_without_a_pause(
    executor: Executor, pool: Pool, client: Client
) -> None:
    await a_short_delay(executor)
    # Runs of a version that is gone cannot be read by an executor that has no copy of them.
    await pool.execute("DELETE FROM executor.versions")
    other = Executor(executor.store)
    await other.bus.start(client)
    sweeper = Sweeper(other.store, other.ready, other.committer, other.bus, interval=0.2, lease_seconds=0.0)
    async with committing(other):
        with structlog.testing.capture_logs() as logs:

            def failures() -> list[str]:
                return [entry["error"] for entry in logs if entry["event"] == "corrections_failed"]

            begun = asyncio.get_running_loop().time()
            async with sweeping(sweeper):
                await await_until(lambda: len(failures()) >= 4, within=20)
            assert asyncio.get_running_loop().time() - begun > 0.5
    assert all("There is no version" in error for error in failures())


async def test_a_map_that_a_dead_executor_had_begun_is_gone_on_with(executor: Executor) -> None:
    square = {"key": "square", "type": "transform", "config": {"values": {"n": "{{ item * item }}"}}}
    config = {"items": list(range(300)), "concurrency": 300, "body": {"nodes": [square]}}
    version = await executor.versions.get(await a_version(executor, {"key": "each", "type": "map", "config": config}))
    run_id = new_id()
    state = a_state(run_id, version)
    decide.start(state)
    assert state.inline, "there is more to do than one transition does"
    # What an executor does that dies right after its commit.
    await executor.store.commit([state], {run_id: NewRun("w", None, None, 3600)})

    sweeper = Sweeper(
        executor.store, executor.ready, executor.committer, executor.bus, interval=INTERVAL, lease_seconds=LEASE
    )
    async with sweeping(sweeper):
        await await_until(lambda: has_ended(executor, run_id), within=30)

    run = await executor.store.get_run(PROJECT, run_id)
    assert orjson.loads(run.output or b"")["each"]["results"][299] == {"square": {"n": 299 * 299}}
