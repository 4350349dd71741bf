"""VariableStore on PostgreSQL."""

from uuid import UUID

from services.executor.storage.connections import connection_of
from services.executor.storage.payloads import Connection
from services.kit.pool import Pool

_REVISIONS = "SELECT project_id, revision FROM executor.project_variables"
_GET = "SELECT revision, variables FROM executor.project_variables WHERE project_id = $1"
_SET = """
INSERT INTO executor.project_variables AS v (project_id, variables) VALUES ($1, $2)
ON CONFLICT (project_id) DO UPDATE SET variables = excluded.variables, revision = v.revision + 1
RETURNING revision
"""


async def load_revisions(connection: Connection) -> dict[UUID, int]:
    """Revisions of the variables of projects that ever had any."""
    return {row[0]: row[1] for row in await connection.fetch(_REVISIONS)}


class PostgresVariableStore:
    """VariableStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def revisions(self) -> dict[UUID, int]:
        """See VariableStore."""
        async with connection_of(self._pool) as connection:
            return await load_revisions(connection)

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
