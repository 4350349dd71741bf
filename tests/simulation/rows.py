"""Where the simulated store reads a run's state and makes one from rows: all that depends on how runs are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain.model import NewRun
from services.executor.domain.store import StoredRun
from services.executor.engine.state import NodeRow, RunState, RunStatus, Usage
from services.executor.storage.commit import commit_arguments, failure_from_json
from services.executor.storage.postgres import _node_row

Row = dict[str, Any]

_UUIDS = ("id", "run_id", "project_id", "workflow_id", "version_id", "started_by", "rerun_of")
_BLOBS = ("input", "output", "error", "request_hash", "rerun", "events")


@dataclass(frozen=True)
class Rows:
    """The parameters of one commit, as rows."""

    created: list[Row]
    moved: list[Row]
    nodes: list[Row]
    events: list[Row]


def rows_of(states: Sequence[RunState], new: dict[UUID, NewRun]) -> Rows:
    """What the real store would send to PostgreSQL for these states."""
    *tables, blobs = commit_arguments(states, new)
    return Rows(*([_typed(row, blobs) for row in orjson.loads(table)] for table in tables))


def _typed(row: Row, blobs: list[bytes]) -> Row:
    """A row as its columns hold it: the casts of json_to_recordset, and values in place of their numbers."""
    for name in row.keys() & set(_UUIDS):
        row[name] = UUID(row[name]) if row[name] else None
    for name in row.keys() & set(_BLOBS):
        row[name] = blobs[row[name] - 1] if row[name] else None
    if row.get("due_at"):
        row["due_at"] = datetime.fromisoformat(row["due_at"])
    if row.get("links"):
        row["links"] = orjson.dumps(row["links"])
    return row


def stored_run(run: Row, nodes: list[Row]) -> StoredRun:
    """A run as the real store would return it from its rows."""
    found: dict[str, dict[str, NodeRow]] = {}
    for node in nodes:
        found.setdefault(node["item_path"], {})[node["node_key"]] = _node_row(node)  # type: ignore[arg-type]
    return StoredRun(
        run_id=run["id"],
        project_id=str(run["project_id"]),
        version_id=run["version_id"],
        version=run["version"],
        status=RunStatus(run["status"]),
        sequence=run["sequence"],
        input=run["input"],
        output=run["output"],
        error=failure_from_json(run["error"]),
        usage=Usage(run["prompt_tokens"], run["completion_tokens"], run["model_calls"]),
        traceparent=run["traceparent"],
        links={name: UUID(version_id) for name, version_id in orjson.loads(run["links"] or b"{}").items()},
        rerun_of=run["rerun_of"],
        rerun=run["rerun"],
        nodes=found,
    )
