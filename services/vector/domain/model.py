"""The vector service's nouns, limits and errors."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.kit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

MAX_NAME = 128
MAX_DIMENSION = 4096
MAX_UPSERT = 1_000
MAX_DELETE = 1_000
MAX_RECORD_ID = 256
MAX_TEXT = 100_000
MAX_METADATA_BYTES = 64 * 1024
MAX_FILTER_BYTES = 1024 * 1024
MAX_TOP_K = 100
DEFAULT_TOP_K = 10


class Metric(StrEnum):
    """What near means. Scores are higher for nearer: the cosine; 1 / (1 + squared distance); the inner product."""

    COSINE = "cosine"
    L2 = "l2"
    IP = "ip"


class IndexType(StrEnum):
    """How a collection is searched: every vector compared, or by a graph of near neighbours."""

    FLAT = "flat"
    HNSW = "hnsw"


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """An index and its parameters; those of HNSW are kept for a flat index too, and mean nothing there."""

    type: IndexType = IndexType.FLAT
    m: int = 32
    """Neighbours per vector, 4 to 64."""
    ef_construction: int = 200
    """Breadth of the search for neighbours while building, 16 to 500."""
    ef_search: int = 64
    """Breadth of a search, 16 to 1,000."""


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection is made from."""

    id: UUID
    project_id: UUID
    name: str
    embedding_model: str
    """Empty = takes vectors only."""
    dimension: int
    metric: Metric
    index: IndexConfig
    request_hash: bytes | None


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as it was read. `sequence` is the number of the last change of its records."""

    id: UUID
    project_id: UUID
    data_id: UUID
    """Of its records and index: never the same for two collections, not even under one id (storage/tables.py)."""
    name: str
    embedding_model: str
    dimension: int
    metric: Metric
    index: IndexConfig
    record_count: int
    sequence: int
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """A record. `vector` is float32, little-endian; empty = not given, or not asked for."""

    id: str
    text: str
    vector: bytes
    metadata: bytes
    """A JSON object as UTF-8 text."""
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A record found by a search, without its vector."""

    record: Record
    score: float


class CollectionNotFoundError(NotFoundError):
    """No such collection in the project."""

    reason = "COLLECTION_NOT_FOUND"

    def __init__(self, message: str = "", **details: object) -> None:
        super().__init__(message or "There is no such collection in this project.")


class RecordNotFoundError(NotFoundError):
    """No such record in the collection."""

    reason = "RECORD_NOT_FOUND"


class CollectionExistsError(AlreadyExistsError):
    """The project has a collection of that name."""

    reason = "COLLECTION_EXISTS"


class ModelNotFoundError(NotFoundError):
    """The llm service has no such embedding model."""

    reason = "MODEL_NOT_FOUND"


class ModelUnavailableError(UnavailableError):
    """A text cannot be embedded now."""

    reason = "MODEL_UNAVAILABLE"


class DimensionMismatchError(InvalidArgumentError):
    """A vector is of another length than those of the collection."""

    reason = "DIMENSION_MISMATCH"


class InvalidVectorError(InvalidArgumentError):
    """A vector that cannot be compared: not finite, too large, or zero where only its direction counts."""

    reason = "INVALID_VECTOR"


class VectorRequiredError(InvalidArgumentError):
    """A text was given to a collection that takes vectors only."""

    reason = "VECTOR_REQUIRED"
