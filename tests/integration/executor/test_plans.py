"""Statements that find rows by key go on doing so, whatever PostgreSQL knew of the tables when it planned them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import orjson
import pytest

from services.executor.domain.model import NewRun
from services.executor.engine import decide
from services.executor.engine.state import RunState
from services.executor.storage.commit import commit_statement
from services.executor.storage.dispatching import TAKE_READY
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, Executor, a_version, committing

NEW = NewRun(workflow_name="w", request_hash=None, started_by=None, timeout_seconds=60)


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Scan" in plan["Node Type"] and "Relation Name" in plan:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


async def planned(connection: asyncpg.Connection, statement: str, *arguments: object) -> list[dict[str, Any]]:
    """The scans of tables in the plan that is kept for a statement."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
    return list(scans(orjson.loads(row[0])[0]["Plan"]))


@pytest.mark.parametrize("runs", [0, 1, 2])
async def test_a_commit_planned_on_nearly_empty_tables_looks_its_rows_up(
    runs: int, database: Callable[[str], Awaitable[str]]
) -> None:
    pool = await open_pool(await database("executor"), size=4)
    executor = Executor(PostgresRunStore(pool))
    async with committing(executor), pool.acquire() as connection:
        version = await executor.versions.get(await a_version(executor, {"key": "a"}))
        for _ in range(runs):
            await executor.start(new_id(), version.id)
            await connection.execute(
                "INSERT INTO executor.places (run_id, node_key, item_path, scope) SELECT id, 'a', '', '' "
                "FROM executor.runs ON CONFLICT DO NOTHING"
            )
        await connection.execute("ANALYZE")
        project, workflow = str(PROJECT), str(version.workflow_id)
        state = RunState(new_id(), project, workflow, str(version.id), 1, version.graph, b"{}")
        decide.start(state)
        for new in ({}, {state.run_id: NEW}):
            statement, parameters = commit_statement([state], new)
            found = await planned(connection, statement, *parameters)
            by_table = {scan["Relation Name"]: scan for scan in found if scan["Node Type"] != "Index Only Scan"}
            assert by_table.keys() >= {"runs", "places"}
            assert all("Index Cond" in scan for scan in by_table.values()), found
        taking = await planned(connection, TAKE_READY, "default", [PROJECT], [1], [True])
        assert [scan for scan in taking if scan["Alias"] == "n" and "Index Cond" not in scan] == []
    await pool.close()
