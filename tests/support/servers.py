"""PostgreSQL and NATS from the wheels, kept by a supervisor in the calling process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local import services
from deploy.local.backends import Backends, GivenBackends
from deploy.local.home import Home
from deploy.local.leftovers import stop_leftovers
from deploy.local.nats import Nats
from deploy.local.ports import Ports
from deploy.local.processes import KeptProcess
from deploy.local.secrets import Secrets
from deploy.local.supervisor import Supervisor


class Servers:
    """The two servers as the local stack runs them."""

    def __init__(self, supervisor: Supervisor, backends: Backends) -> None:
        self.supervisor = supervisor
        self.postgres_url = backends.postgres_url
        """The administrator's."""
        self.nats_urls = backends.nats_urls
        """For `executor` and for `worker`."""

    def process(self, service: str) -> KeptProcess:
        """The process of `postgres` or `nats`."""
        return next(each for each in self.supervisor.processes if each.program.service == service)


@asynccontextmanager
async def embedded_servers(home: Home) -> AsyncIterator[Servers]:
    """Run both servers in a home for the time of the context; whatever an earlier launcher left there is stopped."""
    stop_leftovers(home.path)
    secrets = Secrets(home.path / "secrets.json", has_data=(home.path / "postgres" / "data").exists())
    supervisor = Supervisor(lambda _: None)
    with contextlib.closing(Ports(home.path / "ports.json")) as ports:
        backends = Backends(home, secrets, ports, GivenBackends())
        try:
            await backends.start(supervisor, services.base_environment(os.environ, home), print)
            yield Servers(supervisor, backends)
        finally:
            await supervisor.stop()
            backends.close()


@asynccontextmanager
async def own_nats(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """Run a NATS server for the time of the context, for tests that wipe it; yields the URLs for its users."""
    supervisor = Supervisor(lambda _: None)
    with contextlib.closing(Ports(folder / "ports.json")) as ports:
        server = Nats(
            folder / "nats",
            port=ports.of("nats"),
            executor_password="of-throw-away",
            worker_password="of-throw-away",
            log=folder / "nats.log",
        )
        supervisor.keep([server.program(os.environ)])
        try:
            await supervisor.wait_ready("nats")
            yield {user: server.url(user) for user in ("executor", "worker")}
        finally:
            await supervisor.stop()
