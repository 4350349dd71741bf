"""HousekeepingStore and RetentionStore on PostgreSQL."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.executor.domain.housekeeping import Removed
from services.kit.postgres import transaction

EVENTS_AT_ONCE = 5_000
"""Events of the runs that one transaction removes, about: each has up to as many node executions. At least one run."""

# A worker's row is how the sweep knows that its claims are lost: it stays as long as there are some.
_REMOVE_WORKERS = """
DELETE FROM executor.workers WHERE id IN (
    SELECT w.id FROM executor.workers w
    WHERE w.lease_until < now() - $1::interval
        AND NOT EXISTS (SELECT FROM executor.node_executions n WHERE n.status = 3 AND n.worker = w.id)
    LIMIT $2 FOR UPDATE SKIP LOCKED)
"""
# An effect is younger than its run: one older than every open run belongs to a run that has ended.
_REMOVE_EFFECTS = """
DELETE FROM executor.effects WHERE (project_id, key) IN (
    SELECT project_id, key FROM executor.effects
    WHERE created_at < least(now() - $1::interval, (SELECT min(created_at) FROM executor.runs WHERE status < 4))
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)
"""

# Each project's oldest runs by its own index, as the planner knows no way to skip from project to project itself.
_EXPIRED_RUNS = """
WITH RECURSIVE projects AS (
    (SELECT project_id FROM executor.runs ORDER BY project_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.project_id FROM executor.runs r WHERE r.project_id > p.project_id ORDER BY r.project_id LIMIT 1)
    FROM projects p WHERE p.project_id IS NOT NULL
), limits AS (
    SELECT p.project_id, now() - coalesce(make_interval(days => t.days), $1::interval) AS oldest
    FROM projects p LEFT JOIN executor.retentions t USING (project_id)
)
SELECT expired.id, expired.sequence FROM limits l CROSS JOIN LATERAL (
    SELECT r.id, r.sequence FROM executor.runs r
    WHERE r.project_id = l.project_id AND r.created_at < l.oldest AND r.finished_at < l.oldest
        AND NOT EXISTS (SELECT FROM executor.runs again WHERE again.rerun_of = r.id AND again.status < 4)
    ORDER BY r.created_at, r.id LIMIT $2 FOR UPDATE SKIP LOCKED
) AS expired LIMIT $2
"""
# Asked again when they are locked: from then on nobody can begin to go again over them.
NOT_GONE_OVER = """
SELECT locked.id FROM unnest($1::uuid[]) AS locked (id)
WHERE NOT EXISTS (SELECT FROM executor.runs again WHERE again.rerun_of = locked.id AND again.status < 4)
"""
_REMOVE_RUNS = (
    "DELETE FROM executor.node_executions WHERE run_id = ANY($1::uuid[])",
    "DELETE FROM executor.run_events WHERE run_id = ANY($1::uuid[])",
    "DELETE FROM executor.run_payloads WHERE run_id = ANY($1::uuid[])",
    "DELETE FROM executor.runs WHERE id = ANY($1::uuid[])",
)
# What is in use is not looked at again before it is old again.
_REMOVE_PAYLOADS = """
WITH old AS (
    SELECT p.project_id, p.hash, EXISTS (
        SELECT FROM executor.run_payloads u WHERE u.hash = p.hash AND u.project_id = p.project_id) AS in_use
    FROM executor.payloads p WHERE p.used_at < now() - $1::interval
    ORDER BY p.used_at LIMIT $2 FOR UPDATE SKIP LOCKED
), kept AS (
    UPDATE executor.payloads p SET used_at = now() FROM old
    WHERE old.in_use AND p.project_id = old.project_id AND p.hash = old.hash
), removed AS (
    DELETE FROM executor.payloads p USING old
    WHERE NOT old.in_use AND p.project_id = old.project_id AND p.hash = old.hash RETURNING 1
)
SELECT (SELECT count(*) FROM removed), (SELECT count(*) FROM old)
"""
_SET_RETENTION = """
INSERT INTO executor.retentions (project_id, days) VALUES ($1, $2)
ON CONFLICT (project_id) DO UPDATE SET days = excluded.days
"""


class PostgresHousekeepingStore:
    """HousekeepingStore and RetentionStore on one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def remove_workers(self, silent_for: timedelta, *, limit: int) -> Removed:
        """See HousekeepingStore."""
        return await self._remove(_REMOVE_WORKERS, silent_for, limit)

    async def remove_effects(self, older_than: timedelta, *, limit: int) -> Removed:
        """See HousekeepingStore."""
        return await self._remove(_REMOVE_EFFECTS, older_than, limit)

    async def remove_runs(self, older_than: timedelta, *, limit: int) -> Removed:
        """See HousekeepingStore."""
        async with transaction(self._engine) as connection:
            expired = await _rows(connection, _EXPIRED_RUNS, older_than, limit)
            run_ids: list[UUID] = []
            events = 0
            for run_id, sequence in expired:
                events += sequence
                if run_ids and events > EVENTS_AT_ONCE:
                    break
                run_ids.append(run_id)
            more = len(run_ids) < len(expired) or len(expired) == limit
            run_ids = [row[0] for row in await _rows(connection, NOT_GONE_OVER, run_ids)]
            for statement in _REMOVE_RUNS if run_ids else ():
                await connection.exec_driver_sql(statement, (run_ids,))
        return Removed(len(run_ids), more and bool(run_ids))

    async def remove_payloads(self, unused_for: timedelta, *, limit: int) -> Removed:
        """See HousekeepingStore."""
        async with transaction(self._engine) as connection:
            ((removed, seen),) = await _rows(connection, _REMOVE_PAYLOADS, unused_for, limit)
        return Removed(removed, seen == limit)

    async def get_retention(self, project_id: UUID) -> int | None:
        """See RetentionStore."""
        async with transaction(self._engine) as connection:
            rows = await _rows(connection, "SELECT days FROM executor.retentions WHERE project_id = $1", project_id)
        return rows[0][0] if rows else None

    async def set_retention(self, project_id: UUID, days: int | None) -> None:
        """See RetentionStore."""
        async with transaction(self._engine) as connection:
            if days is None:
                statement = "DELETE FROM executor.retentions WHERE project_id = $1"
                await connection.exec_driver_sql(statement, (project_id,))
            else:
                await connection.exec_driver_sql(_SET_RETENTION, (project_id, days))

    async def _remove(self, statement: str, age: timedelta, limit: int) -> Removed:
        async with transaction(self._engine) as connection:
            count = (await connection.exec_driver_sql(statement, (age, limit))).rowcount
        return Removed(count, count == limit)


async def _rows(connection: AsyncConnection, statement: str, *parameters: Any) -> list[Any]:
    return list((await connection.exec_driver_sql(statement, parameters)).all())
