"""`make chaos`: faults of all kinds in random order on a real stack with two of everything, for as long as it takes.

Prints the seed, every fault, what broke, and in the end how soon work went on after each kind of fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import nats
from nats.js.errors import NotFoundError

from services.executor.transport import streams
from tests.chaos.histories import read_history, read_lines
from tests.chaos.invariants import broken
from tests.chaos.ledger_process import LedgerProcess, running_ledger
from tests.chaos.load import Load, chain, diamond, mapped
from tests.support.stack import LocalStack, running_stack
from tests.support.waiting import await_until

REPLICAS = {"executor": 2, "worker": 2, "workflows": 2, "auth": 2}
NO_MODELS = '[{"name": "none", "backend": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}]'
KILLED = ("worker", "worker", "executor", "executor", "nats", "postgres", "workflows", "gateway")
STOPPED = (("worker", 3.0), ("executor", 3.0), ("nats", 2.0), ("workflows", 2.0))
BACK_WITHIN = 90.0


class Storm:
    """Faults on a stack, one after another, each followed by the wait for what it hit."""

    def __init__(self, stack: LocalStack, ledger: LedgerProcess, chance: random.Random) -> None:
        self._stack = stack
        self._ledger = ledger
        self._chance = chance
        self.counts: Counter[str] = Counter()
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self._kinds: list[Callable[[], Awaitable[str]]] = [
            *([self._kill] * 5),
            *([self._stop] * 2),
            self._kill_all_of_a_kind,
            self._wipe_stream,
            self._cut_connections,
        ]

    async def fault(self) -> None:
        """Let one fault happen, wait until what it hit is healthy, note how soon an effect came after it."""
        name = await self._chance.choice(self._kinds)()
        self.counts[name] += 1
        happened = time.time()
        await await_until(lambda: self._effect_after(happened), within=BACK_WITHIN)
        self.recoveries[name].append(self._effect_after(happened) - happened)

    def _effect_after(self, moment: float) -> float:
        """Time of the first effect after a moment; 0 while there is none."""
        # The ledger grows for as long as this runs: only its tail is read.
        with self._ledger.file.open("rb") as file:
            file.seek(max(0, self._ledger.file.stat().st_size - 200_000))
            lines = file.read().splitlines()[1:]
        times = (
            float(line.partition(b'"at": ')[2].split(b",", 1)[0].rstrip(b"}")) for line in lines if b'"at": ' in line
        )
        return next((at for at in times if at > moment), 0.0)

    async def _kill(self) -> str:
        service = self._chance.choice(KILLED)
        await self._kill_one(service, self._chance.randrange(REPLICAS.get(service, 1)))
        return f"kill -9 {service}"

    async def _kill_all_of_a_kind(self) -> str:
        service = self._chance.choice(("worker", "executor"))
        await asyncio.gather(*(self._kill_one(service, replica) for replica in range(REPLICAS[service])))
        return f"kill -9 every {service}"

    async def _kill_one(self, service: str, replica: int) -> None:
        pid = self._stack.kill(service, replica)
        await self._stack.until_back(pid, service, replica, within=BACK_WITHIN)

    async def _stop(self) -> str:
        service, seconds = self._chance.choice(STOPPED)
        pid = self._stack.kill(service, self._chance.randrange(REPLICAS.get(service, 1)), signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)  # the fault itself: it stands still for so long
        finally:
            with contextlib.suppress(ProcessLookupError):  # its launcher may have given it up
                os.kill(pid, signal.SIGCONT)
        return f"SIGSTOP {service}"

    async def _wipe_stream(self) -> str:
        client = await nats.connect(self._stack.process("nats")["url"])
        try:
            with contextlib.suppress(NotFoundError):  # a killed NATS has just lost it, and nobody has declared it yet
                await client.jetstream().delete_stream(streams.STREAM)
        finally:
            await client.close()
        return "NATS wiped"

    async def _cut_connections(self) -> str:
        """Cut what executors have open to PostgreSQL, in the middle of whatever it does: also after a COMMIT."""
        connection = await asyncpg.connect(self._stack.process("postgres")["dsn"])
        try:
            for _ in range(10):
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE usename = 'headrace_executor' AND state = 'active'"
                )
        finally:
            await connection.close()
        return "PostgreSQL connections cut"


async def watch(stack: LocalStack, violations: list[str]) -> None:
    """Ask for the invariants once a second, whenever PostgreSQL answers."""
    while True:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            connection = await asyncpg.connect(stack.process("postgres")["dsn"], timeout=5)
            try:
                violations += await broken(connection)
            finally:
                await connection.close()
        await asyncio.sleep(1)


async def storm(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run the load and the faults; what was broken."""
    violations: list[str] = []
    async with running_ledger(folder) as ledger:
        environ = {"HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{ledger.port}", "HEADRACE_LLM_MODELS": NO_MODELS}
        async with running_stack(folder / "home", replicas=REPLICAS, environ=environ) as stack:
            log = folder / "accepted.jsonl"
            faults = Storm(stack, ledger, random.Random(given.seed))  # noqa: S311 - it shall be repeatable
            began = time.monotonic()
            async with contextlib.aclosing(Load(stack, log)) as load:
                await load.prepare(chain(ledger.url), diamond(ledger.url), mapped(ledger.url))
                watching = asyncio.create_task(watch(stack, violations))
                async with asyncio.TaskGroup() as group:
                    group.create_task(load.run(10**9))
                    while faults.counts.total() < given.faults or load.accepted < given.runs:
                        if faults.counts.total() < given.faults:
                            await faults.fault()
                        await asyncio.sleep(given.pause)
                        print(f"\r{faults.counts.total()} faults, {load.accepted} runs", end="", flush=True)
                    load.enough()
                watching.cancel()
            seconds = time.monotonic() - began
            await await_until(lambda: _all_ended(stack), within=120)
            history = await read_history(stack.process("postgres")["dsn"], log, ledger.file)
            violations += history.violations()
            attempts = read_lines(ledger.file)
            effects = sum(line["effect"] for line in attempts)
            print(
                f"\r{faults.counts.total()} faults, {load.accepted} runs in {seconds:.0f} s, {effects} effects in "
                f"{len(attempts)} attempts, answers {dict(sorted(load.statuses.items()))}"
            )
            for name, times in sorted(faults.recoveries.items()):
                times.sort()
                print(
                    f"  {name:<28} {len(times):>4} times, the next effect after p50 {statistics.median(times):.2f} s, "
                    f"p99 {times[int(len(times) * 0.99)]:.2f} s, at most {times[-1]:.2f} s"
                )
            held_up = history.interruptions(set(history.accepted))
            if held_up:
                print(
                    f"  nodes that lost their worker: {len(held_up)}, started again after p50 "
                    f"{statistics.median(held_up):.2f} s, p99 {held_up[int(len(held_up) * 0.99)]:.2f} s"
                )
    return violations


async def _all_ended(stack: LocalStack) -> bool:
    connection = await asyncpg.connect(stack.process("postgres")["dsn"])
    try:
        return not await connection.fetchval("SELECT count(*) FROM executor.runs WHERE status < 4")
    finally:
        await connection.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--runs", type=int, default=30_000, help="accepted runs, at least")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between a recovery and the next fault")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        violations = asyncio.run(storm(given, Path(folder)))
    print(f"{len(violations)} violations")
    sys.exit("\n".join(violations[:50]) or None)


if __name__ == "__main__":
    main()
