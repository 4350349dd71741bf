"""Keeps PostgreSQL and NATS for one test session, as a process of its own.

`python -m tests.support.backend_host FOLDER` returns when the servers answer; FOLDER/backends.json then says where
they are. Every test process that uses them holds a shared lock on FOLDER/users. The kernel drops it when the process
ends, however it ends; once nobody holds it the host stops the servers, deletes FOLDER and ends. So the servers are
shared by all xdist workers, and nothing is left behind even by a test session that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local.files import write_private
from deploy.local.home import Home
from deploy.local.nats_config import server_config
from tests.support.servers import embedded_servers

READY_FILE = "backends.json"
USERS_FILE = "users"


async def main(folder: Path) -> None:
    """Serve until nobody uses the servers any more, or until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servers = _containers if os.environ.get("HEADRACE_TEST_BACKEND") == "containers" else _embedded
    async with servers(folder) as ready:
        write_private(folder / READY_FILE, json.dumps(ready))
        await _until_unused(folder / USERS_FILE, stop)
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[dict[str, object]]:
    """Run the servers from the wheels; yields their URLs and process ids."""
    with contextlib.closing(Home(folder)) as home:
        async with embedded_servers(home) as servers:
            yield {
                "postgres_url": servers.postgres_url,
                "nats_urls": servers.nats_urls,
                "pids": {process.program.service: process.pid for process in servers.supervisor.processes},
            }


@asynccontextmanager
async def _containers(folder: Path) -> AsyncIterator[dict[str, object]]:
    """Run the servers in containers, NATS with the users it has in the local stack."""
    from testcontainers.nats import NatsContainer  # noqa: PLC0415 - needs Docker
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - needs Docker

    passwords = {"executor": secrets.token_urlsafe(), "worker": secrets.token_urlsafe()}
    config = server_config(listen="0.0.0.0:4222", store_dir="/tmp/jetstream", passwords=passwords)  # noqa: S108 - the container's own
    (folder / "nats.conf").write_text(json.dumps(config))
    with (
        PostgresContainer(os.environ.get("HEADRACE_POSTGRES_IMAGE", "postgres:18-bookworm"), driver=None) as postgres,
        NatsContainer(os.environ.get("HEADRACE_NATS_IMAGE", "nats:2.14-alpine"))
        .with_volume_mapping(folder / "nats.conf", "/etc/headrace.conf")
        .with_command("--config /etc/headrace.conf") as nats,
    ):
        address = nats.nats_uri().removeprefix("nats://")
        urls = {user: f"nats://{user}:{password}@{address}" for user, password in passwords.items()}
        yield {"postgres_url": postgres.get_connection_url(), "nats_urls": urls, "pids": {}}


async def _until_unused(users: Path, stop: asyncio.Event) -> None:
    with users.open("rb") as file:
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), timeout=0.2)


def _detach(folder: Path) -> None:
    """Go on as a child process; the parent ends once the servers answer, or with the child's failure."""
    child = os.fork()
    if child == 0:
        return
    while not (folder / READY_FILE).exists():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            os._exit(os.waitstatus_to_exitcode(status) or 1)
        time.sleep(0.02)
    os._exit(0)


if __name__ == "__main__":
    _detach(Path(sys.argv[1]))
    asyncio.run(main(Path(sys.argv[1])))
