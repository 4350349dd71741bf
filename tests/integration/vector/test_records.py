"""Records over gRPC: what is written, refused, read back, listed and deleted."""

from __future__ import annotations

import asyncio

import numpy as np
import orjson
import pytest
from headrace.common.v1.value_pb2 import Json
from headrace.vector.v1.vector_pb2 import METRIC_IP, METRIC_L2

from services.kit import errors
from tests.support.vector_service import a_record, bag_of_words, packed


@pytest.fixture
async def vectors(client):
    """A client whose project has the collection `vectors`, of 2 numbers, cosine."""
    await client.call("CreateCollection", name="vectors", dimension=2)
    return client


async def test_a_record_reads_back_as_written(vectors):
    metadata = {"lang": "de", "n": 1, "nested": {"x": [1, 2.5, None]}}
    await vectors.upsert("vectors", a_record("ä/1", [3, 4], text="Text", metadata=orjson.dumps(metadata)))
    record = (await vectors.call("GetRecord", collection="vectors", record_id="ä/1", include_vector=True)).record
    assert (record.id, record.text, record.vector) == ("ä/1", "Text", packed([3, 4]))
    assert orjson.loads(record.metadata.utf8) == metadata
    assert record.updated_at.seconds > 0
    bare = (await vectors.call("GetRecord", collection="vectors", record_id="ä/1")).record
    assert bare.vector == b""
    with pytest.raises(errors.NotFoundError) as caught:
        await vectors.call("GetRecord", collection="vectors", record_id="other")
    assert caught.value.reason == "RECORD_NOT_FOUND"


async def test_texts_are_embedded_and_a_given_vector_comes_first(client):
    await client.call("CreateCollection", name="docs")
    given = bag_of_words("something else")
    await client.upsert("docs", a_record("a", text="red apples"), a_record("b", given, text="red apples"))
    a, b = [
        (await client.call("GetRecord", collection="docs", record_id=name, include_vector=True)).record
        for name in ("a", "b")
    ]
    assert a.vector == bag_of_words("red apples").tobytes()
    assert b.vector == given.tobytes()


async def test_an_upsert_replaces_the_whole_record_and_counts_once(vectors):
    await vectors.upsert("vectors", a_record("a", [1, 0], text="old", metadata=b'{"x": 1}'), a_record("b", [1, 1]))
    await vectors.upsert("vectors", a_record("a", [0, 1]), a_record("c", [1, 0]))
    record = (await vectors.call("GetRecord", collection="vectors", record_id="a", include_vector=True)).record
    assert (record.text, record.metadata.utf8, record.vector) == ("", b"{}", packed([0, 1]))
    assert (await vectors.call("GetCollection", collection="vectors")).collection.record_count == 3
    assert await vectors.found("vectors", [0, 1]) == ["a", "b", "c"]


async def test_ids_made_here_come_from_the_idempotency_key(vectors):
    first = await vectors.upsert("vectors", a_record(vector=[1, 0]), a_record(vector=[0, 1]), request_id="k")
    again = await vectors.upsert("vectors", a_record(vector=[1, 0]), a_record(vector=[0, 1]), request_id="k")
    other = await vectors.upsert("vectors", a_record(vector=[1, 0]))
    assert first == again
    assert len({*first, *other}) == 3
    assert (await vectors.call("GetCollection", collection="vectors")).collection.record_count == 3


@pytest.mark.parametrize(
    ("record", "reason", "path"),
    [
        (a_record("x", [1, 2, 3]), "DIMENSION_MISMATCH", "records[1].vector"),
        (a_record("x", [float("nan"), 1]), "INVALID_VECTOR", "records[1].vector"),
        (a_record("x", [float("inf"), 1]), "INVALID_VECTOR", "records[1].vector"),
        (a_record("x", [0, 0]), "INVALID_VECTOR", "records[1].vector"),
        (a_record("x"), "INVALID_ARGUMENT", "records[1]"),
        (a_record("x" * 257, [1, 0]), "INVALID_ARGUMENT", "records[1].id"),
        (a_record("x\0", [1, 0]), "INVALID_ARGUMENT", "records[1].id"),
        (a_record("x", [1, 0], text="a\0b"), "INVALID_ARGUMENT", "records[1].text"),
        (a_record("x", [1, 0], text="x" * 100_001), "INVALID_ARGUMENT", "records[1].text"),
        (a_record("x", [1, 0], metadata=b"[]"), "INVALID_ARGUMENT", "records[1].metadata"),
        (a_record("x", [1, 0], metadata=b'{"a": NaN}'), "INVALID_ARGUMENT", "records[1].metadata"),
        (a_record("x", [1, 0], metadata=b'"' + b"x" * 65_536 + b'"'), "INVALID_ARGUMENT", "records[1].metadata"),
        (a_record("good", [1, 0]), "INVALID_ARGUMENT", "records[1].id"),
    ],
)
async def test_one_bad_record_is_named_and_nothing_is_written(vectors, record, reason, path):
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await vectors.upsert("vectors", a_record("good", [1, 0]), record)
    assert (caught.value.reason, caught.value.violations[0].path) == (reason, path)
    assert (await vectors.call("GetCollection", collection="vectors")).collection.record_count == 0


