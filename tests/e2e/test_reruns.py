"""Going again over runs: what is used again, what runs again, and what is asked before an effect happens twice."""

from __future__ import annotations

from typing import Any

from tests.e2e.client import User, node
from tests.support.http_servers import RawServer


def posts(key: str, url: str, **more: Any) -> dict[str, Any]:
    return node(key, "http_request", {"method": "POST", "url": url, "json": {}, **more})


async def reused(user: User, run_id: str) -> set[str]:
    """Nodes of a run whose results were taken from the earlier one."""
    events = await user.ask("GET", f"/runs/{run_id}/events?page_size=200", Accept="application/json")
    return {
        f"{event['item_path']}/{event['node_key']}" if event["item_path"] else event["node_key"]
        for event in events["items"]
        if event["data"].get("reused")
    }


async def test_a_run_that_failed_goes_on_from_what_did_not_succeed(user: User, outside: RawServer) -> None:
    nodes = (
        posts("first", f"{outside.url}/ok"),
        node("second", "http_request", {"url": f"{outside.url}/{{{{ input.path }}}}"}),
        node("last", "output", {"value": "{{ nodes.second.output.status }}"}),
    )
    failed = await user.run(*nodes, edges=["first>second", "second>last"], run_input={"path": "missing"})
    assert failed["status"] == "failed"

    again = await user.ask("POST", f"/runs/{failed['id']}/rerun", {"input": {"path": "ok"}}, expect=202)

    run = await user.ended(again["id"])
    assert (run["status"], run["output"], run["rerun_of"]) == ("succeeded", 200, failed["id"])
    assert await reused(user, run["id"]) == {"first"}


async def test_an_effect_is_not_repeated_without_being_asked_for(user: User, outside: RawServer) -> None:
    nodes = (node("read", "transform", {"values": {"a": 1}}), posts("pay", f"{outside.url}/ok"), node("end", "noop"))
    before = await user.run(*nodes, edges=["read>pay", "pay>end"])

    problem = await user.ask("POST", f"/runs/{before['id']}/rerun", {"from_node": "read"}, expect=409)

    assert problem["reason"] == "EFFECTS_WOULD_REPEAT"
    assert problem["metadata"]["node_executions"] == "pay"
    given = {"from_node": "read", "overrides": {"pay": {"status": 299}}}
    without = await user.ask("POST", f"/runs/{before['id']}/rerun", given, expect=202)
    assert (await user.nodes((await user.ended(without["id"]))["id"]))["pay"]["output"] == {"status": 299}
    confirmed = await user.ask(
        "POST", f"/runs/{before['id']}/rerun", {"from_node": "read", "confirm": True}, expect=202
    )
    run = await user.ended(confirmed["id"])
    assert run["status"] == "succeeded"
    assert await reused(user, run["id"]) == set()


async def test_one_item_of_a_map_goes_again_and_the_others_keep_their_results(user: User) -> None:
    inner = {
        "nodes": [node("work", "noop", {"value": "{{ item }}"}), node("more", "noop", {"value": 1})],
        "edges": [{"source": "work", "target": "more"}],
    }
    before = await user.run(
        node("each", "map", {"items": [1, 2, 3], "body": inner}), node("end", "noop"), edges=["each>end"]
    )

    answer = await user.ask("POST", f"/runs/{before['id']}/rerun", {"from_node": "each[1]/work"}, expect=202)

    run = await user.ended(answer["id"])
    assert (run["status"], run["output"]) == ("succeeded", before["output"])
    assert await reused(user, run["id"]) == {f"each[{n}]/{key}" for n in (0, 2) for key in ("work", "more")}


async def test_a_newer_version_runs_again_only_what_has_changed_in_it(user: User) -> None:
    def definition(value: int) -> dict[str, Any]:
        nodes = [node("a", "noop", {"value": 1}), node("b", "noop", {"value": value}), node("c", "noop", {"value": 3})]
        return {"nodes": nodes, "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}]}

    workflow = await user.workflow(*definition(2)["nodes"], edges=["a>b", "b>c"])
    before = await user.ask("POST", f"/workflows/{workflow}/runs?wait=30", {})
    await user.ask("PUT", f"/workflows/{workflow}/definition", definition(20))
    await user.ask("POST", f"/workflows/{workflow}/versions", {}, expect=201)

    answer = await user.ask("POST", f"/runs/{before['id']}/rerun", {"version": "latest"}, expect=202)

    run = await user.ended(answer["id"])
    assert (run["status"], run["version"]) == ("succeeded", 2)
    assert await reused(user, run["id"]) == {"a"}


async def test_a_rerun_asked_for_twice_under_one_key_happens_once(user: User) -> None:
    before = await user.run(node("a", "noop"))
    one, other = [
        await user.ask("POST", f"/runs/{before['id']}/rerun", {"from_node": "a"}, expect=202, Idempotency_Key="again")
        for _ in range(2)
    ]
    assert one["id"] == other["id"]
    await user.ask("POST", f"/runs/{before['id']}/rerun", {}, expect=422, Idempotency_Key="again")


async def test_what_cannot_be_gone_over_is_refused(user: User, other_user: User) -> None:
    before = await user.run(node("a", "noop"))
    problem = await user.ask("POST", f"/runs/{before['id']}/rerun", {"from_node": "b"}, expect=422)
    assert problem["violations"][0]["code"] == "UNKNOWN_NODE"
    await other_user.ask("POST", f"/runs/{before['id']}/rerun", {}, expect=404)
    workflow = await user.workflow(node("wait", "delay", {"seconds": 3600}))
    waiting = await user.ask("POST", f"/workflows/{workflow}/runs", {}, expect=202)
    problem = await user.ask("POST", f"/runs/{waiting['id']}/rerun", {}, expect=409)
    assert problem["reason"] == "RUN_NOT_ENDED"
