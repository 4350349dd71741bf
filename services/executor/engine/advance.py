"""How a run gets on: what the transitions of `decide` set going, until nothing more can go on by itself.

Inline nodes are evaluated, containers open and close their scopes, joins are counted down, failures take their way, and
a scope or the run ends when nothing in it is open.
"""

import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson

from services.executor.engine import containers, waits
from services.executor.engine.graph import ERROR, OUT, RetryPolicy
from services.executor.engine.inline import evaluate
from services.executor.engine.outcomes import Done, Wait
from services.executor.engine.state import (
    NODE_TERMINAL,
    Failure,
    NodeRow,
    NodeState,
    NodeStatus,
    RunState,
    RunStatus,
    Scope,
    edge_is_live,
)
from services.kit.expressions import ExpressionError, compile_expression

INLINE_BUDGET = 200
"""Inline nodes and steps of containers in one transition; the rest follow in the next: no run holds up the others."""
MAX_EVENT_OUTPUT_BYTES = 4096
"""Larger outputs are left out of events; the node execution has them."""


def settle(state: RunState) -> None:
    """Evaluate inline nodes, take containers further, end the run when nothing is left, say if it runs or waits.

    Stops after INLINE_BUDGET steps; `state.inline` then holds what another call has to go on with. To look at a
    container that cannot go on is no step: a call that has changed nothing leaves nothing to do, so none follows it.
    """
    budget = INLINE_BUDGET
    while state.inline and budget and not state.is_terminal:
        node = state.inline.popleft()
        if node.status is NodeStatus.READY:
            budget -= 1
            _evaluate(state, node)
        elif node.status is NodeStatus.RUNNING:
            budget -= _continue_container(state, node)
    if state.is_terminal:
        state.inline.clear()
    elif state.root.open_nodes == 0:
        end(state, RunStatus.SUCCEEDED)
    else:
        state.status = RunStatus.RUNNING if state.active_nodes or state.inline else RunStatus.WAITING


def exhausted(state: RunState, node: NodeState) -> Failure | None:
    """Why a ready node execution may not run: the run has written as many events as it may."""
    if state.sequence < state.limits.events:
        return None
    message = (
        f"Node {node.spec.key!r} was not run: the run has {state.sequence} events, and the limit is "
        f"{state.limits.events}. Split the work into several runs, or raise HEADRACE_EXECUTOR_MAX_RUN_EVENTS."
    )
    return Failure("TOO_MANY_EVENTS", message, node.spec.key)


def _evaluate(state: RunState, node: NodeState) -> None:
    failure = exhausted(state, node)
    if failure is not None:
        fail_for_good(state, node, failure)
        return
    recorded = _recorded(state, node)
    if recorded is not None:
        node.error = recorded.error
        if recorded.status is NodeStatus.SUCCEEDED:
            succeed(state, node, recorded.output, recorded.port, reused=True)
        else:
            finish(state, node, recorded.status, output=recorded.output, port=recorded.port, reused=True)
        return
    if containers.is_container(node):
        _begin_container(state, node)
        return
    asks = node.spec.type in (waits.APPROVAL, waits.EVENT)
    outcome = waits.begin(state, node) if asks else evaluate(state, node)
    if isinstance(outcome, Done):
        succeed(state, node, outcome.output, outcome.port)
    elif isinstance(outcome, Wait):
        # What an inline node waits for is told by its error: another attempt with one, the end of a delay without.
        node.error = None
        if outcome.asked is not None:
            node.input = outcome.asked
            node.epoch += 1
        _wait(state, node, outcome)
    else:
        fail_attempt(state, node, outcome, None)


def _begin_container(state: RunState, node: NodeState) -> None:
    failure = containers.begin(state, node)
    if failure is not None:
        fail_attempt(state, node, failure, None)
        return
    node.status = NodeStatus.RUNNING
    node.due_in = node.spec.timeout
    node.error = None
    state.active_nodes -= 1
    touch(state, node)
    state.emit("node.started", node, attempt=node.failures + 1)
    state.inline.append(node)


def _continue_container(state: RunState, node: NodeState) -> bool:
    """Open one more scope, or end the container if it is done; False if neither can be."""
    container = node.container
    if container is None:
        raise AssertionError("a container that runs holds its scopes")
    found = container.outcome() or container.open_next(state)
    if isinstance(found, Scope):
        state.open_scope(found)
        state.executions += len(found.nodes)
        state.calls += found.input is not None
        begin_scope(state, found)
        state.inline.append(node)
    elif isinstance(found, Done):
        let_go(state, node)
        succeed(state, node, found.output, found.port)
    elif isinstance(found, Failure):
        let_go(state, node)
        fail_attempt(state, node, found, None)
    return found is not None


