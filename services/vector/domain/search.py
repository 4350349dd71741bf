"""Search: concurrent searches of one collection share a look at the sequence number, an index call and a row fetch."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import numpy as np
import structlog
from prometheus_client import Histogram

from services.kit.errors import InvalidArgumentError, Violation
from services.kit.filters import Filter
from services.vector.domain.embedder import Embedder
from services.vector.domain.index import Found
from services.vector.domain.indexes import LoadedIndex, LoadedIndexes
from services.vector.domain.model import (
    DEFAULT_TOP_K,
    MAX_TEXT,
    MAX_TOP_K,
    Collection,
    Match,
    VectorRequiredError,
)
from services.vector.domain.store import CollectionStore, IndexedStore, StoredMatch
from services.vector.domain.vectors import Floats, Ordinals, check_vectors, comparable

log = structlog.get_logger(__name__)

_BATCH = Histogram(
    "headrace_vector_search_batch_queries", "Searches answered together.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
_SECONDS = Histogram(
    "headrace_vector_search_batch_duration_seconds",
    "Time that answering them took, without embedding.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
_MAX_BATCH = 64
_BATCHES_AT_ONCE = 2
"""Per collection: one computes while the other waits for PostgreSQL."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for: `text` or `vector` (float32, little-endian). `top_k` 0 = 10."""

    text: str | None
    vector: bytes | None
    top_k: int
    only: Filter | None
    min_score: float | None


@dataclass(slots=True)
class _Waiting:
    vector: bytes
    top_k: int
    only: Filter | None
    min_score: float
    answer: "asyncio.Future[list[Match]]"


@dataclass(slots=True)
class _Lane:
    """The searches of one collection that wait, and how many batches of it are under way."""

    waiting: list[_Waiting] = field(default_factory=list)
    batches: set["asyncio.Task[None]"] = field(default_factory=set)


