"""Limits of projects between REST and proto."""

from typing import Any

from headrace.executor.v1 import limits_pb2

from services.gateway.schemas.limits import Limits

_COUNTS = ("max_running_nodes", "max_open_runs", "max_queued_nodes")


def limits_to_proto(limits: Limits) -> limits_pb2.ProjectLimits:
    """What a project sets."""
    return limits_pb2.ProjectLimits(
        max_running_nodes=limits.max_running_nodes,
        max_open_runs=limits.max_open_runs,
        max_queued_nodes=limits.max_queued_nodes,
        node_types={
            name: limits_pb2.NodeTypeLimits(rate=of_type.rate, burst=of_type.burst, max_running=of_type.max_running)
            for name, of_type in limits.node_types.items()
        },
    )


def limits_in_force_to_json(limits: limits_pb2.LimitsInForce) -> dict[str, Any]:
    """All limits of a project."""
    return {**_limits_to_json(limits.own), "ceilings": _limits_to_json(limits.ceilings), "weight": limits.weight}


def _limits_to_json(limits: limits_pb2.ProjectLimits) -> dict[str, Any]:
    found: dict[str, Any] = {name: _optional(limits, name) for name in _COUNTS}
    found["node_types"] = {
        name: {
            "rate": _optional(of_type, "rate"),
            "burst": of_type.burst,
            "max_running": _optional(of_type, "max_running"),
        }
        for name, of_type in sorted(limits.node_types.items())
    }
    return found


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
