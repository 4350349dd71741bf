"""Handlers that do their workers harm: they are given up with a reason, and everybody else's work goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.client import User, node
from tests.support import poison
from tests.support.stack import LocalStack, running_stack
from tests.support.waiting import await_until

STALL_SECONDS, MEMORY_BYTES, MAX_JOBS = 4, 400 * 2**20, 500


@pytest.fixture(scope="module")
async def poisoned(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("poison")
    environ = poison.installed(folder / "packages") | {
        "HEADRACE_WORKER_STALL_SECONDS": str(STALL_SECONDS),
        "HEADRACE_WORKER_MEMORY_BYTES": str(MEMORY_BYTES),
        "HEADRACE_WORKER_MAX_JOBS": str(MAX_JOBS),
        "HEADRACE_WORKER_DRAIN_SECONDS": "0",
    }
    async with running_stack(folder / "home", replicas={"worker": 2}, environ=environ) as running:
        yield running


@pytest.fixture
async def victim(poisoned: LocalStack) -> AsyncIterator[User]:
    made = await User.register(poisoned.gateway_url)
    yield made
    await made.http.aclose()


@pytest.fixture
async def neighbour(poisoned: LocalStack) -> AsyncIterator[User]:
    made = await User.register(poisoned.gateway_url)
    yield made
    await made.http.aclose()


async def start(user: User, type: str, config: dict[str, Any] | None = None, **more: Any) -> str:
    started = await user.start(await user.workflow(node("bad", f"poison_{type}", config, **more)))
    return str(started["id"])


def logs(stack: LocalStack) -> str:
    return stack.log("worker", 0) + stack.log("worker", 1)


async def claims(user: User, run_id: str) -> list[dict[str, Any]]:
    page = await user.ask("GET", f"/runs/{run_id}/events", Accept="application/json")
    return [event for event in page["items"] if event["type"] == "node.started"]


async def test_a_handler_that_kills_its_workers_is_given_up_after_five_and_named(
    victim: User, neighbour: User, poisoned: LocalStack
) -> None:
    run_id = await start(victim, "kill")
    fine = await neighbour.run(node("fine", "noop", {"value": 1}))
    run = await victim.ended(run_id)
    assert fine["status"] == "succeeded"
    assert (run["status"], run["error"]["reason"], run["error"]["node_key"]) == ("failed", "WORKER_LOST", "bad")
    assert len(await claims(victim, run_id)) == 5
    after = await neighbour.run(node("fine", "noop", {"value": 2}))
    assert after["status"] == "succeeded"


async def test_a_handler_that_never_awaits_loses_its_lease_and_its_worker_is_ended_with_its_stack_in_the_log(
    victim: User, neighbour: User, poisoned: LocalStack
) -> None:
    run_id = await start(victim, "spin")
    await victim.until_event(run_id, "node.requeued")
    fine = await neighbour.run(node("fine", "noop", {"value": 1}))
    assert fine["status"] == "succeeded"
    run = await victim.ended(run_id)
    assert run["error"]["reason"] == "WORKER_LOST"
    assert "in spin" in logs(poisoned)
    assert (await neighbour.run(node("fine", "noop", {"value": 2})))["status"] == "succeeded"


async def test_what_raises_no_exception_and_what_returns_too_much_fail_and_their_worker_lives_on(
    victim: User, poisoned: LocalStack
) -> None:
    thrown = await victim.ended(await start(victim, "throw"))
    boasted = await victim.ended(await start(victim, "boast", {"amount": 100 * 2**20}))
    assert (thrown["error"]["reason"], boasted["error"]["reason"]) == ("HANDLER_FAILED", "OUTPUT_TOO_LARGE")
    # A worker that had died of it would not have reported it: the node would have been claimed again.
    assert [len(await claims(victim, run["id"])) for run in (thrown, boasted)] == [1, 1]


async def test_a_worker_whose_memory_is_full_ends_and_what_filled_it_is_given_up(
    victim: User, neighbour: User, poisoned: LocalStack
) -> None:
    run_id = await start(victim, "eat", {"amount": MEMORY_BYTES + 64 * 2**20})
    run = await victim.ended(run_id)
    assert run["error"]["reason"] == "WORKER_LOST"
    assert '"memory_limit_reached"' in logs(poisoned) or '"memory_exhausted"' in logs(poisoned)
    assert (await neighbour.run(node("fine", "noop", {"value": 1})))["status"] == "succeeded"


async def test_a_node_delivered_at_most_once_waits_for_a_person_when_its_worker_is_lost(
    victim: User, poisoned: LocalStack
) -> None:
    run_id = await start(victim, "kill", delivery="at_most_once", retry={"max_attempts": 5, "when": "true"})
    event = await victim.until_event(run_id, "node.unknown")
    assert event.data["data"]["error"]["reason"] == "OUTCOME_UNKNOWN"

    async def status() -> bool:
        return bool((await victim.ask("GET", f"/runs/{run_id}"))["status"] == "waiting")

    await await_until(status, within=30)
    url = f"/runs/{run_id}/nodes/bad/resume"
    assert (await victim.ask("POST", url, {}, expect=422))["violations"][0]["path"] == "decision"
    await victim.ask("POST", url, {"decision": "succeed", "data": {"id": 7}})
    run = await victim.ended(run_id)
    assert (run["status"], run["output"]) == ("succeeded", {"bad": {"id": 7}})
    assert len(await claims(victim, run_id)) == 1


async def test_a_worker_that_was_held_up_too_long_does_not_record_what_it_did(
    victim: User, poisoned: LocalStack
) -> None:
    """Its lease is over before it comes to; another worker has the job, and the late result is stale."""
    run_id = await start(victim, "block", {"seconds": 2.6})
    await victim.until_event(run_id, "node.requeued")

    async def told() -> bool:
        told = ("report_was_stale", "job_revoked")
        return any(run_id in line and any(word in line for word in told) for line in logs(poisoned).splitlines())

    await await_until(told, within=30)
    assert (await victim.ask("GET", f"/runs/{run_id}"))["output"] is None
    await victim.ask("POST", f"/runs/{run_id}/cancel", expect=202)


async def test_a_worker_that_has_done_enough_makes_room_for_another_and_no_job_is_lost(
    victim: User, poisoned: LocalStack
) -> None:
    before = logs(poisoned).count('"worker_recycled"')
    body = {"nodes": [node("n", "noop", {"value": "{{ index }}"})], "edges": []}
    each = node("each", "map", {"items": "{{ input }}", "body": body, "concurrency": 100})
    started = await victim.start(await victim.workflow(each), list(range(2 * MAX_JOBS)))
    run = await victim.ended(started["id"])
    assert run["output"]["each"]["results"] == [{"n": number} for number in range(2 * MAX_JOBS)]
    await await_until(lambda: logs(poisoned).count('"worker_recycled"') > before, within=30)
