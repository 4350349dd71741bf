"""Workers that go on by themselves along nodes that change nothing outside."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from uuid import uuid4

from services.executor.handlers.base import Context
from tests.support.executors import a_version
from tests.support.fields import Field
from tests.support.waiting import await_until


async def all_ended(found: Field) -> bool:
    return await found.open_runs() == 0


async def test_each_node_of_many_chains_is_run_once_under_its_first_claim(two: Field) -> None:
    """What is handed in out of order comes to nothing, and is run again."""

    async def takes_a_moment(_: Context) -> None:
        await asyncio.sleep(0.003)

    two.handler = takes_a_moment
    chain = await a_version(two.executors[0], *({"key": f"n{place}"} for place in range(6)))
    await two.add_worker(slots=64)
    for _ in range(3):
        await two.start_runs(48, chain, uuid4())
    await await_until(partial(all_ended, two), within=60)
    rows = await two.pool.fetch("SELECT epoch, claims, status FROM executor.node_executions")
    assert Counter(tuple(row) for row in rows) == {(1, 1, 5): 3 * 48 * 6}
    assert len(two.started) == 3 * 48 * 6
