"""What happens next: the transitions of a run.

Each function takes a run's state and one thing that happened, changes the state in place, and leaves in it what has to
be committed (`touched`, `events`) and published (`ready`). Deterministic: no clock, no randomness, no I/O; nodes are
taken in the order of the definition. The rules for joins:

    an incoming edge is undecided       the node waits                (`join: any`: unless another one is live)
    all decided, at least one live      the node runs
    all decided, none live              the node is skipped, and so are the edges that leave it

A container node (`map`, `loop`, `sub_workflow`) runs while its scopes do; each scope is a graph under the same rules,
and what ends a run ends a scope: no open node, or a failure that nothing takes.
"""

import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum, auto
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
    Usage,
    edge_is_live,
)
from services.executor.engine.waits import Answer
from services.kit.errors import Violation
from services.kit.expressions import ExpressionError, compile_expression

MAX_CLAIMS = 5
"""Claims without a result after which a node is parked: it kills its workers."""
INLINE_BUDGET = 200
"""Inline nodes and steps of containers in one transition; the rest follow in the next: no run holds up the others."""
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
    _begin_scope(state, state.root)
    settle(state)


def hold(state: RunState) -> None:
    """Accept a new run that has to wait for its turn: nothing of it begins."""
    state.emit("run.pending")


def begin(state: RunState) -> Verdict:
    """Begin a run whose turn it is."""
    if state.status is not RunStatus.PENDING:
        return Verdict.STALE
    start(state)
    return Verdict.ACCEPTED


def claim(state: RunState, node: NodeState, epoch: int, *, worker: str, claim_id: str) -> Verdict:
    """Give a node execution that is ready at this epoch to a worker, under a new epoch.

    The epoch keeps out a claim that was under way for so long that the node has been run since: its worker has stopped
    to wait for an answer, and would hold the job without knowing.
    """
    if node.status is NodeStatus.RUNNING and node.claim_id == claim_id and node.worker == worker:
        return Verdict.REPEATED
    if node.status is not NodeStatus.READY or node.epoch != epoch or not _is_for_workers(state, node):
        return Verdict.STALE
    node.status = NodeStatus.RUNNING
    node.epoch += 1
    node.claims += 1
    node.worker, node.claim_id = worker, claim_id
    node.due_in = node.spec.timeout_seconds
    _touch(state, node)
    state.emit("node.started", node, attempt=node.failures + 1, worker=worker)
    state.status = RunStatus.RUNNING
    return Verdict.ACCEPTED


def refuse(state: RunState, node: NodeState, failure: Failure) -> Verdict:
    """End a ready node execution of which no job can be made."""
    if node.status is not NodeStatus.READY or not _is_for_workers(state, node):
        return Verdict.STALE
    _fail_for_good(state, node, failure)
    settle(state)
    return Verdict.ACCEPTED


def report_success(
    state: RunState, node: NodeState, epoch: int, *, output: bytes, port: str, usage: Usage, shown_input: bytes | None
) -> Verdict:
    """Record a worker's result."""
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        node.input = shown_input
        node.usage = usage
        state.usage += usage
        _succeed(state, node, output, port or OUT)
        settle(state)
    return verdict


def report_failure(
    state: RunState,
    node: NodeState,
    epoch: int,
    failure: Failure,
    *,
    retry_after: float | None = None,
    outcome_unknown: bool = False,
    shown_input: bytes | None = None,
) -> Verdict:
    """Record a failed attempt: retry, take the error port, continue, or fail what it is in.

    `outcome_unknown`: it may have acted all the same, so a node that is delivered at most once waits for a person.
    """
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        if shown_input is not None:
            node.input = shown_input
        if node.spec.at_most_once and outcome_unknown:
            _park(state, node, failure.message)
        else:
            _fail_attempt(state, node, failure, retry_after)
        settle(state)
    return verdict


def release(state: RunState, node: NodeState, epoch: int, *, started: bool = False) -> Verdict:
    """Take back a job that its worker does not finish; it costs no attempt. `started`: the handler had begun."""
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        if started and node.spec.at_most_once:
            _park(state, node, "Its worker was told to stop while it ran.")
        else:
            node.claims -= 1
            _take_away(state, node)
        settle(state)
    return verdict


