"""The one statement that writes what a batch of transitions has changed, and the rows that feed it.

Rows travel as JSON, one text for each table.
Whatever users made (inputs, outputs, errors, events) travels beside it as bytes that the database does not look into;
rows name it by its place in that array, counted from 1. Of large values they hold a reference
(`services.executor.storage.payloads`).
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain.model import NewRun
from services.executor.engine.run_variables import NONE, JsonText
from services.executor.engine.state import Failure, NodeState, NodeStatus, RunState
from services.executor.storage.payloads import INSERT_PAYLOADS, MARK, MAX_INLINE_BYTES, Payloads

REPUBLISH_SECONDS = 1.5
"""A ready node execution that nobody claims for so long is published again."""
CONTINUE_SECONDS = 1.5
"""A run whose inline nodes are not done is gone on with by the sweep after so long."""
TIMEOUT_GRACE_SECONDS = 5.0
"""How much longer than the time-out a worker has to report it itself."""

# Rows of `created` and `moved` decide what else is written: a run whose version has moved on contributes nothing.
# `= ANY (ARRAY[…])` is `=` that no merge join can use. Without one, the planner has no use for a whole index in its
# order: it would take that for a table that had a few rows when it was analyzed, and go on with it when it has many.
# A run to go again over is locked, so that it is not removed meanwhile (`services.executor.storage.housekeeping`).
_CREATED = """
created AS (
    INSERT INTO executor.runs (
        id, project_id, workflow_id, version_id, version_number, workflow_name, status, version, sequence, input,
        output, error, prompt_tokens, completion_tokens, model_calls, request_hash, started_by, traceparent,
        links, rerun_of, rerun, vars, project_vars, timeout_seconds, priority, concurrency_key, deadline_at,
        continue_at, started_at, finished_at)
    SELECT u.id, u.project_id, u.workflow_id, u.version_id, u.version_number, u.workflow_name, u.status, 1, u.sequence,
        ($values::bytea[])[u.input], ($values::bytea[])[u.output], ($values::bytea[])[u.error],
        u.prompt_tokens, u.completion_tokens, u.model_calls, ($values::bytea[])[u.request_hash], u.started_by,
        u.traceparent, u.links, u.rerun_of, ($values::bytea[])[u.rerun], ($values::bytea[])[u.vars],
        ($values::bytea[])[u.project_vars], u.timeout_seconds, u.priority, u.concurrency_key,
        now() + make_interval(secs => u.timeout_seconds), now() + make_interval(secs => u.continue_in),
        CASE WHEN u.status >= 2 THEN now() END, CASE WHEN u.status >= 4 THEN now() END
    FROM json_to_recordset($created::json) AS u (
        id uuid, project_id uuid, workflow_id uuid, version_id uuid, version_number int, workflow_name text,
        status smallint, sequence bigint, input int, output int, error int, prompt_tokens bigint,
        completion_tokens bigint, model_calls int, request_hash int, started_by uuid, traceparent text, links jsonb,
        rerun_of uuid, rerun int, vars int, project_vars int, timeout_seconds int, priority smallint,
        concurrency_key text, continue_in float8)
    WHERE u.rerun_of IS NULL OR (SELECT true FROM executor.runs AS e WHERE e.id = u.rerun_of FOR KEY SHARE)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, status, created_at, started_at, finished_at
), """
_CHANGES = """
moved AS (
    UPDATE executor.runs AS r SET
        version = r.version + 1, status = u.status, sequence = u.sequence, output = ($values::bytea[])[u.output],
        error = ($values::bytea[])[u.error], prompt_tokens = u.prompt_tokens, completion_tokens = u.completion_tokens,
        model_calls = u.model_calls, continue_at = now() + make_interval(secs => u.continue_in),
        started_at = coalesce(r.started_at, CASE WHEN u.status >= 2 THEN now() END),
        finished_at = CASE WHEN u.status >= 4 THEN now() END
    FROM json_to_recordset($moved::json) AS u (
        id uuid, version bigint, status smallint, sequence bigint, output int, error int, prompt_tokens bigint,
        completion_tokens bigint, model_calls int, continue_in float8)
    WHERE r.id = ANY (ARRAY[u.id]) AND r.version = u.version
    RETURNING r.id, r.status, r.created_at, r.started_at, r.finished_at
), written AS (
    SELECT * FROM moved{and_created}
), nodes AS (
    INSERT INTO executor.node_executions AS n (
        run_id, node_key, item_path, type, queue, status, epoch, failures, claims, publications, worker, claim_id, port,
        input, output, error, prompt_tokens, completion_tokens, model_calls, handler_seconds, answer, project_id,
        priority, due_at, queued_at, started_at, finished_at)
    SELECT u.run_id, u.node_key, u.item_path, u.type, u.queue, u.status, u.epoch, u.failures, u.claims, 0, u.worker,
        u.claim_id, u.port, ($values::bytea[])[u.input], ($values::bytea[])[u.output], ($values::bytea[])[u.error],
        u.prompt_tokens, u.completion_tokens, u.model_calls, u.handler_seconds, u.answer, u.project_id,
        coalesce(u.priority, 0),
        coalesce(u.due_at, now() + make_interval(secs => u.due_in)),
        CASE WHEN u.status <= 6 THEN now() END,
        CASE WHEN u.status IN (3, 5, 6) THEN now() END,
        CASE WHEN u.status >= 5 THEN now() END
    FROM json_to_recordset($nodes::json) AS u (
        run_id uuid, node_key text, item_path text, type text, queue text, status smallint, epoch bigint, failures int,
        claims int, worker text, claim_id text, port text, input int, output int, error int, prompt_tokens bigint,
        completion_tokens bigint, model_calls int, due_at timestamptz, due_in float8, handler_seconds float8,
        answer text, project_id uuid, priority smallint)
    WHERE u.run_id = ANY (ARRAY(SELECT id FROM written))
    ON CONFLICT (run_id, node_key, item_path) DO UPDATE SET
        queue = excluded.queue, status = excluded.status, epoch = excluded.epoch, failures = excluded.failures,
        claims = excluded.claims, publications = 0, worker = excluded.worker, claim_id = excluded.claim_id,
        port = excluded.port, input = excluded.input, output = excluded.output, error = excluded.error,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        model_calls = excluded.model_calls, handler_seconds = excluded.handler_seconds,
        answer = excluded.answer, due_at = excluded.due_at,
        project_id = coalesce(excluded.project_id, n.project_id), priority = excluded.priority,
        queued_at = CASE WHEN excluded.status = 2 THEN now() ELSE n.queued_at END,
        started_at = CASE WHEN excluded.status = 3 THEN now() ELSE coalesce(n.started_at, excluded.started_at) END,
        finished_at = excluded.finished_at
), freed AS (
    DELETE FROM executor.places AS p USING (
        SELECT u.run_id, u.node_key, u.item_path
        FROM json_to_recordset($nodes::json) AS u (run_id uuid, node_key text, item_path text, status smallint)
        WHERE u.status <> 3 AND u.run_id = ANY (ARRAY(SELECT id FROM written))
        UNION ALL
        SELECT id, NULL, NULL FROM written WHERE status >= 4
    ) AS e
    WHERE p.run_id = ANY (ARRAY[e.run_id])
        AND (e.node_key IS NULL OR (p.node_key = e.node_key AND p.item_path = e.item_path))
        -- Looked up once: where nothing is counted, no more is done.
        AND (SELECT count(*) FROM (SELECT 1 FROM executor.places LIMIT 1) AS held) > 0
), events AS (
    INSERT INTO executor.run_events (run_id, first_sequence, events)
    SELECT u.run_id, u.first_sequence, ($values::bytea[])[u.events]
    FROM json_to_recordset($events::json) AS u (run_id uuid, first_sequence bigint, events int)
    WHERE u.run_id = ANY (ARRAY(SELECT id FROM written))
)
"""
_ANSWER = "SELECT id, created_at, started_at, finished_at FROM written"


@cache
def _statement(*, creates: bool, large: bool) -> tuple[str, tuple[str, ...]]:
    """The statement and the names of its parameters: with new runs or without, with large values or without.

    Most commits have neither, and PostgreSQL takes a fifth less time for a statement that could not write them.
    """
    names = ("moved", "nodes", "events", "values", *(["created"] * creates), *(["contents", "uses"] * large))
    changes = _CHANGES.replace("{and_created}", " UNION ALL SELECT * FROM created" * creates)
    text = "WITH " + _CREATED * creates + changes + INSERT_PAYLOADS * large + _ANSWER
    return re.sub(r"\$([a-z]+)", lambda name: f"${names.index(name[1]) + 1}", text), names


class _Blobs:
    """What users made, in the order it is named."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.payloads = Payloads()

    def add(self, value: bytes | None) -> int | None:
        """The place of a value; None for none."""
        if value is None:
            return None
        self.values.append(value)
        return len(self.values)

    def add_json(self, state: RunState, value: bytes | None) -> int | None:
        """The place of a JSON text, or of the reference to it if it is large."""
        if value is not None and (len(value) > MAX_INLINE_BYTES or value.startswith(MARK)):
            value = self.payloads.reference(state, value)
        return self.add(value)


