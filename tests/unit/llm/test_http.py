"""Connections to inference servers that are kept, over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.llm.backends.http import open_session, post

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    opened = open_session({}, silence=10)
    yield opened
    await opened.close()


async def ask(session: aiohttp.ClientSession, server: asyncio.Server) -> bytes:
    host, port = server.sockets[0].getsockname()
    async with await post(session, f"http://{host}:{port}/", b"{}") as response:
        return await response.read()


async def test_a_kept_connection_that_the_server_closes_as_it_is_used_again_is_replaced(session):
    requests: list[int] = []
    """Of each connection so far, how many."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        while requests[number] < 2:
            await reader.readuntil(b"{}")
            requests[number] += 1
            if requests[number] == 1:
                writer.write(ANSWER)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        assert [await ask(session, server) for _ in range(3)] == [b"ok"] * 3
    assert requests == [2, 2, 1]


async def test_a_server_that_closes_a_new_connection_has_failed(session):
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(session, server)
    assert connections == 1
