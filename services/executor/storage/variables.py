"""VariableStore on PostgreSQL."""

from uuid import UUID

import orjson

from services.executor.storage.connections import connection_of
from services.kit.pool import Pool

REVISIONS = "SELECT coalesce(json_object_agg(project_id, revision), '{}') FROM executor.project_variables"
"""Revisions by project, as one JSON object: projects that ever had variables."""
_GET = "SELECT revision, variables FROM executor.project_variables WHERE project_id = $1"
_SET = """
INSERT INTO executor.project_variables AS v (project_id, variables) VALUES ($1, $2)
ON CONFLICT (project_id) DO UPDATE SET variables = excluded.variables, revision = v.revision + 1
RETURNING revision
"""


class PostgresVariableStore:
    """VariableStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def revisions(self) -> dict[str, int]:
        """See VariableStore."""
        async with connection_of(self._pool) as connection:
            found: dict[str, int] = orjson.loads(await connection.fetchval(REVISIONS))
        return found

    async def get_variables(self, project_id: UUID) -> tuple[int, bytes]:
        """See VariableStore."""
        async with connection_of(self._pool) as connection:
            row = await connection.fetchrow(_GET, project_id)
        return (row["revision"], row["variables"]) if row else (0, b"{}")

    async def set_variables(self, project_id: UUID, text: bytes) -> int:
        """See VariableStore."""
        async with connection_of(self._pool) as connection:
            revision: int = await connection.fetchval(_SET, project_id, text)
        return revision
