"""The stream of a run's events: replayed, resumed, live, and whole when an executor is killed."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from tests.e2e.client import Event, User, node
from tests.support.stack import LocalStack

WHOLE = ["run.started", "node.started", "node.succeeded", "node.started", "node.succeeded", "run.succeeded"]


async def test_an_ended_run_is_replayed_from_the_start_or_from_the_middle(user: User) -> None:
    run = await user.run(node("a", "noop", {"value": 1}), node("b"), edges=["a>b"])

    events = [event async for event in user.events(run["id"])]
    assert [event.type for event in events] == WHOLE
    assert [event.id for event in events] == [str(number) for number in range(1, 7)]
    assert events[2].data["data"]["output"] == 1

    for middle in range(1, 6):
        rest = [event async for event in user.events(run["id"], last_event_id=str(middle))]
        assert rest == events[middle:]


async def test_tokens_of_a_model_arrive_while_the_node_runs(user: User) -> None:
    config = {"prompt": "Write a sentence about water.", "max_tokens": 40, "temperature": 0, "seed": 1}
    started = await user.start(await user.workflow(node("answer", "llm_call", config, timeout_seconds=120)))

    events = [event async for event in user.events(started["id"])]

    types = [event.type for event in events]
    assert types.count("node.token") > 3
    assert types.index("node.started") < types.index("node.token")
    assert len(types) - types[::-1].index("node.token") <= types.index("node.succeeded")
    assert not any(event.id for event in events if event.type == "node.token")
    text = "".join(event.data["data"]["text"] for event in events if event.type == "node.token")
    run = await user.ask("GET", f"/runs/{started['id']}")
    assert text == run["output"]["answer"]["text"]
    assert run["usage"]["completion_tokens"] > 3


async def test_a_follower_misses_and_repeats_nothing_when_the_executors_are_killed(
    user: User, stack: LocalStack
) -> None:
    keys = [f"n{number}" for number in range(8)]
    nodes = [node(key, "noop", {"seconds": 0.4}) for key in keys]
    edges = [f"{one}>{other}" for one, other in pairwise(keys)]
    started = await user.start(await user.workflow(*nodes, edges=edges))
    events: list[Event] = []

    async def follow() -> None:
        async for event in user.events(started["id"]):
            events.append(event)

    following = asyncio.create_task(follow())
    for replica, key in enumerate(("n0", "n3")):
        await user.until_event(started["id"], "node.succeeded", key)
        pid = stack.kill("executor", replica)
        await stack.until_back(pid, "executor", replica, within=60)
    async with asyncio.timeout(120):
        await following

    assert [event.id for event in events if event.id] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1].type == "run.succeeded"
    assert [event.data["node_key"] for event in events if event.type == "node.succeeded"] == keys