def begin_scope(state: RunState, scope: Scope) -> None:
    """Make ready what the scope begins with."""
    for position in scope.graph.entries:
        if scope.nodes[position].status is NodeStatus.PENDING:
            _make_ready(state, scope.nodes[position])


def _close_scope(state: RunState, scope: Scope, result: bytes | Failure) -> None:
    """Hand the result of a scope to its container, which goes on or ends when its turn comes."""
    node = scope.container
    if node is None or node.container is None:
        raise AssertionError("only the root has no container, and it ends with its run")
    state.drop_scope(scope)
    state.held_bytes += len(result) if isinstance(result, bytes) else 0
    state.held_bytes -= scope.output_bytes()
    node.container.close(state, scope, result)
    state.inline.append(node)


def _make_ready(state: RunState, node: NodeState) -> None:
    node.status = NodeStatus.READY
    state.active_nodes += 1
    touch(state, node)
    if node.spec.kind is None:
        key = node.spec.key
        message = f"Node {key!r} has the type {node.spec.type!r}, which this installation does not serve any more."
        fail_for_good(state, node, Failure("UNKNOWN_NODE_TYPE", message, key, item_path=node.path))
    else:
        queue(state, node)


def queue(state: RunState, node: NodeState) -> None:
    """Have a ready node evaluated here or published to workers."""
    if not is_for_workers(state, node):
        state.inline.append(node)
    else:
        state.ready.append(node)


def is_for_workers(state: RunState, node: NodeState) -> bool:
    """Neither the engine nor an earlier run gives its result."""
    return not node.is_inline and not (state.recorded and _recorded(state, node))


def _recorded(state: RunState, node: NodeState) -> NodeRow | None:
    """The result of an earlier run that stands in for the node."""
    return state.recorded.get((containers.effect_path(node.path), node.spec.key)) if state.recorded else None


def succeed(state: RunState, node: NodeState, output: bytes | None, port: str, *, reused: bool = False) -> None:
    """Record an output, or fail the node for it if the run's outputs are more than the run may have."""
    limit = state.limits.output_bytes
    if state.output_bytes + len(output or b"") <= limit:
        finish(state, node, NodeStatus.SUCCEEDED, output=output, port=port, reused=reused)
        return
    key = node.spec.key
    message = (
        f"With the {len(output or b'')} bytes of node {key!r} the outputs of the run would have "
        f"{state.output_bytes + len(output or b'')} bytes; the limit is {limit}. Store the data and pass on its id, "
        "or raise HEADRACE_EXECUTOR_MAX_RUN_OUTPUT_BYTES."
    )
    fail_for_good(state, node, Failure("RUN_OUTPUTS_TOO_LARGE", message, key))


def finish(
    state: RunState,
    node: NodeState,
    status: NodeStatus,
    *,
    output: bytes | None = None,
    port: str = "",
    reused: bool = False,
) -> None:
    """Bring an active node to a terminal state and, unless that ends its scope as failed, decide what follows."""
    node.status, node.output, node.port = status, output, port
    node.parsed = False
    state.held_bytes += len(output or b"")
    state.output_bytes += len(output or b"")
    node.due_in = node.due_at = None
    state.active_nodes -= 1
    node.scope.open_nodes -= 1
    touch(state, node)
    data: dict[str, object] = {"attempt": node.failures + (status is NodeStatus.SUCCEEDED)}
    if reused:
        data["reused"] = True
    if port not in (OUT, ""):
        data["port"] = port
    if status is NodeStatus.FAILED:
        data["error"] = node.error.as_json() if node.error else None
    elif output is not None and len(output) <= MAX_EVENT_OUTPUT_BYTES:
        data["output"] = orjson.Fragment(output)
    state.emit(f"node.{status.name.lower()}", node, **data)
    if port:
        _decide_edges(state, node)
        if node.scope.open_nodes == 0 and state.scopes.get(node.path) is node.scope:
            _close_scope(state, node.scope, node.scope.result())


def _decide_edges(state: RunState, decided: NodeState) -> None:
    """Count down the joins behind a decided node; skipping spreads without recursion."""
    scope = decided.scope
    pending = deque([decided])
    while pending:
        source = pending.popleft()
        for edge in scope.graph.outgoing[source.position]:
            target = scope.nodes[edge.target]
            scope.waiting_edges[edge.target] -= 1
            scope.live_edges[edge.target] += edge_is_live(source, edge.port)
            if target.status is not NodeStatus.PENDING:
                continue
            if scope.live_edges[edge.target] and (scope.waiting_edges[edge.target] == 0 or target.spec.join_any):
                _make_ready(state, target)
            elif scope.waiting_edges[edge.target] == 0:
                target.status = NodeStatus.SKIPPED
                scope.open_nodes -= 1
                touch(state, target)
                state.emit("node.skipped", target)
                pending.append(target)


