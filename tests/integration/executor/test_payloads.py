"""Large values are stored once by content, and are there as long as anything refers to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import orjson
import pytest

from services.executor.domain.committer import RunExistsError
from services.executor.domain.model import NewRun, NodeRef
from services.executor.engine.state import RunState
from services.executor.storage.commit import commit_statement
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.payloads import MAX_INLINE_BYTES
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.pool import Pool
from services.kit.postgres import open_engine, open_pool
from tests.support.executors import PROJECT, QUEUES, Executor, a_version, committing, success

DAY = timedelta(days=1)
LARGE = "x" * (MAX_INLINE_BYTES + 1)
NEW = NewRun(workflow_name="w", request_hash=None, started_by=None, timeout_seconds=60)

QUESTIONS = (("closed", {"approvers": ["admin"]}), ("open", {}))


@pytest.fixture
async def url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("executor")


@pytest.fixture
async def pool(url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(url, size=8)
    yield opened
    await opened.close()


@pytest.fixture
async def housekeeping(url: str) -> AsyncIterator[PostgresHousekeepingStore]:
    engine = open_engine(url)
    yield PostgresHousekeepingStore(engine)
    await engine.dispose()


@pytest.fixture
async def executors(pool: Pool) -> AsyncIterator[tuple[Executor, Executor]]:
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    async with committing(*both):
        yield both


async def count(pool: Pool, query: str) -> int:
    ((found,),) = await pool.fetch(query)
    return int(found)


async def payloads(pool: Pool) -> int:
    return await count(pool, "SELECT count(*) FROM executor.payloads")


async def make_old(pool: Pool) -> None:
    await pool.execute("UPDATE executor.payloads SET used_at = now() - interval '2 days'")


async def dangling(pool: Pool) -> int:
    """References of runs and node executions without their content."""
    query = """
        SELECT count(*) FROM (
            SELECT project_id, unnest(ARRAY[input, output]) AS value FROM executor.runs
            UNION ALL
            SELECT r.project_id, unnest(ARRAY[n.input, n.output]) FROM executor.node_executions n
            JOIN executor.runs r ON r.id = n.run_id
        ) AS held
        LEFT JOIN executor.payloads p ON p.project_id = held.project_id AND p.hash = substr(held.value, 2)
        WHERE length(held.value) > 0 AND get_byte(held.value, 0) = 0 AND p.hash IS NULL
    """
    return await count(pool, query)


async def forget_runs(pool: Pool) -> None:
    for table in ("run_payloads", "run_events", "node_executions", "runs"):
        await pool.execute(f"DELETE FROM executor.{table}")  # noqa: S608 - constants


async def test_a_large_value_is_read_back_wherever_it_is_read_and_rows_stay_small(
    executors: tuple[Executor, Executor], pool: Pool
) -> None:
    one, other = executors
    reader = {"key": "b", "config": {"value": "{{ nodes.a.output }} {{ input }}"}}
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}, reader), LARGE)
    output = orjson.dumps("y" * 50_000)
    (job,) = (await one.jobs.claim("w", [(NodeRef(run_id, "a"), 0)], "c")).jobs
    await one.jobs.report("w", [success(job.ref, job.epoch, output)], free_slots=0, queues=QUEUES)

    (job,) = (await other.jobs.claim("w", [(NodeRef(run_id, "b"), 0)], "d")).jobs
    variables = orjson.loads(job.variables)
    assert (variables["nodes"]["a"]["output"], variables["input"]) == (orjson.loads(output), LARGE)
    await other.jobs.report("w", [success(job.ref, job.epoch, output)], free_slots=0, queues=QUEUES)

    run = await one.store.get_run(PROJECT, run_id)
    assert (run.input, run.output) == (orjson.dumps(LARGE), orjson.dumps({"b": orjson.loads(output)}))
    nodes = await one.store.list_node_executions(PROJECT, run_id, limit=9, after=None)
    assert [node.output for _, node in nodes] == [output, output]
    assert await payloads(pool) == 3
    sizes = await pool.fetch("SELECT length(output) FROM executor.node_executions")
    assert {row[0] for row in sizes} == {33}


async def test_a_large_question_that_waits_is_listed_with_what_answers_it(executors: tuple[Executor, Executor]) -> None:
    one, _ = executors
    run_id = new_id()
    form = {"description": LARGE}
    asked = [
        {"key": key, "type": "approval", "config": {"title": "?", "form": form, **more}} for key, more in QUESTIONS
    ]
    await one.start(run_id, await a_version(one, *asked, parallel=True))

    nodes = await one.store.list_node_executions(PROJECT, run_id, limit=9, after=None)
    waits = await one.store.list_open_waits(PROJECT, run_id, limit=9)
    assert [node.node_key for _, node in nodes if node.wait_epoch is not None] == ["open"]
    assert [(wait.ref, wait.epoch) for wait in waits] == [(NodeRef(run_id, "open"), 1)]
    assert await one.store.list_open_waits(uuid4(), run_id, limit=9) == []


async def test_equal_values_of_many_runs_are_stored_once_in_a_project_and_never_shared_with_another(
    executors: tuple[Executor, Executor], pool: Pool
) -> None:
    one, other = executors
    version_id = await a_version(one, {"key": "a"})
    await asyncio.gather(
        *(executor.start(new_id(), version_id, LARGE) for executor in (one, other) for _ in range(100))
    )
    assert await payloads(pool) == 1

    version = await one.versions.get(version_id)
    state = a_state(version.graph, new_id(), uuid4())
    await one.store.commit([state], {state.run_id: NEW})

    assert await payloads(pool) == 2


def a_state(graph: object, run_id: UUID, project_id: UUID) -> RunState:
    state = RunState(run_id, str(project_id), str(uuid4()), str(uuid4()), 1, graph, orjson.dumps(LARGE))  # type: ignore[arg-type]
    state.emit("run.started")
    return state


async def test_a_run_that_is_refused_leaves_no_use_behind_and_its_content_goes_after_a_day(
    executors: tuple[Executor, Executor], pool: Pool, housekeeping: PostgresHousekeepingStore
) -> None:
    one, other = executors
    run_id = new_id()
    version_id = await a_version(one, {"key": "a"})
    await one.start(run_id, version_id)
    with pytest.raises(RunExistsError):
        await other.start(run_id, version_id, LARGE)
    assert not await count(pool, "SELECT count(*) FROM executor.run_payloads")

    assert (await housekeeping.remove_payloads(DAY, limit=10)).count == 0
    await make_old(pool)
    assert (await housekeeping.remove_payloads(DAY, limit=10)).count == 1
    assert await payloads(pool) == 0


async def test_what_is_in_use_is_kept_and_looked_at_once_a_day(
    executors: tuple[Executor, Executor], pool: Pool, housekeeping: PostgresHousekeepingStore
) -> None:
    one, _ = executors
    await one.start(new_id(), await a_version(one, {"key": "a"}), LARGE)
    await make_old(pool)

    looks = [await housekeeping.remove_payloads(DAY, limit=1) for _ in range(2)]

    assert [(look.count, look.more) for look in looks] == [(0, True), (0, False)]
    assert await payloads(pool) == 1


async def test_a_removal_leaves_a_content_that_a_commit_under_way_refers_to_again(
    executors: tuple[Executor, Executor], pool: Pool, housekeeping: PostgresHousekeepingStore
) -> None:
    one, _ = executors
    version = await one.versions.get(await a_version(one, {"key": "a"}))
    await one.start(new_id(), version.id, LARGE)
    await forget_runs(pool)
    await make_old(pool)
    state = a_state(version.graph, new_id(), PROJECT)
    statement, parameters = commit_statement([state], {state.run_id: NEW})

    async with pool.acquire() as connection, connection.transaction():
        await connection.fetch(statement, *parameters)
        assert (await housekeeping.remove_payloads(DAY, limit=10)).count == 0
    assert (await housekeeping.remove_payloads(DAY, limit=10)).count == 0

    assert (await payloads(pool), await dangling(pool)) == (1, 0)


async def test_a_commit_that_finds_a_removal_under_way_stores_the_content_anew(
    executors: tuple[Executor, Executor], pool: Pool
) -> None:
    one, _ = executors
    version_id = await a_version(one, {"key": "a"})
    await one.start(new_id(), version_id, LARGE)
    await forget_runs(pool)

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM executor.payloads")
        starting = asyncio.create_task(one.start(new_id(), version_id, LARGE))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not await count(pool, waits):
            assert not starting.done()
    await starting

    assert (await payloads(pool), await dangling(pool)) == (1, 0)


async def test_removals_beside_commits_that_refer_again_never_lose_a_content(
    executors: tuple[Executor, Executor], pool: Pool, housekeeping: PostgresHousekeepingStore
) -> None:
    one, other = executors
    version_id = await a_version(one, {"key": "a"})
    inputs = [f"{number}{LARGE}" for number in range(10)]
    removed = 0
    for _ in range(20):
        await asyncio.gather(
            *(housekeeping.remove_payloads(DAY, limit=3) for _ in range(2)),
            *(executor.start(new_id(), version_id, value) for executor in (one, other) for value in inputs),
        )
        assert await dangling(pool) == 0
        assert await payloads(pool) == len(inputs)
        await forget_runs(pool)
        await make_old(pool)
        removed += (await housekeeping.remove_payloads(DAY, limit=5)).count
    assert removed == 100