def commit_statement(states: Sequence[RunState], new: Mapping[UUID, NewRun]) -> tuple[str, list[Any]]:
    """The statement and its parameters."""
    tables, values = commit_rows(states, new)
    statement, names = _statement(creates=bool(tables["created"]), large="contents" in tables)
    return statement, [values if name == "values" else orjson.dumps(tables[name]) for name in names]


def commit_rows(
    states: Sequence[RunState], new: Mapping[UUID, NewRun]
) -> tuple[dict[str, list[dict[str, Any]]], list[bytes]]:
    """The rows by the names of their parameters, and the values that they name.

    Runs are sorted by id, so that two commits lock them in one order.
    """
    ordered = sorted(states, key=lambda state: state.run_id)
    blobs = _Blobs()
    created = [_created_row(state, new[state.run_id], blobs) for state in ordered if state.run_id in new]
    moved = [_moved_row(state, blobs) for state in ordered if state.run_id not in new]
    nodes = [_node_row(state, node, blobs) for state in ordered for node in state.touched]
    events = [
        {
            "run_id": state.run_text,
            "first_sequence": state.events[0]["sequence"],
            "events": blobs.add(orjson.dumps(state.events)),
        }
        for state in ordered
        if state.events
    ]
    tables = {"created": created, "moved": moved, "nodes": nodes, "events": events}
    if blobs.payloads:
        tables["contents"], tables["uses"] = blobs.payloads.rows(blobs.add)
    return tables, blobs.values


