"""Puts right what was left behind: lost workers, time-outs, timers. Looks only at PostgreSQL.

Lost wake-ups are for `refill`. Any number of executors may sweep at once: what is found is only a hint, each correction
is a guarded transition.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from services.executor.domain.committer import Committer
from services.executor.domain.model import NodeRef
from services.executor.domain.refill import ReadyStore
from services.executor.domain.store import RunStore
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.state import NodeState, RunState
from services.kit.errors import DomainError

log = structlog.get_logger(__name__)

BATCH = 500
INLINE = ""
"""The queue of what executors do themselves."""
_SWEPT_AT = Gauge("headrace_executor_last_sweep_timestamp_seconds", "When the last sweep ended that went well.")
_SWEPT = Counter("headrace_executor_swept_total", "Corrections by the sweeper.", ["kind"])


class Connection(Protocol):
    """The way to the workers."""

    @property
    def is_connected(self) -> bool:
        """Workers can be heard."""
        ...


class Sweeper:
    """Sweeps every `interval` seconds, or earlier when a timer is due."""

    def __init__(
        self,
        store: RunStore,
        ready: ReadyStore,
        committer: Committer,
        bus: Connection,
        *,
        interval: float,
        lease_seconds: float,
    ) -> None:
        self._store = store
        self._ready = ready
        self._committer = committer
        self._bus = bus
        self._interval = interval
        self._lease_seconds = lease_seconds
        self._spare_workers_until = 0.0
        self._begun_at = -math.inf
        """When the last step began."""

    async def step(self) -> float:
        """Sweep; the seconds until the next time. The first takes no claims away: before it, nobody renewed them."""
        now = asyncio.get_running_loop().time()
        if not self._bus.is_connected or now - self._begun_at > self._interval + self._lease_seconds / 2:
            # Heartbeats could not arrive, or this process stood still and has yet to read them.
            self._spare_workers()
        self._begun_at = now
        try:
            corrected = await self.sweep()
            timer = await self._store.seconds_to_next_timer()
        except DomainError:
            self._spare_workers()
            raise
        _SWEPT_AT.set_to_current_time()
        return min(max(timer, 0.01), self._interval) if timer is not None and corrected else self._interval

    def _spare_workers(self) -> None:
        """Take no claims away for the length of a lease."""
        self._spare_workers_until = asyncio.get_running_loop().time() + self._lease_seconds

    async def sweep(self) -> bool:
        """Find and correct one batch of each kind; False when a correction failed."""
        overdue = await self._store.find_overdue(BATCH)
        futures: list[asyncio.Future[None]] = []
        if asyncio.get_running_loop().time() >= self._spare_workers_until:
            futures += [
                self._correct("lost", ref, partial(_at_epoch, decide.lose_worker, epoch)) for ref, epoch in overdue.lost
            ]
        futures += [
            self._correct("timed_out", ref, partial(_at_epoch, decide.time_out_node, epoch))
            for ref, epoch in overdue.timed_out
        ]
        futures += [
            self._correct("timer", ref, partial(_at_epoch, decide.wake, epoch)) for ref, epoch in overdue.waiting
        ]
        for run_id, limit in overdue.runs:
            futures.append(self._correct_run("run_timeout", run_id, partial(decide.time_out_run, limit=limit)))
        for run_id in overdue.unsettled:
            futures.append(self._correct_run("unsettled", run_id, decide.settle_left_over))
        for row in await self._ready.take_ready(INLINE, room=BATCH):
            futures.append(self._correct_run("inline", row.ref.run_id, decide.settle_left_over))
        failures = [
            result
            for result in await asyncio.gather(*futures, return_exceptions=True)
            if isinstance(result, BaseException)
        ]
        if failures:
            log.warning("corrections_failed", corrections=len(failures), error=repr(failures[0]))
        return not failures

    def _correct(
        self, kind: str, ref: NodeRef, transition: Callable[[RunState, NodeState], Verdict]
    ) -> "asyncio.Future[None]":
        def apply(state: RunState) -> Verdict:
            node = state.find(ref.item_path, ref.node_key)
            return Verdict.STALE if node is None or state.is_terminal else transition(state, node)

        return self._committer.submit(ref.run_id, apply, partial(_count, kind))

    def _correct_run(
        self, kind: str, run_id: UUID, transition: Callable[[RunState], Verdict]
    ) -> "asyncio.Future[None]":
        return self._committer.submit(run_id, transition, partial(_count, kind))


def _count(kind: str, _: RunState, verdict: Verdict) -> None:
    if verdict is Verdict.ACCEPTED:
        _SWEPT.labels(kind).inc()


def _at_epoch(
    transition: Callable[[RunState, NodeState, int], Verdict], epoch: int, state: RunState, node: NodeState
) -> Verdict:
    return transition(state, node, epoch)
