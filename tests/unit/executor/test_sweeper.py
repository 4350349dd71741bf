"""When the sweeper must not take work away."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import uuid4

from services.executor.domain.model import NodeRef
from services.executor.domain.store import Overdue
from services.executor.domain.sweeper import Sweeper
from tests.support.waiting import await_until

LOST = NodeRef(uuid4(), "a")


class Store:
    """Always finds one claim of a worker that was not heard."""

    def __init__(self) -> None:
        self.sweeps = 0
        self.republished = 0

    async def find_overdue(self, limit: int) -> Overdue:
        self.sweeps += 1
        return Overdue(lost=[(LOST, 1)], timed_out=[], waiting=[], runs=[])

    async def republish(self, limit: int) -> list[tuple[NodeRef, str]]:
        self.republished += 1
        return []

    async def seconds_to_next_timer(self) -> float | None:
        return -1.0


class Committer:
    """Refuses every correction."""

    def __init__(self) -> None:
        self.corrections = 0

    def submit(self, run_id: object, apply: object, answer: object) -> asyncio.Future[None]:
        self.corrections += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(RuntimeError("no"))
        return future


class Bus:
    is_connected = False


async def test_claims_are_spared_while_workers_cannot_be_heard_and_for_a_lease_after() -> None:
    store, committer, bus = Store(), Committer(), Bus()
    sweeper = Sweeper(cast("Any", store), cast("Any", committer), cast("Any", bus), interval=0.01, lease_seconds=0.3)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    sweeper.start()
    await await_until(lambda: loop.time() - begun > 0.5)
    assert store.sweeps > 1
    assert (committer.corrections, store.republished) == (0, 0)

    bus.is_connected = True
    connected = loop.time()
    await await_until(lambda: committer.corrections)
    assert loop.time() - connected > 0.2
    assert store.republished
    await sweeper.stop()


async def test_a_timer_that_cannot_be_put_right_is_not_tried_without_a_pause() -> None:
    store, committer, bus = Store(), Committer(), Bus()
    bus.is_connected = True
    sweeper = Sweeper(cast("Any", store), cast("Any", committer), cast("Any", bus), interval=0.2, lease_seconds=0.0)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    sweeper.start()
    await await_until(lambda: committer.corrections >= 4, within=20)
    assert loop.time() - begun > 0.5
    await sweeper.stop()