def lose_worker(state: RunState, node: NodeState, epoch: int, *, alone: bool = False) -> Verdict:
    """Take a job away from a worker whose lease has ended, or give it up when it has cost too many workers.

    `alone`: it is known to have been the worker's only job.
    """
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        if node.spec.at_most_once:
            _park(state, node, "Its worker was lost while it ran.")
        elif node.claims < MAX_CLAIMS:
            _take_away(state, node)
        else:
            node.epoch += 1
            _fail_for_good(state, node, _worker_lost(node, alone=alone))
        settle(state)
    return verdict


def _worker_lost(node: NodeState, *, alone: bool) -> Failure:
    key = node.spec.key
    blame = (
        "It was the last worker's only job, so it is what kills them"
        if alone
        else "It kills them, or one of the jobs beside it does: then go again over the run when that one is found"
    )
    message = (
        f"Node {key!r} was given to {MAX_CLAIMS} workers and each was gone before it had a result. {blame}. "
        "Look for memory and crashes in the workers' logs."
    )
    return Failure("WORKER_LOST", message, key, item_path=node.path, details={"alone": alone})


def time_out_node(state: RunState, node: NodeState, epoch: int) -> Verdict:
    """End an attempt that has not kept to the node's time-out, though its worker is alive, or it is a container."""
    if node.epoch != epoch or node.status is not NodeStatus.RUNNING:
        return Verdict.STALE
    if node.spec.at_most_once and not node.is_inline:
        _park(state, node, f"It had no result within its time-out of {node.spec.timeout_seconds:g} s.")
    else:
        node.epoch += 1
        _let_go(state, node)
        _fail_attempt(state, node, node_timeout_failure(node), None)
    settle(state)
    return Verdict.ACCEPTED


def node_timeout_failure(node: NodeState) -> Failure:
    """What an attempt that ran out of time fails with."""
    key = node.spec.key
    message = (
        f"Node {key!r} did not finish within its time-out of {node.spec.timeout_seconds:g} s. "
        "Raise `timeout_seconds` of the node, or make it do less."
    )
    return Failure("TIMEOUT", message, key, retryable=True, item_path=node.path)


def wake(state: RunState, node: NodeState, epoch: int) -> Verdict:
    """Go on after a timer: a delay is over, the wait before another attempt, or the time for an answer."""
    if node.status is not NodeStatus.WAITING or node.epoch != epoch:
        return Verdict.STALE
    state.active_nodes += 1
    if waits.waits_for_answer(node):
        outcome = waits.time_out(node)
        if isinstance(outcome, Failure):
            _fail_attempt(state, node, outcome, None)
        else:
            _finish(state, node, NodeStatus.SUCCEEDED, output=outcome.output, port=outcome.port)
    elif node.is_inline and node.error is None:
        _finish(state, node, NodeStatus.SUCCEEDED, output=b"{}", port=OUT)
    else:
        node.status = NodeStatus.READY
        node.due_in = node.due_at = None
        _queue(state, node)
        _touch(state, node)
    settle(state)
    return Verdict.ACCEPTED


def resume(state: RunState, node: NodeState, answer: Answer) -> Verdict | tuple[Violation, ...]:
    """Take an answer to a node execution that waits for one, or all that is wrong with it; the first answer counts."""
    if waits.is_parked(node):
        return _resume_parked(state, node, answer)
    if not waits.waits_for_answer(node):
        return Verdict.STALE
    accepted = waits.accept(node, answer)
    if not isinstance(accepted, Done):
        return accepted
    _note_answer(state, node, answer)
    state.active_nodes += 1
    _finish(state, node, NodeStatus.SUCCEEDED, output=accepted.output, port=accepted.port)
    settle(state)
    return Verdict.ACCEPTED


def _resume_parked(state: RunState, node: NodeState, answer: Answer) -> Verdict | tuple[Violation, ...]:
    """Take a person's word for what became of an attempt, or have another one made."""
    violations = waits.check_verdict(answer)
    if violations:
        return violations
    _note_answer(state, node, answer)
    state.active_nodes += 1
    node.claims = 0
    if answer.decision == "retry":
        node.status = NodeStatus.READY
        node.epoch += 1
        node.worker = node.claim_id = ""
        _queue(state, node)
        _touch(state, node)
    elif answer.decision == "succeed":
        _finish(state, node, NodeStatus.SUCCEEDED, output=answer.data, port=OUT)
    else:
        node.failures += 1
        _fail_for_good(state, node, node.error or waits.unknown(node, ""))
    settle(state)
    return Verdict.ACCEPTED


