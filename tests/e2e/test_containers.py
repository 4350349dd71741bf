"""Maps, loops and sub-workflows, from the front door to their end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.client import User, node
from tests.support.http_servers import RawServer


def body(*nodes: dict[str, Any], edges: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {"nodes": list(nodes), "edges": edges or []}


SQUARE = body(node("square", "noop", {"value": "{{ item * item }}"}))


async def test_a_map_returns_results_in_the_order_of_its_items(user: User) -> None:
    run = await user.run(
        node("each", "map", {"items": "{{ input.numbers }}", "body": SQUARE, "concurrency": 3}),
        node("sum", "output", {"value": "{{ nodes.each.output.results.map(r, r.square) }}"}),
        edges=["each>sum"],
        run_input={"numbers": list(range(12))},
    )
    assert (run["status"], run["output"]) == ("succeeded", [n * n for n in range(12)])
    paths = {item["item_path"] for item in await user.node_list(run["id"]) if item["node_key"] == "square"}
    assert paths == {f"each[{n}]" for n in range(12)}


@pytest.mark.parametrize(
    ("on_item_error", "expected"),
    [
        ("continue", {"results": [{"call": 200}, None, {"call": 200}]}),
        ("collect", {"results": [{"call": 200}, None, {"call": 200}], "errors": [1]}),
    ],
)
async def test_an_item_that_fails_takes_the_place_that_the_map_says(
    on_item_error: str, expected: dict[str, Any], user: User, outside: RawServer
) -> None:
    call = node("get", "http_request", {"url": f"{outside.url}/{{{{ item }}}}"})
    shown = node("call", "transform", {"values": {"call": "{{ nodes.get.output.status }}"}})
    inner = body(call, node("r", "output", {"value": "{{ nodes.call.output }}"}), shown)
    inner["edges"] = [{"source": "get", "target": "call"}, {"source": "call", "target": "r"}]
    config = {"items": ["a", "missing", "b"], "body": inner, "on_item_error": on_item_error}
    run = await user.run(
        node("each", "map", config), node("out", "output", {"value": "{{ nodes.each.output }}"}), edges=["each>out"]
    )
    assert run["status"] == "succeeded", run["error"]
    found = run["output"]
    if "errors" in found:
        assert [error["error"]["reason"] for error in found["errors"]] == ["HTTP_STATUS"]
        found["errors"] = [error["index"] for error in found["errors"]]
    assert found == expected


async def test_a_failed_item_fails_the_map_and_says_which(user: User, outside: RawServer) -> None:
    inner = body(node("get", "http_request", {"url": f"{outside.url}/{{{{ item }}}}"}))
    run = await user.run(node("each", "map", {"items": ["a", "missing"], "body": inner}))
    assert (run["status"], run["error"]["reason"], run["error"]["node_key"]) == ("failed", "HTTP_STATUS", "each")
    assert run["error"]["details"]["index"] == 1
    assert run["error"]["details"]["error"]["item_path"] == "each[1]"


async def test_maps_nest_and_see_what_is_around_them(user: User) -> None:
    innermost = body(node("name", "transform", {"values": {"text": "{{ nodes.prefix.output.p }}{{ item }}"}}))
    middle = body(node("rows", "map", {"items": "{{ item }}", "body": innermost}))
    outer = body(node("tables", "map", {"items": "{{ item }}", "body": middle}))
    tables = [[[1, 2], [3]], [[4]]]
    run = await user.run(
        node("prefix", "transform", {"values": {"p": "n"}}),
        node("all", "map", {"items": tables, "body": outer}),
        node("out", "output", {"value": "{{ nodes.all.output.results }}"}),
        edges=["prefix>all", "all>out"],
    )
    assert run["status"] == "succeeded", run["error"]
    rows = [[{"results": [{"name": {"text": f"n{n}"}} for n in numbers]} for numbers in table] for table in tables]
    assert run["output"] == [{"tables": {"results": [{"rows": row} for row in table]}} for table in rows]


async def test_a_loop_carries_its_state_until_the_condition_holds(user: User) -> None:
    grow = body(node("next", "output", {"value": "{{ state * 2 }}"}))
    run = await user.run(node("grow", "loop", {"body": grow, "until": "state > 100", "state": 3}))
    assert run["output"] == {"grow": {"state": 192, "iterations": 6}}
    run = await user.run(node("grow", "loop", {"body": grow, "until": "false", "state": 1, "max_iterations": 4}))
    assert run["output"] == {"grow": {"state": 16, "iterations": 4}}


async def test_a_map_without_items_is_over_at_once(user: User) -> None:
    run = await user.run(node("each", "map", {"items": [], "body": SQUARE}))
    assert (run["status"], run["output"]) == ("succeeded", {"each": {"results": []}})


async def test_a_sub_workflow_runs_in_the_version_it_had_when_the_run_began(user: User) -> None:
    double = node("d", "output", {"value": "{{ input.n * 2 }}"})
    called = await user.workflow(double)
    nodes = (
        node("wait", "delay", {"seconds": 0.6}),
        node("call", "sub_workflow", {"workflow": called, "input": {"n": "{{ input.n }}"}}),
        node("again", "sub_workflow", {"workflow": called, "version": 1, "input": {"n": "{{ nodes.call.output }}"}}),
    )
    caller = await user.workflow(*nodes, edges=["wait>call", "call>again"])
    started = await user.ask("POST", f"/workflows/{caller}/runs", {"input": {"n": 5}}, expect=202)
    triple = {"nodes": [node("d", "output", {"value": "{{ input.n * 3 }}"})], "edges": []}
    await user.ask("PUT", f"/workflows/{called}/definition", triple)
    await user.ask("POST", f"/workflows/{called}/versions", {}, expect=201)
    run = await user.ended(started["id"])
    assert run["output"] == {"again": 20}
    fresh = await user.ask("POST", f"/workflows/{caller}/runs?wait=30", {"input": {"n": 5}})
    assert fresh["output"] == {"again": 30}, "a run that begins later takes the newer one where none is named"


async def test_a_sub_workflow_that_is_not_there_refuses_the_start(user: User) -> None:
    caller = await user.workflow(node("call", "sub_workflow", {"workflow": "nobody"}))
    problem = await user.ask("POST", f"/workflows/{caller}/runs", {}, expect=409)
    assert problem["reason"] == "SUB_WORKFLOW_NOT_FOUND"
    assert "nobody" in problem["detail"]


async def test_cancelling_a_run_cancels_what_is_inside_its_containers(user: User) -> None:
    inner = body(node("wait", "delay", {"seconds": 3600}))
    workflow = await user.workflow(node("each", "map", {"items": [1, 2, 3], "body": inner}))
    run = await user.ask("POST", f"/workflows/{workflow}/runs", {}, expect=202)
    assert run["status"] == "waiting"
    cancelled = await user.ask("POST", f"/runs/{run['id']}/cancel", expect=202)
    assert cancelled["status"] == "cancelled"
    assert {item["status"] for item in await user.node_list(run["id"])} == {"cancelled"}
