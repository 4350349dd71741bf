"""Lists of runs: every filter gives the runs it says, newest first, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID, uuid4

import pytest

from services.executor.domain.model import RunFilter, RunView
from services.executor.engine.state import RunStatus
from services.executor.storage.postgres import PostgresRunStore
from services.kit.pool import Pool
from services.kit.postgres import open_pool

PROJECT, OTHER = uuid4(), uuid4()
WORKFLOWS = (uuid4(), uuid4())
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

_RUN = """
INSERT INTO executor.runs (id, project_id, workflow_id, version_id, version_number, workflow_name, status, version,
    sequence, input, prompt_tokens, completion_tokens, model_calls, traceparent, timeout_seconds, created_at,
    deadline_at)
VALUES ($1, $2, $3, gen_random_uuid(), 1, 'w', $4, 1, 1, '{}', 0, 0, 0, '', 60, $5, $5)
"""


@pytest.fixture
async def pool(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pool]:
    opened = await open_pool(await database("executor"), size=2)
    yield opened
    await opened.close()


async def some_runs(pool: Pool) -> list[RunView]:
    """Runs of all statuses and both workflows, some at the same moment; the project's, newest first."""
    for number, (status, workflow_id, project_id) in enumerate(
        product([*RunStatus, *RunStatus], WORKFLOWS, (PROJECT, OTHER))
    ):
        created_at = BEGIN + timedelta(hours=number // 8)
        await pool.execute(_RUN, uuid4(), project_id, workflow_id, status, created_at)
    store = PostgresRunStore(pool)
    found = await store.list_runs(PROJECT, RunFilter(), limit=1000, after=None)
    assert len(found) == 24
    assert found == sorted(found, key=lambda run: (run.created_at, run.id), reverse=True)
    return found


def expected(run: RunView, chosen: RunFilter) -> bool:
    return (
        (not chosen.statuses or run.status in chosen.statuses)
        and chosen.workflow_id in (None, run.workflow_id)
        and (chosen.created_after is None or run.created_at > chosen.created_after)
        and (chosen.created_before is None or run.created_at < chosen.created_before)
    )


async def pages(store: PostgresRunStore, chosen: RunFilter, size: int) -> list[RunView]:
    found: list[RunView] = []
    place: tuple[datetime, UUID] | None = None
    while page := await store.list_runs(PROJECT, chosen, limit=size, after=place):
        found += page
        place = page[-1].created_at, page[-1].id
    return found


async def test_every_filter_gives_just_the_runs_it_says_in_pages_of_any_size(pool: Pool) -> None:
    runs, store = await some_runs(pool), PostgresRunStore(pool)
    statuses = [
        (),
        (RunStatus.SUCCEEDED,),
        (RunStatus.FAILED,),
        (RunStatus.WAITING, RunStatus.SUCCEEDED),
        tuple(RunStatus),
    ]
    moments = [None, BEGIN + timedelta(hours=1), BEGIN + timedelta(hours=4)]
    for status, workflow_id, after, before in product(statuses, (None, *WORKFLOWS), moments, moments):
        chosen = RunFilter(status, workflow_id, after, before)
        for size in (1, 5, 100):
            assert await pages(store, chosen, size) == [run for run in runs if expected(run, chosen)], chosen
