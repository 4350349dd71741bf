"""Messages of the contract to dataclasses and back."""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson
from google.protobuf import duration_pb2, timestamp_pb2
from headrace.common.v1 import issue_pb2, retry_pb2, value_pb2
from headrace.workflows.v1 import definition_pb2, workflow_pb2

from services.kit import strict_json
from services.kit.errors import InvalidArgumentError, Violation
from services.workflows.domain.definition import (
    DEFAULT_PORT,
    INPUT_PORT,
    MAX_BYTES,
    Concurrency,
    Definition,
    Edge,
    Join,
    Node,
    OnError,
    Position,
    Retry,
    RunLimits,
)
from services.workflows.domain.definition_json import LARGEST_NUMBER
from services.workflows.domain.model import FullVersion, Version, Workflow

_ON_ERROR = {0: OnError.FAIL, 1: OnError.FAIL, 2: OnError.CONTINUE}
_ON_ERROR_TO_PROTO = {
    OnError.FAIL: definition_pb2.ON_ERROR_FAIL,
    OnError.CONTINUE: definition_pb2.ON_ERROR_CONTINUE,
}
_JOIN = {0: Join.ALL, 1: Join.ALL, 2: Join.ANY}
_JOIN_TO_PROTO = {Join.ALL: definition_pb2.JOIN_ALL, Join.ANY: definition_pb2.JOIN_ANY}
_SEVERITY_TO_PROTO = {"error": issue_pb2.SEVERITY_ERROR, "warning": issue_pb2.SEVERITY_WARNING}


def definition_from_proto(message: definition_pb2.Definition) -> Definition:
    """A definition. Raises InvalidArgumentError, with all reasons, for one that cannot be held."""
    reader = _Reader()
    definition = Definition(
        nodes=tuple(reader.node(node, f"nodes[{index}]") for index, node in enumerate(message.nodes)),
        edges=tuple(edge_from_proto(edge) for edge in message.edges),
        timeout_seconds=reader.seconds(message, "timeout", "timeout_seconds"),
        limits=_limits_from_proto(message.limits) if message.HasField("limits") else None,
    )
    reader.finish()
    return definition


def node_from_proto(message: definition_pb2.Node) -> Node:
    """A node. Raises InvalidArgumentError, with all reasons, for one that cannot be held."""
    reader = _Reader()
    node = reader.node(message, "")
    reader.finish()
    return node


def edge_from_proto(message: definition_pb2.Edge) -> Edge:
    """An edge."""
    return Edge(
        id=message.id,
        source=message.source,
        target=message.target,
        source_port=message.source_port or DEFAULT_PORT,
        target_port=message.target_port or INPUT_PORT,
    )


class _Reader:
    """Reads nodes and notes what cannot be held."""

    def __init__(self) -> None:
        self._problems: list[Violation] = []

    def finish(self) -> None:
        """Raise InvalidArgumentError for what was noted."""
        if self._problems:
            raise InvalidArgumentError(self._problems[0].message, violations=tuple(self._problems))

    def node(self, message: definition_pb2.Node, path: str) -> Node:
        prefix = f"{path}." if path else ""
        return Node(
            id=message.id,
            key=message.key,
            type=message.type,
            name=message.name,
            config=self._config(message.config.utf8, f"{prefix}config"),
            retry=self._retry(message.retry, f"{prefix}retry") if message.HasField("retry") else None,
            timeout_seconds=self.seconds(message, "timeout", f"{prefix}timeout_seconds"),
            on_error=self._choice(_ON_ERROR, message.on_error, f"{prefix}on_error"),
            position=self._position(message.position, f"{prefix}position") if message.HasField("position") else None,
            join=self._choice(_JOIN, message.join, f"{prefix}join"),
        )

    def seconds(self, message: Any, name: str, path: str) -> float | None:
        if not message.HasField(name):
            return None
        duration = getattr(message, name)
        return self._number(duration.seconds + duration.nanos / 1e9, path)

    def _retry(self, message: retry_pb2.RetryPolicy, path: str) -> Retry:
        default = Retry()
        initial = self.seconds(message, "initial_interval", f"{path}.initial_interval")
        longest = self.seconds(message, "max_interval", f"{path}.max_interval")
        return Retry(
            max_attempts=int(self._number(message.max_attempts or 1, f"{path}.max_attempts")),
            initial_interval=default.initial_interval if initial is None else initial,
            backoff=self._number(message.backoff or default.backoff, f"{path}.backoff"),
            max_interval=default.max_interval if longest is None else longest,
            jitter=message.jitter,
            when=message.when,
        )

    def _position(self, message: definition_pb2.Position, path: str) -> Position:
        return Position(x=self._number(message.x, f"{path}.x"), y=self._number(message.y, f"{path}.y"))

    def _config(self, text: bytes, path: str) -> dict[str, Any]:
        if not text:
            return {}
        try:
            value = strict_json.loads(text, max_bytes=MAX_BYTES)
        except InvalidArgumentError as error:
            for item in error.violations:
                place = path + item.path.removeprefix("$")
                self._problems.append(Violation(item.code, item.message, place))
            return {}
        if isinstance(value, dict):
            return value
        self._problems.append(Violation("INVALID_TYPE", "The config must be a JSON object.", path))
        return {}

    def _number(self, value: float, path: str) -> float:
        if math.isfinite(value) and abs(value) <= LARGEST_NUMBER:
            return value
        message = f"{value:g} is outside -{LARGEST_NUMBER:,} to {LARGEST_NUMBER:,}."
        self._problems.append(Violation("OUT_OF_RANGE", message, path))
        return 0.0

    def _choice(self, table: dict[int, Any], value: int, path: str) -> Any:
        if value not in table:
            self._problems.append(Violation("INVALID_VALUE", f"{value} is no value of this field.", path))
        return table.get(value, table[0])


