"""DBOS on the same machine in the same run: its own environment from PyPI, the stack's PostgreSQL, the same loads."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from deploy.local.databases import url_with
from tests.bench.client import Connection

VERSION = "3.4.0"
_APP = Path(__file__).with_name("dbos_app.py")
_START_SECONDS = 60.0


class Peer:
    """A running DBOS application."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def alone(self, path: str, runs: int) -> list[float]:
        """Seconds of each of so many runs, one after another."""
        took = []
        async with Connection(self._url) as connection:
            for _ in range(runs):
                started = time.perf_counter()
                await _run(connection, path)
                took.append(time.perf_counter() - started)
        return took

    async def together(self, path: str, *, callers: int, seconds: float, windows: int) -> list[float]:
        """Runs finished per second in each window; each caller starts a run when its last has ended."""
        finished: list[float] = []
        began = time.perf_counter()

        async def caller() -> None:
            async with Connection(self._url) as connection:
                while time.perf_counter() < began + seconds:
                    await _run(connection, path)
                    finished.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(callers)))
        width = seconds / windows
        return [sum(index * width <= at < (index + 1) * width for at in finished) / width for index in range(windows)]


async def _run(connection: Connection, path: str) -> None:
    status, answer = await connection.request("POST", path)
    if status != 200:
        raise RuntimeError(f"DBOS answered {status} {answer}")


@asynccontextmanager
async def running_peer(admin_dsn: str, folder: Path) -> AsyncIterator[Peer]:
    """Install DBOS, start it on a database of its own, stop it in the end."""
    python = await _environment(folder)
    admin = await asyncpg.connect(admin_dsn)
    try:
        await admin.execute("CREATE DATABASE dbos_bench")
    finally:
        await admin.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = url_with(admin_dsn, database="dbos_bench")
    with (folder / "dbos.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(python), str(_APP), url, str(port), stdout=log, stderr=log, env=_without_headrace()
        )
        try:
            await _answers(port, process, folder / "dbos.log")
            yield Peer(f"http://127.0.0.1:{port}")
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _environment(folder: Path) -> Path:
    python = folder / "dbos-venv" / "bin" / "python"
    wanted = f"dbos=={VERSION}"
    for command in (
        (sys.executable, "-m", "venv", str(folder / "dbos-venv")),
        (str(python), "-m", "pip", "install", "-qq", wanted, "fastapi", "uvicorn", "uvloop", "httptools"),
    ):
        process = await asyncio.create_subprocess_exec(*command)
        if await process.wait() != 0:
            raise RuntimeError(f"{' '.join(command)} failed")
    return python


def _without_headrace() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "PYTHONPATH"))}


async def _answers(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.perf_counter() + _START_SECONDS
    while process.returncode is None and time.perf_counter() < deadline:
        try:
            async with Connection(f"http://127.0.0.1:{port}") as connection:
                await _run(connection, "/chain")
                return
        except OSError:
            await asyncio.sleep(0.1)
    said = await asyncio.to_thread(log.read_text)
    raise RuntimeError(f"DBOS did not start:\n{said[-3000:]}")