def _note_answer(state: RunState, node: NodeState, answer: Answer) -> None:
    node.answer = answer.request
    data = {"decision": answer.decision} if answer.decision else {}
    state.emit("node.resumed", node, by=answer.by.user_id if answer.by else None, **data)


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
    """Evaluate inline nodes, take containers further, end the run when nothing is left, say if it runs or waits.

    Stops after INLINE_BUDGET steps; `state.inline` then holds what another call has to go on with.
    """
    budget = INLINE_BUDGET
    while state.inline and budget and not state.is_terminal:
        budget -= 1
        node = state.inline.popleft()
        if node.status is NodeStatus.READY:
            _evaluate(state, node)
        elif node.status is NodeStatus.RUNNING:
            _continue_container(state, node)
    if state.is_terminal:
        state.inline.clear()
    elif state.root.open_nodes == 0:
        _end(state, RunStatus.SUCCEEDED)
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


def settle_left_over(state: RunState) -> Verdict:
    """Go on with what a transition had left to do and whoever committed it did not do."""
    if state.is_terminal:
        return Verdict.STALE
    settle(state)
    if not state.events and not state.touched:
        # Nothing was left but a look at a container. A commit says that it has been taken.
        for node in state.open_nodes():
            if node.container is not None:
                _touch(state, node)
    return Verdict.ACCEPTED


def _evaluate(state: RunState, node: NodeState) -> None:
    failure = exhausted(state, node)
    if failure is not None:
        _fail_for_good(state, node, failure)
        return
    recorded = _recorded(state, node)
    if recorded is not None:
        node.error = recorded.error
        if recorded.status is NodeStatus.SUCCEEDED:
            _succeed(state, node, recorded.output, recorded.port, reused=True)
        else:
            _finish(state, node, recorded.status, output=recorded.output, port=recorded.port, reused=True)
        return
    if containers.is_container(node):
        _begin_container(state, node)
        return
    asks = node.spec.type in (waits.APPROVAL, waits.EVENT)
    outcome = waits.begin(state, node) if asks else evaluate(state, node)
    if isinstance(outcome, Done):
        _succeed(state, node, outcome.output, outcome.port)
    elif isinstance(outcome, Wait):
        # What an inline node waits for is told by its error: another attempt with one, the end of a delay without.
        node.error = None
        if outcome.asked is not None:
            node.input = outcome.asked
            node.epoch += 1
        _wait(state, node, outcome)
    else:
        _fail_attempt(state, node, outcome, None)


def _begin_container(state: RunState, node: NodeState) -> None:
    failure = containers.begin(state, node)
    if failure is not None:
        _fail_attempt(state, node, failure, None)
        return
    node.status = NodeStatus.RUNNING
    node.due_in = node.spec.timeout
    node.error = None
    state.active_nodes -= 1
    _touch(state, node)
    state.emit("node.started", node, attempt=node.failures + 1)
    state.inline.append(node)


def _continue_container(state: RunState, node: NodeState) -> None:
    """Open one more scope, or end the container if it is done."""
    container = node.container
    if container is None:
        raise AssertionError("a container that runs holds its scopes")
    found = container.outcome() or container.open_next(state)
    if isinstance(found, Scope):
        state.open_scope(found)
        state.executions += len(found.nodes)
        state.calls += found.input is not None
        _begin_scope(state, found)
        state.inline.append(node)
    elif isinstance(found, Done):
        _let_go(state, node)
        _succeed(state, node, found.output, found.port)
    elif isinstance(found, Failure):
        _let_go(state, node)
        _fail_attempt(state, node, found, None)


def _begin_scope(state: RunState, scope: Scope) -> None:
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
    _touch(state, node)
    if node.spec.kind is None:
        key = node.spec.key
        message = f"Node {key!r} has the type {node.spec.type!r}, which this installation does not serve any more."
        _fail_for_good(state, node, Failure("UNKNOWN_NODE_TYPE", message, key, item_path=node.path))
    else:
        _queue(state, node)


def _queue(state: RunState, node: NodeState) -> None:
    """Have a ready node evaluated here or published to workers."""
    if not _is_for_workers(state, node):
        state.inline.append(node)
    else:
        state.ready.append(node)


