"""A collection's index in memory: a FAISS graph if the collection has one, and a flat part for what is not in it yet.

Changes always go to the flat part at once, whose cost is that of copying the vectors; the graph learns them later,
a few at a time (`tidy`), or is built anew beside the one in use when much has come or gone (`plan_rebuild`).
"""

import time
from collections.abc import Callable
from typing import BinaryIO

import faiss
import numpy as np

from services.vector.domain.index import Found, Rebuild
from services.vector.domain.model import Collection, IndexType
from services.vector.domain.store import Changes
from services.vector.domain.vectors import Floats, Ordinals, comparable
from services.vector.storage.segments import FlatSegment, GraphSegment, Slots

_GRAPH_FROM = 1_000
"""So many wait in the flat part before the graph learns them: comparing them takes less than a millisecond."""
_MAX_DEAD = 0.25
"""Share of dead slots above which a graph is built anew: searches pass over them, and they take memory."""
_OVER = 8
"""Candidates beyond top_k, for what FAISS ranks differently by rounding, and to see ties that cross the cut."""
_MAX_CANDIDATES = 2_048
_BUILD_STEP = 256
_PART = 65_536


class FaissIndex:
    """The VectorIndex (domain/index.py) on FAISS."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.sequence = 0
        self._flat = FlatSegment(collection.dimension, collection.metric)
        self._graph = _new_graph(collection) if collection.index.type is IndexType.HNSW else None
        self._changed: list[Ordinals] | None = None
        """What has changed since a rebuild was planned; None = no rebuild is under way."""

    @property
    def size(self) -> int:
        """Number of vectors that can be found."""
        return self._flat.live + (self._graph.live if self._graph else 0)

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory, about."""
        return self._flat.memory_bytes + (self._graph.memory_bytes if self._graph else 0)

    @property
    def wants_upkeep(self) -> bool:
        """Whether there is work put off."""
        return self._graph is not None and (self._flat.live > _GRAPH_FROM or self._is_worn(self._graph))

    def apply(self, changes: Changes) -> None:
        """Forget and learn."""
        ordinals, vectors = changes.ordinals, comparable(changes.vectors, self._collection.metric)
        if self._graph is not None:
            # Texts and metadata change more often than vectors; what the graph has right stays in it.
            new = ~self._graph.holds(ordinals, vectors)
            ordinals, vectors = ordinals[new], vectors[new]
            self._graph.remove(np.concatenate([changes.removed, ordinals]))
        if self._changed is not None:
            self._changed += [changes.removed, ordinals]
        self._flat.remove(changes.removed)
        if len(ordinals):
            self._flat.put(ordinals, vectors)

    def search(self, queries: Floats, top_k: int, *, ef_search: int, allowed: Ordinals | None) -> list[Found]:
        """The best `top_k` or more for each query. Exact, but for the graph."""
        wanted = top_k + _OVER
        found = self._search(queries, wanted, ef_search, allowed)
        while wanted < min(_MAX_CANDIDATES, self.size):
            crossing = [
                number
                for number, each in enumerate(found)
                if len(each.scores) >= wanted and each.scores[wanted - 1] == each.scores[top_k - 1]
            ]
            if not crossing:
                break
            wanted = min(wanted * 8, _MAX_CANDIDATES)
            for number, each in zip(crossing, self._search(queries[crossing], wanted, ef_search, allowed), strict=True):
                found[number] = each
        return found

    def _search(self, queries: Floats, wanted: int, ef_search: int, allowed: Ordinals | None) -> list[Found]:
        per_segment: list[tuple[FlatSegment | GraphSegment, list[Slots]]] = []
        if self._flat.live:
            per_segment.append((self._flat, self._flat.nearest(queries, wanted, _slots(self._flat, allowed))))
        if self._graph is not None and self._graph.live:
            slots = _slots(self._graph, allowed)
            per_segment.append((self._graph, self._graph.nearest(queries, wanted, slots, ef_search)))
        found = []
        for number, query in enumerate(queries):
            ordinals = [segment.map.ordinals[slots[number]] for segment, slots in per_segment]
            scores = [segment.scores(query, slots[number]) for segment, slots in per_segment]
            if not ordinals:
                found.append(Found(np.empty(0, np.int64), np.empty(0, np.float32)))
                continue
            all_ordinals, all_scores = np.concatenate(ordinals), np.concatenate(scores)
            best = np.argsort(-all_scores, kind="stable")[:wanted]
            found.append(Found(all_ordinals[best], all_scores[best]))
        return found

    def tidy(self, seconds: float) -> bool:
        """Move vectors from the flat part to the graph, the last first; whether some are left to move."""
        if self._graph is None or self._changed is not None or self._flat.live == 0:
            return False
        until = time.perf_counter() + seconds
        while self._flat.live and time.perf_counter() < until:
            self._graph.add(*self._flat.take_last(4))
        return self._flat.live > 0

    def plan_rebuild(self) -> Rebuild | None:
        """A rebuild when the graph is worn, or when more waits for it than it holds."""
        if self._graph is None or not (self._is_worn(self._graph) or self._flat.live > _GRAPH_FROM + self._graph.live):
            return None
        self._changed = []
        slots = self._graph.live_slots()
        return GraphRebuild(
            self._collection,
            np.concatenate([self._graph.map.ordinals[slots], self._flat.map.in_use]),
            np.concatenate([self._graph.vectors[slots], self._flat.vectors]),
        )

    def adopt(self, rebuild: Rebuild | None) -> None:
        """Take the graph that was built; what has changed meanwhile is in the flat part."""
        changed, self._changed = self._changed, None
        if rebuild is None:
            return
        if not isinstance(rebuild, GraphRebuild) or changed is None:
            raise TypeError("not a rebuild of this index")
        graph = rebuild.graph
        if changed:
            graph.remove(np.concatenate(changed))
        self._flat.remove(graph.map.in_use[graph.live_slots()])
        self._graph = graph

    def _is_worn(self, graph: GraphSegment) -> bool:
        return graph.dead > _GRAPH_FROM and graph.dead > _MAX_DEAD * graph.map.count

    def write(self, file: BinaryIO) -> None:
        """Write it for `read`: the change it is at, then each part with its slots."""
        graph = self._graph
        np.array([self.sequence, self._flat.live, graph.map.count if graph else 0], "<i8").tofile(file)
        self._flat.map.in_use.astype("<i8").tofile(file)
        self._flat.vectors.astype("<f4", copy=False).tofile(file)
        if graph is not None:
            graph.map.in_use.astype("<i8").tofile(file)
            file.flush()
            faiss.write_index(graph.index, faiss.PyCallbackIOWriter(file.write, 1 << 20))

    @classmethod
    def read(cls, collection: Collection, file: BinaryIO) -> "FaissIndex":
        """What `write` wrote. The caller has made sure of that: FAISS's reader must not be given anything else."""
        index = cls(collection)
        index.sequence, flat, slots = np.fromfile(file, "<i8", 3).tolist()
        ordinals = np.fromfile(file, "<i8", flat)
        for start in range(0, flat, _PART):
            part = ordinals[start : start + _PART]
            vectors = np.fromfile(file, "<f4", len(part) * collection.dimension)
            index._flat.put(part, vectors.reshape(len(part), collection.dimension))
        if index._graph is not None:
            ordinals = np.fromfile(file, "<i8", slots)
            index._graph.index = faiss.read_index(faiss.PyCallbackIOReader(file.read, 1 << 20))
            index._graph.map.append(ordinals)
            index._graph.live = int((ordinals >= 0).sum())
        return index


class GraphRebuild:
    """The Rebuild (domain/index.py) of a graph."""

    def __init__(self, collection: Collection, ordinals: Ordinals, vectors: Floats) -> None:
        self.graph = _new_graph(collection)
        self._ordinals = ordinals
        self._vectors = vectors

    def build(self, stop: Callable[[], bool]) -> bool:
        """Build the graph, about a millisecond per vector; False when stopped in between."""
        for start in range(0, len(self._ordinals), _BUILD_STEP):
            if stop():
                return False
            part = slice(start, start + _BUILD_STEP)
            self.graph.add(self._ordinals[part], self._vectors[part])
        return True


def _new_graph(collection: Collection) -> GraphSegment:
    return GraphSegment(
        collection.dimension,
        collection.metric,
        m=collection.index.m,
        ef_construction=collection.index.ef_construction,
    )


def _slots(segment: FlatSegment | GraphSegment, allowed: Ordinals | None) -> Slots | None:
    if allowed is None:
        return None
    slots = segment.map.slots_of(allowed)
    return slots[slots >= 0]


def use_one_thread() -> None:
    """Keep FAISS calls of this thread on it: searches run side by side, and other processes need the cores."""
    faiss.omp_set_num_threads(1)
