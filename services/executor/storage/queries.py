"""What people read: runs, node executions and events."""

from typing import Any
from uuid import UUID

import asyncpg
import orjson

from services.executor.domain.model import (
    EventPage,
    EventView,
    NodeExecutionView,
    NodeRef,
    OpenWait,
    RunFilter,
    RunNotFoundError,
    RunView,
)
from services.executor.engine.state import RUN_TERMINAL, NodeStatus, RunStatus, Usage
from services.executor.engine.waits import takes_token
from services.executor.storage.commit import failure_from_json
from services.executor.storage.payloads import Connection, Contents

_RUN_COLUMNS = """
id, project_id, workflow_id, version_id, version_number, workflow_name, status, error, prompt_tokens, completion_tokens,
model_calls, created_at, started_at, finished_at, sequence, rerun_of
"""
_GET_RUN = f"""
SELECT {_RUN_COLUMNS}, input, output, vars, request_hash FROM executor.runs WHERE id = $1 AND project_id = $2
"""  # noqa: S608 - constant text
_LIST_NODES = """
SELECT n.*, coalesce(n.queued_at, n.finished_at) AS place
FROM executor.node_executions n
WHERE n.run_id = $1 AND ($2::timestamptz IS NULL
    OR (coalesce(n.queued_at, n.finished_at), n.node_key, n.item_path) > ($2, $3, $4))
ORDER BY place, n.node_key, n.item_path LIMIT $5
"""
# What waits and has an error waits for another attempt, or for a decision.
_OPEN_WAITS = """
SELECT n.node_key, n.item_path, n.epoch, n.type, n.input FROM executor.node_executions n
WHERE n.run_id = $1 AND n.status = 4 AND n.error IS NULL AND n.type IN ('approval', 'wait_for_event')
    AND EXISTS (SELECT FROM executor.runs WHERE id = $1 AND project_id = $2)
ORDER BY n.node_key, n.item_path LIMIT $3
"""
# One statement, so that the events are all that there were up to the run's last.
_LIST_EVENTS = """
SELECT r.status, r.sequence, e.events, e.at
FROM executor.runs r LEFT JOIN LATERAL (
    SELECT events, at, first_sequence FROM executor.run_events
    WHERE run_id = $1 AND first_sequence >= coalesce(
        (SELECT max(first_sequence) FROM executor.run_events WHERE run_id = $1 AND first_sequence <= $3 + 1), 0)
    ORDER BY first_sequence LIMIT $4
) e ON true
WHERE r.id = $1 AND r.project_id = $2
ORDER BY e.first_sequence
"""


async def get_run(connection: Connection, project_id: UUID, run_id: UUID) -> RunView:
    """A run with input and output. Raises RunNotFoundError."""
    row = await connection.fetchrow(_GET_RUN, run_id, project_id)
    if row is None:
        raise RunNotFoundError(run_id)
    contents = await Contents.read(connection, [(project_id, row[name]) for name in ("input", "output", "vars")])
    return _run(
        row,
        input=contents.of(project_id, row["input"]),
        output=contents.of(project_id, row["output"]),
        vars=contents.of(project_id, row["vars"]),
        request_hash=row["request_hash"],
    )


async def list_runs(
    connection: Connection, project_id: UUID, run_filter: RunFilter, *, limit: int, after: tuple[Any, UUID] | None
) -> list[RunView]:
    """Runs, newest first."""
    statement, parameters = _list_runs_statement(project_id, run_filter, limit, after)
    return [_run(row) for row in await connection.fetch(statement, *parameters)]


def _list_runs_statement(
    project_id: UUID, run_filter: RunFilter, limit: int, after: tuple[Any, UUID] | None
) -> tuple[str, list[Any]]:
    """The query for just these filters, so that each has the plan, and the index, that is its own.

    One SELECT for each status, merged: each reads the newest few of an index that is ordered by time.
    """
    parameters: list[Any] = [project_id, limit]
    conditions: list[str] = []

    def require(condition: str, *values: Any) -> None:
        parameters.extend(values)
        places = range(len(parameters) - len(values) + 1, len(parameters) + 1)
        conditions.append(condition.format(*(f"${place}" for place in places)))

    if run_filter.workflow_id is not None:
        require("workflow_id = {}", run_filter.workflow_id)
    if run_filter.created_after is not None:
        require("created_at > {}", run_filter.created_after)
    if run_filter.created_before is not None:
        require("created_at < {}", run_filter.created_before)
    if after is not None:
        require("(created_at, id) < ({}, {})", *after)
    order = "ORDER BY created_at DESC, id DESC LIMIT $2"
    selects = []
    statuses: list[RunStatus | None] = [*sorted(set(run_filter.statuses))] or [None]
    for status in statuses:
        has_own_index = status not in (None, RunStatus.SUCCEEDED)
        # A workflow's runs are read by its own index: this comparison is one that the project's cannot serve. Left to
        # choose without knowing the workflow, the planner walks the project's runs until it has met enough of it.
        project = "IS NOT DISTINCT FROM" if run_filter.workflow_id is not None and not has_own_index else "="
        # A literal: the index of those that are not succeeded is used only where the query itself excludes them.
        wanted = [] if status is None else [f"status = {int(status)}"]
        where = " AND ".join([f"project_id {project} $1", *conditions, *wanted])
        selects.append(f"(SELECT {_RUN_COLUMNS} FROM executor.runs WHERE {where} {order})")  # noqa: S608 - made of constants and numbers
    return " UNION ALL ".join(selects) + (f" {order}" if len(selects) > 1 else ""), parameters


