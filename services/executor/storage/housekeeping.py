"""HousekeepingStore on PostgreSQL."""

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.postgres import transaction

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


class PostgresHousekeepingStore:
    """HousekeepingStore on one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def remove_workers(self, silent_for: timedelta, *, limit: int) -> int:
        """See HousekeepingStore."""
        return await self._remove(_REMOVE_WORKERS, silent_for, limit)

    async def remove_effects(self, older_than: timedelta, *, limit: int) -> int:
        """See HousekeepingStore."""
        return await self._remove(_REMOVE_EFFECTS, older_than, limit)

    async def _remove(self, statement: str, age: timedelta, limit: int) -> int:
        async with transaction(self._engine) as connection:
            return (await connection.exec_driver_sql(statement, (age, limit))).rowcount