class Search:
    """Finds the records nearest to a query."""

    def __init__(
        self, collections: CollectionStore, store: IndexedStore, embedder: Embedder, indexes: LoadedIndexes
    ) -> None:
        self._collections = collections
        self._store = store
        self._embedder = embedder
        self._indexes = indexes
        self._lanes: dict[tuple[UUID, str], _Lane] = {}

    async def search(
        self, project_id: UUID, reference: str, query: Query, *, timeout_seconds: float
    ) -> Sequence[Match]:
        """The nearest records, nearest first, equal scores by id. Sees every write that was answered before.

        Raises CollectionNotFoundError, DimensionMismatchError, InvalidVectorError, VectorRequiredError,
        ModelUnavailableError, InvalidArgumentError.
        """
        _check(query)
        vector = query.vector
        if vector is None:
            vector = await self._embed(project_id, reference, str(query.text), timeout_seconds)
        waiting = _Waiting(
            vector=vector,
            top_k=query.top_k or DEFAULT_TOP_K,
            only=query.only,
            min_score=-np.inf if query.min_score is None else query.min_score,
            answer=asyncio.get_running_loop().create_future(),
        )
        lane = self._lanes.setdefault((project_id, reference), _Lane())
        lane.waiting.append(waiting)
        self._start_batch(project_id, reference, lane)
        return await waiting.answer

    async def _embed(self, project_id: UUID, reference: str, text: str, timeout_seconds: float) -> bytes:
        collection = await self._collections.find(project_id, reference)
        if not collection.embedding_model:
            raise VectorRequiredError(
                f"The collection {collection.name!r} has no embedding model: search by a vector.",
                violations=(Violation("VECTOR_REQUIRED", "is required", "vector"),),
            )
        vectors = await self._embedder.embed(
            project_id, collection.embedding_model, [text], timeout_seconds=timeout_seconds
        )
        return vectors[0]

    def _start_batch(self, project_id: UUID, reference: str, lane: _Lane) -> None:
        if lane.waiting and len(lane.batches) < _BATCHES_AT_ONCE:
            batch, lane.waiting = lane.waiting[:_MAX_BATCH], lane.waiting[_MAX_BATCH:]
            task = asyncio.create_task(self._answer(project_id, reference, batch))
            lane.batches.add(task)
            task.add_done_callback(partial(self._end_batch, project_id, reference, lane))

    def _end_batch(self, project_id: UUID, reference: str, lane: _Lane, task: "asyncio.Task[None]") -> None:
        lane.batches.discard(task)
        self._start_batch(project_id, reference, lane)
        if not lane.batches:
            self._lanes.pop((project_id, reference), None)

    async def _answer(self, project_id: UUID, reference: str, batch: list[_Waiting]) -> None:
        """Answer a batch; whatever is raised goes to those who wait."""
        batch = [waiting for waiting in batch if not waiting.answer.done()]
        _BATCH.observe(len(batch))
        begun = time.perf_counter()
        try:
            collection = await self._collections.find(project_id, reference)
            alike: dict[str, list[tuple[_Waiting, Floats]]] = defaultdict(list)
            for waiting in batch:
                try:
                    vector = check_vectors(
                        {"vector": waiting.vector}, dimension=collection.dimension, metric=collection.metric
                    )
                except InvalidArgumentError as error:
                    _fail(waiting, error)
                else:
                    alike[repr(waiting.only)].append((waiting, vector))
            for queries in alike.values():
                await self._answer_alike(collection, queries[0][0].only, queries)
        except BaseException as error:
            for waiting in batch:
                _fail(waiting, error)
            if not isinstance(error, Exception):
                raise
        finally:
            _SECONDS.observe(time.perf_counter() - begun)

    async def _answer_alike(
        self, collection: Collection, only: Filter | None, queries: list[tuple[_Waiting, Floats]]
    ) -> None:
        """Answer searches with the same filter.

        Rows are read after the index was searched. When one of them has changed in between, its score is stale and
        a better record may have been left out for it: then the search is repeated on the present state.
        """
        rows: dict[int, StoredMatch] = {}
        for attempt in range(1, _ATTEMPTS + 1):
            loaded = await self._indexes.current(collection)
            allowed: Ordinals | None = None
            sequence = collection.sequence
            if only is not None:
                allowed = await loaded.allowed(self._store, only, sequence=sequence)
            async with loaded.lock.shared():
                if only is None:
                    sequence = loaded.index.sequence
                found = await self._compute(loaded, collection, [vector for _, vector in queries], allowed, queries)
            chosen = await self._choose(collection, found, queries)
            ordinals = np.unique(np.concatenate([each.ordinals for each in chosen]))
            rows = await self._store.at(collection, ordinals) if len(ordinals) else {}
            is_steady = len(rows) == len(ordinals) and all(row.sequence <= sequence for row in rows.values())
            if is_steady or attempt == _ATTEMPTS:
                break
            collection = await self._collections.find(collection.project_id, str(collection.id))
        if only is not None:
            # Under a storm of writes: what has changed may not match any more.
            rows = {ordinal: row for ordinal, row in rows.items() if row.sequence <= sequence}
        for (waiting, _), each in zip(queries, chosen, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(_matches(each, rows, waiting.top_k))

    async def _compute(
        self,
        loaded: LoadedIndex,
        collection: Collection,
        vectors: list[Floats],
        allowed: Ordinals | None,
        queries: list[tuple[_Waiting, Floats]],
    ) -> list[Found]:
        return await loaded.run(
            partial(
                loaded.index.search,
                comparable(np.concatenate(vectors), collection.metric),
                max(waiting.top_k for waiting, _ in queries),
                ef_search=collection.index.ef_search,
                allowed=allowed,
            )
        )

    async def _choose(
        self, collection: Collection, found: list[Found], queries: list[tuple[_Waiting, Floats]]
    ) -> list[Found]:
        """Cut candidates down to top_k and min_score; where a tie crosses the cut, the lower ids stay."""
        cut: list[Found] = []
        tied: list[Ordinals] = []
        for each, (waiting, _) in zip(found, queries, strict=True):
            keep = each.scores >= waiting.min_score
            if len(each.scores) > waiting.top_k:
                keep &= each.scores >= each.scores[waiting.top_k - 1]
            cut.append(Found(each.ordinals[keep], each.scores[keep]))
            if len(cut[-1].ordinals) > waiting.top_k:
                tied.append(cut[-1].ordinals[cut[-1].scores == cut[-1].scores[-1]])
        if not tied:
            return cut
        ids = await self._store.ids_at(collection, np.unique(np.concatenate(tied)))
        return [
            _cut_tie(each, waiting.top_k, ids) if len(each.ordinals) > waiting.top_k else each
            for each, (waiting, _) in zip(cut, queries, strict=True)
        ]


def _cut_tie(found: Found, top_k: int, ids: dict[int, str]) -> Found:
    above = found.scores > found.scores[-1]
    tied = sorted((int(ordinal) for ordinal in found.ordinals[~above]), key=lambda ordinal: ids.get(ordinal, ""))
    ordinals = np.concatenate([found.ordinals[above], np.array(tied, np.int64)])[:top_k]
    return Found(ordinals, found.scores[:top_k])


def _matches(found: Found, rows: dict[int, StoredMatch], top_k: int) -> list[Match]:
    matches = [
        Match(rows[ordinal].record, score)
        for ordinal, score in zip(found.ordinals.tolist(), found.scores.tolist(), strict=True)
        if ordinal in rows
    ]
    return sorted(matches, key=lambda match: (-match.score, match.record.id))[:top_k]


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        if isinstance(error, Exception):
            waiting.answer.set_exception(error)
        else:
            waiting.answer.cancel()


def _check(query: Query) -> None:
    violations: list[Violation] = []
    if query.text is None and query.vector is None:
        violations.append(Violation("REQUIRED", "needs a text or a vector", "text"))
    if query.text is not None and not 1 <= len(query.text) <= MAX_TEXT:
        violations.append(Violation("INVALID_TEXT", f"must have 1 to {MAX_TEXT} characters", "text"))
    if not 0 <= query.top_k <= MAX_TOP_K:
        violations.append(Violation("OUT_OF_RANGE", f"must be 1 to {MAX_TOP_K}", "top_k"))
    if query.min_score is not None and not np.isfinite(query.min_score):
        violations.append(Violation("NOT_FINITE", "must be a finite number", "min_score"))
    if violations:
        first = violations[0]
        raise InvalidArgumentError(f"`{first.path}` {first.message}.", violations=tuple(violations))
