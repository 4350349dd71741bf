"""The stack of compose.yaml while it is checked: its containers, its gateway, its workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from tests.containers.commands import CheckError, Commands
from tests.support.waiting import await_until

PROJECT = "headrace-check"
_LONGEST_START = 300.0
_FILES = ("deploy/docker/compose.yaml", "tests/containers/compose.check.yaml")


class ComposeStack:
    """One stack; offers of `LocalStack` what a load needs."""

    def __init__(
        self, client: docker.DockerClient, commands: Commands, program: Sequence[str], repository: Path, *, port: int
    ) -> None:
        """Describe the stack; `repository` holds the files, the gateway will be at `port` of loopback."""
        self.state: dict[str, Any] = {"processes": [{"service": "gateway", "listen": f"127.0.0.1:{port}"}]}
        self.admin = {"email": "admin@example.com", "password": os.urandom(16).hex()}
        self.gateway_url = f"http://127.0.0.1:{port}"
        self._client = client
        self._commands = commands
        files = [part for name in _FILES for part in ("--file", str(repository / name))]
        self._compose = [*program, "--project-name", PROJECT, *files]

    def compose(self, *arguments: str) -> str:
        """Run Compose; returns what it printed."""
        environ = {"HEADRACE_CHECK_EMAIL": self.admin["email"], "HEADRACE_CHECK_PASSWORD": self.admin["password"]}
        return self._commands.run(*self._compose, *arguments, environ=environ)

    async def up(self) -> None:
        """Start everything, and wait until it is healthy."""
        self.compose("up", "--detach", "--no-build")
        await await_until(lambda: all(is_well(each) for each in self.containers()), within=_LONGEST_START)

    async def scale(self, workers: int) -> None:
        """Have so many workers that are healthy; those that are down are started again."""
        options = ("--detach", "--no-build", "--no-recreate", "--no-deps", "--scale", f"worker={workers}")
        await asyncio.to_thread(self.compose, "up", *options, "worker")

        async def are_there() -> bool:
            return len(await self.healthy_workers()) == workers

        await await_until(are_there, within=_LONGEST_START)

    def containers(self, service: str | None = None) -> list[Container]:
        """All containers, or those of a service, running or not."""
        labels = [f"com.docker.compose.project={PROJECT}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        return list(self._client.containers.list(all=True, filters={"label": labels}))

    async def healthy_workers(self) -> list[Container]:
        """Workers that take jobs."""
        workers = await asyncio.to_thread(self.containers, "worker")
        return [each for each in workers if each.attrs["State"]["Running"] and is_well(each)]

    def address(self, service: str) -> str:
        """The address of a service's first container, for this machine."""
        networks = self.containers(service)[0].attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    async def crash(self, worker: Container) -> None:
        """Kill a worker's process; the engine starts the container again by its restart policy."""
        restarts = worker.attrs["RestartCount"]
        os.kill(worker.attrs["State"]["Pid"], signal.SIGKILL)

        async def is_back() -> bool:
            await asyncio.to_thread(worker.reload)
            return worker.attrs["RestartCount"] > restarts and worker.attrs["State"]["Running"]

        await await_until(is_back, within=60)

    def down(self) -> None:
        """Remove the containers, the networks, the volumes."""
        with contextlib.suppress(CheckError):
            self.compose("logs", "--no-color", "--timestamps")
        self.compose("--profile", "sample", "down", "--volumes", "--remove-orphans", "--timeout", "45")


def is_well(container: Container) -> bool:
    """Whether it is healthy, or has done its work. Raises CheckError for one that has failed."""
    state = container.attrs["State"]
    if state["Status"] == "exited" and state["ExitCode"] != 0:
        raise CheckError(f"{container.name} ended with {state['ExitCode']}:\n{container.logs(tail=30).decode()}")
    if "Health" in state:
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")
    # The ledger has no health check, and shows itself by what it records.
    return state["Status"] == "exited" or container.labels["com.docker.compose.service"] == "ledger"


def check_locked(container: Container, *, published: bool) -> None:
    """Look at how a container runs. Raises CheckError for what should not be so."""
    host = container.attrs["HostConfig"]
    found = []
    if not host["ReadonlyRootfs"] or host["CapDrop"] != ["ALL"] or host["CapAdd"] or host["Privileged"]:
        found.append("its file system or its rights are not locked")
    if "no-new-privileges:true" not in host["SecurityOpt"]:
        found.append("it may get new privileges")
    if not host["Memory"] or not host["PidsLimit"]:
        found.append("it has no limit of memory or processes")
    if container.attrs["Config"]["User"] in ("", "0", "root"):
        found.append("it runs as root")
    if bool(host["PortBindings"]) is not published:
        found.append(f"its ports are {host['PortBindings']}")
    if found:
        raise CheckError(f"{container.name}: {'; '.join(found)}")


def check_reach(worker: Container, *, database: str) -> None:
    """Try from a worker to get to PostgreSQL, by name and by address. Raises CheckError if that is possible."""
    for host in ("postgres", database):
        attempt = f"import socket; socket.create_connection(({host!r}, 5432), 3)"
        if worker.exec_run(["python3", "-c", attempt]).exit_code == 0:
            raise CheckError(f"{worker.name} reaches PostgreSQL at {host}")
    attempt = "import socket; socket.create_connection(('executor', 50051), 3)"
    if worker.exec_run(["python3", "-c", attempt]).exit_code != 0:
        raise CheckError(f"{worker.name} does not reach the executor: the check of its networks shows nothing")