def definition_to_proto(definition: Definition) -> definition_pb2.Definition:
    """The message of a definition."""
    return definition_pb2.Definition(
        nodes=[node_to_proto(node) for node in definition.nodes],
        edges=[edge_to_proto(edge) for edge in definition.edges],
        timeout=duration_to_proto(definition.timeout_seconds),
        limits=_limits_to_proto(definition.limits) if definition.limits else None,
    )


def _limits_to_proto(limits: RunLimits) -> definition_pb2.RunLimits:
    concurrency = limits.concurrency
    return definition_pb2.RunLimits(
        max_running_runs=limits.max_running_runs or 0,
        concurrency=definition_pb2.Concurrency(key=concurrency.key, max=concurrency.max) if concurrency else None,
    )


def _limits_from_proto(message: definition_pb2.RunLimits) -> RunLimits:
    concurrency = message.concurrency
    return RunLimits(
        max_running_runs=message.max_running_runs or None,
        concurrency=Concurrency(concurrency.key, concurrency.max) if message.HasField("concurrency") else None,
    )


def node_to_proto(node: Node) -> definition_pb2.Node:
    """The message of a node."""
    return definition_pb2.Node(
        id=node.id,
        key=node.key,
        type=node.type,
        name=node.name,
        config=value_pb2.Json(utf8=orjson.dumps(node.config)),
        retry=_retry_to_proto(node.retry) if node.retry else None,
        timeout=duration_to_proto(node.timeout_seconds),
        on_error=_ON_ERROR_TO_PROTO[node.on_error],
        position=definition_pb2.Position(x=node.position.x, y=node.position.y) if node.position else None,
        join=_JOIN_TO_PROTO[node.join],
    )


def edge_to_proto(edge: Edge) -> definition_pb2.Edge:
    """The message of an edge."""
    return definition_pb2.Edge(
        id=edge.id,
        source=edge.source,
        target=edge.target,
        source_port=edge.source_port,
        target_port=edge.target_port,
    )


def _retry_to_proto(retry: Retry) -> retry_pb2.RetryPolicy:
    return retry_pb2.RetryPolicy(
        max_attempts=retry.max_attempts,
        initial_interval=duration_to_proto(retry.initial_interval),
        backoff=retry.backoff,
        max_interval=duration_to_proto(retry.max_interval),
        jitter=retry.jitter,
        when=retry.when,
    )


def workflow_to_proto(workflow: Workflow, definition: Definition | None = None) -> workflow_pb2.Workflow:
    """The message of a workflow, with its draft if given."""
    return workflow_pb2.Workflow(
        id=str(workflow.id),
        project_id=str(workflow.project_id),
        name=workflow.name,
        description=workflow.description,
        revision=workflow.revision,
        definition=None if definition is None else definition_to_proto(definition),
        latest_version=workflow.latest_version,
        created_at=_timestamp(workflow.created_at),
        updated_at=_timestamp(workflow.updated_at),
    )


def version_to_proto(version: Version) -> workflow_pb2.WorkflowVersion:
    """The message of a version, without its definition."""
    return workflow_pb2.WorkflowVersion(
        id=str(version.id),
        workflow_id=str(version.workflow_id),
        project_id=str(version.project_id),
        number=version.number,
        content_hash=version.content_hash,
        created_at=_timestamp(version.created_at),
        note=version.note,
        workflow_name=version.workflow_name,
    )


def full_version_to_proto(full: FullVersion) -> workflow_pb2.WorkflowVersion:
    """The message of a version, with its definition if that is there."""
    message = version_to_proto(full.version)
    if full.definition is not None:
        message.definition.CopyFrom(definition_to_proto(full.definition))
    return message


def issues_to_proto(issues: Iterable[Violation]) -> list[issue_pb2.Issue]:
    """The messages of issues."""
    return [
        issue_pb2.Issue(
            code=issue.code,
            message=issue.message,
            path=issue.path,
            node_key=issue.node_key,
            severity=_SEVERITY_TO_PROTO[issue.severity],
        )
        for issue in issues
    ]


def duration_to_proto(seconds: float | None) -> duration_pb2.Duration | None:
    """A duration, or nothing."""
    if seconds is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
