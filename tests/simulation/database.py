"""PostgreSQL: the executor's tables as dicts, and its statements, each of which happens at one moment.

They say what the SQL in services/executor/storage says. `now` is the only clock; nothing committed is ever lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain.admission import Load
from services.executor.domain.limits import NO_LIMITS, ProjectLimits
from services.executor.domain.model import EventPage, EventView, NodeRef, RunNotFoundError, RunView, WorkerLease
from services.executor.domain.refill import Census, FoundReady
from services.executor.domain.store import FORGOTTEN_AFTER_SECONDS, Differences, Overdue, UnstorableError
from services.executor.engine.state import RUN_TERMINAL, RunTimes
from services.executor.storage.dispatching import EXECUTOR_LEASE_SECONDS
from services.executor.storage.queries import _run
from tests.simulation.places import PlaceTable
from tests.simulation.rows import Rows

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
UNSTORABLE = b'"unstorable"'
"""An output that no column takes."""
READY, RUNNING, WAITING = 2, 3, 4
FIRST = UUID(int=0)
"""No project comes before it."""
NodeKey = tuple[UUID, str, str]
Row = dict[str, Any]


def moment(seconds: float) -> datetime:
    """A virtual time as PostgreSQL would show it."""
    return EPOCH + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Change:
    """What one commit did to one run: rows before and after."""

    before: Row | None
    after: Row
    nodes: list[tuple[Row | None, Row]]
    events: list[dict[str, Any]]


class Database:
    """The tables. `observe` is told of each run that a commit has written."""

    guards_versions = True
    """A negative control turns it off."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.observe: Callable[[Change], None] = lambda change: None
        self.runs: dict[UUID, Row] = {}
        self.nodes: dict[UUID, dict[NodeKey, Row]] = {}
        self.open: dict[NodeKey, Row] = {}
        """Node executions that are ready, running or waiting: the partial index."""
        self.events: dict[UUID, list[tuple[float, list[dict[str, Any]]]]] = {}
        self.workers: dict[str, tuple[float, WorkerLease]] = {}
        """When each worker's lease ends, and what it told."""
        self.executors: dict[str, float] = {}
        """When each executor's note of itself ends."""
        self.versions: dict[UUID, Row] = {}
        self.places = PlaceTable(now, self.runs, self.open)

    # storage/commit.py

    def commit(self, rows: Rows) -> dict[UUID, RunTimes]:
        """COMMIT."""
        if any(row["output"] is not None and UNSTORABLE in row["output"] for row in rows.nodes):
            raise UnstorableError("a value that is not taken")
        before: dict[UUID, Row | None] = {}
        now = self.now()
        for row in rows.created:
            run_id = row["id"]
            if run_id not in self.runs:
                before[run_id] = None
                self.runs[run_id] = {
                    **row,
                    "version": 1,
                    "created_at": now,
                    "deadline_at": now + row["timeout_seconds"],
                    "continue_at": _after(now, row["continue_in"]),
                    "started_at": now if row["status"] >= 2 else None,
                    "finished_at": now if row["status"] >= 4 else None,
                }
        for row in rows.moved:
            old = self.runs.get(row["id"])
            if old is not None and (old["version"] == row["version"] or not self.guards_versions):
                before[row["id"]] = dict(old)
                started_at = old["started_at"] if old["started_at"] is not None else now if row["status"] >= 2 else None
                finished_at = now if row["status"] >= 4 else None
                continue_at = _after(now, row["continue_in"])
                old.update(
                    row,
                    version=old["version"] + 1,
                    started_at=started_at,
                    finished_at=finished_at,
                    continue_at=continue_at,
                )
        nodes: dict[UUID, list[tuple[Row | None, Row]]] = {run_id: [] for run_id in before}
        for row in rows.nodes:
            if row["run_id"] in before:
                nodes[row["run_id"]].append(self._write_node(row, now))
        events: dict[UUID, list[dict[str, Any]]] = {run_id: [] for run_id in before}
        for row in rows.events:
            if row["run_id"] in before:
                batch = orjson.loads(row["events"])
                self.events.setdefault(row["run_id"], []).append((now, batch))
                events[row["run_id"]] += batch
        for run_id in before:
            self.places.free(self.runs[run_id], nodes[run_id])
        for run_id, old in before.items():
            self.observe(Change(old, self.runs[run_id], nodes[run_id], events[run_id]))
        return {run_id: RunTimes(**_times(self.runs[run_id])) for run_id in before}

    def _write_node(self, row: Row, now: float) -> tuple[Row | None, Row]:
        key = row["run_id"], row["node_key"], row["item_path"]
        due_at, due_in, status = row["due_at"], row["due_in"], row["status"]
        old = self.nodes.setdefault(row["run_id"], {}).get(key)
        ready_again = old is None or status == READY
        new = {
            **row,
            "publications": 0,
            "queued_at": now if ready_again or old is None else old["queued_at"],
            "started_at": now if status == RUNNING else old and old["started_at"],
            "project_id": row.get("project_id") or (old["project_id"] if old else None),
            "due_at": (due_at - EPOCH).total_seconds() if due_at else None if due_in is None else now + due_in,
        }
        self.nodes[row["run_id"]][key] = new
        if READY <= status <= WAITING:
            self.open[key] = new
        else:
            self.open.pop(key, None)
        return old, new

    # storage/postgres.py

    def read_runs(self, run_ids: Sequence[UUID]) -> list[Row]:
        """_LOAD_RUNS."""
        return [dict(self.runs[run_id]) for run_id in run_ids if run_id in self.runs]

    def read_nodes(self, run_ids: Sequence[UUID]) -> dict[UUID, list[Row]]:
        """_LOAD_NODES. Rows are replaced and never changed by commits, so they need no copy."""
        return {run_id: list(self.nodes.get(run_id, {}).values()) for run_id in run_ids}

    def run_versions(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """See RunStore."""
        return {run_id: self.runs[run_id]["version"] for run_id in run_ids if run_id in self.runs}

    def claimed_by(self, worker_id: str, claim_id: str) -> list[NodeRef]:
        """_CLAIMED_BY."""
        return [
            NodeRef(*key)
            for key, row in self.open.items()
            if (row["status"], row["worker"], row["claim_id"]) == (RUNNING, worker_id, claim_id)
        ]

    def renew_lease(self, worker: WorkerLease, held: Sequence[tuple[NodeRef, int]], seconds: float) -> Differences:
        """_RENEW_LEASE."""
        self.workers[worker.worker_id] = self.now() + seconds, worker
        before = self.now() - FORGOTTEN_AFTER_SECONDS
        running = {key: row for key, row in self.open.items() if row["status"] == RUNNING}
        mine = {(key, row["epoch"]): row for key, row in running.items() if row["worker"] == worker.worker_id}
        named = {(_key(ref), epoch) for ref, epoch in held}
        return Differences(
            revoked=[(ref, epoch) for ref, epoch in held if (_key(ref), epoch) not in mine],
            forgotten=[
                (NodeRef(*key), epoch)
                for (key, epoch), row in mine.items()
                if row["started_at"] < before and (key, epoch) not in named
            ],
        )

    def find_overdue(self, limit: int) -> Overdue:
        """_OVERDUE."""
        now = self.now()
        overdue = Overdue([], [], [], [], [])
        for key, row in sorted(self.open.items(), key=lambda item: item[1]["due_at"] or now):
            found = NodeRef(*key), row["epoch"]
            if row["status"] == RUNNING:
                if self.workers.get(row["worker"], (now,))[0] < now:
                    overdue.lost.append(found)
                if row["due_at"] is not None and row["due_at"] < now:
                    overdue.timed_out.append(found)
            elif row["status"] == WAITING and row["due_at"] is not None and row["due_at"] <= now:
                overdue.waiting.append(found)
        overdue.runs.extend(
            (run_id, run["timeout_seconds"])
            for run_id, run in self.runs.items()
            if run["status"] < 4 and run["deadline_at"] < now
        )
        overdue.unsettled.extend(
            run_id for run_id, run in self.runs.items() if run["continue_at"] is not None and run["continue_at"] <= now
        )
        return overdue

    # storage/dispatching.py

    def take_ready(
        self,
        queue: str,
        *,
        room: int,
        full: Sequence[str],
        short: Sequence[str],
        limits: Mapping[str, ProjectLimits],
        after: UUID,
    ) -> tuple[list[FoundReady], UUID]:
        """_WAITING_PROJECTS and _TAKE_READY; returns also after which project the next look goes on."""
        now = self.now()
        waiting = [
            (-(row.get("priority") or 0), row["queued_at"], key, row)
            for key, row in self.open.items()
            if row["status"] == READY
        ]
        waiting.sort(key=lambda each: each[:3])
        projects = sorted({row["project_id"] for *_, row in waiting if row["project_id"] > after})[:room]
        next_after = projects[-1] if len(projects) == room else FIRST
        weights = {
            project: limits.get(str(project), NO_LIMITS).weight for project in projects if str(project) not in full
        }
        left = {project: max(1, room * weight // sum(weights.values())) for project, weight in weights.items()}
        found = []
        for *_, key, row in waiting:
            project_id = row["project_id"]
            is_due = row["due_at"] <= now or (str(project_id) in short and row["publications"] == 0)
            if row["queue"] == queue and is_due and left.get(project_id, 0) > 0:
                left[project_id] -= 1
                row["due_at"] = now + min(3.0 * 2 ** row["publications"], 60.0)
                row["publications"] = min(row["publications"] + 1, 5)
                waited = now - row["queued_at"]
                found.append(
                    FoundReady(
                        NodeRef(*key), row["epoch"], str(project_id), row["type"], row.get("priority") or 0, waited
                    )
                )
        return found, next_after

    def load_of(self, project_id: UUID, runs: int, nodes: int) -> Load:
        """_LOAD."""
        mine = {run_id for run_id, run in self.runs.items() if run["project_id"] == project_id and run["status"] < 4}
        ready = sum(key[0] in mine and row["status"] == READY for key, row in self.open.items())
        return Load(min(len(mine), runs), min(ready, nodes))

    def census(self, executor_id: str) -> Census:
        """Who takes part."""
        now = self.now()
        self.executors[executor_id] = now + EXECUTOR_LEASE_SECONDS
        slots: dict[str, int] = {}
        for until, worker in self.workers.values():
            if until > now and not worker.draining:
                for queue in worker.queues:
                    slots[queue] = slots.get(queue, 0) + worker.slots
        limits = {str(project_id): limits for project_id, limits in self.places.limits.items()}
        return Census(sum(until > now for until in self.executors.values()), slots, limits)

    # storage/postgres.py

    def republish_all(self) -> None:
        """_REPUBLISH_ALL."""
        for row in self.open.values():
            if row["status"] == READY:
                row.update(due_at=self.now(), publications=0)

    def seconds_to_next_timer(self) -> float | None:
        """_NEXT_TIMER."""
        due = [row["due_at"] for row in self.open.values() if row["status"] == WAITING]
        return min(due) - self.now() if due else None

    # storage/queries.py

    def get_run(self, project_id: UUID, run_id: UUID) -> RunView:
        """See RunStore."""
        row = self.runs.get(run_id)
        if row is None or row["project_id"] != project_id:
            raise RunNotFoundError(run_id)
        shown = row | _times(row)
        return _run(shown, input=row["input"], output=row["output"], request_hash=row["request_hash"])  # type: ignore[arg-type]

    def list_events(self, project_id: UUID, run_id: UUID, after: int, limit: int) -> EventPage:
        """See RunStore."""
        run = self.get_run(project_id, run_id)
        views: list[EventView] = []
        for at, batch in self.events.get(run_id, []):
            for event in batch:
                if event["sequence"] > after and len(views) < limit:
                    data = orjson.dumps(event.get("data", {}))
                    key, path = event.get("node_key", ""), event.get("item_path", "")
                    views.append(EventView(event["sequence"], event["type"], moment(at), key, path, data))
        return EventPage(views, run.sequence, run.status in RUN_TERMINAL)


def _times(run: Row) -> Row:
    names = ("created_at", "started_at", "finished_at")
    return {name: None if run[name] is None else moment(run[name]) for name in names}


def _after(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds


def _key(ref: NodeRef) -> NodeKey:
    return ref.run_id, ref.node_key, ref.item_path
