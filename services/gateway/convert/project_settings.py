"""Settings of projects from proto."""

from headrace.executor.v1 import executor_service_pb2 as pb


def retention_to_json(retention: pb.Retention) -> dict[str, int | None]:
    """How long ended runs are kept."""
    days = retention.days if retention.HasField("days") else None
    return {"days": days, "default_days": retention.default_days}
