"""What the executor asks of its storage. The docstrings are the contract; PostgreSQL's clock is the only one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from services.executor.domain.model import (
    EventPage,
    NewRun,
    NodeExecutionView,
    NodeRef,
    OpenWait,
    RunFilter,
    RunView,
    Version,
    WorkerLease,
)
from services.executor.engine.run_variables import RunVariables
from services.executor.engine.state import Failure, NodeRow, RunState, RunStatus, RunTimes, Usage


class UnstorableError(Exception):
    """A value that the database refuses, and will refuse again; nothing was written."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's rows, to make its state from."""

    run_id: UUID
    project_id: str
    version_id: UUID
    version: int
    status: RunStatus
    sequence: int
    input: bytes
    vars: RunVariables
    output: bytes | None
    error: Failure | None
    usage: Usage
    traceparent: str
    priority: int
    links: dict[str, UUID]
    """Versions of sub-workflows by link name."""
    rerun_of: UUID | None
    rerun: bytes | None
    """JSON of how it goes again over `rerun_of`."""
    nodes: dict[str, dict[str, NodeRow]]
    """What has a row, by item path and key."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """Node executions and runs that need someone: found by the sweep, each to be put right by a guarded transition."""

    lost: list[tuple[NodeRef, int]]
    """Running at this epoch on a worker whose lease has ended."""
    timed_out: list[tuple[NodeRef, int]]
    """Running at this epoch past their time-out."""
    waiting: list[tuple[NodeRef, int]]
    """Timers that are due, of node executions at this epoch."""
    runs: list[tuple[UUID, int]]
    """Runs past their deadline, with their limit in seconds."""
    unsettled: list[UUID]
    """Runs that have more to do than one transition did, and nobody goes on."""


FORGOTTEN_AFTER_SECONDS = 5.0
"""So old is a claim that its worker has not named before it counts as forgotten: longer than most answers travel."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Where the claims that a worker names and those that are stored for it differ: node executions at epochs."""

    revoked: list[tuple[NodeRef, int]]
    """Named, and not the worker's any more."""
    forgotten: list[tuple[NodeRef, int]]
    """The worker's for longer than FORGOTTEN_AFTER_SECONDS, and not named."""


class RunStore(Protocol):
    """Runs and all that belongs to them."""

    async def commit(self, states: Sequence[RunState], new: dict[UUID, NewRun]) -> dict[UUID, RunTimes]:
        """Write what has changed in these runs, all in one transaction, durably; returns the runs that were written.

        A run is written only if its row is still at `state.version` (for those in `new`: if there is no row), and then
        the row is one further. Runs that are not are left untouched and out of the answer. Raises UnavailableError when
        the connection is lost (the commit may then have happened), or when a deadlock was broken or a time-out of the
        database met (then it has not).
        """
        ...

    async def load(self, run_ids: Sequence[UUID]) -> list[StoredRun]:
        """Rows of these runs, each run at one moment; missing ones are left out."""
        ...

    async def run_versions(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How often each of these runs has been committed; missing ones are left out."""
        ...

    async def claimed_by(self, worker_id: str, claim_id: str) -> list[NodeRef]:
        """What runs at a worker by this claim."""
        ...

    async def find_version(self, version_id: UUID) -> dict[str, Any] | None:
        """The stored row of a version."""
        ...

    async def keep_version(self, version: Version) -> None:
        """Store a version. Idempotent."""
        ...

    async def renew_lease(
        self, worker: WorkerLease, held: Sequence[tuple[NodeRef, int]], *, seconds: float
    ) -> Differences:
        """Let a worker's claims live for so long from now, and compare them with what it names (each only once)."""
        ...

    async def find_overdue(self, limit: int) -> Overdue:
        """At most `limit` of each kind, the longest overdue first."""
        ...

    async def republish_all(self) -> None:
        """Make every ready node execution due for a wake-up: the bus has lost its messages."""
        ...

    async def seconds_to_next_timer(self) -> float | None:
        """Time until the next timer, None when there is none."""
        ...

    async def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        """A run with input and output. Raises RunNotFoundError."""
        ...

    async def list_runs(
        self, project_id: UUID, run_filter: RunFilter, *, limit: int, after: tuple[Any, UUID] | None
    ) -> list[RunView]:
        """Runs without input and output, newest first, from `(created_at, id)` exclusive."""
        ...

    async def list_node_executions(
        self, project_id: UUID, run_id: UUID, *, limit: int, after: tuple[Any, str, str] | None
    ) -> list[tuple[Any, NodeExecutionView]]:
        """Node executions by (when they became ready or were decided, node_key, item_path), with that first value."""
        ...

    async def list_open_waits(self, project_id: UUID, run_id: UUID, *, limit: int) -> list[OpenWait]:
        """Those of a run's first `limit` waits, by (node_key, item_path), that may be answered by token."""
        ...

    async def list_events(self, project_id: UUID, run_id: UUID, *, after: int, limit: int) -> EventPage:
        """Events after a number, in order, at least `limit` if there are so many. Raises RunNotFoundError."""
        ...
