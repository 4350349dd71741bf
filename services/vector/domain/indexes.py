"""The indexes in memory: loaded on first use, current before each search, tidied and written in the background.

A search reads the collection's sequence number after it has arrived and waits until the index has applied all changes
up to it. So it sees every write that was answered before it, whichever replica answered it.
"""

import asyncio
import time
from collections.abc import Callable
from collections.abc import Collection as Many
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from services.kit.filters import Filter
from services.vector.domain.index import Snapshots, UnsealedFile, VectorIndex
from services.vector.domain.locks import SharedLock
from services.vector.domain.model import Collection
from services.vector.domain.store import IndexedStore
from services.vector.domain.vectors import Ordinals

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LOADED = Counter("headrace_vector_indexes_loaded_total", "Indexes brought into memory.", ["source"])
_MEMORY = Gauge("headrace_vector_index_memory_bytes", "Memory that the loaded indexes take, about.")
_LIMIT = Gauge("headrace_vector_index_memory_limit_bytes", "Memory that they may take before some are dropped.")
_INDEXES = Gauge("headrace_vector_indexes", "Indexes that are in memory, and that searches wait for.", ["state"])
_RECORDS = Gauge("headrace_vector_index_records", "Records in the loaded indexes.")
_UNSAVED = Gauge("headrace_vector_index_unsaved_changes", "Changes that the index files do not have yet.")
_SNAPSHOT_AGE = Gauge(
    "headrace_vector_snapshot_age_seconds", "Age of the oldest index file that lacks changes; 0 when none does."
)

_TIDY_SECONDS = 0.004
"""A search may have to wait for one such piece of work."""
_KEPT_FILTERS = 16
_KEPT_FILTER_SIZE = 1_000_000
_SHUTDOWN_SECONDS = 8.0


