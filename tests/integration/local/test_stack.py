"""The whole local stack as a process, with two replicas of some services. The last test ends the shared one."""

from __future__ import annotations

import functools
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.stack import LocalStack, running_stack, start_stack
from tests.support.waiting import await_until

pytestmark = pytest.mark.timeout(240)  # a start takes seconds alone, and a minute beside everything else
_SERVICES = ("auth", "workflows", "executor", "llm", "vector", "gateway", "worker")


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    home = tmp_path_factory.mktemp("stack") / "home"
    async with running_stack(home, replicas={"executor": 2, "worker": 2}) as running:
        yield running


async def login(stack: LocalStack) -> int:
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False) as client:
        credentials = {"username": stack.admin["email"], "password": stack.admin["password"]}
        return (await client.post("/api/v1/auth/login", data=credentials)).status_code


def alive(stack: LocalStack) -> list[int]:
    """The processes of stack.json that live, and those that they started."""
    pids = [entry["pid"] for entry in stack.state["processes"] if entry["pid"] is not None]
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [each.pid for process in found for each in (process, *process.children(recursive=True))]


def none_lives(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


async def test_stack_json_names_every_process_and_is_the_owners_alone(stack: LocalStack) -> None:
    names = sorted((entry["service"], entry["replica"]) for entry in stack.state["processes"])
    replicas = [("executor", 1), ("worker", 1)]

    assert names == sorted([(name, 0) for name in (*_SERVICES, "postgres", "nats")] + replicas)
    assert stat.S_IMODE(os.stat(stack.home / "stack.json").st_mode) == 0o600
    assert stack.process("postgres")["dsn"].startswith("postgresql://")
    assert stack.process("nats")["url"].startswith("nats://")


async def test_the_administrator_of_stack_json_can_log_in(stack: LocalStack) -> None:
    assert await login(stack) == httpx.codes.OK


async def test_every_killed_process_comes_back(stack: LocalStack) -> None:
    killed = {(entry["service"], entry["replica"]): entry["pid"] for entry in stack.state["processes"]}
    for service, replica in killed:
        stack.kill(service, replica)
    await await_until(lambda: not stack.state["ready"])
    for (service, replica), pid in killed.items():
        await stack.until_back(pid, service, replica, within=90)

    await await_until(lambda: stack.state["ready"])
    assert await login(stack) == httpx.codes.OK


async def test_with_a_replica_away_the_stack_stays_ready(stack: LocalStack) -> None:
    pid = stack.kill("worker", 1, signal.SIGSTOP)
    stack.kill("worker", 1)
    await await_until(lambda: stack.process("worker", 1)["pid"] != pid)

    assert stack.state["ready"]
    await stack.until_back(pid, "worker", 1, within=60)


async def test_ctrl_c_while_starting_stops_what_has_started(tmp_path: Path) -> None:
    stack = await start_stack(tmp_path / "home")
    await await_until(lambda: alive(stack) if stack.state else False, within=30)
    pids = alive(stack)

    assert await stack.stop(signal.SIGINT) == 0
    await await_until(functools.partial(none_lives, pids))


async def test_nothing_outlives_a_killed_launcher_and_the_next_one_serves_the_same(stack: LocalStack) -> None:
    gateway, pids = stack.gateway_url, alive(stack)
    await stack.stop(signal.SIGKILL)
    second = await start_stack(stack.home)
    await second.until_ready()

    assert none_lives(pids)
    assert second.gateway_url == gateway
    assert await login(second) == httpx.codes.OK

    pids = alive(second)
    assert await second.stop() == 0
    assert none_lives(pids)
    assert not second.state["ready"]
    assert second.state["processes"] == []
