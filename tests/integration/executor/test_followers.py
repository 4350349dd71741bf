"""A follower hears at once of a run that another executor moves; runs without followers cost no notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import nats
from nats.aio.client import Client

from services.executor.domain.watchers import Watchers
from services.executor.engine.graph import Graph
from services.executor.engine.state import RunState
from services.executor.transport import streams
from services.executor.transport.bus import Bus


@asynccontextmanager
async def executor(server: str, name: str) -> AsyncIterator[tuple[Bus, Client]]:
    client = await nats.connect(server)
    try:
        bus = Bus(name, Watchers())
        await bus.start(client)
        await client.flush()
        yield bus, client
    finally:
        await client.close()


def run(run_id: UUID) -> RunState:
    nobody = str(uuid4())
    return RunState(
        run_id=run_id,
        project_id=nobody,
        workflow_id=nobody,
        version_id=nobody,
        version_number=1,
        graph=Graph([], [], {}),
        input=b"{}",
    )


async def test_a_follower_hears_of_moves_at_other_executors(nats_server: str) -> None:
    run_id = uuid4()
    async with (
        executor(nats_server, "one") as (one, _),
        executor(nats_server, "other") as (other, _),
        one.watch(run_id) as watch,
    ):
        # The other executor may have moved the run before it heard of the follower: its first word is a notice.
        await asyncio.wait_for(watch.moved.wait(), 5)
        for _ in range(3):
            watch.moved.clear()
            other.announce(run(run_id), [])
            await asyncio.wait_for(watch.moved.wait(), 0.5)


async def test_only_runs_with_a_follower_elsewhere_are_spoken_of(nats_server: str) -> None:
    followed, own = uuid4(), uuid4()
    async with (
        executor(nats_server, "one") as (one, _),
        executor(nats_server, "other") as (other, client),
        one.watch(followed) as watch,
        other.watch(own) as own_watch,
    ):
        await asyncio.wait_for(asyncio.gather(watch.moved.wait(), own_watch.moved.wait()), 5)
        spoken = await client.subscribe(f"headrace.runs.*.{streams.MOVED}")
        await client.flush()
        own_watch.moved.clear()
        other.announce(run(own), [])
        assert own_watch.moved.is_set(), "what an executor moves itself it knows without a word"
        other.announce(run(uuid4()), [])
        other.announce(run(followed), [])
        assert (await spoken.next_msg(timeout=5)).subject == streams.run_subject(followed, streams.MOVED)
