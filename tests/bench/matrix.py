"""How far more workers and more executors help, and which process is full: the same loads on stacks of many sizes."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.client import Api
from tests.bench.machine import busy_seconds, family_seconds, own_seconds
from tests.bench.workloads import WORKLOADS, Workload, together
from tests.support.stack import NO_MODELS, LocalStack, running_stack

LOAD = "load"
"""What this process is called: the clients."""


@dataclass(frozen=True)
class Cell:
    """One load on one stack."""

    workload: Workload
    workers: int
    executors: int
    rates: list[float]
    """Runs per second, by window."""
    cores: dict[str, list[float]]
    """Service -> processor seconds per second of each of its processes."""
    others: float
    """The same of everything that is not part of it."""


async def measure(workers: int, executors: int, *, callers: int, seconds: float) -> list[Cell]:
    """All loads on a stack of this size."""
    replicas = {"worker": workers, "executor": executors}
    environ = {"HEADRACE_LLM_MODELS": NO_MODELS}
    cells = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with running_stack(Path(folder), replicas=replicas, environ=environ) as stack:
            api = Api(stack.gateway_url)
            await api.sign_up("matrix@example.com")
            for workload in WORKLOADS:
                workflow_id = await api.publish(workload.name, workload.definition)
                await together(api, workflow_id, callers=callers, seconds=3, windows=1)
                before, busy, began = _spent(stack), busy_seconds(), time.perf_counter()
                rates = await together(api, workflow_id, callers=callers, seconds=seconds, windows=3)
                took, busy = time.perf_counter() - began, busy_seconds() - busy
                cores = {
                    service: [(after - start) / took for start, after in zip(before[service], spent, strict=True)]
                    for service, spent in _spent(stack).items()
                }
                others = busy / took - sum(sum(each) for each in cores.values())
                cells.append(Cell(workload, workers, executors, rates, cores, others))
    return cells


def _spent(stack: LocalStack) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {LOAD: [own_seconds()]}
    for entry in stack.state["processes"]:
        found.setdefault(entry["service"], []).append(family_seconds(entry["pid"]))
    return found


def table(cells: list[Cell]) -> str:
    """Lines by load; cores of each process of a service joined by +, those that use next to nothing left out."""
    lines = []
    for workload in dict.fromkeys(cell.workload.name for cell in cells):
        lines += [
            f"\n{workload}",
            f"  {'workers':>7} {'executors':>9} {'runs/s':>8} {'(windows)':>15} {'nodes/s':>8}  cores",
        ]
        for cell in (cell for cell in cells if cell.workload.name == workload):
            rate = statistics.median(cell.rates)
            spread = f"({min(cell.rates):.1f}-{max(cell.rates):.1f})"
            used = sum(sum(cores) for cores in cell.cores.values())
            busy = sorted(cell.cores.items(), key=lambda item: -max(item[1]))
            shown = ", ".join(
                f"{service} {'+'.join(f'{each:.2f}' for each in cores)}"
                for service, cores in busy
                if max(cores) >= 0.02
            )
            lines.append(
                f"  {cell.workers:>7} {cell.executors:>9} {rate:>8.1f} {spread:>15} "
                f"{rate * cell.workload.nodes:>8.0f}  {used:.2f}: {shown}; others {cell.others:.2f}"
            )
    return "\n".join(lines)
