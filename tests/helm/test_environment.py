"""The environment that each pod gets is one that its service starts with."""

from __future__ import annotations

import base64
import json
import os
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic_settings import BaseSettings

from services.auth.settings import DatabaseSettings
from services.executor.egress import parse_host_ports
from services.kit.settings import CommonSettings, InternalKeySettings
from services.llm.settings import LlmSettings, configured_models
from tests.helm.rendering import CHART, SERVICES, SIZES, Manifest, changed, release
from tools.chart import SET_BY_CHART, SETTINGS
from tools.configuration import SECTIONS

KEY = base64.b64encode(os.urandom(32)).decode()
SIGNING_KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SECRETS = {
    "headrace-postgresql": dict.fromkeys(("auth", "workflows", "executor", "vector"), "postgresql://r:p@postgres/h"),
    "headrace-nats": dict.fromkeys(("executor", "worker"), "nats://u:p@nats:4222"),
    "headrace-keys": {
        **dict.fromkeys(("internal-key", "pepper", "credential-key"), KEY),
        "signing-key": SIGNING_KEY,
    },
}
"""What README.md says is in the given secrets; the two keys of before are left out."""
NOT_OURS = re.compile("OTEL_|OMP_|HF_")
"""Variables of libraries."""


def _classes(service: str) -> list[type[BaseSettings]]:
    sections = dict(SECTIONS)
    common = [CommonSettings] if service == "worker" else [CommonSettings, InternalKeySettings]
    return [*common, *sections[service]]


