"""What a process does again and again, and how its tasks are ended."""

import asyncio

import pytest
from structlog.testing import capture_logs

from services.kit.errors import UnavailableError
from services.kit.lifecycle import Repeated, end


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    """As `asyncio.wait_for` of Python 3.11 does when what it waits for comes in the same moment."""
    came = asyncio.get_running_loop().create_future()

    async def heartbeats() -> None:
        while True:
            await asyncio.wait_for(came, 60)
            await asyncio.Event().wait()

    task = asyncio.create_task(heartbeats())
    await asyncio.sleep(0)
    came.set_result(None)
    async with asyncio.timeout(10):
        await end(task)
    assert task.cancelled()


@pytest.mark.parametrize(
    ("error", "level"), [(UnavailableError("It is away."), "warning"), (ZeroDivisionError(), "error")]
)
async def test_a_step_that_fails_is_told_of_and_done_again(error: Exception, level: str) -> None:
    begun = 0
    done = asyncio.Event()

    async def step() -> float:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise error
        done.set()
        return 3600.0

    with capture_logs() as logs:
        async with Repeated("look", step, pause=0.0):
            await done.wait()
    assert begun == 2
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("look_failed", level)]


async def test_a_step_under_way_has_ended_when_the_block_is_left() -> None:
    begun, ended = asyncio.Event(), False

    async def step() -> float:
        nonlocal ended
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True
        return 0.0

    async with Repeated("look", step, pause=0.0):
        await begun.wait()
    assert ended
