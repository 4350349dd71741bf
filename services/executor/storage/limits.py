"""Limits of projects, and the places for what they count."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from services.executor.domain.dispatch import PLACE_SECONDS
from services.executor.domain.flows import Ready
from services.executor.domain.limits import NO_LIMITS, ProjectLimits, effective, limits_from_json
from services.executor.domain.model import NodeRef
from services.executor.storage.connections import connection_of
from services.kit.pool import Pool

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

_LIMITS = "SELECT project_id, weight, own, ceilings FROM executor.project_limits"
_SET_OWN = """
INSERT INTO executor.project_limits (project_id, own) VALUES ($1, $2::text::jsonb)
ON CONFLICT (project_id) DO UPDATE SET own = excluded.own
"""
_SET_CEILINGS = """
INSERT INTO executor.project_limits (project_id, weight, ceilings) VALUES ($1, $2, $3::text::jsonb)
ON CONFLICT (project_id) DO UPDATE SET weight = excluded.weight, ceilings = excluded.ceilings
"""
# Each of the statements sees what was committed before the lock was given.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('executor.places/' || $1, 0))"
_STILL_READY = """
SELECT n.run_id, n.node_key, n.item_path
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS u (run_id, node_key, item_path, epoch)
JOIN executor.node_executions AS n USING (run_id, node_key, item_path) WHERE n.status = 2 AND n.epoch = u.epoch
"""
_PLACES = "SELECT scope, run_id, node_key, item_path FROM executor.places WHERE scope = ANY($1::text[])"
# now() is when the transaction began: one that was held up must not make a place older that was taken meanwhile.
_TAKE = """
INSERT INTO executor.places AS p (run_id, node_key, item_path, scope)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
ON CONFLICT (run_id, node_key, item_path, scope) DO UPDATE SET taken_at = greatest(p.taken_at, now())
"""
_UNUSED = f"""
SELECT DISTINCT p.run_id FROM executor.places AS p
LEFT JOIN executor.node_executions AS n USING (run_id, node_key, item_path)
WHERE p.node_key <> '' AND p.taken_at < now() - make_interval(secs => {PLACE_SECONDS})
    AND n.status IS DISTINCT FROM 3
ORDER BY p.run_id LIMIT 500
"""  # noqa: S608 - a constant
_LOCK_RUNS = "SELECT 1 FROM executor.runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE"
_FREE_UNUSED = f"""
WITH freed AS (
    DELETE FROM executor.places AS p WHERE p.run_id = ANY($1::uuid[]) AND p.node_key <> ''
        AND p.taken_at < now() - make_interval(secs => {PLACE_SECONDS})
        AND NOT EXISTS (SELECT 1 FROM executor.node_executions AS n WHERE n.status = 3 AND n.run_id = p.run_id
            AND n.node_key = p.node_key AND n.item_path = p.item_path)
    RETURNING p.run_id
)
UPDATE executor.runs SET version = version + 1 WHERE id IN (SELECT run_id FROM freed)
"""  # noqa: S608 - a constant


async def load_limits(connection: Connection) -> dict[str, ProjectLimits]:
    """What counts for each project that anything is set for."""
    return {str(row["project_id"]): effective(*_of(row)) for row in await connection.fetch(_LIMITS)}


def _of(row: asyncpg.Record) -> tuple[ProjectLimits, ProjectLimits]:
    own = limits_from_json(orjson.loads(row["own"]))
    return own, limits_from_json(orjson.loads(row["ceilings"]), weight=row["weight"])


class PostgresLimitStore:
    """LimitStore and Places on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get_limits(self, project_id: UUID) -> tuple[ProjectLimits, ProjectLimits]:
        """See LimitStore."""
        async with connection_of(self._pool) as connection:
            row = await connection.fetchrow(f"{_LIMITS} WHERE project_id = $1", project_id)
        return _of(row) if row else (NO_LIMITS, NO_LIMITS)

    async def set_own(self, project_id: UUID, limits: ProjectLimits) -> None:
        """See LimitStore."""
        async with connection_of(self._pool) as connection:
            await connection.execute(_SET_OWN, project_id, orjson.dumps(limits.as_json()).decode())

    async def set_ceilings(self, project_id: UUID, limits: ProjectLimits) -> None:
        """See LimitStore."""
        text = orjson.dumps(limits.as_json()).decode()
        async with connection_of(self._pool) as connection:
            await connection.execute(_SET_CEILINGS, project_id, limits.weight, text)

    async def take(self, project_id: str, wanted: Sequence[Ready]) -> tuple[set[NodeRef], list[Ready]]:
        """See Places. Not flushed to disk: the commit that uses a place comes later in the log than the place."""
        async with connection_of(self._pool) as connection, connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")
            await connection.execute(_LOCK, project_id)
            limits = (await load_limits_of(connection, UUID(project_id))) or NO_LIMITS
            refs, epochs = [ready.ref for ready in wanted], [ready.epoch for ready in wanted]
            rows = await connection.fetch(_STILL_READY, *_columns(refs), epochs)
            still_ready = {NodeRef(*row) for row in rows}
            candidates = [ready for ready in wanted if ready.ref in still_ready]
            scopes = {ready.ref: limits.scopes(project_id, ready.type) for ready in candidates}
            named = sorted({scope for found in scopes.values() for scope in found})
            taken = {(row[0], NodeRef(*row[1:])) for row in await connection.fetch(_PLACES, named)}
            used = Counter(scope for scope, _ in taken)
            granted: set[NodeRef] = set()
            refused: list[Ready] = []
            places: list[tuple[NodeRef, str]] = []
            for ready in candidates:
                new = [scope for scope in scopes[ready.ref] if (scope, ready.ref) not in taken]
                if all(used[scope] < scopes[ready.ref][scope] for scope in new):
                    used.update(new)
                    granted.add(ready.ref)
                    places += [(ready.ref, scope) for scope in scopes[ready.ref]]
                else:
                    refused.append(ready)
            if places:
                await connection.execute(_TAKE, *_columns([ref for ref, _ in places]), [scope for _, scope in places])
        return granted, refused

    async def free_unused(self) -> None:
        """See LimitStore. Runs are locked before it is looked again whether they use their places."""
        async with connection_of(self._pool) as connection:
            runs = [row[0] for row in await connection.fetch(_UNUSED)]
            if runs:
                async with connection.transaction():
                    await connection.execute(_LOCK_RUNS, runs)
                    await connection.execute(_FREE_UNUSED, runs)


async def load_limits_of(connection: Connection, project_id: UUID) -> ProjectLimits | None:
    """What counts for one project."""
    row = await connection.fetchrow(f"{_LIMITS} WHERE project_id = $1", project_id)
    return effective(*_of(row)) if row else None


def _columns(refs: Sequence[NodeRef]) -> tuple[list[UUID], list[str], list[str]]:
    return [ref.run_id for ref in refs], [ref.node_key for ref in refs], [ref.item_path for ref in refs]
