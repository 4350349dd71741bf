"""A pool of connections to the simulated PostgreSQL, on which the real storage of limits and turns runs.

Its statements are known by their text. What a transaction writes is there for others when it is committed, and not
before; its advisory locks are held until then, or until its connection is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from asyncpg.exceptions import LockNotAvailableError

from services.executor.storage import limits, turns
from services.kit.postgres import lost_connection
from tests.simulation.loop import Process
from tests.simulation.places import PlaceTable, Record
from tests.simulation.store import Connections

_POLL_SECONDS = 0.05
"""How often a connection looks whether the lock that it waits for is free."""
_LOCK_SECONDS = 10.0
"""lock_timeout of services/kit/postgres.py."""
_READS: dict[str, Callable[..., list[Record]]] = {
    limits._LIMITS: PlaceTable.all_limits,
    f"{limits._LIMITS} WHERE project_id = $1": PlaceTable.limits_of,
    limits._STILL_READY: PlaceTable.still_ready,
    limits._PLACES: PlaceTable.in_scope,
    limits._UNUSED: PlaceTable.unused,
    turns._ANY_PENDING: PlaceTable.any_pending,
    turns._CANDIDATES: PlaceTable.candidates,
    turns._PLACES: PlaceTable.turns_in_scope,
}
_WRITES: dict[str, Callable[..., None]] = {
    limits._TAKE: PlaceTable.take,
    limits._FREE_UNUSED: PlaceTable.free_unused,
    turns._TAKE: PlaceTable.take_turns,
}
_LOCKS = (limits._LOCK, turns._LOCK)
# Runs are locked and looked at again in one moment: that of the commit.
_NOTHING = ("SET LOCAL synchronous_commit = off", limits._LOCK_RUNS)


class Pool:
    """See services.kit.pool.Pool. One executor's."""

    def __init__(self, connections: Connections, process: Process) -> None:
        self._connections = connections
        self._process = process

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109 - as the real one
        """See Pool. One whose use has failed is closed."""
        connection = Connection(self._connections, self._process)
        try:
            yield connection
        finally:
            connection.closed = True


class Connection:
    """See asyncpg.Connection."""

    def __init__(self, connections: Connections, process: Process) -> None:
        self.closed = False
        self._connections = connections
        self._table = connections.database.places
        self._process = process
        self._generation = connections.generation
        self._began_at: float | None = None
        self._written: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """The server still knows of it."""
        return not self.closed and self._process.alive and self._generation == self._connections.generation

    async def fetch(self, statement: str, *arguments: Any) -> list[Record]:
        """See asyncpg.Connection."""
        return await self._send(lambda: _READS[statement](self._table, *arguments))

    async def fetchrow(self, statement: str, *arguments: Any) -> Record | None:
        """See asyncpg.Connection."""
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        """See asyncpg.Connection."""
        row = await self.fetchrow(statement, *arguments)
        return row[0] if row else None

    async def execute(self, statement: str, *arguments: Any) -> None:
        """See asyncpg.Connection."""
        if statement in _NOTHING:
            return
        if statement in _LOCKS:
            await self._lock((statement, *arguments))
            return
        write, began_at = _WRITES[statement], self._began_at
        assert began_at is not None, "all that is written here is written in transactions"
        self._written.append(lambda: write(self._table, began_at, *arguments))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """See asyncpg.Connection."""
        self._began_at = self._connections.database.now()
        yield
        await self._send(self._commit)

    async def _lock(self, name: tuple[Any, ...]) -> None:
        until = self._connections.database.now() + _LOCK_SECONDS
        while not await self._send(lambda: self._try_lock(name)):
            if self._connections.database.now() > until:
                raise LockNotAvailableError
            await asyncio.sleep(_POLL_SECONDS)

    def _commit(self) -> None:
        for write in self._written:
            write()
        self.closed = True  # what it has locked is free

    def _try_lock(self, name: tuple[Any, ...]) -> bool:
        holder = self._connections.locks.get(name)
        if holder is not None and holder is not self and holder.is_open:
            return False
        self._connections.locks[name] = self
        return True

    async def _send(self, statement: Callable[[], Any]) -> Any:
        def arrive() -> Any:
            if not self.is_open:
                raise lost_connection()
            return statement()

        return await self._connections.send("limits", arrive)
