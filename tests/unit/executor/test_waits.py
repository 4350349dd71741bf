"""Waiting for people and events, and for a person's word where nobody knows what an attempt has done."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import orjson
import pytest

from services.executor.domain.model import NodeRef
from services.executor.domain.resume_tokens import ResumeTokens, Wait
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.graph import Graph, graph_from_body
from services.executor.engine.restore import restore
from services.executor.engine.state import Failure, NodeRow, NodeState, NodeStatus, RunState, RunStatus, Usage
from services.executor.engine.waits import Answer, Person, may_answer
from services.executor.handlers.registry import catalogue
from services.executor.transport.convert import node_kind

KINDS = {name: node_kind(node_type) for name, node_type in catalogue().items()}
EDITOR = Person("8f7e", "eve@example.com", "editor")


def started(nodes: list[dict[str, Any]], edges: list[tuple[str, str, str]] = [], run_input: Any = None) -> RunState:  # noqa: B006 - not changed
    state = new_state(graph(nodes, edges), run_input)
    decide.start(state)
    return state


def graph(nodes: list[dict[str, Any]], edges: list[tuple[str, str, str]]) -> Graph:
    ends = [{"source": source, "source_port": port, "target": target} for source, port, target in edges]
    return graph_from_body({"nodes": nodes, "edges": ends}, KINDS)


def new_state(of: Graph, run_input: Any = None) -> RunState:
    return RunState(
        run_id=uuid4(),
        project_id=str(uuid4()),
        workflow_id=str(uuid4()),
        version_id=str(uuid4()),
        version_number=1,
        graph=of,
        input=orjson.dumps(run_input),
    )


def approval(key: str = "ask", **config: Any) -> dict[str, Any]:
    return {"key": key, "type": "approval", "config": {"title": "May I?", **config}}


def answer(decision: str = "", data: Any = None, by: Person | None = EDITOR) -> Answer:
    return Answer(decision, orjson.dumps(data), by)


def only(state: RunState, key: str, path: str = "") -> NodeState:
    node = state.find(path, key)
    assert node is not None
    return node


def test_the_first_answer_is_the_output_and_later_ones_are_stale() -> None:
    state = started([approval(title="Pay {{ input.amount }}?")], run_input={"amount": 5})
    ask = only(state, "ask")
    assert (state.status, ask.status, ask.due_in) == (RunStatus.WAITING, NodeStatus.WAITING, None)
    assert orjson.loads(ask.input or b"") == {"title": "Pay 5?"}

    assert decide.resume(state, ask, answer("approve", {"note": 1})) is Verdict.ACCEPTED
    assert decide.resume(state, ask, answer("reject")) is Verdict.STALE

    assert state.status is RunStatus.SUCCEEDED
    assert orjson.loads(state.output or b"") == {"ask": {"decision": "approve", "data": {"note": 1}, "by": "8f7e"}}


def test_an_answer_that_does_not_fit_is_refused_with_all_reasons_and_changes_nothing() -> None:
    form = {"type": "object", "required": ["amount"], "properties": {"note": {"type": "string"}}}
    state = started([approval(form=form, choices=["yes", "no"])])
    state.clear_changes()

    found = decide.resume(state, only(state, "ask"), answer("approve", {"note": 1}))

    assert isinstance(found, tuple)
    assert [(violation.code, violation.path) for violation in found] == [
        ("INVALID_VALUE", "decision"),
        ("INVALID_DATA", "data"),
        ("INVALID_DATA", "data.note"),
    ]
    assert (state.events, list(state.touched), only(state, "ask").status) == ([], [], NodeStatus.WAITING)


def test_an_event_is_its_payload_and_has_no_decision() -> None:
    state = started([{"key": "e", "type": "wait_for_event", "config": {"schema": {"type": "object"}}}])
    assert isinstance(decide.resume(state, only(state, "e"), answer("approve", {})), tuple)
    assert isinstance(decide.resume(state, only(state, "e"), answer("", [])), tuple)
    assert decide.resume(state, only(state, "e"), answer("", {"a": 1}, None)) is Verdict.ACCEPTED
    assert orjson.loads(state.output or b"") == {"e": {"a": 1}}


@pytest.mark.parametrize(
    "config",
    [
        {"form": {"type": "nonsense"}},
        {"form": {"$ref": "http://127.0.0.1/schema"}},
        {"approvers": "{{ input }}"},
        {"choices": []},
        {"timeout_seconds": "{{ input }}"},
        {"title": "{{ nodes.nobody.output }}"},
    ],
)
def test_a_config_that_cannot_be_asked_fails_the_node(config: dict[str, Any]) -> None:
    state = started([approval(**config)], run_input="x")
    assert state.status is RunStatus.FAILED
    assert state.error is not None
    assert "'ask'" in state.error.message


def test_time_that_is_over_takes_the_timeout_port_or_fails_the_node() -> None:
    state = started(
        [approval(timeout_seconds=5), {"key": "late", "type": "output", "config": {"value": "late"}}],
        [("ask", "timeout", "late")],
    )
    ask = only(state, "ask")
    assert ask.due_in == 5
    assert decide.wake(state, ask, ask.epoch) is Verdict.ACCEPTED
    assert decide.resume(state, ask, answer("approve")) is Verdict.STALE
    assert (state.status, state.output) == (RunStatus.SUCCEEDED, b'"late"')

    alone = started([approval(timeout_seconds=5)])
    decide.wake(alone, only(alone, "ask"), only(alone, "ask").epoch)
    assert alone.error is not None
    assert (alone.error.reason, "5" in alone.error.message) == ("WAIT_TIMEOUT", True)


def test_a_wait_that_is_tried_again_has_another_epoch_and_an_old_timer_means_nothing() -> None:
    retry = {"max_attempts": 2, "initial_interval": 1, "when": "true"}
    state = started([approval(timeout_seconds=5) | {"retry": retry}])
    ask = only(state, "ask")
    first = ask.epoch
    decide.wake(state, ask, first)
    assert decide.resume(state, ask, answer("approve")) is Verdict.STALE, "it waits for another attempt"
    decide.wake(state, ask, first)
    assert (ask.status, ask.error, ask.epoch) == (NodeStatus.WAITING, None, first + 1)
    assert decide.wake(state, ask, first) is Verdict.STALE
    assert decide.resume(state, ask, answer("approve")) is Verdict.ACCEPTED


def test_waits_inside_a_map_are_answered_one_by_one() -> None:
    body = {"nodes": [approval(title="{{ item }}?")], "edges": []}
    state = started([{"key": "each", "type": "map", "config": {"items": ["a", "b"], "body": body}}])
    assert state.status is RunStatus.RUNNING or state.status is RunStatus.WAITING
    for number, decision in ((1, "reject"), (0, "approve")):
        assert decide.resume(state, only(state, "ask", f"each[{number}]"), answer(decision)) is Verdict.ACCEPTED
    results = orjson.loads(state.output or b"")["each"]["results"]
    assert [result["ask"]["decision"] for result in results] == ["approve", "reject"]


def test_a_wait_restored_from_its_rows_is_answered_as_before() -> None:
    state = started([approval(approvers=["admin", "Eve@example.com"])])
    rows = {"": {"ask": NodeRow(**{name: getattr(only(state, "ask"), name) for name in NodeRow.__slots__})}}
    fresh = new_state(state.graph)
    restore(fresh, rows)
    assert decide.resume(fresh, only(fresh, "ask"), answer("approve")) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("approvers", "may"),
    [
        ([], True),
        (["8F7E"], True),
        (["eve@example.com"], True),
        (["editor"], True),
        (["admin", "bob@example.com"], False),
    ],
)
def test_approvers_are_ids_addresses_and_roles(approvers: list[str], may: bool) -> None:
    state = started([approval(approvers=approvers)])
    assert may_answer(only(state, "ask"), EDITOR) is may


def effect(**more: Any) -> dict[str, Any]:
    retry = {"max_attempts": 5, "when": "true"}
    return {"key": "pay", "type": "http_request", "config": {}, "delivery": "at_most_once", "retry": retry, **more}


def lost(state: RunState, node: NodeState) -> Verdict:
    return decide.lose_worker(state, node, node.epoch)


def timed_out(state: RunState, node: NodeState) -> Verdict:
    return decide.time_out_node(state, node, node.epoch)


def cut_off(state: RunState, node: NodeState) -> Verdict:
    failure = Failure("TIMEOUT", "Too slow.", node.spec.key, retryable=True)
    return decide.report_failure(state, node, node.epoch, failure, outcome_unknown=True)


def drained(state: RunState, node: NodeState) -> Verdict:
    return decide.release(state, node, node.epoch, started=True)


@pytest.mark.parametrize("ends", [lost, timed_out, cut_off, drained])
def test_an_outcome_that_nobody_knows_waits_for_a_person_where_the_node_is_delivered_at_most_once(ends: Any) -> None:
    state = started([effect()])
    pay = only(state, "pay")
    decide.claim(state, pay, pay.epoch, worker="w", claim_id="c")
    epoch = pay.epoch

    assert ends(state, pay) is Verdict.ACCEPTED

    assert (pay.status, state.status) == (NodeStatus.WAITING, RunStatus.WAITING)
    assert (pay.due_in, pay.due_at, state.events[-1]["type"]) == (None, None, "node.unknown")
    assert pay.error is not None
    assert pay.error.reason == "OUTCOME_UNKNOWN"
    late = decide.report_success(state, pay, epoch, output=b"1", port="", usage=Usage(), shown_input=None)
    assert late is Verdict.STALE
    assert isinstance(decide.resume(state, pay, answer("approve")), tuple)


def parked() -> tuple[RunState, NodeState]:
    state = started([effect()])
    pay = only(state, "pay")
    decide.claim(state, pay, pay.epoch, worker="w", claim_id="c")
    lost(state, pay)
    state.clear_changes()
    return state, pay


def test_a_person_says_that_it_did_succeed_or_fail_or_has_it_tried_again() -> None:
    state, pay = parked()
    assert decide.resume(state, pay, answer("succeed", {"id": 7})) is Verdict.ACCEPTED
    assert (state.status, state.output) == (RunStatus.SUCCEEDED, b'{"pay":{"id":7}}')

    state, pay = parked()
    assert decide.resume(state, pay, answer("fail")) is Verdict.ACCEPTED
    assert state.error is not None
    assert (state.status, state.error.reason) == (RunStatus.FAILED, "OUTCOME_UNKNOWN")

    state, pay = parked()
    assert decide.resume(state, pay, answer("retry")) is Verdict.ACCEPTED
    assert (state.status, pay.status, state.ready) == (RunStatus.RUNNING, NodeStatus.READY, [pay])
    assert decide.resume(state, pay, answer("retry")) is Verdict.STALE
    assert decide.claim(state, pay, pay.epoch, worker="w", claim_id="d") is Verdict.ACCEPTED
    assert lost(state, pay) is Verdict.ACCEPTED
    assert pay.status is NodeStatus.WAITING


def test_a_failure_that_the_handler_reports_is_known_and_follows_the_policy() -> None:
    state = started([effect()])
    pay = only(state, "pay")
    decide.claim(state, pay, pay.epoch, worker="w", claim_id="c")
    failure = Failure("OUTCOME_UNKNOWN", "Says the handler.", "pay", retryable=True)
    decide.report_failure(state, pay, pay.epoch, failure)
    assert state.events[-1]["type"] == "node.retrying"
    assert decide.resume(state, pay, answer("succeed")) is Verdict.STALE, "whatever a handler calls its failure"


def test_a_job_handed_back_before_it_began_goes_to_another_worker() -> None:
    state = started([effect()])
    pay = only(state, "pay")
    decide.claim(state, pay, pay.epoch, worker="w", claim_id="c")
    decide.release(state, pay, pay.epoch)
    assert pay.status is NodeStatus.READY


def lose(state: RunState, node: NodeState) -> str:
    """Cost the node's next worker; the queue in which it then waits."""
    decide.claim(state, node, node.epoch, worker="w", claim_id=str(node.epoch))
    decide.lose_worker(state, node, node.epoch)
    return node.queue


