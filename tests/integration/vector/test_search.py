"""Search over gRPC: order, scores, filters, recall, and many at once."""

from __future__ import annotations

import asyncio

import numpy as np
import orjson
import pytest
from headrace.common.v1.value_pb2 import Json
from headrace.vector.v1.vector_pb2 import INDEX_TYPE_HNSW, METRIC_COSINE, METRIC_IP, METRIC_L2, IndexConfig

from services.kit import errors
from tests.support.vector_service import a_record


def filtered(**condition):
    return Json(utf8=orjson.dumps(condition))


async def test_texts_find_the_passage_that_shares_their_words(client):
    await client.call("CreateCollection", name="docs")
    passages = {"start": "how to start the stack", "stop": "stopping everything in order", "cook": "boil the rice"}
    await client.upsert("docs", *(a_record(name, text=text) for name, text in passages.items()))
    matches = await client.search("docs", "boil rice for dinner", top_k=2)
    assert matches[0].record.id == "cook"
    assert matches[0].record.text == "boil the rice"
    assert len(matches) == 2


@pytest.mark.parametrize(
    ("metric", "scores"),
    [(METRIC_COSINE, [1, 0.6, 0, -1]), (METRIC_L2, [1, 1 / 21, 1 / 6, 1 / 17]), (METRIC_IP, [4, 6, 0, -4])],
)
async def test_higher_scores_are_nearer_whatever_the_metric(client, metric, scores):
    await client.call("CreateCollection", name="docs", dimension=2, metric=metric)
    vectors = {"same": [2, 0], "slant": [3, 4], "side": [0, 1], "back": [-2, 0]}
    expected = dict(zip(vectors, scores, strict=True))
    if metric == METRIC_L2:
        expected = {"same": 1, "slant": 1 / 18, "side": 1 / 6, "back": 1 / 17}
    await client.upsert("docs", *(a_record(name, vector) for name, vector in vectors.items()))
    matches = await client.search("docs", [2, 0])
    assert {match.record.id: match.score for match in matches} == pytest.approx(expected, abs=1e-6)
    assert [match.record.id for match in matches] == sorted(expected, key=lambda name: -expected[name])
    bound = sorted(expected.values())[2]
    above = await client.found("docs", [2, 0], min_score=bound - 1e-4)
    assert set(above) == {name for name, score in expected.items() if score >= bound - 1e-4}


@pytest.mark.parametrize("metric", [METRIC_COSINE, METRIC_L2, METRIC_IP])
async def test_equal_scores_come_by_id_however_many_there_are(client, metric):
    await client.call("CreateCollection", name="docs", dimension=3, metric=metric)
    names = [f"{number:03}" for number in range(300)]
    shuffled = np.random.default_rng(1).permutation(names)
    await client.upsert(
        "docs", *(a_record(str(name), [0.1, 0.2, 0.3]) for name in shuffled), a_record("a", [0.1, 0.2, 0.4])
    )
    if metric == METRIC_IP:
        names = ["a", *names]
    for top_k in (1, 7, 100):
        answers = await asyncio.gather(*(client.found("docs", [0.1, 0.2, 0.3], top_k=top_k) for _ in range(5)))
        assert all(answer == names[:top_k] for answer in answers)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1},
        {"top_k": 101},
        {"min_score": float("nan")},
        {"filter": Json(utf8=b'{"field": "x"')},
        {"filter": Json(utf8=b'{"field": "x", "op": "like", "value": 1}')},
        {"filter": Json(utf8=b'{"field": "x", "value": "\\u0000"}')},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(client, fields):
    await client.call("CreateCollection", name="docs", dimension=2)
    with pytest.raises(errors.InvalidArgumentError):
        await client.search("docs", [1, 0], **fields)


@pytest.mark.parametrize("vector", [[1], [1, 2, 3], [float("nan"), 0], [0, 0]])
async def test_a_vector_that_cannot_be_compared_fails_alone(client, vector):
    await client.call("CreateCollection", name="docs", dimension=2)
    await client.upsert("docs", a_record("a", [1, 0]))
    answers = await asyncio.gather(
        *(client.found("docs", [1, 0]) for _ in range(5)), client.search("docs", vector), return_exceptions=True
    )
    assert answers[:5] == [["a"]] * 5
    assert isinstance(answers[5], errors.InvalidArgumentError)
    with pytest.raises(errors.InvalidArgumentError):
        await client.call("Search", collection="docs")


