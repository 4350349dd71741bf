"""Limits of projects and places for what they count, as storage/limits.py and storage/turns.py keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain import dispatch
from services.executor.domain.limits import ProjectLimits

READY, RUNNING = 2, 3
PENDING, SUCCEEDED = 1, 4
_TURNS_AT_ONCE = 64
NodeKey = tuple[UUID, str, str]
Row = dict[str, Any]


class Record(tuple[Any, ...]):
    """A row of an answer; see asyncpg.Record."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, **values: Any) -> Record:
        """A row of these columns."""
        record = cls(values.values())
        record.names = tuple(values)
        return record

    def __getitem__(self, key: Any) -> Any:
        """By name, number or slice."""
        return tuple.__getitem__(self, self.names.index(key) if isinstance(key, str) else key)


class PlaceTable:
    """executor.project_limits and executor.places. `observe` is told of each place that is taken."""

    def __init__(self, now: Callable[[], float], runs: dict[UUID, Row], open_nodes: dict[NodeKey, Row]) -> None:
        self._now = now
        self._runs = runs
        self._open = open_nodes
        self.limits: dict[UUID, ProjectLimits] = {}
        self.held: dict[UUID, dict[tuple[str, str, str], float]] = {}
        """When each place was taken, by node key, item path and scope; those of runs have no key."""
        self.observe: Callable[[str, int], None] = lambda scope, used: None

    def in_scope(self, scopes: Sequence[str]) -> list[Record]:
        """_PLACES."""
        return [
            Record.of(scope=scope, run_id=run_id, node_key=key, item_path=path)
            for run_id, places in self.held.items()
            for key, path, scope in places
            if scope in scopes
        ]

    def free(self, run: Row, nodes: Sequence[tuple[Row | None, Row]]) -> None:
        """`freed` of storage/commit.py: what these rows of a run have ended gives its places back."""
        places = self.held.get(run["id"])
        if not places:
            return
        ended = {(row["node_key"], row["item_path"]) for _, row in nodes if row["status"] != RUNNING}
        for place in list(places):
            if run["status"] >= SUCCEEDED or place[:2] in ended:
                del places[place]

    # storage/limits.py

    def all_limits(self) -> list[Record]:
        """_LIMITS."""
        return [row for project_id in self.limits for row in self.limits_of(project_id)]

    def limits_of(self, project_id: UUID) -> list[Record]:
        """_LIMITS of one project."""
        limits = self.limits.get(project_id)
        if limits is None:
            return []
        own = orjson.dumps(limits.as_json())
        return [Record.of(project_id=project_id, weight=limits.weight, own=own, ceilings=b"{}")]

    def still_ready(
        self, run_ids: Sequence[UUID], keys: Sequence[str], paths: Sequence[str], epochs: Sequence[int]
    ) -> list[Record]:
        """_STILL_READY."""
        return [
            Record.of(run_id=run_id, node_key=key, item_path=path)
            for run_id, key, path, epoch in zip(run_ids, keys, paths, epochs, strict=True)
            if (row := self._open.get((run_id, key, path))) and (row["status"], row["epoch"]) == (READY, epoch)
        ]

    def take(
        self, now: float, run_ids: Sequence[UUID], keys: Sequence[str], paths: Sequence[str], scopes: Sequence[str]
    ) -> None:
        """_TAKE."""
        for run_id, key, path, scope in zip(run_ids, keys, paths, scopes, strict=True):
            places = self.held.setdefault(run_id, {})
            places[key, path, scope] = max(now, places.get((key, path, scope), now))
            self._observe(scope)

    def unused(self) -> list[Record]:
        """_UNUSED."""
        now = self._now()
        return [Record.of(run_id=run_id) for run_id in sorted(self.held) if self._unused_of(now, run_id)]

    def free_unused(self, now: float, run_ids: Sequence[UUID]) -> None:
        """_LOCK_RUNS and _FREE_UNUSED: nothing moves the runs between the two."""
        for run_id in run_ids:
            unused = self._unused_of(now, run_id)
            for place in unused:
                del self.held[run_id][place]
            if unused:
                self._runs[run_id]["version"] += 1

    def _unused_of(self, now: float, run_id: UUID) -> list[tuple[str, str, str]]:
        return [
            (key, path, scope)
            for (key, path, scope), taken_at in self.held[run_id].items()
            if key and taken_at < now - dispatch.PLACE_SECONDS and not self._is_running((run_id, key, path))
        ]

    def _is_running(self, name: NodeKey) -> bool:
        return name in self._open and self._open[name]["status"] == RUNNING

    # storage/turns.py

    def any_pending(self, workflow_id: UUID | None) -> list[Record]:
        """_ANY_PENDING."""
        return [Record.of(one=1) for _ in self._pending(workflow_id)][:1]

    def candidates(self, workflow_id: UUID | None) -> list[Record]:
        """_CANDIDATES."""
        groups: dict[tuple[UUID, str], list[Row]] = {}
        for run in sorted(self._pending(workflow_id), key=lambda run: (run["created_at"], run["id"])):
            groups.setdefault((run["workflow_id"], run["concurrency_key"]), []).append(run)
        found = [run for runs in groups.values() for run in runs[:_TURNS_AT_ONCE]]
        names = ("id", "version_id", "workflow_id", "concurrency_key", "created_at")
        found.sort(key=lambda run: (run["created_at"], run["id"]))
        return [Record.of(**{name: run[name] for name in names}) for run in found]

    def turns_in_scope(self, scopes: Sequence[str]) -> list[Record]:
        """_PLACES."""
        found = self.in_scope(scopes)
        for row in found:
            if self._runs[row["run_id"]]["status"] >= SUCCEEDED:
                del self.held[row["run_id"]]["", "", row["scope"]]
        return [row for row in found if self._runs[row["run_id"]]["status"] < SUCCEEDED]

    def take_turns(self, now: float, run_ids: Sequence[UUID], scopes: Sequence[str]) -> None:
        """_TAKE."""
        for run_id, scope in zip(run_ids, scopes, strict=True):
            self.held.setdefault(run_id, {}).setdefault(("", "", scope), now)
            self._observe(scope)

    def _pending(self, workflow_id: UUID | None) -> list[Row]:
        return [
            run for run in self._runs.values() if run["status"] == PENDING and workflow_id in (None, run["workflow_id"])
        ]

    def _observe(self, scope: str) -> None:
        self.observe(scope, len(self.in_scope([scope])))
