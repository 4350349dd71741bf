"""Counts what PostgreSQL has, for metrics alone. Every executor counts, and each reports the whole."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Gauge

from services.executor.engine.state import RUN_TERMINAL, RunStatus

LEAST_PAUSE = 5.0
_REST = 20
"""The pause is at least so many times what counting took: a backlog of a million must not be made longer by it."""

_READY = Gauge("headrace_executor_ready_nodes", "Node executions in PostgreSQL that wait for a worker.", ["queue"])
_OLDEST = Gauge("headrace_executor_ready_oldest_seconds", "How long the oldest of them has waited.", ["queue"])
_OPEN = Gauge("headrace_executor_open_runs", "Runs in PostgreSQL that have not ended.", ["status"])


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in one queue."""

    nodes: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What PostgreSQL has."""

    ready: Mapping[str, Backlog]
    """By queue; queues without a backlog are left out."""
    open_runs: Mapping[RunStatus, int]


class CountStore(Protocol):
    """What is asked of storage."""

    async def counts(self) -> Counts:
        """Count; as costly as there is much. Raises UnavailableError."""
        ...


class Survey:
    """To be counted every few seconds, more seldom when it takes long."""

    def __init__(self, store: CountStore, queues: list[str]) -> None:
        self._store = store
        self._queues = queues

    async def count(self) -> float:
        """Count once; the seconds until it may be done again."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        counts = await self._store.counts()
        took = clock() - begun
        # Also those that have none any more, and of workers newer than this executor.
        self._queues = list(dict.fromkeys([*self._queues, *counts.ready]))
        for queue in self._queues:
            backlog = counts.ready.get(queue, Backlog(0, 0.0))
            _READY.labels(queue).set(backlog.nodes)
            _OLDEST.labels(queue).set(backlog.oldest_seconds)
        for status in RunStatus:
            if status not in RUN_TERMINAL:
                _OPEN.labels(status.name.lower()).set(counts.open_runs.get(status, 0))
        return max(LEAST_PAUSE, _REST * took)
