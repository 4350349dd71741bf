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
from collections.abc import Sequence
from uuid import uuid4

import orjson
import psutil
from headrace.common.v1 import value_pb2
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.committer import Committer
from services.executor.domain.model import NewRun, NodeRef, Version
from services.executor.domain.run_states import RunStates
from services.executor.domain.sweeper import Sweeper
from services.executor.domain.versions import Versions
from services.executor.engine import decide
from services.executor.engine.state import NodeState, RunState
from services.executor.handlers.registry import catalogue
from services.executor.settings import Settings
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport.convert import graph_from_definition, node_kind
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support import backends

_AT_A_TIME = 500


class Quiet:
    """Announcer and WakeupBus of an executor whose runs make nothing ready."""

    is_connected = True

    def announce(self, state: RunState, ready: Sequence[NodeState]) -> None:
        """See Announcer."""

    def publish(self, ref: NodeRef, queue: str) -> None:
        """See WakeupBus."""


async def main(runs: int, seconds: float) -> None:
    """Measure and print."""
    url = await backends.fresh_database("executor")
    settings = Settings(listen="", postgres_url=url)  # type: ignore[arg-type]
    pool = await open_pool(url, size=settings.lanes + 6)
    store = PostgresRunStore(pool)
    kinds = {name: node_kind(node_type) for name, node_type in catalogue().items()}
    versions = Versions(store, None, lambda data: graph_from_definition(data, kinds))  # type: ignore[arg-type]
    committer = Committer(store, RunStates(store, versions), Quiet(), lanes=settings.lanes)
    committer.start()
    sweeper = Sweeper(store, committer, Quiet(), interval=settings.sweep_seconds, lease_seconds=settings.lease_seconds)
    sweeper.start()
    version = await _version(store, kinds)
    await _start(committer, version, _AT_A_TIME)
    before, idle = _resident(), await _cpu(seconds)
    begun = time.perf_counter()
    for _ in range(runs // _AT_A_TIME):
        await _start(committer, version, _AT_A_TIME)
    print(f"{runs} runs started in {time.perf_counter() - begun:.0f} s")
    grown, busy = _resident() - before, await _cpu(seconds)
    count = await pool.fetchval("SELECT count(*) FROM executor.node_executions WHERE status = 4")
    print(f"waiting: {count}; memory gained: {grown / 2**20:.1f} MiB")
    for name, none, all_of_them in zip(("executor", "postgres"), idle, busy, strict=True):
        print(f"{name}: {none / seconds:.2%} of a core with {_AT_A_TIME} runs, {all_of_them / seconds:.2%} with all")
    await sweeper.stop()
    await committer.stop()
    await pool.close()
    await backends.drop_database(url)


async def _version(store: PostgresRunStore, kinds: object) -> Version:
    config = value_pb2.Json(utf8=orjson.dumps({"title": "Go on?", "timeout_seconds": 3600}))
    node = definition_pb2.Node(key="ask", type="approval", config=config)
    data = definition_pb2.Definition(nodes=[node]).SerializeToString()
    graph = graph_from_definition(data, kinds)  # type: ignore[arg-type]
    version = Version(new_id(), uuid4(), uuid4(), "w", 1, data, graph)
    await store.keep_version(version)
    return version


async def _start(committer: Committer, version: Version, count: int) -> None:
    new = NewRun(workflow_name="w", request_hash=None, started_by=None, timeout_seconds=24 * 3600)

    async def one() -> None:
        run_id = new_id()

        def make() -> RunState:
            return RunState(
                run_id=run_id,
                project_id=str(version.project_id),
                workflow_id=str(version.workflow_id),
                version_id=str(version.id),
                version_number=1,
                graph=version.graph,
                input=b"{}",
            )

        await committer.submit_new(run_id, new, make, decide.start, lambda _, __: None)

    await asyncio.gather(*(one() for _ in range(count)))


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


async def _cpu(seconds: float) -> tuple[float, float]:
    """CPU seconds of this process and of all PostgreSQL processes while nothing is asked for."""
    await asyncio.sleep(5)  # what the starts have left to do: checkpoints, vacuum
    own, servers = psutil.Process().cpu_times(), _postgres()
    await asyncio.sleep(seconds)
    now = psutil.Process().cpu_times()
    later = _postgres()
    spent = sum(later[pid] - servers.get(pid, 0.0) for pid in later)
    return now.user + now.system - own.user - own.system, spent


def _postgres() -> dict[int, float]:
    """Backends of this process's database, by their names; those of others on the machine do not count."""
    found = {}
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if "postgres:" in command and "headrace_test_executor" in command:
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    arguments = sys.argv[1:]
    os.environ.setdefault("HEADRACE_LOG_LEVEL", "warning")
    asyncio.run(main(int(arguments[0]) if arguments else 100_000, float(arguments[1]) if arguments[1:] else 60))
