"""PostgreSQL and NATS of one stack: the embedded servers, or those that are given by URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.local import databases
from deploy.local.home import Home
from deploy.local.nats import Nats
from deploy.local.ports import Ports
from deploy.local.postgres import Postgres
from deploy.local.secrets import Secrets
from deploy.local.supervisor import Supervisor


@dataclass(frozen=True, kw_only=True)
class GivenBackends:
    """Servers that take the place of the embedded ones."""

    postgres_url: str | None = field(default=None, repr=False)
    """An administrator's URL."""
    nats_url: str | None = field(default=None, repr=False)


class Backends:
    """The two servers. Their URLs are known at once, and answer after `start`."""

    def __init__(self, home: Home, secrets: Secrets, ports: Ports, given: GivenBackends) -> None:
        self._secrets = secrets
        self._given = given
        self._postgres: Postgres | None = None
        self._nats: Nats | None = None
        self.postgres_url = given.postgres_url or ""
        """The administrator's URL."""
        self.nats_urls = dict.fromkeys(("executor", "worker"), given.nats_url or "")
        """The URL for each of the two users."""
        if not given.postgres_url:
            self._postgres = Postgres(
                home.path / "postgres", password=secrets["postgres_password"], log=home.log("postgres-0")
            )
            self.postgres_url = self._postgres.admin_url
        if not given.nats_url:
            self._nats = Nats(
                home.path / "nats",
                port=ports.of("nats"),
                executor_password=secrets["nats_executor_password"],
                worker_password=secrets["nats_worker_password"],
                log=home.log("nats-0"),
            )
            self.nats_urls = {user: self._nats.url(user) for user in self.nats_urls}

    async def start(self, supervisor: Supervisor, env: Mapping[str, str], notice: Callable[[str], None]) -> None:
        """Have the supervisor keep both servers, and make databases and roles once they answer."""
        if self._nats is not None:
            supervisor.keep([self._nats.program(env)])
        if self._postgres is not None:
            await self._postgres.prepare(env, notice)
            supervisor.keep([self._postgres.program(env)])
        await supervisor.wait_ready("nats", "postgres")
        roles = {
            databases.role_of(service): self._secrets[f"postgres_{service}_password"]
            for service in databases.STATEFUL_SERVICES
        }
        await databases.prepare_database(self.postgres_url, roles)

    def close(self) -> None:
        """Remove what lies outside the home; call after the servers have stopped."""
        if self._postgres is not None:
            self._postgres.remove_sockets()

    @property
    def given_entries(self) -> list[dict[str, Any]]:
        """What stack.json says of servers that are not the launcher's."""
        entries: list[dict[str, Any]] = []
        if url := self._given.postgres_url:
            dsn = databases.url_with(url, database=databases.DATABASE)
            entries.append({"service": "postgres", "replica": 0, "pid": None, "dsn": dsn})
        if url := self._given.nats_url:
            entries.append({"service": "nats", "replica": 0, "pid": None, "url": url})
        return entries
