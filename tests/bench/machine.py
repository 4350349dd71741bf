"""What the figures depend on, and how they are taken."""

import contextlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from services.kit.pool import Pool


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def describe() -> str:
    """One line about the machine, with its load at the moment."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{psutil.cpu_count()} x {model}, {memory:.0f} GiB, {platform.platform()}, Python {platform.python_version()}, "
        f"load {load}"
    )


def own_seconds() -> float:
    """Processor time that this process has used."""
    return sum(psutil.Process().cpu_times()[:2])


def busy_seconds() -> float:
    """Processor time that all of the machine has used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def family_seconds(pid: int) -> float:
    """Processor time that a process and those that it has started have used, children that have ended included."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


async def backend_seconds(pool: Pool) -> float:
    """Processor time that the server's processes of this database have used; they have to be on this machine."""
    rows = await pool.fetch("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    return sum(sum(psutil.Process(row[0]).cpu_times()[:2]) for row in rows)
