"""What must hold after any fault, judged from three records: of the client, of the ledger and of the database."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos.load import INDEXED, LARGE

SUCCEEDED = 4

_RUNS = "SELECT id::text, status, sequence FROM executor.runs"
_OPEN_NODES = """
SELECT r.id::text, n.node_key, n.status FROM executor.node_executions n JOIN executor.runs r ON r.id = n.run_id
WHERE r.status >= 4 AND n.status NOT IN (5, 6, 7, 8)
"""
_KEPT = ("sequence", "type", "node_key", "item_path")
"""What is kept of an event: there are many."""
_RECORDS = "SELECT id FROM vector.records"
_EVENTS = """
SELECT run_id::text, extract(epoch FROM at)::float8, events FROM executor.run_events ORDER BY run_id, first_sequence
"""


@dataclass
class History:
    """The three records."""

    accepted: dict[str, list[str]]
    """Runs that the client was told of -> the nodes that have an effect each."""
    attempts: list[dict[str, Any]]
    """Lines of the ledger."""
    runs: dict[str, tuple[int, int]]
    """Rows: run -> status, number of its last event."""
    open_nodes: list[tuple[str, str, int]] = field(default_factory=list)
    """Node executions that have not ended, of runs that have."""
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)
    """Ids of what collections hold."""

    def violations(self) -> list[str]:
        """What is wrong, a sentence each; none if all promises were kept."""
        return [*self._lost(), *self._effects(), *self._rows(), *self._numbering()]

    def _lost(self) -> list[str]:
        found = []
        for run_id in self.accepted:
            status = self.runs.get(run_id, (None, 0))[0]
            if status != SUCCEEDED:
                found.append(f"lost: run {run_id} was accepted and has the status {status}")
        found += [f"extra: run {run_id} was never accepted" for run_id in self.runs.keys() - self.accepted.keys()]
        return found

    def _effects(self) -> list[str]:
        wanted = {(run_id, node) for run_id, nodes in self.accepted.items() for node in nodes}
        records = {run_id for run_id, node in wanted if node == INDEXED}
        found = [f"missing: no record of run {run_id}" for run_id in records - self.records]
        found += [f"extra: record of {name}" for name in self.records - records]
        sizes = {(line["body"]["run"], line["body"].get("size", LARGE)) for line in self.attempts}
        found += [f"size: {size} in run {run_id}" for run_id, size in sizes if int(size) != LARGE]
        had = Counter((line["body"]["run"], line["body"]["node"]) for line in self.attempts if line["effect"])
        found += [f"missing: no effect of {name}" for name in sorted(wanted - had.keys())]
        found += [f"extra: effect of {name}" for name in sorted(had.keys() - wanted)]
        found += [f"doubled: {count} effects of {name}" for name, count in had.items() if count > 1]
        return found

    def _rows(self) -> list[str]:
        return [f"open: node {node} of the ended run {run_id} is {status}" for run_id, node, status in self.open_nodes]

    def _numbering(self) -> list[str]:
        found = []
        for run_id, (_, last) in self.runs.items():
            events = self.events.get(run_id, [])
            numbers = [event["sequence"] for event in events]
            if numbers != list(range(1, last + 1)):
                found.append(f"events: run {run_id} has the numbers {numbers}, and {last} as its last")
            ends = Counter(
                (event["type"], event.get("item_path"), event.get("node_key"))
                for event in events
                if event["type"] in ("run.started", "run.succeeded", "node.succeeded")
            )
            found += [f"events: {count} {name} in run {run_id}" for name, count in ends.items() if count > 1]
            found += [f"zombie: {name} in run {run_id} was started after its result" for name in _revived(events)]
        return found

    def interruptions(self, runs: set[str] | None = None) -> list[tuple[float, float]]:
        """When nodes (of these runs) were started that lost their worker, and when they were started again."""
        found = []
        for run_id in self.events if runs is None else runs:
            started: dict[tuple[str, str], float] = {}
            for event in self.events.get(run_id, []):
                key = event.get("item_path", ""), event.get("node_key", "")
                if event["type"] == "node.started":
                    if key in started:
                        found.append((started[key], event["at"]))
                    started[key] = event["at"]
                elif event["type"] == "node.retrying":
                    started.pop(key, None)
        return sorted(found)


def _revived(events: list[dict[str, Any]]) -> set[str]:
    """Nodes that were started after they had succeeded: the result of another claim was recorded."""
    ended, revived = set(), set()
    for event in events:
        key = event.get("item_path", ""), event.get("node_key", "")
        if event["type"] == "node.succeeded":
            ended.add(key)
        elif event["type"] == "node.started" and key in ended:
            revived.add("/".join(map(str, key)))
    return revived


async def all_ended(dsn: str) -> bool:
    """No run is open."""
    connection = await asyncpg.connect(dsn)
    try:
        return not await connection.fetchval("SELECT count(*) FROM executor.runs WHERE status < 4")
    finally:
        await connection.close()


async def read_history(dsn: str, accepted: Path, ledger: Path) -> History:
    """Read the records: the database at `dsn`, the client's log and the ledger's file."""
    connection = await asyncpg.connect(dsn)
    try:
        runs = {row[0]: (row[1], row[2]) for row in await connection.fetch(_RUNS)}
        open_nodes = [tuple(row) for row in await connection.fetch(_OPEN_NODES)]
        events: dict[str, list[dict[str, Any]]] = {}
        for run_id, at, batch in await connection.fetch(_EVENTS):
            kept = ({name: event[name] for name in _KEPT if name in event} | {"at": at} for event in json.loads(batch))
            events.setdefault(run_id, []).extend(kept)
        records = {row[0] for row in await connection.fetch(_RECORDS)}
    finally:
        await connection.close()
    return History(
        accepted={line["run"]: line["nodes"] for line in read_lines(accepted)},
        attempts=read_lines(ledger),
        runs=runs,
        open_nodes=open_nodes,
        events=events,
        records=records,
    )


def read_lines(file: Path) -> list[dict[str, Any]]:
    """JSON lines; none while there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
