"""ReadyStore and LoadStore on PostgreSQL: the backlog read fairly and counted, and who takes part."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import orjson

from services.executor.domain.admission import Load
from services.executor.domain.limits import NO_LIMITS, ProjectLimits
from services.executor.domain.model import NodeRef
from services.executor.domain.refill import Census, FoundReady
from services.executor.storage.connections import UNFLUSHED, connection_of
from services.executor.storage.limits import load_limits
from services.executor.storage.variables import REVISIONS
from services.kit.pool import Pool

EXECUTOR_LEASE_SECONDS = 5.0
_FIRST = UUID(int=0)

# One step in the index for each project, however much each has.
_WAITING_PROJECTS = """
WITH RECURSIVE waiting AS (
    (SELECT project_id, 1 AS place FROM executor.node_executions
     WHERE status = 2 AND project_id > $1 ORDER BY project_id LIMIT 1)
    UNION ALL
    SELECT (SELECT n.project_id FROM executor.node_executions n
            WHERE n.status = 2 AND n.project_id > w.project_id ORDER BY n.project_id LIMIT 1), w.place + 1
    FROM waiting w WHERE w.project_id IS NOT NULL AND w.place < $2
)
SELECT project_id FROM waiting WHERE project_id IS NOT NULL
"""
# `publications` leaves the index alone: the update stays on the page. Its rows are locked by then, so their status is
# not asked for again, and they are looked up as in `services.executor.storage.commit`.
TAKE_READY = """
WITH due AS (
    SELECT n.run_id, n.node_key, n.item_path
    FROM unnest($2::uuid[], $3::int[], $4::bool[]) AS s (project_id, share, is_short)
    CROSS JOIN LATERAL (
        SELECT r.run_id, r.node_key, r.item_path FROM executor.node_executions AS r
        WHERE r.status = 2 AND r.project_id = s.project_id AND r.queue = $1
            AND (r.due_at <= now() OR (s.is_short AND r.publications = 0))
        ORDER BY r.priority DESC, r.queued_at LIMIT s.share
        FOR UPDATE SKIP LOCKED
    ) AS n
)
UPDATE executor.node_executions AS n SET
    publications = least(n.publications + 1, 5),
    due_at = now() + make_interval(secs => least(3.0 * 2 ^ n.publications, 60.0))
FROM due
WHERE n.run_id = ANY (ARRAY[due.run_id]) AND n.node_key = due.node_key AND n.item_path = due.item_path
RETURNING n.run_id, n.node_key, n.item_path, n.epoch, n.project_id, n.type, n.priority,
    extract(epoch FROM now() - n.queued_at)::float8 AS ready_seconds
"""
# Each executor asks once a second, of everything that matters, in one statement.
_CENSUS = f"""
WITH {UNFLUSHED}, noted AS (
    INSERT INTO executor.executors (id, lease_until) SELECT $1, now() + make_interval(secs => $2) FROM unflushed
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
), forgotten AS (
    DELETE FROM executor.executors WHERE lease_until < now() - interval '1 hour'
), living AS (
    SELECT queue, sum(slots) AS slots FROM executor.workers, unnest(queues) AS queue
    WHERE lease_until > now() AND draining = 0 GROUP BY queue
)
SELECT
    (SELECT count(*) + 1 FROM executor.executors WHERE lease_until > now() AND id <> $1) AS executors,
    (SELECT coalesce(json_object_agg(queue, slots), '{{}}') FROM living) AS slots,
    ({REVISIONS}) AS variables
"""  # noqa: S608 - a constant


_LOAD = """
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM executor.runs WHERE project_id = $1 AND status < 4 LIMIT $2) AS open)
        AS open_runs,
    (SELECT count(*) FROM (SELECT 1 FROM executor.node_executions WHERE project_id = $1 AND status = 2 LIMIT $3) AS r)
        AS queued_nodes
"""


class PostgresReadyStore:
    """ReadyStore and LoadStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._after: dict[str, UUID] = {}
        """Where the look for a queue's projects goes on: there may be more than one look takes in."""

    async def take_ready(
        self,
        queue: str,
        *,
        room: int,
        full: Sequence[str] = (),
        short: Sequence[str] = (),
        limits: Mapping[str, ProjectLimits] | None = None,
    ) -> list[FoundReady]:
        """See ReadyStore. Not flushed to disk: what is lost with it is a wake-up too many."""
        async with connection_of(self._pool) as connection:
            rows = await connection.fetch(_WAITING_PROJECTS, self._after.get(queue, _FIRST), room)
            self._after[queue] = rows[-1][0] if len(rows) == room else _FIRST
            left_out = set(full)
            projects = [row[0] for row in rows if str(row[0]) not in left_out]
            if not projects:
                return []
            weights = [(limits or {}).get(str(project), NO_LIMITS).weight for project in projects]
            shares = [max(1, room * weight // sum(weights)) for weight in weights]
            urgent = set(short)
            async with connection.transaction():
                await connection.execute("SET LOCAL synchronous_commit = off")
                found = await connection.fetch(
                    TAKE_READY, queue, projects, shares, [str(project) in urgent for project in projects]
                )
        return [
            FoundReady(
                NodeRef(row["run_id"], row["node_key"], row["item_path"]),
                row["epoch"],
                str(row["project_id"]),
                row["type"],
                row["priority"],
                row["ready_seconds"],
            )
            for row in found
        ]

    async def census(self, executor_id: str) -> Census:
        """See ReadyStore."""
        async with connection_of(self._pool) as connection:
            (row,) = await connection.fetch(_CENSUS, executor_id, EXECUTOR_LEASE_SECONDS)
            limits = await load_limits(connection)
        return Census(row["executors"], orjson.loads(row["slots"]), limits, orjson.loads(row["variables"]))

    async def load_of(self, project_id: str, *, runs: int, nodes: int) -> Load:
        """See LoadStore."""
        async with connection_of(self._pool) as connection:
            (row,) = await connection.fetch(_LOAD, UUID(project_id), runs, nodes)
        return Load(row["open_runs"], row["queued_nodes"])
