"""How long each kind of fault held work up, judged afterwards from the three records."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from tests.bench.machine import percentile
from tests.chaos.faults import Fault
from tests.chaos.histories import History

NO_FAULT = "(no fault)"
BEFORE = "(just before each)"
"""What the figures are without a fault."""
_JUST = 0.01
_LATE = 0.5
"""What has waited for so long when a fault comes waits because of the one before."""
_FROM_ITS_RETURN = ("nats", "postgres", "COMMIT")
"""Nobody stands in for these: it counts how soon work goes on when they are back."""
_LONGEST_HANDLER = 1.0
"""Seconds within which a node of the load is done, if nothing happens."""
_WAITS = """
SELECT node_key, extract(epoch FROM queued_at)::float8, extract(epoch FROM started_at)::float8,
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
    longest: list[tuple[float, str]]
    """The same of each node, with what it waited for."""


@dataclass(frozen=True, order=True)
class EngineWait:
    """A node that waited for the engine: ready until claimed, or done until recorded."""

    begin: float
    end: float
    what: str


async def read_waits(dsn: str) -> list[EngineWait]:
    """Of the last attempt of each node, by begin."""
    connection = await asyncpg.connect(dsn)
    try:
        found = []
        for key, queued, started, finished, handled in await connection.fetch(_WAITS):
            found += [
                EngineWait(queued, started, f"{key} ready"),
                EngineWait(started + handled, finished, f"{key} done"),
            ]
        return sorted(found)
    finally:
        await connection.close()


def measure(
    faults: Sequence[Fault], history: History, waits: Sequence[EngineWait], accepted_at: Sequence[float]
) -> Times:
    """Attribute what was held up to the faults, which came one after another."""
    effects = sorted(line["at"] for line in history.attempts if line["effect"])
    accepted = sorted(accepted_at)
    times = Times({}, {}, {}, defaultdict(list), defaultdict(list), [])
    for fault in faults:
        times.back.setdefault(fault.kind, []).append(fault.back - fault.began)
        for found, moments in ((times.effect, effects), (times.accepted, accepted)):
            position = bisect_right(moments, fault.began)
            if position < len(moments):
                found.setdefault(fault.kind, []).append(moments[position] - fault.began)
    for lost, again in history.interruptions():
        cause = _that_took(faults, lost, again)
        times.taken[cause.kind if cause else NO_FAULT].append(again - max(lost, cause.began if cause else lost))
    _attribute(times, faults, waits)
    return times


def _that_took(faults: Sequence[Fault], lost: float, again: float) -> Fault | None:
    """The fault that took a node from its worker: the first one after its start.

    The one before, if that was under way at the start, or if the node should have been done long ago.
    """
    position = bisect_right(faults, lost, key=lambda fault: fault.began)
    next_began = faults[position].began if position < len(faults) else again
    if position and (lost < faults[position - 1].back or next_began - lost > _LONGEST_HANDLER):
        return faults[position - 1]
    return faults[position] if position < len(faults) and faults[position].began < again else None


def _attribute(times: Times, faults: Sequence[Fault], waits: Sequence[EngineWait]) -> None:
    moments = [fault.back if any(name in fault.kind for name in _FROM_ITS_RETURN) else fault.began for fault in faults]
    before = [fault.began - _JUST for fault in faults]
    for wait in waits:
        position = bisect_right(before, wait.begin)
        if position < len(before) and wait.end > before[position] > wait.begin:
            times.waited[BEFORE].append(wait.end - before[position])
        position = bisect_right(moments, wait.begin)
        if position == len(moments) or wait.end < moments[position]:
            continue
        if position and faults[position].began - wait.begin > _LATE:
            position -= 1
        seconds = wait.end - max(moments[position], wait.begin)
        times.waited[faults[position].kind].append(seconds)
        times.longest.append((seconds, f"{wait.what}, {faults[position].kind}"))


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


def held_up(times: Times, kind: str) -> str:
    """How long nodes were held up by faults of this kind, whatever they waited for."""
    return _counted([*times.taken.get(kind, []), *times.waited.get(kind, [])])


def _counted(seconds: Sequence[float]) -> str:
    return f"{len(seconds)}: {_figures(seconds)}" if seconds else "-"


def _figures(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.2f}/{percentile(seconds, 0.99):.2f}/{max(seconds):.2f}"
