"""The rows of records, one by one and as the stream of changes that indexes follow."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np

from services.kit.filters import Filter
from services.kit.pool import Connection, Pool
from services.vector.domain.model import Collection, CollectionNotFoundError, Record
from services.vector.domain.store import Changes, ChangeStream, StoredMatch
from services.vector.domain.vectors import Floats, Ordinals
from services.vector.storage.filter_sql import filter_sql
from services.vector.storage.postgres import connection, transaction

_PART_BYTES = 4 * 1024 * 1024
_PART_ROWS = 5_000


class PostgresRecords:
    """The RecordStore and IndexedStore (domain/store.py) on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        async with transaction(self._pool) as held:
            # The row's lock makes writers of one collection take turns, up to their commit.
            head = await held.fetchrow(
                """
                UPDATE vector.collections SET sequence = sequence + 1, updated_at = now()
                WHERE data_id = $1 AND project_id = $2 RETURNING sequence, next_ordinal
                """,
                *(collection.data_id, collection.project_id),
            )
            if head is None:
                raise CollectionNotFoundError
            # New ones are those that took a number from next_ordinal on; the others keep theirs.
            await held.execute(
                """
                WITH written AS (
                    INSERT INTO vector.records (data_id, project_id, sequence, ordinal, id, text, vector, metadata)
                    SELECT $1, $2, $3, $4 + place - 1, id, text, vector, metadata::jsonb
                    FROM unnest($5::text[], $6::text[], $7::bytea[], $8::text[])
                        WITH ORDINALITY AS given (id, text, vector, metadata, place)
                    ON CONFLICT (data_id, id) DO UPDATE SET sequence = excluded.sequence, text = excluded.text,
                        vector = excluded.vector, metadata = excluded.metadata, updated_at = now()
                    RETURNING ordinal
                ), new AS (
                    SELECT count(*) AS count, max(ordinal) + 1 AS next FROM written WHERE ordinal >= $4
                )
                UPDATE vector.collections SET record_count = record_count + new.count,
                    next_ordinal = greatest(next_ordinal, new.next)
                FROM new WHERE data_id = $1
                """,
                *(collection.data_id, collection.project_id, head["sequence"], head["next_ordinal"]),
                [record.id for record in records],
                [record.text for record in records],
                [record.vector for record in records],
                [record.metadata.decode() for record in records],
            )

    async def get(self, collection: Collection, record_id: str) -> Record | None:
        async with connection(self._pool) as held:
            row = await held.fetchrow(
                """
                SELECT id, text, vector, metadata, updated_at FROM vector.records
                WHERE data_id = $1 AND project_id = $2 AND id = $3
                """,
                *(collection.data_id, collection.project_id, record_id),
            )
        return _record(row, row["vector"]) if row else None

    async def list(self, collection: Collection, *, size: int, after: str | None, only: Filter | None) -> list[Record]:
        parameters: list[Any] = [collection.data_id, collection.project_id, size, after or ""]
        async with connection(self._pool) as held:
            rows = await held.fetch(
                f"""
                SELECT id, text, metadata, updated_at FROM vector.records
                WHERE data_id = $1 AND project_id = $2 AND id > $4 AND {filter_sql(only, parameters)}
                ORDER BY id LIMIT $3
                """,
                *parameters,
            )
        return [_record(row) for row in rows]

    async def delete(self, collection: Collection, *, ids: Sequence[str] | None, only: Filter | None) -> int:
        async with transaction(self._pool) as held:
            sequence = await held.fetchval(
                "SELECT sequence FROM vector.collections WHERE data_id = $1 AND project_id = $2 FOR NO KEY UPDATE",
                *(collection.data_id, collection.project_id),
            )
            if sequence is None:
                raise CollectionNotFoundError
            parameters: list[Any] = [collection.data_id, collection.project_id, sequence + 1, ids]
            condition = filter_sql(only, parameters)
            deleted: int = await held.fetchval(
                f"""
                WITH gone AS (
                    DELETE FROM vector.records
                    WHERE data_id = $1 AND project_id = $2 AND ($4::text[] IS NULL OR id = ANY($4)) AND {condition}
                    RETURNING ordinal
                ), listed AS (
                    INSERT INTO vector.deletions (data_id, project_id, sequence, ordinal)
                    SELECT $1, $2, $3, ordinal FROM gone
                ), changed AS (
                    UPDATE vector.collections SET sequence = $3, updated_at = now(),
                        record_count = record_count - (SELECT count(*) FROM gone)
                    WHERE data_id = $1 AND EXISTS (SELECT FROM gone)
                )
                SELECT count(*) FROM gone
                """,
                *parameters,
            )
        return deleted

    async def matching(self, collection: Collection, only: Filter) -> Ordinals:
        parameters: list[Any] = [collection.data_id, collection.project_id]
        condition = filter_sql(only, parameters)
        async with connection(self._pool) as held:
            # As one value: a row for each of a million ordinals would hold up the event loop for seconds.
            data: bytes | None = await held.fetchval(
                f"""
                SELECT string_agg(int8send(ordinal), '') FROM vector.records
                WHERE data_id = $1 AND project_id = $2 AND {condition}
                """,
                *parameters,
            )
        return _ordinals(data)

    async def at(self, collection: Collection, ordinals: Ordinals) -> dict[int, StoredMatch]:
        async with connection(self._pool) as held:
            rows = await held.fetch(
                """
                SELECT ordinal, sequence, id, text, metadata, updated_at FROM vector.records
                WHERE data_id = $1 AND project_id = $2 AND ordinal = ANY($3::bigint[])
                """,
                *(collection.data_id, collection.project_id, ordinals.tolist()),
            )
        return {row["ordinal"]: StoredMatch(_record(row), row["sequence"]) for row in rows}

    async def ids_at(self, collection: Collection, ordinals: Ordinals) -> dict[int, str]:
        async with connection(self._pool) as held:
            rows = await held.fetch(
                """
                SELECT ordinal, id FROM vector.records
                WHERE data_id = $1 AND project_id = $2 AND ordinal = ANY($3::bigint[])
                """,
                *(collection.data_id, collection.project_id, ordinals.tolist()),
            )
        return {row["ordinal"]: row["id"] for row in rows}

    @asynccontextmanager
    async def changes(self, collection: Collection, *, after: int) -> AsyncIterator[ChangeStream]:
        async with transaction(self._pool, snapshot=True) as held:
            head = await held.fetchrow(
                "SELECT sequence, horizon FROM vector.collections WHERE data_id = $1", collection.data_id
            )
            if head is None:
                raise CollectionNotFoundError
            parts = _parts(held, collection.data_id, collection.dimension, after)
            yield ChangeStream(head["sequence"], head["horizon"], parts)


