"""TurnStore on PostgreSQL."""

from collections import Counter
from uuid import UUID

import asyncpg

from services.executor.domain.turns import LimitsOf
from services.executor.engine.graph import RunLimits
from services.executor.storage.connections import connection_of
from services.kit.pool import Pool

_ANY_PENDING = "SELECT 1 FROM executor.runs WHERE status = 1 AND ($1::uuid IS NULL OR workflow_id = $1) LIMIT 1"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('executor.turns', 0))"
# One step in the index for each workflow and key, however many runs of it wait.
_CANDIDATES = """
WITH RECURSIVE groups AS (
    (SELECT workflow_id, concurrency_key FROM executor.runs
     WHERE status = 1 AND ($1::uuid IS NULL OR workflow_id = $1) ORDER BY workflow_id, concurrency_key LIMIT 1)
    UNION ALL
    SELECT n.workflow_id, n.concurrency_key FROM groups AS g CROSS JOIN LATERAL (
        SELECT r.workflow_id, r.concurrency_key FROM executor.runs AS r
        WHERE r.status = 1 AND (r.workflow_id, r.concurrency_key) > (g.workflow_id, g.concurrency_key)
            AND ($1::uuid IS NULL OR r.workflow_id = $1)
        ORDER BY r.workflow_id, r.concurrency_key LIMIT 1
    ) AS n
)
SELECT c.* FROM groups AS g CROSS JOIN LATERAL (
    SELECT r.id, r.version_id, r.workflow_id, r.concurrency_key, r.created_at FROM executor.runs AS r
    WHERE r.status = 1 AND r.workflow_id = g.workflow_id AND r.concurrency_key = g.concurrency_key
    ORDER BY r.created_at, r.id LIMIT 64
) AS c
ORDER BY c.created_at, c.id
"""
# A run that had its turn given once more may have begun and ended meanwhile: no commit of its gives that place back.
_PLACES = """
WITH freed AS (
    DELETE FROM executor.places AS p USING executor.runs AS r
    WHERE p.scope = ANY($1::text[]) AND r.id = p.run_id AND r.status >= 4
)
SELECT p.scope, p.run_id FROM executor.places AS p JOIN executor.runs AS r ON r.id = p.run_id
WHERE p.scope = ANY($1::text[]) AND r.status < 4
"""
_TAKE = """
INSERT INTO executor.places (run_id, node_key, item_path, scope)
SELECT run_id, '', '', scope FROM unnest($1::uuid[], $2::text[]) AS u (run_id, scope)
ON CONFLICT DO NOTHING
"""


class PostgresTurnStore:
    """TurnStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def give_turns(self, workflow_id: UUID | None, limits_of: LimitsOf) -> list[UUID]:
        """See TurnStore. One transaction at a time gives turns; what it counts was committed before its lock."""
        async with connection_of(self._pool) as connection:
            if await connection.fetchval(_ANY_PENDING, workflow_id) is None:
                return []
            async with connection.transaction():
                await connection.execute(_LOCK)
                rows = await connection.fetch(_CANDIDATES, workflow_id)
                scopes = {row["id"]: _scopes(row, await limits_of(row["version_id"])) for row in rows}
                named = sorted({scope for found in scopes.values() for scope in found})
                taken = {(place["scope"], place["run_id"]) for place in await connection.fetch(_PLACES, named)}
                used = Counter(scope for scope, _ in taken)
                turns: list[UUID] = []
                places: list[tuple[UUID, str]] = []
                for run_id, found in scopes.items():
                    new = [scope for scope in found if (scope, run_id) not in taken]
                    if all(used[scope] < found[scope] for scope in new):
                        used.update(new)
                        turns.append(run_id)
                        places += [(run_id, scope) for scope in new]
                if places:
                    await connection.execute(_TAKE, [run for run, _ in places], [scope for _, scope in places])
        return turns


def _scopes(run: asyncpg.Record, limits: RunLimits | None) -> dict[str, int]:
    """What a run counts against, with how many may go on at a time."""
    found: dict[str, int] = {}
    if limits is not None and limits.max_running_runs is not None:
        found[f"workflow/{run['workflow_id']}"] = limits.max_running_runs
    if limits is not None and limits.key:
        found[f"key/{run['workflow_id']}/{run['concurrency_key']}"] = limits.max_per_key
    return found
