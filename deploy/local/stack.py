"""The whole local stack: what is started in which order, and what is said of it while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from deploy.local import services
from deploy.local.admin import register_admin
from deploy.local.backends import Backends, GivenBackends
from deploy.local.console import StackConsole
from deploy.local.databases import STATEFUL_SERVICES
from deploy.local.errors import StackError
from deploy.local.health import GrpcHealth, HttpReadiness
from deploy.local.home import Home
from deploy.local.info import StackInfo
from deploy.local.ports import Ports, is_free
from deploy.local.processes import KeptProcess, State, run_to_end
from deploy.local.schemas import services_to_migrate
from deploy.local.secrets import ADMIN_EMAIL, Secrets
from deploy.local.state import write_stack_file
from deploy.local.supervisor import Supervisor, together

START_TIMEOUT = 180.0
"""Seconds until a start that has not failed is given up: several times what a slow machine takes."""
MIGRATION_TIMEOUT = 1000.0
"""Seconds; a revision's statement may take 15 minutes."""


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """What the user chose."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    gateway_port: int | None = None
    given: GivenBackends = field(default_factory=GivenBackends)
    environ: Mapping[str, str] = field(repr=False)
    """The launcher's environment."""


class Stack:
    """One stack in one home. `start` once, then `stop`, which is safe at any moment of the start too."""

    def __init__(self, home: Home, settings: StackSettings, console: StackConsole) -> None:
        self._home = home
        self._settings = settings
        self._console = console
        self._supervisor = Supervisor(self._process_changed)
        self._has_started = False
        self._is_stopping = False
        self._secrets = Secrets(home.path / "secrets.json", has_data=(home.path / "postgres" / "data").exists())
        self._ports = Ports(home.path / "ports.json")
        self._backends = Backends(home, self._secrets, self._ports, settings.given)
        if settings.gateway_port is not None and not is_free(settings.gateway_port):
            self._ports.close()
            raise StackError(
                f"Port {settings.gateway_port} on 127.0.0.1 is taken by another program (or not allowed for you). "
                "Name another one with HEADRACE_GATEWAY_PORT, or leave it unset and a free one is found."
            )

    @property
    def info(self) -> StackInfo:
        """What a program that uses the stack needs."""
        return StackInfo(
            gateway_url=self._gateway_url,
            admin_email=ADMIN_EMAIL,
            admin_password=self._secrets["admin_password"],
            receiver_port=self._ports.of("sample-receiver"),
            console=self._console.rich,
        )

    async def start(self) -> None:
        """Start everything and return when all of it is healthy.

        Raises:
            StackError: something cannot start; what has started runs on until `stop`.
        """
        begun = time.monotonic()
        self._write_state()
        with self._console.starting():
            await self._start_processes()
        secret = self._secrets["admin_password"]
        is_new = await register_admin(self._gateway_url, email=ADMIN_EMAIL, password=secret)
        self._has_started = True
        self._write_state()
        self._console.ready(
            gateway=self._gateway_url,
            email=ADMIN_EMAIL,
            password=secret if is_new else None,
            home=str(self._home.path),
            seconds=time.monotonic() - begun,
        )

    async def stop(self) -> None:
        """Stop everything in order; stack.json then says that nothing runs."""
        self._is_stopping = True
        await self._supervisor.stop()
        self._backends.close()
        for process in self._supervisor.processes:
            if isinstance(process.program.probe, GrpcHealth | HttpReadiness):
                await process.program.probe.close()
        self._supervisor = Supervisor(self._process_changed)
        self._write_state()
        self._ports.close()

    def kill(self) -> None:
        """Kill everything at once; a `stop` under way then ends soon."""
        self._supervisor.kill()

    async def _start_processes(self) -> None:
        """Start PostgreSQL, NATS and what does not need them; then the schemas; then the rest."""
        wiring = self._wiring()
        early = services.NEED_NO_BACKEND
        self._supervisor.keep(services.service_programs(wiring, early))
        with self._step("backends"):
            env = services.base_environment(wiring.environ, self._home)
            async with self._within(START_TIMEOUT):
                await self._backends.start(self._supervisor, env, self._console.say)
        with self._step("schemas"):
            behind = await services_to_migrate({name: wiring.database_url(name) for name in STATEFUL_SERVICES})
            programs = services.migration_programs(wiring, behind)
            await together(run_to_end(program, MIGRATION_TIMEOUT) for program in programs)
        late = [name for name in services.SERVICES if name not in early]
        self._supervisor.keep(services.service_programs(wiring, late))
        async with self._within(START_TIMEOUT):
            await self._supervisor.wait_ready()

    def _wiring(self) -> services.Wiring:
        return services.Wiring(
            home=self._home,
            secrets=self._secrets,
            ports=self._ports,
            replicas=self._settings.replicas,
            gateway_port=self._settings.gateway_port,
            postgres_url=self._backends.postgres_url,
            nats_urls=self._backends.nats_urls,
            environ=self._settings.environ,
        )

    @property
    def _gateway_url(self) -> str:
        return f"http://127.0.0.1:{self._settings.gateway_port or self._ports.of('gateway-0')}"

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self._console.step(name)
        yield
        self._console.step(name, time.monotonic() - begun)

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            waiting = [each.program for each in self._supervisor.processes if not each.is_ready]
            names = ", ".join(f"{program.name} ({program.log})" for program in waiting)
            raise StackError(f"Not healthy after {seconds:.0f} s: {names}.") from None

    def _process_changed(self, process: KeptProcess) -> None:
        self._write_state()
        if not (self._is_stopping and process.state is not State.STOPPED):
            self._console.process_changed(process)

    def _write_state(self) -> None:
        write_stack_file(
            self._home.stack_file,
            gateway=self._gateway_url,
            ready=self._has_started and not self._is_stopping and self._supervisor.all_services_ready,
            admin={"email": ADMIN_EMAIL, "password": self._secrets["admin_password"]},
            processes=[*self._supervisor.processes, *self._backends.given_entries],
        )
