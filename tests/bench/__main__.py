"""`make bench`: start a stack, measure it through REST beside the machine's own limits, print the figures.

Figures depend on the machine and move with it: compare ratios from one run.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

import orjson
import psutil

from tests.bench import dbos_peer, events, floor, growth, history, matrix, profile, reads, startup, targets
from tests.bench.client import Api
from tests.bench.machine import describe, percentile
from tests.bench.workloads import FOLLOWED, WORKLOADS, Workload, alone, engine_waits, gets, one_chat, together
from tests.support.stack import LocalStack, running_stack

BY_THEMSELVES = {"growth": growth.main, "history": history.main}
"""Take arguments of their own, need no stack, and run only when asked for by their full name."""
OUTSIDE = ("http", "llm")
"""Names of what calls something outside, as `--only` takes them."""


def _spread(values: list[float], scale: float = 1.0) -> str:
    return (
        f"{statistics.median(values) * scale:.1f} ({min(values) * scale:.1f}-{max(values) * scale:.1f} "
        f"in {len(values)} windows)"
    )


async def _measure(api: Api, workload: Workload, *, callers: list[int], seconds: float, runs: int) -> list[float]:
    """Print what a workload does; runs per second at the first number of callers, by window."""
    workflow_id = await api.publish(workload.name, workload.definition)
    await alone(api, workflow_id, 20)
    took, run_ids = await alone(api, workflow_id, runs)
    print(f"\n{workload.name}")
    print(
        "  one run alone        "
        f"p50 {statistics.median(took) * 1e3:.1f} ms, p99 {percentile(took, 0.99) * 1e3:.1f} ms "
        f"({runs} runs)"
    )
    waits = await engine_waits(api, run_ids)
    if waits:
        print(
            f"  a node waits for the engine   p50 {statistics.median(waits) * 1e3:.2f} ms, "
            f"p99 {percentile(waits, 0.99) * 1e3:.2f} ms ({len(waits)} nodes)"
        )
    first: list[float] = []
    for count in callers:
        await together(api, workflow_id, callers=count, seconds=2, windows=1)
        rates = await together(api, workflow_id, callers=count, seconds=seconds, windows=3)
        print(f"  {count:>3} runs at a time    {_spread(rates)} runs/s = {_spread(rates, workload.nodes)} nodes/s")
        first = first or rates
    if workload.outside_seconds:
        added = (statistics.median(took) - workload.outside_seconds) * 1e3
        print(f"  added to the {workload.outside_seconds * 1e3:.0f} ms outside: p50 {added:.1f} ms, one run alone")
    return first


async def _events(api: Api, *, followers: int, runs: int) -> None:
    workflow_id = await api.publish(f"followed by {followers}", FOLLOWED)
    took = [seconds * 1e3 for seconds in await events.latencies(api, workflow_id, followers=followers, runs=runs)]
    print(
        f"\nFrom the commit of an event to a client that follows, {followers} runs at a time: "
        f"p50 {statistics.median(took):.1f} ms, p95 {percentile(took, 0.95):.1f} ms ({len(took)} events)"
    )


async def _compare(dsn: str, found: dict[str, list[float]], given: argparse.Namespace) -> None:
    """The same loads on DBOS, and how many times as fast Headrace was."""
    count = int(given.callers.partition(",")[0])
    with tempfile.TemporaryDirectory(prefix="headrace-bench-dbos-") as folder:
        async with dbos_peer.running_peer(dsn, Path(folder)) as peer:
            print(f"\nDBOS {dbos_peer.VERSION}, one process, the same PostgreSQL")
            for path, part in (("/chain", "chain of 10"), ("/fan-out", "1 to 50 to 1")):
                took = await peer.alone(path, min(given.runs, 100))
                await peer.together(path, callers=count, seconds=2, windows=1)
                rates = await peer.together(path, callers=count, seconds=given.seconds, windows=3)
                alone_ms = statistics.median(took) * 1e3
                print(f"  {part}: one run alone p50 {alone_ms:.1f} ms, {count} at a time {_spread(rates)} runs/s")
                for name, ours in found.items():
                    if name.startswith(part) and statistics.median(rates):
                        ratio = statistics.median(ours) / statistics.median(rates)
                        print(f"    {name}: {ratio:.1f} times its runs/s")


async def _reads(stack: LocalStack, seconds: float) -> None:
    api = Api(stack.gateway_url)
    await api.sign_up("reader@example.com")
    workflow_id = await api.publish("read", WORKLOADS[0].definition)
    bare, read = await reads.compare(api, workflow_id, windows=5, seconds=seconds)
    print(f"\nGET of a workflow of {WORKLOADS[0].nodes} nodes, {reads.CONNECTIONS} connections")
    for name, windows in (("bare FastAPI endpoint", bare), ("through the gateway", read)):
        slowest = percentile([moment for window in windows for moment in window.seconds], 0.99)
        print(f"  {name:<22} {_spread([window.rate for window in windows])} requests/s, p99 {slowest * 1e3:.1f} ms")
    ratios = [each.rate / other.rate for each, other in zip(read, bare, strict=True)]
    print(f"  {'ratio':<22} {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


async def _profile(api: Api, stack: LocalStack, seconds: int) -> None:
    workflow_id = await api.publish("profiled", WORKLOADS[0].definition)
    load = asyncio.create_task(together(api, workflow_id, callers=32, seconds=seconds + 4, windows=1))
    with tempfile.TemporaryDirectory() as folder:
        entries = [
            e for e in stack.state["processes"] if e["service"] in ("executor", "worker", "gateway", "workflows")
        ]
        processes = [psutil.Process(entry["pid"]) for entry in stack.state["processes"]]
        before = [sum(member.cpu_times()[:2]) for member in processes]
        found = await asyncio.gather(*(profile.record(entry["pid"], seconds, Path(folder)) for entry in entries))
        after = [sum(member.cpu_times()[:2]) for member in processes]
    await load
    print("\nProfile of the chain of 10 worker nodes, 32 runs at a time (own time of functions while on the processor)")
    for entry, start, end in zip(stack.state["processes"], before, after, strict=True):
        print(f"  {entry['service']}-{entry['replica']}: {(end - start) / seconds:.2f} cores (children not counted)")
    for entry, own in zip(entries, found, strict=True):
        print(f"\n  {entry['service']}-{entry['replica']}")
        for line in profile.shares(own, 14):
            print(f"    {line}")


async def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="length of each load")
    parser.add_argument("--runs", type=int, default=200, help="runs for the latency of one alone")
    parser.add_argument("--callers", default="32,128", help="runs at a time, comma-separated")
    parser.add_argument(
        "--only", default="", help="part of a workload's name or of startup, read, http, llm; or growth, history"
    )
    parser.add_argument("--matrix", action="store_true", help="instead: the loads by number of workers and executors")
    parser.add_argument("--workers", default="1,2,4", help="of the matrix, comma-separated")
    parser.add_argument("--executors", default="1,2", help="of the matrix, comma-separated")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="leave out DBOS, which is installed from PyPI")
    given, more = parser.parse_known_args()
    if given.only in BY_THEMSELVES:
        await BY_THEMSELVES[given.only](more)
        return
    if more:
        parser.error(f"unknown: {' '.join(more)}")
    print(f"Machine: {describe()}")
    if given.matrix:
        await _matrix(given)
        return
    if any(given.only in name for name in ("startup", "read", *(workload.name for workload in WORKLOADS))):
        await _inside(given)
    if any(given.only in name for name in OUTSIDE):
        await _outside(given)


async def _inside(given: argparse.Namespace) -> None:
    """What needs nothing but the stack."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with running_stack(Path(folder)) as stack:
            print("\nMemory, idle (proportional set size)")
            print("\n".join(startup.memory(stack)))
            if given.only in "startup":
                await _start_up(stack)
            if given.only in "read":
                await _reads(stack, seconds=3)
            workloads = [workload for workload in WORKLOADS if given.only in workload.name]
            if workloads:
                await _load(stack, workloads, given)


