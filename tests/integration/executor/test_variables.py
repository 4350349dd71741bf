"""Variables of projects among executors, and how runs keep them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import orjson
import pytest

from services.executor.domain.model import NodeRef
from services.executor.domain.variables import MAX_BYTES, ProjectVariables
from services.executor.engine.run_variables import NONE, RunVariables
from services.executor.storage.postgres import PostgresRunStore
from services.executor.storage.variables import PostgresVariableStore
from services.kit.ids import new_id
from services.kit.pool import Pool
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, QUEUES, Executor, a_refill, a_version, committing, success


@pytest.fixture
async def pool(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pool]:
    opened = await open_pool(await database("executor"), size=8)
    yield opened
    await opened.close()


@pytest.fixture
async def executors(pool: Pool) -> AsyncIterator[tuple[Executor, Executor]]:
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    async with committing(*both):
        yield both


class CountingStore(PostgresVariableStore):
    """Counts what it is asked."""

    asked = 0

    async def revisions(self) -> dict[str, int]:
        self.asked += 1
        return await super().revisions()

    async def get_variables(self, project_id: UUID) -> tuple[int, bytes]:
        self.asked += 1
        return await super().get_variables(project_id)


async def test_both_kinds_are_read_back_by_any_executor_and_large_ones_are_stored_once(
    executors: tuple[Executor, Executor], pool: Pool
) -> None:
    one, other = executors
    large = b'{"text":"%s"}' % (b"x" * (MAX_BYTES - 11))
    read = {"config": {"value": "{{ run.vars.n }} {{ size(project.vars.text) }}"}}
    version_id = await a_version(
        one, {"key": "a"}, {"key": "b", **read}, {"key": "c", "config": {"value": "{{ run.id }}"}}
    )
    runs = [new_id() for _ in range(3)]
    for number, run_id in enumerate(runs):
        await one.start(run_id, version_id, variables=RunVariables.of(b'{"n":%d}' % number, large))
    counts = "SELECT (SELECT count(*) FROM executor.payloads), (SELECT count(*) FROM executor.run_payloads)"
    assert [tuple(row) for row in await pool.fetch(counts)] == [(1, 3)]

    for number, run_id in enumerate(runs):
        (job,) = (await other.jobs.claim("w", [(NodeRef(run_id, "a"), 0)], f"a{number}")).jobs
        assert orjson.loads(job.variables) == {}
        (answer,) = await other.jobs.report("w", [success(job.ref, job.epoch)], free_slots=1, queues=QUEUES)
        (job,) = answer.next
        assert orjson.loads(job.variables)["run"]["vars"] == {"n": number}
        assert orjson.loads(job.variables)["project"]["vars"] == orjson.loads(large)
        (answer,) = await other.jobs.report("w", [success(job.ref, job.epoch)], free_slots=1, queues=QUEUES)
        # What does not read them does not carry them.
        (job,) = answer.next
        assert "vars" not in orjson.loads(job.variables)["run"]
        assert (await other.store.get_run(PROJECT, run_id)).vars == b'{"n":%d}' % number


async def test_a_run_without_variables_holds_none(executors: tuple[Executor, Executor], pool: Pool) -> None:
    one, _ = executors
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}), variables=RunVariables.of(None, None))
    rows = await pool.fetch("SELECT vars, project_vars FROM executor.runs")
    assert [tuple(row) for row in rows] == [(None, None)]
    (stored,) = await one.store.load([run_id])
    assert (stored.vars.run, stored.vars.project) == (NONE, NONE)


async def test_a_change_is_seen_here_at_once_and_elsewhere_with_the_next_census(
    executors: tuple[Executor, Executor],
) -> None:
    one, other = executors
    project, stranger = uuid4(), uuid4()
    for executor in executors:
        await a_refill(executor, "default").take_census()
    for text in (b'{"a":1}', b'{"a":2}', b"{}"):
        await one.variables.set(project, text)
        assert (await one.variables.pinned(project)).text == text
        assert (await other.variables.pinned(project)).text != text
        await a_refill(other, "default").take_census()
        assert (await other.variables.pinned(project)).text == text
        assert await other.variables.pinned(stranger) is NONE


async def test_starts_ask_for_nothing_that_is_known_and_for_a_change_once(pool: Pool) -> None:
    store, now = CountingStore(pool), [0.0]
    variables = ProjectVariables(store, clock=lambda: now[0])
    project = uuid4()
    await ProjectVariables(store).set(project, b'{"a":1}')

    async def starts(count: int = 20) -> int:
        """Questions to the database that so many starts at once lead to."""
        before = store.asked
        found = await asyncio.gather(*(variables.pinned(each) for each in (project, uuid4()) for _ in range(count)))
        assert {json.text for json in found} == {b'{"a":1}', b"{}"}
        return store.asked - before

    # No census yet: the first asks for revisions, then for the values; all others wait for it.
    assert await starts() == 2
    assert await starts() == 0
    now[0] = 4.9
    assert await starts() == 0
    # The census is late: nothing older than five seconds is taken.
    now[0] = 5.1
    assert await starts() == 1
    assert await starts() == 0
