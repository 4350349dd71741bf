"""Timestamps and durations: RFC 3339 text and CEL's duration text, in both directions.

Resolution is a microsecond. There is no `now()`: an evaluation may be repeated and must give the same again.
"""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from services.kit.cel.errors import Failure, excerpt
from services.kit.cel.values_types import type_name

_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})(ms|us|µs|ns|h|m|s)")
_UNITS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1, "µs": 1, "ns": 0.001}
_OFFSET = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")
