"""What happens next: the transitions of a run.

Each function takes a run's state and one thing that happened, changes the state in place, and leaves in it what has to
be committed (`touched`, `events`) and published (`ready`). Deterministic: no clock, no randomness, no I/O; nodes are
taken in the order of the definition. The rules for joins:

    an incoming edge is undecided       the node waits                (`join: any`: unless another one is live)
    all decided, at least one live      the node runs
    all decided, none live              the node is skipped, and so are the edges that leave it
"""

import zlib
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import orjson

from services.executor.engine.graph import ERROR, OUT, RetryPolicy
from services.executor.engine.inline import Done, Outcome, Wait, evaluate
from services.executor.engine.state import (
    NODE_TERMINAL,
    Failure,
    NodeState,
    NodeStatus,
    RunState,
    RunStatus,
    Usage,
    edge_is_live,
)
from services.kit.expressions import ExpressionError, compile_expression

MAX_CLAIMS = 5
"""Claims without a result after which a node is parked: it kills its workers."""
INLINE_BUDGET = 200
"""Inline nodes evaluated in one transition; the rest follow in the next, so that no run holds up the others."""
MAX_EVENT_OUTPUT_BYTES = 4096
"""Larger outputs are left out of events; the node execution has them."""


class Verdict(Enum):
    """What became of a claim or report."""

    ACCEPTED = auto()
    REPEATED = auto()
    """An earlier copy of the same request did it."""
    STALE = auto()
    """The node execution is not in the state, or not at the epoch, that the request is about."""


def start(state: RunState) -> None:
    """Begin a new run."""
    state.emit("run.started")
    for position in state.graph.entries:
        _make_ready(state, position)
    settle(state)


def claim(state: RunState, position: int, *, worker: str, claim_id: str) -> Verdict:
    """Give a ready node execution to a worker, under a new epoch."""
    node = state.nodes[position]
    if node.status is NodeStatus.RUNNING and node.claim_id == claim_id and node.worker == worker:
        return Verdict.REPEATED
    if node.status is not NodeStatus.READY or _is_inline(state, position):
        return Verdict.STALE
    node.status = NodeStatus.RUNNING
    node.epoch += 1
    node.claims += 1
    node.worker, node.claim_id = worker, claim_id
    node.due_in = state.graph.nodes[position].timeout_seconds
    _touch(state, position)
    state.emit("node.started", position, attempt=node.failures + 1, worker=worker)
    state.status = RunStatus.RUNNING
    return Verdict.ACCEPTED


def refuse(state: RunState, position: int, failure: Failure) -> Verdict:
    """End a ready node execution of which no job can be made."""
    if state.nodes[position].status is not NodeStatus.READY or _is_inline(state, position):
        return Verdict.STALE
    _fail_for_good(state, position, failure)
    settle(state)
    return Verdict.ACCEPTED


def report_success(
    state: RunState, position: int, epoch: int, *, output: bytes, port: str, usage: Usage, shown_input: bytes | None
) -> Verdict:
    """Record a worker's result."""
    verdict = _reported(state, position, epoch)
    if verdict is Verdict.ACCEPTED:
        node = state.nodes[position]
        node.input = shown_input
        node.usage = usage
        state.usage += usage
        _finish(state, position, NodeStatus.SUCCEEDED, output=output, port=port or OUT)
        settle(state)
    return verdict


def report_failure(
    state: RunState,
    position: int,
    epoch: int,
    failure: Failure,
    *,
    retry_after: float | None = None,
    shown_input: bytes | None = None,
) -> Verdict:
    """Record a failed attempt: retry, take the error port, continue, or fail the run."""
    verdict = _reported(state, position, epoch)
    if verdict is Verdict.ACCEPTED:
        if shown_input is not None:
            state.nodes[position].input = shown_input
        _fail_attempt(state, position, failure, retry_after)
        settle(state)
    return verdict


