"""Setting limits: by the project within the operator's ceilings, and by the operator."""

from collections.abc import Collection, Iterator
from typing import Protocol
from uuid import UUID

from services.executor.domain.limits import ProjectLimits, TypeLimits
from services.kit.errors import InvalidArgumentError, Violation

MAX_WEIGHT = 100
_MAX_COUNT = 10_000_000
_MAX_RATE = 100_000.0
_MAX_TYPES = 100
_COUNTS = ("max_running_nodes", "max_open_runs", "max_queued_nodes")


class InvalidLimitsError(InvalidArgumentError):
    """Some of the limits cannot be set."""

    reason = "INVALID_LIMITS"


class LimitStore(Protocol):
    """What is stored of limits."""

    async def get_limits(self, project_id: UUID) -> tuple[ProjectLimits, ProjectLimits]:
        """What the project has set, and the operator's ceilings with the project's weight."""
        ...

    async def set_own(self, project_id: UUID, limits: ProjectLimits) -> None:
        """Replace what the project has set."""
        ...

    async def set_ceilings(self, project_id: UUID, limits: ProjectLimits) -> None:
        """Replace the operator's ceilings and the weight."""
        ...

    async def free_unused(self) -> None:
        """Free the places on which nothing has begun to run, each in one commit with a move of its run."""
        ...


class LimitSettings:
    """Use cases of limits. The first of each pair is the project's, the second the operator's."""

    def __init__(self, store: LimitStore, node_types: Collection[str]) -> None:
        self._store = store
        self._node_types = frozenset(node_types)

    async def get(self, project_id: UUID) -> tuple[ProjectLimits, ProjectLimits]:
        """What is set for a project."""
        return await self._store.get_limits(project_id)

    async def set_own(self, project_id: UUID, limits: ProjectLimits) -> tuple[ProjectLimits, ProjectLimits]:
        """Replace what the project has set. Raises InvalidLimitsError with all that is wrong."""
        _, ceilings = await self._store.get_limits(project_id)
        self._require(limits, ceilings)
        await self._store.set_own(project_id, limits)
        return limits, ceilings

    async def set_ceilings(self, project_id: UUID, ceilings: ProjectLimits) -> None:
        """Replace the operator's ceilings and weight. A project's own higher limits stay, and do not count."""
        self._require(ceilings, ProjectLimits())
        await self._store.set_ceilings(project_id, ceilings)

    def _require(self, limits: ProjectLimits, ceilings: ProjectLimits) -> None:
        violations = tuple(self._violations(limits, ceilings))
        if violations:
            raise InvalidLimitsError(f"The limits are not valid. {violations[0].message}", violations=violations)

    def _violations(self, limits: ProjectLimits, ceilings: ProjectLimits) -> Iterator[Violation]:
        if not 1 <= limits.weight <= MAX_WEIGHT:
            yield Violation("OUT_OF_RANGE", f"The weight is a whole number from 1 to {MAX_WEIGHT}.", "weight")
        for name in _COUNTS:
            yield from _count(name, getattr(limits, name), getattr(ceilings, name))
        if len(limits.node_types) > _MAX_TYPES:
            yield Violation("TOO_MANY", f"At most {_MAX_TYPES} node types can have limits.", "node_types")
            return
        for name, of_type in limits.node_types.items():
            path = f"node_types.{name[:64]}"
            if name not in self._node_types:
                yield Violation("UNKNOWN_NODE_TYPE", f"There is no node type {name[:64]!r} that workers run.", path)
            else:
                yield from _of_type(path, of_type, ceilings.node_types.get(name, TypeLimits()))


def _of_type(path: str, limits: TypeLimits, ceiling: TypeLimits) -> Iterator[Violation]:
    yield from _count(f"{path}.max_running", limits.max_running, ceiling.max_running)
    if not 1 <= limits.burst <= _MAX_COUNT:
        yield Violation("OUT_OF_RANGE", f"`burst` is a whole number from 1 to {_MAX_COUNT}.", f"{path}.burst")
    if limits.rate is None:
        return
    if not 0.001 <= limits.rate <= _MAX_RATE:
        yield Violation("OUT_OF_RANGE", f"`rate` is from 0.001 to {_MAX_RATE:g} a second.", f"{path}.rate")
    elif ceiling.rate is not None and limits.rate > ceiling.rate:
        yield Violation("OVER_CEILING", f"The operator allows a `rate` of at most {ceiling.rate:g}.", f"{path}.rate")


def _count(path: str, value: int | None, ceiling: int | None) -> Iterator[Violation]:
    if value is None:
        return
    if not 1 <= value <= _MAX_COUNT:
        yield Violation("OUT_OF_RANGE", f"`{path}` is a whole number from 1 to {_MAX_COUNT}.", path)
    elif ceiling is not None and value > ceiling:
        yield Violation("OVER_CEILING", f"The operator allows at most {ceiling} for `{path}`.", path)
