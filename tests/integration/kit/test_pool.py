"""The pool: one user for each connection, whatever happened to the user before or to the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from services.kit.pool import Pool
from services.kit.postgres import open_pool

SIZE = 2


@pytest.fixture
async def pool(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pool]:
    opened = await open_pool(await database("workflows"), size=SIZE)
    yield opened
    await opened.close()


async def backend(pool: Pool) -> int:
    async with pool.acquire() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def test_no_two_users_have_a_connection_at_a_time(pool: Pool) -> None:
    using: set[int] = set()

    async def use() -> None:
        async with pool.acquire(timeout=10) as connection:
            number = await connection.fetchval("SELECT pg_backend_pid()")
            assert number not in using
            using.add(number)
            await connection.fetchval("SELECT pg_sleep(0.01)")
            using.remove(number)

    await asyncio.gather(*(use() for _ in range(20)))


async def test_who_finds_no_free_connection_waits_no_longer_than_said(pool: Pool) -> None:
    async with pool.acquire(), pool.acquire():
        with pytest.raises(TimeoutError):
            async with pool.acquire(timeout=0.05):
                pass
    assert await backend(pool)


async def test_a_connection_lost_while_nobody_used_it_is_replaced(pool: Pool) -> None:
    async with pool.acquire() as one, pool.acquire() as other:
        lost = await other.fetchval("SELECT pg_backend_pid()")
        assert await one.fetchval("SELECT pg_backend_pid()") != lost
    async with pool.acquire() as killer:
        mine = await killer.fetchval("SELECT pg_backend_pid()")
        await killer.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1", lost)
        await killer.fetch("SELECT pg_sleep(0.05)")
        others = await asyncio.gather(*(backend(pool) for _ in range(3)))
    assert mine not in others
    assert lost not in others


@pytest.mark.parametrize("end", ["error", "cancelled"])
async def test_the_next_user_is_not_troubled_by_how_the_last_one_ended(pool: Pool, end: str) -> None:
    async def use() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT 1/0" if end == "error" else "SELECT pg_sleep(30)")

    users = [asyncio.create_task(use()) for _ in range(SIZE)]
    await asyncio.wait(users, timeout=0.2)
    for user in users:
        user.cancel()
    ends = await asyncio.gather(*users, return_exceptions=True)
    wanted = asyncpg.DivisionByZeroError if end == "error" else asyncio.CancelledError
    assert all(isinstance(each, wanted) for each in ends)
    async with pool.acquire() as one, pool.acquire() as other:
        for connection in (one, other):
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT 1") == 1
