"""The two kinds of vector stores that an index is made of, each a FAISS index with its slots mapped to ordinals.

A slot is a FAISS id: 0, 1, 2... in the order of adding. FAISS's own IDMap2 is not used: it goes through all its ids for
every removal. Scores that leave here are computed anew from the vectors in float64, so that equal vectors have
equal scores however FAISS came upon them (its BLAS and its SIMD paths round differently).
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from services.vector.domain.model import Metric
from services.vector.domain.vectors import Floats, Ordinals

Slots: TypeAlias = NDArray[np.int64]

# FAISS compares a batch by BLAS when queries x dimension reach this; by BLAS, squared distances are differences of
# large numbers, so L2 stays below (see `_Comparer.batches`). Measured at 100,000 x 384, one thread: 15 ms per
# query without BLAS, 35 ms for 2 and 49 ms for 16 queries with it.
_BLAS_FLOATS = 4097
faiss.cvar.distance_compute_blas_threshold = _BLAS_FLOATS
_PART_FLOATS = 4_000_000
_EXACT_FLOATS = 20_000_000
"""A filtered search compares up to so many numbers one by one before it trusts the graph: about 10 ms."""


class SlotMap:
    """Which ordinal is in which slot, and back. Takes 4 bytes per ordinal ever given out, 8 per slot."""

    def __init__(self) -> None:
        self.ordinals: Ordinals = np.empty(0, np.int64)
        """By slot; -1 = nothing to be found here."""
        self.count = 0
        self._slots: NDArray[np.int32] = np.empty(0, np.int32)

    @property
    def in_use(self) -> Ordinals:
        """The ordinals by slot, without the room for growth."""
        return self.ordinals[: self.count]

    def append(self, ordinals: Ordinals) -> None:
        """Put ordinals, not yet in here or -1, into the next slots."""
        self.ordinals = _grown(self.ordinals, self.count + len(ordinals))
        self.ordinals[self.count : self.count + len(ordinals)] = ordinals
        slots = np.arange(self.count, self.count + len(ordinals))
        self.count += len(ordinals)
        real = ordinals >= 0
        if real.any():
            self._slots = _grown(self._slots, int(ordinals.max()) + 1, fill=-1)
            self._slots[ordinals[real]] = slots[real]

    def slots_of(self, ordinals: Ordinals) -> Slots:
        """The slots of these ordinals, -1 for those that are not in here."""
        slots = np.full(len(ordinals), -1, np.int64)
        known = (ordinals >= 0) & (ordinals < len(self._slots))
        slots[known] = self._slots[ordinals[known]]
        return slots

    def clear(self, slots: Slots) -> None:
        """Take the ordinals out of these slots."""
        self._slots[self.ordinals[slots]] = -1
        self.ordinals[slots] = -1

    def move(self, sources: Slots, targets: Slots) -> None:
        """Move ordinals into slots that were cleared."""
        moved = self.ordinals[sources]
        self.ordinals[targets] = moved
        self.ordinals[sources] = -1
        self._slots[moved] = targets

    @property
    def memory_bytes(self) -> int:
        """What it takes."""
        return self.ordinals.nbytes + self._slots.nbytes


class Segment:
    """Vectors in slots, with what both kinds do alike. `live` slots can be found."""

    def __init__(self, index: Any, metric: Metric) -> None:
        self.index = index
        self.metric = metric
        self.map = SlotMap()
        self.live = 0

    @property
    def vectors(self) -> Floats:
        """A view of all vectors by slot, shape (slots, d); valid until the next change."""
        flat = self.index if isinstance(self.index, faiss.IndexFlat) else faiss.downcast_index(self.index.storage)
        if flat.ntotal == 0:
            return np.empty((0, flat.d), np.float32)
        view: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        return view

    def holds(self, ordinals: Ordinals, vectors: Floats) -> NDArray[np.bool_]:
        """Which of the ordinals are here with just these vectors."""
        slots = self.map.slots_of(ordinals)
        here = slots >= 0
        here[here] = (self.vectors[slots[here]] == vectors[here]).all(axis=1)
        return here

    def live_slots(self) -> Slots:
        """The slots that can be found."""
        return np.flatnonzero(self.map.in_use >= 0)

    def scores(self, query: Floats, slots: Slots) -> NDArray[np.float32]:
        """Scores of some slots, higher is nearer."""
        parts = [_scores(query, self.vectors[part], self.metric) for part in _in_parts(slots, self.index.d)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def exact(self, queries: Floats, wanted: int, slots: Slots) -> list[Slots]:
        """The best `wanted` of some slots for each query, found by comparing all of them."""
        best = [np.empty(0, np.int64)] * len(queries)
        nearness = [np.empty(0, np.float32)] * len(queries)
        for part in _in_parts(slots, self.index.d):
            vectors = self.vectors[part]
            for number, near in enumerate(_nearness(queries, vectors, self.metric)):
                all_slots, all_near = np.concatenate([best[number], part]), np.concatenate([nearness[number], near])
                if len(all_near) > wanted:
                    top = np.argpartition(-all_near, wanted)[:wanted]
                    all_slots, all_near = all_slots[top], all_near[top]
                best[number], nearness[number] = all_slots, all_near
        return best

    def selector(self, slots: Slots) -> Any:
        """FAISS's view of a set of slots."""
        mask = np.zeros(self.map.count, bool)
        mask[slots] = True
        return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

    def batches(self, queries: Floats) -> Iterator[tuple[Floats, int]]:
        """Queries as FAISS should be asked, and how many of each batch count; the rest is padding.

        L2 in batches too small for BLAS; the others padded up to BLAS where that costs less than going without.
        """
        number, dimension = queries.shape
        if self.metric is Metric.L2:
            step = max(1, (_BLAS_FLOATS - 1) // dimension)
            for start in range(0, number, step):
                yield queries[start : start + step], len(queries[start : start + step])
            return
        least = -(-_BLAS_FLOATS // dimension)
        if 3 <= number < least <= 4 * number:
            yield np.resize(queries, (least, dimension)), number
        else:
            yield queries, number


class FlatSegment(Segment):
    """Every vector is compared. Dense: a removed vector's slot is filled with the last one."""

    def __init__(self, dimension: int, metric: Metric) -> None:
        kind = faiss.IndexFlatL2 if metric is Metric.L2 else faiss.IndexFlatIP
        super().__init__(kind(dimension), metric)

    def put(self, ordinals: Ordinals, vectors: Floats) -> None:
        """Learn vectors, replacing those that are here."""
        slots = self.map.slots_of(ordinals)
        known = slots >= 0
        if known.any():
            self.vectors[slots[known]] = vectors[known]
        if not known.all():
            self.index.add(np.ascontiguousarray(vectors[~known]))
            self.map.append(ordinals[~known])
        self.live = self.map.count

    def remove(self, ordinals: Ordinals) -> None:
        """Forget ordinals; those that are not here do not matter."""
        slots = np.unique(self.map.slots_of(ordinals))
        slots = slots[slots >= 0]
        if len(slots) == 0:
            return
        left = self.map.count - len(slots)
        self.map.clear(slots)
        holes = slots[slots < left]
        tail = np.arange(left, self.map.count)
        moving = tail[self.map.ordinals[tail] >= 0]
        self.vectors[holes] = self.vectors[moving]
        self.map.move(moving, holes)
        self.truncate(left)

    def truncate(self, left: int) -> None:
        """Give up the slots from `left` on, which hold nothing any more."""
        self.index.remove_ids(faiss.IDSelectorRange(left, self.map.count))
        self.map.count = self.live = left

    def take_last(self, number: int) -> tuple[Ordinals, Floats]:
        """Remove the vectors of the last slots and return them."""
        left = max(0, self.map.count - number)
        slots = np.arange(left, self.map.count)
        ordinals, vectors = self.map.ordinals[slots].copy(), self.vectors[slots].copy()
        self.map.clear(slots)
        self.truncate(left)
        return ordinals, vectors

    def nearest(self, queries: Floats, wanted: int, allowed: Slots | None) -> list[Slots]:
        """At least the best `wanted` slots for each query, in no order; all of them where there are fewer."""
        if allowed is not None and (len(allowed) * 3 < self.live or len(allowed) * self.index.d <= _EXACT_FLOATS):
            return self.exact(queries, wanted, allowed)
        parameters = faiss.SearchParameters(sel=self.selector(allowed)) if allowed is not None else None
        found: list[Slots] = []
        for batch, number in self.batches(queries):
            _, slots = self.index.search(batch, min(wanted, self.live), params=parameters)
            found.extend(row[row >= 0] for row in slots[:number])
        return found

    @property
    def memory_bytes(self) -> int:
        """What it takes."""
        return self.map.count * int(self.index.d) * 4 + self.map.memory_bytes


class GraphSegment(Segment):
    """HNSW: near neighbours linked. Nothing can be taken out of the graph, so removed slots are passed over."""

    def __init__(self, dimension: int, metric: Metric, *, m: int, ef_construction: int) -> None:
        kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        super().__init__(faiss.IndexHNSWFlat(dimension, m, kind), metric)
        self.index.hnsw.efConstruction = ef_construction
        self._m = m

    @property
    def dead(self) -> int:
        """Slots that nothing is found in any more."""
        return self.map.count - self.live

    def add(self, ordinals: Ordinals, vectors: Floats) -> None:
        """Learn vectors that are not here. Takes about a millisecond each in a large graph."""
        self.index.add(vectors)
        self.map.append(ordinals)
        self.live += int((ordinals >= 0).sum())

    def remove(self, ordinals: Ordinals) -> None:
        """Forget ordinals; those that are not here do not matter."""
        slots = self.map.slots_of(ordinals)
        slots = np.unique(slots[slots >= 0])
        self.map.clear(slots)
        self.live -= len(slots)

    def nearest(self, queries: Floats, wanted: int, allowed: Slots | None, ef_search: int) -> list[Slots]:
        """About the best `wanted` slots for each query, in no order.

        A filter keeps the search from its results, not from its way: to come by as many allowed ones, it must look at
        as many more as there are for each allowed one. Where that is much, or where it finds too few, all are compared.
        """
        number = len(allowed) if allowed is not None else self.live
        if number * self.index.d <= _EXACT_FLOATS and allowed is not None:
            return self.exact(queries, wanted, allowed)
        if number == 0:
            return [np.empty(0, np.int64)] * len(queries)
        breadth = max(ef_search, wanted)
        selector = None
        if allowed is not None or self.dead:
            selector = self.selector(allowed if allowed is not None else self.live_slots())
            breadth = int(1.2 * breadth * self.map.count / number)
        parameters = faiss.SearchParametersHNSW(efSearch=min(breadth, self.map.count), sel=selector)
        _, slots = self.index.search(queries, min(wanted, number), params=parameters)
        found = [row[row >= 0] for row in slots]
        for position, row in enumerate(found):
            if len(row) < min(wanted, number):
                everything = allowed if allowed is not None else self.live_slots()
                found[position] = self.exact(queries[position : position + 1], wanted, everything)[0]
        return found

    @property
    def memory_bytes(self) -> int:
        """What it takes: vectors, and two links of 4 bytes for each neighbour at the lowest level."""
        return self.map.count * (int(self.index.d) * 4 + self._m * 9) + self.map.memory_bytes


def _scores(query: Floats, vectors: Floats, metric: Metric) -> NDArray[np.float32]:
    wide = vectors.astype(np.float64)
    scores: NDArray[np.float64]
    if metric is Metric.L2:
        wide -= query
        scores = 1 / (1 + np.einsum("ij,ij->i", wide, wide))
    else:
        scores = np.einsum("ij,j->i", wide, query.astype(np.float64))
    return (np.clip(scores, -1, 1) if metric is Metric.COSINE else scores).astype(np.float32)


def _nearness(queries: Floats, vectors: Floats, metric: Metric) -> Iterator[NDArray[np.float32]]:
    """For each query something in the order of the scores."""
    if metric is not Metric.L2:
        yield from queries @ vectors.T
        return
    for query in queries:
        difference = vectors - query
        yield -np.einsum("ij,ij->i", difference, difference)


def _in_parts(slots: Slots, dimension: int) -> Iterator[Slots]:
    step = max(1, _PART_FLOATS // dimension)
    for start in range(0, len(slots), step):
        yield slots[start : start + step]


def _grown(array: Any, size: int, *, fill: int = 0) -> Any:
    """The array with room for `size` values; doubled, so that growing one by one stays cheap."""
    if size <= len(array):
        return array
    larger = np.full(max(size, 2 * len(array)), fill, array.dtype)
    larger[: len(array)] = array
    return larger