async def _outside(given: argparse.Namespace) -> None:
    """Nodes that call something outside: HTTP servers and models."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with targets.running_targets(Path(folder)) as port:
            url = f"http://127.0.0.1:{port}"
            model = {"name": targets.MODEL, "backend": "openai", "base_url": f"{url}/v1", "api_key": "none"}
            environ = {
                "HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{port}",
                "HEADRACE_LLM_MODELS": orjson.dumps([model]).decode(),
            }
            async with running_stack(Path(folder) / "home", environ=environ) as stack:
                api = Api(stack.gateway_url)
                await api.sign_up("outside@example.com")
                callers = [int(count) for count in given.callers.split(",")]
                loads = [gets(5, url), one_chat(targets.MODEL)]
                for workload in (load for load, name in zip(loads, OUTSIDE, strict=True) if given.only in name):
                    await _measure(api, workload, callers=callers, seconds=given.seconds, runs=given.runs)
                if given.only in OUTSIDE[1]:
                    direct = statistics.median(await targets.chat_directly(port, given.runs)) * 1e3
                    print(f"  of which the model alone, asked directly: p50 {direct:.1f} ms")


async def _matrix(given: argparse.Namespace) -> None:
    callers = int(given.callers.partition(",")[0])
    cells = []
    for executors in (int(count) for count in given.executors.split(",")):
        for workers in (int(count) for count in given.workers.split(",")):
            cells += await matrix.measure(workers, executors, callers=callers, seconds=given.seconds)
    print(f"\n{callers} runs at a time, windows of {given.seconds / 3:.0f} s; processes of a service joined by +")
    print(matrix.table(cells))
    print(f"\nMachine: {describe()}")


async def _start_up(stack: LocalStack) -> None:
    print(f"\nFrom process start to healthy, one more replica beside the idle stack, {startup.STARTS} starts each")
    print("\n".join(await startup.starts(stack)))
    await startup.run_sample(stack)
    print("\nMemory, after the sample workflow")
    print("\n".join(startup.memory(stack)))


async def _load(stack: LocalStack, workloads: list[Workload], given: argparse.Namespace) -> None:
    api = Api(stack.gateway_url)
    await api.sign_up("bench@example.com")
    print("\nFloor of this machine, same run, servers of the stack")
    dsn, url = stack.process("postgres")["dsn"], stack.process("nats")["url"]
    for count in (1, 16):
        rate = await floor.postgres_commits(dsn, connections=count, seconds=3)
        print(f"  PostgreSQL one-row commits, {count:>2} connections   {rate:8.0f}/s")
    for count in (1, 32):
        rate = await floor.nats_requests(url, callers=count, seconds=3)
        print(f"  NATS request-reply, {count:>2} callers               {rate:8.0f}/s")
    callers = [int(count) for count in given.callers.split(",")]
    found = {
        workload.name: await _measure(api, workload, callers=callers, seconds=given.seconds, runs=given.runs)
        for workload in workloads
    }
    await _events(api, followers=1, runs=20)
    await _events(api, followers=16, runs=4)
    if not given.no_peer:
        await _compare(dsn, found, given)
    if not given.no_profile:
        await _profile(api, stack, 10)
    print("\nMemory, after the load")
    print("\n".join(startup.memory(stack)))


if __name__ == "__main__":
    asyncio.run(main())
