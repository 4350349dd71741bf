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

from enum import Enum, auto

from services.executor.engine import waits
from services.executor.engine.advance import (
    begin_scope,
    end,
    fail_attempt,
    fail_for_good,
    is_for_workers,
    let_go,
    park,
    queue,
    settle,
    succeed,
    take_away,
    touch,
)
from services.executor.engine.graph import OUT
from services.executor.engine.outcomes import Done
from services.executor.engine.state import (
    SUSPECT_CLAIMS,
    Failure,
    NodeState,
    NodeStatus,
    RunState,
    RunStatus,
    Usage,
)
from services.executor.engine.waits import Answer
from services.kit.errors import Violation

MAX_CLAIMS = 5
"""Claims without a result after which a node is given up: it kills its workers, the last ones without neighbours."""


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
    begin_scope(state, state.root)
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
    if node.status is not NodeStatus.READY or node.epoch != epoch or not is_for_workers(state, node):
        return Verdict.STALE
    node.status = NodeStatus.RUNNING
    node.epoch += 1
    node.claims += 1
    node.worker, node.claim_id = worker, claim_id
    node.due_in = node.spec.timeout_seconds
    touch(state, node)
    state.emit("node.started", node, attempt=node.failures + 1, worker=worker)
    state.status = RunStatus.RUNNING
    return Verdict.ACCEPTED


def refuse(state: RunState, node: NodeState, failure: Failure) -> Verdict:
    """End a ready node execution of which no job can be made."""
    if node.status is not NodeStatus.READY or not is_for_workers(state, node):
        return Verdict.STALE
    fail_for_good(state, node, failure)
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
        succeed(state, node, output, port or OUT)
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
            park(state, node, failure.message)
        else:
            fail_attempt(state, node, failure, retry_after)
        settle(state)
    return verdict


def release(state: RunState, node: NodeState, epoch: int, *, started: bool = False) -> Verdict:
    """Take back a job that its worker does not finish; it costs no attempt. `started`: the handler had begun."""
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        if started and node.spec.at_most_once:
            park(state, node, "Its worker was told to stop while it ran.")
        else:
            node.claims -= 1
            take_away(state, node)
        settle(state)
    return verdict


def lose_worker(state: RunState, node: NodeState, epoch: int) -> Verdict:
    """Take a job away from a worker whose lease has ended, or give it up when it has cost too many workers."""
    verdict = _reported(node, epoch)
    if verdict is Verdict.ACCEPTED:
        if node.spec.at_most_once:
            park(state, node, "Its worker was lost while it ran.")
        elif node.claims < MAX_CLAIMS:
            take_away(state, node)
        else:
            node.epoch += 1
            fail_for_good(state, node, _worker_lost(node))
        settle(state)
    return verdict


def _worker_lost(node: NodeState) -> Failure:
    key = node.spec.key
    message = (
        f"Node {key!r} was given to {MAX_CLAIMS} workers and each was gone before it had a result. The last "
        f"{MAX_CLAIMS - SUSPECT_CLAIMS} ran nothing else, so it is what kills them. "
        "Look for memory and crashes in the workers' logs."
    )
    return Failure("WORKER_LOST", message, key, item_path=node.path)


def time_out_node(state: RunState, node: NodeState, epoch: int) -> Verdict:
    """End an attempt that has not kept to the node's time-out, though its worker is alive, or it is a container."""
    if node.epoch != epoch or node.status is not NodeStatus.RUNNING:
        return Verdict.STALE
    if node.spec.at_most_once and not node.is_inline:
        park(state, node, f"It had no result within its time-out of {node.spec.timeout_seconds:g} s.")
    else:
        node.epoch += 1
        let_go(state, node)
        fail_attempt(state, node, node_timeout_failure(node), None)
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
            fail_attempt(state, node, outcome, None)
        else:
            succeed(state, node, outcome.output, outcome.port)
    elif node.is_inline and node.error is None:
        succeed(state, node, b"{}", OUT)
    else:
        node.status = NodeStatus.READY
        node.due_in = node.due_at = None
        queue(state, node)
        touch(state, node)
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
    succeed(state, node, accepted.output, accepted.port)
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
        queue(state, node)
        touch(state, node)
    elif answer.decision == "succeed":
        succeed(state, node, answer.data, OUT)
    else:
        node.failures += 1
        fail_for_good(state, node, node.error or waits.unknown(node, ""))
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
    end(state, RunStatus.CANCELLED)
    return Verdict.ACCEPTED


def time_out_run(state: RunState, limit: float) -> Verdict:
    """End a run that has used up its time; `limit` in seconds is for the message."""
    if state.is_terminal:
        return Verdict.STALE
    message = f"The run did not end within {limit:g} s. Raise `timeout_seconds` of the definition."
    end(state, RunStatus.FAILED, Failure("RUN_TIMEOUT", message))
    return Verdict.ACCEPTED


def settle_left_over(state: RunState) -> Verdict:
    """Go on with what a transition had left to do and whoever committed it did not do."""
    if state.is_terminal:
        return Verdict.STALE
    settle(state)
    if not state.events and not state.touched:
        # Nothing was left but a look at a container. A commit says that it has been taken.
        for node in state.open_nodes():
            if node.container is not None:
                touch(state, node)
    return Verdict.ACCEPTED


def _reported(node: NodeState, epoch: int) -> Verdict:
    if node.epoch != epoch or node.is_inline:
        return Verdict.STALE
    return Verdict.ACCEPTED if node.status is NodeStatus.RUNNING else Verdict.REPEATED
