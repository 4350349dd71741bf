"""Rules that every manifest of every size keeps."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise

import pytest

from services.executor.worker.loop import LAST_REPORTS_SECONDS
from services.kit.grpc_server import GrpcServer
from services.vector.domain import indexes
from tests.helm.kubernetes_schemas import errors_in
from tests.helm.rendering import COMPONENT, RELEASE, SERVICES, SIZES, Release, changed, release

pytestmark = pytest.mark.parametrize("size", SIZES)


def test_every_manifest_is_valid_for_kubernetes(size):
    for manifest in release(size).manifests:
        assert errors_in(manifest) == [], f"{manifest['kind']} {manifest['metadata']['name']}"


def test_no_two_manifests_have_the_same_name(size):
    names = [(each["kind"], each["metadata"]["name"]) for each in release(size).manifests]
    assert len(names) == len(set(names))


def test_every_service_is_there(size):
    for service in SERVICES:
        assert release(size).workload(service)


def test_pods_keep_the_restricted_standard(size):
    for owner, template in release(size).pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, owner
        assert spec["securityContext"]["runAsUser"] == 10001, owner
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}, owner
        allowed = {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"]), owner
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner


def test_no_pod_gets_a_token_or_variables_of_services(size):
    for owner, template in release(size).pods():
        assert template["spec"]["automountServiceAccountToken"] is False, owner
        assert template["spec"]["enableServiceLinks"] is False, owner
    for account in release(size).of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert release(size).of("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding") == []


def test_every_service_has_an_account_of_its_own(size):
    accounts = {each["metadata"]["name"] for each in release(size).of("ServiceAccount")}
    used = [
        template["spec"]["serviceAccountName"] for owner, template in release(size).pods() if "-migrate-" not in owner
    ]
    assert len(used) == len(set(used))
    assert set(used) | {f"{RELEASE}-migrate"} == accounts


def test_every_container_asks_for_resources_and_is_limited(size):
    for owner, template in release(size).pods():
        for container in template["spec"]["containers"]:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, owner
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, owner


def test_workers_have_room_for_their_memory_and_that_of_the_process_of_suspects(size):
    container = release(size).container("worker")
    assert _mebibytes(container) >= 3 * _setting(container, "HEADRACE_WORKER_MEMORY_BYTES") / 2**20


def test_the_vector_service_has_room_for_its_indexes(size):
    container = release(size).container("vector")
    assert _mebibytes(container) >= 2 * _setting(container, "HEADRACE_VECTOR_MEMORY_BYTES") / 2**20


def test_everything_that_serves_is_probed(size):
    for service in SERVICES:
        container = release(size).container(service)
        assert container.keys() >= {"startupProbe", "livenessProbe", "readinessProbe"}
        ready, alive = container["readinessProbe"], container["livenessProbe"]
        if service == "gateway":
            assert (ready["httpGet"]["path"], alive["httpGet"]["path"]) == ("/readyz", "/healthz")
        else:
            # What is alive does not depend on PostgreSQL: see "headrace.probes".
            assert ready["grpc"] == {"port": 50051}
            assert alive["tcpSocket"] == {"port": "grpc"}


def test_every_pod_may_take_longer_to_end_than_its_service_does(size):
    (grpc_grace,) = (
        parameter.default
        for name, parameter in inspect.signature(GrpcServer.stop).parameters.items()
        if name == "grace_seconds"
    )
    for service in SERVICES:
        container = release(size).container(service)
        stop = {
            "gateway": lambda c: _setting(c, "HEADRACE_GATEWAY_STOP_TIMEOUT_SECONDS"),
            # The process of suspects gets 1 s more, and the health service stops after it.
            "worker": lambda c: _setting(c, "HEADRACE_WORKER_DRAIN_SECONDS") + LAST_REPORTS_SECONDS + 1 + grpc_grace,
            "llm": lambda c: _setting(c, "HEADRACE_LLM_STOP_SECONDS"),
            "vector": lambda _: grpc_grace + indexes._SHUTDOWN_SECONDS + 5,
        }.get(service, lambda _: grpc_grace)(container)
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert (
            release(size).workload(service)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > pause + stop
        )


def test_those_who_are_called_serve_on_until_nobody_calls(size):
    for service in SERVICES:
        has_pause = "lifecycle" in release(size).container(service)
        assert has_pause is (service != "worker")


def test_updates_take_no_deployment_below_its_replicas(size):
    for service in SERVICES:
        workload = release(size).workload(service)
        if workload["kind"] == "Deployment":
            assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_pods_are_spread_over_zones_and_nodes(size):
    for service in SERVICES:
        spread = release(size).workload(service)["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_services_with_several_replicas_have_a_disruption_budget_and_others_none(size):
    budgets = {each["metadata"]["labels"][COMPONENT] for each in release(size).of("PodDisruptionBudget")}
    fewest = {}
    for each in release(size).of("Deployment", "StatefulSet"):
        fewest[each["metadata"]["labels"][COMPONENT]] = each["spec"].get("replicas")
    for each in release(size).of("HorizontalPodAutoscaler"):
        fewest[each["metadata"]["labels"][COMPONENT]] = each["spec"]["minReplicas"]
    for each in release(size).of("ScaledObject"):
        fewest[each["metadata"]["labels"][COMPONENT]] = each["spec"]["minReplicaCount"]
    assert budgets == {component for component, replicas in fewest.items() if replicas > 1}


def test_what_is_scaled_automatically_names_no_replicas(size):
    for scaler in release(size).of("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]["name"].removeprefix(f"{RELEASE}-")
        assert "replicas" not in release(size).workload(target)["spec"]


def test_selectors_find_their_pods_and_no_others(size):
    templates = dict(release(size).pods())
    for each in release(size).of("Deployment", "StatefulSet"):
        found = _selected(release(size), each["spec"]["selector"]["matchLabels"])
        assert found == [each["metadata"]["name"]]
    for each in release(size).of("Service"):
        if each["metadata"]["name"] != f"{RELEASE}-metrics":
            (owner,) = _selected(release(size), each["spec"]["selector"])
            (container,) = templates[owner]["spec"]["containers"]
            names = {port["name"] for port in container["ports"]}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= names


def test_grpc_services_are_headless_for_clients_to_see_every_replica(size):
    for service in ("auth", "workflows", "executor", "llm", "vector"):
        assert release(size).one("Service", service)["spec"]["clusterIP"] == "None"


def test_schemas_are_migrated_before_anything_else_one_after_the_other(size):
    jobs = release(size).of("Job")
    assert [each["metadata"]["name"] for each in jobs] == [
        f"{RELEASE}-migrate-{service}" for service in ("auth", "executor", "vector", "workflows")
    ]
    account = release(size).one("ServiceAccount", "migrate")
    for each in [account, *jobs]:
        assert each["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in (account, jobs[0])]
    assert all(first < second for first, second in pairwise(weights))


def test_migrations_use_nothing_that_the_release_has_yet_to_make(size):
    made = {each["metadata"]["name"] for each in release(size).of("ConfigMap", "PersistentVolumeClaim")}
    for each in release(size).of("Job"):
        spec = each["spec"]["template"]["spec"]
        assert not made & set(re.findall(r"[\w-]+", str(spec["volumes"])))


def test_several_models_servers_are_not_replaced_before_they_have_ended(size):
    for each in release(size).of("Deployment"):
        if "-vllm-" in each["metadata"]["name"]:
            assert each["spec"]["strategy"] == {"type": "Recreate"}


def test_names_stay_within_what_kubernetes_takes(size):
    long = changed({"fullnameOverride": "h" * 40}, size)
    # These two may be as long as files are.
    short = (each for each in long.manifests if each["kind"] not in ("ConfigMap", "PrometheusRule"))
    assert max(len(each["metadata"]["name"]) for each in short) <= 63


def _selected(rendered: Release, selector: dict[str, str]) -> list[str]:
    return [owner for owner, template in rendered.pods() if selector.items() <= template["metadata"]["labels"].items()]


def _setting(container: dict, name: str) -> float:
    (value,) = (each["value"] for each in container["env"] if each["name"] == name)
    return float(value)


def _mebibytes(container: dict) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", container["resources"]["limits"]["memory"]).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]
