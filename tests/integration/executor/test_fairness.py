"""Whose work goes next when there is more of it than workers have slots: counted in starts, never in seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from uuid import UUID, uuid4

import pytest

from services.executor.domain.limits import ProjectLimits
from services.executor.engine.graph import MAX_CHAIN
from services.executor.handlers.base import Context
from services.executor.transport import streams
from services.kit.ids import new_id
from tests.support.executors import a_version
from tests.support.fields import QUEUE, Field
from tests.support.waiting import await_until

SLOTS = 8


async def wide(made: Field, nodes: int) -> UUID:
    """A version whose nodes are all ready at once."""
    return await a_version(made.executors[0], *({"key": f"n{place}"} for place in range(nodes)), parallel=True)


async def takes_a_moment(_: Context) -> None:
    """As handlers do: what never waits is over before anybody else could have a turn."""
    await asyncio.sleep(0.005)


async def backlog(made: Field) -> int:
    count: int = await made.pool.fetchval("SELECT count(*) FROM executor.node_executions WHERE status = 2")
    return count


async def all_ended(made: Field) -> bool:
    return await made.open_runs() == 0


async def test_a_project_with_one_run_at_a_time_does_not_wait_for_the_backlog_of_another(two: Field) -> None:
    many, few = uuid4(), uuid4()
    await two.start_runs(200, await wide(two, 10), many)
    single = await wide(two, 1)
    await two.add_worker(slots=SLOTS)
    waits: list[int] = []
    for _ in range(10):
        before = len(two.started)
        (run_id,) = await two.start_runs(1, single, few)
        await await_until(lambda run_id=run_id: (str(few), run_id) in two.started, within=30)
        waits.append(two.started.index((str(few), run_id)) - before)
    assert await backlog(two) > 100, "the other project had work to do all the while"
    assert max(waits) <= 2 * (two.window + SLOTS), waits
    await await_until(partial(all_ended, two), within=60)
    assert len(two.started) == 2010


async def test_projects_go_on_by_their_weights(two: Field) -> None:
    heavy, light = uuid4(), uuid4()
    await two.executors[0].limits.set_ceilings(heavy, ProjectLimits(weight=3))
    version_id = await wide(two, 10)
    two.handler = takes_a_moment
    await asyncio.gather(two.start_runs(120, version_id, light), two.start_runs(120, version_id, heavy))
    await two.add_worker(slots=SLOTS)
    await await_until(lambda: len(two.started) >= 900, within=60)
    shares = Counter(project for project, _ in two.started[100:900])
    # A busy machine reads the backlog late at times, and then the other one takes the turns that would be lost.
    assert shares[str(heavy)] == pytest.approx(600, rel=0.2), shares


async def test_nats_holds_a_window_of_the_backlog_and_a_wiped_one_is_sent_that_much_again(two: Field) -> None:
    await two.start_runs(100, await wide(two, 50), uuid4())
    assert await backlog(two) == 5000
    await await_until(partial(_holds, two, two.window), within=10)
    await two.client.jetstream().delete_stream(streams.STREAM)
    await await_until(partial(_holds, two, two.window), within=15)

    held: list[int] = []
    await two.add_worker(slots=SLOTS)
    await two.add_worker(slots=SLOTS)

    async def has_ended() -> bool:
        held.append(await two.messages())
        return await all_ended(two)

    await await_until(has_ended, within=120)
    assert max(held) <= two.window + 4 * SLOTS, "what is claimed is acknowledged a moment later"
    assert len(two.started) == 5000, "nothing ran twice"


async def _holds(made: Field, count: int) -> bool:
    try:
        return await made.messages() == count
    except streams.NotFoundError:
        return False


async def test_a_lost_wake_up_is_found_although_the_bus_holds_many_of_another_executor(two: Field) -> None:
    one, other = two.executors
    await one.start(new_id(), await wide(two, 1))
    for _ in range(5):
        await other.start(new_id(), await wide(two, 1))
    await await_until(partial(_holds, two, 6), within=10)
    subject = streams.jobs_subject(QUEUE, one.bus.executor_id)
    await two.client.jetstream().purge_stream(streams.STREAM, subject=subject)

    async def is_known_and_sent_again() -> bool:
        known = [await made.bus.held(QUEUE) == made.dispatcher.windows[QUEUE].sent for made in two.executors]
        return all(known) and await two.messages() >= 6

    await await_until(is_known_and_sent_again, within=20)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=20)
    # A doubled wake-up may be answered last.
    await await_until(lambda: not any(made.dispatcher.unclaimed_seconds() for made in two.executors), within=10)


async def test_what_is_urgent_goes_before_the_rest_of_its_project(two: Field) -> None:
    project = uuid4()
    await two.start_runs(60, await wide(two, 10), project)
    (urgent,) = await two.start_runs(1, await wide(two, 1), project, priority=5)
    late = await two.start_runs(2, await wide(two, 1), project, priority=-5)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=60)
    order = [run_id for _, run_id in two.started]
    # Behind what is published when its turn comes, and that comes when one of its executor's wake-ups is claimed.
    assert order.index(urgent) <= 2 * two.window
    assert min(order.index(run_id) for run_id in late) >= len(order) - 2 * two.window


async def test_chains_of_one_project_let_go_of_a_full_worker_when_another_project_waits(two: Field) -> None:
    chain = await a_version(two.executors[0], *({"key": f"n{place}"} for place in range(60)))

    two.handler = takes_a_moment
    await two.start_runs(2 * SLOTS, chain, uuid4())
    await two.add_worker(slots=SLOTS)
    await await_until(lambda: len(two.started) >= SLOTS, within=30)
    other = uuid4()
    before = len(two.started)
    (run_id,) = await two.start_runs(1, await wide(two, 1), other)
    await await_until(lambda: (str(other), run_id) in two.started, within=30)
    # Each slot asks again when its chain ends at the latest, and at every node when the worker is full.
    assert two.started.index((str(other), run_id)) - before < MAX_CHAIN * SLOTS
    await await_until(partial(all_ended, two), within=60)
