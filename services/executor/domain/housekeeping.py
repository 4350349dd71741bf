"""Removes what nobody needs any more: workers that are gone, effects that no run can ask for again, runs that are older
than their project keeps them, and large values that no run refers to.

Any number of executors may do so at once: what one has under its hands the others leave alone.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from prometheus_client import Counter

BATCH = 500
"""Rows of one transaction, of runs at most so many; the next follows soon while there are more."""
TIDIED_EVERY = 60.0
"""Seconds."""
WORKERS_KEPT = timedelta(days=1)
"""How long a worker that is not heard is still shown."""
ATTEMPTS_OUTLIVE_RUNS = timedelta(days=2)
"""An attempt that does not know of its run's end can write until its grant ends: a node's longest time-out, which is a
day (`services/workflows/domain/validation_ranges.py`), and a minute (`transport/workers.py`)."""

PAYLOADS_KEPT = timedelta(days=1)
"""How long a large value is kept after its last use, at least: far longer than a commit takes."""

_REMOVED = Counter("headrace_executor_removed_total", "Rows removed because nobody needs them any more.", ["kind"])


@dataclass(frozen=True, slots=True)
class Removed:
    """How many one call has removed, and whether there may be more."""

    count: int
    more: bool


class HousekeepingStore(Protocol):
    """What is kept for a while only. Each call is a transaction of its own; PostgreSQL's clock decides."""

    async def remove_workers(self, silent_for: timedelta, *, limit: int) -> Removed:
        """Remove workers whose lease ended so long ago and who hold no claim."""
        ...

    async def remove_effects(self, older_than: timedelta, *, limit: int) -> Removed:
        """Remove effects that are older, and older than every run that has not ended."""
        ...

    async def remove_runs(self, older_than: timedelta, *, limit: int) -> Removed:
        """Remove runs that ended before their project's retention, or so long ago where it has none of its own.

        A run that is open, or that an open run goes again over, is kept however old it is.
        """
        ...

    async def remove_payloads(self, unused_for: timedelta, *, limit: int) -> Removed:
        """Remove contents that no run refers to and that none has referred to for so long."""
        ...


class Housekeeper:
    """To be done every `interval` seconds. Effects are kept for the longest run and what may come after its end."""

    def __init__(
        self, store: HousekeepingStore, max_run_seconds: int, retention_days: int, *, interval: float = TIDIED_EVERY
    ) -> None:
        self._store = store
        self._runs_kept = timedelta(days=retention_days)
        self._effects_kept = timedelta(seconds=max_run_seconds) + ATTEMPTS_OUTLIVE_RUNS
        self._interval = interval

    async def tidy(self) -> float:
        """Remove all there is to remove, batch by batch; rest after each for as long as it took: others work, too.

        Returns the seconds until there may be more.
        """
        clock = asyncio.get_running_loop().time
        for kind, remove, age in (
            ("worker", self._store.remove_workers, WORKERS_KEPT),
            ("effect", self._store.remove_effects, self._effects_kept),
            ("run", self._store.remove_runs, self._runs_kept),
            ("payload", self._store.remove_payloads, PAYLOADS_KEPT),
        ):
            more = True
            while more:
                begun = clock()
                removed = await remove(age, limit=BATCH)
                _REMOVED.labels(kind).inc(removed.count)
                more = removed.more
                if more:
                    await asyncio.sleep(clock() - begun)
        return self._interval
