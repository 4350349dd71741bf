"""What the domain needs of an index in memory, and of the files that indexes are kept in."""

from collections.abc import Callable
from collections.abc import Collection as Many
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from services.vector.domain.model import Collection
from services.vector.domain.store import Changes
from services.vector.domain.vectors import Floats, Ordinals


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates of one query: their ordinals int64 (n,) and scores float32 (n,), highest first.

    Beyond top_k come only records whose score may be that of the last one within.
    """

    ordinals: Ordinals
    scores: NDArray[np.float32]


class Rebuild(Protocol):
    """A graph being built beside the one in use, from a copy of the vectors."""

    def build(self, stop: Callable[[], bool]) -> bool:
        """Build; False when `stop` said so in between. Blocks for long; needs no lock."""


class VectorIndex(Protocol):
    """The vectors of one collection, searchable. Methods block and hold no lock.

    The caller sees to it that `apply`, `tidy` and `adopt` run alone, and that no other method runs beside them.
    Searches and `write` may run at the same time.
    """

    sequence: int
    """The change up to which it is current; set by the caller once all parts of a change stream are applied."""

    @property
    def size(self) -> int:
        """Number of vectors that can be found."""

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory, about."""

    @property
    def wants_upkeep(self) -> bool:
        """Whether `tidy` or `plan_rebuild` would find something to do. Cheap; needs no lock."""

    def apply(self, changes: Changes) -> None:
        """Forget and learn. Idempotent. An ordinal occurs once in `changes.ordinals`."""

    def search(self, queries: Floats, top_k: int, *, ef_search: int, allowed: Ordinals | None) -> list[Found]:
        """For each query, shape (n, d), the best `top_k` or more, among the allowed ordinals; None = all.

        With more than `top_k` come records that tie with the last, so that the caller can order ties by id.
        """

    def tidy(self, seconds: float) -> bool:
        """Do at most about `seconds` of the work that was put off; whether some is left."""

    def plan_rebuild(self) -> Rebuild | None:
        """A rebuild if one is due. Changes from here on are kept in mind until `adopt`."""

    def adopt(self, rebuild: Rebuild | None) -> None:
        """Take what a finished rebuild made, less what has changed since; None = it was given up."""


class UnsealedFile(Protocol):
    """An index file that is written and does not count yet. Its methods block."""

    def seal(self) -> None:
        """Make it durable and put it in place of the one before. Raises OSError."""

    def discard(self) -> None:
        """Remove it, unless it was sealed."""


class Snapshots(Protocol):
    """Index files: caches that may vanish, lag behind or be damaged. Methods block."""

    def load(self, collection: Collection) -> VectorIndex | None:
        """The index as it was written; None when there is none or it cannot be trusted, which removes it."""

    def begin(self, collection: Collection, index: VectorIndex) -> UnsealedFile:
        """Copy an index, which must be at rest meanwhile, into a temporary file. Raises OSError, as on a full disk."""

    def remove(self, collection_data: Many[UUID]) -> None:
        """Delete the files of these data ids and what writers that died left behind."""

    def data_ids(self) -> set[UUID]:
        """The data ids that have files."""
