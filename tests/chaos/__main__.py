"""`make chaos`: faults of all kinds in random order on a real stack with two of everything, for as long as it takes.

Prints the seed, what broke, and how soon work went on after each kind of fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import recovery
from tests.chaos.faults import Storm
from tests.chaos.histories import History, all_ended, read_history, read_lines
from tests.chaos.invariants import Looks, Watch
from tests.chaos.ledger_process import LedgerProcess, running_ledger
from tests.chaos.load import Load, User, chain, diamond, indexed, large, mapped
from tests.support.stack import NO_MODELS, LocalStack, running_stack
from tests.support.waiting import await_until

REPLICAS = {"executor": 2, "worker": 2, "workflows": 2, "auth": 2, "gateway": 2}
COLLECTION = "chaos"
MAX_RUNNING = 24
"""Nodes at a time of the project that has a limit."""


async def storm(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run the load and the faults; what was broken."""
    async with running_ledger(folder) as ledger:
        environ = {"HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{ledger.port}", "HEADRACE_LLM_MODELS": NO_MODELS}
        async with running_stack(folder / "home", replicas=REPLICAS, environ=environ) as stack:
            chance = random.Random(given.seed)  # noqa: S311 - repeatable
            faults = Storm(stack, ledger, chance, replicas=REPLICAS, kill_only=given.kill_only)
            load = Load(stack, folder / "accepted.jsonl", clients=given.clients)
            limited = User(stack, "limited@example.com", "a password that is long enough")
            async with contextlib.aclosing(load), contextlib.aclosing(limited):
                dsn = stack.process("postgres")["dsn"]
                watch = await _prepare(stack, ledger, load, limited)
                seconds = await _flow(load, faults, watch, given)
                await await_until(lambda: all_ended(dsn), within=120)
                await watch.look_at_all()
            history = await read_history(dsn, load.log, ledger.file)
            _report(load, faults, watch, history, seconds)
            accepted_at = [line["at"] for line in read_lines(load.log)]
            times = recovery.measure(faults.had, history, await recovery.read_waits(dsn), accepted_at)
            print("Seconds, as p50/p99/most; of nodes, how many and for how long they were held up")
            print(recovery.table(times))
            for service in ("worker", "executor"):
                print(f"  nodes held up by kill -9 of one {service}: {recovery.held_up(times, f'kill -9 {service}')}")
            longest = sorted(times.longest, reverse=True)[:5]
            print(
                "  longest waits for the engine: " + "; ".join(f"{seconds:.2f} s {what}" for seconds, what in longest)
            )
            return watch.violations + history.violations()


async def _prepare(stack: LocalStack, ledger: LedgerProcess, load: Load, limited: User) -> Watch:
    """Publish the workflows of two users; one of them may only run so much at a time."""
    await load.user.until_answered("POST", "/collections", {"name": COLLECTION, "dimension": 4})
    mine = (chain(ledger.url), diamond(ledger.url), mapped(ledger.url), large(ledger.url))
    await load.prepare(*mine, indexed(ledger.url, COLLECTION))
    await limited.register()
    (project,) = (await limited.until_answered("GET", "/auth/me"))["projects"]
    limits = {"max_running_nodes": MAX_RUNNING}
    await limited.until_answered("PUT", f"/projects/{project['id']}/limits", limits)
    theirs = diamond(ledger.url)
    await load.prepare(theirs, user=limited)
    return Watch(stack, load, limited, Looks([*mine, indexed(ledger.url, COLLECTION)]))


async def _flow(load: Load, faults: Storm, watch: Watch, given: argparse.Namespace) -> float:
    """Let runs and faults flow until there were enough of both; seconds."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(watch.keep_looking()), group.create_task(watch.keep_peeping())]
        flowing = group.create_task(load.run(10**9))
        while len(faults.had) < given.faults or load.accepted < given.runs:
            await faults.fault()
            await asyncio.sleep(given.pause)
            print(f"\r{len(faults.had)} faults, {load.accepted} runs", end="", flush=True)
        load.enough()
        await flowing
        for task in watching:
            task.cancel()
    return time.monotonic() - began


def _report(load: Load, faults: Storm, watch: Watch, history: History, seconds: float) -> None:
    effects = sum(line["effect"] for line in history.attempts)
    print(
        f"\r{len(faults.had)} faults, {load.accepted} runs in {seconds:.0f} s, {effects} effects in "
        f"{len(history.attempts)} attempts, answers {dict(sorted(load.statuses.items()))}, "
        f"{load.abandoned} starts abandoned by their client, "
        f"{watch.count} looks at the invariants ({watch.failed} while PostgreSQL did not answer); "
        f"load {'/'.join(f'{value:.1f}' for value in os.getloadavg())}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=300, help="at least; they go on until there are enough runs")
    parser.add_argument("--runs", type=int, default=30_000, help="accepted runs, at least")
    parser.add_argument("--clients", type=int, default=32, help="runs at a time")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between a recovery and the next fault")
    parser.add_argument("--kill-only", metavar="SERVICE", nargs="+", default=(), help="no other fault than these kills")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        violations = asyncio.run(storm(given, Path(folder)))
    print(f"{len(violations)} violations")
    sys.exit("\n".join(violations[:50]) or None)


if __name__ == "__main__":
    main()
