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
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local import services
from deploy.local.backends import Backends, GivenBackends
from deploy.local.files import write_private
from deploy.local.home import Home
from deploy.local.leftovers import stop_leftovers
from deploy.local.ports import Ports
from deploy.local.secrets import Secrets
from deploy.local.supervisor import Supervisor

READY_FILE = "backends.json"
USERS_FILE = "users"


async def main(folder: Path) -> None:
    """Serve until nobody uses the servers any more, or until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    backend = os.environ.get("HEADRACE_TEST_BACKEND", "embedded")
    async with _containers() if backend == "containers" else embedded_servers(folder) as ready:
        write_private(folder / READY_FILE, json.dumps(ready))
        await _until_unused(folder / USERS_FILE, stop)
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def embedded_servers(folder: Path) -> AsyncIterator[dict[str, object]]:
    """Run the servers from the wheels, supervised as in the local stack; yields their URLs and process ids."""
    with contextlib.closing(Home(folder)) as home:
        stop_leftovers(home.path)
        secrets = Secrets(home.path / "secrets.json", has_data=(home.path / "postgres" / "data").exists())
        ports = Ports(home.path / "ports.json")
        supervisor = Supervisor(lambda _: None)
        backends = Backends(home, secrets, ports, GivenBackends())
        try:
            await backends.start(supervisor, services.base_environment(os.environ, home), print)
            yield {
                "postgres_url": backends.postgres_url,
                "nats_urls": backends.nats_urls,
                "pids": {process.program.service: process.pid for process in supervisor.processes},
            }
        finally:
            await supervisor.stop()
            backends.close()
            ports.close()


@asynccontextmanager
async def _containers() -> AsyncIterator[dict[str, object]]:
    """Run the servers in containers; NATS there has no users, so both URLs are one."""
    from testcontainers.nats import NatsContainer  # noqa: PLC0415 - needs Docker
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - needs Docker

    with PostgresContainer("postgres:18", driver=None) as postgres, NatsContainer("nats:2", jetstream=True) as nats:
        nats_url = nats.nats_uri()
        urls = {"executor": nats_url, "worker": nats_url}
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
