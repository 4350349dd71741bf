"""The processes of the product, put together as their `main` modules do, on simulated connections."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from nats.errors import Error as NatsError

from services.executor.domain.admission import Admission
from services.executor.domain.committer import Committer
from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.idle_workers import IdleWorkers
from services.executor.domain.jobs import Jobs
from services.executor.domain.model import VersionSelector
from services.executor.domain.refill import Refill, RefillSettings
from services.executor.domain.run_states import RunStates
from services.executor.domain.runs import Runs
from services.executor.domain.sweeper import Sweeper
from services.executor.domain.turns import Turns
from services.executor.domain.variables import ProjectVariables
from services.executor.domain.versions import ResolvedVersion, Versions
from services.executor.domain.watchers import Watchers
from services.executor.queues import alone
from services.executor.storage.limits import PostgresLimitStore
from services.executor.storage.turns import PostgresTurnStore
from services.executor.transport.bus import Bus, StreamKeeper
from services.executor.transport.convert import graph_from_definition
from services.executor.transport.workers import WorkerTransport
from services.executor.worker.loop import Worker
from services.kit.errors import DomainError, NotFoundError, UnavailableError
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated
from tests.simulation.connection import Pool
from tests.simulation.loop import Process
from tests.simulation.network import Client
from tests.simulation.store import SimulatedReadyStore, SimulatedStore
from tests.simulation.trace import Violation
from tests.simulation.work import KINDS, NODE_TYPES, ObservedRunner
from tests.simulation.workload import Case

if TYPE_CHECKING:
    from tests.simulation.world import World

QUEUES = ["default", alone("default")]
"""One process serves both here: that suspects have one of their own is no part of what is simulated."""
LEASE_SECONDS, SWEEP_SECONDS, HEARTBEAT_SECONDS = 1.6, 0.25, 0.4
"""The defaults of the product's settings."""


class Workflows:
    """The workflows service. Implements the domain's Workflows."""

    def __init__(self, world: World, cases: list[Case]) -> None:
        self._world = world
        self._cases = {case.workflow_id: case for case in cases}
        self.gone: set[UUID] = set()
        """Workflows that were deleted."""

    async def find(self, project_id: UUID, name: str) -> UUID:
        """See Workflows."""
        raise NotFoundError("There is no such workflow.", reason="WORKFLOW_NOT_FOUND")

    async def resolve(
        self, project_id: UUID, workflow_id: UUID, selector: VersionSelector, known: list[UUID], *, lease: bool
    ) -> ResolvedVersion:
        """See Workflows."""
        await asyncio.sleep(self._world.rng.expovariate(1000.0))
        if self._world.faults.strikes("workflows_unavailable"):
            raise UnavailableError("The workflows service does not answer.")
        if workflow_id in self.gone:
            raise NotFoundError("There is no such workflow.", reason="WORKFLOW_NOT_FOUND")
        case = self._cases[workflow_id]
        definition = None if case.version_id in known else case.definition
        seconds = self._world.rng.choice((0.0, 2.0)) if lease else 0.0
        return ResolvedVersion(case.version_id, project_id, workflow_id, "w", 1, definition, seconds)


class _Grants:
    """Worker's tokens, which nobody reads here."""

    def mint_grant(self, **claims: Any) -> str:
        """See CallerTokens."""
        return "grant"


class Program(ABC):
    """A process and what runs in it. `stop` is what it does on SIGTERM."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.process = Process(world.loop, name)
        self.client = Client(world.server, self.process, self.reconnected)
        self.stopping = False
        self.process.spawn(self._main())

    @abstractmethod
    async def reconnected(self) -> None:
        """The connection to NATS is another one."""

    @abstractmethod
    async def serve(self) -> None:
        """Build everything and start."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop in order."""

    async def _main(self) -> None:
        while not self.client.is_connected:  # noqa: ASYNC110 - as services.kit.nats.connect
            await asyncio.sleep(0.1)
        try:
            await self.serve()
        except (NatsError, DomainError) as error:
            self.world.trace.note(f"{self.process.name} did not start: {error!r}")
            self.world.crash(self)
        except Exception as error:  # noqa: BLE001 - nothing else may keep a process from starting
            self.world.fail(Violation("no surprises", f"{self.process.name} did not start: {error!r}"))

    def terminate(self) -> None:
        """SIGTERM."""
        if not self.stopping:
            self.stopping = True
            self.process.spawn(self._terminate())

    async def _terminate(self) -> None:
        await self.stop()
        self.world.crash(self)


