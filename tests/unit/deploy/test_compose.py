"""compose.yaml: every container is locked, limited and watched, and is told only what it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.docker.secrets import make_files
from services.executor.worker.settings import Settings as WorkerSettings
from services.gateway.settings import Settings as GatewaySettings
from services.kit.settings import SECRETS_DIR
from services.llm.settings import LlmSettings
from tools.configuration import SECTIONS, variables

_ROOT = Path(__file__).resolve().parent.parent.parent.parent
_COMPOSE = yaml.safe_load((_ROOT / "deploy/docker/compose.yaml").read_text())
_DOCKERFILE = (_ROOT / "deploy/docker/Dockerfile").read_text()
_ALL: dict[str, dict[str, Any]] = _COMPOSE["services"]
_ONCE = {"prepare", "migrate-auth", "migrate-workflows", "migrate-executor", "migrate-vector"}
_SERVERS = {"postgres", "nats"}
_STATEFUL = {"auth", "workflows", "executor", "vector"}
_OWN = sorted(_ALL.keys() - _SERVERS)
# Of containers and libraries: no settings of a service.
_OTHER_VARIABLES = {SECRETS_DIR, "HEADRACE_SERVICE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY"}
_ADMINISTRATOR = {"postgres_password", "HEADRACE_POSTGRES_URL"}


def secrets_of(service: str) -> dict[str, str]:
    """File in the container -> secret."""
    given = _ALL[service].get("secrets", [])
    return {
        (each if isinstance(each, str) else each["target"]): (each if isinstance(each, str) else each["source"])
        for each in given
    }


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("name", _ALL)
def test_no_container_can_write_gain_rights_or_grow_without_end(name: str) -> None:
    service = _ALL[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] in {"10001:10001", "postgres"}
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}


@pytest.mark.parametrize("name", sorted(_ALL.keys() - _ONCE))
def test_every_service_starts_again_and_has_a_health_check(name: str) -> None:
    assert _ALL[name]["restart"] == "unless-stopped"
    # Ours is in the image.
    assert "healthcheck" in _ALL[name] if name in _SERVERS else "HEALTHCHECK" in _DOCKERFILE


def test_only_the_gateway_can_be_reached_from_outside() -> None:
    assert [name for name, service in _ALL.items() if "ports" in service] == ["gateway"]
    assert [name for name, network in _COMPOSE["networks"].items() if not network.get("internal")] == [
        "front",
        "outside",
    ]
    assert [name for name, service in _ALL.items() if "front" in service["networks"]] == ["gateway"]


def test_only_what_keeps_state_shares_a_network_with_the_database() -> None:
    assert {name for name, service in _ALL.items() if "database" in service["networks"]} == _STATEFUL | _ONCE | {
        "postgres"
    }
    assert {name for name, service in _ALL.items() if "bus" in service["networks"]} == {"nats", "executor", "worker"}


def test_only_the_preparation_has_the_administrators_password() -> None:
    having = {name for name in _ALL if _ADMINISTRATOR & set(secrets_of(name).values())}
    assert having == {"postgres", "prepare"}


def test_a_worker_has_no_secret_but_its_own_way_into_nats() -> None:
    assert secrets_of("worker") == {"HEADRACE_NATS_URL": "worker_nats_url"}


@pytest.mark.parametrize("name", sorted(_STATEFUL))
def test_a_service_and_its_migration_have_their_own_database_role_and_no_other(name: str) -> None:
    own = f"HEADRACE_{name.upper()}_POSTGRES_URL"
    assert [file for file in secrets_of(name) if file.endswith("_POSTGRES_URL")] == [own]
    assert secrets_of(f"migrate-{name}") == {own: own}


def test_secrets_stand_in_no_environment() -> None:
    named = {variable for service in _ALL.values() for variable in service.get("environment", {})}
    assert not named & {variable for variable, field in settings().items() if "SecretStr" in str(field.annotation)} - {
        "HEADRACE_LLM_MODELS"  # from the user's environment, where it may be; a file of that name is as good
    }


def test_every_variable_and_secret_file_is_a_setting() -> None:
    known = settings().keys() | _OTHER_VARIABLES
    for name in _OWN:
        environment = _ALL[name].get("environment", {})
        assert environment.keys() <= known, name
        assert set(secrets_of(name)) - {"HEADRACE_POSTGRES_URL"} <= known, name
    in_images = set(re.findall(r"\b(HEADRACE_\w+|HF_HOME)=", _DOCKERFILE))
    assert in_images
    assert in_images <= known


def test_every_service_listens_where_others_look_for_it() -> None:
    for name in (*_STATEFUL, "llm"):
        assert f"HEADRACE_{name.upper()}_LISTEN=0.0.0.0:50051" in _DOCKERFILE
        assert _ALL["gateway"]["environment"][f"HEADRACE_{name.upper()}_TARGET"] == f"dns:///{name}:50051"


def test_every_secret_is_a_file_that_the_command_makes_and_that_containers_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make_files(folder)
    declared = {name for name, secret in _COMPOSE["secrets"].items() if name != "pip_conf"}
    for name in declared:
        assert _COMPOSE["secrets"][name]["file"] == f"${{HEADRACE_SECRETS:-./.secrets}}/{name}"
        assert (folder / name).stat().st_mode & 0o777 == 0o444
    assert {file.name for file in folder.iterdir()} == declared | {"secrets.json"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_second_call_keeps_the_secrets_and_brings_back_a_lost_file(tmp_path: Path) -> None:
    make_files(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "nats.conf").unlink()
    make_files(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_service_gets_longer_to_stop_than_it_takes() -> None:
    longest = {
        "gateway": GatewaySettings().stop_timeout_seconds + 5,
        "worker": WorkerSettings(listen="").drain_seconds + 15,
        "llm": LlmSettings(listen="").stop_seconds + 10,
        "executor": 25,
        "vector": 30,
        "auth": 15,
        "workflows": 15,
    }
    for name, stop in longest.items():
        assert seconds(_ALL[name]["stop_grace_period"]) > stop, name


def test_the_version_is_the_projects() -> None:
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = [_ALL[name]["image"] for name in _OWN]
    assert all(image.endswith(f":${{HEADRACE_VERSION:-{version}}}") for image in images)


def settings() -> dict[str, Any]:
    """Variable -> field, of all services."""
    return {variable: field for _, classes in SECTIONS for kind in classes for variable, field in variables(kind)}
