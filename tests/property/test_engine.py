"""The engine against the reference interpreter: random graphs, results in random order, repeated, stale and lost."""

import copy
from uuid import uuid4

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.graph import Graph, Node, NodeKind, RetryPolicy
from services.executor.engine.state import NODE_TERMINAL, Failure, NodeStatus, RunState, RunStatus, Usage
from tests.property.reference_interpreter import Behaviour, Expected, Spec, interpret

KINDS = {
    "work": NodeKind(inline=False, queue="default", default_timeout=60),
    "condition": NodeKind(inline=True, queue="", default_timeout=60, expression_fields=("when",)),
    "transform": NodeKind(inline=True, queue="", default_timeout=60),
}
NO_USAGE = Usage()


class Case:
    """A random workflow, and what each of its nodes does."""

    def __init__(self, specs: list[Spec], types: list[str], edges: list[tuple[str, str, str]]) -> None:
        self.specs = {spec.key: spec for spec in specs}
        self.types = types
        self.edges = edges
        self.expected = interpret(specs, edges)
        self.graph = Graph([self._node(spec, kind) for spec, kind in zip(specs, types, strict=True)], edges, KINDS)

    def _node(self, spec: Spec, kind: str) -> Node:
        config = {"when": str(spec.behaviour.port == "true").lower()} if kind == "condition" else {}
        return Node(
            key=spec.key,
            type=kind,
            config=orjson.dumps(config),
            retry=RetryPolicy(max_attempts=spec.max_attempts),
            timeout=None,
            continue_on_error=spec.continue_on_error,
            join_any=False,
        )

    def new_state(self) -> RunState:
        return RunState(
            run_id=uuid4(),
            project_id=str(uuid4()),
            workflow_id=str(uuid4()),
            version_id=str(uuid4()),
            version_number=1,
            graph=self.graph,
            input=b"{}",
        )

    def __repr__(self) -> str:
        return f"Case({list(self.specs.values())}, {self.types}, {self.edges})"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 12))
    specs, types = [], []
    for position in range(count):
        kind = draw(st.sampled_from(["work", "work", "work", "condition", "transform"]))
        fails = kind == "work"
        port = draw(st.sampled_from(["true", "false"])) if kind == "condition" else "out"
        behaviour = Behaviour(draw(st.sampled_from([0, 0, 0, 1, 2, -1])) if fails else 0, port)
        specs.append(Spec(f"n{position}", draw(st.integers(1, 3)), draw(st.booleans()), behaviour))
        types.append(kind)
    edges = []
    for target in range(1, count):
        for source in draw(st.sets(st.integers(0, target - 1), max_size=3)):
            ports = ["true", "false"] if types[source] == "condition" else ["out", "out", "error"]
            edges.append((f"n{source}", f"n{target}", draw(st.sampled_from(ports))))
    return Case(specs, types, edges)


def restored(state: RunState) -> RunState:
    """The state as another executor would read it from the rows."""
    fresh = copy.copy(state)
    fresh.nodes = [copy.copy(node) for node in state.nodes]
    fresh.inline, fresh.ready, fresh.events, fresh.touched = [], [], [], {}
    fresh.__post_init__()
    fresh.restore()
    return fresh


def act(case: Case, state: RunState, position: int, choice: str) -> None:
    """Let something happen to an open node."""
    node = state.nodes[position]
    spec = case.specs[state.graph.nodes[position].key]
    if node.status is NodeStatus.READY:
        assert decide.claim(state, position, worker="w", claim_id="c") is Verdict.ACCEPTED
        assert decide.claim(state, position, worker="w", claim_id="c") is Verdict.REPEATED
        assert decide.claim(state, position, worker="other", claim_id="d") is Verdict.STALE
    elif node.status is NodeStatus.WAITING:
        assert decide.wake(state, position, state.nodes[position].epoch) is Verdict.ACCEPTED
    elif choice == "lose" and node.claims < decide.MAX_CLAIMS - 1:
        epoch = node.epoch
        assert decide.lose_worker(state, position, epoch) is Verdict.ACCEPTED
        late = decide.report_success(
            state, position, epoch, output=b'"zombie"', port="out", usage=NO_USAGE, shown_input=None
        )
        assert late is Verdict.STALE
    elif choice == "release":
        assert decide.release(state, position, node.epoch) is Verdict.ACCEPTED
    else:
        report(case, state, position, spec)


