"""What runs that wait cost: `python -m tests.bench.waiting [runs] [seconds]`.

Starts so many runs of one `approval` with a time-out in an hour, in a process that has the executor's parts (group
commit and sweeper, on a real PostgreSQL), then does nothing for a while. Prints the memory that the process has gained,
and the CPU time of the process and of PostgreSQL in that while, with no run and with all of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from uuid import UUID

import psutil

from services.executor.domain.sweeper import Sweeper
from services.executor.settings import Settings
from services.executor.storage.postgres import PostgresRunStore
from services.kit import nats
from services.kit.ids import new_id
from services.kit.lifecycle import Repeated
from services.kit.postgres import open_pool
from tests.support import backends
from tests.support.executors import Executor, a_refill, a_version, committing, own_queue

_AT_A_TIME = 500


async def main(runs: int, seconds: float) -> None:
    """Measure and print."""
    url = await backends.fresh_database("executor")
    settings = Settings(listen="", postgres_url=url)
    pool = await open_pool(url, size=8)
    executor = Executor(PostgresRunStore(pool))
    client = await nats.connect(backends.nats_url(), name="bench")
    await executor.bus.start(client)
    sweeper = Sweeper(
        executor.store,
        executor.ready,
        executor.committer,
        executor.bus,
        interval=settings.sweep_seconds,
        lease_seconds=settings.lease_seconds,
    )
    refill = a_refill(executor, own_queue(), interval=settings.sweep_seconds)
    async with committing(executor), AsyncExitStack() as stack:
        for what, step in (("sweep", sweeper.step), ("refill", refill.step), ("turns", executor.turns.step)):
            await stack.enter_async_context(Repeated(what, step, pause=settings.sweep_seconds))
        config = {"title": "Go on?", "timeout_seconds": 3600}
        version_id = await a_version(executor, {"key": "ask", "type": "approval", "config": config})
        await _start(executor, version_id, _AT_A_TIME)
        database = url.partition("?")[0].rpartition("/")[2]
        before, idle = _resident(), await _cpu(database, seconds)
        begun = time.perf_counter()
        for _ in range(runs // _AT_A_TIME):
            await _start(executor, version_id, _AT_A_TIME)
        print(f"{runs} runs started in {time.perf_counter() - begun:.0f} s")
        grown, busy = _resident() - before, await _cpu(database, seconds)
        (row,) = await pool.fetch("SELECT count(*) FROM executor.node_executions WHERE status = 4")
        print(f"waiting: {row[0]}; memory gained: {grown / 2**20:.1f} MiB")
        for name, none, all_of_them in zip(("executor", "postgres"), idle, busy, strict=True):
            print(
                f"{name}: {none / seconds:.2%} of a core with {_AT_A_TIME} runs, {all_of_them / seconds:.2%} with all"
            )
    await client.close()
    await pool.close()
    await backends.drop_database(url)


async def _start(executor: Executor, version_id: UUID, count: int) -> None:
    await asyncio.gather(*(executor.start(new_id(), version_id) for _ in range(count)))


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


async def _cpu(database: str, seconds: float) -> tuple[float, float]:
    """CPU seconds of this process and of its database's backends while nothing is asked for."""
    await asyncio.sleep(5)  # what the starts have left to do
    own, servers = psutil.Process().cpu_times(), _backends(database)
    await asyncio.sleep(seconds)
    now, later = psutil.Process().cpu_times(), _backends(database)
    spent = sum(later[pid] - servers.get(pid, 0.0) for pid in later)
    return now.user + now.system - own.user - own.system, spent


def _backends(database: str) -> dict[int, float]:
    """CPU seconds by process, found by the name that PostgreSQL gives its processes."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if database in " ".join(process.info["cmdline"] or ()):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    arguments = sys.argv[1:]
    os.environ.setdefault("HEADRACE_LOG_LEVEL", "warning")
    asyncio.run(main(int(arguments[0]) if arguments else 100_000, float(arguments[1]) if arguments[1:] else 60))
