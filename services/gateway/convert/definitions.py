"""Definitions, nodes and edges between REST and proto."""

from collections.abc import Mapping
from typing import Any

import orjson
from headrace.common.v1 import retry_pb2, value_pb2
from headrace.workflows.v1 import definition_pb2

from services.gateway.convert.common import json_from_proto, seconds_to_json, seconds_to_proto
from services.gateway.schemas.workflows import (
    DefinitionEdge,
    DefinitionInput,
    DefinitionNode,
    EdgeInput,
    NodeInput,
    Retry,
    RunLimits,
)

_ON_ERROR = {"fail": definition_pb2.ON_ERROR_FAIL, "continue": definition_pb2.ON_ERROR_CONTINUE}
_JOIN = {"all": definition_pb2.JOIN_ALL, "any": definition_pb2.JOIN_ANY}
_NO_CONFIG: Mapping[str, Any] = {}


def definition_to_proto(definition: DefinitionInput) -> definition_pb2.Definition:
    """A definition, ids included where the author gave them."""
    message = definition_pb2.Definition(
        nodes=[node_to_proto(node) for node in definition.nodes],
        edges=[edge_to_proto(edge) for edge in definition.edges],
    )
    if definition.timeout_seconds is not None:
        message.timeout.CopyFrom(seconds_to_proto(definition.timeout_seconds))
    if definition.limits is not None:
        message.limits.CopyFrom(_limits_to_proto(definition.limits))
    return message


def _limits_to_proto(limits: RunLimits) -> definition_pb2.RunLimits:
    concurrency = limits.concurrency
    return definition_pb2.RunLimits(
        max_running_runs=limits.max_running_runs or 0,
        concurrency=definition_pb2.Concurrency(key=concurrency.key, max=concurrency.max) if concurrency else None,
    )


def node_to_proto(node: NodeInput) -> definition_pb2.Node:
    """A node."""
    message = definition_pb2.Node(
        key=node.key,
        type=node.type,
        name=node.name,
        config=value_pb2.Json(utf8=orjson.dumps(node.config)),
        on_error=_ON_ERROR[node.on_error],
        join=_JOIN[node.join],
    )
    if isinstance(node, DefinitionNode) and node.id:
        message.id = node.id
    if node.retry is not None:
        message.retry.CopyFrom(_retry_to_proto(node.retry))
    if node.timeout_seconds is not None:
        message.timeout.CopyFrom(seconds_to_proto(node.timeout_seconds))
    if node.position is not None:
        message.position.x, message.position.y = node.position.x, node.position.y
    return message


def edge_to_proto(edge: EdgeInput) -> definition_pb2.Edge:
    """An edge."""
    return definition_pb2.Edge(
        id=(isinstance(edge, DefinitionEdge) and edge.id) or "",
        source=edge.source,
        target=edge.target,
        source_port=edge.source_port or "",
        target_port=edge.target_port or "",
    )


def definition_to_json(definition: definition_pb2.Definition) -> dict[str, Any]:
    """A definition."""
    return {
        "nodes": [node_to_json(node) for node in definition.nodes],
        "edges": [edge_to_json(edge) for edge in definition.edges],
        "timeout_seconds": seconds_to_json(definition, "timeout"),
        "limits": _limits_to_json(definition.limits) if definition.HasField("limits") else None,
    }


def _limits_to_json(limits: definition_pb2.RunLimits) -> dict[str, Any]:
    concurrency = limits.concurrency if limits.HasField("concurrency") else None
    return {
        "max_running_runs": limits.max_running_runs or None,
        "concurrency": {"key": concurrency.key, "max": concurrency.max} if concurrency else None,
    }


def node_to_json(node: definition_pb2.Node) -> dict[str, Any]:
    """A node."""
    return {
        "id": node.id,
        "key": node.key,
        "type": node.type,
        "name": node.name,
        "config": json_from_proto(node.config, absent=_NO_CONFIG),
        "retry": _retry_to_json(node.retry) if node.HasField("retry") else None,
        "timeout_seconds": seconds_to_json(node, "timeout"),
        "on_error": "continue" if node.on_error == definition_pb2.ON_ERROR_CONTINUE else "fail",
        "join": "any" if node.join == definition_pb2.JOIN_ANY else "all",
        "position": {"x": node.position.x, "y": node.position.y} if node.HasField("position") else None,
    }


def edge_to_json(edge: definition_pb2.Edge) -> dict[str, Any]:
    """An edge."""
    return {
        "id": edge.id,
        "source": edge.source,
        "target": edge.target,
        "source_port": edge.source_port or "out",
        "target_port": edge.target_port or "in",
    }


def _retry_to_proto(retry: Retry) -> retry_pb2.RetryPolicy:
    return retry_pb2.RetryPolicy(
        max_attempts=retry.max_attempts,
        initial_interval=seconds_to_proto(retry.initial_interval),
        backoff=retry.backoff,
        max_interval=seconds_to_proto(retry.max_interval),
        jitter=retry.jitter,
        when=retry.when,
    )


def _retry_to_json(retry: retry_pb2.RetryPolicy) -> dict[str, Any]:
    defaults = Retry()
    return {
        "max_attempts": retry.max_attempts or 1,
        "initial_interval": _or_default(seconds_to_json(retry, "initial_interval"), defaults.initial_interval),
        "backoff": retry.backoff or defaults.backoff,
        "max_interval": _or_default(seconds_to_json(retry, "max_interval"), defaults.max_interval),
        "jitter": retry.jitter,
        "when": retry.when,
    }


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value
