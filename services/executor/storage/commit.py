"""The one statement that writes what a batch of transitions has changed, and the arrays that feed it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain.model import NewRun
from services.executor.engine.state import Failure, NodeState, NodeStatus, RunState

REPUBLISH_SECONDS = 1.5
"""A ready node execution that nobody claims for so long is published again."""
TIMEOUT_GRACE_SECONDS = 5.0
"""How much longer than the time-out a worker has to report it itself."""

# Rows of `created` and `moved` decide what else is written: a run whose version has moved on contributes nothing.
COMMIT = """
WITH created AS (
    INSERT INTO executor.runs (
        id, project_id, workflow_id, version_id, version_number, workflow_name, status, version, sequence, input,
        output, error, prompt_tokens, completion_tokens, model_calls, request_hash, started_by, traceparent,
        timeout_seconds, deadline_at, started_at, finished_at)
    SELECT u.id, u.project_id, u.workflow_id, u.version_id, u.version_number, u.workflow_name, u.status, 1, u.sequence,
        u.input, u.output, u.error, u.prompt_tokens, u.completion_tokens, u.model_calls, u.request_hash, u.started_by,
        u.traceparent, u.timeout_seconds, now() + make_interval(secs => u.timeout_seconds),
        CASE WHEN u.status >= 2 THEN now() END, CASE WHEN u.status >= 4 THEN now() END
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::int[], $6::text[], $7::smallint[], $8::bigint[],
        $9::bytea[], $10::bytea[], $11::bytea[], $12::bigint[], $13::bigint[], $14::int[], $15::bytea[], $16::uuid[],
        $17::text[], $18::int[])
        AS u (id, project_id, workflow_id, version_id, version_number, workflow_name, status, sequence, input, output,
            error, prompt_tokens, completion_tokens, model_calls, request_hash, started_by, traceparent,
            timeout_seconds)
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), moved AS (
    UPDATE executor.runs AS r SET
        version = r.version + 1, status = u.status, sequence = u.sequence, output = u.output, error = u.error,
        prompt_tokens = u.prompt_tokens, completion_tokens = u.completion_tokens, model_calls = u.model_calls,
        started_at = coalesce(r.started_at, CASE WHEN u.status >= 2 THEN now() END),
        finished_at = CASE WHEN u.status >= 4 THEN now() END
    FROM unnest($19::uuid[], $20::bigint[], $21::smallint[], $22::bigint[], $23::bytea[], $24::bytea[], $25::bigint[],
        $26::bigint[], $27::int[])
        AS u (id, version, status, sequence, output, error, prompt_tokens, completion_tokens, model_calls)
    WHERE r.id = u.id AND r.version = u.version
    RETURNING r.id
), written AS (
    SELECT id FROM created UNION ALL SELECT id FROM moved
), nodes AS (
    INSERT INTO executor.node_executions AS n (
        run_id, node_key, item_path, type, queue, status, epoch, failures, claims, publications, worker, claim_id, port,
        input, output, error, prompt_tokens, completion_tokens, model_calls, handler_seconds, due_at, queued_at,
        started_at, finished_at)
    SELECT u.run_id, u.node_key, '', u.type, u.queue, u.status, u.epoch, u.failures, u.claims, 0, u.worker, u.claim_id,
        u.port, u.input, u.output, u.error, u.prompt_tokens, u.completion_tokens, u.model_calls,
        u.handler_seconds, coalesce(u.due_at, now() + make_interval(secs => u.due_in)),
        CASE WHEN u.status <= 6 THEN now() END,
        CASE WHEN u.status IN (3, 5, 6) THEN now() END,
        CASE WHEN u.status >= 5 THEN now() END
    FROM unnest($28::uuid[], $29::text[], $30::text[], $31::text[], $32::smallint[], $33::bigint[], $34::int[],
        $35::int[], $36::text[], $37::text[], $38::text[], $39::bytea[], $40::bytea[], $41::bytea[], $42::bigint[],
        $43::bigint[], $44::int[], $45::timestamptz[], $46::float8[], $47::float8[])
        AS u (run_id, node_key, type, queue, status, epoch, failures, claims, worker, claim_id, port, input, output,
            error, prompt_tokens, completion_tokens, model_calls, due_at, due_in, handler_seconds)
    WHERE u.run_id IN (SELECT id FROM written)
    ON CONFLICT (run_id, node_key, item_path) DO UPDATE SET
        status = excluded.status, epoch = excluded.epoch, failures = excluded.failures, claims = excluded.claims,
        publications = 0, worker = excluded.worker, claim_id = excluded.claim_id, port = excluded.port,
        input = excluded.input, output = excluded.output, error = excluded.error,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        model_calls = excluded.model_calls, handler_seconds = excluded.handler_seconds,
        due_at = excluded.due_at,
        queued_at = CASE WHEN excluded.status = 2 THEN now() ELSE n.queued_at END,
        started_at = CASE WHEN excluded.status = 3 THEN now() ELSE n.started_at END,
        finished_at = excluded.finished_at
), events AS (
    INSERT INTO executor.run_events (run_id, first_sequence, events)
    SELECT u.run_id, u.first_sequence, u.events
    FROM unnest($48::uuid[], $49::bigint[], $50::bytea[]) AS u (run_id, first_sequence, events)
    WHERE u.run_id IN (SELECT id FROM written)
)
SELECT id FROM written
"""


def commit_arguments(states: Sequence[RunState], new: dict[UUID, NewRun]) -> list[list[Any]]:
    """The 50 arrays of COMMIT. Runs are sorted by id, so that two commits lock them in one order."""
    ordered = sorted(states, key=lambda state: state.run_id)
    created = [_created_row(state, new[state.run_id]) for state in ordered if state.run_id in new]
    moved = [_moved_row(state) for state in ordered if state.run_id not in new]
    nodes = [_node_row(state, position) for state in ordered for position in state.touched]
    events = [
        (state.run_id, state.events[0]["sequence"], orjson.dumps(state.events)) for state in ordered if state.events
    ]
    return [*_columns(created, 18), *_columns(moved, 9), *_columns(nodes, 20), *_columns(events, 3)]


def _columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _created_row(state: RunState, new: NewRun) -> tuple[Any, ...]:
    return (
        state.run_id,
        UUID(state.project_id),
        UUID(state.workflow_id),
        UUID(state.version_id),
        state.version_number,
        new.workflow_name,
        state.status,
        state.sequence,
        state.input,
        state.output,
        failure_json(state.error),
        state.usage.prompt_tokens,
        state.usage.completion_tokens,
        state.usage.calls,
        new.request_hash,
        new.started_by,
        state.traceparent,
        new.timeout_seconds,
    )


def _moved_row(state: RunState) -> tuple[Any, ...]:
    usage = state.usage
    return (
        state.run_id,
        state.version,
        state.status,
        state.sequence,
        state.output,
        failure_json(state.error),
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.calls,
    )


def _node_row(state: RunState, position: int) -> tuple[Any, ...]:
    node, spec = state.nodes[position], state.graph.nodes[position]
    due_at = datetime.fromisoformat(node.due_at) if node.due_at else None
    return (
        state.run_id,
        spec.key,
        spec.type,
        spec.kind.queue if spec.kind and not spec.kind.inline else "",
        node.status,
        node.epoch,
        node.failures,
        node.claims,
        node.worker,
        node.claim_id,
        node.port,
        node.input,
        node.output,
        failure_json(node.error),
        node.usage.prompt_tokens,
        node.usage.completion_tokens,
        node.usage.calls,
        due_at,
        _due_in(node),
        node.handler_seconds,
    )


def _due_in(node: NodeState) -> float | None:
    if node.status is NodeStatus.READY:
        return REPUBLISH_SECONDS
    if node.status is NodeStatus.RUNNING:
        return (node.due_in or 0.0) + TIMEOUT_GRACE_SECONDS
    return node.due_in


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
    )
