"""The engine against the reference interpreter: random graphs, results in random order, repeated, stale and lost."""

import os
import re
from collections.abc import Container
from random import Random
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.executor.engine import advance, decide, rerun, waits
from services.executor.engine.decide import Verdict
from services.executor.engine.restore import restore
from services.executor.engine.state import (
    NODE_TERMINAL,
    Failure,
    NodeRow,
    NodeState,
    NodeStatus,
    RunState,
    RunStatus,
    Usage,
)
from services.executor.engine.waits import Answer
from tests.property.engine_cases import Case, cases
from tests.property.reference_interpreter import Expected

NO_USAGE = Usage()
EXAMPLES = int(os.environ.get("HEADRACE_TEST_WORKFLOWS", "250"))
"""Random workflows; a thorough run takes 5,000."""
Rows = dict[str, dict[str, NodeRow]]


def keep(state: RunState, rows: Rows) -> None:
    """Write what has changed to the rows, as a commit does."""
    for node in state.touched:
        row = NodeRow(**{name: getattr(node, name) for name in NodeRow.__slots__})
        rows.setdefault(node.path, {})[node.spec.key] = row
    state.clear_changes()


def restored(case: Case, state: RunState, rows: Rows) -> RunState:
    """The state as another executor would read it from the rows."""
    fresh = case.new_state()
    for name in ("run_id", "recorded", "version", "status", "sequence", "output", "error", "usage"):
        setattr(fresh, name, getattr(state, name))
    restore(fresh, rows)
    return fresh


def summary(state: RunState) -> Any:
    """What must be the same in a state and in its copy made from rows."""
    scopes = [state.root, *sorted(state.scopes.values(), key=lambda scope: scope.path)]
    return (
        [(s.path, s.waiting_edges, s.live_edges, s.open_nodes, dict(s.names), s.calls) for s in scopes],
        [(node.path, node.spec.key, node.status, node.epoch) for scope in scopes for node in scope.nodes],
        (state.active_nodes, state.executions, state.calls, state.output_bytes),
        # A container is looked at once more in the copy, which changes nothing.
        {(node.path, node.spec.key) for node in state.inline if node.container is None},
    )


def number_in(path: str) -> int:
    """Number of the innermost item or iteration; 0 where there is none."""
    found = re.search(r"\[(\d+)\]$", path)
    return int(found.group(1)) if found else 0


def act(case: Case, state: RunState, node: NodeState, choice: str) -> None:
    """Let something happen to an open node."""
    if node.status is NodeStatus.READY:
        ready = node.epoch
        assert decide.claim(state, node, ready, worker="w", claim_id="c") is Verdict.ACCEPTED
        assert decide.claim(state, node, ready, worker="w", claim_id="c") is Verdict.REPEATED
        assert decide.claim(state, node, ready, worker="other", claim_id="d") is Verdict.STALE
    elif waits.waits_for_answer(node) and case.by_key[node.spec.key].behaviour.port == "out":
        answer = Answer("", orjson.dumps([node.path, node.spec.key]), None)
        assert decide.resume(state, node, answer) is Verdict.ACCEPTED
        assert decide.resume(state, node, answer) is Verdict.STALE
    elif node.status is NodeStatus.WAITING:
        assert decide.wake(state, node, node.epoch) is Verdict.ACCEPTED
    elif choice == "lose" and node.claims < decide.MAX_CLAIMS - 1:
        epoch = node.epoch
        assert decide.lose_worker(state, node, epoch) is Verdict.ACCEPTED
        late = decide.report_success(
            state, node, epoch, output=b'"zombie"', port="out", usage=NO_USAGE, shown_input=None
        )
        assert late is Verdict.STALE
    elif choice == "release":
        assert decide.release(state, node, node.epoch) is Verdict.ACCEPTED
    else:
        report(case, state, node)


def report(case: Case, state: RunState, node: NodeState) -> None:
    behaviour = case.by_key[node.spec.key].behaviour
    epoch, scope = node.epoch, node.scope
    happens = behaviour.only_in is None or number_in(node.path) in behaviour.only_in
    fails = happens and (behaviour.failures == -1 or node.failures < behaviour.failures)
    for expected in (Verdict.ACCEPTED, Verdict.REPEATED):
        if fails:
            failure = Failure("BROKEN", "It broke.", node.spec.key, retryable=True)
            verdict = decide.report_failure(state, node, epoch, failure)
        else:
            output = orjson.dumps([node.path, node.spec.key])
            verdict = decide.report_success(
                state, node, epoch, output=output, port=behaviour.port, usage=NO_USAGE, shown_input=None
            )
        # A copy of the report changes nothing, unless the scope has ended and taken the claims away.
        is_over = state.is_terminal or (node.path and state.scopes.get(node.path) is not scope)
        assert verdict is expected or is_over
        if is_over:
            return