class Executor(Program):
    """services/executor/main.py."""

    runs: Runs | None = None

    async def reconnected(self) -> None:
        """See Program."""
        if self.runs is not None:
            await self._keeper.reconnected()

    async def serve(self) -> None:
        """See Program."""
        executor_id = str(new_id())
        store = SimulatedStore(self.world.connections)
        versions = Versions(store, self.world.workflows, partial(graph_from_definition, kinds=KINDS))
        watchers = Watchers()
        bus = Bus(executor_id, watchers)
        client = cast("Any", self.client)
        run_states = RunStates(store, versions)
        tight, pool = self.world.tight, cast("Any", Pool(self.world.connections, self.process))
        ready, limits = SimulatedReadyStore(self.world.connections), PostgresLimitStore(pool)

        def clock() -> float:
            return self.world.loop.now

        variables = ProjectVariables(cast("Any", ready), clock=clock)
        dispatcher = Dispatcher(bus, limits, clock=clock)
        bus.dispatch_by(dispatcher)
        idle_workers = IdleWorkers(dispatcher)
        self._committer = committer = Committer(store, run_states, bus, idle_workers)
        self._keeper = keeper = StreamKeeper(store, dispatcher, QUEUES)
        runs = Runs(
            store,
            versions,
            run_states,
            committer,
            Admission(ready, dispatcher, committer, tight.admission, clock=clock),
            variables=variables,
            watch_here=watchers.watch,
            watch_everywhere=bus.watch,
            max_run_seconds=3600,
        )
        await bus.start(client)
        await keeper.check(client)
        settings = RefillSettings(executor_id, tuple(QUEUES), SWEEP_SECONDS, tight.window_per_slot)
        self._refill = Refill(ready, limits, dispatcher, bus, settings, variables=variables, clock=clock)
        await self._refill.take_census()
        committer.start()
        turns = Turns(PostgresTurnStore(pool), versions, committer)
        bus.tell(turns.moved)
        jobs = Jobs(store, committer, dispatcher, lease_seconds=LEASE_SECONDS)
        self._workers = WorkerTransport(client, jobs, idle_workers, cast("Any", _Grants()), executor_id)
        await self._workers.start()
        sweeper = Sweeper(store, ready, committer, bus, interval=SWEEP_SECONDS, lease_seconds=LEASE_SECONDS)
        steps = (("turns", turns.step), ("sweep", sweeper.step), ("refill", self._refill.step))
        self._repeated = [Repeated(what, step, pause=SWEEP_SECONDS) for what, step in steps]
        for each in self._repeated:
            await each.__aenter__()
        self._keeping = asyncio.create_task(keeper.run(client))
        self.runs = runs

    async def stop(self) -> None:
        """See Program."""
        if self.runs is not None:
            self.runs = None
            self._keeping.cancel()
            # No exit stack: when the process is killed meanwhile, it would go on with the next one.
            for each in reversed(self._repeated):
                await each.__aexit__()
            await self._workers.stop()
            await self._committer.stop()


class WorkerProgram(Program):
    """services/executor/worker/main.py."""

    _worker: Worker | None = None

    @property
    def worker_id(self) -> str:
        """What claims call it."""
        return self._worker.worker_id if self._worker else ""

    @property
    def is_idle(self) -> bool:
        """It takes work and has a slot for it."""
        worker = self._worker
        return worker is not None and not self.stopping and len(worker._running) < worker._slots

    async def reconnected(self) -> None:
        """See Program."""
        if self._worker is not None:
            self._worker.reconnected()

    async def serve(self) -> None:
        """See Program."""
        runner = ObservedRunner(NODE_TYPES, self.world.ledger)
        self._worker = Worker(
            cast("Any", self.client),
            runner,
            queues=QUEUES,
            slots=self.world.rng.choice((1, 2, 8)),
            heartbeat_seconds=HEARTBEAT_SECONDS,
            host="simulated",
            clock=lambda: self.world.loop.now,
        )
        runner.worker_id = self._worker.worker_id
        await self._worker.start()

    async def stop(self) -> None:
        """See Program."""
        if self._worker is not None:
            await self._worker.drain(self.world.rng.choice((0.0, 0.5, 3.0)))
