"""Whether a new run may be accepted now: refused at once and with a time to come back, rather than accepted and late.

What counts is known from counts that are a second or so old and from what was accepted here since: a limit may be
passed by what other executors accept meanwhile, and what was accepted is never dropped.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from services.executor.domain.dispatch import Dispatcher
from services.kit.errors import DomainError, ResourceExhaustedError

log = structlog.get_logger(__name__)

_FRESH_SECONDS = 1.0
"""A count of a project that is near its limit is not used for longer."""
_GOOD_SECONDS = 5.0
"""A count far from the limit is renewed in the background after so long."""
_KEPT_SECONDS = 60.0
"""Projects that have started nothing for so long are not remembered."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a project has in the system, counted up to what was asked for."""

    open_runs: int
    queued_nodes: int


class LoadStore(Protocol):
    """What admission asks of storage."""

    async def load_of(self, project_id: str, *, runs: int, nodes: int) -> Load:
        """Runs that have not ended and ready node executions of a project, counted up to these numbers."""
        ...


class Backlog(Protocol):
    """What waits to be committed."""

    @property
    def queued(self) -> int:
        """Transitions that wait for a commit."""
        ...


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The operator's bounds; those of projects are the lower of these and their own."""

    max_open_runs: int
    max_queued_nodes: int
    shed_after_seconds: float
    max_commit_queue: int


@dataclass(slots=True)
class _Count:
    load: Load
    at: float
    accepted: int = 0
    """Runs accepted here since."""


class Admission:
    """Admits or refuses new runs."""

    def __init__(
        self,
        store: LoadStore,
        dispatcher: Dispatcher,
        backlog: Backlog,
        limits: AdmissionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._backlog = backlog
        self._limits = limits
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self._counting: dict[str, asyncio.Task[None]] = {}

    async def require(self, project_id: str) -> None:
        """Raise ResourceExhaustedError unless the project may start a run now."""
        self._require_capacity()
        max_runs, max_nodes = self._limits_of(project_id)
        now = self._clock()
        count = self._counts.get(project_id)
        if count is None or (now - count.at > _FRESH_SECONDS and _is_near(count, max_runs, max_nodes)):
            await self._count(project_id)
            count = self._counts[project_id]
        elif now - count.at > _GOOD_SECONDS:
            self._count_later(project_id)
        if count.load.open_runs + count.accepted >= max_runs:
            raise _over("OPEN_RUNS_LIMIT", f"The project has {max_runs} open runs, the most that it may have.")
        if count.load.queued_nodes >= max_nodes:
            raise _over("QUEUED_NODES_LIMIT", f"{max_nodes} nodes of the project wait for a worker, the most that may.")

    def accepted(self, project_id: str) -> None:
        """A run of the project was accepted here."""
        count = self._counts.get(project_id)
        if count is not None:
            count.accepted += 1

    def _require_capacity(self) -> None:
        late = self._dispatcher.unclaimed_seconds()
        if late > self._limits.shed_after_seconds:
            raise ResourceExhaustedError(
                f"Workers are behind: what is ready has waited {late:.0f} s for one. Try again later.",
                reason="WORKERS_BEHIND",
                retry_after=5.0,
            )
        if self._backlog.queued > self._limits.max_commit_queue:
            raise ResourceExhaustedError(
                "The executor has more to commit than it can at the moment. Try again.",
                reason="EXECUTOR_BEHIND",
                retry_after=1.0,
            )

    def _limits_of(self, project_id: str) -> tuple[int, int]:
        own = self._dispatcher.limits_of(project_id)
        max_runs, max_nodes = self._limits.max_open_runs, self._limits.max_queued_nodes
        return (
            max_runs if own.max_open_runs is None else min(own.max_open_runs, max_runs),
            max_nodes if own.max_queued_nodes is None else min(own.max_queued_nodes, max_nodes),
        )

    def _count_later(self, project_id: str) -> None:
        if project_id not in self._counting:
            self._counting[project_id] = task = asyncio.create_task(self._look(project_id))
            task.add_done_callback(lambda _: self._counting.pop(project_id, None))

    async def _count(self, project_id: str) -> None:
        """Count, once for all who wait for it."""
        self._count_later(project_id)
        await asyncio.shield(self._counting[project_id])
        if project_id not in self._counts:
            self._counts[project_id] = _Count(Load(0, 0), self._clock())

    async def _look(self, project_id: str) -> None:
        max_runs, max_nodes = self._limits_of(project_id)
        before = self._counts.get(project_id)
        accepted_before = before.accepted if before else 0
        try:
            load = await self._store.load_of(project_id, runs=max_runs, nodes=max_nodes)
        except DomainError as error:
            # The database cannot be reached: starting the run will say so.
            log.warning("load_not_counted", project_id=project_id, reason=error.reason)
            return
        present = self._counts.get(project_id)
        # What was accepted while it was counted may or may not be in the count: it counts twice rather than not.
        accepted = present.accepted - accepted_before if present else 0
        self._counts.pop(project_id, None)  # the order is that of the looks
        self._counts[project_id] = _Count(load, self._clock(), accepted)
        self._forget_old()

    def _forget_old(self) -> None:
        """Projects that start nothing are not remembered."""
        oldest = self._clock() - _KEPT_SECONDS
        while self._counts:
            project_id, count = next(iter(self._counts.items()))
            if count.at > oldest or project_id in self._counting:
                return
            del self._counts[project_id]


def _is_near(count: _Count, max_runs: int, max_nodes: int) -> bool:
    return (count.load.open_runs + count.accepted) * 2 >= max_runs or count.load.queued_nodes * 2 >= max_nodes


def _over(reason: str, message: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"{message} Try again when some have ended.", reason=reason, retry_after=1.0)