def check(state: RunState, rows: Rows, expected: Expected, recorded: Container[rerun.Place] = ()) -> None:
    assert all(row.status in NODE_TERMINAL for found in rows.values() for row in found.values())
    if expected.fatal:
        assert state.status is RunStatus.FAILED
        assert state.error is not None
        assert state.error.node_key in expected.fatal
        decided = {key: status for key, status in statuses(rows[""]).items() if status != "cancelled"}
        assert decided.items() <= expected.statuses.items()
        return
    assert state.status is RunStatus.SUCCEEDED
    assert state.output is not None
    assert without_errors(orjson.loads(state.output)) == without_errors(expected.result)
    check_scope(rows, "", expected, recorded)


def check_scope(rows: Rows, path: str, expected: Expected, recorded: Container[rerun.Place]) -> None:
    assert statuses(rows[path]) == expected.statuses
    for inner_path, inner in expected.inside.items():
        holder = inner_path.removeprefix(f"{path}/" if path else "").partition("[")[0]
        if expected.statuses[holder] == "succeeded" and not inner.fatal and (path, holder) not in recorded:
            check_scope(rows, inner_path, inner, recorded)


def statuses(found: dict[str, NodeRow]) -> dict[str, str]:
    return {key: row.status.name.lower() for key, row in found.items()}


def without_errors(value: Any) -> Any:
    """An output with the errors of `collect` counted: which message they carry is not the model's business."""
    if isinstance(value, dict):
        counted = {"errors": len(value["errors"])} if isinstance(value.get("errors"), list) else {}
        return {key: without_errors(item) for key, item in value.items()} | counted
    return [without_errors(item) for item in value] if isinstance(value, list) else value


def run_to_end(case: Case, state: RunState, rows: Rows, chance: Random) -> RunState:
    """Let things happen in random order, with executors taking over from each other, until the run has ended."""
    decide.start(state)
    sequence = 0
    for _ in range(3000):
        sequences = [event["sequence"] for event in state.events]
        assert sequences == list(range(sequence + 1, sequence + 1 + len(sequences)))
        sequence += len(sequences)
        keep(state, rows)
        if state.is_terminal:
            return state
        if chance.random() < 0.3:  # another executor takes over
            before = summary(state)
            state = restored(case, state, rows)
            assert summary(state) == before
        if state.inline:
            advance.settle(state)
            continue
        open_nodes = [
            node
            for node in state.open_nodes()
            if node.container is None and node.status in (NodeStatus.READY, NodeStatus.RUNNING, NodeStatus.WAITING)
        ]
        assert open_nodes, "a run that has not ended has something that can go on"
        is_active = any(node.status is not NodeStatus.WAITING for node in open_nodes)
        assert state.status is (RunStatus.RUNNING if is_active else RunStatus.WAITING)
        act(case, state, chance.choice(open_nodes), chance.choice(["report", "report", "lose", "release"]))
    raise AssertionError("the run did not end")


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), seed=st.integers(0, 2**32))
def test_a_run_ends_as_the_reference_interpreter_says(case: Case, seed: int) -> None:
    rows = Rows()
    state = run_to_end(case, case.new_state(), rows, Random(seed))  # noqa: S311 - nothing secret
    check(state, rows, case.expected)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), seed=st.integers(0, 2**32))
def test_going_again_over_a_run_comes_to_the_same_end(case: Case, seed: int) -> None:
    chance, rows, rows_again = Random(seed), Rows(), Rows()  # noqa: S311 - nothing secret
    run_to_end(case, case.new_state(), rows, chance)
    places = [(path, key) for path, found in rows.items() for key in found]
    start = chance.choice([None, *places])
    links = {name: linked.graph for name, linked in case.links.items()}
    plan = rerun.plan(rerun.Before(case.graph, links, rows), case.graph, links, rerun.Again(start))
    assert start not in plan.recorded
    state = case.new_state()
    state.recorded = plan.recorded

    state = run_to_end(case, state, rows_again, chance)

    check(state, rows_again, case.expected, plan.recorded)
    for (path, key), recorded in plan.recorded.items():
        row = rows_again.get(path, {}).get(key)
        if row is not None and row.status is not NodeStatus.CANCELLED:
            assert (row.epoch, row.output) == (0, recorded.output), "a recorded result is taken, and nothing runs"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_a_cancelled_run_is_over_at_once_and_hears_no_reports(case: Case) -> None:
    state, rows = case.new_state(), Rows()
    decide.start(state)
    while state.inline:
        advance.settle(state)
    if state.is_terminal:
        return
    running = [node for node in state.open_nodes() if node.status is NodeStatus.READY]
    for node in running:
        decide.claim(state, node, 0, worker="w", claim_id="c")
    epochs = {node: node.epoch for node in running}
    assert decide.cancel(state) is Verdict.ACCEPTED
    assert decide.cancel(state) is Verdict.REPEATED
    assert state.status is RunStatus.CANCELLED
    keep(state, rows)
    assert all(row.status in NODE_TERMINAL for found in rows.values() for row in found.values())
    for node, epoch in epochs.items():
        late = decide.report_success(state, node, epoch, output=b"1", port="out", usage=NO_USAGE, shown_input=None)
        assert late is Verdict.STALE
