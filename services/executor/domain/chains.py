"""Chains: what a worker may begin, and go on with by itself, before anybody has committed anything of it."""

from dataclasses import dataclass

from services.executor.engine import advance
from services.executor.engine.containers import idempotency_key
from services.executor.engine.state import NODE_TERMINAL, NodeState, RunState, Scope
from services.executor.engine.variables import variables_json
from services.kit.expressions import ExpressionError
from services.kit.templates import TemplateErrors

MAX_CHAIN_BYTES = 128 * 1024
"""Configs and variables of the chain behind one job."""
MAX_CHAIN_SECONDS = 900.0
"""Time-outs of a job and its chain together, as long as which the job's grant lives."""


@dataclass(frozen=True, slots=True)
class ChainedJob:
    """A node execution that a worker may go on with by itself; what it does not say is as in the job before it."""

    node_key: str
    type: str
    config: bytes
    variables: bytes
    timeout_seconds: float
    idempotency_key: str
    claim_id: str


def may_begin_early(node: NodeState) -> bool:
    """Whether a claimed node execution may be run before that is committed: not what may have killed a worker."""
    return node.spec.may_begin_early and node.claims == 1


def chain_behind(state: RunState, node: NodeState) -> tuple[ChainedJob, ...]:
    """What follows a claimed node execution, as far as its worker may go on with it before anybody knows.

    Node executions that change nothing outside, each with the one before it as its only condition, and whose variables
    are known but for what those before it come to. The first of them, too: a result of what acts on the outside is
    handed in before anything else can take its worker down.
    """
    if not may_begin_early(node):
        return ()
    scope, chain = node.scope, list[ChainedJob]()
    before, claim_id = {node.spec.key}, node.claim_id
    seconds, free_bytes = node.spec.timeout_seconds, MAX_CHAIN_BYTES
    for position in scope.graph.reads_behind(node.position):
        after = scope.nodes[position]
        spec = after.spec
        seconds += spec.timeout_seconds
        if after.queue != node.queue or seconds > MAX_CHAIN_SECONDS or not advance.is_for_workers(state, after):
            break
        try:
            references = spec.references
        except (ExpressionError, TemplateErrors):
            break  # it is refused when its turn comes
        # What it reads of others would be another value later.
        if references.all_nodes or any(_is_open(scope, key) for key in references.nodes - before):
            break
        variables = variables_json(state, scope, references)
        free_bytes -= len(spec.config) + len(variables)
        if free_bytes < 0:
            break
        claim_id = claim_behind(claim_id)
        chain.append(
            ChainedJob(
                spec.key,
                spec.type,
                spec.config,
                variables,
                spec.timeout_seconds,
                idempotency_key(state.run_text, spec.key, node.path),
                claim_id,
            )
        )
        before.add(spec.key)
    return tuple(chain)


def claim_behind(claim_id: str) -> str:
    """What the report of a claim claims under.

    The same when the report is repeated, and another for another claim: what a worker has gone on with rests on the
    result of one claim, and belongs to no other.
    """
    first, _, before = claim_id.partition(">")
    return f"{first}>{int(before or 0) + 1}"


def _is_open(scope: Scope, key: str) -> bool:
    node = scope.node(key)
    return node is not None and node.status not in NODE_TERMINAL
