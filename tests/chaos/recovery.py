"""How long each kind of fault held work up, judged afterwards from the three records."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from tests.bench.machine import percentile
from tests.chaos.faults import Fault
from tests.chaos.histories import History

NO_FAULT = "(no fault)"
BEFORE = "(just before each)"
"""What the figures are without a fault."""
_JUST = 0.1
_LONGEST = 120.0
"""Seconds that nothing waits."""
_FROM_ITS_RETURN = ("nats", "postgres", "COMMIT")
"""Nobody stands in for these: it counts how soon work goes on when they are back."""
_WAITS = """
SELECT extract(epoch FROM queued_at)::float8, extract(epoch FROM started_at)::float8,
    extract(epoch FROM finished_at)::float8, handler_seconds
FROM executor.node_executions WHERE queue <> '' AND handler_seconds IS NOT NULL
"""


@dataclass(frozen=True)
class Times:
    """Seconds by kind of fault."""

    back: dict[str, list[float]]
    """From a fault until what it hit was healthy."""
    effect: dict[str, list[float]]
    """From a fault until the next effect."""
    accepted: dict[str, list[float]]
    """From a fault until the next run was accepted."""
    taken: dict[str, list[float]]
    """From a fault until a node that lost its worker was started again."""
    waited: dict[str, list[float]]
    """From a fault, or from the return of a backend, until a node went on that waited for the engine at that moment."""


async def read_waits(dsn: str) -> list[tuple[float, float]]:
    """When nodes waited for the engine, begin and end: ready until claimed, and done until recorded."""
    connection = await asyncpg.connect(dsn)
    try:
        found = []
        for queued, started, finished, handled in await connection.fetch(_WAITS):
            found += [(queued, started), (started + handled, finished)]
        return sorted(found)
    finally:
        await connection.close()


def measure(
    faults: Sequence[Fault], history: History, waits: Sequence[tuple[float, float]], accepted_at: Sequence[float]
) -> Times:
    """Attribute what was held up to the faults, which came one after another."""
    effects = sorted(line["at"] for line in history.attempts if line["effect"])
    times = Times({}, {}, {}, defaultdict(list), defaultdict(list))
    for fault in faults:
        times.back.setdefault(fault.kind, []).append(fault.back - fault.began)
        for found, moments in ((times.effect, effects), (times.accepted, sorted(accepted_at))):
            position = bisect_right(moments, fault.began)
            if position < len(moments):
                found.setdefault(fault.kind, []).append(moments[position] - fault.began)
        moment = fault.back if any(name in fault.kind for name in _FROM_ITS_RETURN) else fault.began
        times.waited[fault.kind] += _waiting(waits, moment)
        times.waited[BEFORE] += _waiting(waits, fault.began - _JUST)
    for lost, again in history.interruptions():
        cause = _that_took(faults, lost, again)
        times.taken[cause.kind if cause else NO_FAULT].append(again - max(lost, cause.began if cause else lost))
    return times


def _that_took(faults: Sequence[Fault], lost: float, again: float) -> Fault | None:
    """The fault that took a node from its worker: the one that was under way at its start, or the first one after."""
    position = bisect_right(faults, lost, key=lambda fault: fault.began)
    if position and lost < faults[position - 1].back:
        return faults[position - 1]
    return faults[position] if position < len(faults) and faults[position].began < again else None


def _waiting(waits: Sequence[tuple[float, float]], moment: float) -> list[float]:
    """From a moment until the end of what was under way then."""
    first, last = bisect_left(waits, (moment - _LONGEST,)), bisect_left(waits, (moment,))
    return [end - moment for _, end in waits[first:last] if end > moment]


def table(times: Times) -> str:
    """The figures of each kind, as p50/p99/most in seconds."""
    heads = ("fault", "times", "healthy again", "next effect", "next run accepted", "nodes that lost their worker")
    lines: list[tuple[str, ...]] = [(*heads, "nodes that waited for the engine")]
    for kind in sorted({*times.back, *times.taken, *times.waited}):
        columns = [_figures(found.get(kind, [])) for found in (times.back, times.effect, times.accepted)]
        held = [_counted(found.get(kind, [])) for found in (times.taken, times.waited)]
        lines.append((kind, str(len(times.back.get(kind, []))), *columns, *held))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def worst(times: Times, *kinds: str) -> str:
    """How long nodes were held up, by any of these faults."""
    found: Iterable[Any] = (
        seconds for kind in kinds for held in (times.taken, times.waited) for seconds in held.get(kind, [])
    )
    return _counted(list(found))


def _counted(seconds: Sequence[float]) -> str:
    return f"{len(seconds)}: {_figures(seconds)}" if seconds else "-"


def _figures(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.2f}/{percentile(seconds, 0.99):.2f}/{max(seconds):.2f}"
