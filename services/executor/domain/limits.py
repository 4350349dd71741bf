"""What projects may use: limits of the project, of its node types, and its weight against other projects."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class TypeLimits:
    """Limits of one node type in a project; None = none."""

    rate: float | None = None
    """Starts per second."""
    burst: int = 1
    """Starts at once after a pause."""
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class ProjectLimits:
    """What is set for a project; None = no limit."""

    max_running_nodes: int | None = None
    max_open_runs: int | None = None
    max_queued_nodes: int | None = None
    node_types: Mapping[str, TypeLimits] = field(default_factory=dict)
    weight: int = 1
    """Turns of the project for one of a project with weight 1."""

    @property
    def needs_places(self) -> bool:
        """Some of its nodes may run only so many at a time."""
        return self.max_running_nodes is not None or any(
            limits.max_running is not None for limits in self.node_types.values()
        )

    @property
    def bypass_allowed(self) -> bool:
        """Its nodes may start without being counted."""
        return self.max_running_nodes is None and not self.node_types

    def line(self, node_type: str) -> str:
        """Nodes of one line wait for one another; those of different lines do not."""
        return node_type if node_type in self.node_types else ""

    def counts(self, node_type: str) -> bool:
        """Nodes of this type need a place to run."""
        found = self.node_types.get(node_type)
        return self.max_running_nodes is not None or (found is not None and found.max_running is not None)

    def scopes(self, project_id: str, node_type: str) -> dict[str, int]:
        """What a node execution counts against, with how many may run at a time."""
        found: dict[str, int] = {}
        if self.max_running_nodes is not None:
            found[f"project/{project_id}"] = self.max_running_nodes
        of_type = self.node_types.get(node_type)
        if of_type is not None and of_type.max_running is not None:
            found[f"type/{project_id}/{node_type}"] = of_type.max_running
        return found

    def as_json(self) -> dict[str, Any]:
        """The stored form, without the weight."""
        values = {name: getattr(self, name) for name in _NUMBERS}
        types = {name: asdict(limits) for name, limits in self.node_types.items()}
        return {name: value for name, value in values.items() if value is not None} | {"node_types": types}


_NUMBERS = ("max_running_nodes", "max_open_runs", "max_queued_nodes")
NO_LIMITS = ProjectLimits()


def limits_from_json(value: Mapping[str, Any], *, weight: int = 1) -> ProjectLimits:
    """Limits as `as_json` gave them. Raises TypeError for a field that limits do not have."""
    if unknown := sorted(value.keys() - {*_NUMBERS, "node_types"}):
        raise TypeError(f"unknown: {', '.join(unknown)}")
    types = {name: TypeLimits(**limits) for name, limits in value.get("node_types", {}).items()}
    return ProjectLimits(**{name: value.get(name) for name in _NUMBERS}, node_types=types, weight=weight)


def effective(own: ProjectLimits, ceilings: ProjectLimits) -> ProjectLimits:
    """What counts: the lower of what the project and what the operator has set."""
    names = sorted({*own.node_types, *ceilings.node_types})
    return ProjectLimits(
        **{name: _lower(getattr(own, name), getattr(ceilings, name)) for name in _NUMBERS},
        node_types={
            name: _effective_type(own.node_types.get(name, _FREE), ceilings.node_types.get(name, _FREE))
            for name in names
        },
        weight=ceilings.weight,
    )


def _effective_type(own: TypeLimits, ceiling: TypeLimits) -> TypeLimits:
    stricter = own if own.rate is not None and (ceiling.rate is None or own.rate <= ceiling.rate) else ceiling
    return TypeLimits(stricter.rate, stricter.burst, _lower(own.max_running, ceiling.max_running))


def _lower(one: N | None, other: N | None) -> N | None:
    return min((value for value in (one, other) if value is not None), default=None)


_FREE = TypeLimits()
