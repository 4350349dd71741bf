"""Runs that flow through the stack while workers are added and killed, and what became of every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import cast

from deploy.local import databases
from tests.chaos.histories import History, all_ended, read_history
from tests.chaos.load import Load, chain, diamond, mapped
from tests.containers.commands import CheckError
from tests.containers.stack import ComposeStack
from tests.support.stack import LocalStack
from tests.support.waiting import await_until

LEDGER = "http://ledger:8000/effects"
WORKERS = 4
_END_WITHIN = 300.0


async def flow_and_kill(
    stack: ComposeStack, records: Path, admin_url: str, *, runs: int, kills: int, seed: int
) -> None:
    """Let runs flow, have 4 workers in place of 2, kill one after the other; print the figures.

    Raises CheckError for what was lost, doubled or otherwise not as promised.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable
    load = Load(cast(LocalStack, stack), records / "accepted.jsonl")
    killed: Counter[str] = Counter()
    began = time.monotonic()
    async with contextlib.aclosing(load):
        await load.prepare(chain(LEDGER), diamond(LEDGER), mapped(LEDGER))
        async with asyncio.TaskGroup() as group:
            flowing = group.create_task(load.run(10**9))
            await await_until(lambda: load.ended >= runs // 10, within=_END_WITHIN)
            await stack.scale(WORKERS)
            for number in range(kills):
                ended = load.ended
                await await_until(lambda ended=ended: load.ended > ended + 10, within=_END_WITHIN)
                killed[await _kill(stack, chance, by_engine=number % 2 == 0)] += 1
            await await_until(lambda: load.ended >= runs, within=_END_WITHIN)
            load.enough()
            await flowing
    seconds = time.monotonic() - began
    url = databases.url_with(admin_url.replace("@postgres:", f"@{stack.address('postgres')}:"), database="headrace")
    await await_until(lambda: all_ended(url), within=_END_WITHIN)
    history = await read_history(url, load.log, records / "ledger.jsonl")
    _report(load, history, killed, seconds)


async def _kill(stack: ComposeStack, chance: random.Random, *, by_engine: bool) -> str:
    """Kill a worker: its container by the engine, which then leaves it down, or its process, as a crash would."""
    worker = chance.choice(await stack.healthy_workers())
    if by_engine:
        await asyncio.to_thread(worker.kill, "KILL")
        await asyncio.to_thread(worker.wait)
    else:
        await stack.crash(worker)
    await stack.scale(WORKERS)
    return "containers killed" if by_engine else "processes killed"


def _report(load: Load, history: History, killed: Counter[str], seconds: float) -> None:
    violations = history.violations()
    kinds = Counter(line.partition(":")[0] for line in violations)
    effects = sum(line["effect"] for line in history.attempts)
    interrupted = len(history.interruptions())
    print(f"  {load.accepted} runs accepted in {seconds:.0f} s, answers {dict(sorted(load.statuses.items()))}")
    print(f"  {effects} effects in {len(history.attempts)} attempts")
    print(f"  {dict(killed)}; {interrupted} nodes lost their worker")
    lost, doubled = kinds["lost"] + kinds["missing"], kinds["doubled"]
    print(f"  lost {lost}, doubled {doubled}, otherwise wrong {len(violations) - lost - doubled}", flush=True)
    if violations:
        raise CheckError("\n".join(violations[:50]))
    if not interrupted:
        raise CheckError("No kill has hit a node that ran: the check has shown nothing.")
