"""CountStore on PostgreSQL."""

from services.executor.domain.survey import Backlog, Counts
from services.executor.engine.state import RunStatus
from services.executor.storage.connections import connection_of
from services.kit.pool import Pool

_READY = """
SELECT queue, count(*) AS nodes, extract(epoch FROM now() - min(queued_at))::float8 AS seconds
FROM executor.node_executions WHERE status = 2 AND queue <> '' GROUP BY queue
"""
_OPEN = "SELECT status, count(*) AS runs FROM executor.runs WHERE status < 4 GROUP BY status"


class PostgresCountStore:
    """CountStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def counts(self) -> Counts:
        """See CountStore."""
        async with connection_of(self._pool) as connection:
            ready = await connection.fetch(_READY)
            runs = await connection.fetch(_OPEN)
        return Counts(
            {row["queue"]: Backlog(row["nodes"], max(0.0, row["seconds"])) for row in ready},
            {RunStatus(row["status"]): row["runs"] for row in runs},
        )