RECORDS = {
    "de": {"lang": "de", "year": 2020, "deep": {"n": 1}},
    "en": {"lang": "en", "year": 2021.5, "tags": ["x"]},
    "odd": {"lang": 7, "year": "2021", "none": None, "flag": True},
    "bare": {},
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"field": "lang", "value": "de"}, "de"),
        ({"field": "lang", "op": "ne", "value": "de"}, "en odd bare"),
        ({"field": "lang", "op": "in", "value": ["de", 7]}, "de odd"),
        ({"field": "lang", "op": "in", "value": []}, ""),
        ({"field": "year", "value": 2020.0}, "de"),
        ({"field": "year", "value": "2020"}, ""),
        ({"field": "year", "op": "gt", "value": 2020}, "en"),
        ({"field": "year", "op": "gte", "value": 2020}, "de en"),
        ({"field": "year", "op": "lt", "value": "3"}, "odd"),
        ({"field": "year", "op": "lte", "value": 2021.5}, "de en"),
        ({"field": "lang", "op": "gt", "value": "de"}, "en"),
        ({"field": "deep.n", "value": 1}, "de"),
        ({"field": "deep.n.m", "op": "exists"}, ""),
        ({"field": "tags.0", "value": "x"}, "en"),
        ({"field": "none", "value": None}, "odd"),
        ({"field": "none", "op": "exists"}, "odd"),
        ({"field": "none", "op": "exists", "value": False}, "de en bare"),
        ({"field": "flag", "value": True}, "odd"),
        ({"field": "flag", "value": 1}, ""),
        ({"not": {"field": "year", "op": "gt", "value": 2020}}, "de odd bare"),
        ({"and": [{"field": "lang", "value": "de"}, {"field": "year", "op": "lt", "value": 2021}]}, "de"),
        ({"or": [{"field": "lang", "value": "de"}, {"field": "lang", "value": "en"}]}, "de en"),
        ({"and": []}, "de en odd bare"),
        ({"or": []}, ""),
        ({"field": "lang'); DROP TABLE vector.records; --", "value": "'"}, ""),
    ],
)
async def test_a_filter_compares_by_type(client, condition, expected):
    await client.call("CreateCollection", name="docs", dimension=2)
    await client.upsert(
        "docs",
        *(a_record(name, [1, 0], metadata=orjson.dumps(metadata)) for name, metadata in RECORDS.items()),
    )
    assert set(await client.found("docs", [1, 0], filter=filtered(**condition))) == set(expected.split())


async def test_a_filter_follows_every_change(client):
    await client.call("CreateCollection", name="docs", dimension=2)
    only = filtered(field="on", value=True)
    assert await client.found("docs", [1, 0], filter=only) == []
    await client.upsert("docs", a_record("a", [1, 0], metadata=b'{"on": true}'))
    assert await client.found("docs", [1, 0], filter=only) == ["a"]
    await client.upsert("docs", a_record("a", [1, 0]))
    assert await client.found("docs", [1, 0], filter=only) == []


@pytest.mark.parametrize("metric", [METRIC_COSINE, METRIC_L2])
async def test_an_hnsw_index_recalls_what_an_exact_search_finds(client, metric):
    index = IndexConfig(type=INDEX_TYPE_HNSW, m=16, ef_construction=64)
    await client.call("CreateCollection", name="docs", dimension=24, metric=metric, index=index)
    random = np.random.default_rng(3)
    vectors = random.standard_normal((4000, 24), dtype=np.float32)
    for start in range(0, 4000, 1000):
        await client.upsert(
            "docs",
            *(
                a_record(str(number), vectors[number], metadata=b'{"n": %d}' % number)
                for number in range(start, start + 1000)
            ),
        )
        await client.search("docs", vectors[0])
    gone = [str(number) for number in range(0, 4000, 7)]
    await client.call("DeleteRecords", collection="docs", ids=gone)
    alive = np.array([number % 7 != 0 for number in range(4000)])
    for limit, only in ((4000, None), (2500, "lt"), (200, "lt")):
        allowed = alive & (np.arange(4000) < limit)
        recall = 0.0
        fields = {"filter": filtered(field="n", op=only, value=limit)} if only else {}
        queries = random.standard_normal((20, 24), dtype=np.float32)
        for query in queries:
            found = await client.found("docs", query, **fields)
            exact = nearest(query, vectors, allowed, metric)
            assert set(found) <= {str(number) for number in np.flatnonzero(allowed)}
            recall += len(set(found) & exact) / 10 / len(queries)
        assert recall >= 0.95


def nearest(query, vectors, allowed, metric):
    if metric == METRIC_L2:
        scores = -((vectors - query) ** 2).sum(axis=1)
    else:
        scores = vectors @ query / np.linalg.norm(vectors, axis=1)
    scores[~allowed] = -np.inf
    return {str(number) for number in np.argsort(-scores)[:10]}


async def test_searches_beside_writes_see_each_record_whole_and_never_fewer(client):
    """Every version of a record has one text and one vector; a search must not mix them or lose a neighbour."""
    await client.call("CreateCollection", name="docs", dimension=2, metric=METRIC_L2)
    version = {1.0: "one", 2.0: "two"}
    steady = [a_record(f"s{number}", [5, number]) for number in range(5)]
    await client.upsert("docs", a_record("a", [1, 0], text="one"), *steady)
    done = asyncio.Event()

    async def write() -> None:
        for number in range(60):
            x = 1.0 + number % 2
            await client.upsert("docs", a_record("a", [x, 0], text=version[x]))
        done.set()

    async def search() -> None:
        while not done.is_set():
            matches = await client.search("docs", [1, 0], top_k=3)
            assert len(matches) == 3

    await asyncio.gather(write(), search(), search())
    match = (await client.search("docs", [2, 0], top_k=1))[0]
    assert (match.record.text, match.score) == ("two", 1)
