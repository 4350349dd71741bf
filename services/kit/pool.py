"""A pool of PostgreSQL connections that costs next to nothing to use.

asyncpg's own wraps every release in a task, which with the context managers around it takes as long as sending a small
statement. Connections that were used without an error stay taken from it here, and go from one user to the next.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from prometheus_client import Gauge

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

_IN_USE = Gauge("headrace_postgres_connections_in_use", "Connections of this process that are at work.", ["pool"])
_LIMIT = Gauge("headrace_postgres_connections_limit", "The most connections that this process may use.", ["pool"])


def measure_pool(name: str, limit: int, in_use: Callable[[], int]) -> None:
    """Report a pool of this process; `in_use` is asked at each scrape."""
    _LIMIT.labels(name).set(limit)
    _IN_USE.labels(name).set_function(in_use)


class Pool:
    """Lends each of `size` connections to one user at a time, the one used last first. See `postgres.open_pool`."""

    def __init__(self, inner: "asyncpg.Pool[asyncpg.Record]", size: int) -> None:
        self._inner = inner
        self._free: list[Connection] = []
        self._turns = asyncio.Semaphore(size)
        self._closing = False
        self._in_use = 0
        measure_pool("statements", size, lambda: self._in_use)

    def acquire(self, *, timeout: float | None = None) -> "_Use":
        """`async with` a connection. Raises TimeoutError when none is free in time, and what asyncpg raises."""
        return _Use(self, timeout)

    async def execute(self, statement: str, *arguments: object) -> str:
        """Run one statement; its command tag."""
        async with self.acquire() as connection:
            return await connection.execute(statement, *arguments)

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement; its rows."""
        async with self.acquire() as connection:
            return await connection.fetch(statement, *arguments)

    async def close(self) -> None:
        """Close all connections, those in use when they are given back."""
        self._closing = True
        while self._free:
            await self._inner.release(self._free.pop())
        await self._inner.close()

    async def take(self, within: float | None) -> Connection:
        """A connection for the caller alone, to be given back."""
        if self._turns.locked():
            async with asyncio.timeout(within):
                await self._turns.acquire()
        else:
            await self._turns.acquire()
        self._in_use += 1
        try:
            while self._free:
                connection = self._free.pop()
                if _is_open(connection):
                    return connection
                await self._inner.release(connection)
            return await self._inner.acquire(timeout=within)
        except BaseException:
            self._in_use -= 1
            self._turns.release()
            raise

    async def give_back(self, connection: Connection, *, in_order: bool) -> None:
        """Hand back; what an error or a cancellation has left behind is asyncpg's to clear."""
        try:
            if in_order and not self._closing:
                self._free.append(connection)
            else:
                await self._inner.release(connection)
        finally:
            self._in_use -= 1
            self._turns.release()


class _Use:
    """One use of a connection."""

    __slots__ = ("_connection", "_pool", "_timeout")

    def __init__(self, pool: Pool, timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.take(self._timeout)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.give_back(self._connection, in_order=error is None)


def _is_open(connection: Any) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # It was lost while nobody used it, and asyncpg has taken it back.
        return False
