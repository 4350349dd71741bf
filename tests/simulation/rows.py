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
from services.executor.engine.state import NodeRow, RunState
from services.executor.storage.commit import commit_rows
from services.executor.storage.payloads import Contents
from services.executor.storage.postgres import _node_row, _stored_run

Row = dict[str, Any]

_UUIDS = ("id", "run_id", "project_id", "workflow_id", "version_id", "started_by", "rerun_of")
NO_CONTENTS = Contents({})
_BLOBS = ("input", "output", "error", "request_hash", "rerun", "vars", "project_vars", "events")


@dataclass(frozen=True)
class Rows:
    """The parameters of one commit, as rows."""

    created: list[Row]
    moved: list[Row]
    nodes: list[Row]
    events: list[Row]


def rows_of(states: Sequence[RunState], new: dict[UUID, NewRun]) -> Rows:
    """What the real store would send to PostgreSQL for these states."""
    tables, blobs = commit_rows(states, new)
    assert "contents" not in tables, "no simulated value is so large that it is stored elsewhere"
    return Rows(**{name: [_typed(row, blobs) for row in _sent(rows)] for name, rows in tables.items()})


def _sent(rows: list[Row]) -> list[Row]:
    """Rows as PostgreSQL gets them."""
    sent: list[Row] = orjson.loads(orjson.dumps(rows))
    return sent


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
        row = _node_row(node, run["project_id"], NO_CONTENTS)  # type: ignore[arg-type]
        found.setdefault(node["item_path"], {})[node["node_key"]] = row
    return _stored_run(run, NO_CONTENTS, found)  # type: ignore[arg-type]