def _variables(kind: type[BaseSettings]) -> dict[str, str]:
    """Variable -> field."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    return {
        (field.validation_alias if isinstance(field.validation_alias, str) else f"{prefix}{name}").upper(): name
        for name, field in kind.model_fields.items()
    }


def _environment(container: Manifest) -> dict[str, str]:
    """What the kubelet would set; fails where it could not start the container."""
    environment = {}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if reference := source.get("secretKeyRef"):
            content = SECRETS[reference["name"]]
            if reference.get("optional") and reference["key"] not in content:
                continue
            environment[each["name"]] = content[reference["key"]]
        elif source:
            assert source == {"resourceFieldRef": {"resource": "limits.cpu"}}
        else:
            assert isinstance(each["value"], str)
            environment[each["name"]] = each["value"]
    return environment


@pytest.fixture
def no_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("HEADRACE_", "OTEL_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_its_settings_from_what_its_pod_gets(size, service, no_environment, tmp_path):
    for name, value in _environment(release(size).container(service)).items():
        no_environment.setenv(name, value)
    if "HEADRACE_LLM_MODELS_FILE" in os.environ:
        models = tmp_path / "models.json"
        models.write_text(release(size).one("ConfigMap", "models")["data"]["models.json"])
        no_environment.setenv("HEADRACE_LLM_MODELS_FILE", str(models))
    for kind in _classes(service):
        kind()


@pytest.mark.parametrize("size", SIZES)
def test_no_pod_gets_a_variable_that_its_service_does_not_know(size):
    for service in SERVICES:
        known = {variable for kind in _classes(service) for variable in _variables(kind)}
        names = [each["name"] for each in release(size).container(service)["env"]]
        assert {name for name in names if not NOT_OURS.match(name)} <= known, service
        assert len(names) == len(set(names)), service


def test_every_setting_is_made_by_the_chart_or_offered_among_the_values():
    schema = json.loads((CHART / "values.schema.json").read_text())
    for service, kind in SETTINGS.items():
        offered = set(schema["$defs"][f"{service}Settings"]["properties"])
        made = {
            name for name in (field.validation_alias or name for name, field in kind.model_fields.items())
        } - offered
        assert made <= SET_BY_CHART
        assert not made & offered


def test_a_setting_among_the_values_reaches_the_service_as_it_was_written(no_environment):
    settings = {"slots": 8, "queues": "default, gpu", "heartbeat_seconds": 0.5, "memory_bytes": 1_500_000_000}
    container = changed({f"services.worker.settings.{name}": value for name, value in settings.items()}).container(
        "worker"
    )
    for name, value in _environment(container).items():
        no_environment.setenv(name, value)
    assert settings.items() <= SETTINGS["worker"]().model_dump().items()


def test_lists_among_the_settings_reach_the_service(no_environment):
    origins = ["https://app.example.com", "https://other.example.com"]
    container = changed({"services.gateway.settings.cors_origins": origins}).container("gateway")
    for name, value in _environment(container).items():
        no_environment.setenv(name, value)
    assert SETTINGS["gateway"]().model_dump()["cors_origins"] == origins


@pytest.mark.parametrize(
    ("service", "kind"),
    [(name, SETTINGS[name]) for name in ("workflows", "executor", "vector")] + [("auth", DatabaseSettings)],
)
def test_a_migration_reads_its_settings_from_what_its_job_gets(service, kind, no_environment):
    (container,) = release("dev").one("Job", f"migrate-{service}")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [f"headrace-{service}", "migrate"]
    environment = _environment(container)
    assert not {name for name in environment if "KEY" in name or "PEPPER" in name or "NATS" in name}
    for name, value in environment.items():
        no_environment.setenv(name, value)
    kind()


def test_a_service_holds_no_secret_of_another():
    held = {}
    for service in SERVICES:
        references = (
            each.get("valueFrom", {}).get("secretKeyRef") for each in release("dev").container(service)["env"]
        )
        held[service] = {f"{each['name']}/{each['key']}" for each in references if each}
    internal = {"headrace-keys/internal-key", "headrace-keys/previous-internal-keys"}
    assert held["worker"] == {"headrace-nats/worker"}
    assert held["gateway"] == held["llm"] == internal
    assert held["workflows"] == internal | {"headrace-postgresql/workflows"}
    assert held["vector"] == internal | {"headrace-postgresql/vector"}
    assert held["executor"] == internal | {"headrace-postgresql/executor", "headrace-nats/executor"}
    assert {each.split("/")[0] for each in held["auth"]} == {"headrace-keys", "headrace-postgresql"}


def test_the_readme_says_how_each_key_of_a_secret_is_made():
    readme = (CHART / "README.md").read_text()
    for service in SERVICES:
        for each in release("ha").container(service)["env"]:
            if reference := each.get("valueFrom", {}).get("secretKeyRef"):
                assert re.search(rf"--from-(literal|file)={reference['key']}=", readme), reference["key"]
                assert reference["name"] in readme


def test_containers_are_started_by_the_commands_that_the_package_has():
    scripts = (CHART.parents[2] / "pyproject.toml").read_text()
    for service in SERVICES:
        (command,) = release("dev").container(service)["command"]
        assert f'{command} = "services.' in scripts
        assert command == f"headrace-{service}"


def test_workers_run_from_the_executors_image_and_every_other_service_from_its_own():
    for service in SERVICES:
        image = release("small").container(service)["image"]
        assert image == f"registry.example.com/headrace/headrace-{service.replace('worker', 'executor')}:0.1.0"


def test_an_image_may_have_a_digest_and_a_name_of_its_own():
    digest = f"sha256:{'0' * 64}"
    image = {"repository": "my-auth", "digest": digest}
    container = changed({"services.auth.image": image, "image.tag": "1.2.3"}, "small").container("auth")
    assert container["image"] == f"registry.example.com/headrace/my-auth@{digest}"


def test_traces_go_where_the_values_say_from_every_pod_and_nowhere_by_default():
    for service in SERVICES:
        container = changed({"tracing.sampleRatio": 1}, "ha").container(service)
        found = {each["name"]: each.get("value") for each in container["env"] if each["name"].startswith("OTEL_")}
        assert found == {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.observability:4317",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "1",
        }
        assert not [each for each in release("dev").container(service)["env"] if each["name"].startswith("OTEL_")]


def test_libraries_that_compute_are_told_how_many_cores_the_pod_has():
    for service in SERVICES:
        sources = {each["name"]: each.get("valueFrom") for each in release("dev").container(service)["env"]}
        wanted = {"resourceFieldRef": {"resource": "limits.cpu"}} if service in ("llm", "vector") else None
        assert sources.get("OMP_NUM_THREADS") == wanted


def test_hosts_that_workers_may_or_may_not_connect_to_are_read_by_their_rules():
    container = changed(
        {"egress.allow": ["10.0.0.5:5432", "internal:443"], "egress.deny": ["db.example.com:5432"]}
    ).container("worker")
    environment = _environment(container)
    assert len(parse_host_ports(environment["HEADRACE_EGRESS_ALLOW"])) == 2
    assert len(parse_host_ports(environment["HEADRACE_EGRESS_DENY"])) == 1


def test_the_llm_service_is_told_of_models_and_of_vllm_servers(no_environment, tmp_path):
    small = {"name": "embedder", "backend": "sentence_transformers", "repo": "sentence-transformers/all-MiniLM-L6-v2"}
    rendered = changed({"llm.models": [small]}, "ha")
    file = tmp_path / "models.json"
    file.write_text(rendered.one("ConfigMap", "models")["data"]["models.json"])
    models, defaults = configured_models(LlmSettings(listen="", models_file=file))
    assert [model.name for model in models] == ["embedder", "qwen3-4b"]
    assert defaults == {"embedder", "qwen3-4b"}
    assert models[1].base_urls == ("http://headrace-vllm-qwen3-4b:8000/v1",)
    (port,) = rendered.one("Service", "vllm-qwen3-4b")["spec"]["ports"]
    assert port["port"] == 8000
    (container,) = rendered.one("Deployment", "vllm-qwen3-4b")["spec"]["template"]["spec"]["containers"]
    assert "--served-model-name=qwen3-4b" in container["args"]


def test_pods_of_the_llm_service_are_replaced_when_the_list_of_models_changes():
    def checksum(context: int) -> str:
        rendered = changed(
            {"llm.models": [{"name": "m", "backend": "openai", "base_url": "http://m", "context_length": context}]}
        )
        annotation = rendered.workload("llm")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        assert isinstance(annotation, str)
        return annotation

    assert checksum(4096) == checksum(4096) != checksum(8192)


def test_a_list_of_models_with_api_keys_comes_from_a_secret():
    rendered = changed({"llm.modelsSecret": {"name": "my-models", "key": "list.json"}})
    spec = rendered.workload("llm")["spec"]["template"]["spec"]
    (volume,) = (each for each in spec["volumes"] if each["name"] == "models")
    assert volume["secret"] == {"secretName": "my-models", "items": [{"key": "list.json", "path": "list.json"}]}
    assert {"name": "HEADRACE_LLM_MODELS_FILE", "value": "/etc/headrace/list.json"} in spec["containers"][0]["env"]
    assert rendered.of("ConfigMap") == []


def test_models_are_fetched_from_the_hub_only_where_that_is_wanted():
    assert _environment(release("dev").container("llm"))["HF_HUB_OFFLINE"] == "1"
    fetching = changed({"llm.download": True, "networkPolicy.publicInternet.llm": True})
    assert _environment(fetching.container("llm"))["HF_HUB_OFFLINE"] == "0"
