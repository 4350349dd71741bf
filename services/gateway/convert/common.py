"""Times, durations, JSON and pages between REST and proto."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from headrace.common.v1 import issue_pb2, value_pb2

_SEVERITY = {issue_pb2.SEVERITY_WARNING: "warning"}


def time_to_json(message: Any, field: str) -> str | None:
    """RFC 3339 in UTC to the microsecond, None when the field is absent."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    # A third of the time that Timestamp.ToJsonString takes, several times in every answer.
    return f"{datetime.fromtimestamp(value.seconds, UTC).isoformat()[:19]}.{value.nanos // 1000:06d}Z"


def time_to_proto(value: datetime) -> Timestamp:
    """A timestamp of an aware time."""
    result = Timestamp()
    result.FromDatetime(value)
    return result


def seconds_to_json(message: Any, field: str) -> float | None:
    """Seconds, None when the field is absent."""
    if not message.HasField(field):
        return None
    value: Duration = getattr(message, field)
    seconds = value.seconds + value.nanos / 1e9
    return int(seconds) if seconds.is_integer() else seconds


def seconds_to_proto(seconds: float) -> Duration:
    """A duration to the nanosecond."""
    result = Duration()
    result.FromNanoseconds(round(seconds * 1_000_000_000))
    return result


def json_to_proto(value: Any) -> value_pb2.Json:
    """A JSON value as text."""
    return value_pb2.Json(utf8=orjson.dumps(value))


def json_from_proto(value: value_pb2.Json, *, absent: Any = None) -> Any:
    """The JSON text as it is, to be copied into the answer; `absent` when there is none."""
    return orjson.Fragment(value.utf8) if value.utf8 else absent


def issues_to_json(issues: Iterable[issue_pb2.Issue]) -> list[dict[str, str]]:
    """Issues of a definition."""
    return [
        {
            "code": issue.code,
            "message": issue.message,
            "path": issue.path,
            "node_key": issue.node_key,
            "severity": _SEVERITY.get(issue.severity, "error"),
        }
        for issue in issues
    ]


def usage_to_json(usage: value_pb2.Usage) -> dict[str, int]:
    """Tokens used."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "calls": usage.calls,
    }


def page_to_json(items: list[Any], next_page_token: str, **more: Any) -> dict[str, Any]:
    """A page of a list."""
    return {"items": items, "next_page_token": next_page_token or None, **more}