def fail_attempt(state: RunState, node: NodeState, failure: Failure, retry_after: float | None) -> None:
    """End an attempt: wait for another one by the policy, or fail for good."""
    spec = node.spec
    node.failures += 1
    node.claims = 0
    if node.failures >= spec.retry.max_attempts or not _wants_retry(spec.retry, failure, node.failures):
        fail_for_good(state, node, failure)
        return
    node.error = failure
    seed = f"{state.run_id}/{node.path}/{spec.key}"
    delay = max(retry_delay(spec.retry, node.failures, seed), retry_after or 0.0)
    _wait(state, node, Wait(seconds=delay), event="node.retrying", error=failure.as_json(), attempt=node.failures)


def fail_for_good(state: RunState, node: NodeState, failure: Failure) -> None:
    """Fail a node: take its error port, continue, or fail the scope that it is in."""
    if node.path and not failure.item_path:
        failure = replace(failure, item_path=node.path)
    node.error = failure
    if node.scope.graph.has_port(node.position, ERROR):
        finish(state, node, NodeStatus.FAILED, port=ERROR)
    elif node.spec.continue_on_error:
        finish(state, node, NodeStatus.FAILED, output=b"null", port=OUT)
    else:
        finish(state, node, NodeStatus.FAILED)
        if node.scope is state.root:
            end(state, RunStatus.FAILED, failure)
        else:
            _cancel_scope(state, node.scope)
            _close_scope(state, node.scope, failure)


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


def _wait(state: RunState, node: NodeState, wait: Wait, event: str = "node.waiting", **data: object) -> None:
    node.status = NodeStatus.WAITING
    node.due_in, node.due_at = wait.seconds, wait.until
    state.active_nodes -= 1
    touch(state, node)
    until: dict[str, object] = {}
    if wait.until is not None:
        until["until"] = wait.until
    elif wait.seconds is not None:
        until["seconds"] = round(wait.seconds, 3)
    state.emit(event, node, **data, **until)


def park(state: RunState, node: NodeState, cause: str) -> None:
    """Have an attempt whose outcome nobody knows wait for a person; no timer ends it."""
    node.status = NodeStatus.WAITING
    node.epoch += 1
    node.due_in = node.due_at = None
    node.error = waits.unknown(node, cause)
    state.active_nodes -= 1
    touch(state, node)
    state.emit("node.unknown", node, error=node.error.as_json(), attempt=node.failures + 1)


def take_away(state: RunState, node: NodeState) -> None:
    """Make a claimed node execution ready again, under a new epoch."""
    node.status = NodeStatus.READY
    node.epoch += 1
    node.worker = node.claim_id = ""
    node.due_in = None
    state.ready.append(node)
    touch(state, node)
    state.emit("node.requeued", node)


def let_go(state: RunState, node: NodeState) -> None:
    """Cancel what a container still has open; the node is then one that is active and may be finished."""
    if node.container is None:
        return
    node.container = None
    state.active_nodes += 1
    for scope in [*(node.open_scopes or {}).values()]:
        _cancel_scope(state, scope)


def end(state: RunState, status: RunStatus, error: Failure | None = None) -> None:
    """Bring the run to its end; whatever has not ended is cancelled and loses its claim."""
    _cancel_nodes(state, state.root.nodes)
    for scope in [*state.scopes.values()]:
        _cancel_nodes(state, scope.nodes)
        state.drop_scope(scope)
    state.root.open_nodes = state.active_nodes = 0
    state.inline.clear()
    state.ready.clear()
    state.status, state.error = status, error
    if status is RunStatus.SUCCEEDED:
        state.output = state.root.result()
    data: dict[str, Any] = {"error": error.as_json()} if error else {}
    state.emit(f"run.{status.name.lower()}", **data)


def _cancel_scope(state: RunState, scope: Scope) -> None:
    """Cancel what is open in a scope and in the scopes inside it, and drop them."""
    pending = [scope]
    while pending:
        outer = pending.pop()
        state.drop_scope(outer)
        for node in outer.nodes:
            pending += (node.open_scopes or {}).values()
        _cancel_nodes(state, outer.nodes)
        outer.open_nodes = 0


def _cancel_nodes(state: RunState, nodes: Iterable[NodeState]) -> None:
    for node in nodes:
        if node.status in NODE_TERMINAL:
            continue
        was_seen = node.status is not NodeStatus.PENDING
        is_running = node.status is NodeStatus.RUNNING
        state.active_nodes -= node.status is NodeStatus.READY or (is_running and node.container is None)
        node.epoch += is_running
        node.status = NodeStatus.CANCELLED
        node.container = None
        node.due_in = node.due_at = None
        touch(state, node)
        if was_seen:
            state.emit("node.cancelled", node)


def touch(state: RunState, node: NodeState) -> None:
    """Have the node execution written by the next commit."""
    state.touched[node] = None
