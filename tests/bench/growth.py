"""How the cost of a node grows with the size of its run and with the number of open runs.

`make bench ARGS="--only growth --plot growth.svg"` runs the executor's own parts in this process on a database of its
own, with workers that report at once. Flat lines are what is wanted.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import psutil
from headrace.common.v1 import value_pb2
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.jobs import Job, Report
from services.executor.domain.model import NodeRef, Version
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport.convert import graph_from_definition
from services.kit.ids import new_id
from services.kit.lifecycle import collect_seldom
from services.kit.pool import Pool
from services.kit.postgres import open_pool
from tests.bench import plot
from tests.bench.machine import describe
from tests.support import backends
from tests.support.executors import PROJECT, QUEUES, Executor, committing, success

HEADER = f"{'kind':<8} {'us a node':>10} {'processor':>10} {'of the first':>12} {'memory, MiB':>12} {'gained':>8}"
Lines = dict[str, list[tuple[float, float]]]
_READY = """
SELECT node_key, item_path, epoch FROM executor.node_executions
WHERE run_id = $1 AND status = 2 AND queue <> '' LIMIT 500
"""
AT_ONCE = 32
"""Chains of a run of worker nodes, and jobs that are under way at a time.

`acting` nodes wait for the commits of their claims; along `reading` ones the worker goes on by itself.
"""


@dataclass(frozen=True)
class Cost:
    """Of a node, in microseconds."""

    wall: float
    processor: float
    memory: float
    """Of the process in the end, resident, in MiB."""
    gained: float


def chains(
    nodes: int, width: int, type: str, delivery: definition_pb2.Delivery = definition_pb2.DELIVERY_UNSPECIFIED
) -> definition_pb2.Definition:
    """So many nodes in `width` chains beside each other."""
    config = {"transform": {"values": {"a": 1}}, "noop": {"value": 1}}[type]
    json = value_pb2.Json(utf8=orjson.dumps(config))
    definition = definition_pb2.Definition()
    for number in range(nodes):
        definition.nodes.append(definition_pb2.Node(key=f"n{number}", type=type, config=json, delivery=delivery))
        if number >= width:
            definition.edges.append(definition_pb2.Edge(source=f"n{number - width}", target=f"n{number}"))
    return definition


def mapped(items: int, concurrency: int) -> definition_pb2.Definition:
    """A map over so many items, a worker node for each."""
    body = {"nodes": [{"key": "inner", "type": "noop", "config": {"value": 1}}], "edges": []}
    config = {"items": list(range(items)), "concurrency": concurrency, "body": body}
    return one_node("map", config)


def one_node(type: str, config: object) -> definition_pb2.Definition:
    """A definition of one node."""
    json = value_pb2.Json(utf8=orjson.dumps(config))
    return definition_pb2.Definition(nodes=[definition_pb2.Node(key="n0", type=type, config=json)])


KINDS: dict[str, Callable[[int], definition_pb2.Definition]] = {
    "inline": lambda nodes: chains(nodes, 1, "transform"),
    "acting": lambda nodes: chains(nodes, min(nodes, AT_ONCE), "noop", definition_pb2.DELIVERY_AT_MOST_ONCE),
    "reading": lambda nodes: chains(nodes, min(nodes, AT_ONCE), "noop"),
    "map": lambda items: mapped(items, AT_ONCE),
    "wide map": lambda items: mapped(items, items),
}


class Bench:
    """One executor and a worker that does nothing."""

    def __init__(self, executor: Executor, pool: Pool) -> None:
        self._executor = executor
        self._pool = pool
        self._process = psutil.Process()

    async def cost(self, kind: str, nodes: int, *, repeat: int) -> Cost:
        """Of a node in runs of this kind and size, as many at a time as have 100 nodes; the first are not counted."""
        version = await self._version(KINDS[kind](nodes))
        at_once = max(1, 100 // nodes)

        async def runs(count: int) -> None:
            await asyncio.gather(*(self._run(version, nodes, inline=kind == "inline") for _ in range(count)))

        await runs(at_once)
        gc.collect()
        memory, wall, used = self.memory(), time.perf_counter(), time.process_time()
        rounds = max(1, repeat // at_once)
        for _ in range(rounds):
            await runs(at_once)
        count = rounds * at_once * nodes / 1e6
        took, used = (time.perf_counter() - wall) / count, (time.process_time() - used) / count
        return Cost(took, used, self.memory(), self.memory() - memory)

    async def open_waiting(self, count: int) -> None:
        """Start runs that wait for a day."""
        version = await self._version(one_node("delay", {"seconds": 86_400}))
        for first in range(0, count, 500):
            starts = range(first, min(first + 500, count))
            await asyncio.gather(*(self._executor.start(new_id(), version.id, {}) for _ in starts))

    def memory(self) -> float:
        """Of this process, resident, in MiB."""
        return float(self._process.memory_info().rss) / 2**20

    async def _version(self, definition: definition_pb2.Definition) -> Version:
        data = definition.SerializeToString()
        graph = graph_from_definition(data, self._executor.kinds)
        version = Version(new_id(), PROJECT, uuid4(), "w", 1, data, graph)
        await self._executor.store.keep_version(version)
        return version

    async def _run(self, version: Version, nodes: int, *, inline: bool) -> None:
        run_id = new_id()
        with self._executor.watchers.watch(run_id) as watch:
            await self._executor.start(run_id, version.id, {})
            if not inline:
                await self._work(run_id, version, nodes)
            await watch.ended.wait()

    async def _work(self, run_id: UUID, version: Version, nodes: int) -> None:
        """Do all jobs of a run: those that a report brings, and those that its answer leaves to be claimed."""
        done, jobs = 0, list[Job]()
        entries = [version.graph.nodes[position] for position in version.graph.entries]
        ready = [(NodeRef(run_id, node.key), 0) for node in entries if node.type == "noop"]
        while done < nodes:
            if not jobs:
                jobs = (await self._executor.jobs.claim("w", ready or await self._ready(run_id), str(uuid4()))).jobs
                ready = []
            reports = [report for job in jobs for report in reports_of(job)]
            answers = await self._executor.jobs.report("w", reports, free_slots=AT_ONCE, queues=QUEUES)
            done += len(reports)
            jobs = [job for answer in answers for job in answer.next]

    async def _ready(self, run_id: UUID) -> list[tuple[NodeRef, int]]:
        """What wake-ups would say; they come from memory, and so the first are not looked up."""
        while True:
            rows = await self._pool.fetch(_READY, run_id)
            if rows:
                return [(NodeRef(run_id, row[0], row[1]), row[2]) for row in rows]


def reports_of(job: Job) -> Iterator[Report]:
    """Of a job and the chain behind it, as of a worker that has gone on with it."""
    report = replace(success(job.ref, job.epoch), claim_id=job.claim_id)
    for following in job.chain:
        yield replace(report, began=following.node_key)
        ref = replace(job.ref, node_key=following.node_key)
        report = replace(success(ref, 1), claim_id=following.claim_id)
    yield report


class Figures:
    """Prints a table and keeps its columns for plots."""

    def __init__(self) -> None:
        self.processor: Lines = {}
        """Kind -> (size, microseconds of processor time a node)."""
        self.memory: Lines = {}

    def add(self, kind: str, size: int, cost: Cost, line: str) -> None:
        """One line of the table; `line` is the name of its lines in the plots."""
        points = self.processor.setdefault(line, [])
        points.append((size, cost.processor))
        self.memory.setdefault(line, []).append((size, cost.memory))
        print(
            f"  {size:>7} {kind:<8} {cost.wall:>10.0f} {cost.processor:>10.0f} {cost.processor / points[0][1]:>12.2f} "
            f"{cost.memory:>12.1f} {cost.gained:>8.1f}",
            flush=True,
        )

    def plot(self, file: Path) -> None:
        """Write the processor time to this file, the memory to one beside it."""
        file.write_text(plot.svg("Processor time of the executor a node, us", self.processor))
        beside = file.with_name(f"{file.stem}-memory{file.suffix}")
        beside.write_text(plot.svg("Memory of the executor, MiB", self.memory))


async def by_size(bench: Bench, figures: Figures, sizes: list[int], total: int) -> None:
    """Runs of more and more nodes."""
    print(f"  {'nodes':>7} {HEADER}")
    for kind in KINDS:
        for size in sizes:
            cost = await bench.cost(kind, size, repeat=max(1, total // size))
            figures.add(kind, size, cost, kind)


async def by_open_runs(bench: Bench, figures: Figures, counts: list[int], total: int) -> None:
    """Runs of 100 nodes, while more and more others wait."""
    print(f"\n  Runs of 100 nodes while others are open\n  {'open':>7} {HEADER}")
    opened = 0
    for count in counts:
        await bench.open_waiting(count - opened)
        opened = count
        for kind in KINDS:
            cost = await bench.cost(kind, 100, repeat=max(1, total // 100))
            figures.add(kind, count, cost, f"{kind}, by open runs")


async def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=--only growth", description=__doc__)
    parser.add_argument("--sizes", default="10,100,1000,10000", help="nodes of a run")
    parser.add_argument("--open", default="1,100,10000", help="runs that wait meanwhile")
    parser.add_argument("--nodes", type=int, default=5_000, help="nodes of each figure, at least one run")
    parser.add_argument("--plot", type=Path, help="where to write plots: this file (SVG), and its name with -memory")
    given = parser.parse_args(arguments)
    print(f"Machine: {describe()}")
    url = await backends.fresh_database("executor")
    pool = await open_pool(url, size=8)
    executor = Executor(PostgresRunStore(pool))
    figures = Figures()
    try:
        async with committing(executor):
            bench = Bench(executor, pool)
            collect_seldom()  # as services do
            await by_size(bench, figures, [int(size) for size in given.sizes.split(",")], given.nodes)
            await by_open_runs(bench, figures, [int(count) for count in given.open.split(",")], given.nodes)
            if given.plot:
                figures.plot(given.plot)
    finally:
        await pool.close()
        await backends.drop_database(url)


if __name__ == "__main__":
    asyncio.run(main())
