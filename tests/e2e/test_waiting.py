"""People and programs outside answer runs that wait, through the front door."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.client import User, node
from tests.support.stack import LocalStack
from tests.support.waiting import await_until


async def waiting(user: User, run_id: str, path: str = "") -> dict[str, Any]:
    """The node execution of the run that waits, once it does; at a place, if one is given."""

    async def look() -> dict[str, Any] | None:
        page = await user.ask("GET", f"/runs/{run_id}/nodes?page_size=200")
        found = (item for item in page["items"] if item["status"] == "waiting" and path in ("", item["item_path"]))
        return next(found, None)

    found: dict[str, Any] = await await_until(look, within=60)
    return found


async def test_an_approval_asks_takes_one_answer_and_the_run_goes_on(user: User) -> None:
    form = {"type": "object", "required": ["limit"], "properties": {"limit": {"type": "integer"}}}
    ask = node("ask", "approval", {"title": "Pay {{ input.amount }}?", "form": form})
    said = node("said", "output", {"value": "{{ nodes.ask.output }}"})
    started = await user.start(await user.workflow(ask, said, edges=["ask>said"]), {"amount": 7})
    found = await waiting(user, started["id"])
    assert (await user.ask("GET", f"/runs/{started['id']}"))["status"] == "waiting"
    assert found["input"] == {"title": "Pay 7?", "form": form}

    url = f"/runs/{started['id']}/nodes/ask/resume"
    refused = await user.ask("POST", url, {"decision": "maybe", "data": {}}, expect=422)
    assert {violation["path"] for violation in refused["violations"]} == {"decision", "data"}
    answer = {"decision": "approve", "data": {"limit": 9}}
    await user.ask("POST", url, answer, Idempotency_Key="k")
    await user.ask("POST", url, answer, Idempotency_Key="k")
    late = await user.ask("POST", url, {"decision": "reject", "data": {"limit": 9}}, expect=409)
    assert late["reason"] == "NODE_NOT_WAITING"

    run = await user.ended(started["id"])
    me = await user.ask("GET", "/auth/me")
    assert run["output"] == {"decision": "approve", "data": {"limit": 9}, "by": me["id"]}


async def test_only_approvers_answer_and_viewers_neither_answer_nor_see_the_address(
    user: User, other_user: User, stack: LocalStack
) -> None:
    me = await user.ask("GET", "/auth/me")
    project = me["projects"][0]["id"]
    there = {"X_Project_Id": project}
    them = await other_user.ask("GET", "/auth/me")
    await user.ask("PUT", f"/projects/{project}/members/{them['id']}", {"role": "viewer"})
    closed = await user.start(await user.workflow(node("ask", "approval", {"title": "?", "approvers": ["bob@x.io"]})))
    opened = await user.start(await user.workflow(node("e", "wait_for_event")))
    assert (await waiting(user, closed["id"]))["resume_url"] is None
    assert (await waiting(user, opened["id"]))["resume_url"]
    body = {"decision": "approve"}
    refused = await user.ask("POST", f"/runs/{closed['id']}/nodes/ask/resume", body, expect=403)
    assert refused["reason"] == "NOT_AN_APPROVER"
    (seen,) = (await other_user.ask("GET", f"/runs/{opened['id']}/nodes", **there))["items"]
    assert seen["resume_url"] is None
    urls = (await user.ask("GET", f"/runs/{opened['id']}"))["resume_urls"]
    assert urls == [{"node_key": "e", "item_path": "", "url": (await waiting(user, opened["id"]))["resume_url"]}]
    assert (await user.ask("GET", f"/runs/{closed['id']}"))["resume_urls"] == []
    assert (await other_user.ask("GET", f"/runs/{opened['id']}", **there))["resume_urls"] is None
    path = f"/runs/{opened['id']}/nodes/e/resume"
    assert (await other_user.ask("POST", path, {}, expect=403, **there))["reason"] == "ROLE_TOO_LOW"


async def test_a_program_outside_answers_by_the_address_of_the_wait_once(user: User, stack: LocalStack) -> None:
    each = {"nodes": [node("paid", "wait_for_event", {"timeout_seconds": 600})], "edges": []}
    workflow_id = await user.workflow(node("each", "map", {"items": [1, 2], "body": each}))
    started = await user.start(workflow_id)
    urls = [(await waiting(user, started["id"], f"each[{number}]"))["resume_url"] for number in (0, 1)]
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False) as outside:
        assert (await outside.post(urls[1], json={"id": 1})).status_code == 204
        assert (await outside.post(urls[1], json={"id": 2})).status_code == 409
        wrong = await outside.post(urls[0][:-2], json={"id": 0})
        assert (wrong.status_code, wrong.json()["reason"]) == (404, "EVENT_NOT_FOUND")
        assert (await outside.post(urls[0], json={"id": 0})).status_code == 204
        run = await user.ended(started["id"])
        assert run["output"]["each"]["results"] == [{"paid": {"id": 0}}, {"paid": {"id": 1}}]
        assert (await outside.post(urls[0], json={})).status_code == 409
        guesses = [(await outside.post(f"/api/v1/events/{'x' * 80}", json={})).status_code for _ in range(40)]
    assert (guesses[0], guesses[-1]) == (404, 429)
    logs = stack.log("gateway") + stack.log("executor", 0) + stack.log("executor", 1)
    assert not any(url.rpartition("/")[2] in logs for url in urls)


async def test_time_that_is_over_takes_the_timeout_port(user: User) -> None:
    run = await user.run(
        node("ask", "approval", {"title": "?", "timeout_seconds": 0.2}),
        node("late", "output", {"value": "{{ nodes.ask.output.decision }}"}),
        node("timely", "output", {"value": "in time"}),
        edges=["ask:timeout>late", "ask>timely"],
    )
    assert (run["status"], run["output"]) == ("succeeded", None)
    failed = await user.run(node("ask", "wait_for_event", {"timeout_seconds": 0.2}))
    assert (failed["status"], failed["error"]["reason"]) == ("failed", "WAIT_TIMEOUT")
