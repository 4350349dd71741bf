"""RunStore on PostgreSQL: prepared statements on held asyncpg connections."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from services.executor.domain.model import (
    EventPage,
    NewRun,
    NodeExecutionView,
    NodeRef,
    OpenWait,
    RunFilter,
    RunView,
    Version,
    WorkerLease,
)
from services.executor.domain.store import FORGOTTEN_AFTER_SECONDS, Differences, Overdue, StoredRun, UnstorableError
from services.executor.engine.run_variables import RunVariables
from services.executor.engine.state import NodeRow, NodeStatus, RunState, RunStatus, RunTimes, Usage
from services.executor.storage import queries
from services.executor.storage.commit import commit_statement, failure_from_json
from services.executor.storage.connections import UNFLUSHED, connection_of
from services.executor.storage.payloads import Contents, read_steadily
from services.kit.errors import UnavailableError
from services.kit.pool import Pool

_LOAD_RUNS = """
SELECT id, project_id, version_id, version, status, sequence, input, output, error, prompt_tokens, completion_tokens,
    model_calls, traceparent, priority, links, rerun_of, rerun, vars, project_vars
FROM executor.runs WHERE id = ANY($1::uuid[])
"""
_CONTENTS = ("input", "output", "rerun", "vars", "project_vars")
_LOAD_NODES = """
SELECT run_id, node_key, item_path, status, epoch, failures, claims, worker, claim_id, port, input, output, error,
    prompt_tokens, completion_tokens, model_calls, handler_seconds, answer
FROM executor.node_executions WHERE run_id = ANY($1::uuid[])
"""
_CLAIMED_BY = """
SELECT run_id, node_key, item_path FROM executor.node_executions WHERE status = 3 AND worker = $1 AND claim_id = $2
"""
_RENEW_LEASE = f"""
WITH {UNFLUSHED}, renewed AS (
    INSERT INTO executor.workers AS w (id, host, draining, slots, queues, started_at, lease_until)
    SELECT $1, $2, $3, $4, $5, now(), now() + make_interval(secs => $6) FROM unflushed
    ON CONFLICT (id) DO UPDATE SET draining = excluded.draining, lease_until = excluded.lease_until
), held AS (
    SELECT * FROM unnest($7::uuid[], $8::text[], $9::text[], $10::bigint[]) AS u (run_id, node_key, item_path, epoch)
)
SELECT 'revoked' AS kind, run_id, node_key, item_path, h.epoch
FROM held h LEFT JOIN executor.node_executions n USING (run_id, node_key, item_path)
WHERE n.status IS DISTINCT FROM 3 OR n.epoch <> h.epoch OR n.worker <> $1
UNION ALL
SELECT 'forgotten', run_id, node_key, item_path, n.epoch
FROM executor.node_executions n
WHERE n.status = 3 AND n.worker = $1 AND n.started_at < now() - make_interval(secs => $11)
    AND NOT EXISTS (
        SELECT FROM held h
        WHERE (h.run_id, h.node_key, h.item_path, h.epoch) = (n.run_id, n.node_key, n.item_path, n.epoch)
    )
"""  # noqa: S608 - a constant
_OVERDUE = """
(SELECT 'lost' AS kind, n.run_id, n.node_key, n.item_path, n.epoch
 FROM executor.node_executions n JOIN executor.workers w ON w.id = n.worker
 WHERE n.status = 3 AND w.lease_until < now() LIMIT $1)
UNION ALL
(SELECT 'timed_out', run_id, node_key, item_path, epoch FROM executor.node_executions
 WHERE status = 3 AND due_at < now() ORDER BY due_at LIMIT $1)
UNION ALL
(SELECT 'waiting', run_id, node_key, item_path, epoch FROM executor.node_executions
 WHERE status = 4 AND due_at <= now() ORDER BY due_at LIMIT $1)
UNION ALL
(SELECT 'run', id, '', '', timeout_seconds FROM executor.runs
 WHERE status < 4 AND deadline_at < now() ORDER BY deadline_at LIMIT $1)
UNION ALL
(SELECT 'unsettled', id, '', '', 0 FROM executor.runs
 WHERE continue_at <= now() ORDER BY continue_at LIMIT $1)
