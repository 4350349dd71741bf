"""What must hold at any moment while faults happen, asked of PostgreSQL once a second, and of all rows in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.chaos.load import Load, User, Workflow
from tests.support.stack import LocalStack

# A look sees one moment: READ COMMITTED gives one snapshot to one statement. `chosen` are the runs that are looked at:
# those that are open or have just ended, and in the end all.
RECENT = "SELECT * FROM executor.runs WHERE status < 4 OR finished_at > now() - interval '5 seconds'"
ALL = "SELECT * FROM executor.runs"
_WITH = """
WITH chosen AS MATERIALIZED ({runs}), edge AS (SELECT * FROM unnest($1::text[], $2::text[]) AS e (source, target)),
node AS MATERIALIZED (SELECT n.* FROM executor.node_executions n JOIN chosen r ON r.id = n.run_id),
open AS (
    SELECT * FROM executor.node_executions WHERE status = 2
    UNION ALL SELECT * FROM executor.node_executions WHERE status IN (3, 4)
)
"""
# Each query returns what breaks it.
INVARIANTS = {
    "an ended run has no open node": """
        SELECT n.run_id::text || ' ' || n.node_key FROM open n JOIN executor.runs r ON r.id = n.run_id
        WHERE r.status >= 4 LIMIT 5
    """,
    "an open run has something that can go on": """
        SELECT r.id::text FROM chosen r WHERE r.status IN (2, 3) AND NOT EXISTS (
            SELECT FROM node n WHERE n.run_id = r.id AND n.status IN (2, 3, 4)) LIMIT 5
    """,
    "a node begins only when all that it waits for has succeeded": """
        SELECT t.run_id::text || ' ' || t.node_key FROM node t JOIN edge e ON e.target = t.node_key
        LEFT JOIN node s ON s.run_id = t.run_id AND s.item_path = t.item_path AND s.node_key = e.source
        WHERE s.status IS DISTINCT FROM 5 LIMIT 5
    """,
    "a node begins as soon as all that it waits for has succeeded": """
        SELECT late.run_id::text || ' ' || late.target FROM (
            SELECT s.run_id, s.item_path, e.target FROM node s JOIN edge e ON e.source = s.node_key WHERE s.status = 5
            GROUP BY s.run_id, s.item_path, e.target
            HAVING count(*) = (SELECT count(*) FROM edge o WHERE o.target = e.target)
            EXCEPT SELECT run_id, item_path, node_key FROM node
        ) AS late LIMIT 5
    """,
    "a ready node is woken again": """
        SELECT n.run_id::text || ' ' || n.node_key FROM executor.node_executions n WHERE n.status = 2
        AND (n.due_at < now() - interval '30 seconds' OR n.queued_at < now() - interval '60 seconds') LIMIT 5
    """,
    "a claim of a worker that is gone is taken away": """
        SELECT n.run_id::text || ' ' || n.node_key FROM executor.node_executions n
        LEFT JOIN executor.workers w ON w.id = n.worker
        WHERE n.status = 3 AND n.queue <> '' AND n.started_at < now() - interval '30 seconds'
        AND (w.id IS NULL OR w.lease_until < now() - interval '30 seconds') LIMIT 5
    """,
    "events are numbered up to the run's last": """
        SELECT r.id::text FROM chosen r WHERE r.sequence < (
            SELECT max(first_sequence) FROM executor.run_events e WHERE e.run_id = r.id) LIMIT 5
    """,
    "a place is held only by what runs": """
        SELECT p.scope || ' ' || p.node_key FROM executor.places p
        LEFT JOIN executor.node_executions n USING (run_id, node_key, item_path)
        WHERE p.node_key <> '' AND p.taken_at < now() - interval '45 seconds' AND n.status IS DISTINCT FROM 3 LIMIT 5
    """,
    "no more runs at a time than a project may": """
        SELECT l.project_id::text || ': ' || count(*) FROM executor.project_limits l
        JOIN executor.runs r ON r.project_id = l.project_id AND r.status < 4
        JOIN executor.node_executions n ON n.run_id = r.id
        WHERE n.status = 3 AND n.queue <> '' AND l.own ? 'max_running_nodes'
        GROUP BY l.project_id, l.own HAVING count(*) > (l.own ->> 'max_running_nodes')::int
    """,
    "a large value that is referred to is there": """
        SELECT held.id::text FROM (
            SELECT r.id, r.project_id, r.input AS value FROM chosen r
            UNION ALL SELECT r.id, r.project_id, r.output FROM chosen r
            UNION ALL SELECT n.run_id, r.project_id, n.input FROM node n JOIN chosen r ON r.id = n.run_id
            UNION ALL SELECT n.run_id, r.project_id, n.output FROM node n JOIN chosen r ON r.id = n.run_id
        ) AS held WHERE length(held.value) = 33 AND get_byte(held.value, 0) = 0 AND NOT EXISTS (
            SELECT FROM executor.payloads p JOIN executor.run_payloads u USING (project_id, hash)
            WHERE p.project_id = held.project_id AND p.hash = substr(held.value, 2) AND u.run_id = held.id
            AND p.hash = sha256(p.data)) LIMIT 5
    """,
}
_MISSING = (
    "SELECT id::text FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM executor.runs r WHERE r.id = id)"
)
# ruff: noqa: S608 - the SQL is made of the constants above
_RUNS = f"SELECT id, status, version, sequence FROM ({RECENT}) AS r"
_RUNS_BACK = """
SELECT id::text FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[]) AS o (id, status, version, sequence)
LEFT JOIN executor.runs r USING (id)
WHERE r.id IS NULL OR r.version < o.version OR r.sequence < o.sequence
OR (o.status >= 4 AND (r.status, r.sequence) <> (o.status, o.sequence)) LIMIT 5
"""
_NODES = f"""
SELECT n.run_id, n.node_key, n.item_path, n.status, n.epoch, sha256(coalesce(n.output, '')) FROM ({RECENT}) AS r
JOIN executor.node_executions n ON n.run_id = r.id
"""
_NODES_BACK = """
SELECT o.run_id::text || ' ' || o.node_key
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bytea[])
    AS o (run_id, node_key, item_path, status, epoch, output)