def release(state: RunState, position: int, epoch: int) -> Verdict:
    """Take back a job that its worker did not run; it costs no attempt."""
    verdict = _reported(state, position, epoch)
    if verdict is Verdict.ACCEPTED:
        state.nodes[position].claims -= 1
        _take_away(state, position)
    return verdict


def lose_worker(state: RunState, position: int, epoch: int) -> Verdict:
    """Take a job away from a worker whose lease has ended, or park it when it has cost too many workers."""
    verdict = _reported(state, position, epoch)
    if verdict is Verdict.ACCEPTED:
        node = state.nodes[position]
        if node.claims < MAX_CLAIMS:
            _take_away(state, position)
        else:
            node.epoch += 1
            key = state.graph.nodes[position].key
            message = (
                f"Node {key!r} was given to {MAX_CLAIMS} workers and each was gone before it had a result. "
                "It probably kills them, by its memory or by crashing: see the workers' logs."
            )
            _fail_for_good(state, position, Failure("WORKER_LOST", message, key))
            settle(state)
    return verdict


def time_out_node(state: RunState, position: int, epoch: int) -> Verdict:
    """End an attempt whose worker is alive but has not kept to the node's time-out."""
    verdict = _reported(state, position, epoch)
    if verdict is Verdict.ACCEPTED:
        state.nodes[position].epoch += 1
        _fail_attempt(state, position, node_timeout_failure(state, position), None)
        settle(state)
    return verdict


def node_timeout_failure(state: RunState, position: int) -> Failure:
    """What an attempt that ran out of time fails with."""
    node = state.graph.nodes[position]
    message = (
        f"Node {node.key!r} did not finish within its time-out of {node.timeout_seconds:g} s. "
        "Raise `timeout_seconds` of the node, or make it do less."
    )
    return Failure("TIMEOUT", message, node.key, retryable=True)


def wake(state: RunState, position: int, epoch: int) -> Verdict:
    """Go on after a timer: a delay is over, or the wait before another attempt."""
    node = state.nodes[position]
    if node.status is not NodeStatus.WAITING or node.epoch != epoch:
        return Verdict.STALE
    state.active_nodes += 1
    if _is_inline(state, position) and node.error is None:
        _finish(state, position, NodeStatus.SUCCEEDED, output=b"{}", port=OUT)
    else:
        node.status = NodeStatus.READY
        node.due_in = node.due_at = None
        (state.inline if _is_inline(state, position) else state.ready).append(position)
        _touch(state, position)
    settle(state)
    return Verdict.ACCEPTED


def cancel(state: RunState) -> Verdict:
    """End a run at a person's word."""
    if state.is_terminal:
        return Verdict.REPEATED
    _end(state, RunStatus.CANCELLED)
    return Verdict.ACCEPTED


def time_out_run(state: RunState, limit: float) -> Verdict:
    """End a run that has used up its time; `limit` in seconds is for the message."""
    if state.is_terminal:
        return Verdict.STALE
    message = f"The run did not end within {limit:g} s. Raise `timeout_seconds` of the definition."
    _end(state, RunStatus.FAILED, Failure("RUN_TIMEOUT", message))
    return Verdict.ACCEPTED


def settle(state: RunState) -> None:
    """Evaluate inline nodes, end the run when nothing is left, and say whether it runs or waits.

    Stops after INLINE_BUDGET nodes; `state.inline` then holds what another call has to go on with.
    """
    budget = INLINE_BUDGET
    while state.inline and budget and not state.is_terminal:
        budget -= 1
        _apply(state, state.inline.pop(0))
    if state.is_terminal:
        state.inline.clear()
    elif state.open_nodes == 0:
        _end(state, RunStatus.SUCCEEDED)
    else:
        state.status = RunStatus.RUNNING if state.active_nodes else RunStatus.WAITING