async def list_node_executions(
    connection: Connection, project_id: UUID, run_id: UUID, *, limit: int, after: tuple[Any, str, str] | None
) -> list[tuple[Any, NodeExecutionView]]:
    """Node executions in the order they became ready, each with its place in it."""
    await _require_run(connection, project_id, run_id)
    place, key, path = after or (None, None, None)
    rows = await connection.fetch(_LIST_NODES, run_id, place, key, path, limit)
    values = [(project_id, row[name]) for row in rows for name in ("input", "output")]
    contents = await Contents.read(connection, values)
    return [(row["place"], _node_execution(row, project_id, contents)) for row in rows]


async def list_open_waits(connection: Connection, project_id: UUID, run_id: UUID, *, limit: int) -> list[OpenWait]:
    """Those of the run's first `limit` waits for people and events that may be answered by token."""
    rows = await connection.fetch(_OPEN_WAITS, run_id, project_id, limit)
    contents = await Contents.read(connection, [(project_id, row["input"]) for row in rows])
    return [
        OpenWait(NodeRef(run_id, row["node_key"], row["item_path"]), row["epoch"])
        for row in rows
        if takes_token(row["type"], contents.of(project_id, row["input"]))
    ]


async def list_events(connection: Connection, project_id: UUID, run_id: UUID, *, after: int, limit: int) -> EventPage:
    """Events after a number. A row holds at least one event, so `limit` rows hold at least as many events."""
    rows = await connection.fetch(_LIST_EVENTS, run_id, project_id, after, limit)
    if not rows:
        raise RunNotFoundError(run_id)
    events = [
        EventView(
            sequence=event["sequence"],
            type=event["type"],
            at=row["at"],
            node_key=event.get("node_key", ""),
            item_path=event.get("item_path", ""),
            data=orjson.dumps(event.get("data", {})),
        )
        for row in rows
        for event in orjson.loads(row["events"] or b"[]")
        if event["sequence"] > after
    ]
    return EventPage(events, rows[0]["sequence"], RunStatus(rows[0]["status"]) in RUN_TERMINAL)


async def _require_run(connection: Connection, project_id: UUID, run_id: UUID) -> None:
    found = await connection.fetchval(
        "SELECT 1 FROM executor.runs WHERE id = $1 AND project_id = $2", run_id, project_id
    )
    if found is None:
        raise RunNotFoundError(run_id)


def _run(row: asyncpg.Record, **more: Any) -> RunView:
    return RunView(
        id=row["id"],
        project_id=row["project_id"],
        workflow_id=row["workflow_id"],
        version_id=row["version_id"],
        version_number=row["version_number"],
        workflow_name=row["workflow_name"],
        status=RunStatus(row["status"]),
        error=failure_from_json(row["error"]),
        usage=Usage(row["prompt_tokens"], row["completion_tokens"], row["model_calls"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        sequence=row["sequence"],
        rerun_of=row["rerun_of"],
        **{"input": None, "output": None, **more},
    )


def _node_execution(row: asyncpg.Record, project_id: UUID, contents: Contents) -> NodeExecutionView:
    status = NodeStatus(row["status"])
    is_open = status is NodeStatus.WAITING and row["error"] is None
    asked = contents.of(project_id, row["input"])
    attempt = row["failures"] + (status in (NodeStatus.RUNNING, NodeStatus.SUCCEEDED))
    return NodeExecutionView(
        node_key=row["node_key"],
        item_path=row["item_path"],
        type=row["type"],
        status=status,
        attempt=attempt,
        input=asked,
        output=contents.of(project_id, row["output"]),
        error=failure_from_json(row["error"]),
        usage=Usage(row["prompt_tokens"], row["completion_tokens"], row["model_calls"]),
        port=row["port"],
        worker=row["worker"],
        handler_seconds=row["handler_seconds"],
        queued_at=row["queued_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        wait_epoch=row["epoch"] if is_open and takes_token(row["type"], asked) else None,
    )
