"""Brings what is ready in PostgreSQL into the window: what did not fit when it became ready, and what was lost since.

Runs in every executor. Also takes the census: how many slots workers have, how many executors share the window, and
what limits and variables are set.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import Gauge

from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.flows import Ready
from services.executor.domain.limit_settings import LimitStore
from services.executor.domain.limits import ProjectLimits
from services.executor.domain.model import NodeRef
from services.executor.domain.variables import ProjectVariables

_SLOTS = Gauge("headrace_executor_worker_slots", "Slots of the living workers that take work.", ["queue"])
_EXECUTORS = Gauge("headrace_executor_executors", "Living executors, as this one sees them.")
_CENSUS_SECONDS = 1.0
_CLAIMED_SOON_SECONDS = 1.4
"""A wake-up that is not claimed for so long is looked for on the bus; just before its row is due for another."""


@dataclass(frozen=True, slots=True)
class FoundReady:
    """A ready node execution as its row has it."""

    ref: NodeRef
    epoch: int
    project_id: str
    type: str
    priority: int
    ready_seconds: float
    """How long it has been ready."""


@dataclass(frozen=True, slots=True)
class Census:
    """Who takes part."""

    executors: int
    slots: Mapping[str, int]
    """Of living workers that take work, by queue."""
    limits: Mapping[str, ProjectLimits]
    """Of projects that have any."""
    variables: Mapping[str, int] = field(default_factory=dict)
    """Revisions of variables, of projects that ever had any."""


@dataclass(frozen=True, slots=True)
class RefillSettings:
    """How an executor refills its windows."""

    executor_id: str
    queues: tuple[str, ...]
    interval: float
    """Seconds between looks."""
    window_per_slot: float
    """Wake-ups on the bus for each slot that workers have."""


class ReadyStore(Protocol):
    """What is asked about ready rows; the docstrings are the contract."""

    async def take_ready(
        self,
        queue: str,
        *,
        room: int,
        full: Sequence[str] = (),
        short: Sequence[str] = (),
        limits: Mapping[str, ProjectLimits] | None = None,
    ) -> list[FoundReady]:
        """About `room` ready rows that are due for a wake-up, shared among projects by weight, each at least one.

        None of the projects in `full`; of those in `short` also rows that nobody was woken for yet. Inside a project by
        priority, then the longest ready. Each is due again after a pause that doubles from 3 s to 60 s.
        """
        ...

    async def census(self, executor_id: str) -> Census:
        """Who takes part; notes that this executor does."""
        ...


class WakeupBus(Protocol):
    """Where workers are woken."""

    @property
    def is_connected(self) -> bool:
        """Workers can be woken."""
        ...

    async def held(self, queue: str) -> int | None:
        """This executor's wake-ups on the bus, those included that workers have not acknowledged; None = not known."""
        ...


class Refill:
    """Refills every `interval` seconds, and at once when the window runs short of what PostgreSQL has."""

    def __init__(
        self,
        store: ReadyStore,
        limits: LimitStore,
        dispatcher: Dispatcher,
        bus: WakeupBus,
        settings: RefillSettings,
        *,
        variables: ProjectVariables,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limits = limits
        self._dispatcher = dispatcher
        self._bus = bus
        self._settings = settings
        self._variables = variables
        self._clock = clock
        self._census = Census(1, {}, {})
        self._census_due = 0.0
        self._is_hungry = False

    async def step(self) -> float:
        """Refill, then wait until a window runs short or an interval is over; to be done again at once."""
        await self.refill(only_short=self._is_hungry)
        try:
            async with asyncio.timeout(self._settings.interval):
                await self._dispatcher.hungry()
            self._is_hungry = True
        except TimeoutError:
            self._is_hungry = False
        return 0.0

    async def refill(self, *, only_short: bool = False) -> None:
        """Bring in what is due; with `only_short`, only of queues whose windows run short."""
        if self._clock() >= self._census_due:
            await self.take_census()
        if not self._bus.is_connected:
            return
        if not only_short:
            self._dispatcher.tick()
        for queue in self._settings.queues:
            short = self._dispatcher.short_projects(queue)
            if only_short and not short:
                continue
            if not only_short:
                await self._look_for_lost(queue)
            await self._refill_queue(queue, short)

    async def take_census(self) -> None:
        """Find out who takes part, and size the windows by it."""
        self._census = census = await self._store.census(self._settings.executor_id)
        self._census_due = self._clock() + _CENSUS_SECONDS
        # A queue that has lost its workers keeps the smallest window.
        capacities = {
            queue: round(census.slots.get(queue, 0) * self._settings.window_per_slot) for queue in self._settings.queues
        }
        for queue in self._settings.queues:
            _SLOTS.labels(queue).set(census.slots.get(queue, 0))
        _EXECUTORS.set(census.executors)
        self._dispatcher.configure(capacities, census.limits, census.executors)
        self._variables.configure(census.variables)
        await self._limits.free_unused()

    async def _refill_queue(self, queue: str, short: Sequence[str]) -> None:
        found = await self._store.take_ready(
            queue,
            room=self._dispatcher.windows[queue].capacity,
            full=self._dispatcher.full_projects(queue),
            short=short,
            limits=self._census.limits,
        )
        now = self._clock()
        ready = [
            Ready(row.ref, row.epoch, row.project_id, row.type, queue, row.priority, now - row.ready_seconds)
            for row in found
        ]
        self._dispatcher.refill(queue, ready, short)

    async def _look_for_lost(self, queue: str) -> None:
        """Free the window of wake-ups that are not on the bus any more though nobody has claimed them here."""
        now = self._clock()
        windows = self._dispatcher.windows
        oldest = next(windows.sent_of(queue), None)
        if oldest is None or now - oldest.at < _CLAIMED_SOON_SECONDS:
            return
        held = await self._bus.held(queue)
        # What was claimed meanwhile is not counted: its wake-up may have been acknowledged before the bus was asked.
        if held is not None and held < sum(sent.at < now for sent in windows.sent_of(queue)):
            self._dispatcher.give_up(queue, before=now - _CLAIMED_SOON_SECONDS)
