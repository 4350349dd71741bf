"""Rounds in the background: what deleted collections left behind, old deletions, and whether the database answers."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from services.kit.errors import UnavailableError
from services.vector.domain.index import Snapshots
from services.vector.domain.indexes import LoadedIndexes
from services.vector.domain.store import CollectionStore

log = structlog.get_logger(__name__)

_PURGED_AT_ONCE = 2_000
_PING_SECONDS = 2.0


class Housekeeping:
    """Any number of replicas may do their rounds at the same time."""

    def __init__(
        self,
        store: CollectionStore,
        indexes: LoadedIndexes,
        snapshots: Snapshots,
        *,
        pause_seconds: float,
        deletions_kept_seconds: float,
    ) -> None:
        self._store = store
        self._indexes = indexes
        self._snapshots = snapshots
        self._pause_seconds = pause_seconds
        self._deletions_kept_seconds = deletions_kept_seconds
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Do the next round now."""
        self._woken.set()

    async def run(self) -> None:
        """Do rounds for ever. A round that fails is logged and the next one comes."""
        while True:
            self._woken.clear()
            try:
                await self.round()
            except UnavailableError:
                log.warning("housekeeping_postponed")
            except Exception:
                log.exception("housekeeping_failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._pause_seconds)

    async def round(self) -> None:
        """Remove the rows of deleted collections, their indexes and files; forget old deletions."""
        while await self._store.purge_some(_PURGED_AT_ONCE):
            pass
        await self._store.prune_deletions(self._deletions_kept_seconds)
        on_disk = await asyncio.to_thread(self._snapshots.data_ids)
        candidates = on_disk | self._indexes.data_ids()
        gone = candidates - await self._store.existing(candidates) if candidates else set()
        await self._indexes.forget(gone)

    async def watch(self, report: Callable[[bool], Awaitable[None]]) -> None:
        """Report for ever whether the database answers."""
        while True:
            try:
                await self._store.ping()
            except UnavailableError:
                await report(False)
            else:
                await report(True)
            await asyncio.sleep(_PING_SECONDS)
