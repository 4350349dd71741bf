"""How little a seed's installation has: windows, limits of projects, and what it takes to be refused."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from uuid import UUID

from services.executor.domain.admission import AdmissionLimits
from services.executor.domain.limits import ProjectLimits, TypeLimits

ROOMY = AdmissionLimits(10**6, 10**6, 1e9, 10**6)


@dataclass(frozen=True)
class Tight:
    """What one seed has drawn."""

    projects: list[UUID]
    limits: dict[UUID, ProjectLimits]
    admission: AdmissionLimits
    min_window: int
    max_window: int
    window_per_slot: float
    places_at_once: int
    place_seconds: float
    """After which a place on which nothing runs is free."""
    turns: float
    """Share of the workflows whose runs take turns."""
    runs: int
    """That people want."""
    late: bool
    """Some of them long after the last fault."""

    @property
    def is_roomy(self) -> bool:
        """Nobody has to wait for others."""
        return not self.turns


def draw(rng: Random) -> Tight:
    """Draw: a third of the seeds is as roomy as an installation without any limit."""
    if rng.random() < 0.34:
        projects = [UUID(int=7)]
        return Tight(projects, {}, ROOMY, 16, 5000, 1.0, 16, 15.0, 0.0, rng.choice((1, 2, 2, 3, 3, 8)), False)
    projects = [UUID(int=7 + number) for number in range(rng.choice((1, 2, 3)))]
    max_window = rng.choice((1, 2, 4, 5000))
    return Tight(
        projects,
        {project: _limits(rng) for project in projects if rng.random() < 0.5},
        _admission(rng) if rng.random() < 0.4 else ROOMY,
        min(max_window, rng.choice((1, 1, 2, 16))),
        max_window,
        rng.choice((0.1, 0.5, 1.0)),
        rng.choice((1, 2, 16)),
        rng.choice((0.5, 2.0, 15.0)),
        0.3,
        rng.choice((2, 3, 3, 5, 8)),
        rng.random() < 0.12,
    )


def _limits(rng: Random) -> ProjectLimits:
    of_work = TypeLimits(
        rate=rng.choice((5.0, 20.0)) if rng.random() < 0.15 else None,
        burst=rng.choice((1, 3)),
        max_running=rng.choice((None, 1, 2)),
    )
    return ProjectLimits(
        max_running_nodes=rng.choice((None, 1, 1, 2, 3)),
        max_open_runs=rng.choice((None, None, None, 1, 2)),
        max_queued_nodes=rng.choice((None, None, None, 1, 3)),
        node_types={"work": of_work} if rng.random() < 0.5 else {},
        weight=rng.choice((1, 1, 3)),
    )


def _admission(rng: Random) -> AdmissionLimits:
    """Bounds of the operator. What waits for a worker is no reason to refuse before a lost wake-up would be missed."""
    return AdmissionLimits(
        rng.choice((2, 10**6)), rng.choice((2, 10**6)), rng.choice((6.0, 15.0, 1e9)), rng.choice((3, 10**6))
    )
