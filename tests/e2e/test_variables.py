"""Variables of projects and of runs, from the front door to what expressions make of them."""

from __future__ import annotations

from typing import Any

from tests.e2e.client import User, node
from tests.support.waiting import await_until

READ = {"region": "{{ project.vars.region }}", "mode": "{{ run.vars.mode }}"}
BY_WORKER = node("read", "noop", {"value": READ})
BY_ENGINE = node("read", "transform", {"values": READ})


async def project_of(user: User) -> str:
    return str((await user.ask("GET", "/projects"))["items"][0]["id"])


async def set_variables(user: User, **variables: Any) -> None:
    """Set them, and wait until runs see them whichever executor accepts them: it takes two seconds at most."""
    path = f"/projects/{await project_of(user)}/variables"
    assert await user.ask("PUT", path, {"variables": variables}) == {"variables": variables}
    assert await user.ask("GET", path) == {"variables": variables}
    probe = await user.workflow(node("all", "transform", {"values": {"all": "{{ project.vars }}"}}))

    async def seen_six_times() -> bool:
        runs = [await user.ask("POST", f"/workflows/{probe}/runs?wait=30") for _ in range(6)]
        return all(run["output"] == {"all": {"all": variables}} for run in runs)

    await await_until(seen_six_times, within=30)


async def test_variables_are_seen_in_every_scope_by_engine_and_workers(user: User) -> None:
    await set_variables(user, region="eu", **{"a-b": {"deep": [1, None]}})
    called = await user.workflow(BY_WORKER)
    inside = {"nodes": [BY_ENGINE], "edges": []}
    again = {"state": None, "until": "run.vars.mode == 'x' && project.vars.region == 'eu'", "body": inside}
    workflow_id = await user.workflow(
        node("top", "noop", {"value": {**READ, "deep": '{{ project.vars["a-b"].deep }}'}}),
        node("each", "map", {"items": ["i"], "body": inside}),
        node("again", "loop", again | {"max_iterations": 3}),
        node("call", "sub_workflow", {"workflow": called}),
        node("gone", "noop", {"value": "{{ default(run.vars.gone, project.vars.region) }}"}),
    )

    run = await user.ask("POST", f"/workflows/{workflow_id}/runs?wait=30", {"vars": {"mode": "x"}})

    both = {"region": "eu", "mode": "x"}
    assert run["vars"] == {"mode": "x"}
    assert run["output"] == {
        "top": {**both, "deep": [1, None]},
        "each": {"results": [{"read": both}]},
        "again": {"state": {"read": both}, "iterations": 1},
        "call": {"read": both},
        "gone": "eu",
    }


async def test_a_run_and_what_goes_again_over_it_see_the_variables_of_when_it_was_accepted(user: User) -> None:
    await set_variables(user, region="eu")
    workflow_id = await user.workflow(node("wait", "wait_for_event"), BY_WORKER, edges=["wait>read"])
    accepted = await user.ask("POST", f"/workflows/{workflow_id}/runs", {"vars": {"mode": "x"}}, expect=202)

    await set_variables(user, region="us")
    await user.ask("POST", f"/runs/{accepted['id']}/nodes/wait/resume", {"data": 1})

    run = await user.ended(accepted["id"])
    assert run["output"] == {"read": {"region": "eu", "mode": "x"}}

    again = await user.ask("POST", f"/runs/{run['id']}/rerun", {"from_node": "read"}, expect=202)
    assert (await user.ended(again["id"]))["output"] == {"read": {"region": "eu", "mode": "x"}}
    # Nothing is asked to run again but what reads the variables that have changed.
    other = await user.ask("POST", f"/runs/{again['id']}/rerun", {"vars": {"mode": "y"}}, expect=202)
    assert other["vars"] == {"mode": "y"}
    assert (await user.ended(other["id"]))["output"] == {"read": {"region": "eu", "mode": "y"}}


async def test_a_repeated_start_with_other_variables_is_another_request(user: User) -> None:
    path = f"/workflows/{await user.workflow(node('only'))}/runs"
    one, same = [await user.ask("POST", path, {"vars": {"n": 1}}, expect=202, Idempotency_Key="k") for _ in range(2)]
    assert one["id"] == same["id"]
    for body in ({"vars": {"n": 2}}, {}):
        problem = await user.ask("POST", path, body, expect=422, Idempotency_Key="k")
        assert problem["reason"] == "IDEMPOTENCY_KEY_REUSED"


async def test_variables_that_cannot_be_kept_are_refused_with_all_that_is_wrong(user: User) -> None:
    project = f"/projects/{await project_of(user)}/variables"
    start = f"/workflows/{await user.workflow(node('only'))}/runs"
    for method, path, field, status in (("PUT", project, "variables", 422), ("POST", start, "vars", 422)):
        problem = await user.ask(method, path, {field: {"Upper": 1, "ok": 2, "a b": 3}}, expect=status)
        assert problem["reason"] == "INVALID_VARIABLES"
        assert [(each["code"], each["path"]) for each in problem["violations"]] == [
            ("INVALID_NAME", f"{field}.Upper"),
            ("INVALID_NAME", f"{field}.a b"),
        ]
        for too_much, code in (({f"v{n}": n for n in range(201)}, "TOO_MANY"), ({"a": "x" * 65_536}, "TOO_LARGE")):
            problem = await user.ask(method, path, {field: too_much}, expect=422)
            assert [each["code"] for each in problem["violations"]] == [code]
    assert await user.ask("GET", project) == {"variables": {}}


async def test_members_see_the_variables_of_a_project_and_admins_set_them(user: User, other_user: User) -> None:
    project = await project_of(user)
    path = f"/projects/{project}/variables"
    await other_user.ask("GET", path, expect=404)
    them = await other_user.ask("GET", "/auth/me")
    await user.ask("PUT", f"/projects/{project}/members/{them['id']}", {"role": "viewer"})
    assert await other_user.ask("GET", path) == {"variables": {}}
    assert (await other_user.ask("PUT", path, {"variables": {}}, expect=403))["reason"] == "ROLE_TOO_LOW"