def _created_row(state: RunState, new: NewRun, blobs: _Blobs) -> dict[str, Any]:
    return {
        "id": state.run_text,
        "project_id": state.project_id,
        "workflow_id": state.workflow_id,
        "version_id": state.version_id,
        "version_number": state.version_number,
        "workflow_name": new.workflow_name,
        "status": state.status,
        "sequence": state.sequence,
        "input": blobs.add_json(state, state.input),
        "output": blobs.add_json(state, state.output),
        "error": blobs.add(failure_json(state.error)),
        "prompt_tokens": state.usage.prompt_tokens,
        "completion_tokens": state.usage.completion_tokens,
        "model_calls": state.usage.calls,
        "request_hash": blobs.add(new.request_hash),
        "started_by": _text(new.started_by),
        "traceparent": state.traceparent,
        "links": {name: str(linked.version_id) for name, linked in state.links.items()} or None,
        "rerun_of": _text(new.rerun_of),
        "rerun": blobs.add_json(state, new.rerun),
        "vars": _variables(state, state.vars.run, blobs),
        "project_vars": _variables(state, state.vars.project, blobs),
        "timeout_seconds": new.timeout_seconds,
        "continue_in": _continue_in(state),
        "priority": state.priority,
        "concurrency_key": new.concurrency_key,
    }


def _variables(state: RunState, json: JsonText, blobs: _Blobs) -> int | None:
    return None if json is NONE else blobs.add_json(state, json.text)


def _moved_row(state: RunState, blobs: _Blobs) -> dict[str, Any]:
    return {
        "id": state.run_text,
        "version": state.version,
        "continue_in": _continue_in(state),
        "status": state.status,
        "sequence": state.sequence,
        "output": blobs.add_json(state, state.output),
        "error": blobs.add(failure_json(state.error)),
        "prompt_tokens": state.usage.prompt_tokens,
        "completion_tokens": state.usage.completion_tokens,
        "model_calls": state.usage.calls,
    }


def _node_row(state: RunState, node: NodeState, blobs: _Blobs) -> dict[str, Any]:
    spec = node.spec
    row: dict[str, Any] = {
        "run_id": state.run_text,
        "node_key": spec.key,
        "item_path": node.path,
        "type": spec.type,
        "queue": node.queue,
        "status": node.status,
        "epoch": node.epoch,
        "failures": node.failures,
        "claims": node.claims,
        "worker": node.worker,
        "claim_id": node.claim_id,
        "port": node.port,
        "input": blobs.add_json(state, node.input),
        "output": blobs.add_json(state, node.output),
        "error": blobs.add(failure_json(node.error)),
        "prompt_tokens": node.usage.prompt_tokens,
        "completion_tokens": node.usage.completion_tokens,
        "model_calls": node.usage.calls,
        "due_at": node.due_at,
        "due_in": _due_in(node),
        "handler_seconds": node.handler_seconds,
        "answer": node.answer or None,
    }
    if node.status is NodeStatus.READY:
        # What the backlog is read by; no other rows are.
        row["project_id"], row["priority"] = state.project_id, state.priority
    return row


def _continue_in(state: RunState) -> float | None:
    """When somebody else goes on with what this transition has left to do, if this executor is gone before it does."""
    return CONTINUE_SECONDS if state.inline else None


def _due_in(node: NodeState) -> float | None:
    if node.status is NodeStatus.READY:
        return REPUBLISH_SECONDS
    if node.status is NodeStatus.RUNNING and node.due_in is not None:
        return node.due_in + TIMEOUT_GRACE_SECONDS
    return node.due_in


def _text(value: UUID | None) -> str | None:
    # orjson takes UUIDs, but not asyncpg's own.
    return None if value is None else str(value)


def failure_json(failure: Failure | None) -> bytes | None:
    """A failure as it is stored."""
    return orjson.dumps(failure.as_json()) if failure else None


def failure_from_json(data: bytes | None) -> Failure | None:
    """A stored failure."""
    if data is None:
        return None
    value = orjson.loads(data)
    return Failure(
        reason=value["reason"],
        message=value["message"],
        node_key=value.get("node_key", ""),
        retryable=value["retryable"],
        details=value.get("details"),
        item_path=value.get("item_path", ""),
    )
