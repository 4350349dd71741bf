"""What the domain needs of the rows, which are the truth.

Every method is one transaction, durable when it returns; a call whose connection is lost raises UnavailableError and
may have happened. Methods that take a project never touch another's rows. Changes of a collection's records are
numbered by its `sequence`, one number per call, committed in this order: whoever reads sequence n sees all changes up
to n.
"""

from collections.abc import AsyncIterator, Sequence
from collections.abc import Collection as Many
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.kit.filters import Filter
from services.vector.domain.model import Collection, CollectionSpec, Record
from services.vector.domain.vectors import Floats, Ordinals


class CollectionStore(Protocol):
    """The rows of collections."""

    async def create(self, spec: CollectionSpec) -> Collection:
        """Make a collection; the existing one when its id exists with the same request hash.

        Raises CollectionExistsError for a name in use, IdempotencyKeyReusedError for an id with another hash.
        """

    async def find(self, project_id: UUID, reference: str) -> Collection:
        """The collection with this id or name. Raises CollectionNotFoundError."""

    async def find_created(self, project_id: UUID, collection_id: UUID) -> tuple[Collection, bytes | None] | None:
        """The collection with this id and the hash of the request that made it, None when there is none."""

    async def list(self, project_id: UUID, *, size: int, before: tuple[datetime, UUID] | None) -> list[Collection]:
        """At most `size` collections, newest first, older than `before` (creation time, id)."""

    async def update(
        self, project_id: UUID, reference: str, *, revision: int, name: str | None, ef_search: int | None
    ) -> Collection:
        """Change what is not None; `revision` 0 = any.

        Raises CollectionNotFoundError, RevisionMismatchError, CollectionExistsError.
        """

    async def delete(self, project_id: UUID, reference: str, *, revision: int) -> Collection:
        """Delete a collection; its records go when `purge_some` is called. Raises as `update`."""

    async def purge_some(self, limit: int) -> bool:
        """Remove at most `limit` records of deleted collections; whether there may be more."""

    async def prune_deletions(self, older_than_seconds: float) -> None:
        """Stop listing old deletions; raises the horizon of their collections."""

    async def existing(self, data_ids: Many[UUID]) -> set[UUID]:
        """Those of the data ids that belong to a collection."""

    async def ping(self) -> None:
        """Return if the database answers; raises UnavailableError."""


class RecordStore(Protocol):
    """The rows of records."""

    async def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        """Write records with distinct ids, vectors given. Raises CollectionNotFoundError when it is gone by now."""

    async def get(self, collection: Collection, record_id: str) -> Record | None:
        """One record with its vector."""

    async def list(self, collection: Collection, *, size: int, after: str | None, only: Filter | None) -> list[Record]:
        """At most `size` records without vectors, ordered by id (by code point), after an id, that match a filter."""

    async def delete(self, collection: Collection, *, ids: Sequence[str] | None, only: Filter | None) -> int:
        """Delete the records that match both; None = all. Returns how many there were."""


@dataclass(frozen=True, slots=True)
class StoredMatch:
    """A record behind an ordinal, without its vector, and the change that wrote it last."""

    record: Record
    sequence: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Some changes of records: ordinals to forget, then ordinals with their present vectors, float32 (n, d)."""

    removed: Ordinals
    ordinals: Ordinals
    vectors: Floats


@dataclass(frozen=True, slots=True)
class ChangeStream:
    """All changes after some sequence number, in one snapshot of the rows."""

    sequence: int
    """Of the snapshot: whoever applies all `parts` is current up to it."""
    horizon: int
    """An index older than this, but not empty, cannot be brought up to date by changes."""
    parts: AsyncIterator[Changes]


class IndexedStore(Protocol):
    """What indexes and searches read."""

    def changes(self, collection: Collection, *, after: int) -> AbstractAsyncContextManager[ChangeStream]:
        """Changes with a sequence above `after`; all records for 0. Raises CollectionNotFoundError on entering."""

    async def matching(self, collection: Collection, only: Filter) -> Ordinals:
        """The ordinals of the records that a filter lets through, int64, in no order."""

    async def at(self, collection: Collection, ordinals: Ordinals) -> dict[int, StoredMatch]:
        """The records at these ordinals; those that are gone are left out."""

    async def ids_at(self, collection: Collection, ordinals: Ordinals) -> dict[int, str]:
        """As `at`, the ids only."""
