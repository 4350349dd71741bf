"""Whatever is killed or stopped while runs flow: every accepted run ends, and no effect is lost or doubled.

All runs of a module share one ledger, one database and one client log, so every check is over everything so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.histories import read_history, read_lines
from tests.chaos.ledger_process import LedgerProcess
from tests.chaos.load import Load, chain, diamond, mapped
from tests.support.stack import NO_MODELS, LocalStack, running_stack
from tests.support.waiting import await_until

pytestmark = pytest.mark.timeout(400)  # a start takes seconds alone, and a minute beside everything else

RUNS = 200
KILL_AT = (20, 80, 140)
"""Accepted runs at which something is killed."""
END_WITHIN = 120.0
"""Seconds; a bound for a busy machine, and not what it takes."""

Record = Callable[[str, object], None]


class Pass:
    """One pass: a load, its faults, and the check at the end."""

    def __init__(self, stack: LocalStack, ledger: LedgerProcess, folder: Path, name: str) -> None:
        self.stack = stack
        self.ledger = ledger
        self.load = Load(stack, folder / f"{name}.jsonl")
        self.faults = 0
        self.recoveries: list[float] = []
        self._folder = folder

    @property
    def dsn(self) -> str:
        return str(self.stack.process("postgres")["dsn"])

    async def flow(self, faults: Callable[[], Awaitable[None]]) -> str:
        """Let runs flow, run `faults` beside them, check; the figures."""
        started = time.monotonic()
        async with contextlib.aclosing(self.load):
            await self.load.prepare(chain(self.ledger.url), diamond(self.ledger.url), mapped(self.ledger.url))
            async with asyncio.TaskGroup() as group:
                flowing = group.create_task(self.load.run(RUNS))
                await faults()
                async with asyncio.timeout(END_WITHIN):
                    await asyncio.wait({flowing})
        await await_until(self._all_ended, within=END_WITHIN)
        return await self._checked(time.monotonic() - started)

    async def accepted(self, runs: int) -> None:
        await await_until(lambda: self.load.accepted >= runs, within=END_WITHIN)

    async def kill(self, service: str, replica: int = 0) -> None:
        """Kill a process, wait until it is healthy again, and note when effects went on after that."""
        pid = self.stack.kill(service, replica)
        killed = time.time()
        self.faults += 1
        await self.stack.until_back(pid, service, replica, within=60)
        back = time.time()
        if self.load.accepted < RUNS:
            await await_until(lambda: self._effects_since(back) or self.load.ended == RUNS, within=60)
            went_on = [at for at in self._effects_since(killed + 0.05)]
            self.recoveries.append(max(0.0, (self._effects_since(back) or went_on or [back])[0] - back))

    def _effects_since(self, moment: float) -> list[float]:
        return [line["at"] for line in read_lines(self.ledger.file) if line["at"] > moment]

    async def _all_ended(self) -> bool:
        return not await _ask(self.dsn, "SELECT count(*) FROM executor.runs WHERE status < 4")

    async def _checked(self, seconds: float) -> str:
        everything = self._folder / "everything"
        everything.write_bytes(b"".join(file.read_bytes() for file in sorted(self._folder.glob("*.jsonl"))))
        history = await read_history(self.dsn, everything, self.ledger.file)
        violations = history.violations()
        assert violations == [], f"{len(violations)} violations, such as {violations[:10]}"
        mine = {line["run"] for line in read_lines(self.load.log)}
        attempts = [line for line in history.attempts if line["body"]["run"] in mine]
        effects = sum(line["effect"] for line in attempts)
        held_up = history.interruptions(mine)
        longest = (
            f"{len(held_up)} nodes held up by at most {max(again - lost for lost, again in held_up):.2f} s, "
            if held_up
            else ""
        )
        recoveries = " ".join(f"{value:.2f}" for value in self.recoveries)
        return (
            f"{self.faults} faults, {len(mine)} runs in {seconds:.1f} s, 0 lost, 0 doubled, {effects} effects in "
            f"{len(attempts)} attempts, {longest}effects go on {recoveries or '-'} s after the process is back, "
            f"answers {dict(sorted(self.load.statuses.items()))}"
        )


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory, ledger: LedgerProcess) -> AsyncIterator[LocalStack]:
    """One of each, but two executors and two workers: what the other one cannot take over must wait for a restart."""
    environ = {"HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{ledger.port}", "HEADRACE_LLM_MODELS": NO_MODELS}
    home = tmp_path_factory.mktemp("chaos") / "home"
    async with running_stack(home, replicas={"executor": 2, "worker": 2}, environ=environ) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accepted")


@pytest.mark.parametrize("victim", ["worker", "executor", "nats", "postgres"])
async def test_no_run_is_lost_and_no_effect_doubled_when_it_is_killed(
    victim: str, stack: LocalStack, ledger: LedgerProcess, folder: Path, record_property: Record
) -> None:
    chaos = Pass(stack, ledger, folder, victim)

    async def kill() -> None:
        for runs in KILL_AT:
            await chaos.accepted(runs)
            await chaos.kill(victim)

    record_property("chaos", await chaos.flow(kill))


async def test_no_run_is_lost_and_no_effect_doubled_when_all_of_a_kind_are_killed_at_once(
    stack: LocalStack, ledger: LedgerProcess, folder: Path, record_property: Record
) -> None:
    chaos = Pass(stack, ledger, folder, "both")

    async def kill() -> None:
        for runs, service in zip(KILL_AT, ("worker", "executor", "worker"), strict=True):
            await chaos.accepted(runs)
            await asyncio.gather(chaos.kill(service, 0), chaos.kill(service, 1))

    record_property("chaos", await chaos.flow(kill))


async def test_a_worker_that_stood_still_beyond_its_lease_changes_nothing_when_it_goes_on(
    stack: LocalStack, ledger: LedgerProcess, folder: Path, record_property: Record
) -> None:
    chaos = Pass(stack, ledger, folder, "stopped")
    fenced = stack.log("worker").count("job_revoked") + stack.log("worker").count("report_was_stale")

    async def both_live() -> bool:
        return await _live_workers(chaos.dsn) == 2

    async def stop() -> None:
        await await_until(both_live, within=60)
        for runs in KILL_AT[:2]:
            await chaos.accepted(runs)
            pid = stack.kill("worker", 0, signal.SIGSTOP)
            chaos.faults += 1
            try:
                await await_until(lambda: _has_lost_its_claims(chaos.dsn), within=60)
            finally:
                os.kill(pid, signal.SIGCONT)
            await await_until(both_live, within=60)

    figures = await chaos.flow(stop)
    refused = stack.log("worker").count("job_revoked") + stack.log("worker").count("report_was_stale") - fenced
    assert refused, "the worker held nothing when it was stopped: the test has shown nothing"
    record_property("chaos", f"{figures}, {refused} claims refused to the worker that went on")


async def _has_lost_its_claims(dsn: str) -> bool:
    """One of the two workers is not heard any more, and nothing is claimed by it."""
    return await _live_workers(dsn) == 1 and not await _ask(
        dsn,
        "SELECT count(*) FROM executor.node_executions n JOIN executor.workers w ON w.id = n.worker "
        "WHERE n.status = 3 AND w.lease_until < now()",
    )


async def _live_workers(dsn: str) -> int:
    return await _ask(dsn, "SELECT count(*) FROM executor.workers WHERE lease_until >= now()")


async def _ask(dsn: str, query: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()