"""
_REPUBLISH_ALL = """
UPDATE executor.node_executions SET due_at = now(), publications = 0 WHERE status = 2 AND due_at > now()
"""
_NEXT_TIMER = """
SELECT extract(epoch FROM due_at - now())::float8 FROM executor.node_executions
WHERE status = 4 ORDER BY due_at LIMIT 1
"""
_KEEP_VERSION = """
INSERT INTO executor.versions (id, project_id, workflow_id, workflow_name, number, definition)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING
"""

_ROWS_AT_ONCE = 1_000
"""Rows of a large run that are made into objects before others get their turn."""


class PostgresRunStore:
    """RunStore on one pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def commit(self, states: Sequence[RunState], new: dict[UUID, NewRun]) -> dict[UUID, RunTimes]:
        """See RunStore."""
        statement, parameters = commit_statement(states, new)
        async with self._connection() as connection:
            try:
                rows = await connection.fetch(statement, *parameters)
            except (
                asyncpg.DeadlockDetectedError,
                asyncpg.SerializationError,
                asyncpg.LockNotAvailableError,
                asyncpg.QueryCanceledError,
            ) as error:
                # Nothing was written. An empty answer would say that new runs exist already.
                raise UnavailableError("The runs were being changed elsewhere. Try again.", retry_after=0.1) from error
            except (
                asyncpg.DataError,
                asyncpg.IntegrityConstraintViolationError,
                asyncpg.ProgramLimitExceededError,
            ) as error:
                raise UnstorableError(str(error)) from error
        return {row[0]: RunTimes(row[1], row[2], row[3]) for row in rows}

    async def load(self, run_ids: Sequence[UUID]) -> list[StoredRun]:
        """See RunStore. Runs are read before nodes: one that moves in between fails its next commit and is reread."""
        return await read_steadily(lambda: self._load(run_ids))

    async def _load(self, run_ids: Sequence[UUID]) -> list[StoredRun]:
        async with self._connection() as connection:
            runs = await connection.fetch(_LOAD_RUNS, run_ids)
            nodes = await connection.fetch(_LOAD_NODES, run_ids)
            projects: dict[UUID, UUID] = {row["id"]: row["project_id"] for row in runs}
            # A run that has begun between the two queries is as good as missing.
            nodes = [row for row in nodes if row["run_id"] in projects]
            values = [(row["project_id"], row[name]) for row in runs for name in _CONTENTS]
            of_nodes = ((projects[row["run_id"]], row[name]) for name in ("input", "output") for row in nodes)
            contents = await Contents.read(connection, chain(values, of_nodes))
        found: dict[UUID, dict[str, dict[str, NodeRow]]] = {row["id"]: {} for row in runs}
        for number, row in enumerate(nodes, 1):
            node = _node_row(row, projects[row["run_id"]], contents)
            found[row["run_id"]].setdefault(row["item_path"], {})[row["node_key"]] = node
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return [_stored_run(row, contents, found[row["id"]]) for row in runs]

    async def run_versions(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """See RunStore."""
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT id, version FROM executor.runs WHERE id = ANY($1::uuid[])", run_ids)
        return {row[0]: row[1] for row in rows}

    async def claimed_by(self, worker_id: str, claim_id: str) -> list[NodeRef]:
        """See RunStore."""
        async with self._connection() as connection:
            rows = await connection.fetch(_CLAIMED_BY, worker_id, claim_id)
        return [NodeRef(*row) for row in rows]

    async def find_version(self, version_id: UUID) -> dict[str, Any] | None:
        """See RunStore."""
        async with self._connection() as connection:
            row = await connection.fetchrow("SELECT * FROM executor.versions WHERE id = $1", version_id)
        return dict(row) if row else None

    async def keep_version(self, version: Version) -> None:
        """See RunStore."""
        async with self._connection() as connection:
            await connection.execute(
                _KEEP_VERSION,
                version.id,
                version.project_id,
                version.workflow_id,
                version.workflow_name,
                version.number,
                version.definition,
            )

    async def renew_lease(
        self, worker: WorkerLease, held: Sequence[tuple[NodeRef, int]], *, seconds: float
    ) -> Differences:
        """See RunStore. Not flushed to disk before the answer: a lost heartbeat is made good by the next."""
        refs = [ref for ref, _ in held]
        async with self._connection() as connection:
            rows = await connection.fetch(
                _RENEW_LEASE,
                worker.worker_id,
                worker.host,
                int(worker.draining),
                worker.slots,
                list(worker.queues),
                seconds,
                [ref.run_id for ref in refs],
                [ref.node_key for ref in refs],
                [ref.item_path for ref in refs],
                [epoch for _, epoch in held],
                FORGOTTEN_AFTER_SECONDS,
            )
        found = [(row["kind"], NodeRef(row["run_id"], row["node_key"], row["item_path"]), row["epoch"]) for row in rows]
        return Differences(
            revoked=[(ref, epoch) for kind, ref, epoch in found if kind == "revoked"],
            forgotten=[(ref, epoch) for kind, ref, epoch in found if kind == "forgotten"],
        )

    async def find_overdue(self, limit: int) -> Overdue:
        """See RunStore."""
        async with self._connection() as connection:
            rows = await connection.fetch(_OVERDUE, limit)
        refs = [(row["kind"], NodeRef(row["run_id"], row["node_key"], row["item_path"]), row["epoch"]) for row in rows]
        return Overdue(
            lost=[(ref, epoch) for kind, ref, epoch in refs if kind == "lost"],
            timed_out=[(ref, epoch) for kind, ref, epoch in refs if kind == "timed_out"],
            waiting=[(ref, epoch) for kind, ref, epoch in refs if kind == "waiting"],
            runs=[(ref.run_id, seconds) for kind, ref, seconds in refs if kind == "run"],
            unsettled=[ref.run_id for kind, ref, _ in refs if kind == "unsettled"],
        )

    async def republish_all(self) -> None:
        """See RunStore."""
        async with self._connection() as connection:
            await connection.execute(_REPUBLISH_ALL)

    async def seconds_to_next_timer(self) -> float | None:
        """See RunStore."""
        async with self._connection() as connection:
            seconds: float | None = await connection.fetchval(_NEXT_TIMER)
        return seconds

    async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        """See RunStore."""

        async def read() -> RunView:
            async with self._connection() as connection:
                return await queries.get_run(connection, project_id, run_id)

        return await read_steadily(read)

    async def list_runs(
        self, project_id: UUID, run_filter: RunFilter, *, limit: int, after: tuple[Any, UUID] | None
    ) -> list[RunView]:
        """See RunStore."""
        async with self._connection() as connection:
            return await queries.list_runs(connection, project_id, run_filter, limit=limit, after=after)

    async def list_node_executions(
        self, project_id: UUID, run_id: UUID, *, limit: int, after: tuple[Any, str, str] | None
    ) -> list[tuple[Any, NodeExecutionView]]:
        """See RunStore."""

        async def read() -> list[tuple[Any, NodeExecutionView]]:
            async with self._connection() as connection:
                return await queries.list_node_executions(connection, project_id, run_id, limit=limit, after=after)

        return await read_steadily(read)

    async def list_open_waits(self, project_id: UUID, run_id: UUID, *, limit: int) -> list[OpenWait]:
        """See RunStore."""

        async def read() -> list[OpenWait]:
            async with self._connection() as connection:
                return await queries.list_open_waits(connection, project_id, run_id, limit=limit)

        return await read_steadily(read)

    async def list_events(self, project_id: UUID, run_id: UUID, *, after: int, limit: int) -> EventPage:
        """See RunStore."""
        async with self._connection() as connection:
            return await queries.list_events(connection, project_id, run_id, after=after, limit=limit)

    def _connection(self) -> AbstractAsyncContextManager["PoolConnectionProxy[asyncpg.Record]"]:
        return connection_of(self.pool)


def _stored_run(row: asyncpg.Record, contents: Contents, nodes: dict[str, dict[str, NodeRow]]) -> StoredRun:
    project_id = row["project_id"]
    return StoredRun(
        run_id=row["id"],
        project_id=str(project_id),
        version_id=row["version_id"],
        version=row["version"],
        status=RunStatus(row["status"]),
        sequence=row["sequence"],
        input=contents.of(project_id, row["input"]) or b"",
        vars=RunVariables.of(contents.of(project_id, row["vars"]), contents.of(project_id, row["project_vars"])),
        output=contents.of(project_id, row["output"]),
        error=failure_from_json(row["error"]),
        usage=Usage(row["prompt_tokens"], row["completion_tokens"], row["model_calls"]),
        traceparent=row["traceparent"],
        priority=row["priority"],
        links={name: UUID(version_id) for name, version_id in orjson.loads(row["links"] or b"{}").items()},
        rerun_of=row["rerun_of"],
        rerun=contents.of(project_id, row["rerun"]),
        nodes=nodes,
    )


def _node_row(row: asyncpg.Record, project_id: UUID, contents: Contents) -> NodeRow:
    return NodeRow(
        status=NodeStatus(row["status"]),
        epoch=row["epoch"],
        failures=row["failures"],
        claims=row["claims"],
        worker=row["worker"],
        claim_id=row["claim_id"],
        port=row["port"],
        input=contents.of(project_id, row["input"]),
        output=contents.of(project_id, row["output"]),
        error=failure_from_json(row["error"]),
        usage=Usage(row["prompt_tokens"], row["completion_tokens"], row["model_calls"]),
        handler_seconds=row["handler_seconds"],
        answer=row["answer"] or "",
    )
