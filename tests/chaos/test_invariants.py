"""Negative controls: each way of breaking an invariant is seen by the look at the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from services.executor.domain.model import NodeRef
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.pool import Pool
from services.kit.postgres import open_pool
from tests.chaos.invariants import Looks, broken
from tests.chaos.load import Workflow
from tests.support import backends
from tests.support.executors import QUEUES, Executor, a_version, committing, success

TWO_IN_A_ROW = [Workflow({"nodes": [], "edges": [{"source": "a", "target": "b"}]}, [])]


@dataclass(frozen=True)
class Database:
    """With one run: its node `a` has succeeded, `b` is running."""

    pool: Pool
    run_id: str


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Database]:
    url = await backends.fresh_database("executor")
    pool = await open_pool(url, size=8)
    executor = Executor(PostgresRunStore(pool))
    run_id = new_id()
    async with committing(executor):
        await executor.start(run_id, await a_version(executor, {"key": "a"}, {"key": "b"}), {})
        (job,) = (await executor.jobs.claim("w", [(NodeRef(run_id, "a"), 0)], "claim")).jobs
        await executor.jobs.report("w", [success(job.ref, job.epoch)], free_slots=1, queues=QUEUES)
    yield Database(pool, str(run_id))
    await pool.close()
    await backends.drop_database(url)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("UPDATE executor.runs SET status = 4, finished_at = now()", "an ended run has no open node"),
        ("UPDATE executor.node_executions SET status = 5 WHERE node_key = 'b'", "an open run has something"),
        ("UPDATE executor.node_executions SET status = 3 WHERE node_key = 'a'", "a node begins only when"),
        ("DELETE FROM executor.node_executions WHERE node_key = 'b'", "a node begins as soon as"),
        (
            "UPDATE executor.node_executions SET status = 2, due_at = now() - interval '1 minute' WHERE node_key = 'b'",
            "a ready node is woken again",
        ),
        (
            "UPDATE executor.node_executions SET worker = 'gone', started_at = now() - interval '1 minute'",
            "a claim of a worker that is gone",
        ),
        ("UPDATE executor.runs SET sequence = 0", "events are numbered"),
        (
            "INSERT INTO executor.places "
            "SELECT id, 'a', '', 'project/x', now() - interval '1 minute' FROM executor.runs",
            "a place is held only by what runs",
        ),
        (
            "INSERT INTO executor.project_limits (project_id, own) "
            "SELECT project_id, '{\"max_running_nodes\": 0}' FROM executor.runs",
            "no more runs at a time",
        ),
        (r"UPDATE executor.node_executions SET output = '\x00' || sha256('lost')", "a large value"),
        (r"UPDATE executor.runs SET input = '\x00' || sha256('lost')", "a large value"),
    ],
)
async def test_damage_is_seen(damage: str, expected: str, database: Database) -> None:
    async with database.pool.acquire() as connection, _undone(connection):
        assert await broken(connection, TWO_IN_A_ROW) == []
        await connection.execute(damage)
        found = await broken(connection, TWO_IN_A_ROW)
    assert any(violation.startswith(expected) for violation in found), found


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("UPDATE executor.runs SET version = version - 1", "a run never goes back"),
        ("UPDATE executor.node_executions SET epoch = epoch - 1 WHERE node_key = 'b'", "a node never goes back"),
        ("UPDATE executor.node_executions SET output = '{}' WHERE node_key = 'a'", "a node never goes back"),
        ("DELETE FROM executor.runs", "an accepted run is there"),
    ],
)
async def test_damage_between_two_looks_is_seen(damage: str, expected: str, database: Database) -> None:
    looks = Looks(TWO_IN_A_ROW)
    async with database.pool.acquire() as connection, _undone(connection):
        assert await looks.look(connection, [database.run_id]) == []
        await connection.execute(damage)
        found = await looks.look(connection, [database.run_id])
    assert any(violation.startswith(expected) for violation in found), found


@asynccontextmanager
async def _undone(connection: Any) -> AsyncIterator[None]:
    """A transaction that is rolled back in the end."""
    transaction = connection.transaction()
    await transaction.start()
    yield
    await transaction.rollback()
