"""What PostgreSQL has is counted for metrics: each queue's backlog and its age, and open runs by status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from services.executor.domain.survey import Survey
from services.executor.engine.state import NodeStatus, RunStatus
from services.executor.storage.survey import PostgresCountStore
from services.kit.pool import Pool
from services.kit.postgres import open_pool

_RUN = """
INSERT INTO executor.runs (id, project_id, workflow_id, version_id, version_number, workflow_name, status, version,
    sequence, input, prompt_tokens, completion_tokens, model_calls, traceparent, timeout_seconds, deadline_at)
VALUES ($1, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 'w', $2, 1, 1, '{}', 0, 0, 0, '', 60, now())
"""
_NODE = """
INSERT INTO executor.node_executions (run_id, node_key, item_path, type, queue, status, epoch, failures, claims,
    publications, worker, claim_id, port, prompt_tokens, completion_tokens, model_calls, project_id, queued_at)
VALUES ($1, $2, '', 'noop', $3, $4, 0, 0, 0, 0, '', '', '', 0, 0, 0, $1, now() - make_interval(secs => $5))
"""


@pytest.fixture
async def pool(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pool]:
    opened = await open_pool(await database("executor"), size=2)
    yield opened
    await opened.close()


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_the_backlog_is_counted_by_queue_and_what_is_gone_counts_nothing(pool: Pool) -> None:
    for status in (RunStatus.RUNNING, RunStatus.RUNNING, RunStatus.WAITING, RunStatus.SUCCEEDED):
        await pool.execute(_RUN, uuid4(), status)
    run_id = uuid4()
    for key, queue, status, seconds in (
        ("a", "default", NodeStatus.READY, 90.0),
        ("b", "default", NodeStatus.READY, 5.0),
        ("c", "of.others", NodeStatus.READY, 30.0),
        ("d", "default", NodeStatus.RUNNING, 900.0),
        ("e", "", NodeStatus.READY, 900.0),
    ):
        await pool.execute(_NODE, run_id, key, queue, status, seconds)
    survey = Survey(PostgresCountStore(pool), ["default"])
    await survey.count()
    assert value("headrace_executor_ready_nodes", queue="default") == 2
    assert value("headrace_executor_ready_nodes", queue="of.others") == 1
    assert value("headrace_executor_ready_oldest_seconds", queue="default") == pytest.approx(90, abs=30)
    assert value("headrace_executor_open_runs", status="running") == 2
    assert value("headrace_executor_open_runs", status="waiting") == 1
    assert value("headrace_executor_open_runs", status="pending") == 0
    await pool.execute("DELETE FROM executor.node_executions")
    await survey.count()
    assert value("headrace_executor_ready_nodes", queue="default") == 0
    assert value("headrace_executor_ready_nodes", queue="of.others") == 0
    assert value("headrace_executor_ready_oldest_seconds", queue="of.others") == 0
