"""Connections and transactions, and the rows of collections."""

from collections.abc import AsyncIterator
from collections.abc import Collection as Many
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from services.kit.errors import RevisionMismatchError
from services.kit.ids import new_id, require_same_request
from services.kit.pool import Connection, Pool
from services.kit.postgres import is_connection_loss, lost_connection
from services.vector.domain.model import (
    Collection,
    CollectionExistsError,
    CollectionNotFoundError,
    CollectionSpec,
    IndexConfig,
    IndexType,
    Metric,
)

_COLUMNS = """
    id, project_id, data_id, name, embedding_model, dimension, metric, index_type, m, ef_construction, ef_search,
    record_count, sequence, revision, created_at, updated_at
"""


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection without a transaction, for one statement. A lost or refused one raises UnavailableError."""
    try:
        async with pool.acquire(timeout=5) as held:
            yield held
    except Exception as error:
        if is_connection_loss(error):
            raise lost_connection() from error
        raise


@asynccontextmanager
async def transaction(pool: Pool, *, snapshot: bool = False) -> AsyncIterator[Connection]:
    """A transaction; with `snapshot` one that only reads, all of it one state of the rows."""
    options: dict[str, Any] = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
    async with connection(pool) as held, held.transaction(**options):
        yield held


class PostgresCollections:
    """The CollectionStore (domain/store.py) on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, spec: CollectionSpec) -> Collection:
        index = spec.index
        async with transaction(self._pool) as held:
            row = await held.fetchrow(
                f"""
                INSERT INTO vector.collections (
                    id, project_id, data_id, name, embedding_model, dimension, metric, index_type, m, ef_construction,
                    ef_search, request_hash
                ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                ON CONFLICT DO NOTHING RETURNING {_COLUMNS}
                """,
                *(spec.id, spec.project_id, new_id(), spec.name, spec.embedding_model, spec.dimension),
                *(spec.metric, index.type, index.m, index.ef_construction, index.ef_search, spec.request_hash),
            )
        if row is not None:
            return _collection(row)
        made = await self.find_created(spec.project_id, spec.id)
        if made is None or spec.request_hash is None:
            raise _name_taken(spec.name)
        require_same_request(made[1], spec.request_hash)
        return made[0]

    async def find(self, project_id: UUID, reference: str) -> Collection:
        column, value = _by(reference)
        async with connection(self._pool) as held:
            row = await held.fetchrow(
                f"SELECT {_COLUMNS} FROM vector.collections WHERE project_id = $1 AND {column} = $2", project_id, value
            )
        if row is None:
            raise CollectionNotFoundError
        return _collection(row)

    async def find_created(self, project_id: UUID, collection_id: UUID) -> tuple[Collection, bytes | None] | None:
        async with connection(self._pool) as held:
            row = await held.fetchrow(
                f"SELECT request_hash, {_COLUMNS} FROM vector.collections WHERE project_id = $1 AND id = $2",
                *(project_id, collection_id),
            )
        return (_collection(row), row["request_hash"]) if row else None

    async def list(self, project_id: UUID, *, size: int, before: tuple[datetime, UUID] | None) -> list[Collection]:
        place = "AND (created_at, id) < ($3, $4)" if before else ""
        async with connection(self._pool) as held:
            rows = await held.fetch(
                f"""
                SELECT {_COLUMNS} FROM vector.collections WHERE project_id = $1 {place}
                ORDER BY created_at DESC, id DESC LIMIT $2
                """,
                *(project_id, size, *(before or ())),
            )
        return [_collection(row) for row in rows]

    async def update(
        self, project_id: UUID, reference: str, *, revision: int, name: str | None, ef_search: int | None
    ) -> Collection:
        column, value = _by(reference)
        try:
            async with transaction(self._pool) as held:
                row = await held.fetchrow(
                    f"""
                    UPDATE vector.collections SET name = coalesce($4::text, name),
                        ef_search = coalesce($5::integer, ef_search), revision = revision + 1, updated_at = now()
                    WHERE project_id = $1 AND {column} = $2 AND $3::bigint IN (0, revision) RETURNING {_COLUMNS}
                    """,
                    *(project_id, value, revision, name, ef_search),
                )
        except asyncpg.UniqueViolationError as error:
            raise _name_taken(name or "") from error
        if row is None:
            raise await self._moved_on(project_id, reference, revision)
        return _collection(row)

    async def delete(self, project_id: UUID, reference: str, *, revision: int) -> Collection:
        column, value = _by(reference)
        async with transaction(self._pool) as held:
            row = await held.fetchrow(
                f"""
                WITH gone AS (
                    DELETE FROM vector.collections
                    WHERE project_id = $1 AND {column} = $2 AND $3::bigint IN (0, revision) RETURNING {_COLUMNS}
                ), noted AS (
                    INSERT INTO vector.dropped_data (data_id, project_id) SELECT data_id, project_id FROM gone
                )
                SELECT * FROM gone
                """,
                *(project_id, value, revision),
            )
        if row is None:
            raise await self._moved_on(project_id, reference, revision)
        return _collection(row)

    async def _moved_on(self, project_id: UUID, reference: str, expected: int) -> Exception:
        """Why a guarded change found no row: raises when the collection is gone, else returns the mismatch."""
        actual = (await self.find(project_id, reference)).revision
        return RevisionMismatchError(expected=expected, actual=actual)

    async def purge_some(self, limit: int) -> bool:
        async with transaction(self._pool) as held:
            # Of the writes to a deleted collection none can come after this: they lock its row first.
            data_id = await held.fetchval(
                "SELECT data_id FROM vector.dropped_data ORDER BY dropped_at LIMIT 1 FOR UPDATE SKIP LOCKED"
            )
            if data_id is None:
                return False
            removed = 0
            for table, key in (("records", "id"), ("deletions", "sequence, ordinal")):
                status = await held.execute(
                    f"""
                    DELETE FROM vector.{table} WHERE data_id = $1 AND ({key}) IN (
                        SELECT {key} FROM vector.{table} WHERE data_id = $1 LIMIT $2
                    )
                    """,
                    *(data_id, limit),
                )
                removed += int(status.split()[-1])
            if removed == 0:
                await held.execute("DELETE FROM vector.dropped_data WHERE data_id = $1", data_id)
        return True

    async def prune_deletions(self, older_than_seconds: float) -> None:
        async with transaction(self._pool) as held:
            await held.execute(
                """
                WITH old AS (
                    DELETE FROM vector.deletions WHERE deleted_at < now() - make_interval(secs => $1)
                    RETURNING data_id, sequence
                )
                UPDATE vector.collections SET horizon = greatest(horizon, latest.sequence)
                FROM (SELECT data_id, max(sequence) AS sequence FROM old GROUP BY data_id) AS latest
                WHERE collections.data_id = latest.data_id
                """,
                older_than_seconds,
            )

    async def existing(self, data_ids: Many[UUID]) -> set[UUID]:
        async with connection(self._pool) as held:
            rows = await held.fetch(
                "SELECT data_id FROM vector.collections WHERE data_id = ANY($1::uuid[])", list(data_ids)
            )
        return {row["data_id"] for row in rows}

    async def ping(self) -> None:
        async with connection(self._pool) as held:
            await held.fetchval("SELECT 1")


def _by(reference: str) -> tuple[str, UUID | str]:
    """The column that a reference names a collection by; names never look like ids."""
    try:
        return "id", UUID(reference)
    except ValueError:
        # Nothing has this name either, but PostgreSQL would refuse to look.
        return "name", reference.replace("\0", "\ufffd")


def _name_taken(name: str) -> CollectionExistsError:
    return CollectionExistsError(f"This project has a collection named {name!r} already. Choose another name.")


def _collection(row: asyncpg.Record) -> Collection:
    return Collection(
        id=row["id"],
        project_id=row["project_id"],
        data_id=row["data_id"],
        name=row["name"],
        embedding_model=row["embedding_model"],
        dimension=row["dimension"],
        metric=Metric(row["metric"]),
        index=IndexConfig(
            type=IndexType(row["index_type"]),
            m=row["m"],
            ef_construction=row["ef_construction"],
            ef_search=row["ef_search"],
        ),
        record_count=row["record_count"],
        sequence=row["sequence"],
        revision=row["revision"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
