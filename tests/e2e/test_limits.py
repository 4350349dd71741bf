"""Limits from the front door: set, met, and told in words that say when to come again."""

from __future__ import annotations

from typing import Any

from tests.e2e.client import User, node
from tests.support.waiting import await_until


async def project_of(user: User) -> str:
    return str((await user.ask("GET", "/projects"))["items"][0]["id"])


async def test_a_project_sets_its_limits_and_reads_them_with_the_operators(user: User, other_user: User) -> None:
    path = f"/projects/{await project_of(user)}/limits"
    nothing = {"max_running_nodes": None, "max_open_runs": None, "max_queued_nodes": None, "node_types": {}}
    assert await user.ask("GET", path) == {**nothing, "ceilings": nothing, "weight": 1}
    wanted = {"max_running_nodes": 4, "node_types": {"llm_call": {"rate": 2.5, "burst": 5}}}
    answer = await user.ask("PUT", path, wanted)
    assert answer["node_types"] == {"llm_call": {"rate": 2.5, "burst": 5, "max_running": None}}
    assert await user.ask("GET", path) == answer
    await other_user.ask("GET", path, expect=404)
    await other_user.ask("PUT", path, wanted, expect=404)
    problem = await user.ask("PUT", path, {"node_types": {"nonsense": {"rate": 1}}}, expect=422)
    assert problem["reason"] == "INVALID_LIMITS"
    assert problem["violations"][0]["path"] == "node_types.nonsense"


async def test_a_run_too_many_is_answered_429_with_a_time_to_come_again(user: User) -> None:
    await user.ask("PUT", f"/projects/{await project_of(user)}/limits", {"max_open_runs": 2})
    workflow_id = await user.workflow(node("wait", "delay", {"seconds": 3600}))

    async def is_refused() -> dict[str, Any] | None:
        answer = await user.http.post(f"/workflows/{workflow_id}/runs", json={})
        if answer.status_code == 429:
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            refused: dict[str, Any] = answer.json()
            return refused
        assert answer.status_code == 202
        return None

    # Both executors know of the limit, and count anew, within two seconds.
    problem = await await_until(is_refused, within=20)
    assert problem["reason"] == "OPEN_RUNS_LIMIT"
    for run in (await user.ask("GET", "/runs?status=waiting"))["items"]:
        await user.ask("POST", f"/runs/{run['id']}/cancel", expect=202)

    async def is_accepted() -> bool:
        return await is_refused() is None

    await await_until(is_accepted, within=20)


async def test_runs_of_a_workflow_take_turns_by_key(user: User) -> None:
    limits = {"max_running_runs": None, "concurrency": {"key": "input.customer", "max": 1}}
    made = await user.ask(
        "POST",
        "/workflows",
        {"name": "turns", "definition": {"nodes": [node("d", "delay", {"seconds": 3600})], "limits": limits}},
        expect=201,
    )
    assert made["definition"]["limits"] == limits
    first, second, third = [
        (await user.start(made["id"], {"customer": customer}))["id"] for customer in ("ann", "ann", "bob")
    ]

    async def statuses() -> list[str]:
        return [(await user.ask("GET", f"/runs/{run_id}"))["status"] for run_id in (first, second, third)]

    async def are(*wanted: str) -> bool:
        return await statuses() == list(wanted)

    await await_until(lambda: are("waiting", "pending", "waiting"), within=20)
    await user.ask("POST", f"/runs/{first}/cancel", expect=202)
    await await_until(lambda: are("cancelled", "waiting", "waiting"), within=20)
    problem = await user.ask("POST", f"/workflows/{made['id']}/runs", {"input": {}}, expect=422)
    assert problem["reason"] == "CONCURRENCY_KEY_FAILED"


async def test_a_repeated_start_is_answered_with_its_run_when_its_input_has_no_key_any_more(user: User) -> None:
    definition = {"nodes": [node("a", "noop", {})], "limits": None}
    made = await user.ask("POST", "/workflows", {"name": "keyless", "definition": definition}, expect=201)
    first = await user.start(made["id"], {"n": 1}, Idempotency_Key="k")
    limits = {"max_running_runs": None, "concurrency": {"key": "input.customer", "max": 1}}
    await user.ask("PUT", f"/workflows/{made['id']}/definition", definition | {"limits": limits})
    problem = await user.ask("POST", f"/workflows/{made['id']}/runs", {"input": {"n": 1}}, expect=422)
    assert problem["reason"] == "CONCURRENCY_KEY_FAILED"
    again = await user.start(made["id"], {"n": 1}, Idempotency_Key="k")
    assert again["id"] == first["id"]


async def test_a_priority_is_a_number_in_range(user: User) -> None:
    workflow_id = await user.workflow(node("only"))
    await user.ask("POST", f"/workflows/{workflow_id}/runs", {"priority": 100}, expect=202)
    await user.ask("POST", f"/workflows/{workflow_id}/runs", {"priority": 101}, expect=422)


async def test_a_project_says_how_long_its_ended_runs_are_kept(user: User, other_user: User) -> None:
    path = f"/projects/{await project_of(user)}/retention"
    assert await user.ask("GET", path) == {"days": None, "default_days": 30}
    assert await user.ask("PUT", path, {"days": 3650}) == {"days": 3650, "default_days": 30}
    assert (await user.ask("GET", path))["days"] == 3650
    for days in (0, 3651, "7"):
        await user.ask("PUT", path, {"days": days}, expect=422)
    await other_user.ask("PUT", path, {"days": 1}, expect=404)
    assert (await user.ask("PUT", path, {"days": None}))["days"] is None
    assert (await user.ask("GET", path))["days"] is None
