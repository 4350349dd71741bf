"""Jobs that have cost workers are run alone, so that they take nobody with them: one worker, shared by all projects."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from tests.e2e.client import User, node
from tests.support import poison
from tests.support.stack import LocalStack, running_stack
from tests.support.waiting import await_until


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("suspects")
    environ = poison.installed(folder / "packages") | {"HEADRACE_WORKER_DRAIN_SECONDS": "0"}
    async with running_stack(folder / "home", replicas={"worker": 1}, environ=environ) as running:
        yield running


@pytest.fixture
async def attacker(shared: LocalStack) -> AsyncIterator[User]:
    made = await User.register(shared.gateway_url)
    yield made
    await made.http.aclose()


@pytest.fixture
async def neighbour(shared: LocalStack) -> AsyncIterator[User]:
    made = await User.register(shared.gateway_url)
    yield made
    await made.http.aclose()


def told(stack: LocalStack, event: str) -> list[dict[str, Any]]:
    """The lines of the worker's log, and of its processes for suspects, that tell of an event."""
    lines = stack.log("worker").splitlines()
    return [json.loads(line) for line in lines if f'"event": "{event}"' in line]


def processes_of_suspects(stack: LocalStack) -> list[int]:
    return [line["pid"] for line in told(stack, "alone_worker_started") if psutil.pid_exists(line["pid"])]


async def claims(user: User, run_id: str) -> list[str]:
    """The workers that the run's node was given to."""
    page = await user.ask("GET", f"/runs/{run_id}/events", Accept="application/json")
    return [event["data"]["worker"] for event in page["items"] if event["type"] == "node.started"]


async def start(user: User, key: str, type: str, config: dict[str, Any]) -> str:
    started = await user.start(await user.workflow(node(key, type, config, timeout_seconds=600)))
    return str(started["id"])


async def given(user: User, run_id: str, times: int) -> None:
    """Wait until the run's node was given to so many workers."""

    async def look() -> bool:
        return len(await claims(user, run_id)) >= times

    await await_until(look, within=60)


async def test_a_slow_job_outlives_neighbours_that_kill_its_workers_and_those_are_given_up(
    shared: LocalStack, attacker: User, neighbour: User
) -> None:
    slow = await start(neighbour, "slow", "noop", {"seconds": 10, "value": 7})
    await given(neighbour, slow, 1)
    bad = []
    for _ in range(2):  # each costs the shared worker its life twice, one after the other
        bad.append(await start(attacker, "bad", "poison_kill", {"seconds": 0.3}))
        await given(attacker, bad[-1], 3)

    run = await neighbour.ended(slow)

    assert (run["status"], run["output"]) == ("succeeded", {"slow": 7})
    # Two beside the others. Then alone: one may be handed back, because its process had to end as it began.
    assert len(await claims(neighbour, slow)) <= 4
    shared_workers = {line["worker_id"] for line in told(shared, "worker_starting") if line["queues"] == ["default"]}
    for run_id in bad:
        ended = await attacker.ended(run_id)
        assert ended["error"]["reason"] == "WORKER_LOST"
        is_shared = [worker in shared_workers for worker in await claims(attacker, run_id)]
        assert is_shared[:2] == [True, True]
        assert not any(is_shared[2:])
        assert len(is_shared) >= 5
    await await_until(lambda: not processes_of_suspects(shared), within=60)


async def test_a_suspect_is_handed_back_by_a_worker_that_stops_and_outlives_one_that_is_killed(
    shared: LocalStack, neighbour: User
) -> None:
    run_id = await start(neighbour, "slow", "noop", {"seconds": 10, "value": 7})
    for times in (1, 2):
        await given(neighbour, run_id, times)
        await shared.until_back(shared.kill("worker"), "worker", within=60)
    await given(neighbour, run_id, 3)

    await shared.until_back(shared.kill("worker", 0, signal.SIGTERM), "worker", within=60)
    await given(neighbour, run_id, 4)
    (process,) = processes_of_suspects(shared)
    shared.kill("worker")
    run = await neighbour.ended(run_id)

    assert (run["status"], len(await claims(neighbour, run_id))) == ("succeeded", 4)
    await await_until(lambda: not psutil.pid_exists(process), within=20)
