"""How each service of Headrace is run on one machine: its module, addresses, secrets and health check."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import databases, model_files
from deploy.local.health import GrpcHealth, HttpReadiness
from deploy.local.home import Home
from deploy.local.leftovers import marked
from deploy.local.ports import Ports
from deploy.local.processes import Program
from deploy.local.secrets import Secrets

_ROOT = Path(__file__).resolve().parent.parent.parent

SERVICES = ("auth", "workflows", "executor", "llm", "vector", "gateway", "worker")
"""The processes that are Headrace's own, and may have replicas."""
NEED_NO_BACKEND = ("llm",)
"""Services that may start before PostgreSQL and NATS; this one takes longest."""
_MODULES = {name: f"services.{name}.main" for name in SERVICES} | {"worker": "services.executor.worker.main"}
_TARGETS = ("auth", "workflows", "executor", "llm", "vector")
"""The services that others call by gRPC."""
_NOT_FOR_SERVICES = {
    "HEADRACE_POSTGRES_URL",  # an administrator's
    "HEADRACE_NATS_URL",  # for those who need it, below
    "HEADRACE_INTERNAL_KEY",
    "HEADRACE_AUTH_SIGNING_KEY",
    "HEADRACE_AUTH_PEPPER",
    "HEADRACE_AUTH_CREDENTIAL_KEY",
}


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What the services' environments are made of."""

    home: Home
    secrets: Secrets
    ports: Ports
    replicas: Mapping[str, int]
    """Service -> how many; 1 where absent."""
    gateway_port: int | None
    """The first gateway's port where the user fixed it."""
    postgres_url: str
    """The administrator's URL."""
    nats_urls: Mapping[str, str]
    """The URL for `executor` and for `worker`."""
    environ: Mapping[str, str] = field(repr=False)
    """The launcher's own environment; what it says of HEADRACE_* reaches the services."""

    def address(self, service: str, replica: int) -> str:
        if service == "gateway" and replica == 0 and self.gateway_port is not None:
            return f"127.0.0.1:{self.gateway_port}"
        return f"127.0.0.1:{self.ports.of(f'{service}-{replica}')}"

    def count(self, service: str) -> int:
        return self.replicas.get(service, 1)

    def database_url(self, service: str) -> str:
        """The URL of a service's database with its own role."""
        return databases.url_with(
            self.postgres_url,
            database=databases.DATABASE,
            user=databases.role_of(service),
            password=self.secrets[f"postgres_{service}_password"],
        )

    @property
    def receiver_port(self) -> int:
        """Where the sample's receiver listens; the one private address that workers may always reach."""
        return self.ports.of("sample-receiver")


def base_environment(environ: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return what every process of the stack gets."""
    paths = [str(_ROOT), str(_ROOT / "gen"), environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in environ.items() if name not in _NOT_FOR_SERVICES}
    return marked(
        kept
        | {
            "HEADRACE_HOME": str(home.path),
            # The services of this checkout, installed or not.
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        },
        home.path,
    )


def service_programs(wiring: Wiring, names: Iterable[str]) -> list[Program]:
    """Return these services with their replicas."""
    return [_program(wiring, service, replica) for service in names for replica in range(wiring.count(service))]


def migration_programs(wiring: Wiring, names: Iterable[str]) -> list[Program]:
    """Return the programs that bring these services' schemas up to date; they may run at the same time."""
    return [
        Program(
            service=f"{service}-migrate",
            argv=(sys.executable, "-m", _MODULES[service], "migrate"),
            env=_environment(wiring, service, 0),
            log=wiring.home.log(f"{service}-migrate"),
        )
        for service in names
    ]


def _program(wiring: Wiring, service: str, replica: int) -> Program:
    address = wiring.address(service, replica)
    is_gateway = service == "gateway"
    return Program(
        service=service,
        replica=replica,
        argv=(sys.executable, "-m", _MODULES[service]),
        env=_environment(wiring, service, replica),
        log=wiring.home.log(f"{service}-{replica}"),
        probe=HttpReadiness(address) if is_gateway else GrpcHealth(address),
        facts={"listen": address, "metrics": f"http://{_metrics(wiring, service, replica)}/metrics"},
    )


def _metrics(wiring: Wiring, service: str, replica: int) -> str:
    return f"127.0.0.1:{wiring.ports.of(f'{service}-{replica}-metrics')}"


def _environment(wiring: Wiring, service: str, replica: int) -> dict[str, str]:
    """Return the environment of one process: what its service needs and no other service's secrets."""
    prefix = f"HEADRACE_{service.upper()}"
    env = base_environment(wiring.environ, wiring.home)
    env |= {
        f"{prefix}_LISTEN": wiring.address(service, replica),
        f"{prefix}_METRICS_LISTEN": _metrics(wiring, service, replica),
    }
    for target in _TARGETS:
        addresses = ",".join(wiring.address(target, number) for number in range(wiring.count(target)))
        env[f"HEADRACE_{target.upper()}_TARGET"] = f"ipv4:{addresses}"
    if service in databases.STATEFUL_SERVICES:
        env[f"{prefix}_POSTGRES_URL"] = wiring.database_url(service)
    if service in wiring.nats_urls:
        env["HEADRACE_NATS_URL"] = wiring.nats_urls[service]
    if service != "worker":
        env["HEADRACE_INTERNAL_KEY"] = wiring.secrets["internal_key"]
    return env | _particulars(wiring, service)


def _particulars(wiring: Wiring, service: str) -> dict[str, str]:
    """Return what only this service needs."""
    if service == "auth":
        return {
            "HEADRACE_AUTH_SIGNING_KEY": wiring.secrets["auth_signing_key"],
            "HEADRACE_AUTH_PEPPER": wiring.secrets["auth_pepper"],
            "HEADRACE_AUTH_CREDENTIAL_KEY": wiring.secrets["auth_credential_key"],
        }
    if service == "worker":
        allowed = [wiring.environ.get("HEADRACE_EGRESS_ALLOW", ""), f"127.0.0.1:{wiring.receiver_port}"]
        return {"HEADRACE_EGRESS_ALLOW": ",".join(entry for entry in allowed if entry)}
    if service == "vector":
        return {"HEADRACE_VECTOR_INDEX_DIR": str(wiring.home.path / "vector")} | _threads(wiring)
    if service == "llm":
        return _models(wiring) | _threads(wiring)
    return {}


def _models(wiring: Wiring) -> dict[str, str]:
    """Return where the default models lie, unless the user names models of their own; never ask the hub by itself."""
    offline = {"HF_HUB_OFFLINE": wiring.environ.get("HF_HUB_OFFLINE", "1")}
    if wiring.environ.get("HEADRACE_LLM_MODELS") or wiring.environ.get("HEADRACE_LLM_MODELS_FILE"):
        return offline
    return offline | {
        "HEADRACE_LLM_DEFAULT_GGUF": str(model_files.language_model()),
        "HEADRACE_LLM_DEFAULT_EMBEDDING_DIR": str(model_files.embedding_model()),
    }


def _threads(wiring: Wiring) -> dict[str, str]:
    """Let OpenMP use the cores without spinning on them, which other processes need."""
    wanted = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: wiring.environ.get(name, value) for name, value in wanted.items()}