async def _parts(held: Connection, data_id: UUID, dimension: int, after: int) -> AsyncIterator[Changes]:
    if after:
        removed: bytes | None = await held.fetchval(
            "SELECT string_agg(int8send(ordinal), '') FROM vector.deletions WHERE data_id = $1 AND sequence > $2",
            *(data_id, after),
        )
        if removed:
            yield Changes(_ordinals(removed), np.empty(0, np.int64), np.empty((0, dimension), np.float32))
    size = max(1, min(_PART_ROWS, _PART_BYTES // (4 * dimension)))
    # No ordinal is this high: everything of change `after` is left out.
    place = (after, 2**63 - 1)
    while True:
        row = await held.fetchrow(
            """
            SELECT string_agg(int8send(ordinal), '') AS ordinals, string_agg(int8send(sequence), '') AS sequences,
                string_agg(vector, '') AS vectors
            FROM (
                SELECT ordinal, sequence, vector FROM vector.records
                WHERE data_id = $1 AND (sequence, ordinal) > ($2, $3) ORDER BY sequence, ordinal LIMIT $4
            ) AS part
            """,
            *(data_id, *place, size),
        )
        if row is None or row["ordinals"] is None:
            return
        ordinals, sequences = _ordinals(row["ordinals"]), _ordinals(row["sequences"])
        vectors: Floats = np.frombuffer(row["vectors"], "<f4").reshape(len(ordinals), dimension)
        yield Changes(np.empty(0, np.int64), ordinals, vectors)
        if len(ordinals) < size:
            return
        place = max(zip(sequences.tolist(), ordinals.tolist(), strict=True))


def _ordinals(data: bytes | None) -> Ordinals:
    """Numbers that PostgreSQL sent by int8send: big-endian."""
    return np.frombuffer(data or b"", ">i8").astype(np.int64)


def _record(row: asyncpg.Record, vector: bytes = b"") -> Record:
    return Record(id=row["id"], text=row["text"], vector=vector, metadata=row["metadata"], updated_at=row["updated_at"])
