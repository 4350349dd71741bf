"""What the machine can do at all, measured in the same run: PostgreSQL commits, NATS requests, gRPC calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import asyncpg
import nats

Call = Callable[[], Awaitable[object]]


async def _rate(calls: list[Call], seconds: float) -> float:
    """Calls per second with one caller per entry."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller(call: Call) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(caller(call) for call in calls))
    return done / (time.perf_counter() - began)


async def postgres_commits(dsn: str, *, connections: int, seconds: float) -> float:
    """One-row inserts, each its own durable commit, per second."""
    opened = [await asyncpg.connect(dsn) for _ in range(connections)]
    try:
        await opened[0].execute("CREATE SCHEMA IF NOT EXISTS bench")
        await opened[0].execute("CREATE TABLE IF NOT EXISTS bench.floor (id bigint, body text)")

        def insert(connection: asyncpg.Connection) -> Call:  # type: ignore[type-arg]  # rows of any kind
            return lambda: connection.execute("INSERT INTO bench.floor VALUES ($1, $2)", 1, "x" * 100)

        return await _rate([insert(connection) for connection in opened], seconds)
    finally:
        await opened[0].execute("DROP SCHEMA bench CASCADE")
        for connection in opened:
            await connection.close()


async def nats_requests(url: str, *, callers: int, seconds: float) -> float:
    """Request-reply round trips of 200 bytes per second, both ends in this process."""
    server, client = await nats.connect(url), await nats.connect(url)
    try:

        async def answer(message: nats.aio.msg.Msg) -> None:
            await message.respond(message.data)

        await server.subscribe("headrace.bench.echo", cb=answer)
        await server.flush()
        body = b"x" * 200
        return await _rate([lambda: client.request("headrace.bench.echo", body, timeout=5)] * callers, seconds)
    finally:
        await client.close()
        await server.close()
