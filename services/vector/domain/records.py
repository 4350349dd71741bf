"""Writing, reading and deleting records."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from services.kit.errors import InvalidArgumentError, Violation
from services.kit.filters import Filter
from services.kit.ids import derived_id, new_id
from services.vector.domain.embedder import Embedder
from services.vector.domain.model import (
    MAX_DELETE,
    MAX_RECORD_ID,
    MAX_TEXT,
    MAX_UPSERT,
    Collection,
    Record,
    RecordNotFoundError,
    VectorRequiredError,
)
from services.vector.domain.store import CollectionStore, RecordStore
from services.vector.domain.vectors import check_vectors

_MAX_VIOLATIONS = 100


class Records:
    """The use cases of records. Metadata has been checked to be a small JSON object before it comes here."""

    def __init__(self, collections: CollectionStore, records: RecordStore, embedder: Embedder) -> None:
        self._collections = collections
        self._records = records
        self._embedder = embedder

    async def upsert(
        self,
        project_id: UUID,
        reference: str,
        records: Sequence[Record],
        *,
        request_id: str,
        timeout_seconds: float,
    ) -> list[str]:
        """Write records, all or none; durable and visible to searches on return. Returns their ids in order.

        A record without an id gets one, derived from `request_id` if given; one without a vector is embedded.
        Idempotent when every record has an id or there is a request_id. Raises CollectionNotFoundError,
        DimensionMismatchError, InvalidVectorError, VectorRequiredError, ModelUnavailableError, InvalidArgumentError
        (DUPLICATE_ID among others).
        """
        if len(records) > MAX_UPSERT:
            raise InvalidArgumentError(
                f"{len(records)} records at once are too many. Send at most {MAX_UPSERT} per request.",
                violations=(Violation("TOO_MANY", f"at most {MAX_UPSERT}", "records"),),
            )
        collection = await self._collections.find(project_id, reference)
        records = [
            record if record.id else replace(record, id=_id_made_here(collection, request_id, number))
            for number, record in enumerate(records)
        ]
        _check_records(records, collection)
        check_vectors(
            {f"records[{number}].vector": record.vector for number, record in enumerate(records) if record.vector},
            dimension=collection.dimension,
            metric=collection.metric,
        )
        if records:
            records = await self._with_vectors(collection, records, timeout_seconds)
            # In the order of their ids, rows are written to each index from left to right.
            await self._records.upsert(collection, sorted(records, key=lambda record: record.id))
        return [record.id for record in records]

    async def _with_vectors(
        self, collection: Collection, records: list[Record], timeout_seconds: float
    ) -> list[Record]:
        bare = [number for number, record in enumerate(records) if not record.vector]
        if not bare:
            return records
        vectors = await self._embedder.embed(
            collection.project_id,
            collection.embedding_model,
            [records[number].text for number in bare],
            timeout_seconds=timeout_seconds,
        )
        made = dict(zip(bare, vectors, strict=True))
        check_vectors(
            {f"records[{number}].text": vector for number, vector in made.items()},
            dimension=collection.dimension,
            metric=collection.metric,
        )
        return [
            replace(record, vector=made[number]) if number in made else record for number, record in enumerate(records)
        ]

    async def get(self, project_id: UUID, reference: str, record_id: str) -> Record:
        """One record with its vector. Raises RecordNotFoundError, CollectionNotFoundError."""
        collection = await self._collections.find(project_id, reference)
        record = None if "\0" in record_id else await self._records.get(collection, record_id)
        if record is None:
            raise RecordNotFoundError(f"The collection {collection.name!r} has no record {record_id[:64]!r}.")
        return record

    async def list(
        self, project_id: UUID, reference: str, *, size: int, after: str | None, only: Filter | None
    ) -> list[Record]:
        """At most `size` records without vectors, ordered by id by code point, after an id."""
        collection = await self._collections.find(project_id, reference)
        return await self._records.list(collection, size=size, after=after, only=only)

    async def delete(self, project_id: UUID, reference: str, *, ids: Sequence[str], only: Filter | None) -> int:
        """Delete by ids, by filter, or what matches both; returns how many there were. Idempotent."""
        if not ids and only is None:
            raise InvalidArgumentError(
                "Say which records to delete, by `ids` or by `filter`. To delete all, delete the collection.",
                violations=(Violation("REQUIRED", "one of ids and filter is required", "ids"),),
            )
        if len(ids) > MAX_DELETE:
            raise InvalidArgumentError(
                f"{len(ids)} ids at once are too many. Send at most {MAX_DELETE} per request.",
                violations=(Violation("TOO_MANY", f"at most {MAX_DELETE}", "ids"),),
            )
        collection = await self._collections.find(project_id, reference)
        possible = [record_id for record_id in ids if "\0" not in record_id]
        return await self._records.delete(collection, ids=possible if ids else None, only=only)


def _id_made_here(collection: Collection, request_id: str, number: int) -> str:
    if request_id:
        return str(derived_id(collection.id, "record", f"{number}\0{request_id}"))
    return str(new_id())


def _check_records(records: Sequence[Record], collection: Collection) -> None:
    violations: list[Violation] = []
    seen: set[str] = set()
    for number, record in enumerate(records):
        at = f"records[{number}]"
        if len(record.id) > MAX_RECORD_ID or "\0" in record.id:
            violations.append(
                Violation("INVALID_ID", f"must have 1 to {MAX_RECORD_ID} characters and no NUL", f"{at}.id")
            )
        if record.id in seen:
            violations.append(Violation("DUPLICATE_ID", f"occurs twice in the request: {record.id[:64]!r}", f"{at}.id"))
        seen.add(record.id)
        if len(record.text) > MAX_TEXT or "\0" in record.text:
            violations.append(
                Violation("INVALID_TEXT", f"must have at most {MAX_TEXT} characters and no NUL", f"{at}.text")
            )
        if not record.vector and not record.text:
            violations.append(Violation("REQUIRED", "needs a text or a vector", at))
        if len(violations) >= _MAX_VIOLATIONS:
            break
    if violations:
        first = violations[0]
        raise InvalidArgumentError(f"`{first.path}` {first.message}.", violations=tuple(violations))
    if not collection.embedding_model:
        bare = [number for number, record in enumerate(records) if not record.vector]
        if bare:
            raise VectorRequiredError(
                f"The collection {collection.name!r} has no embedding model: give each record a vector.",
                violations=tuple(
                    Violation("VECTOR_REQUIRED", "needs a vector", f"records[{number}].vector")
                    for number in bare[:_MAX_VIOLATIONS]
                ),
            )
