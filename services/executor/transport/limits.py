"""Limits of projects between messages and the domain."""

from headrace.executor.v1 import limits_pb2 as pb

from services.executor.domain.limits import ProjectLimits, TypeLimits


def limits_in_force(own: ProjectLimits, ceilings: ProjectLimits) -> pb.LimitsInForce:
    """All limits of a project."""
    return pb.LimitsInForce(own=_limits_to_proto(own), ceilings=_limits_to_proto(ceilings), weight=ceilings.weight)


def _limits_to_proto(limits: ProjectLimits) -> pb.ProjectLimits:
    return pb.ProjectLimits(
        max_running_nodes=limits.max_running_nodes,
        max_open_runs=limits.max_open_runs,
        max_queued_nodes=limits.max_queued_nodes,
        node_types={
            name: pb.NodeTypeLimits(rate=of_type.rate, burst=of_type.burst, max_running=of_type.max_running)
            for name, of_type in limits.node_types.items()
        },
    )


def limits_from_proto(message: pb.ProjectLimits) -> ProjectLimits:
    """What is to be set."""

    def optional(name: str) -> int | None:
        return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]

    return ProjectLimits(
        max_running_nodes=optional("max_running_nodes"),
        max_open_runs=optional("max_open_runs"),
        max_queued_nodes=optional("max_queued_nodes"),
        node_types={name: _type_from_proto(of_type) for name, of_type in message.node_types.items()},
    )


def _type_from_proto(message: pb.NodeTypeLimits) -> TypeLimits:
    return TypeLimits(
        rate=message.rate if message.HasField("rate") else None,
        burst=message.burst or 1,
        max_running=message.max_running if message.HasField("max_running") else None,
    )
