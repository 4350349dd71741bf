"""What a follower of a run sees, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

from services.executor.domain.model import EventView, RunView, Version, VersionSelector
from services.executor.domain.runs import Runs
from services.executor.domain.watchers import Token, Watch, Watchers
from services.executor.engine.graph import Graph
from services.executor.engine.state import RunStatus, Usage

NOW = datetime.now(UTC)
EVENTS = ["run.started", "node.started", "node.succeeded", "run.succeeded"]


class Store:
    """A run that ends while it is being read: what arrives during a read is what the read itself brings."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._sequence = 0

    async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        self._sequence += 2
        # The token of the attempt comes between its start and its end.
        self._watch.add_token(Token("a", b"token-%d" % self._sequence))
        return RunView(
            id=run_id,
            project_id=project_id,
            workflow_id=run_id,
            version_id=run_id,
            version_number=1,
            workflow_name="w",
            status=RunStatus.SUCCEEDED if self._sequence == 4 else RunStatus.RUNNING,
            input=None,
            output=None,
            error=None,
            usage=Usage(),
            created_at=NOW,
            started_at=None,
            finished_at=None,
            sequence=self._sequence,
        )

    async def list_events(self, project_id: UUID, run_id: UUID, *, after: int, limit: int) -> list[EventView]:
        return [
            EventView(number, EVENTS[number - 1], NOW, "a" if "node" in EVENTS[number - 1] else "", "", b"{}")
            for number in range(after + 1, self._sequence + 1)
        ]


async def test_tokens_come_between_the_start_of_their_node_and_its_end() -> None:
    watch = Watch()

    @asynccontextmanager
    async def watch_everywhere(_: UUID) -> AsyncIterator[Watch]:
        yield watch

    store = cast("Any", Store(watch))
    nobody = cast("Any", None)
    runs = Runs(
        store,
        nobody,
        cast("Any", None),
        nobody,
        watch_here=nobody,
        watch_everywhere=watch_everywhere,
        max_run_seconds=1,
    )

    seen = [
        item.type if isinstance(item, EventView) else item.decode() async for item in runs.follow(uuid4(), uuid4(), 0)
    ]

    assert seen == ["run.started", "node.started", "token-2", "token-4", "node.succeeded", "run.succeeded"]


async def test_a_caller_who_waits_for_a_long_run_looks_now_and_then() -> None:
    watches = Watchers()
    looks = 0

    class Running(Store):
        async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
            nonlocal looks
            looks += 1
            return replace(await super().get_run(project_id, run_id), status=RunStatus.RUNNING)

    class Resolves:
        async def links(self, _: object) -> dict[str, object]:
            return {}

        async def resolve(self, *_: object) -> Version:
            return Version(uuid4(), uuid4(), uuid4(), "w", 1, b"", Graph([], [], {}))

    class Accepts:
        async def submit_new(self, *_: object) -> None:
            """Accepted."""

    store, versions, committer = (cast("Any", each) for each in (Running(Watch()), Resolves(), Accepts()))
    runs = Runs(
        store,
        versions,
        cast("Any", None),
        committer,
        watch_here=watches.watch,
        watch_everywhere=cast("Any", None),
        max_run_seconds=1,
    )
    run = await runs.start(
        *(uuid4(), uuid4(), VersionSelector()),
        input_json=b"{}",
        request_id="",
        started_by=None,
        traceparent="",
        wait_seconds=1.4,
    )
    assert run.status is RunStatus.RUNNING
    assert looks <= 4