def _apply(state: RunState, position: int) -> None:
    node = state.graph.nodes[position]
    outcome: Outcome = evaluate(state, node)
    if isinstance(outcome, Done):
        _finish(state, position, NodeStatus.SUCCEEDED, output=outcome.output, port=outcome.port)
    elif isinstance(outcome, Wait):
        # What an inline node waits for is told by its error: another attempt with one, the end of a delay without.
        state.nodes[position].error = None
        _wait(state, position, outcome)
    else:
        _fail_attempt(state, position, outcome, None)


def _make_ready(state: RunState, position: int) -> None:
    node, kind = state.nodes[position], state.graph.nodes[position].kind
    node.status = NodeStatus.READY
    state.active_nodes += 1
    _touch(state, position)
    if kind is None:
        spec = state.graph.nodes[position]
        message = f"Node {spec.key!r} has the type {spec.type!r}, which this installation does not serve any more."
        _fail_for_good(state, position, Failure("UNKNOWN_NODE_TYPE", message, spec.key))
    elif kind.inline:
        state.inline.append(position)
    else:
        state.ready.append(position)


def _finish(state: RunState, position: int, status: NodeStatus, *, output: bytes | None = None, port: str = "") -> None:
    """Bring an active node to a terminal state and, unless that ends the run, decide what follows from it."""
    node = state.nodes[position]
    node.status, node.output, node.port = status, output, port
    node.parsed = False
    state.held_bytes += len(output or b"")
    node.due_in = node.due_at = None
    state.active_nodes -= 1
    state.open_nodes -= 1
    _touch(state, position)
    data: dict[str, object] = {"attempt": node.failures + (status is NodeStatus.SUCCEEDED)}
    if port not in (OUT, ""):
        data["port"] = port
    if status is NodeStatus.FAILED:
        data["error"] = node.error.as_json() if node.error else None
    elif output is not None and len(output) <= MAX_EVENT_OUTPUT_BYTES:
        data["output"] = orjson.Fragment(output)
    state.emit(f"node.{status.name.lower()}", position, **data)
    if port:
        _decide_edges(state, position)


def _decide_edges(state: RunState, decided: int) -> None:
    """Count down the joins behind a decided node; skipping spreads without recursion."""
    pending = [decided]
    while pending:
        source = pending.pop(0)
        for edge in state.graph.outgoing[source]:
            target = edge.target
            state.waiting_edges[target] -= 1
            state.live_edges[target] += edge_is_live(state.nodes[source], edge.port)
            if state.nodes[target].status is not NodeStatus.PENDING:
                continue
            if state.live_edges[target] and (state.waiting_edges[target] == 0 or state.graph.nodes[target].join_any):
                _make_ready(state, target)
            elif state.waiting_edges[target] == 0:
                state.nodes[target].status = NodeStatus.SKIPPED
                state.open_nodes -= 1
                _touch(state, target)
                state.emit("node.skipped", target)
                pending.append(target)


def _fail_attempt(state: RunState, position: int, failure: Failure, retry_after: float | None) -> None:
    node, spec = state.nodes[position], state.graph.nodes[position]
    node.failures += 1
    node.claims = 0
    if node.failures >= spec.retry.max_attempts or not _wants_retry(spec.retry, failure, node.failures):
        _fail_for_good(state, position, failure)
        return
    node.error = failure
    delay = max(retry_delay(spec.retry, node.failures, f"{state.run_id}/{spec.key}"), retry_after or 0.0)
    _wait(state, position, Wait(seconds=delay), event="node.retrying", error=failure.as_json(), attempt=node.failures)


def _fail_for_good(state: RunState, position: int, failure: Failure) -> None:
    node, spec = state.nodes[position], state.graph.nodes[position]
    node.error = failure
    if state.graph.has_port(position, ERROR):
        _finish(state, position, NodeStatus.FAILED, port=ERROR)
    elif spec.continue_on_error:
        _finish(state, position, NodeStatus.FAILED, output=b"null", port=OUT)
    else:
        _finish(state, position, NodeStatus.FAILED)
        _end(state, RunStatus.FAILED, failure)


