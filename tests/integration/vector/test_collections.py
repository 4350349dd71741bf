"""Collections over gRPC: making, finding, changing, deleting, and whose they are."""

from __future__ import annotations

import asyncpg
import pytest
from headrace.vector.v1.vector_pb2 import (
    COLLECTION_STATUS_READY,
    INDEX_TYPE_FLAT,
    INDEX_TYPE_HNSW,
    METRIC_COSINE,
    IndexConfig,
)

from services.kit import errors
from services.kit.ids import new_id
from services.kit.migrate import differences
from services.vector.storage.tables import metadata
from tests.support.vector_service import TOKENS, WORDS_DIMENSION, a_record
from tests.support.waiting import await_until


async def test_the_tables_are_what_the_revisions_make(place):
    assert await differences(place.url, schema="vector", metadata=metadata) == []


async def test_a_collection_takes_the_default_model_and_its_dimension(client):
    made = (await client.call("CreateCollection", name="docs")).collection
    assert (made.embedding_model, made.dimension, made.metric) == ("words", WORDS_DIMENSION, METRIC_COSINE)
    assert (made.index.type, made.status, made.revision, made.record_count) == (
        INDEX_TYPE_FLAT,
        COLLECTION_STATUS_READY,
        1,
        0,
    )
    by_id = (await client.call("GetCollection", collection=made.id)).collection
    by_name = (await client.call("GetCollection", collection="docs")).collection
    assert by_id == by_name == made


async def test_a_dimension_without_a_model_makes_a_collection_that_takes_vectors_only(client):
    made = (await client.call("CreateCollection", name="vectors", dimension=3)).collection
    assert (made.embedding_model, made.dimension) == ("", 3)
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await client.upsert("vectors", a_record("a", text="words"))
    assert caught.value.reason == "VECTOR_REQUIRED"
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await client.search("vectors", "words")
    assert caught.value.reason == "VECTOR_REQUIRED"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "", "dimension": 3}, "INVALID_ARGUMENT"),
        ({"name": "x" * 129, "dimension": 3}, "INVALID_ARGUMENT"),
        ({"name": "a\0b", "dimension": 3}, "INVALID_ARGUMENT"),
        ({"name": str(new_id()), "dimension": 3}, "INVALID_ARGUMENT"),
        ({"name": "n", "dimension": -1}, "INVALID_ARGUMENT"),
        ({"name": "n", "dimension": 4097}, "INVALID_ARGUMENT"),
        ({"name": "n", "dimension": 3, "metric": 9}, "INVALID_ARGUMENT"),
        ({"name": "n", "dimension": 3, "index": IndexConfig(type=INDEX_TYPE_HNSW, m=2)}, "INVALID_ARGUMENT"),
        ({"name": "n", "dimension": 3, "embedding_model": "words"}, "DIMENSION_MISMATCH"),
    ],
)
async def test_what_no_collection_can_be_made_from_is_refused(client, fields, reason):
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await client.call("CreateCollection", **fields)
    assert caught.value.reason == reason
    assert caught.value.violations


async def test_an_unknown_model_is_refused_with_the_known_ones(client):
    with pytest.raises(errors.NotFoundError, match="words") as caught:
        await client.call("CreateCollection", name="n", embedding_model="nobody")
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_without_the_llm_service_vectors_work_and_texts_are_unavailable(client, another, tmp_path):
    await client.call("CreateCollection", name="texts")
    lonely = await another(llm_target=f"unix:{tmp_path}/nobody")
    await lonely.call("CreateCollection", name="vectors", dimension=2)
    await lonely.upsert("vectors", a_record("a", [1, 0]))
    assert await lonely.found("vectors", [1, 0]) == ["a"]
    for call in (
        lonely.call("CreateCollection", name="more texts"),
        lonely.upsert("texts", a_record("a", text="words")),
        lonely.search("texts", "words"),
    ):
        with pytest.raises(errors.UnavailableError) as caught:
            await call
        assert caught.value.reason == "MODEL_UNAVAILABLE"


async def test_a_repeated_create_is_the_same_collection_and_another_content_is_refused(client):
    first = (await client.call("CreateCollection", name="one", dimension=3, request_id="k")).collection
    again = (await client.call("CreateCollection", name="one", dimension=3, request_id="k")).collection
    assert first == again
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await client.call("CreateCollection", name="one", dimension=4, request_id="k")
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
    with pytest.raises(errors.AlreadyExistsError) as exists:
        await client.call("CreateCollection", name="one", dimension=3)
    assert exists.value.reason == "COLLECTION_EXISTS"


