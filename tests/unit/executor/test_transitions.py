"""Transitions that the random graphs of the property tests do not reach."""

from typing import Any
from uuid import uuid4

import orjson

from services.executor.domain.jobs import _claim_successors
from services.executor.engine import advance, decide
from services.executor.engine.decide import Verdict
from services.executor.engine.graph import Graph, Node, NodeKind, RetryPolicy
from services.executor.engine.state import Failure, Limits, NodeStatus, RunState, RunStatus, Usage

KINDS = {
    "work": NodeKind(inline=False, queue="default", default_timeout=60),
    "transform": NodeKind(inline=True, queue="", default_timeout=60),
    "delay": NodeKind(inline=True, queue="", default_timeout=60),
    "map": NodeKind(inline=True, queue="", default_timeout=60, body_fields=("body",)),
}
FAILS = {"values": {"a": "{{ input.missing }}"}}
RETRY_ALL = RetryPolicy(max_attempts=2, initial_interval=1, when="true")


def node(key: str, type: str, config: dict[str, Any] | None = None, retry: RetryPolicy | None = None) -> Node:
    return Node(
        key=key,
        type=type,
        config=orjson.dumps(config or {}),
        retry=retry or RetryPolicy(),
        timeout=None,
        continue_on_error=False,
        join_any=False,
    )


def started(*nodes: Node, limits: Limits | None = None) -> RunState:
    state = RunState(
        run_id=uuid4(),
        project_id=str(uuid4()),
        workflow_id=str(uuid4()),
        version_id=str(uuid4()),
        version_number=1,
        graph=Graph(list(nodes), [], KINDS),
        input=b"{}",
        limits=limits or Limits(),
    )
    decide.start(state)
    return state


def test_an_inline_node_that_waited_for_another_attempt_is_evaluated_again() -> None:
    state = started(node("t", "transform", {"values": {"a": "{{ input.missing }}"}}, RETRY_ALL))
    assert state.root.nodes[0].status is NodeStatus.WAITING

    assert decide.wake(state, state.root.nodes[0], state.root.nodes[0].epoch) is Verdict.ACCEPTED

    assert state.root.nodes[0].status is NodeStatus.FAILED
    assert state.root.nodes[0].failures == 2
    assert state.status is RunStatus.FAILED


def test_a_delay_that_is_over_succeeds() -> None:
    state = started(node("d", "delay", {"seconds": 5}, RETRY_ALL))
    assert state.status is RunStatus.WAITING
    assert decide.wake(state, state.root.nodes[0], 0) is Verdict.ACCEPTED
    assert state.status is RunStatus.SUCCEEDED


def test_a_timer_of_an_earlier_attempt_does_not_cut_the_wait_for_the_next_short() -> None:
    state = started(node("w", "work", retry=RetryPolicy(max_attempts=3)))
    for claim_id in ("first", "second"):
        decide.claim(state, state.root.nodes[0], state.root.nodes[0].epoch, worker="w", claim_id=claim_id)
        failure = Failure("BUSY", "", retryable=True)
        decide.report_failure(state, state.root.nodes[0], state.root.nodes[0].epoch, failure)
        if claim_id == "first":
            first_timer = state.root.nodes[0].epoch
            assert decide.wake(state, state.root.nodes[0], first_timer) is Verdict.ACCEPTED
    assert decide.wake(state, state.root.nodes[0], first_timer) is Verdict.STALE
    assert state.root.nodes[0].status is NodeStatus.WAITING


def test_an_output_that_brings_the_run_over_its_limit_fails_its_node_and_says_how_to_go_on() -> None:
    state = started(node("a", "work"), node("b", "work"), limits=Limits(output_bytes=10))
    for name, output in (("a", b"123456"), ("b", b"12345")):
        found = state.find("", name)
        assert found is not None
        decide.claim(state, found, found.epoch, worker="w", claim_id="c")
        verdict = decide.report_success(
            state, found, found.epoch, output=output, port="", usage=Usage(), shown_input=None
        )
        assert verdict is Verdict.ACCEPTED
    assert state.status is RunStatus.FAILED
    assert state.error is not None
    assert (state.error.reason, state.error.node_key) == ("RUN_OUTPUTS_TOO_LARGE", "b")
    for part in ("5 bytes", "11 bytes", "limit is 10", "HEADRACE_EXECUTOR_MAX_RUN_OUTPUT_BYTES"):
        assert part in state.error.message


def test_a_run_with_too_many_events_runs_no_more_nodes() -> None:
    state = started(node("a", "work"), node("t", "delay", {"seconds": 1}), limits=Limits(events=2))
    waiting, worker = state.find("", "t"), state.find("", "a")
    assert waiting is not None
    assert worker is not None
    assert waiting.status is NodeStatus.WAITING
    failure = advance.exhausted(state, worker)
    assert failure is not None
    assert decide.refuse(state, worker, failure) is Verdict.ACCEPTED
    assert (state.status, failure.reason) == (RunStatus.FAILED, "TOO_MANY_EVENTS")
    assert "2 events" in failure.message


def test_a_claim_that_was_under_way_while_the_node_was_run_gets_nothing() -> None:
    state = started(node("w", "work", retry=RetryPolicy(max_attempts=3)))
    (work,) = state.root.nodes
    decide.claim(state, work, 0, worker="w", claim_id="answered at another executor")
    decide.report_failure(state, work, 1, Failure("BUSY", "", retryable=True))
    decide.wake(state, work, 1)

    late = decide.claim(state, work, 0, worker="w", claim_id="answered at another executor")

    assert late is Verdict.STALE
    assert work.status is NodeStatus.READY


def test_a_look_at_containers_that_all_wait_for_workers_leaves_nothing_to_do_however_many_they_are() -> None:
    body = {"nodes": [{"key": "w", "type": "work"}]}
    count = advance.INLINE_BUDGET + 1
    state = started(*(node(f"m{place}", "map", {"items": [1], "body": body}) for place in range(count)))
    while state.inline:
        advance.settle(state)
    state.clear_changes()
    state.inline.extend(state.root.nodes)  # as they are in a state that was read from its rows

    advance.settle(state)

    assert not state.touched
    assert not state.inline


def test_no_job_is_made_of_a_node_whose_item_failed_as_it_became_ready() -> None:
    body = {"nodes": [{"key": "w", "type": "work"}, {"key": "t", "type": "transform", "config": FAILS}]}
    state = started(node("m", "map", {"items": [1], "body": body, "on_item_error": "continue"}), node("other", "work"))

    taken = _claim_successors(state, 0, "worker", claim_id="c", free_slots=9, queues=frozenset({"default"}))

    assert [found.spec.key for found in taken] == ["other"]
