"""How long a project keeps its ended runs."""

from typing import Protocol
from uuid import UUID

from services.kit.errors import InvalidArgumentError, Violation

MAX_DAYS = 3650


class InvalidRetentionError(InvalidArgumentError):
    """Runs cannot be kept for so long, or so short."""

    reason = "INVALID_RETENTION"


class RetentionStore(Protocol):
    """What is stored of retention."""

    async def get_retention(self, project_id: UUID) -> int | None:
        """Days that a project keeps its ended runs; None = as the operator's setting says."""
        ...

    async def set_retention(self, project_id: UUID, days: int | None) -> None:
        """Keep them for so many days from now on."""
        ...


class RetentionSettings:
    """Use cases of retention."""

    def __init__(self, store: RetentionStore, default_days: int) -> None:
        self._store = store
        self.default_days = default_days
        """What the operator has set, for projects without days of their own."""

    async def get(self, project_id: UUID) -> int | None:
        """Days of the project's own."""
        return await self._store.get_retention(project_id)

    async def set(self, project_id: UUID, days: int | None) -> int | None:
        """Replace them; None = none of its own. Raises InvalidRetentionError."""
        if days is not None and not 1 <= days <= MAX_DAYS:
            message = f"`days` is a whole number from 1 to {MAX_DAYS}, or null for the installation's setting."
            raise InvalidRetentionError(message, violations=(Violation("OUT_OF_RANGE", message, "days"),))
        await self._store.set_retention(project_id, days)
        return days