def test_a_node_that_has_cost_two_workers_is_queued_apart_and_given_up_after_five() -> None:
    state = started([{"key": "n", "type": "noop"}])
    node = only(state, "n")
    assert node.queue == "default"
    assert [lose(state, node) for _ in range(4)] == ["default", *["default-alone"] * 3]
    lose(state, node)
    assert state.error is not None
    assert state.error.reason == "WORKER_LOST"


def test_a_suspect_stays_one_when_it_is_handed_back_and_is_none_after_a_failure() -> None:
    state = started([{"key": "n", "type": "noop", "retry": {"max_attempts": 2, "when": "true"}}])
    node = only(state, "n")
    lose(state, node)
    lose(state, node)
    decide.claim(state, node, node.epoch, worker="w", claim_id="c")
    decide.release(state, node, node.epoch, started=True)
    assert node.queue == "default-alone"
    decide.claim(state, node, node.epoch, worker="w", claim_id="d")
    decide.report_failure(state, node, node.epoch, Failure("BROKEN", "It did not work.", "n"))
    decide.wake(state, node, node.epoch)
    assert (node.status, node.queue) == (NodeStatus.READY, "default")


def test_what_workers_do_not_run_is_in_no_queue() -> None:
    state = started([approval()])
    assert only(state, "ask").queue == ""


def test_tokens_name_one_wait_and_nobody_else_makes_them() -> None:
    tokens, others = ResumeTokens(b"k" * 32), ResumeTokens(b"o" * 32)
    wait = Wait(NodeRef(uuid4(), "ask", "each[3]/call/inner[0]"), 2)
    token = tokens.make(wait)
    assert tokens.read(token) == wait
    assert others.read(token) is None
    assert ResumeTokens(b"o" * 32, b"k" * 32).read(token) == wait, "made before its key was replaced"
    assert tokens.make(Wait(wait.ref, 3)) != token
    for position in range(0, len(token) - 1, 7):
        changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        assert tokens.read(changed) is None
    for nonsense in ("", "x", "é", token + "=" * 9, token * 200, "A" * 43):
        assert tokens.read(nonsense) is None
