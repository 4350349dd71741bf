"""Runs from the front door to their end: branches, waits, failures, time-outs, cancel, and what is answered twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.client import User, node
from tests.support.http_servers import RawServer

BRANCHES = (
    #  big ─true──► which ─two──► second ─┐
    #   └──false──► small     └─default   ├─► pause ─► result
    #                         third ──────┘
    node("big", "condition", {"when": "input.n > 10"}),
    node("small", "transform", {"values": {"a": "small"}}),
    node("which", "switch", {"cases": [{"port": "one", "when": "input.n == 11"}, {"port": "two", "when": "true"}]}),
    node("second", "noop", {"value": "{{ input.n * 2 }}"}),
    node("third", "noop", {"value": 3}),
    node("pause", "delay", {"seconds": 0.2}),
    node("result", "output", {"value": "{{ has(nodes.second.output) ? nodes.second.output : 0 }}"}),
)
BRANCH_EDGES = [
    *("big:true>which", "big:false>small", "which:two>second", "which:default>third"),
    *("second>pause", "third>pause", "pause>result"),
]


async def test_conditions_switches_and_delays_lead_a_run_along_one_path(user: User) -> None:
    run = await user.run(*BRANCHES, edges=BRANCH_EDGES, run_input={"n": 21})
    assert (run["status"], run["output"], run["error"]) == ("succeeded", 42, None)
    statuses = {key: item["status"] for key, item in (await user.nodes(run["id"])).items()}
    assert [key for key, status in statuses.items() if status == "skipped"] == ["small", "third"]
    assert {status for key, status in statuses.items() if key not in ("small", "third")} == {"succeeded"}


async def test_a_failed_request_is_tried_again_under_the_same_key(user: User, outside: RawServer) -> None:
    retry = {"max_attempts": 5, "initial_interval": 0.1, "backoff": 2, "when": "error.details.status == 503"}
    config = {"method": "POST", "url": f"{outside.url}/flaky", "json": {}}
    run = await user.run(node("call", "http_request", config, retry=retry))
    assert run["status"] == "succeeded"
    call = (await user.nodes(run["id"]))["call"]
    assert (call["attempt"], call["output"]["json"]) == (3, {"tries": 3})
    assert call["error"]["reason"] == "HTTP_STATUS", "the last failure stays visible"


async def test_what_the_policy_does_not_ask_for_is_not_tried_again(user: User, outside: RawServer) -> None:
    retry = {"max_attempts": 5, "initial_interval": 0.1, "when": "error.details.status == 404"}
    config = {"method": "POST", "url": f"{outside.url}/flaky", "json": {}}
    run = await user.run(node("call", "http_request", config, retry=retry))
    assert (run["status"], run["error"]["reason"]) == ("failed", "HTTP_STATUS")
    assert (await user.nodes(run["id"]))["call"]["attempt"] == 1


async def test_a_failure_goes_out_by_the_error_port(user: User, outside: RawServer) -> None:
    run = await user.run(
        node("call", "http_request", {"url": f"{outside.url}/missing"}),
        node("fine", "noop"),
        node("mend", "output", {"value": "{{ nodes.call.error.reason }}"}),
        edges=["call>fine", "call:error>mend"],
    )
    assert (run["status"], run["output"]) == ("succeeded", "HTTP_STATUS")
    statuses = {key: item["status"] for key, item in (await user.nodes(run["id"])).items()}
    assert statuses == {"call": "failed", "fine": "skipped", "mend": "succeeded"}


async def test_a_run_goes_on_after_a_node_that_may_fail(user: User, outside: RawServer) -> None:
    run = await user.run(
        node("call", "http_request", {"url": f"{outside.url}/missing"}, on_error="continue"),
        node("after", "output", {"value": "{{ nodes.call.output }}"}),
        edges=["call>after"],
    )
    assert (run["status"], run["output"]) == ("succeeded", None)


async def test_a_node_that_takes_too_long_fails_and_says_what_to_change(user: User) -> None:
    run = await user.run(node("slow", "noop", {"seconds": 600}, timeout_seconds=0.5))
    assert (run["status"], run["error"]["reason"], run["error"]["node_key"]) == ("failed", "TIMEOUT", "slow")
    assert "0.5 s" in run["error"]["message"]
    assert "timeout_seconds" in run["error"]["message"]


@pytest.mark.parametrize("slow", [node("slow", "noop", {"seconds": 600}), node("slow", "delay", {"seconds": 600})])
async def test_a_run_that_takes_too_long_fails_whatever_it_waits_for(user: User, slow: dict[str, Any]) -> None:
    started = await user.start(await user.workflow(slow, limit=1))
    run = await user.ended(started["id"])
    assert (run["status"], run["error"]["reason"]) == ("failed", "RUN_TIMEOUT")
    assert (await user.nodes(run["id"]))["slow"]["status"] == "cancelled"


@pytest.mark.parametrize(
    "slow",
    [
        node("slow", "noop", {"seconds": 600}),
        node("slow", "llm_call", {"prompt": "Count to ten thousand.", "max_tokens": 2000, "temperature": 0}),
    ],
    ids=["noop", "llm_call"],
)
async def test_a_cancelled_run_is_over_at_once_and_frees_its_worker(user: User, slow: dict[str, Any]) -> None:
    workflow_id = await user.workflow(slow | {"timeout_seconds": 600}, node("never"), edges=["slow>never"])
    started = await user.start(workflow_id)
    await user.until_event(started["id"], "node.started", "slow")

    answer = await user.ask("POST", f"/runs/{started['id']}/cancel", expect=202)
    assert answer["status"] == "cancelled"
    again = await user.ask("POST", f"/runs/{started['id']}/cancel", expect=202)
    assert again["finished_at"] == answer["finished_at"]
    statuses = {key: item["status"] for key, item in (await user.nodes(started["id"])).items()}
    assert statuses == {"slow": "cancelled", "never": "cancelled"}
    events = [event.type async for event in user.events(started["id"]) if event.id]
    assert events[-1] == "run.cancelled"


async def test_the_same_key_starts_one_run_and_another_body_is_refused(user: User) -> None:
    workflow_id = await user.workflow(node("a", "noop", {"value": "{{ input.n }}"}))
    first = await user.start(workflow_id, {"n": 1}, Idempotency_Key="k1")
    second = await user.start(workflow_id, {"n": 1}, Idempotency_Key="k1")
    assert first["id"] == second["id"]
    refused = await user.ask(
        "POST", f"/workflows/{workflow_id}/runs", {"input": {"n": 2}}, expect=422, Idempotency_Key="k1"
    )
    assert refused["reason"] == "IDEMPOTENCY_KEY_REUSED"
    await user.ended(first["id"])
    assert len((await user.ask("GET", "/runs"))["items"]) == 1

    await user.ask("DELETE", f"/workflows/{workflow_id}", expect=204)
    after = await user.start(workflow_id, {"n": 1}, Idempotency_Key="k1")
    assert after["id"] == first["id"], "what was accepted is the answer, whatever became of the workflow"


async def test_a_row_is_written_once_however_often_its_node_is_tried(user: User, outside: RawServer) -> None:
    await user.ask("POST", "/tables", {"name": "notes", "columns": [{"name": "text", "type": "text"}]}, expect=201)
    run = await user.run(
        node("call", "http_request", {"method": "POST", "url": f"{outside.url}/flaky", "json": {}}, retry={}),
        node("write", "db_write", {"table": "notes", "rows": {"text": "{{ run.id }}"}}, retry={"max_attempts": 5}),
        edges=["call>write"],
    )
    assert run["status"] == "succeeded", run["error"]
    rows = (await user.ask("GET", "/tables/notes/rows"))["items"]
    assert [row["text"] for row in rows] == [run["id"]]


async def test_a_run_never_uses_an_older_version_than_was_published_before_it_began(user: User) -> None:
    workflow_id = await user.workflow(node("a"))
    for number in (1, 2, 3):
        # Enough for both executors to be asked often, and so to hold leases.
        runs = await asyncio.gather(*(user.start(workflow_id) for _ in range(12)))
        assert {run["version"] for run in runs} == {number}
        draft = {"nodes": [node("a", config={"value": number})], "edges": []}
        await user.ask("PUT", f"/workflows/{workflow_id}/definition", draft)
        await user.ask("POST", f"/workflows/{workflow_id}/versions", {}, expect=201)
    await asyncio.gather(*(user.start(workflow_id) for _ in range(12)))
    await user.ask("DELETE", f"/workflows/{workflow_id}", expect=204)
    for _ in range(4):
        await user.ask("POST", f"/workflows/{workflow_id}/runs", {}, expect=404)