async def test_lists_are_pages_newest_first(client):
    names = [f"c{number}" for number in range(5)]
    for name in names:
        await client.call("CreateCollection", name=name, dimension=2)
    seen, token = [], ""
    while True:
        page = await client.call("ListCollections", page_size=2, page_token=token)
        seen += [collection.name for collection in page.collections]
        token = page.next_page_token
        if not token:
            break
    assert seen == names[::-1]
    with pytest.raises(errors.InvalidArgumentError):
        await client.call("ListCollections", page_token="bm9uc2Vuc2U")


async def test_an_update_needs_the_present_revision(client):
    index = IndexConfig(type=INDEX_TYPE_HNSW)
    made = (await client.call("CreateCollection", name="old", dimension=2, index=index)).collection
    new = (await client.call("UpdateCollection", collection="old", revision=1, name="new", ef_search=100)).collection
    assert (new.name, new.index.ef_search, new.revision, new.id) == ("new", 100, 2, made.id)
    with pytest.raises(errors.RevisionMismatchError):
        await client.call("UpdateCollection", collection="new", revision=1, name="newer")
    with pytest.raises(errors.RevisionMismatchError):
        await client.call("DeleteCollection", collection="new", revision=1)
    await client.call("CreateCollection", name="flat", dimension=2)
    with pytest.raises(errors.AlreadyExistsError):
        await client.call("UpdateCollection", collection="flat", name="new")
    with pytest.raises(errors.InvalidArgumentError):
        await client.call("UpdateCollection", collection="flat", ef_search=100)


async def test_another_projects_collection_does_not_exist(client, place):
    made = (await client.call("CreateCollection", name="mine", dimension=2)).collection
    await client.upsert("mine", a_record("a", [1, 0]))
    client.project_id = str(new_id())
    calls = [
        client.call("GetCollection", collection=made.id),
        client.call("UpdateCollection", collection=made.id, name="theirs"),
        client.call("DeleteCollection", collection=made.id),
        client.upsert(made.id, a_record("b", [1, 0])),
        client.call("GetRecord", collection=made.id, record_id="a"),
        client.call("ListRecords", collection=made.id),
        client.call("DeleteRecords", collection=made.id, ids=["a"]),
        client.search(made.id, [1, 0]),
        client.search("mine", [1, 0]),
    ]
    for call in calls:
        with pytest.raises(errors.NotFoundError) as caught:
            await call
        assert caught.value.reason == "COLLECTION_NOT_FOUND"


async def test_a_workers_grant_covers_search_and_upsert_only(client):
    await client.call("CreateCollection", name="docs", dimension=2)
    grant = TOKENS.mint_grant(project_id=client.project_id, run_id="r", lifetime_seconds=60)
    client.rpc = type(client.rpc)(lambda: grant)
    await client.upsert("docs", a_record("a", [1, 0]))
    assert await client.found("docs", [1, 0]) == ["a"]
    with pytest.raises(errors.PermissionDeniedError):
        await client.call("DeleteRecords", collection="docs", ids=["a"])


async def test_a_deleted_collection_leaves_no_rows_and_no_files_and_none_of_it_in_its_successor(client, place):
    create = {"name": "docs", "dimension": 2, "request_id": "key"}
    made = (await client.call("CreateCollection", **create)).collection
    await client.upsert("docs", *(a_record(str(number), [1, number]) for number in range(20)))
    await client.call("DeleteRecords", collection="docs", ids=["3"])
    assert len(await client.found("docs", [1, 0], top_k=50)) == 19
    await client.call("DeleteCollection", collection="docs")
    with pytest.raises(errors.NotFoundError):
        await client.search("docs", [1, 0])

    again = (await client.call("CreateCollection", **create)).collection
    assert again.id == made.id
    assert await client.found("docs", [1, 0]) == []
    await client.upsert("docs", a_record("new", [1, 0]))
    assert await client.found("docs", [1, 0]) == ["new"]

    connection = await asyncpg.connect(place.url)
    try:

        async def only_the_new_one_is_left() -> bool:
            counts = await connection.fetchrow(
                """
                SELECT (SELECT count(*) FROM vector.records WHERE project_id = $1),
                    (SELECT count(*) FROM vector.deletions WHERE project_id = $1),
                    (SELECT count(*) FROM vector.dropped_data WHERE project_id = $1)
                """,
                client.project_id,
            )
            return tuple(counts) == (1, 0, 0)

        await await_until(only_the_new_one_is_left)
    finally:
        await connection.close()