def report(case: Case, state: RunState, position: int, spec: Spec) -> None:
    node = state.nodes[position]
    epoch = node.epoch
    fails = spec.behaviour.failures == -1 or node.failures < spec.behaviour.failures
    for expected in (Verdict.ACCEPTED, Verdict.REPEATED):
        if fails:
            failure = Failure("BROKEN", "It broke.", spec.key, retryable=True)
            verdict = decide.report_failure(state, position, epoch, failure)
        else:
            verdict = decide.report_success(
                state, position, epoch, output=b"1", port=spec.behaviour.port, usage=NO_USAGE, shown_input=None
            )
        # A copy of the report changes nothing, unless the run has ended and taken the claims away.
        assert verdict is expected or state.is_terminal


def check(state: RunState, expected: Expected) -> None:
    statuses = {node.key: state.nodes[position].status.name.lower() for position, node in enumerate(state.graph.nodes)}
    assert all(node.status in NODE_TERMINAL for node in state.nodes)
    if not expected.fatal:
        assert state.status is RunStatus.SUCCEEDED
        assert statuses == expected.statuses
    else:
        assert state.status is RunStatus.FAILED
        assert state.error is not None
        assert state.error.node_key in expected.fatal
        decided = {key: status for key, status in statuses.items() if status != "cancelled"}
        assert decided.items() <= expected.statuses.items()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(case=cases(), data=st.data())
def test_a_run_ends_as_the_reference_interpreter_says(case: Case, data: st.DataObject) -> None:
    state = case.new_state()
    decide.start(state)
    sequence = 0
    for _ in range(600):
        sequences = [event["sequence"] for event in state.events]
        assert sequences == list(range(sequence + 1, sequence + 1 + len(sequences)))
        sequence += len(sequences)
        state.clear_changes()
        if state.is_terminal:
            break
        open_nodes = [i for i, node in enumerate(state.nodes) if node.status in (2, 3, 4)]
        assert open_nodes, "a run that has not ended has something that can go on"
        assert state.status is (
            RunStatus.RUNNING if any(state.nodes[i].status in (2, 3) for i in open_nodes) else RunStatus.WAITING
        )
        if data.draw(st.booleans(), label="another executor takes over"):
            before = (state.waiting_edges, state.live_edges, state.open_nodes, state.active_nodes)
            state = restored(state)
            assert (state.waiting_edges, state.live_edges, state.open_nodes, state.active_nodes) == before
        position = data.draw(st.sampled_from(open_nodes), label="node")
        act(case, state, position, data.draw(st.sampled_from(["report", "report", "lose", "release"]), label="what"))
    else:
        raise AssertionError("the run did not end")
    check(state, case.expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), data=st.data())
def test_a_cancelled_run_is_over_at_once_and_hears_no_reports(case: Case, data: st.DataObject) -> None:
    state = case.new_state()
    decide.start(state)
    if state.is_terminal:
        return
    running = [i for i, node in enumerate(state.nodes) if node.status is NodeStatus.READY]
    for position in running:
        decide.claim(state, position, worker="w", claim_id="c")
    epochs = {position: state.nodes[position].epoch for position in running}
    assert decide.cancel(state) is Verdict.ACCEPTED
    assert decide.cancel(state) is Verdict.REPEATED
    assert state.status is RunStatus.CANCELLED
    assert all(node.status in NODE_TERMINAL for node in state.nodes)
    for position, epoch in epochs.items():
        late = decide.report_success(state, position, epoch, output=b"1", port="out", usage=NO_USAGE, shown_input=None)
        assert late is Verdict.STALE
