"""Reading a workflow through gateway, gRPC and PostgreSQL, beside a bare FastAPI endpoint on the same machine."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.bench.client import Api, Connection

CONNECTIONS = 32
_BARE = """
import socket, uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/thing")
async def thing() -> dict[str, object]:
    return {"id": "x", "name": "thing", "ok": True}


listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
server = uvicorn.Server(uvicorn.Config(app, loop="uvloop", log_level="warning", access_log=False))
server.run(sockets=[listening])
"""


@dataclass(frozen=True)
class Window:
    """Requests of one stretch of load."""

    rate: float
    """Per second."""
    seconds: list[float]
    """Of each, from its first byte to its answer's last."""


async def compare(api: Api, workflow_id: str, *, windows: int, seconds: float) -> tuple[list[Window], list[Window]]:
    """Windows of the bare endpoint and of the workflow, by turns, so that both see the same machine."""
    bare, read = [], []
    async with _bare_endpoint() as url:
        for _ in range(windows + 1):
            bare.append(await _load(lambda: Connection(url), "/thing", seconds))
            read.append(await _load(api.connection, f"/api/v1/workflows/{workflow_id}", seconds))
    # The first of each has warmed up.
    return bare[1:], read[1:]


async def _load(connect: Callable[[], Connection], path: str, seconds: float) -> Window:
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        async with connect() as connection:
            while (started := time.perf_counter()) < end:
                status, _ = await connection.request("GET", path)
                if status != 200:
                    raise RuntimeError(f"GET {path}: {status}")
                took.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return Window(len(took) / seconds, took)


@asynccontextmanager
async def _bare_endpoint() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _BARE, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        yield url
    finally:
        process.terminate()
        await process.wait()
