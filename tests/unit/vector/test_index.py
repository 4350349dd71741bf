"""The index in memory against plain numpy: changes, rebuilds, filters, and files in bulk."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from datetime import UTC, datetime

import faiss
import numpy as np
import pytest

from services.kit.ids import new_id
from services.vector.domain.model import Collection, IndexConfig, IndexType, Metric
from services.vector.domain.store import Changes
from services.vector.storage import faiss_index, segments
from services.vector.storage.faiss_index import FaissIndex
from services.vector.storage.snapshots import FileSnapshots

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NONE = np.empty(0, np.int64)


def a_collection(dimension=16, metric=Metric.L2, kind=IndexType.HNSW):
    return Collection(
        id=new_id(),
        project_id=new_id(),
        data_id=new_id(),
        name="c",
        embedding_model="",
        dimension=dimension,
        metric=metric,
        index=IndexConfig(kind, 12, 48, 48),
        record_count=0,
        sequence=0,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )


def written(ordinals, vectors):
    return Changes(NONE, np.asarray(ordinals, np.int64), np.asarray(vectors, np.float32))


def removed(ordinals, dimension=16):
    return Changes(np.asarray(ordinals, np.int64), NONE, np.empty((0, dimension), np.float32))


def upkeep(index):
    """All that would be done in the background."""
    if rebuild := index.plan_rebuild():
        assert rebuild.build(lambda: False)
        index.adopt(rebuild)
    while index.tidy(1):
        pass


def recall(index, truth, queries, allowed=None):
    """Share of the true 10 nearest (squared distance) that the index finds; none that it must not find."""
    numbers = np.array([number for number in truth if allowed is None or number in allowed])
    vectors = np.array([truth[number] for number in numbers])
    only = None if allowed is None else np.array(sorted(allowed), np.int64)
    hits = 0
    for query, found in zip(queries, index.search(queries, 10, ef_search=64, allowed=only), strict=True):
        assert set(found.ordinals.tolist()) <= set(numbers.tolist())
        exact = numbers[np.argsort(((vectors - query) ** 2).sum(axis=1))[:10]]
        assert len(found.ordinals) >= len(exact)
        hits += len(set(exact.tolist()) & set(found.ordinals[:10].tolist()))
    return hits / 10 / len(queries)


@pytest.fixture
def generator():
    return np.random.default_rng(5)


@pytest.fixture
def queries(generator):
    return generator.standard_normal((20, 16), dtype=np.float32)


def test_a_graph_that_has_lost_much_is_built_anew_while_changes_go_on(generator, queries):
    index = FaissIndex(a_collection())
    vectors = generator.standard_normal((3000, 16), dtype=np.float32)
    truth = dict(enumerate(vectors))
    index.apply(written(range(3000), vectors))
    assert index.wants_upkeep
    upkeep(index)
    assert not index.wants_upkeep
    assert recall(index, truth, queries) >= 0.95

    index.apply(removed(range(1200)))
    moved = generator.standard_normal((100, 16), dtype=np.float32)
    index.apply(written(range(1200, 1300), moved))
    truth = {number: vector for number, vector in truth.items() if number >= 1200}
    truth |= dict(zip(range(1200, 1300), moved, strict=True))
    assert recall(index, truth, queries) >= 0.95

    rebuild = index.plan_rebuild()
    assert rebuild is not None
    late = generator.standard_normal((200, 16), dtype=np.float32)
    index.apply(removed(range(1250, 1350)))
    index.apply(written([*range(1350, 1400), *range(3000, 3150)], late))
    for number in range(1250, 1350):
        del truth[number]
    truth |= dict(zip([*range(1350, 1400), *range(3000, 3150)], late, strict=True))
    assert rebuild.build(lambda: False)
    assert recall(index, truth, queries) >= 0.95
    index.adopt(rebuild)
    assert index.size == len(truth)
    assert recall(index, truth, queries) >= 0.95


def test_a_vector_written_again_unchanged_stays_in_the_graph(generator, queries):
    index = FaissIndex(a_collection())
    vectors = generator.standard_normal((1500, 16), dtype=np.float32)
    index.apply(written(range(1500), vectors))
    upkeep(index)
    index.apply(written(range(1500), vectors))
    assert not index.wants_upkeep
    assert recall(index, dict(enumerate(vectors)), queries) >= 0.95


def test_a_rebuild_that_is_given_up_changes_nothing(generator, queries):
    index = FaissIndex(a_collection())
    vectors = generator.standard_normal((1500, 16), dtype=np.float32)
    index.apply(written(range(1500), vectors))
    rebuild = index.plan_rebuild()
    assert rebuild is not None
    assert not rebuild.build(lambda: True)
    index.adopt(None)
    assert recall(index, dict(enumerate(vectors)), queries) == 1
    upkeep(index)
    assert index.size == 1500


@pytest.mark.parametrize("kind", list(IndexType))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_filter_recalls_what_an_exact_search_finds_also_by_the_graph(generator, queries, monkeypatch, kind, share):
    # Else so few vectors would always be compared one by one.
    monkeypatch.setattr(segments, "_EXACT_FLOATS", 0)
    index = FaissIndex(a_collection(kind=kind))
    vectors = generator.standard_normal((3000, 16), dtype=np.float32)
    index.apply(written(range(3000), vectors))
    upkeep(index)
    index.apply(removed(range(0, 3000, 10)))
    truth = {number: vector for number, vector in enumerate(vectors) if number % 10}
    allowed = {number for number in truth if generator.random() < share}
    assert recall(index, truth, queries, allowed) >= 0.95
    far = {number for number in truth if vectors[number][0] > 1.5}
    queries[:, 0] = -3
    assert recall(index, truth, queries, far) >= 0.95
    assert all(len(found.ordinals) == 0 for found in index.search(queries, 10, ef_search=64, allowed=NONE))


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("number", [1, 2, 3, 40, 64])
def test_a_batch_of_any_size_scores_like_single_searches(generator, metric, number):
    dimension = 384
    index = FaissIndex(a_collection(dimension, metric, IndexType.FLAT))
    vectors = generator.standard_normal((500, dimension), dtype=np.float32)
    if metric is Metric.COSINE:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.apply(written(range(500), vectors))
    batch = vectors[:number].copy()
    together = index.search(batch, 5, ef_search=64, allowed=None)
    for position, found in enumerate(together):
        alone = index.search(batch[position : position + 1], 5, ef_search=64, allowed=None)[0]
        assert found.ordinals[:5].tolist() == alone.ordinals[:5].tolist()
        assert found.scores[:5].tolist() == alone.scores[:5].tolist()
        assert found.ordinals[0] == position or metric is Metric.IP


def test_near_vectors_far_from_the_origin_are_told_apart_by_l2(generator):
    index = FaissIndex(a_collection(8, Metric.L2, IndexType.FLAT))
    vectors = (1e5 + np.arange(200)[:, None] * np.ones(8)).astype(np.float32)
    index.apply(written(range(200), vectors))
    found = index.search(vectors[:64].copy(), 1, ef_search=64, allowed=None)
    assert [each.ordinals[0] for each in found] == list(range(64))


@pytest.mark.parametrize("kind", list(IndexType))
@pytest.mark.parametrize("metric", [Metric.L2, Metric.COSINE])
def test_mutated_files_are_refused_every_one(tmp_path, generator, kind, metric):
    collection = a_collection(8, metric, kind)
    index = FaissIndex(collection)
    index.apply(written(range(1200), generator.standard_normal((1200, 8), dtype=np.float32)))
    upkeep(index)
    files = FileSnapshots(tmp_path, b"key")
    files.begin(collection, index).seal()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    loaded = files.load(collection)
    assert loaded is not None
    assert loaded.size == 1200
    mutate = random.Random(7)  # noqa: S311 - for mutations
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(mutate.randint(1, 4)):
            position = mutate.randrange(len(mutant))
            choice = mutate.random()
            if choice < 0.6:
                mutant[position] ^= mutate.randint(1, 255)
            elif choice < 0.8:
                del mutant[position : position + mutate.randint(1, 64)]
            else:
                mutant[position:position] = bytes(mutate.randint(1, 64))
        if mutant != data:
            path.write_bytes(mutant)
            assert files.load(collection) is None
            assert not path.exists(), "what cannot be trusted is removed"


def test_a_file_of_other_parameters_or_another_key_is_refused(tmp_path):
    collection = a_collection(8)
    index = FaissIndex(collection)
    index.apply(written([0], np.ones((1, 8))))
    for other_key, other in (
        (b"other", collection),
        (b"key", replace(collection, dimension=4)),
        (b"key", replace(collection, metric=Metric.IP)),
        (b"key", replace(collection, project_id=new_id())),
        (b"key", replace(collection, index=replace(collection.index, m=13))),
    ):
        FileSnapshots(tmp_path, b"key").begin(collection, index).seal()
        assert FileSnapshots(tmp_path, other_key).load(other) is None


def test_a_writer_that_lives_keeps_its_temporary_file(tmp_path):
    collection = a_collection(8)
    files = FileSnapshots(tmp_path, b"key")
    unsealed = files.begin(collection, FaissIndex(collection))
    FileSnapshots(tmp_path, b"key").remove(set())
    unsealed.seal()
    unsealed.discard()
    assert files.data_ids() == {collection.data_id}


def test_the_reader_of_faiss_is_never_given_what_was_not_written_here(tmp_path, monkeypatch):
    collection = a_collection(8)
    path = tmp_path / f"{collection.data_id}.index"
    buffer = io.BytesIO()
    faiss.write_index(faiss.IndexFlatL2(8), faiss.PyCallbackIOWriter(buffer.write))
    path.write_bytes(buffer.getvalue())

    def never(*_):
        raise AssertionError("was read")

    monkeypatch.setattr(faiss_index.faiss, "read_index", never)
    assert FileSnapshots(tmp_path, b"key").load(collection) is None
