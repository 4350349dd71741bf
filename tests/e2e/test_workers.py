"""Workers that die, and workers that are told to stop."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime

from tests.e2e.client import User, node
from tests.support.stack import LocalStack
from tests.support.waiting import await_until


def process_of(stack: LocalStack, worker_id: str) -> tuple[int, int]:
    """In the log of which of the two workers that one named itself, and its process."""
    for replica in (0, 1):
        for line in stack.log("worker", replica).splitlines():
            if '"worker_starting"' in line and (told := json.loads(line))["worker_id"] == worker_id:
                return replica, told["pid"]
    raise LookupError(worker_id)


async def holder(user: User, run_id: str, after: str = "") -> str:
    """The worker that runs the run's node, another one than `after`."""

    async def look() -> str:
        found = (await user.nodes(run_id))["slow"]
        return str(found["worker"]) if found["status"] == "running" and found["worker"] != after else ""

    return str(await await_until(look, within=60))


async def test_a_worker_that_is_told_to_stop_hands_its_job_to_another_within_a_second(
    user: User, stack: LocalStack
) -> None:
    started = await user.start(await user.workflow(node("slow", "noop", {"seconds": 600}, timeout_seconds=600)))
    first = await holder(user, started["id"])
    replica, pid = process_of(stack, first)
    assert stack.kill("worker", replica, signal.SIGTERM) == pid

    await holder(user, started["id"], after=first)

    await stack.until_back(pid, "worker", replica, within=60)
    await user.ask("POST", f"/runs/{started['id']}/cancel", expect=202)
    page = await user.ask("GET", f"/runs/{started['id']}/events", Accept="application/json")
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in page["items"]}
    assert (at["node.started"] - at["node.requeued"]).total_seconds() < 1
    types = [event["type"] for event in page["items"]]
    assert types == ["run.started", "node.started", "node.requeued", "node.started", "node.cancelled", "run.cancelled"]


async def test_a_node_that_kills_its_workers_is_given_up_after_five(user: User, stack: LocalStack) -> None:
    workflow_id = await user.workflow(node("slow", "noop", {"seconds": 600}, timeout_seconds=600))
    started = await user.start(workflow_id)
    worker = ""
    for shared in (True, True, False, False, False):
        worker = await holder(user, started["id"], after=worker)
        replica, pid = process_of(stack, worker)
        assert (stack.process("worker", replica)["pid"] == pid) == shared
        os.kill(pid, signal.SIGKILL)
        if shared:
            await stack.until_back(pid, "worker", replica, within=60)

    run = await user.ended(started["id"])

    assert (run["status"], run["error"]["reason"], run["error"]["node_key"]) == ("failed", "WORKER_LOST", "slow")
    fine = await user.run(node("fine", "noop", {"value": 1}))
    assert fine["status"] == "succeeded"
