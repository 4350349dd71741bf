"""A commit that PostgreSQL breaks off, because it and another transaction wait for each other's rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest

from deploy.local import databases
from services.executor.engine import decide
from services.executor.engine.state import RunStatus
from services.executor.storage.postgres import PostgresRunStore
from services.kit.errors import UnavailableError
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, Executor, a_version, committing
from tests.support.waiting import await_until

_LOCK = "SELECT 1 FROM executor.runs WHERE id = $1 FOR UPDATE"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
async def url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("executor")


@pytest.fixture
async def executor(url: str) -> AsyncIterator[Executor]:
    """What is submitted together is one commit."""
    pool = await open_pool(url, size=4)
    made = Executor(PostgresRunStore(pool))
    async with committing(made):
        yield made
    await pool.close()


@pytest.fixture
async def session(url: str, postgres_server: str) -> AsyncIterator[Callable[[], Awaitable[asyncpg.Connection]]]:
    """`await session()`: an administrator's session in the executor's database, which is never a deadlock's victim."""
    admin_url = databases.url_with(postgres_server, database=urlsplit(url).path[1:])
    async with AsyncExitStack() as stack:

        async def connect() -> asyncpg.Connection:
            connection = await asyncpg.connect(admin_url)
            stack.push_async_callback(connection.close)
            # Who looks for a deadlock is who gives way; this one does not look.
            await connection.execute("SET deadlock_timeout = '1h'")
            return connection

        yield connect


async def cancel_and_start(executor: Executor, cancelled: list[UUID], new: UUID, version_id: UUID) -> list[object]:
    """Cancel runs and start one, all in one commit; what each was answered, the new run's answer last."""
    version = await executor.versions.get(version_id)
    submitted = [executor.committer.submit(run_id, decide.cancel, lambda _, __: None) for run_id in cancelled]
    return await asyncio.gather(*submitted, executor.submit_start(new, version), return_exceptions=True)


async def test_a_commit_broken_off_as_a_deadlock_writes_nothing_and_can_be_repeated(
    executor: Executor, session: Callable[[], Awaitable[asyncpg.Connection]]
) -> None:
    version_id = await a_version(executor, {"key": "a"})
    runs = sorted(new_id() for _ in range(3))
    for run_id in runs:
        await executor.start(run_id, version_id)
    before = await executor.store.run_versions(runs)
    new = new_id()
    gate, rival, watch = await session(), await session(), await session()

    async def waiting(count: int) -> None:
        async def are_waiting() -> bool:
            return bool(await watch.fetchval(_WAITING) == count)

        await await_until(are_waiting)

    # The commit locks the runs in the order of their ids. Held up at the second, it has the first, which the rival
    # asks for; let go on, it asks for the third, which the rival has.
    at_gate, of_rival = gate.transaction(), rival.transaction()
    await at_gate.start()
    await of_rival.start()
    await gate.execute(_LOCK, runs[1])
    await rival.execute(_LOCK, runs[2])
    batch = asyncio.create_task(cancel_and_start(executor, runs, new, version_id))
    await waiting(1)
    asks = asyncio.create_task(rival.execute(_LOCK, runs[0]))
    await waiting(2)
    await at_gate.rollback()

    answers = await batch
    await asks  # the rival got what it asked for: the commit it was that PostgreSQL ended
    await of_rival.rollback()

    assert [type(answer) for answer in answers] == [UnavailableError] * 4
    assert "being changed elsewhere" in str(answers[-1])
    assert await executor.store.run_versions([*runs, new]) == before

    assert await cancel_and_start(executor, runs, new, version_id) == [None] * 4
    statuses = [(await executor.store.get_run(PROJECT, run_id)).status for run_id in (*runs, new)]
    assert statuses == [RunStatus.CANCELLED] * 3 + [RunStatus.RUNNING]
