"""What is there only where values ask for it: scaling, ways in, monitoring, and changes to workloads."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.helm.kubernetes_schemas import errors_in
from tests.helm.rendering import CHART, RELEASE, SERVICES, changed, release, render, values_of

DASHBOARD = {"title": "Runs", "panels": [{"legendFormat": "{{queue}}"}]}
ALERTS = """\
groups:
  - name: headrace-workers
    rules:
      - alert: WorkersBehind
        expr: max by (queue) (headrace_executor_ready_oldest_seconds) > 30
        for: 5m
        labels: {severity: page}
        annotations: {summary: "Queue {{ $labels.queue }} waits for {{ $value }} s."}
"""


@pytest.fixture
def chart_with_files(tmp_path):
    """The chart with a dashboard and an alert beside what it has."""
    chart = tmp_path / "headrace"
    shutil.copytree(CHART, chart)
    for folder, name, content in (
        ("dashboards", "runs-test.json", json.dumps(DASHBOARD)),
        ("alerts", "workers-test.yaml", ALERTS),
    ):
        (chart / "files" / folder).mkdir(parents=True, exist_ok=True)
        (chart / "files" / folder / name).write_text(content)
    return chart


def test_the_gateway_follows_its_cpu():
    spec = release("ha").one("HorizontalPodAutoscaler", "gateway")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{RELEASE}-gateway"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 12)
    assert spec["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}


def test_workers_follow_the_backlog_that_each_executor_tells_whole_and_the_jobs_that_each_worker_tells():
    nodes, oldest = release("ha").one("ScaledObject", "worker")["spec"]["triggers"]
    assert nodes["metricType"] == "AverageValue"
    assert nodes["metadata"]["query"] == (
        'sum(max by (queue) (headrace_executor_ready_nodes{namespace="apps"})) '
        '+ (sum(headrace_worker_jobs_running{namespace="apps"}) or vector(0))'
    )
    assert nodes["metadata"]["threshold"] == "48"
    assert oldest["metricType"] == "Value"
    assert oldest["metadata"]["query"] == 'max(headrace_executor_ready_oldest_seconds{namespace="apps"})'


def test_workers_of_some_queues_follow_those_alone():
    nodes, oldest = changed({"services.worker.settings.queues": "default, gpu"}, "ha").one("ScaledObject", "worker")[
        "spec"
    ]["triggers"]
    assert 'headrace_executor_ready_nodes{namespace="apps",queue=~"default|gpu"}' in nodes["metadata"]["query"]
    assert 'oldest_seconds{namespace="apps",queue=~"default|gpu"}' in oldest["metadata"]["query"]


def test_models_follow_the_tokens_that_wait_in_all_replicas():
    (trigger,) = release("ha").one("ScaledObject", "llm")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'sum(headrace_llm_queued_tokens{namespace="apps"})'


def test_no_more_jobs_are_meant_for_a_worker_than_it_has_slots_for():
    trigger = release("ha").one("ScaledObject", "worker")["spec"]["triggers"][0]
    assert int(trigger["metadata"]["threshold"]) <= 64


def test_nothing_is_scaled_by_default():
    assert release("dev").of("HorizontalPodAutoscaler", "ScaledObject") == []


def test_an_ingress_leads_to_the_gateway_with_a_certificate_of_cert_manager():
    ingress = release("small").one("Ingress", "")
    assert ingress["metadata"]["annotations"] == {"cert-manager.io/cluster-issuer": "letsencrypt"}
    assert ingress["spec"]["tls"] == [{"hosts": ["headrace.example.com"], "secretName": "headrace-tls"}]
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": f"{RELEASE}-gateway", "port": {"name": "http"}}


def test_a_route_of_the_gateway_api_leads_to_the_gateway_without_a_time_out():
    (rule,) = release("ha").one("HTTPRoute", "")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": f"{RELEASE}-gateway", "port": 8080}]
    assert rule["timeouts"] == {"request": "0s"}


def test_without_a_way_in_there_is_none():
    assert release("dev").of("Ingress", "HTTPRoute") == []
    assert release("dev").one("Service", "gateway")["spec"]["type"] == "ClusterIP"


def test_prometheus_scrapes_every_pod_under_its_services_name():
    rendered = release("ha")
    monitor, service = rendered.one("ServiceMonitor", ""), rendered.one("Service", "metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    for owner, template in rendered.pods():
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for port in template["spec"]["containers"][0].get("ports", ())}
        assert ("metrics" in ports) is ("-migrate-" not in owner)


def test_dashboards_become_config_maps_as_they_are(chart_with_files):
    rendered = render(values_of("ha"), chart_with_files)
    config = rendered.one("ConfigMap", "dashboard-runs-test")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["runs-test.json"]) == DASHBOARD
    assert errors_in(config) == []


def test_alerts_become_rules_as_they_are(chart_with_files):
    rules = render(values_of("ha"), chart_with_files).one("PrometheusRule", "workers-test")
    assert errors_in(rules) == []
    (group,) = rules["spec"]["groups"]
    assert group["rules"][0]["annotations"]["summary"] == "Queue {{ $labels.queue }} waits for {{ $value }} s."


def test_without_files_or_without_being_asked_there_are_no_dashboards_and_alerts(chart_with_files):
    assert render(values_of("dev"), chart_with_files).of("PrometheusRule", "ConfigMap", "ServiceMonitor") == []
    shutil.rmtree(chart_with_files / "files")
    assert render(values_of("ha"), chart_with_files).of("PrometheusRule") == []


def test_a_workload_may_be_changed_where_the_chart_has_no_value_for_it():
    change = {
        "spec": {"minReadySeconds": 20, "replicas": 0, "template": {"spec": {"hostAliases": [{"ip": "10.0.0.1"}]}}}
    }
    spec = changed({"services.auth.merge": change}).workload("auth")["spec"]
    assert (spec["minReadySeconds"], spec["replicas"]) == (20, 0)
    assert spec["template"]["spec"]["hostAliases"] == [{"ip": "10.0.0.1"}]
    assert spec["template"]["spec"]["automountServiceAccountToken"] is False


def test_what_is_set_for_all_services_holds_for_each_that_sets_nothing_else():
    rendered = changed(
        {
            "defaults.nodeSelector": {"disk": "ssd"},
            "defaults.podAnnotations": {"team": "a"},
            "defaults.replicas": 2,
            "services.llm.replicas": 1,
        }
    )
    for service in SERVICES:
        workload = rendered.workload(service)
        assert workload["spec"]["replicas"] == (1 if service == "llm" else 2)
        assert workload["spec"]["template"]["spec"]["nodeSelector"] == {"disk": "ssd"}
        assert workload["spec"]["template"]["metadata"]["annotations"]["team"] == "a"


def test_a_services_pods_get_what_only_its_values_say():
    container = changed(
        {
            "services.auth.extraEnv": [{"name": "PGSSLROOTCERT", "value": "/etc/postgresql-ca/ca.crt"}],
            "services.auth.extraVolumes": [{"name": "ca", "secret": {"secretName": "postgresql-ca"}}],
            "services.auth.extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/postgresql-ca"}],
        }
    )
    (job,) = container.one("Job", "migrate-auth")["spec"]["template"]["spec"]["containers"]
    for each in (container.container("auth"), job):
        assert {"name": "PGSSLROOTCERT", "value": "/etc/postgresql-ca/ca.crt"} in each["env"]
        assert {"name": "ca", "mountPath": "/etc/postgresql-ca"} in each["volumeMounts"]


def test_index_files_outlive_their_pod_unless_told_not_to():
    spec = release("dev").workload("vector")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert (claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]) == ("indexes", "1Gi")
    (mount,) = (each for each in release("dev").container("vector")["volumeMounts"] if each["name"] == "indexes")
    assert release("dev").container("vector")["env"][4]["value"].startswith(f"{mount['mountPath']}/")
    spec = changed({"vector.persistence.enabled": False}).workload("vector")["spec"]
    assert "volumeClaimTemplates" not in spec
    assert {"name": "indexes", "emptyDir": {"sizeLimit": "1Gi"}} in spec["template"]["spec"]["volumes"]


def test_schemas_are_left_alone_where_migrations_are_off():
    assert changed({"migrations.enabled": False}).of("Job") == []


def test_notes_say_how_to_reach_the_api_and_what_is_amiss():
    assert "port-forward service/headrace-gateway" in release("dev").notes
    assert "https://headrace.example.com/v1" in release("small").notes
    assert "trusted_proxies" not in release("small").notes
    assert "trusted_proxies" in changed({"services.gateway.settings.trusted_proxies": 0}, "small").notes
    assert "networkPolicy.enabled is false" in changed({"networkPolicy.enabled": False}).notes