def _is_for_workers(state: RunState, node: NodeState) -> bool:
    return not node.is_inline and _recorded(state, node) is None


def _recorded(state: RunState, node: NodeState) -> NodeRow | None:
    """The result of an earlier run that stands in for the node."""
    return state.recorded.get((containers.effect_path(node.path), node.spec.key)) if state.recorded else None


def _succeed(state: RunState, node: NodeState, output: bytes | None, port: str, *, reused: bool = False) -> None:
    """Record an output, or fail the node for it if the run's outputs are more than the run may have."""
    limit = state.limits.output_bytes
    if state.output_bytes + len(output or b"") <= limit:
        _finish(state, node, NodeStatus.SUCCEEDED, output=output, port=port, reused=reused)
        return
    key = node.spec.key
    message = (
        f"With the {len(output or b'')} bytes of node {key!r} the outputs of the run would have "
        f"{state.output_bytes + len(output or b'')} bytes; the limit is {limit}. Store the data and pass on its id, "
        "or raise HEADRACE_EXECUTOR_MAX_RUN_OUTPUT_BYTES."
    )
    _fail_for_good(state, node, Failure("RUN_OUTPUTS_TOO_LARGE", message, key))


def _finish(
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
    _touch(state, node)
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
                _touch(state, target)
                state.emit("node.skipped", target)
                pending.append(target)


def _fail_attempt(state: RunState, node: NodeState, failure: Failure, retry_after: float | None) -> None:
    spec = node.spec
    node.failures += 1
    node.claims = 0
    if node.failures >= spec.retry.max_attempts or not _wants_retry(spec.retry, failure, node.failures):
        _fail_for_good(state, node, failure)
        return
    node.error = failure
    seed = f"{state.run_id}/{node.path}/{spec.key}"
    delay = max(retry_delay(spec.retry, node.failures, seed), retry_after or 0.0)
    _wait(state, node, Wait(seconds=delay), event="node.retrying", error=failure.as_json(), attempt=node.failures)


def _fail_for_good(state: RunState, node: NodeState, failure: Failure) -> None:
    if node.path and not failure.item_path:
        failure = replace(failure, item_path=node.path)
    node.error = failure
    if node.scope.graph.has_port(node.position, ERROR):
        _finish(state, node, NodeStatus.FAILED, port=ERROR)
    elif node.spec.continue_on_error:
        _finish(state, node, NodeStatus.FAILED, output=b"null", port=OUT)
    else:
        _finish(state, node, NodeStatus.FAILED)
        if node.scope is state.root:
            _end(state, RunStatus.FAILED, failure)
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
    _touch(state, node)
    until: dict[str, object] = {}
    if wait.until is not None:
        until["until"] = wait.until
    elif wait.seconds is not None:
        until["seconds"] = round(wait.seconds, 3)
    state.emit(event, node, **data, **until)


def _park(state: RunState, node: NodeState, cause: str) -> None:
    """Have an attempt whose outcome nobody knows wait for a person; no timer ends it."""
    node.status = NodeStatus.WAITING
    node.epoch += 1
    node.due_in = node.due_at = None
    node.error = waits.unknown(node, cause)
    state.active_nodes -= 1
    _touch(state, node)
    state.emit("node.unknown", node, error=node.error.as_json(), attempt=node.failures + 1)


def _take_away(state: RunState, node: NodeState) -> None:
    node.status = NodeStatus.READY
    node.epoch += 1
    node.worker = node.claim_id = ""
    node.due_in = None
    state.ready.append(node)
    _touch(state, node)
    state.emit("node.requeued", node)


def _let_go(state: RunState, node: NodeState) -> None:
    """Cancel what a container still has open; the node is then one that is active and may be finished."""
    if node.container is None:
        return
    node.container = None
    state.active_nodes += 1
    for scope in [*(node.open_scopes or {}).values()]:
        _cancel_scope(state, scope)


def _end(state: RunState, status: RunStatus, error: Failure | None = None) -> None:
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
        _touch(state, node)
        if was_seen:
            state.emit("node.cancelled", node)


def _reported(node: NodeState, epoch: int) -> Verdict:
    if node.epoch != epoch or node.is_inline:
        return Verdict.STALE
    return Verdict.ACCEPTED if node.status is NodeStatus.RUNNING else Verdict.REPEATED


def _touch(state: RunState, node: NodeState) -> None:
    state.touched[node] = None
