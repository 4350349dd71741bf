"""What is removed because nobody needs it any more, and what is kept although it is old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import pytest

from services.executor.domain.housekeeping import BATCH, Housekeeper
from services.executor.domain.model import NodeRef
from services.executor.engine import decide
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated
from services.kit.pool import Pool
from services.kit.postgres import open_engine, open_pool
from tests.support.executors import Executor, a_lease, a_version, committing
from tests.support.waiting import await_until

DAY = 24 * 3600
LONGEST_RUN = 30 * DAY


@pytest.fixture
async def url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("executor")


@pytest.fixture
async def pool(url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(url, size=4)
    yield opened
    await opened.close()


@pytest.fixture
async def housekeeper(url: str) -> AsyncIterator[Housekeeper]:
    engine = open_engine(url)
    yield Housekeeper(PostgresHousekeepingStore(engine), max_run_seconds=LONGEST_RUN, retention_days=30, interval=0.05)
    await engine.dispose()


@pytest.fixture
async def executor(pool: Pool) -> AsyncIterator[Executor]:
    made = Executor(PostgresRunStore(pool))
    async with committing(made):
        yield made


async def an_effect(pool: Pool, key: str, *, days_old: float) -> None:
    await pool.execute(
        "INSERT INTO executor.effects (project_id, key, result, created_at) "
        "VALUES ($1, $2, '', now() - make_interval(secs => $3))",
        *(uuid4(), key, days_old * DAY),
    )


async def effects(pool: Pool) -> set[str]:
    return {row["key"] for row in await pool.fetch("SELECT key FROM executor.effects")}


async def test_a_worker_is_forgotten_after_a_day_of_silence_unless_it_still_holds_a_claim(
    executor: Executor, pool: Pool, housekeeper: Housekeeper
) -> None:
    hours = {"gone": 25, "holds": 25, "silent": 23, "alive": -1}
    for worker, silent in hours.items():
        await executor.store.renew_lease(a_lease(worker), [], seconds=-3600.0 * silent)
    claimed = NodeRef(new_id(), "a")
    await executor.start(claimed.run_id, await a_version(executor, {"key": "a"}))
    await executor.jobs.claim("holds", [(claimed, 0)], "c")

    await housekeeper.tidy()
    assert {row["id"] for row in await pool.fetch("SELECT id FROM executor.workers")} == {"holds", "silent", "alive"}
    assert [ref for ref, _ in (await executor.store.find_overdue(9)).lost] == [claimed]

    await executor.committer.submit(claimed.run_id, decide.cancel, lambda _, __: None)
    await housekeeper.tidy()
    assert {row["id"] for row in await pool.fetch("SELECT id FROM executor.workers")} == {"silent", "alive"}


async def test_an_effect_is_kept_for_the_longest_run_and_the_longest_attempt_after_it(
    pool: Pool, housekeeper: Housekeeper
) -> None:
    await an_effect(pool, "old", days_old=32.01)
    await an_effect(pool, "not so old", days_old=31.99)

    await housekeeper.tidy()

    assert await effects(pool) == {"not so old"}


async def test_an_effect_is_kept_while_a_run_is_open_that_may_have_made_it(
    executor: Executor, pool: Pool, housekeeper: Housekeeper
) -> None:
    run_id = new_id()
    await executor.start(run_id, await a_version(executor, {"key": "a"}))
    # Started when runs could be longer.
    await pool.execute("UPDATE executor.runs SET created_at = now() - interval '50 days'")
    await an_effect(pool, "before the run", days_old=51)
    await an_effect(pool, "perhaps of the run", days_old=49)

    await housekeeper.tidy()
    assert await effects(pool) == {"perhaps of the run"}

    await executor.committer.submit(run_id, decide.cancel, lambda _, __: None)
    await housekeeper.tidy()
    assert await effects(pool) == set()


async def test_several_executors_remove_more_than_a_batch_side_by_side_and_go_on_looking(
    pool: Pool, housekeeper: Housekeeper
) -> None:
    await pool.execute(
        "INSERT INTO executor.effects (project_id, key, result, created_at) "
        "SELECT $1, number::text, '', now() - interval '90 days' FROM generate_series(1, $2::int) AS number",
        *(uuid4(), 5 * BATCH),
    )
    await asyncio.gather(*(housekeeper.tidy() for _ in range(3)))
    assert await effects(pool) == set()

    async with Repeated("housekeeping", housekeeper.tidy, pause=0.0):
        for key in ("one", "another"):
            await an_effect(pool, key, days_old=90)

            async def none_is_left() -> bool:
                return not await effects(pool)

            await await_until(none_is_left)