def _wants_retry(policy: RetryPolicy, failure: Failure, attempt: int) -> bool:
    if not policy.when:
        return failure.retryable
    variables = {"error": failure.as_json(), "attempt": attempt}
    try:
        return compile_expression(policy.when, names=frozenset(variables)).evaluate(variables) is True
    except ExpressionError:
        # A condition that cannot be evaluated on this error does not ask for a retry; the error itself is what counts.
        return False


def retry_delay(policy: RetryPolicy, failures: int, seed: str) -> float:
    """Seconds before the next attempt: exponential, capped, spread over 50% to 100% by a hash of `seed`.

    The spread is a hash and not random so that the same events always give the same run.
    """
    exponent = min(failures - 1, 64)
    delay = min(policy.initial_interval * policy.backoff**exponent, policy.max_interval)
    if policy.jitter:
        delay *= 0.5 + zlib.crc32(f"{seed}/{failures}".encode()) / 2**33
    return delay


def _wait(state: RunState, position: int, wait: Wait, event: str = "node.waiting", **data: object) -> None:
    node = state.nodes[position]
    node.status = NodeStatus.WAITING
    node.due_in, node.due_at = wait.seconds, wait.until
    state.active_nodes -= 1
    _touch(state, position)
    until = {"until": wait.until} if wait.until else {"seconds": round(wait.seconds or 0.0, 3)}
    state.emit(event, position, **data, **until)


def _take_away(state: RunState, position: int) -> None:
    node = state.nodes[position]
    node.status = NodeStatus.READY
    node.epoch += 1
    node.worker = node.claim_id = ""
    node.due_in = None
    state.ready.append(position)
    _touch(state, position)
    state.emit("node.requeued", position)


def _end(state: RunState, status: RunStatus, error: Failure | None = None) -> None:
    """Bring the run to its end; whatever has not ended is cancelled and loses its claim."""
    for position, node in enumerate(state.nodes):
        if node.status in NODE_TERMINAL:
            continue
        was_seen = node.status is not NodeStatus.PENDING
        node.epoch += node.status is NodeStatus.RUNNING
        node.status = NodeStatus.CANCELLED
        node.due_in = node.due_at = None
        _touch(state, position)
        if was_seen:
            state.emit("node.cancelled", position)
    state.open_nodes = state.active_nodes = 0
    state.inline.clear()
    state.ready.clear()
    state.status, state.error = status, error
    if status is RunStatus.SUCCEEDED:
        state.output = run_output(state)
    data: dict[str, Any] = {"error": error.as_json()} if error else {}
    state.emit(f"run.{status.name.lower()}", **data)


def run_output(state: RunState) -> bytes:
    """The output of a run that succeeded: of its `output` node, or `{key: output}` of several, or of the last nodes.

    Only nodes that have an output count; the last nodes are those without outgoing edges.
    """
    outputs = _with_output(state, [i for i, node in enumerate(state.graph.nodes) if node.type == "output"])
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    if not outputs:
        outputs = _with_output(state, [i for i in range(len(state.nodes)) if not state.graph.outgoing[i]])
    return orjson.dumps({key: orjson.Fragment(output) for key, output in outputs.items()})


def _with_output(state: RunState, positions: Sequence[int]) -> dict[str, bytes]:
    return {
        state.graph.nodes[position].key: output
        for position in positions
        if (output := state.nodes[position].output) is not None
    }


def _reported(state: RunState, position: int, epoch: int) -> Verdict:
    node: NodeState = state.nodes[position]
    if node.epoch != epoch:
        return Verdict.STALE
    return Verdict.ACCEPTED if node.status is NodeStatus.RUNNING else Verdict.REPEATED


def _is_inline(state: RunState, position: int) -> bool:
    kind = state.graph.nodes[position].kind
    return kind is not None and kind.inline


def _touch(state: RunState, position: int) -> None:
    state.touched[position] = None
