"""Faults on a stack, one after another, each followed by the wait for what it hit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import nats
import nats.errors
import psutil
from nats.js.errors import NotFoundError

from services.executor.transport import streams
from tests.chaos.ledger_process import LedgerProcess
from tests.support.stack import LocalStack
from tests.support.waiting import await_until

KILLED = ("worker", "worker", "executor", "executor", "nats", "postgres", "workflows", "gateway", "auth", "vector")
KILLED_TOGETHER = ("worker", "executor")
STOPPED = {
    "worker": 3.0,
    "executor": 3.0,
    "nats": 2.0,
    "postgres": 2.0,
    "workflows": 2.0,
    "gateway": 2.0,
    "auth": 2.0,
    "vector": 2.0,
}
"""Seconds for which a process stands still: beyond the leases of workers and executors."""
BACK_WITHIN = 90.0
_IN_COMMIT = """
SELECT pid FROM pg_stat_activity WHERE usename = 'headrace_executor' AND state = 'active'
AND wait_event ILIKE 'wal%' LIMIT 1
"""


@dataclass(frozen=True)
class Fault:
    """One that happened; times of the clock."""

    kind: str
    began: float
    back: float
    """When what it hit was healthy again."""


class Storm:
    """Faults of all kinds in an order that comes from a seed."""

    def __init__(
        self,
        stack: LocalStack,
        ledger: LedgerProcess,
        chance: random.Random,
        *,
        replicas: Mapping[str, int],
        kill_only: Sequence[str] = (),
    ) -> None:
        """`kill_only`: services of which one process at a time is killed, and nothing else; none = all kinds."""
        self.had: list[Fault] = []
        self._stack = stack
        self._ledger = ledger
        self._chance = chance
        self._replicas = replicas
        self._began = 0.0
        self._killed = kill_only or KILLED
        self._kinds: list[Callable[[], Awaitable[str]]] = (
            [self._kill]
            if kill_only
            else [
                *([self._kill] * 5),
                *([self._stop] * 3),
                self._kill_all_of_a_kind,
                self._wipe_stream,
                self._cut_connections,
                self._kill_a_commit,
            ]
        )

    async def fault(self) -> None:
        """Let one fault happen, wait until what it hit is healthy and an effect came after that."""
        self._began = time.time()
        kind = await self._chance.choice(self._kinds)()
        self.had.append(Fault(kind, self._began, time.time()))
        await await_until(lambda: self._last_effect() > self.had[-1].back, within=BACK_WITHIN)

    def _last_effect(self) -> float:
        with self._ledger.file.open("rb") as file:
            file.seek(max(0, self._ledger.file.stat().st_size - 4096))
            last = file.read().rpartition(b'"at": ')[2]
        return float(last.partition(b",")[0] or 0)

    async def _kill(self) -> str:
        service = self._chance.choice(self._killed)
        await self._kill_one(service, self._any_of(service))
        return f"kill -9 {service}"

    async def _kill_all_of_a_kind(self) -> str:
        service = self._chance.choice(KILLED_TOGETHER)
        await asyncio.gather(*(self._kill_one(service, replica) for replica in range(self._replicas[service])))
        return f"kill -9 every {service}"

    async def _kill_one(self, service: str, replica: int) -> None:
        await self._until_ready(service, replica)
        self._began = time.time()
        pid = self._stack.kill(service, replica)
        await self._stack.until_back(pid, service, replica, within=BACK_WITHIN)

    async def _stop(self) -> str:
        service = self._chance.choice(tuple(STOPPED))
        replica = self._any_of(service)
        await self._until_ready(service, replica)
        process = psutil.Process(self._stack.process(service, replica)["pid"])
        # PostgreSQL is its postmaster and a process for each connection.
        family = [process, *process.children(recursive=True)]
        self._began = time.time()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection that has just ended
                member.suspend()
        try:
            await asyncio.sleep(STOPPED[service])  # the fault itself: it stands still for so long
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()
        return f"SIGSTOP {service}"

    async def _wipe_stream(self) -> str:
        client = await nats.connect(self._stack.process("nats")["url"])
        try:
            while True:
                self._began = time.time()
                try:
                    with contextlib.suppress(
                        NotFoundError
                    ):  # a killed NATS has lost it, and nobody has declared it yet
                        await client.jetstream().delete_stream(streams.STREAM)
                    break
                except nats.errors.TimeoutError:  # it listens, and does not serve streams yet
                    continue
        finally:
            await client.close()
        return "NATS wiped"

    async def _cut_connections(self) -> str:
        """Cut what executors have open to PostgreSQL, in the middle of whatever it does."""
        connection = await self._connection()
        try:
            self._began = time.time()
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):  # cut with all others, by recovery
                for _ in range(10):
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE usename = 'headrace_executor' AND state = 'active'"
                    )
        finally:
            connection.terminate()
        return "PostgreSQL connections cut"

    async def _kill_a_commit(self) -> str:
        """Kill the process that is writing a COMMIT to disk: nobody is told whether it was done.

        PostgreSQL then ends all other connections and recovers.
        """
        connection = await self._connection()
        try:
            pid = await await_until(lambda: connection.fetchval(_IN_COMMIT), within=BACK_WITHIN)
            self._began = time.time()
            os.kill(pid, signal.SIGKILL)
            # Until it has noticed, it answers as ever.
            await await_until(connection.is_closed, within=BACK_WITHIN)
        finally:
            connection.terminate()
        (await self._connection()).terminate()
        return "COMMIT not answered"

    async def _connection(self) -> Any:
        """A connection to PostgreSQL, as soon as there is one: it may be recovering from the fault before."""
        return await await_until(self._connected, within=BACK_WITHIN)

    async def _connected(self) -> Any:
        dsn = self._stack.process("postgres")["dsn"]
        try:
            return await asyncpg.connect(dsn, timeout=5, command_timeout=BACK_WITHIN)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return None

    async def _until_ready(self, service: str, replica: int) -> None:
        await await_until(lambda: self._stack.process(service, replica)["state"] == "ready", within=BACK_WITHIN)

    def _any_of(self, service: str) -> int:
        return self._chance.randrange(self._replicas.get(service, 1))
