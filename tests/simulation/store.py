"""RunStore on the simulated database: each call travels there and back, and both ways can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from services.executor.domain.admission import Load
from services.executor.domain.limits import ProjectLimits
from services.executor.domain.model import EventPage, NewRun, NodeRef, RunView, Version, WorkerLease
from services.executor.domain.refill import Census, FoundReady
from services.executor.domain.store import Differences, Overdue, StoredRun
from services.executor.engine.state import RunState, RunTimes
from services.kit.errors import UnavailableError
from services.kit.postgres import lost_connection
from tests.simulation.database import FIRST, Database
from tests.simulation.faults import Faults
from tests.simulation.loop import Loop
from tests.simulation.rows import rows_of, stored_run
from tests.simulation.trace import Trace

T = TypeVar("T")


class Connections:
    """The wires between executors and PostgreSQL. `generation` counts the server's restarts."""

    def __init__(self, loop: Loop, rng: Random, faults: Faults, trace: Trace, database: Database) -> None:
        self.database = database
        self.up = True
        self.generation = 0
        self.locks: dict[tuple[Any, ...], Any] = {}
        """Who holds each advisory lock, or has held it last."""
        self._loop = loop
        self._rng = rng
        self._faults = faults
        self._trace = trace

    def send(self, name: str, statement: Callable[[], T]) -> asyncio.Future[T]:
        """Send a statement.

        It happens at one moment in between, also when the sender is dead by then. A refused one does not happen; one
        whose answer is lost has happened. The server's restart loses what has not arrived and the answers under way.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        generation = self.generation
        world = self._loop.world

        def reply(result: T | None, error: Exception | None) -> None:
            if self.generation != generation and error is None:
                self._trace.fault("answer_lost", f"{name} at a restart")
                error = lost_connection()
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def arrive() -> None:
            result, error = None, None
            if not self.up or self.generation != generation or self._faults.strikes("statement_refused", name):
                error = lost_connection()
                if name == "commit" and self._rng.random() < 0.3:
                    error = UnavailableError("The runs were being changed elsewhere. Try again.", retry_after=0.1)
            else:
                try:
                    result = statement()
                except Exception as raised:  # noqa: BLE001 - an error is an answer like another
                    error = raised
                if self._faults.strikes("answer_lost", name):
                    error = lost_connection()
            world.call_later(self._latency(), reply, result, error)

        world.call_later(self._latency(), arrive)
        return answer

    def _latency(self) -> float:
        slow = self._rng.uniform(0.1, 3.0) if self._faults.strikes("statement_slow") else 0.0
        return slow + self._rng.expovariate(2000.0)


class SimulatedStore:
    """RunStore of one executor."""

    def __init__(self, connections: Connections) -> None:
        self._send = connections.send
        self._database = connections.database

    async def commit(self, states: Sequence[RunState], new: dict[UUID, NewRun]) -> dict[UUID, RunTimes]:
        """See RunStore."""
        rows = rows_of(states, new)
        return await self._send("commit", lambda: self._database.commit(rows))

    async def load(self, run_ids: Sequence[UUID]) -> list[StoredRun]:
        """See RunStore. Two statements, as on PostgreSQL: a run may move in between."""
        runs = await self._send("load runs", lambda: self._database.read_runs(run_ids))
        nodes = await self._send("load nodes", lambda: self._database.read_nodes(run_ids))
        return [stored_run(run, nodes[run["id"]]) for run in runs]

    async def run_versions(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """See RunStore."""
        return await self._send("run versions", lambda: self._database.run_versions(run_ids))

    async def claimed_by(self, worker_id: str, claim_id: str) -> list[NodeRef]:
        """See RunStore."""
        return await self._send("claimed by", lambda: self._database.claimed_by(worker_id, claim_id))

    async def find_version(self, version_id: UUID) -> dict[str, Any] | None:
        """See RunStore."""
        return await self._send("find version", lambda: self._database.versions.get(version_id))

    async def keep_version(self, version: Version) -> None:
        """See RunStore."""
        row = {
            "id": version.id,
            "project_id": version.project_id,
            "workflow_id": version.workflow_id,
            "workflow_name": version.workflow_name,
            "number": version.number,
            "definition": version.definition,
        }
        await self._send("keep version", lambda: self._database.versions.setdefault(version.id, row))

    async def renew_lease(
        self, worker: WorkerLease, held: Sequence[tuple[NodeRef, int]], *, seconds: float
    ) -> Differences:
        """See RunStore."""
        return await self._send("renew lease", lambda: self._database.renew_lease(worker, held, seconds))

    async def find_overdue(self, limit: int) -> Overdue:
        """See RunStore."""
        return await self._send("find overdue", lambda: self._database.find_overdue(limit))

    async def republish_all(self) -> None:
        """See RunStore."""
        await self._send("republish all", self._database.republish_all)

    async def seconds_to_next_timer(self) -> float | None:
        """See RunStore."""
        return await self._send("next timer", self._database.seconds_to_next_timer)

    async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        """See RunStore."""
        return await self._send("get run", lambda: self._database.get_run(project_id, run_id))

    async def list_events(self, project_id: UUID, run_id: UUID, *, after: int, limit: int) -> EventPage:
        """See RunStore."""
        return await self._send("list events", lambda: self._database.list_events(project_id, run_id, after, limit))


class SimulatedReadyStore:
    """ReadyStore and LoadStore of one executor."""

    def __init__(self, connections: Connections) -> None:
        self._send = connections.send
        self._database = connections.database
        self._after: dict[str, UUID] = {}

    async def take_ready(
        self,
        queue: str,
        *,
        room: int,
        full: Sequence[str] = (),
        short: Sequence[str] = (),
        limits: Mapping[str, ProjectLimits] | None = None,
    ) -> list[FoundReady]:
        """See ReadyStore."""
        after = self._after.get(queue, FIRST)
        found, self._after[queue] = await self._send(
            "take ready",
            lambda: self._database.take_ready(
                queue, room=room, full=full, short=short, limits=limits or {}, after=after
            ),
        )
        return found

    async def census(self, executor_id: str) -> Census:
        """See ReadyStore."""
        return await self._send("census", lambda: self._database.census(executor_id))

    async def revisions(self) -> dict[str, int]:
        """See VariableStore: no project has any."""
        return await self._send("revisions", dict)

    async def load_of(self, project_id: str, *, runs: int, nodes: int) -> Load:
        """See LoadStore."""
        return await self._send("load", lambda: self._database.load_of(UUID(project_id), runs, nodes))
