"""`make soak`: a steady load for as long as is asked: does memory grow, do runs slow down, is anything left behind?"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import asyncpg
import psutil

from tests.bench.client import Api
from tests.bench.workloads import WORKLOADS, run_once
from tests.support.stack import LocalStack, running_stack

_SAMPLE_SECONDS = 5.0


class Soak:
    """Starts runs at a steady rate, whatever the answers take, and samples the memory of every process."""

    def __init__(self, api: Api, stack: LocalStack, rate: float) -> None:
        self._api = api
        self._stack = stack
        self._rate = rate
        self.took: list[tuple[float, float]] = []
        """(when it was started, seconds that it took), by start."""
        self.memory: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.errors: list[str] = []

    async def load(self, workflow_id: str, seconds: float) -> None:
        """Start runs for so many seconds, wait for all of them."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            number = 0
            while (now := time.perf_counter() - began) < seconds:
                group.create_task(self._one(workflow_id, now))
                number += 1
                await asyncio.sleep(max(0.0, began + number / self._rate - time.perf_counter()))

    async def _one(self, workflow_id: str, at: float) -> None:
        try:
            async with self._api.connection() as connection:
                took, _ = await run_once(connection, workflow_id)
            self.took.append((at, took))
        except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
            self.errors.append(repr(error))

    async def sample(self) -> None:
        """Note the memory of every process, shared pages by their part, for ever."""
        began = time.perf_counter()
        while True:
            for entry in self._stack.state["processes"]:
                process = psutil.Process(entry["pid"])
                size = sum(member.memory_full_info().pss for member in (process, *process.children(recursive=True)))
                self.memory[f"{entry['service']}-{entry['replica']}"].append((time.perf_counter() - began, size))
            await asyncio.sleep(_SAMPLE_SECONDS)


def _slope(samples: list[tuple[float, int]]) -> float:
    """MiB per hour by least squares, the first fifth left out: caches fill there."""
    kept = samples[len(samples) // 5 :]
    fit = statistics.linear_regression([at / 3600 for at, _ in kept], [size / 2**20 for _, size in kept])
    return fit.slope


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


async def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=50, help="runs started per second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as folder:
        async with running_stack(Path(folder)) as stack:
            api = Api(stack.gateway_url)
            await api.sign_up("soak@example.com")
            workflow_id = await api.publish("soak", WORKLOADS[0].definition)
            soak = Soak(api, stack, given.rate)
            sampling = asyncio.create_task(soak.sample())
            await soak.load(workflow_id, given.minutes * 60)
            sampling.cancel()
            _report(soak)
            connection = await asyncpg.connect(stack.process("postgres")["dsn"])
            left = await connection.fetchval("SELECT count(*) FROM executor.runs WHERE status < 4")
            await connection.close()
    print(f"{left} runs have not ended; {len(soak.errors)} were refused or failed {soak.errors[:3]}")
    if left or soak.errors:
        raise SystemExit(1)


def _report(soak: Soak) -> None:
    half = max(at for at, _ in soak.took) / 2
    early = [took for at, took in soak.took if at < half]
    late = [took for at, took in soak.took if at >= half]
    print(
        f"{len(soak.took)} runs; p99 {_p99(early) * 1e3:.1f} ms in the first half, {_p99(late) * 1e3:.1f} in the second"
    )
    for name, samples in soak.memory.items():
        print(f"  {name:<12} {samples[-1][1] / 2**20:7.1f} MiB, {_slope(samples):+7.1f} MiB an hour")


if __name__ == "__main__":
    asyncio.run(main())
