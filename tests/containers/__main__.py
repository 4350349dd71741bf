"""`make docker-check`: do the images build, is in them what should be, does the stack keep its promises?

Needs no registry: what is pulled elsewhere is made here (images.py). Needs root and Debian where Docker or debootstrap
are missing, for they are then installed. Removes what it made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import docker

from deploy.docker.secrets import make_files
from deploy.local.admin import register_admin
from tests.containers import images
from tests.containers.commands import CheckError, Commands, step
from tests.containers.engine import compose_program, install, running_engine
from tests.containers.flow import flow_and_kill
from tests.containers.stack import ComposeStack, check_locked, check_reach

_ROOT = Path(__file__).resolve().parent.parent.parent
_INTEGRATION_TEST = "tests/integration/executor/test_sweeper.py"


def check(given: argparse.Namespace, folder: Path) -> None:
    """Run the whole check in a folder."""
    commands = Commands(folder / "check.log")
    commands.log.unlink(missing_ok=True)
    install(commands, images.TOOLS)
    with running_engine(commands, folder / "engine") as client:
        print(f"Docker {client.version()['Version']}, seed {given.seed}", flush=True)
        try:
            _check(given, folder, client, commands)
        finally:
            if not given.keep_images:
                _remove_images(client)


def _check(given: argparse.Namespace, folder: Path, client: docker.DockerClient, commands: Commands) -> None:
    repository, records, secrets = folder / "clone", folder / "records", folder / "secrets"
    shutil.rmtree(records, ignore_errors=True)
    records.mkdir()
    make_files(secrets)
    port = _free_port()
    revision = images.clone(commands, _ROOT, repository)
    commands.environ.update(
        DOCKER_BUILDKIT="1",
        # Compose builds by itself: its other way needs one more plugin.
        COMPOSE_BAKE="false",
        HEADRACE_BASE_IMAGE=images.BASE,
        HEADRACE_VERSION=images.TAG,
        HEADRACE_REVISION=revision,
        HEADRACE_POSTGRES_IMAGE=images.SERVERS["postgres"],
        HEADRACE_NATS_IMAGE=images.SERVERS["nats"],
        HEADRACE_SECRETS=str(secrets),
        HEADRACE_PUBLISH=f"127.0.0.1:{port}",
        HEADRACE_EGRESS_ALLOW="ledger:8000,sample:8000",
        HEADRACE_CHECK_RECORDS=str(records),
    )
    stack = ComposeStack(client, commands, compose_program(commands, folder), repository, port=port)
    _build(client, commands, stack, repository, folder)
    with step("What is in the images"):
        _look_into_images(client, revision)
    with step("An integration test with servers in containers"):
        _run_integration_test(commands, repository)
    try:
        asyncio.run(_run(given, stack, records, admin_url=(secrets / "HEADRACE_POSTGRES_URL").read_text()))
    finally:
        with step("Down"):
            stack.down()


def _build(
    client: docker.DockerClient, commands: Commands, stack: ComposeStack, repository: Path, folder: Path
) -> None:
    with step("The base: Debian with Python"):
        images.make_base(client, commands, folder)
    with step("Wheels"):
        images.download_wheels(commands, repository, folder / "wheels")
        images.take_busybox(commands, repository, folder)
    with images.served_wheels(folder / "wheels", folder) as configuration:
        commands.environ["HEADRACE_PIP_CONF"] = str(configuration)
        for service in ("postgres", "nats", "ledger", "prepare", *images.SERVICES):
            with step(f"Image of {service}"):
                stack.compose("build", service)


def _look_into_images(client: docker.DockerClient, revision: str) -> None:
    for service in (*images.SERVICES, "prepare"):
        image = images.check_image(client, service, revision=revision)
        print(f"  {service:<20} {image.attrs['Size'] / 10**6:6.0f} MB", flush=True)
    print(f"  {'of that, the base':<20} {client.images.get(images.BASE).attrs['Size'] / 10**6:6.0f} MB")


def _run_integration_test(commands: Commands, repository: Path) -> None:
    said = commands.run(
        *(sys.executable, "-m", "pytest", "-q", "-n0", _INTEGRATION_TEST),
        cwd=repository,
        environ={
            "HEADRACE_TEST_BACKEND": "containers",
            "PYTHONPATH": f"{repository}:{repository / 'gen'}",
            # Its image is not here; what it would do, the test session's own end does.
            "TESTCONTAINERS_RYUK_DISABLED": "true",
        },
    )
    print(f"  {said.splitlines()[-1]}")


async def _run(given: argparse.Namespace, stack: ComposeStack, records: Path, *, admin_url: str) -> None:
    with step("Up, until all is healthy"):
        await stack.up()
    for container in stack.containers():
        service = container.labels["com.docker.compose.service"]
        if service != "ledger":
            check_locked(container, published=service == "gateway")
    check_reach((await stack.healthy_workers())[0], database=stack.address("postgres"))
    await register_admin(stack.gateway_url, **stack.admin)
    with step("Runs while workers are added and killed"):
        await flow_and_kill(stack, records, admin_url, runs=given.runs, kills=given.kills, seed=given.seed)
    with step("The sample"):
        said = stack.compose("--profile", "sample", "run", "--rm", "--no-deps", "--use-aliases", "sample")
        print("\n".join(f"  {line}" for line in said.splitlines() if line.startswith(("Question:", "Answer:"))))
    with step("Up once more, with nothing to do"):
        await stack.up()
    with step("Stop: every service within its time"):
        stack.compose("stop")
    for container in stack.containers():
        status = container.attrs["State"]["ExitCode"]
        if status and container.labels["com.docker.compose.service"] != "ledger":
            raise CheckError(f"{container.name} ended with {status} after SIGTERM:\n{container.logs(tail=30).decode()}")


def _remove_images(client: docker.DockerClient) -> None:
    for name in (*images.service_images(), *images.SERVERS.values(), images.CLIENT, images.BASE):
        if client.images.list(name=name):
            client.images.remove(name, force=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make docker-check", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="accepted runs, at least")
    parser.add_argument("--kills", type=int, default=8, help="workers killed meanwhile")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="work in this folder and keep it: the next check is quicker")
    parser.add_argument("--keep-images", action="store_true", help="leave the images in the engine that runs")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-docker-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        try:
            check(given, folder.resolve())
        except CheckError as error:
            sys.exit(f"\n{error}")
    print(f"All as it should be, after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("The check makes a base system and may start an engine: run it as root.")
    main()
