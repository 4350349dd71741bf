"""Ended runs are removed when they are older than their project keeps them, with all they did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from services.executor.domain.committer import RunExistsError
from services.executor.domain.housekeeping import BATCH, Housekeeper
from services.executor.domain.model import NewRun
from services.executor.engine import decide
from services.executor.engine.state import RunState
from services.executor.storage import housekeeping as storage
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.pool import Pool
from services.kit.postgres import open_engine, open_pool
from tests.support.executors import PROJECT, Executor, a_version, committing

MONTH = timedelta(days=30)


@pytest.fixture
async def url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("executor")


@pytest.fixture
async def pool(url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(url, size=8)
    yield opened
    await opened.close()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresHousekeepingStore]:
    engine = open_engine(url)
    yield PostgresHousekeepingStore(engine)
    await engine.dispose()


@pytest.fixture
async def executor(pool: Pool) -> AsyncIterator[Executor]:
    made = Executor(PostgresRunStore(pool))
    async with committing(made):
        yield made


async def a_run(executor: Executor, *, ended: bool = True, run_input: object = None, over: UUID | None = None) -> UUID:
    version = await executor.versions.get(await a_version(executor, {"key": "a"}, {"key": "b"}))
    run_id = new_id()
    if over is None:
        await executor.submit_start(run_id, version, run_input)
    else:
        await start_over(executor, run_id, over)
    if ended:
        await executor.committer.submit(run_id, decide.cancel, lambda _, __: None)
    return run_id


async def start_over(executor: Executor, run_id: UUID, over: UUID) -> None:
    version = await executor.versions.get(await a_version(executor, {"key": "a"}))

    def make() -> RunState:
        return RunState(run_id, str(PROJECT), str(version.workflow_id), str(version.id), 1, version.graph, b"null")

    new = NewRun("w", None, None, timeout_seconds=60, rerun_of=over, rerun=b"{}")
    await executor.committer.submit_new(run_id, new, make, decide.start, lambda _, __: None)


async def make_older(pool: Pool, days: float, *run_ids: UUID) -> None:
    age = timedelta(days=days)
    await pool.execute(
        "UPDATE executor.runs SET created_at = created_at - $1::interval, finished_at = finished_at - $1::interval "
        "WHERE id = ANY($2::uuid[])",
        *(age, run_ids),
    )


async def kept(pool: Pool) -> set[UUID]:
    """Runs that are there; what belongs to a run is there as long as the run and no longer."""
    runs = {row[0] for row in await pool.fetch("SELECT id FROM executor.runs")}
    for table in ("node_executions", "run_events"):
        query = f"SELECT DISTINCT run_id FROM executor.{table}"  # noqa: S608 - a constant
        assert {row[0] for row in await pool.fetch(query)} == runs
    return runs


async def test_an_ended_run_goes_with_all_it_did_when_its_time_is_up(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    old, young, still_open = [
        await a_run(executor, ended=ended, run_input="x" * 20_000) for ended in (True, True, False)
    ]
    await make_older(pool, 30.01, old, still_open)
    await make_older(pool, 29.99, young)

    await Housekeeper(store, max_run_seconds=1, retention_days=30).tidy()

    assert await kept(pool) == {young, still_open}
    assert {row[0] for row in await pool.fetch("SELECT run_id FROM executor.run_payloads")} == {young, still_open}


async def test_a_run_is_kept_from_its_end_not_from_its_beginning(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    run_id = await a_run(executor)
    await make_older(pool, 50, run_id)
    await pool.execute("UPDATE executor.runs SET finished_at = now() - interval '29 days'")

    assert (await store.remove_runs(MONTH, limit=10)).count == 0


async def test_a_project_may_keep_its_runs_longer_or_shorter_than_others(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    projects = {days: uuid4() for days in (7, 90)}
    for days, project_id in projects.items():
        await store.set_retention(project_id, days)
    runs = [await a_run(executor) for _ in range(6)]
    ages = [6.0, 8.0, 89.0, 91.0, 29.0, 31.0]
    owners = [projects[7], projects[7], projects[90], projects[90], PROJECT, PROJECT]
    for run_id, age, owner in zip(runs, ages, owners, strict=True):
        await pool.execute("UPDATE executor.runs SET project_id = $1 WHERE id = $2", owner, run_id)
        await make_older(pool, age, run_id)

    assert (await store.remove_runs(MONTH, limit=10)).count == 3
    assert await kept(pool) == {runs[0], runs[2], runs[4]}

    await store.set_retention(projects[90], None)
    assert (await store.remove_runs(MONTH, limit=10)).count == 1
    assert await kept(pool) == {runs[0], runs[4]}


async def test_a_run_that_an_open_run_goes_again_over_is_kept_until_that_one_ends(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    old = await a_run(executor)
    again = await a_run(executor, over=old, ended=False)
    await make_older(pool, 31, old)
    assert (await store.remove_runs(MONTH, limit=10)).count == 0
    # Asked once more when it is locked, for one that began between the two statements.
    assert [row[0] for row in await pool.fetch(storage.NOT_GONE_OVER, [old, again])] == [again]

    await executor.committer.submit(again, decide.cancel, lambda _, __: None)
    assert (await store.remove_runs(MONTH, limit=10)).count == 1
    assert await kept(pool) == {again}


async def test_a_run_cannot_begin_over_one_that_is_gone_and_is_not_outrun_by_its_removal(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    with pytest.raises(RunExistsError):
        await start_over(executor, new_id(), new_id())
    for _ in range(20):
        old, again = await a_run(executor), new_id()
        await make_older(pool, 31, old)
        removed, begun = await asyncio.gather(
            *(store.remove_runs(MONTH, limit=10), start_over(executor, again, old)), return_exceptions=True
        )
        assert (old in await kept(pool)) == (begun is None), (removed, begun)


async def test_large_runs_are_removed_one_by_one_and_many_small_ones_by_several_executors_at_once(
    executor: Executor, pool: Pool, store: PostgresHousekeepingStore
) -> None:
    runs = [await a_run(executor) for _ in range(3)]
    await make_older(pool, 31, *runs)
    await pool.execute("UPDATE executor.runs SET sequence = $1", storage.EVENTS_AT_ONCE)
    removed = await store.remove_runs(MONTH, limit=BATCH)
    assert (removed.count, removed.more) == (1, True)

    copied = "id, project_id, workflow_id, version_id, version_number, workflow_name, status, version, sequence, input"
    counted = "prompt_tokens, completion_tokens, model_calls, traceparent, timeout_seconds, deadline_at, finished_at"
    await pool.execute(
        f"INSERT INTO executor.runs ({copied}, {counted}, created_at) "  # noqa: S608 - constants
        f"SELECT gen_random_uuid(), {copied.removeprefix('id, ')}, {counted}, created_at "
        "FROM (SELECT * FROM executor.runs LIMIT 1) AS one, generate_series(1, $1)",
        3 * BATCH,
    )
    await pool.execute("UPDATE executor.runs SET sequence = 1")
    await asyncio.gather(*(Housekeeper(store, max_run_seconds=1, retention_days=30).tidy() for _ in range(3)))
    assert await kept(pool) == set()