LEFT JOIN executor.node_executions n USING (run_id, node_key, item_path)
WHERE n.run_id IS NULL OR n.epoch < o.epoch
OR (o.status >= 5 AND (n.status, n.epoch, sha256(coalesce(n.output, ''))) <> (o.status, o.epoch, o.output)) LIMIT 5
"""


class Looks:
    """Looks at a database, each of which remembers the one before."""

    def __init__(self, workflows: Sequence[Workflow]) -> None:
        self._workflows = workflows
        self._runs: list[Any] = []
        self._nodes: list[Any] = []

    async def look(self, connection: Any, accepted: Sequence[str], *, runs: str = RECENT) -> list[str]:
        """What does not hold, of these runs; `accepted` are runs that must be there."""
        found = await broken(connection, self._workflows, runs=runs)
        found += _say("an accepted run is there", await connection.fetch(_MISSING, accepted))
        found += _say("a run never goes back", await connection.fetch(_RUNS_BACK, *_columns(self._runs, 4)))
        found += _say("a node never goes back", await connection.fetch(_NODES_BACK, *_columns(self._nodes, 6)))
        self._runs, self._nodes = await connection.fetch(_RUNS), await connection.fetch(_NODES)
        return found


# asyncpg may say the last one of a connection that is lost in the middle of a request.
_DOWN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, asyncpg.InternalClientError)


@dataclass
class Watch:
    """Looks at a stack once a second while a load runs."""

    stack: LocalStack
    load: Load
    stranger: User
    """Who must not see runs of the load's first user."""
    looks: Looks
    count: int = 0
    failed: int = 0
    """PostgreSQL did not answer."""
    violations: list[str] = field(default_factory=list)

    async def keep_looking(self) -> None:
        """Look for ever."""
        while True:
            began = time.monotonic()
            await self._look_unless_down()
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))

    async def look_at_all(self) -> None:
        """Look at every run there is."""
        connection = await asyncpg.connect(self.stack.process("postgres")["dsn"])
        try:
            self.violations += await self.looks.look(connection, self.load.newest, runs=ALL)
        finally:
            await connection.close()

    async def keep_peeping(self) -> None:
        """Let a stranger ask for runs of others, for ever: there are none."""
        while True:
            run = self.load.peeped
            if run is not None and await self.stranger.until_answered("GET", f"/runs/{run}", refused=404) is not None:
                self.violations.append(f"run {run} is seen by a user of another project")
            await asyncio.sleep(1)

    async def _look_unless_down(self) -> None:
        accepted = list(self.load.newest)
        try:
            connection = await asyncpg.connect(self.stack.process("postgres")["dsn"], timeout=5, command_timeout=20)
            try:
                self.violations += await self.looks.look(connection, accepted)
            finally:
                connection.terminate()
        except _DOWN:
            self.failed += 1
        else:
            self.count += 1
            del self.load.newest[: len(accepted)]


async def broken(connection: Any, workflows: Sequence[Workflow], *, runs: str = ALL) -> list[str]:
    """The invariants that do not hold now, each with examples."""
    edges = [edge for workflow in workflows for edge in _edges(workflow.definition)]
    sources, targets = [edge["source"] for edge in edges], [edge["target"] for edge in edges]
    found = []
    for name, query in INVARIANTS.items():
        found += _say(name, await connection.fetch(_WITH.format(runs=runs) + query, sources, targets))
    return found


def _edges(definition: dict[str, Any]) -> list[dict[str, str]]:
    bodies = [node["config"]["body"] for node in definition["nodes"] if "body" in node["config"]]
    return [*definition["edges"], *(edge for body in bodies for edge in _edges(body))]


def _say(name: str, rows: Sequence[Any]) -> list[str]:
    return [f"{name}, but: {', '.join(row[0] for row in rows)}"] if rows else []


def _columns(rows: Sequence[Any], width: int) -> list[list[Any]]:
    return [[row[index] for row in rows] for index in range(width)]
