"""Two replicas over one database, restarts, and index files that are missing, stale, damaged or another's."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import AsyncExitStack

import asyncpg
import numpy as np
import pytest
from headrace.vector.v1.vector_pb2 import INDEX_TYPE_FLAT, INDEX_TYPE_HNSW, METRIC_L2, IndexConfig

from services.vector.storage import snapshots
from tests.support.vector_service import a_record, vector_service
from tests.support.waiting import await_until

KINDS = [INDEX_TYPE_FLAT, INDEX_TYPE_HNSW]


async def create(client, kind=INDEX_TYPE_FLAT):
    index = IndexConfig(type=kind, m=8, ef_construction=32)
    return (await client.call("CreateCollection", name="docs", dimension=4, metric=METRIC_L2, index=index)).collection


def numbered(start, stop):
    return [a_record(f"{number:04}", [number, 0, 0, 0]) for number in range(start, stop)]


def files(folder):
    return sorted((folder / "indexes").iterdir())


@pytest.fixture
def restarts(place, client, tmp_path):
    """`async with restarts(): ...` runs a replica whose files are in tmp_path; leaving it is a graceful stop."""

    def run(**settings):
        return vector_service(place.url, tmp_path, client.project_id, **settings)

    return run


async def test_each_replica_sees_the_others_writes_at_once(client, another):
    other = await another()
    await create(client)
    for number in range(30):
        writer, reader = (client, other) if number % 2 else (other, client)
        await writer.upsert("docs", *numbered(number, number + 1))
        assert await reader.found("docs", [number, 0, 0, 0], top_k=1) == [f"{number:04}"]
        await writer.upsert("docs", a_record(f"{number:04}", [-1 - number, 0, 0, 0]))
        assert await reader.found("docs", [-1 - number, 0, 0, 0], top_k=1) == [f"{number:04}"]
        if number % 3 == 0:
            await writer.call("DeleteRecords", collection="docs", ids=[f"{number:04}"])
            assert f"{number:04}" not in await reader.found("docs", [-1 - number, 0, 0, 0], top_k=100)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_index_comes_back_from_its_file_and_catches_up(client, restarts, tmp_path, kind):
    await create(client, kind)
    await client.upsert("docs", *numbered(0, 1000))
    await client.upsert("docs", *numbered(1000, 1500))
    async with restarts() as replica:
        assert await replica.found("docs", [700, 0, 0, 0], top_k=1) == ["0700"]
    assert len(files(tmp_path)) == 1
    await client.call("DeleteRecords", collection="docs", ids=["0700"])
    await client.upsert("docs", a_record("0701", [800.3, 0, 0, 0]), a_record("new", [700.2, 0, 0, 0]))
    async with restarts() as replica:
        assert await replica.found("docs", [700, 0, 0, 0], top_k=3) == ["new", "0699", "0698"]
        assert await replica.found("docs", [800.3, 0, 0, 0], top_k=1) == ["0701"]


def truncated(data):
    return data[: len(data) // 2]


def flipped_at(share):
    def flip(data):
        position = int(share * (len(data) - 1))
        return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]

    return flip


DAMAGE = {
    "emptied": lambda data: b"",
    "truncated": truncated,
    "one byte short": lambda data: data[:-1],
    "one byte more": lambda data: data + b"x",
    "zeroed": lambda data: bytes(len(data)),
} | {f"flipped at {share}": flipped_at(share) for share in (0, 0.01, 0.3, 0.7, 1)}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_damaged_file_is_refused_and_the_index_rebuilt(client, restarts, tmp_path, kind):
    await create(client, kind)
    await client.upsert("docs", *numbered(0, 1000))
    async with restarts() as replica:
        await replica.found("docs", [1, 0, 0, 0])
    (good,) = files(tmp_path)
    data = good.read_bytes()
    for name, damage in DAMAGE.items():
        good.write_bytes(damage(data))
        async with restarts() as replica:
            assert await replica.found("docs", [500, 0, 0, 0], top_k=1) == ["0500"], name
        assert good.stat().st_size == len(data), "a good file has taken its place"


async def test_another_collections_file_and_another_keys_file_are_refused(client, restarts, tmp_path, place):
    first = await create(client)
    await client.upsert("docs", *numbered(0, 10))
    second = (await client.call("CreateCollection", name="other", dimension=4, metric=METRIC_L2)).collection
    await client.upsert("other", *numbered(100, 110))
    async with restarts() as replica:
        await replica.found(first.id, [1, 0, 0, 0])
        await replica.found(second.id, [1, 0, 0, 0])
    one, two = files(tmp_path)
    kept = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(kept)
    async with restarts() as replica:
        assert await replica.found(first.id, [1, 0, 0, 0], top_k=1) == ["0001"]
        assert await replica.found(second.id, [1, 0, 0, 0], top_k=1) == ["0100"]
    foreign = snapshots.FileSnapshots(tmp_path / "indexes", b"another key")
    assert foreign.data_ids()
    link = tmp_path / "indexes" / one.name
    outside = tmp_path / "outside"
    one.rename(outside)
    link.symlink_to(outside)
    async with restarts() as replica:
        assert await replica.found(first.id, [1, 0, 0, 0], top_k=1) == ["0001"]
    assert not link.is_symlink()
    assert outside.exists()


async def test_an_index_older_than_the_listed_deletions_is_rebuilt(client, restarts, place):
    await create(client)
    await client.upsert("docs", *numbered(0, 10))
    async with restarts() as replica:
        await replica.found("docs", [1, 0, 0, 0])
    await client.call("DeleteRecords", collection="docs", ids=["0001"])
    async with vector_service(place.url, place.folder / "pruner", client.project_id, deletions_kept_seconds=0.001):
        connection = await asyncpg.connect(place.url)
        try:

            async def pruned() -> bool:
                return (
                    await connection.fetchval(
                        "SELECT horizon FROM vector.collections WHERE project_id = $1", client.project_id
                    )
                    == 2
                )

            await await_until(pruned)
        finally:
            await connection.close()
    async with restarts() as replica:
        assert await replica.found("docs", [1, 0, 0, 0], top_k=1) == ["0000"]


async def test_an_index_newer_than_a_restored_database_is_rebuilt(client, place):
    await create(client)
    await client.upsert("docs", *numbered(0, 5))
    await client.upsert("docs", *numbered(5, 10))
    assert await client.found("docs", [9, 0, 0, 0], top_k=1) == ["0009"]
    connection = await asyncpg.connect(place.url)
    try:
        await connection.execute("DELETE FROM vector.records WHERE project_id = $1 AND sequence = 2", client.project_id)
        await connection.execute("UPDATE vector.collections SET sequence = 1 WHERE project_id = $1", client.project_id)
    finally:
        await connection.close()
    assert await client.found("docs", [9, 0, 0, 0], top_k=1) == ["0004"]


async def test_a_writer_killed_before_the_rename_leaves_the_old_file_and_its_rest_is_removed(
    client, restarts, tmp_path, monkeypatch
):
    await create(client)
    await client.upsert("docs", *numbered(0, 10))
    async with restarts() as replica:
        await replica.found("docs", [1, 0, 0, 0])
    (good,) = files(tmp_path)
    old = good.read_bytes()
    await client.upsert("docs", *numbered(10, 20))

    class KilledError(BaseException):
        pass

    def die(*_):
        raise KilledError

    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(restarts())
        await replica.found("docs", [1, 0, 0, 0])
        # As a kill does: neither the rename nor the clean-up after it happens.
        with monkeypatch.context() as patch:
            patch.setattr(snapshots.Path, "rename", die)
            patch.setattr(snapshots.TemporaryFile, "discard", lambda temporary: temporary.file.close())
            with pytest.raises(KilledError):
                await stack.aclose()
    left = [path for path in files(tmp_path) if path != good]
    assert [path.suffix for path in left] == [".part"]
    assert good.read_bytes() == old
    async with restarts() as replica:
        assert await replica.found("docs", [15, 0, 0, 0], top_k=1) == ["0015"]
        await await_until(lambda: not left[0].exists())


async def test_indexes_beyond_the_memory_budget_are_dropped_and_come_back(client, another):
    small = await another(memory_bytes=40_000)
    for name in ("a", "b", "c"):
        await client.call("CreateCollection", name=name, dimension=64)
        vectors = np.eye(64, dtype=np.float32)
        await client.upsert(name, *(a_record(f"{name}{number}", vectors[number]) for number in range(64)))
    for _ in range(3):
        for name in ("a", "b", "c"):
            assert await small.found(name, vectors[7], top_k=1) == [f"{name}7"]


async def test_a_full_disk_costs_the_file_and_nothing_else(client, restarts, tmp_path, monkeypatch):
    await create(client)
    await client.upsert("docs", *numbered(0, 10))

    def no_space(_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(snapshots.os, "fsync", no_space)
        async with restarts(snapshot_changes=1) as replica:
            assert await replica.found("docs", [1, 0, 0, 0], top_k=1) == ["0001"]
            await client.upsert("docs", *numbered(10, 20))
            assert await replica.found("docs", [11, 0, 0, 0], top_k=1) == ["0011"]
    assert files(tmp_path) == []


async def test_many_searches_at_once_share_their_work_and_get_their_own_answers(client):
    await create(client)
    await client.upsert("docs", *numbered(0, 200))
    answers = await asyncio.gather(
        *(client.found("docs", [number, 0, 0, 0], top_k=1 + number % 3) for number in range(200))
    )
    assert [answer[0] for answer in answers] == [f"{number:04}" for number in range(200)]
    assert [len(answer) for answer in answers] == [1 + number % 3 for number in range(200)]