class LoadedIndex:
    """One collection's index, and what guards it."""

    def __init__(self, collection: Collection, index: VectorIndex, executor: Executor) -> None:
        self.collection = collection
        self.index = index
        self.lock = SharedLock()
        self.updating = asyncio.Lock()
        self.unsaved_changes = 0
        self.last_used = time.monotonic()
        self.saved_at = time.monotonic()
        """When its file was written or read; at the latest, when it was loaded."""
        self.background: asyncio.Task[None] | None = None
        self._executor = executor
        self._filters: dict[str, tuple[int, Ordinals]] = {}

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work on the index in a thread; it ends before this returns, even when cancelled."""
        return await _run(self._executor, work)

    async def allowed(self, store: IndexedStore, only: Filter, *, sequence: int) -> Ordinals:
        """The ordinals that a filter lets through at change `sequence` or later, remembered until the next change."""
        key = repr(only)
        known = self._filters.get(key)
        if known is None or known[0] != sequence:
            known = sequence, await store.matching(self.collection, only)
            if key not in self._filters and len(self._filters) >= _KEPT_FILTERS:
                self._filters.pop(next(iter(self._filters)))
            if len(known[1]) <= _KEPT_FILTER_SIZE:
                self._filters[key] = known
        return known[1]


class LoadedIndexes:
    """All indexes in memory, within a budget."""

    def __init__(
        self,
        store: IndexedStore,
        snapshots: Snapshots,
        *,
        new_index: Callable[[Collection], VectorIndex],
        searching: Executor,
        working: Executor,
        memory_bytes: int,
        snapshot_changes: int,
    ) -> None:
        """`searching` runs searches and short writes, `working` loads, builds and writes files."""
        self._store = store
        self._snapshots = snapshots
        self._new_index = new_index
        self._searching = searching
        self._working = working
        self._memory_bytes = memory_bytes
        self._snapshot_changes = snapshot_changes
        self._loaded: dict[UUID, LoadedIndex] = {}
        self._loading: dict[UUID, asyncio.Task[LoadedIndex]] = {}
        self._stopping = False
        _LIMIT.set(memory_bytes)
        for gauge, measure in (
            (_INDEXES.labels("loaded"), lambda: len(self._loaded)),
            (_INDEXES.labels("loading"), lambda: len(self._loading)),
            (_RECORDS, lambda: sum(loaded.index.size for loaded in self._all())),
            (_UNSAVED, lambda: sum(loaded.unsaved_changes for loaded in self._all())),
            (_SNAPSHOT_AGE, self._snapshot_age),
        ):
            gauge.set_function(measure)

    def is_loading(self, data_id: UUID) -> bool:
        """Whether searches of the collection wait for its index."""
        return data_id in self._loading

    async def current(self, collection: Collection) -> LoadedIndex:
        """The index, current at least up to `collection.sequence`. Hold its lock while using it.

        Raises CollectionNotFoundError when the collection was deleted meanwhile, UnavailableError.
        """
        loaded = self._loaded.get(collection.data_id) or await self._load(collection)
        loaded.last_used = time.monotonic()
        if loaded.index.sequence != collection.sequence:
            await self._catch_up(loaded, collection)
        return loaded

    async def forget(self, data_ids: Many[UUID]) -> None:
        """Drop the indexes of deleted collections, and their files."""
        for data_id in data_ids:
            if loaded := self._loaded.pop(data_id, None):
                await _end(loaded.background)
        await asyncio.get_running_loop().run_in_executor(self._working, self._snapshots.remove, data_ids)
        self._measure()

    def data_ids(self) -> set[UUID]:
        """Of the indexes in memory."""
        return set(self._loaded)

    async def close(self) -> None:
        """Write what is unsaved, for at most 8 s; what is not written is read from the rows next time."""
        self._stopping = True
        try:
            async with asyncio.timeout(_SHUTDOWN_SECONDS):
                for task in list(self._loading.values()):
                    await _end(task)
                for loaded in list(self._loaded.values()):
                    await _end(loaded.background)
                    if loaded.unsaved_changes:
                        await self._save(loaded)
        except TimeoutError:
            log.warning("indexes_not_all_saved")

    async def _load(self, collection: Collection) -> LoadedIndex:
        """Load an index once for all who wait; it goes on when they stop waiting."""
        task = self._loading.get(collection.data_id)
        if task is None:
            task = asyncio.create_task(self._load_alone(collection))
            self._loading[collection.data_id] = task
            task.add_done_callback(lambda _: self._loading.pop(collection.data_id, None))
        return await asyncio.shield(task)

    async def _load_alone(self, collection: Collection) -> LoadedIndex:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        index = await loop.run_in_executor(self._working, self._snapshots.load, collection)
        source = "file" if index else "rows"
        loaded = LoadedIndex(collection, index or self._new_index(collection), self._searching)
        await self._catch_up(loaded, collection)
        self._loaded[collection.data_id] = loaded
        _LOADED.labels(source).inc()
        log.info(
            "index_loaded",
            collection_id=str(collection.id),
            source=source,
            records=loaded.index.size,
            seconds=round(time.perf_counter() - started, 3),
        )
        self._evict(keep=loaded)
        return loaded

    async def _catch_up(self, loaded: LoadedIndex, collection: Collection) -> None:
        """Apply all changes that are committed by now."""
        before = loaded.index.sequence
        async with loaded.updating:
            if loaded.index.sequence != before and loaded.index.sequence >= collection.sequence:
                return  # another search has done it
            after = loaded.index.sequence
            async with self._store.changes(collection, after=after) as stream:
                if stream.sequence >= after >= stream.horizon or after == 0:
                    async for part in stream.parts:
                        async with loaded.lock.exclusive():
                            await loaded.run(partial(loaded.index.apply, part))
                        loaded.unsaved_changes += len(part.removed) + len(part.ordinals)
                    loaded.index.sequence = stream.sequence
                else:
                    after = -1
            if after == -1:
                await self._start_over(loaded, collection)
        self._evict(keep=loaded)
        self._tend(loaded)

    async def _start_over(self, loaded: LoadedIndex, collection: Collection) -> None:
        """Build an index anew: it is older than the deletions listed, or newer than a database that was set back."""
        log.warning("index_rebuilt", collection_id=str(collection.id), was_at=loaded.index.sequence)
        fresh = self._new_index(collection)
        async with self._store.changes(collection, after=0) as stream:
            async for part in stream.parts:
                await loaded.run(partial(fresh.apply, part))
        fresh.sequence = stream.sequence
        await _end(loaded.background)
        async with loaded.lock.exclusive():
            loaded.index = fresh
        loaded.unsaved_changes = fresh.size

    def _tend(self, loaded: LoadedIndex) -> None:
        """See to it that put-off work and the file are seen to, unless that is under way."""
        is_due = loaded.index.wants_upkeep or self._is_save_due(loaded)
        if is_due and not self._stopping and (loaded.background is None or loaded.background.done()):
            loaded.background = asyncio.create_task(self._tend_in_background(loaded))

    async def _tend_in_background(self, loaded: LoadedIndex) -> None:
        try:
            index = loaded.index
            await self._rebuild_if_due(loaded, index)
            more = True
            while more:
                async with loaded.lock.exclusive():
                    more = await loaded.run(partial(index.tidy, _TIDY_SECONDS))
            if self._is_save_due(loaded):
                await self._save(loaded)
        except Exception:
            # A task of its own: nobody else would hear of it. Searches do not depend on it.
            log.exception("index_upkeep_failed", collection_id=str(loaded.collection.id))

    def _is_save_due(self, loaded: LoadedIndex) -> bool:
        return loaded.unsaved_changes >= max(self._snapshot_changes, loaded.index.size // 10)

    async def _rebuild_if_due(self, loaded: LoadedIndex, index: VectorIndex) -> None:
        async with loaded.lock.exclusive():
            rebuild = await loaded.run(index.plan_rebuild)
        if rebuild is None:
            return
        stop = asyncio.Event()
        building = asyncio.get_running_loop().run_in_executor(self._working, rebuild.build, stop.is_set)
        finished = False
        try:
            finished = await asyncio.shield(building)
        finally:
            stop.set()
            await asyncio.wait([building])
            async with loaded.lock.exclusive():
                await loaded.run(partial(index.adopt, rebuild if finished else None))
        loaded.unsaved_changes += index.size

    async def _save(self, loaded: LoadedIndex) -> None:
        files: list[UnsealedFile] = []
        try:
            async with loaded.lock.shared():
                unsaved = loaded.unsaved_changes
                await loaded.run(lambda: files.append(self._snapshots.begin(loaded.collection, loaded.index)))
            await _run(self._working, files[0].seal)
            loaded.unsaved_changes -= unsaved
            loaded.saved_at = time.monotonic()
        except OSError as error:
            # The file is a cache; the next attempt comes with the next changes.
            log.warning("index_not_saved", collection_id=str(loaded.collection.id), error=repr(error))
        finally:
            for file in files:
                file.discard()

    def _evict(self, *, keep: LoadedIndex) -> None:
        """Drop the least recently used indexes until the rest fits; those in use live on until they are let go."""
        others = sorted(self._loaded.values(), key=lambda loaded: loaded.last_used)
        total = sum(loaded.index.memory_bytes for loaded in others)
        for loaded in others:
            if total <= self._memory_bytes:
                break
            if loaded is not keep and (loaded.background is None or loaded.background.done()):
                total -= loaded.index.memory_bytes
                del self._loaded[loaded.collection.data_id]
                if loaded.unsaved_changes:
                    loaded.background = asyncio.create_task(self._save(loaded))
                log.info("index_evicted", collection_id=str(loaded.collection.id))
        self._measure()

    def _all(self) -> list[LoadedIndex]:
        """For the thread that serves metrics: a copy, which is made at once."""
        return list(self._loaded.values())

    def _snapshot_age(self) -> float:
        now = time.monotonic()
        return max((now - loaded.saved_at for loaded in self._all() if loaded.unsaved_changes), default=0.0)

    def _measure(self) -> None:
        _MEMORY.set(sum(loaded.index.memory_bytes for loaded in self._loaded.values()))


async def _run(executor: Executor, work: Callable[[], T]) -> T:
    """Run blocking work in a thread; also when cancelled it has ended on return, so that locks may be given back."""
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def _end(task: "asyncio.Task[T] | None") -> None:
    """Cancel a task and wait until it has ended, however it ends."""
    if task is not None and task is not asyncio.current_task():
        task.cancel()
        await asyncio.wait([task])
