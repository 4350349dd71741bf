"""Making, finding, changing and deleting collections."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from services.kit.errors import InvalidArgumentError, Violation
from services.kit.ids import id_for_create, require_same_request
from services.vector.domain.embedder import Embedder
from services.vector.domain.indexes import LoadedIndexes
from services.vector.domain.model import (
    MAX_DIMENSION,
    MAX_NAME,
    Collection,
    CollectionSpec,
    DimensionMismatchError,
    IndexConfig,
    IndexType,
    Metric,
)
from services.vector.domain.store import CollectionStore

_DEFAULT = IndexConfig()
_M, _EF_CONSTRUCTION, _EF_SEARCH = (4, 64), (16, 500), (16, 1_000)


class Collections:
    """The use cases of collections. `project_id` always comes from the verified caller."""

    def __init__(
        self,
        store: CollectionStore,
        embedder: Embedder,
        indexes: LoadedIndexes,
        *,
        on_deleted: Callable[[], None],
    ) -> None:
        """`on_deleted` is called after a deletion, to have what is left behind removed."""
        self._store = store
        self._embedder = embedder
        self._indexes = indexes
        self._on_deleted = on_deleted

    async def create(
        self,
        project_id: UUID,
        *,
        name: str,
        embedding_model: str,
        dimension: int,
        metric: Metric,
        index: IndexConfig,
        request_id: str,
        request_hash: bytes,
        timeout_seconds: float,
    ) -> Collection:
        """Make a collection. Repeated with the same request_id, it returns the one that was made.

        `dimension` 0 = that of the model; `embedding_model` "" with a dimension = takes vectors only, without one = the
        default model. Zeros in `index` stand for defaults. Raises CollectionExistsError, IdempotencyKeyReusedError,
        ModelNotFoundError, ModelUnavailableError, DimensionMismatchError, InvalidArgumentError.
        """
        _check(
            _name_problem(name),
            _range_problem("dimension", dimension, (1, MAX_DIMENSION)),
            _range_problem("index.m", index.m, _M),
            _range_problem("index.ef_construction", index.ef_construction, _EF_CONSTRUCTION),
            _range_problem("index.ef_search", index.ef_search, _EF_SEARCH),
        )
        collection_id = id_for_create(project_id, "collection", request_id)
        if request_id and (made := await self._store.find_created(project_id, collection_id)):
            collection, stored_hash = made
            require_same_request(stored_hash, request_hash)
            return collection
        if embedding_model or not dimension:
            model = await self._embedder.model(project_id, embedding_model, timeout_seconds=timeout_seconds)
            if dimension not in {0, model.dimension}:
                raise DimensionMismatchError(
                    f"The model {model.name} makes vectors of {model.dimension} numbers, not {dimension}. "
                    "Leave the dimension out to take the model's.",
                    violations=(Violation("DIMENSION_MISMATCH", f"must be {model.dimension} or absent", "dimension"),),
                )
            embedding_model, dimension = model.name, model.dimension
        spec = CollectionSpec(
            id=collection_id,
            project_id=project_id,
            name=name,
            embedding_model=embedding_model,
            dimension=dimension,
            metric=metric,
            index=IndexConfig(
                type=index.type,
                m=index.m or _DEFAULT.m,
                ef_construction=index.ef_construction or _DEFAULT.ef_construction,
                ef_search=index.ef_search or _DEFAULT.ef_search,
            ),
            request_hash=request_hash if request_id else None,
        )
        return await self._store.create(spec)

    async def get(self, project_id: UUID, reference: str) -> Collection:
        """The collection with this id or name. Raises CollectionNotFoundError."""
        return await self._store.find(project_id, reference)

    async def list(self, project_id: UUID, *, size: int, before: tuple[datetime, UUID] | None) -> list[Collection]:
        """At most `size` collections, newest first."""
        return await self._store.list(project_id, size=size, before=before)

    async def update(
        self, project_id: UUID, reference: str, *, revision: int, name: str | None, ef_search: int | None
    ) -> Collection:
        """Change what is not None. Raises RevisionMismatchError, CollectionExistsError, CollectionNotFoundError."""
        _check(
            _name_problem(name) if name is not None else None,
            _range_problem("ef_search", ef_search or 0, _EF_SEARCH),
        )
        if ef_search is not None:
            ef_search = ef_search or _DEFAULT.ef_search
            if (await self._store.find(project_id, reference)).index.type is not IndexType.HNSW:
                _check(Violation("UNSUPPORTED", "only an HNSW index has ef_search; a flat one is exact", "ef_search"))
        return await self._store.update(project_id, reference, revision=revision, name=name, ef_search=ef_search)

    async def delete(self, project_id: UUID, reference: str, *, revision: int) -> None:
        """Delete a collection. Its records and files are removed soon after. Raises as `update`."""
        collection = await self._store.delete(project_id, reference, revision=revision)
        await self._indexes.forget({collection.data_id})
        self._on_deleted()


def _name_problem(name: str) -> Violation | None:
    if not 1 <= len(name) <= MAX_NAME or name != name.strip() or not name.isprintable():
        return Violation(
            "INVALID_NAME",
            f"must have 1 to {MAX_NAME} printable characters and no space at its ends",
            "name",
        )
    try:
        UUID(name)
    except ValueError:
        return None
    return Violation("INVALID_NAME", "must not look like an id: collections are found by either", "name")


def _range_problem(path: str, value: int, allowed: tuple[int, int]) -> Violation | None:
    """0 stands for the default and is always right."""
    low, high = allowed
    if value == 0 or low <= value <= high:
        return None
    return Violation("OUT_OF_RANGE", f"must be {low} to {high}", path)


def _check(*problems: Violation | None) -> None:
    violations = tuple(problem for problem in problems if problem)
    if violations:
        first = violations[0]
        raise InvalidArgumentError(f"`{first.path}` {first.message}.", violations=violations)