async def test_vectors_whose_scores_would_overflow_are_refused_where_length_counts(client):
    for metric in (METRIC_L2, METRIC_IP):
        await client.call("CreateCollection", name=f"m{metric}", dimension=2, metric=metric)
        with pytest.raises(errors.InvalidArgumentError):
            await client.upsert(f"m{metric}", a_record("a", [1e38, 0]))
        await client.upsert(f"m{metric}", a_record("a", [8e18, 0]), a_record("b", [-8e18, 0]), a_record("z", [0, 0]))
        assert np.isfinite([match.score for match in await client.search(f"m{metric}", [8e18, 0])]).all()
    await client.call("CreateCollection", name="cosine", dimension=2)
    await client.upsert("cosine", a_record("a", [1e38, 0]), a_record("b", [1e-38, 1e-38]))
    scores = [match.score for match in await client.search("cosine", [3e38, 0])]
    assert scores == pytest.approx([1, 0.5**0.5])


async def test_more_than_a_thousand_records_at_once_are_refused(vectors):
    with pytest.raises(errors.InvalidArgumentError, match="1000"):
        await vectors.upsert("vectors", *(a_record(str(number), [1, 0]) for number in range(1001)))
    assert len(await vectors.upsert("vectors", *(a_record(str(number), [1, 0]) for number in range(1000)))) == 1000


async def test_lists_are_pages_by_id_through_a_filter(vectors):
    names = ["B", "a", "aa", "b", "z", "ä", "ü"]
    await vectors.upsert(
        "vectors", *(a_record(name, [1, 0], metadata=orjson.dumps({"len": len(name)})) for name in reversed(names))
    )
    assert await listed(vectors, "vectors") == names
    only = orjson.dumps({"field": "len", "op": "lt", "value": 2})
    assert await listed(vectors, "vectors", filter=Json(utf8=only)) == [name for name in names if len(name) < 2]
    with pytest.raises(errors.InvalidArgumentError):
        await vectors.call("ListRecords", collection="vectors", page_token="WyJcdTAwMDAiXQ")


async def listed(client, collection, **fields):
    ids, token = [], ""
    while True:
        page = await client.call("ListRecords", collection=collection, page_size=2, page_token=token, **fields)
        ids += [record.id for record in page.records]
        token = page.next_page_token
        if not token:
            return ids


async def test_deletes_by_ids_by_filter_and_by_both(vectors):
    await vectors.upsert(
        "vectors",
        *(a_record(str(number), [1, number], metadata=b'{"even": %d}' % (number % 2 == 0)) for number in range(8)),
    )
    even = Json(utf8=b'{"field": "even", "value": 1}')
    with pytest.raises(errors.InvalidArgumentError):
        await vectors.call("DeleteRecords", collection="vectors")
    deletions = [
        ({"ids": ["0", "1", "nobody", "\0"]}, 2),
        ({"ids": ["0", "1"]}, 0),
        ({"ids": ["2", "3"], "filter": even}, 1),
        ({"filter": even}, 2),
    ]
    for fields, deleted in deletions:
        assert (await vectors.call("DeleteRecords", collection="vectors", **fields)).deleted == deleted
    assert await listed(vectors, "vectors") == ["3", "5", "7"]
    assert sorted(await vectors.found("vectors", [1, 0])) == ["3", "5", "7"]
    assert (await vectors.call("GetCollection", collection="vectors")).collection.record_count == 3


async def test_writers_at_the_same_time_lose_nothing(vectors):
    batches = [[a_record(f"{writer}-{number}", [1, number]) for number in range(20)] for writer in range(8)]
    shared = [a_record("shared", [0, 1], text=str(writer)) for writer in range(8)]
    await asyncio.gather(
        *(vectors.upsert("vectors", *batch, last) for batch, last in zip(batches, shared, strict=True))
    )
    assert (await vectors.call("GetCollection", collection="vectors")).collection.record_count == 161
    assert len(await vectors.found("vectors", [1, 0], top_k=100)) == 100
    assert await vectors.found("vectors", [0, 1], top_k=1) == ["shared"]
