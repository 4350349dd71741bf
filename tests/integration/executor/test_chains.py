"""Workers that go on by themselves along nodes that change nothing outside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from uuid import uuid4

import pytest

from services.executor.handlers.base import Context
from services.executor.transport import streams
from tests.support.executors import a_version
from tests.support.fields import Field, field
from tests.support.servers import own_nats
from tests.support.waiting import await_until


@pytest.fixture(scope="module")
async def nats_urls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mapping[str, str]]:
    async with own_nats(tmp_path_factory.mktemp("nats")) as urls:
        yield urls


@pytest.fixture
async def made(database: Callable[[str], Awaitable[str]], nats_urls: Mapping[str, str]) -> AsyncIterator[Field]:
    async with field(await database("executor"), nats_urls) as found:
        yield found
        await found.client.jetstream().delete_stream(streams.STREAM)


async def all_ended(found: Field) -> bool:
    return await found.open_runs() == 0


async def test_each_node_of_many_chains_is_run_once_under_its_first_claim(made: Field) -> None:
    """What is handed in out of order comes to nothing, and is run again."""

    async def takes_a_moment(_: Context) -> None:
        await asyncio.sleep(0.003)

    made.handler = takes_a_moment
    chain = await a_version(made.executors[0], *({"key": f"n{place}"} for place in range(6)))
    await made.add_worker(slots=64)
    for _ in range(3):
        await made.start_runs(48, chain, uuid4())
    await await_until(partial(all_ended, made), within=60)
    rows = await made.pool.fetch("SELECT epoch, claims, status FROM executor.node_executions")
    assert Counter(tuple(row) for row in rows) == {(1, 1, 5): 3 * 48 * 6}
    assert len(made.started) == 3 * 48 * 6
